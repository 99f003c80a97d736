"""Short jobs through Headframe on a real Slurm of eight machines, beside plain `sbatch` on the same cluster in the same run: jobs a second, and from submission to the job's first command.
Slurm's controller looks at new jobs about once a second, so what a job waits for that is told apart: it is neither's, and spread over that second. All machines are one, so the keepers' processor time is
the controller's and the server's too: jobs that do nothing measure that, jobs of some seconds how long cards stand idle between two. They take between half and one and a half of SECONDS: where all
take the same they begin and end together, with Slurm's looks. Run: python benchmarks/bench_slurm.py [JOBS [SECONDS]]. Needs Slurm's packages (tests/components.py installs them where CI=true).
"""

import random
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent / "tests" / "real")]

from test_slurm import Cloud

JOBS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
ALONE = 60
FILE = "name: {name}\nrun: {run}\nresources: {{gpu: 1, cpu: 1, memory: 20MB, disk: 1MB}}"


def work(n):
    return f"sleep {SECONDS * (0.5 + n * 7919 % 1000 / 1000):.3f}" if SECONDS else "true"


def sbatch(cloud, name, run):
    cloud.slurm.run("sbatch", "-n1", "--mem=20", "--gres=gpu:1", f"--job-name={name}", "-o", "/dev/null", "--wrap", run)


def plain(cloud):
    began = time.monotonic()
    for n in range(JOBS):
        sbatch(cloud, f"plain-{n}", work(n))
    while cloud.slurm.run("squeue", "-h", "-o", "%i").strip():
        time.sleep(0.1)
    return JOBS / (time.monotonic() - began)


def ours(cloud):
    began = time.monotonic()
    names = [f"ours-{n}" for n in range(JOBS)]
    for n, name in enumerate(names):
        cloud.tenant.submit(FILE.format(name=name, run=repr(work(n))))
    while any(next(cloud.tenant.workloads(state=state, limit=1), None) for state in ("queued", "starting", "running")):
        time.sleep(0.1)
    took = time.monotonic() - began
    ended = {view.workload.name: view.workload.state for view in cloud.tenant.workloads(limit=500)}
    assert all(ended[name] == "succeeded" for name in names)
    return JOBS / took


def first_command(cloud, name, submit):
    """Seconds since 1970: that it was submitted, and what its first command saw."""
    said = cloud.root / f"at-{name}"
    time.sleep(random.random())
    began = time.time()
    submit(name, f"date +%s%N >{said}.new && mv {said}.new {said}")
    answered = time.time()
    while not said.exists():
        time.sleep(0.005)
    return began, answered, int(said.read_text()) / 1e9


def alone(cloud):
    """One job at a time by each way: seconds until Slurm has it, that it waits there, and from the job's script to its first command, which of sbatch's is the script itself."""
    took = {"sbatch": [], "Headframe": []}
    for n in range(ALONE):
        began, answered, first = first_command(cloud, f"bare-{n}", lambda name, run: sbatch(cloud, name, run))
        took["sbatch"].append((answered - began, first - answered, 0.0))
        name = f"through-{n}"
        began, _, first = first_command(cloud, name, lambda name, run: cloud.tenant.submit(FILE.format(name=name, run=run)))
        key = cloud.tenant.workload(name).allocations[0].id
        held = next(path for root in ("allocations", "ended") if (path := cloud.shared / root / key).exists())
        sent, script = (file.lstat().st_mtime for file in (held / "sent.json", held / "claim"))
        took["Headframe"].append((sent - began, script - sent, first - script))
    return took


def main():
    with Cloud(nodes=8, gpus="rtx3090:4", cpus=8) as cloud:
        took = {name: [statistics.median(part) * 1000 for part in zip(*rows, strict=True)] for name, rows in alone(cloud).items()}
        for name, (before, waits, after) in took.items():
            print(
                f"one job through {name}, p50 of {ALONE}: {before:.0f} ms until Slurm has it, {waits:.0f} ms there, {after:.0f} ms from its script to its first command"
            )
        ours_ms, bare_ms = (took[name][0] + took[name][2] for name in ("Headframe", "sbatch"))
        print(f"added: {ours_ms - bare_ms:.0f} ms (goal 100)")
        theirs = plain(cloud)
        mine = ours(cloud)
        print(f"{JOBS} jobs of one card and {SECONDS:g} s: {mine:.1f}/s through Headframe, {theirs:.1f}/s by sbatch: {mine / theirs:.2f} of it")


if __name__ == "__main__":
    main()
