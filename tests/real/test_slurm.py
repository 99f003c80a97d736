"""Work on a real Slurm of four machines: jobs and gangs, their logs and ends, whatever is killed meanwhile. Its GPUs are places that Slurm counts."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pexpect
import pytest
import yaml

from headframe.client import ApiError
from headframe.engines.slurm.directory import erasing
from headframe.model.api import EngineBody
from headframe.model.states import NodeState
from slurm import Slurm, missing
from support import Server, free_port
from support import wait_for as wait_for_within


def wait_for(true, limit_s=90):
    """As elsewhere, with room for a machine on which a whole cluster and all else starts at once."""
    return wait_for_within(true, limit_s)


pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
JOB = """
name: {name}
run: |
  {run}
nodes: {nodes}
resources: {{gpu: {gpu}, cpu: 1, memory: 50MB, disk: 1MB}}
{more}
"""


class Cloud:
    """A Slurm, a Headframe beside it, and what it takes to use both."""

    def __init__(self, **slurm):
        if missing():
            assert os.environ.get("CI") != "true", f"not installed: {missing()}"
            pytest.skip(f"not installed: {missing()}")
        self.root = Path(tempfile.mkdtemp(prefix="hf-slurm-"))
        self.root.chmod(0o755)
        self.shared = self.root / "shared"
        self.slurm = Slurm(self.root / "c", **slurm)

    def __enter__(self):
        self.slurm.__enter__()
        try:
            self.server = Server(self.root).start("--no-check-new", SLURM_CONF=str(self.slurm.root / "slurm.conf"))
            self.operator = self.server.operator()
            self.operator.add_engine(self.engine())
            wait_for(lambda: self.ready() == set(self.slurm.names))
            self.tenant = self.server.tenant(credit_usd=100_000)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if getattr(self, "server", None) is not None and self.server.process.poll() is None:
            self.server.kill()
        self.slurm.__exit__()
        shutil.rmtree(self.root, ignore_errors=True)

    def engine(self, **changes):
        return EngineBody(**{"url": self.slurm.url, "key_file": str(self.slurm.key), "shared": str(self.shared), "python": sys.executable, **changes})

    def ready(self):
        return {view.node.name for view in self.operator.nodes() if view.node.engine == "slurm" and view.node.state is NodeState.READY}

    def node(self, name):
        return next(view.node for view in self.operator.nodes() if view.node.name == name)

    def run(self, name, run, nodes=1, gpu=1, **more):
        text = JOB.format(
            name=name, run="\n  ".join(run.splitlines()), nodes=nodes, gpu=gpu, more="\n".join(f"{key}: {value}" for key, value in more.items())
        )
        return self.tenant.submit(text)

    def state(self, name):
        return self.tenant.workload(name).workload.state

    def ended(self, name, limit_s=60):
        wait_for(lambda: self.state(name) in {"succeeded", "failed", "cancelled"}, limit_s)
        return self.tenant.workload(name).workload

    def lines(self, name, attempt=1):
        return [(line.rank, line.text) for line in self.tenant.logs(name, attempt=attempt).lines if line.stream != "sys"]

    def says(self, name, text, attempt=1):
        return wait_for(lambda: [line for line in self.lines(name, attempt) if text in line[1]])

    def where(self, name):
        """The machines on which an attempt runs."""
        nodes = {view.node.id: view.node.name for view in self.operator.nodes()}
        return [nodes[part.node_id] for part in max(self.tenant.workload(name).allocations, key=lambda each: each.attempt).parts]

    def events(self, name):
        return [event.text for event in self.operator.events(subject=self.tenant.workload(name).workload.id, limit=500).items]


@pytest.fixture(scope="module")
def cloud():
    # On one small machine many processes start slowly: the work itself says when it is on its way.
    with Cloud(nodes=4, gpus="rtx3090:4", switches={"leaf-a": "n[1-2]", "leaf-b": "n[3-4]"}) as made:
        yield made


@pytest.fixture(autouse=True)
def healed(request):
    """Each test finds all machines up and nothing running."""
    if "cloud" not in request.fixturenames:
        yield
        return
    cloud = request.getfixturevalue("cloud")
    yield
    for view in list(cloud.tenant.workloads()):
        if not view.workload.ended_ms:
            cloud.tenant.stop(view.workload.id)
    for name in cloud.slurm.names:
        if f"slurmd-{name}" not in cloud.slurm.processes:
            cloud.slurm.slurmd(name)
    if "slurmctld" not in cloud.slurm.processes:
        cloud.slurm.controller()
    for name in cloud.slurm.names:  # as an administrator would: Slurm drains a machine on which a number came twice
        cloud.slurm.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
    if cloud.server.process.poll() is not None:
        cloud.server.start()
    wait_for(lambda: cloud.ready() == set(cloud.slurm.names), 90)
    wait_for(lambda: all(view.workload.ended_ms for view in cloud.tenant.workloads()), 90)


def test_its_machines_appear_with_their_cards_and_a_job_runs_on_the_one_that_was_chosen(cloud):
    card = next(view.gpus[0] for view in cloud.operator.nodes() if view.node.name == "n1")
    assert (card.model, card.memory_mib, card.compute_capability) == ("GeForce RTX 3090", 24_576, "8.6")
    racks = {row.rack.id: row.rack.name for row in cloud.operator.racks().items}
    assert {name: racks[cloud.node(name).rack_id] for name in cloud.slurm.names} == {"n1": "leaf-a", "n2": "leaf-a", "n3": "leaf-b", "n4": "leaf-b"}
    cloud.run("one", "echo on $SLURMD_NODENAME with $CUDA_VISIBLE_DEVICES; echo wrong >&2; pwd", gpu="RTX3090:2")
    assert cloud.ended("one").state == "succeeded"
    said = {
        line.stream: [each.text for each in cloud.tenant.logs("one", attempt=1).lines if each.stream == line.stream]
        for line in cloud.tenant.logs("one", attempt=1).lines
    }
    text, cwd = said["out"]
    assert re.fullmatch(r"on n\d with \d,\d", text)
    assert said["err"] == ["wrong"]
    allocation = cloud.tenant.workload("one").allocations[0]
    assert str(cloud.shared) in cwd
    assert allocation.id in cwd
    assert len(allocation.parts[0].shares) == 2


def test_a_gang_is_one_launch_whose_ranks_know_one_another(cloud):
    cloud.run("gang", "echo $HEADFRAME_NODE_RANK/$HEADFRAME_NODES $HEADFRAME_MASTER_ADDR $HEADFRAME_MASTER_PORT $SLURMD_NODENAME", nodes=3, gpu=4)
    assert cloud.ended("gang").state == "succeeded"
    said = sorted(cloud.lines("gang"))
    assert [text.split()[0] for _, text in said] == ["0/3", "1/3", "2/3"]
    assert [rank for rank, _ in said] == [0, 1, 2]
    assert len({text.split()[2] for _, text in said}) == 1
    assert [text.split()[3] for _, text in said] == cloud.where("gang")


def test_a_cache_lies_on_each_nodes_own_disk_where_only_the_works_account_reaches_it(cloud):
    place = f"/var/tmp/headframe-cache-{os.geteuid()}"  # noqa: S108
    text = 'test -w "$HEADFRAME_VOLUME_MODELS" && stat -c "%a %u" "$HEADFRAME_VOLUME_MODELS/.."; echo "$HEADFRAME_VOLUME_MODELS"'
    cloud.run("cached", text, nodes=2, gpu=1, volumes=["cache:models:/m"])
    assert cloud.ended("cached").state == "succeeded"
    said = {text for _, text in cloud.lines("cached")}
    assert f"700 {os.geteuid()}" in said
    assert all(text.startswith(place) for text in said if text.startswith("/"))
    assert {row.node for row in cloud.operator.volumes().items} == set(cloud.where("cached"))
    [kept] = Path(place).iterdir()
    cloud.tenant.remove_volume("models")
    wait_for(lambda: not list(Path(place).iterdir()))
    cloud.run("anew", "echo mine >$HEADFRAME_VOLUME_MODELS/mine", gpu=1, volumes=["cache:models:/m"])
    assert cloud.ended("anew").state == "succeeded"
    late = cloud.root / "late.sh"
    late.write_text(erasing(kept, int(time.time()) - 60))
    assert subprocess.run(["/bin/sh", str(late)]).returncode == 0
    assert (kept / "mine").read_text() == "mine\n", "what was asked for before it was mounted anew leaves it"
    cloud.tenant.remove_volume("models")
    shutil.rmtree(place)
    Path(place).symlink_to("/tmp")  # noqa: S108 - another account was there first
    try:
        cloud.run("lured", "true", gpu=1, volumes=["cache:models:/m"])
        assert cloud.ended("lured").state == "failed"
        assert "a cache can't be used" in cloud.tenant.workload("lured").allocations[0].detail
    finally:
        Path(place).unlink()
        cloud.tenant.remove_volume("models")


def test_a_gang_ends_as_one_with_the_reason_of_the_rank_that_failed_first(cloud):
    cloud.run("broken", "if [ $HEADFRAME_NODE_RANK = 1 ]; then sleep 0.5; exit 7; fi; sleep 600", nodes=3, gpu=1)
    row = cloud.ended("broken")
    assert (row.state, row.reason, row.exit_code, row.detail) == ("failed", "failed", 7, "rank 1: exited with 7")


def test_log_lines_of_all_ranks_are_there_while_it_runs_each_once_and_in_time(cloud):
    cloud.run("talk", "for i in 1 2 3 4 5 6 7 8; do echo line $i of $HEADFRAME_NODE_RANK; sleep 0.2; done", nodes=2, gpu=1)
    cloud.says("talk", "line 3 of 0")
    assert cloud.state("talk") in {"starting", "running"}, "they are there before it ends"
    seen, after = [], 0
    while not (cloud.state("talk") == "succeeded" and not (page := cloud.tenant.logs("talk", attempt=1, after=after)).lines):
        page = cloud.tenant.logs("talk", attempt=1, after=after)
        seen += [line for line in page.lines if line.stream == "out"]
        after = page.next
    assert sorted(line.text for line in seen) == sorted(f"line {i} of {rank}" for i in range(1, 9) for rank in (0, 1))
    for rank in (0, 1):
        assert [line.text for line in seen if line.rank == rank] == [f"line {i} of {rank}" for i in range(1, 9)]


def test_a_shell_beside_work_is_a_step_of_its_job_and_ends_with_its_client_and_with_the_job(cloud):
    cloud.run("look", "echo up; sleep 300", nodes=2, gpu=1, env={"HELLO": "there"})
    cloud.says("look", "up")
    wait_for(lambda: cloud.state("look") == "running")
    key = cloud.tenant._http.headers["Authorization"].removeprefix("Bearer ")
    env = {**os.environ, "HEADFRAME_URL": cloud.server.url, "HEADFRAME_KEY": key, "TERM": "xterm"}

    def headframe(*words):
        return subprocess.run([sys.executable, "-m", "headframe", *words], env=env, capture_output=True, text=True, timeout=60)

    script = 'echo $HELLO $HEADFRAME_NODE_RANK $CUDA_VISIBLE_DEVICES; pwd; env | grep -c "^HEADFRAME_DATABASE"; exit 7'
    done = headframe("exec", "look", "--", "sh", "-c", script)
    assert done.returncode == 7, done
    assert done.stdout.splitlines()[0].split()[:2] == ["there", "0"]
    assert str(cloud.shared) in done.stdout.splitlines()[1]
    assert headframe("exec", "look", "--", "printf", "%s|", "two  words", "$HOME", "'").stdout == "two  words|$HOME|'|"
    assert headframe("exec", "look", "no-such-program").returncode == 127
    shell = pexpect.spawn(sys.executable, ["-m", "headframe", "ssh", "look"], env=env, dimensions=(33, 101), timeout=30, encoding="utf-8")
    shell.sendline("stty size; echo pid=$$")
    shell.expect("33 101")
    shell.expect(r"pid=(\d+)")
    pid = int(shell.match[1])
    shell.kill(signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 30)
    assert cloud.state("look") == "running"
    shell = pexpect.spawn(sys.executable, ["-m", "headframe", "ssh", "look"], env=env, timeout=60, encoding="utf-8")
    shell.sendline("echo re''ady")
    shell.expect("ready")
    cloud.tenant.stop("look")
    shell.expect(pexpect.EOF)
    assert cloud.ended("look", 40).reason == "cancelled"


def test_a_port_of_work_is_forwarded_through_a_step_of_its_job_and_no_other_port_is(cloud):
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        serve = f"import http.server as h; open('big', 'wb').write(bytes(range(256)) * 4000); h.test(h.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
        cloud.run("site", f'echo up; exec {sys.executable} -c "{serve}"', gpu=1)
        cloud.says("site", "up")
        wait_for(lambda: cloud.state("site") == "running")
        key = cloud.tenant._http.headers["Authorization"].removeprefix("Bearer ")
        env = {**os.environ, "HEADFRAME_URL": cloud.server.url, "HEADFRAME_KEY": key}
        other = stranger.getsockname()[1]
        argv = [sys.executable, "-m", "headframe", "forward", "site", f"0:{port}", f"0:{other}"]
        with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as forward:
            here, there = (re.search(r"127\.0\.0\.1:(\d+)", forward.stderr.readline())[1] for _ in range(2))
            for _ in range(3):
                assert httpx.get(f"http://127.0.0.1:{here}/big", timeout=30).content == bytes(range(256)) * 4000
            with socket.create_connection(("127.0.0.1", int(there))) as refused:
                assert refused.recv(100) == b""
            assert f"nothing of this work listens at port {other}" in forward.stderr.readline()
            forward.send_signal(signal.SIGINT)
    cloud.tenant.stop("site")
    assert cloud.ended("site", 40).reason == "cancelled"


def test_work_is_stopped_with_grace_and_nothing_of_it_is_left(cloud):
    cloud.run("stopped", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done", nodes=2, gpu=1)
    cloud.says("stopped", "up")
    cloud.tenant.stop("stopped")
    assert cloud.ended("stopped", 30).reason == "cancelled"
    assert ("bye" in [text for _, text in cloud.lines("stopped")]) is True
    wait_for(lambda: not cloud.slurm.run("squeue", "-h", "-o", "%j").strip())


def test_a_failure_has_its_exit_code_and_a_setup_that_fails_says_so(cloud):
    cloud.run("fails", "exit 3")
    assert (cloud.ended("fails").reason, cloud.ended("fails").exit_code) == ("failed", 3)
    cloud.run("setup", "echo never", setup="exit 4")
    assert cloud.ended("setup").reason == "setup-failed"
    assert "never" not in [text for _, text in cloud.lines("setup")]


def test_kill_9_of_the_server_leaves_work_alone_and_it_is_found_again(cloud):
    cloud.run("long", "echo begun; sleep 4; echo over", nodes=2, gpu=1)
    cloud.says("long", "begun")
    cloud.server.kill()
    time.sleep(0.5)
    cloud.server.start()
    assert cloud.ended("long").state == "succeeded"
    assert sorted(text for _, text in cloud.lines("long")) == ["begun", "begun", "over", "over"]
    assert cloud.tenant.workload("long").workload.attempt == 1


def test_while_the_controller_is_away_work_goes_on_nothing_is_lost_and_the_queue_says_why_it_waits(cloud):
    cloud.run("through", "echo begun; sleep 14; echo over", gpu=1)
    cloud.says("through", "begun")
    cloud.slurm.kill("slurmctld")
    wait_for(lambda: cloud.node("n1").state is NodeState.UNKNOWN, 40)
    assert "Slurm's controller has not answered" in cloud.node("n1").why
    cloud.run("waits", "echo at last", gpu=1)
    wait_for(lambda: any("Slurm's controller has not answered" in str(why) for why in cloud.tenant.workload("waits").waits))
    assert cloud.state("through") == "running"
    cloud.says("through", "over")
    cloud.slurm.controller()
    assert cloud.ended("through").state == "succeeded"
    assert cloud.ended("waits").state == "succeeded"
    assert cloud.tenant.workload("through").workload.attempt == 1


def test_a_machine_that_slurm_drains_gets_nothing_new_with_slurms_reason_and_is_back_by_itself(cloud):
    cloud.slurm.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=new fan")
    wait_for(lambda: cloud.node("n2").state in {NodeState.DRAINING, NodeState.MAINTENANCE})
    assert cloud.node("n2").why == "Slurm: new fan"
    cloud.run("elsewhere", "echo on $SLURMD_NODENAME", nodes=3, gpu=4)
    assert cloud.ended("elsewhere").state == "succeeded"
    assert "n2" not in cloud.where("elsewhere")
    cloud.slurm.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    wait_for(lambda: cloud.node("n2").state is NodeState.READY)


def test_work_that_an_administrator_cancels_in_slurm_is_queued_again_and_paid_once(cloud):
    cloud.run("cancelled", "echo attempt $HEADFRAME_ATTEMPT; [ $HEADFRAME_ATTEMPT = 1 ] && sleep 600; exit 0", gpu=1)
    cloud.says("cancelled", "attempt 1")
    cloud.slurm.run("scancel", "--user=root")
    wait_for(lambda: cloud.tenant.workload("cancelled").workload.reason == "preempted", 60)
    wait_for(lambda: any("ended, preempted" in text and "queued again" in text for text in cloud.events("cancelled")))


def test_two_jobs_of_slurms_for_one_attempt_run_it_once(cloud):
    """As after an answer that was lost: the second finds the directory claimed."""
    cloud.run("once", "echo ran >>$HEADFRAME_CHECKPOINT/count; sleep 3", gpu=1, checkpoint="/ck")
    wait_for(lambda: cloud.state("once") == "running")
    held = next((cloud.shared / "allocations").glob("wl-*"))
    text = f'#!/bin/sh\nHEADFRAME_HELD={held}; export HEADFRAME_HELD\nln -sn 1 "$HEADFRAME_HELD/claim" 2>/dev/null || exit 0\necho twice >{cloud.root}/twice\n'
    (cloud.root / "twin.sh").write_text(text)
    cloud.slurm.run("sbatch", "--wait", "-n1", "--mem=50", f"--comment={held.name}", "-o", "/dev/null", str(cloud.root / "twin.sh"), check=False)
    assert cloud.ended("once").state == "succeeded"
    count = next((cloud.shared / "checkpoints").glob("*/count"))
    assert count.read_text() == "ran\n"
    assert not (cloud.root / "twice").exists()


def test_cards_that_slurm_gives_to_others_are_an_event_with_both_views_and_the_work_is_planned_again(cloud, monkeypatch):
    others = [cloud.slurm.run("sbatch", "--parsable", "-n1", "--mem=50", f"--nodelist={name}", "--gres=gpu:rtx3090:4", "-o", "/dev/null", "--wrap", "sleep 300").strip()
              for name in ("n1", "n2", "n3")]  # fmt: skip
    wait_for(lambda: cloud.slurm.run("squeue", "-h", "-t", "R", "-o", "%i").split().__len__() == 3)
    wait_for(lambda: cloud.ready() == set(cloud.slurm.names))
    try:
        cloud.run("crowded", "echo got in", gpu=4, nodes=2)
        wait_for(lambda: any("Slurm does not start it there: " in text for text in cloud.events("crowded")), 120)
        assert cloud.tenant.workload("crowded").workload.attempt >= 1
    finally:
        cloud.slurm.run("scancel", *others)
    assert cloud.ended("crowded", 150).state == "succeeded"


def ddp(cloud, name, epochs, pause_s):
    env = {"EPOCHS": str(epochs), "PAUSE_S": str(pause_s), "PYTHON": sys.executable, "GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    text = (EXAMPLES / "ddp" / "job.yaml").read_text().replace("name: train-ddp", f"name: {name}").replace('env: {EPOCHS: "10"}', f"env: {env}")
    cloud.tenant.submit(text, EXAMPLES / "ddp")


def losses(cloud, name, rank, attempt):
    return [float(text.split()[-1]) for number, text in cloud.lines(name, attempt) if number == rank and " loss " in text]


@pytest.mark.timeout(300)
def test_two_machines_train_together_and_after_one_is_lost_others_go_on_from_the_checkpoint(cloud):
    ddp(cloud, "ddp", epochs=30, pause_s=1.2)
    wait_for(lambda: len(losses(cloud, "ddp", 0, 1)) >= 2, 120)
    first, lost = cloud.where("ddp"), cloud.where("ddp")[1]
    cloud.slurm.kill(f"slurmd-{lost}")  # kill -9 of slurmd: what it ran lives on, and must not write into what comes after it
    began = time.monotonic()
    wait_for(lambda: cloud.tenant.workload("ddp").workload.attempt == 2 and cloud.state("ddp") == "running", 120)
    again_s = time.monotonic() - began
    assert lost not in cloud.where("ddp")
    assert cloud.ended("ddp", 180).state == "succeeded", cloud.lines("ddp", 2)
    for rank in (0, 1):
        before, after = losses(cloud, "ddp", rank, 1), losses(cloud, "ddp", rank, 2)
        assert 30 <= len(before) + len(after) <= 30 + 1  # at most one epoch was done twice
        assert after[-1] < before[0] / 2
    resumed = next(text for _, text in cloud.lines("ddp", 2) if "from epoch" in text)
    assert int(re.search(r"from epoch (\d+)", resumed)[1]) > 2
    print(f"\nlost {lost} of {first}: running again on {cloud.where('ddp')} after {again_s:.1f} s")
    assert again_s < 60


def test_an_elastic_gang_goes_on_with_the_machines_that_are_left(cloud):
    text = "echo up $HEADFRAME_ATTEMPT of $HEADFRAME_NODES; [ $HEADFRAME_ATTEMPT = 1 ] && sleep 600; exit 0"
    cloud.run("elastic", text, nodes="2..4", gpu=4)
    wait_for(lambda: len([1 for _, text in cloud.lines("elastic") if text == "up 1 of 4"]) == 4)
    lost = cloud.where("elastic")[1]
    cloud.slurm.lose(lost)
    assert cloud.ended("elastic", 120).state == "succeeded"
    assert [text for _, text in cloud.lines("elastic", 2)] == ["up 2 of 3"] * 3
    assert lost not in cloud.where("elastic")


def test_a_lost_machine_ends_the_gang_as_one_and_its_time_is_credited(cloud):
    cloud.run("lost", "echo up $HEADFRAME_ATTEMPT; [ $HEADFRAME_ATTEMPT = 1 ] && sleep 600; exit 0", nodes=2, gpu=1)
    wait_for(lambda: len([1 for _, text in cloud.lines("lost") if text == "up 1"]) == 2)
    cloud.slurm.lose(cloud.where("lost")[1])
    assert cloud.ended("lost", 120).state == "succeeded"
    row = cloud.tenant.workload("lost").workload
    assert row.attempt == 2
    assert any("ended, node-lost" in text for text in cloud.events("lost")), cloud.events("lost")
    wait_for(lambda: cloud.tenant.workload("lost").workload.credited_nano > 0)


NASTY = {
    "SPACES": "a  b",
    "QUOTES": 'it\'s "so" `x` $HOME $(id) ${IFS} \\n',
    "LINES": "one\ntwo\n#SBATCH --exclusive\nthree",
    "UNICODE": "ü 漢字 \u202e rtl 🙂",
    "LONG": "x" * 5000,
    "SEMICOLON": "; touch /tmp/owned; #",
    "LD_PRELOAD_": "x",
    "PERCENT": "%n %s %%",
}


def test_nothing_that_a_tenant_writes_reaches_slurm_and_all_of_it_reaches_the_work(cloud):
    import json

    code = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('N_')}))"
    spec = {
        "name": "nasty", "env": {f"N_{key}": value for key, value in NASTY.items()}, "resources": {"gpu": 1, "cpu": 1, "memory": "50MB", "disk": "1MB"},
        "run": f"#SBATCH --wrap=evil\n{sys.executable} -c {json.dumps(code)!s}\necho \"it's over\" '$(done)'\n",
    }  # fmt: skip
    cloud.tenant.submit(yaml.safe_dump(spec, allow_unicode=True))
    assert cloud.ended("nasty").state == "succeeded"
    lines = [text for _, text in cloud.lines("nasty")]
    assert json.loads(lines[0]) == {f"N_{key}": value for key, value in NASTY.items()}
    assert lines[1] == "it's over $(done)"
    assert not Path("/tmp/owned").exists()


@pytest.mark.parametrize(
    ("changes", "code", "why"),
    [
        ({"key_file": "/nonexistent/key"}, "conflict", "can't be read"),
        ({"url": "unix:/nonexistent/socket"}, "conflict", "does not answer"),
        *(
            ({"url": url}, "bad_request", "url is slurmrestd's")
            for url in ("ftp://x", "http://", "http://[::", "http://a:99999", "http://a:b", "http://\u00fc:1", "unix:x")
        ),
        ({"shared": "relative/path"}, "bad_request", "absolute path"),
        ({"shared": "/a/../etc"}, "bad_request", "absolute path"),
        ({"python": "/nonexistent/python"}, "conflict", "does not run on"),
        ({"partition": "none"}, "conflict", "none is up"),
        ({"partition": "x; rm"}, "bad_request", "letters, digits"),
        ({"accounts": "everyone"}, "bad_request", "{project}"),
    ],
)
def test_what_can_not_be_an_engine_is_refused_with_the_reason_and_nothing_is_changed(cloud, changes, code, why):
    before = cloud.operator.engines()
    with pytest.raises(ApiError) as refused:
        cloud.operator.add_engine(cloud.engine(**changes))
    assert refused.value.problem.code == code
    assert why in refused.value.problem.detail
    assert cloud.operator.engines().items[0].setup == before.items[0].setup


def test_a_shared_path_that_its_machines_do_not_share_is_found_by_a_job_there(cloud):
    """The job's machine sees another directory under that path: here one that is laid over it where slurmd runs."""
    from headframe.engines.slurm.checks import told

    here, (found,) = cloud.engine(), told(["another mark", "python 3.11"], "the mark", cloud.engine(), "n1")
    assert found.verdict == "bad"
    assert found.finding == f"n1 sees another {here.shared} than the server: it did not find there what was written here"


def test_the_command_line_adds_lists_checks_and_removes_an_engine(cloud):
    import subprocess

    def headframe(*words):
        env = {**os.environ, "HEADFRAME_CONFIG": str(cloud.root / "config.json"), "COLUMNS": "160"}
        return subprocess.run([sys.executable, "-m", "headframe", *words], capture_output=True, text=True, env=env)

    checked = headframe(
        "engine",
        "add",
        "slurm",
        "--url",
        cloud.slurm.url,
        "--key-file",
        str(cloud.slurm.key),
        "--shared",
        str(cloud.shared),
        "--python",
        sys.executable,
        "--check",
    )
    assert checked.returncode == 0, checked.stderr
    assert "ProctrackType=proctrack/cgroup" in re.sub(r"\s+", "", checked.stdout)
    assert "rtx3090" in checked.stdout
    assert "slurm" in headframe("engine", "ls").stdout
    refused = headframe("engine", "add", "slurm", "--url", "unix:/none", "--key-file", "/none", "--shared", "/none")
    assert refused.returncode == 1
    assert "not added" in refused.stderr
    missing_url = headframe("engine", "add", "slurm", "--shared", "/x")
    assert missing_url.returncode == 2
    cloud.run("holds", "sleep 60")
    wait_for(lambda: cloud.state("holds") == "running")
    busy = headframe("engine", "rm")
    assert busy.returncode != 0
    assert "1 allocation there" in busy.stderr
