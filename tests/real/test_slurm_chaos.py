"""Everything of a Slurm cluster and of Headframe is killed at random while jobs run: each is to run exactly once to its end, no card to be held twice (the jobs say so themselves, by a lock for
each card), and the ledger's seconds to be the jobs' own and Slurm's. What Slurm's own accounts lose with a killed controller (a job, its cards, its time) is told as such, and is all that they may
lack. By itself, as it wants a machine for itself: `make chaos`, which CI does after everything else.
"""

import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from headframe.client import ApiError
from headframe.engines.slurm.words import NAMED
from headframe.model.api import EngineBody
from slurm import Slurm, missing
from support import Server, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.skipif("HEADFRAME_CHAOS_JOBS" not in os.environ, reason="`make chaos`")]
JOBS, KILLS, NODES = int(os.environ.get("HEADFRAME_CHAOS_JOBS", "0")), int(os.environ.get("HEADFRAME_CHAOS_KILLS", "8")), 8
SEED = int(os.environ.get("HEADFRAME_CHAOS_SEED", "1"))
LIMIT_S = 120 + JOBS * 3
SLURMS_OWN = {
    "it was billed, and Slurm has no job of it in this time",
    "Slurm has the job, but not when it ran",
    "not as many GPUs",
    "longer in Slurm",
}
"""What is missing in Slurm's accounts when its controller or their keeper was killed before it was written there; and where a job ended while its controller was away, they have it go on until that was
back. What may never be is that the ledger has more, unless they have no time at all of a job (perhaps as it was started again under its number, and found its work taken): then it is the job's own record
that the ledger has to agree with."""
SACCT = "JobID,State,Submit,Start,End,NodeList,Restarts,ExitCode,Comment"
BESIDE_S = 1.0
"""From where the ledger counts, this much may go until the work has its first line written, and from its last until its end is seen, on a machine where forty processes start at a time."""
WORK = """import fcntl, os, sys, time
root, seconds = sys.argv[1], float(sys.argv[2])
name, attempt, node = (os.environ[key] for key in ("HEADFRAME_NAME", "HEADFRAME_ATTEMPT", "SLURMD_NODENAME"))
def say(path, what):
    with open(f"{root}/{path}", "a") as file:
        file.write(f"{what} {attempt} on {node} at {time.time():.3f}\\n")
held = []
for card in os.environ["CUDA_VISIBLE_DEVICES"].split(","):
    held.append(open(f"{root}/locks/{node}.{card}", "a"))
    try:
        fcntl.flock(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        say("twice", f"{name} {card}")
say(f"ran/{name}", "start")
time.sleep(seconds)
say(f"ran/{name}", "end")
"""


class Chaos:
    """A cluster with accounts, a server beside it, and what kills and mends them."""

    def __init__(self, root):
        self.root, self.rng = root, random.Random(SEED)
        self.slurm = Slurm(root / "c", nodes=NODES, gpus="rtx3090:2", accounting=True)
        self.killed = Counter()

    def serve(self):
        self.server.start("--no-check-new", SLURM_CONF=str(self.slurm.root / "slurm.conf"))

    def strike(self):
        """One kill -9, and after a while a new start, as a supervisor would."""
        what = self.rng.choice(["slurmctld", "slurmd", "slurmd", "server", "slurmdbd"])
        self.killed[what] += 1
        name = self.rng.choice(self.slurm.names)
        if what == "server":
            self.server.kill()
        else:
            self.slurm.kill(f"slurmd-{name}" if what == "slurmd" else what)
        time.sleep(self.rng.uniform(0.1, 2.0))
        {"server": self.serve, "slurmctld": self.slurm.controller, "slurmd": lambda: self.slurm.slurmd(name), "slurmdbd": self.slurm.slurmdbd}[what]()

    def mend(self):
        """What an administrator does where Slurm drained a machine, as it does when a number came twice."""
        for name in self.slurm.names:
            if "drain" in self.slurm.run("sinfo", "-h", "-n", name, "-o", "%T", check=False):
                self.slurm.run("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)


@pytest.fixture
def chaos():
    if missing():
        assert os.environ.get("CI") != "true", f"not installed: {missing()}"
        pytest.skip(f"not installed: {missing()}")
    root = Path(tempfile.mkdtemp(prefix="hf-chaos-"))
    root.chmod(0o755)
    for name in ("locks", "ran"):
        (root / name).mkdir()
    (root / "work.py").write_text(WORK)
    made = Chaos(root)
    with made.slurm:
        made.server = Server(root)
        made.serve()
        yield made
        if made.server.process.poll() is None:
            made.server.kill()
    shutil.rmtree(root, ignore_errors=True)


def submitted(chaos, tenant):
    names = [f"job-{n:03}" for n in range(JOBS)]
    for name in names:
        gpu, lasts = chaos.rng.choice((1, 1, 2)), round(chaos.rng.uniform(0.5, 4.0), 1)
        tenant.submit(
            f"name: {name}\nrun: {sys.executable} {chaos.root}/work.py {chaos.root} {lasts}\nretry: {{attempts: 20}}\n"
            f"resources: {{gpu: 'RTX3090:{gpu}', cpu: 1, memory: 100MB, disk: 1MB}}"
        )
    return names


def witnessed(chaos, tenant, found):
    """What each job was billed for is the time that it had by its own record, and no more than starting and ending it takes."""
    beside = []
    for name, workload in found.items():
        lines = [line.split() for line in (chaos.root / "ran" / name).read_text().splitlines()]
        (attempt, end_s), *_ = [(int(words[1]), float(words[-1])) for words in lines if words[0] == "end"]
        (start_s,) = [float(words[-1]) for words in lines if words[0] == "start" and int(words[1]) == attempt]
        (billed,) = [each for each in tenant.workload(workload.id).allocations if each.attempt == attempt]
        assert billed.started_ms <= start_s * 1000 + 1 and end_s * 1000 <= billed.ended_ms + 1, (name, lines, billed)
        beside.append((billed.ended_ms - billed.started_ms) / 1000 - (end_s - start_s))
    print(f"billed beside the jobs' own time: {sum(beside) / len(beside):.2f} s on average, {max(beside):.2f} at most")
    assert max(beside) <= BESIDE_S


def timeless(difference):
    """Whether Slurm's accounts have a job of it that took no time."""
    return difference.why == "longer in the ledger" and difference.theirs_s == 0


def unexplained(books):
    return [each for each in books.differences if each.why not in SLURMS_OWN and not timeless(each)]


def lost(books):
    """Attempts that Slurm's accounts have no job of."""
    return sum(each.theirs_gpus is None for each in books.differences)


def states(tenant):
    with contextlib.suppress(ApiError, httpx.HTTPError):
        return {view.workload.name: view.workload for view in tenant.workloads()}
    return {}


def test_whatever_is_killed_each_job_runs_once_to_its_end_no_card_is_held_twice_and_the_books_agree(chaos):
    engine = EngineBody(url=chaos.slurm.url, key_file=str(chaos.slurm.key), shared=str(chaos.root / "shared"), python=sys.executable)
    with chaos.server.operator() as operator:
        operator.add_engine(engine)
        wait_for(lambda: sum(view.node.engine == "slurm" and view.node.state == "ready" for view in operator.nodes()) == NODES, 60)
    with chaos.server.tenant(credit_usd=100_000) as tenant:
        names, began = submitted(chaos, tenant), time.monotonic()
        while chaos.killed.total() < KILLS:
            chaos.strike()
            chaos.mend()
            time.sleep(chaos.rng.uniform(0.1, 1.5))
        found = {}
        while not found or any(found[name].state not in {"succeeded", "failed", "cancelled"} for name in names):
            assert time.monotonic() - began < LIMIT_S, Counter(row.state for row in found.values())
            chaos.mend()
            time.sleep(0.5)
            found = states(tenant)
        print(
            f"\n{JOBS} jobs, killed {dict(chaos.killed)}; attempts {Counter(found[name].attempt for name in names)}; {time.monotonic() - began:.0f} s"
        )
        ends = Counter(
            (each.reason, each.detail.rstrip("0123456789")[-60:]) for name in names for each in tenant.workload(found[name].id).allocations
        )
        print(*(f"{count} {reason}: {detail}" for (reason, detail), count in ends.most_common(12)), sep="\n")
        wrong = {name: (found[name].state, found[name].detail, found[name].attempt) for name in names if found[name].state != "succeeded"}
        assert not wrong, (wrong, [event.text for event in chaos.server.operator().events(subject=found[min(wrong)].id, limit=100).items])
        ran = {name: [line.split()[0] for line in (chaos.root / "ran" / name).read_text().splitlines()] for name in names}
        odd = {name: said.count("end") for name, said in ran.items() if said.count("end") != 1}
        with chaos.server.operator() as operator:
            told = {name: [f"{event.at_ms} {event.text}" for event in operator.events(subject=found[name].id, limit=100).items] for name in odd}
        for what in (told, *((chaos.root / "ran" / name).read_text() for name in odd)):
            print(what)
        assert not odd, (odd,
                         [(path, path.read_text()) for name in odd for path in (chaos.root / "shared").rglob(f"{found[name].id}.*/0/journal")])  # fmt: skip
        assert not (chaos.root / "twice").exists(), (chaos.root / "twice").read_text()
        witnessed(chaos, tenant, found)
    with chaos.server.operator() as operator:
        books = operator.reconciliation("slurm")
        for _ in range(60):  # what has just ended is compared once it has had the time to reach Slurm's accounts
            if books.allocations + lost(books) >= JOBS and not unexplained(books):
                break
            time.sleep(1)
            books = operator.reconciliation("slurm")
        print(f"ledger {books.ours_s:.0f} s, Slurm {books.theirs_s:.0f} s of {books.allocations} attempts")
        print(Counter(each.why for each in books.differences))
        for each in filter(timeless, books.differences):
            print(each, chaos.slurm.run("sacct", "-XDP", "--name", f"{NAMED}{each.allocation_id}", "-o", SACCT, check=False), sep="\n")
        assert not unexplained(books)
        assert len(books.differences) <= 2 * NODES * (chaos.killed["slurmctld"] + chaos.killed["slurmdbd"])  # what can have run when one was killed
        assert books.allocations + lost(books) >= JOBS
