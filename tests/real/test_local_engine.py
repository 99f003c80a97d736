"""The local engine with real processes: whole trees end, keepers are adopted, nothing starts twice, nothing is inherited."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.engines import supervisor
from headframe.engines.cgroup import limits_kind
from headframe.engines.local import LocalEngine, read_journal, read_log
from headframe.model.states import AllocationState, Reason
from headframe.model.text import printable
from headframe.model.work import Allocation, Part, Tier
from headframe.server.main import wall_ms
from support import image_tar, job, needs, wait_for


def allocation(n=1, memory_mib=256):
    part = Part(rank=0, node_id="me", shares=(), cpu_milli=1000, memory_mib=memory_mib, disk_mib=10)
    return Allocation(
        id=f"wl-{n}.1", workload_id=f"wl-{n}", project_id="p", attempt=1, tier=Tier.SPOT, parts=(part,), state=AllocationState.GRANTED, granted_ms=0
    )


def work(n=1, run="true", **more):
    made = job(n)
    return msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, run=run, **more))


@pytest.fixture
def engine(tmp_path):
    (tmp_path / "workdirs").mkdir()
    return LocalEngine(tmp_path / "engine", "me", tmp_path / "workdirs", wall_ms, "boot-1")


def do(coroutine):
    return asyncio.run(coroutine)


def nth(n, number=1):
    return msgspec.structs.replace(allocation(n), id=f"wl-{n}.{number}", attempt=number)


def see(engine, n=1):
    return next((seen for seen in do(engine.observe()).observations if seen.allocation_id == f"wl-{n}.1"), None)


def ended(engine, n=1):
    return wait_for(lambda: (seen := see(engine, n)) is not None and seen.state is AllocationState.ENDED and seen)


def text(engine, n=1):
    return [line.text for line in do(engine.logs(nth(n), 0, 1000)) if line.stream != "sys"]


def test_work_runs_and_its_end_is_seen_with_times_and_exit_code(engine):
    do(engine.start(allocation(), work(run="echo out; echo err >&2; exit 4")))
    seen = ended(engine)
    assert (seen.reason, seen.exit_code, seen.detail) == (Reason.FAILED, 4, "exited with 4")
    assert 0 < seen.started_ms <= seen.ended_ms <= wall_ms()
    assert sorted(text(engine)) == ["err", "out"]


def test_starting_twice_runs_once(engine, tmp_path):
    for _ in range(5):
        do(engine.start(allocation(), work(run=f"echo x >> {tmp_path}/proof; sleep 0.3")))
    ended(engine)
    do(engine.start(allocation(), work(run=f"echo x >> {tmp_path}/proof")))
    do(engine.forget("wl-1.1"))
    do(engine.start(allocation(), work(run=f"echo x >> {tmp_path}/proof")))
    time.sleep(0.3)
    assert (tmp_path / "proof").read_text() == "x\n"


def test_two_keepers_of_one_allocation_start_it_once(engine, tmp_path):
    engine._prepare(engine._active / "wl-1.1", allocation(), work(run=f"echo x >> {tmp_path}/proof; sleep 0.2"))
    keepers = [engine._keeper() for _ in range(8)]
    for keeper in keepers:
        keeper.communicate(f"{engine._active / 'wl-1.1'}\n".encode(), timeout=30)
    assert (tmp_path / "proof").read_text() == "x\n"


def test_a_keeper_that_never_shows_itself_ends_the_attempt_with_what_it_said(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("import sys; sys.stdin.readline()")
    monkeypatch.setattr(supervisor, "__file__", str(tmp_path / "broken.py"))
    clock = [1_000_000]
    engine = LocalEngine(tmp_path / "engine", "me", tmp_path / "workdirs", lambda: clock[0], "boot-1")
    for _ in range(30):
        do(engine.start(allocation(), work(run="echo never")))
        clock[0] += 1000
    assert see(engine).reason is Reason.START_FAILED
    assert "keeper process did not start" in see(engine).detail


def test_a_stop_that_comes_before_the_start_forbids_it(engine, tmp_path):
    do(engine.stop("wl-1.1", Reason.CANCELLED, 1))
    do(engine.start(allocation(), work(run=f"touch {tmp_path}/proof")))
    assert ended(engine).reason is Reason.CANCELLED
    time.sleep(0.3)
    assert not (tmp_path / "proof").exists()


def test_stop_ends_the_whole_tree_daemons_too(engine, tmp_path):
    run = f"(setsid sleep 1000 & echo $! > {tmp_path}/daemon); sleep 1000 & echo $! > {tmp_path}/child; wait"
    do(engine.start(allocation(), work(run=run)))
    wait_for(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().strip() and (tmp_path / "daemon").read_text().strip())
    pids = [int((tmp_path / name).read_text()) for name in ("daemon", "child")]
    do(engine.stop("wl-1.1", Reason.CANCELLED, 5))
    assert ended(engine).reason is Reason.CANCELLED
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_work_that_has_ended_by_itself_was_not_stopped_though_it_was_to_be(tmp_path):
    """Its keeper sees both at once: the end, and that it was asked to stop a moment before."""
    keeper, at = keeper_of(tmp_path, "one", """echo '{"reason": "node-lost", "grace_s": 0}' >../stop.json""")
    keeper.wait(20)
    assert (read_journal(at)[-1].reason, read_journal(at)[-1].exit_code) == ("finished", 0)


def test_work_that_fails_as_it_is_to_be_stopped_was_stopped(tmp_path):
    """What ends it may reach it before its keeper."""
    keeper, at = keeper_of(tmp_path, "one", """echo '{"reason": "node-lost", "grace_s": 0}' >../stop.json; kill $$""")
    keeper.wait(20)
    assert read_journal(at)[-1].reason == "node-lost"


def test_work_that_has_ended_well_is_finished_though_slurm_ends_what_it_left_behind(tmp_path):
    keeper, at = keeper_of(tmp_path, "one", f"sleep 600 & echo $! >{tmp_path}/pid; exit 0")
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    left = int((tmp_path / "pid").read_text())
    wait_for(lambda: supervisor.descendants(keeper.pid) == [left])
    keeper.send_signal(signal.SIGTERM)
    keeper.wait(20)
    assert read_journal(at)[-1].reason == "finished"


def test_work_of_which_slurm_has_ended_a_part_is_not_finished_though_the_rest_ends_well(tmp_path):
    """Slurm ends a job by a signal to all of its processes: where a command is ended first, its shell may go on, and exit with 0, before it has its own."""
    keeper, at = keeper_of(tmp_path, "one", f"sleep 600 & echo $! >{tmp_path}/pid; wait; echo ended >{tmp_path}/shell; exit 0")
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    keeper.send_signal(signal.SIGSTOP)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    wait_for((tmp_path / "shell").exists)
    wait_for(lambda: "Z" in [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] for pid in supervisor.descendants(keeper.pid)])
    keeper.send_signal(signal.SIGTERM)
    keeper.send_signal(signal.SIGCONT)
    keeper.wait(20)
    assert read_journal(at)[-1].reason == "preempted"


def test_who_ignores_the_term_signal_is_killed_after_grace(engine):
    do(engine.start(allocation(), work(run="trap '' TERM; echo ready; while :; do sleep 0.1; done")))
    wait_for(lambda: "ready" in text(engine))
    began = time.monotonic()
    do(engine.stop("wl-1.1", Reason.PREEMPTED, 1))
    assert ended(engine).reason is Reason.PREEMPTED
    assert 0.9 < time.monotonic() - began < 5


def test_time_is_limited_by_the_keeper_even_without_a_server(engine):
    do(engine.start(allocation(), work(run="sleep 1000", max_duration_s=1)))
    assert ended(engine).reason is Reason.MAX_DURATION


def test_work_is_adopted_by_a_new_engine_and_its_end_is_not_missed(engine, tmp_path):
    do(engine.start(allocation(), work(run="sleep 0.5; echo after")))
    wait_for(lambda: (seen := see(engine)) and seen.state is AllocationState.RUNNING)
    again = LocalEngine(tmp_path / "engine", "me", tmp_path / "workdirs", wall_ms, "boot-1")
    assert see(again).state is AllocationState.RUNNING
    assert ended(again).reason is Reason.FINISHED
    assert text(again) == ["after"]


def test_a_killed_keeper_takes_its_work_with_it_and_is_the_nodes_fault(engine, tmp_path):
    do(engine.start(allocation(), work(run=f"echo $$ > {tmp_path}/pid; exec sleep 1000")))
    pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()))
    os.kill(read_journal(engine._active / "wl-1.1")[0].pid, signal.SIGKILL)
    assert ended(engine).reason is Reason.NODE_FAULT

    def gone():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone)


def test_after_a_reboot_the_attempt_is_lost_not_run_again(engine, tmp_path):
    do(engine.start(allocation(), work(run="sleep 1000")))
    wait_for(lambda: (seen := see(engine)) and seen.state is AllocationState.RUNNING)
    for line in read_journal(engine._active / "wl-1.1"):
        os.kill(line.pid, signal.SIGKILL)
    time.sleep(0.1)
    rebooted = LocalEngine(tmp_path / "engine", "me", tmp_path / "workdirs", wall_ms, "boot-2")
    assert ended(rebooted).reason is Reason.NODE_LOST


def test_a_checkpoint_is_kept_from_one_attempt_to_the_next_until_it_is_discarded(engine):
    run = 'cat "$HEADFRAME_CHECKPOINT/at" 2>/dev/null; echo $HEADFRAME_ATTEMPT >> "$HEADFRAME_CHECKPOINT/at"'
    for attempt in (1, 2):
        again = msgspec.structs.replace(allocation(), id=f"wl-1.{attempt}", attempt=attempt)
        do(engine.start(again, work(run=run, checkpoint="/checkpoints")))
        wait_for(
            lambda: (
                all(seen.state is AllocationState.ENDED for seen in do(engine.observe()).observations)
                and len(do(engine.observe()).observations) == attempt
            )
        )
    assert [line.text for line in do(engine.logs(nth(1, 2), 0, 10))] == ["1"]
    for number in (1, 2):
        do(engine.forget(f"wl-1.{number}"))
        do(engine.discard(nth(1, number)))
    assert not (engine._checkpoints / "wl-1").exists()


def test_no_line_is_lost_when_the_log_is_put_away_while_it_is_read(engine, monkeypatch):
    from headframe.engines import local

    do(engine.start(allocation(), work(run="echo precious")))
    ended(engine)
    real = local.read_log

    def slow(directory, after, limit):
        if directory.is_relative_to(engine._active):
            engine._put_away(engine._active / "wl-1.1")
        return real(directory, after, limit)

    monkeypatch.setattr(local, "read_log", slow)
    assert text(engine) == ["precious"]


def test_a_failed_setup_says_so_and_the_job_is_not_started(engine):
    do(engine.start(allocation(), work(run="echo never", setup="echo preparing; exit 7")))
    seen = ended(engine)
    assert seen.reason is Reason.SETUP_FAILED
    assert "setup exited with 7" in seen.detail
    assert text(engine) == ["preparing"]


def test_nothing_of_the_servers_environment_is_inherited(engine, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    do(engine.start(allocation(), work(run="env", env={"MINE": "yes"})))
    ended(engine)
    env = "\n".join(text(engine))
    assert "hunter2" not in env
    assert "MINE=yes" in env
    assert "HEADFRAME_ALLOCATION=wl-1.1" in env
    assert "CUDA_VISIBLE_DEVICES=\n" in env + "\n"


def test_what_can_not_be_started_ends_with_the_reason(engine):
    do(engine.start(allocation(), msgspec.structs.replace(work(), workdir_digest="missing")))
    seen = ended(engine)
    assert seen.reason is Reason.START_FAILED
    assert "missing.tar" in seen.detail


def test_a_clock_that_moves_while_it_is_read_delays_no_start(tmp_path):
    (tmp_path / "workdirs").mkdir()
    ticks = iter(range(1_000, 1_000_000))
    engine = LocalEngine(tmp_path / "engine", "me", tmp_path / "workdirs", lambda: next(ticks), "boot-1")
    do(engine.start(allocation(), work(run="true")))
    assert ended(engine).reason is Reason.FINISHED


def test_work_that_uses_up_its_disk_ends_for_its_own_reason_and_says_that_lines_are_lost(small_disk):
    (small_disk / "workdirs").mkdir()
    engine = LocalEngine(small_disk / "engine", "me", small_disk / "workdirs", wall_ms, "boot-1")
    do(engine.start(allocation(), work(run="cat /dev/zero >filled; seq 10000; exit 3")))
    seen = ended(engine)
    assert (seen.reason, seen.exit_code) == (Reason.FAILED, 3)
    assert seen.detail == "exited with 3; lines of its log are lost: No space left on device"


@pytest.mark.skipif(limits_kind() == "none", reason="no cgroup may be made here")
def test_memory_beyond_what_was_asked_for_is_refused_by_the_kernel(engine):
    do(engine.start(allocation(memory_mib=64), work(run=f"exec {sys.executable} -c 'x = bytearray(400_000_000); print(len(x))'")))
    seen = ended(engine)
    assert seen.reason is Reason.FAILED
    assert seen.exit_code == 137
    assert seen.detail == "it used more memory than it asked for, ended by SIGKILL"
    assert text(engine) == [] or "Killed" in "".join(text(engine))


def test_logs_are_capped_and_rotated_and_a_cursor_goes_on_at_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "LOG_SEGMENT_BYTES", 1000)
    monkeypatch.setattr(supervisor, "LOG_SEGMENTS_MAX", 3)
    log = supervisor.Log(str(tmp_path / "log"), 0)
    for n in range(1000):
        log.feed("out", f"line {n}\n".encode())
    log.close()
    assert sum(path.stat().st_size for path in (tmp_path / "log").iterdir()) <= 3000
    first = read_log(tmp_path / "log", 0, 10)
    assert len(first) == 10
    rest = read_log(tmp_path / "log", first[-1].next, 10_000)
    assert rest[-1].text == "line 999"
    numbers = [int(line.text.split()[1]) for line in first + rest]
    assert numbers == list(range(numbers[0], 1000))


def test_a_long_line_without_end_is_cut_not_kept_in_memory(tmp_path):
    log = supervisor.Log(str(tmp_path / "log"), 0)
    log.feed("out", b"x" * 100_000)
    log.close()
    lines = read_log(tmp_path / "log", 0, 100)
    assert sum(len(line.text) for line in lines) == 100_000
    assert max(len(line.text) for line in lines) <= supervisor.LINE_BYTES_MAX


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("a\rb", "b"),
        ("10%\r20%\r", "20%"),
        ("a\x00\x08b", "ab"),
        ("\u202eevil", "evil"),
        ("tab\tkept", "tab\tkept"),
    ],
)
def test_what_others_printed_is_made_safe_to_show(raw, shown):
    assert printable(raw) == shown


@pytest.mark.slow
def test_an_image_runs_in_podman_with_limits_and_without_our_files(engine, tmp_path):
    podman = needs("podman")
    image = make_image(podman, tmp_path)
    do(
        engine.start(
            allocation(), work(run="echo inside; pwd; cat /proc/self/status | grep NoNewPrivs", image=image, setup="echo preparing", env={"A": "b c"})
        )
    )
    seen = ended(engine)
    assert seen.reason is Reason.FINISHED, text(engine)
    assert text(engine)[:3] == ["preparing", "inside", "/work"]
    do(engine.start(allocation(2), work(2, run="sleep 1000", image=image)))
    wait_for(lambda: (now := see(engine, 2)) and now.state is AllocationState.RUNNING)
    time.sleep(1)
    do(engine.stop("wl-2.1", Reason.CANCELLED, 2))
    assert ended(engine, 2).reason is Reason.CANCELLED
    left = subprocess.run([podman, "ps", "-q", "--filter", "name=headframe-wl-2.1"], capture_output=True, text=True)
    assert left.stdout.strip() == ""


def make_image(podman, tmp_path):
    """An image from this machine's own shell, so that no registry is needed."""
    tar = image_tar(tmp_path, "/bin/sh", "/bin/cat", "/bin/grep", "/bin/sleep", "/bin/pwd")
    done = subprocess.run([podman, "import", str(tar), "localhost/headframe-test:1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return "localhost/headframe-test:1"


def keeper_of(root, name, run):
    """A keeper as Slurm starts it, on a machine where its job has the cards 0 and 2."""
    at = root / name
    (at / "work").mkdir(parents=True)
    spec = {"id": "wl-1.1", "rank": 0, "boot_id": "", "cwd": str(at / "work"), "setup": [], "setup_shown": "", "run": ["/bin/sh", "-c", run], "env": {}, "setup_exit": None,
            "on_stop": [], "max_duration_s": 0, "lease": "", "grace_s": 1, "cgroups": [], "on_term": "preempted", "cards": str(root / "card")}  # fmt: skip
    (at / "spec.json").write_text(json.dumps(spec))
    env = {**os.environ, "SLURMD_NODENAME": "n1", "SLURM_JOB_GPUS": "0,2"}
    process = subprocess.Popen([sys.executable, "-I", "-S", supervisor.__file__, "-"], stdin=subprocess.PIPE, env=env)
    process.stdin.write(f"{at}\n".encode())
    process.stdin.close()
    return process, at


def test_a_card_that_other_work_still_holds_is_not_used_and_costs_no_attempt(tmp_path):
    """As after a controller of Slurm's was killed and has forgotten what runs: also where that work's own keeper is gone."""
    first, at = keeper_of(tmp_path, "first", f"echo $$ >{tmp_path}/pid; exec sleep 600")
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    first.kill()
    first.wait()
    second, at = keeper_of(tmp_path, "second", f"touch {tmp_path}/twice")
    second.wait(20)
    assert read_journal(at)[-1].reason == "preempted"
    assert read_journal(at)[-1].detail == "card 0 of n1 is still held by other work there, which Slurm does not know any more"
    assert not (tmp_path / "twice").exists()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    third, at = keeper_of(tmp_path, "third", "exit 0")
    third.wait(20)
    assert read_journal(at)[-1].reason == "finished"
    assert [(tmp_path / f"card-n1-{card}").stat().st_mode & 0o777 for card in (0, 2)] == [0o644, 0o644]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), lambda some: st.lists(some) | st.dictionaries(st.text(), some)
)


@given(JSON, st.dictionaries(st.sampled_from(["event", "detail", "pid"]), st.text() | st.integers()))
def test_a_keeper_reads_and_writes_json_as_python_does_without_its_module(value, fact):
    assert supervisor.from_json(json.dumps(value)) == value
    assert json.loads(supervisor.to_json(fact)) == fact


@pytest.mark.parametrize("text", ["", " ", "{", '{"reason": "canc', "no"])
def test_json_that_is_cut_off_is_a_value_error_to_a_keeper(text):
    with pytest.raises(ValueError):
        supervisor.from_json(text)
