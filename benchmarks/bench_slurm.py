"""Short jobs through Headframe on a real Slurm of eight machines, beside plain `sbatch` on the same cluster in the same run: jobs a second, and from submission to the job's first command.
Slurm's controller looks at new jobs about once a second, so what a job waits for that is told apart: it is neither's, and spread over that second. All machines are one, so the keepers' processor time is
the controller's and the server's too. So jobs of one to three seconds, for which a card stands idle in between for as long as it takes to find them their next, and jobs that do nothing, which measure
processor time alone. (They take between half and one and a half of SECONDS: where all take the same they begin and end together, with Slurm's looks.)
Run: python benchmarks/bench_slurm.py [JOBS [SECONDS]]. Needs Slurm's packages (tests/components.py installs them where CI=true).
"""

import random
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent / "tests" / "real")]

from test_slurm import Cloud

JOBS = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
LENGTHS = [float(sys.argv[2])] if len(sys.argv) > 2 else [2.0, 0.0]
ALONE = 100
FILE = "name: {name}\nrun: {run}\nresources: {{gpu: 1, cpu: 1, memory: 20MB, disk: 1MB}}"


def work(n, seconds):
    return f"sleep {seconds * (0.5 + n * 7919 % 1000 / 1000):.3f}" if seconds else "true"


def sbatch(cloud, name, run):
    cloud.slurm.run("sbatch", "-n1", "--mem=20", "--gres=gpu:1", f"--job-name={name}", "-o", "/dev/null", "--wrap", run)


def plain(cloud, seconds):
    began = time.monotonic()
    for n in range(JOBS):
        sbatch(cloud, f"plain-{n}", work(n, seconds))
    while cloud.slurm.run("squeue", "-h", "-o", "%i").strip():
        time.sleep(0.1)
    return JOBS / (time.monotonic() - began)


def ours(cloud, seconds):
    began = time.monotonic()
    names = [f"ours-{seconds:g}-{n}" for n in range(JOBS)]
    for n, name in enumerate(names):
        cloud.tenant.submit(FILE.format(name=name, run=repr(work(n, seconds))))
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
        extra = {}
        for name, rows in alone(cloud).items():
            before, waits, after = (statistics.median(part) * 1000 for part in zip(*rows, strict=True))
            whole = statistics.quantiles((sum(row) * 1000 for row in rows), n=100)
            extra[name] = before + after
            print(
                f"one job through {name}, from submission to its first command: p50 {whole[49]:.0f} ms, p99 {whole[98]:.0f} ms of {ALONE}; at p50 {before:.0f} ms until Slurm has it, {waits:.0f} ms there, {after:.0f} ms from its script to its first command"
            )
        print(f"added at p50: {extra['Headframe'] - extra['sbatch']:.0f} ms (goal 100)")
        for seconds in LENGTHS:
            theirs, mine = plain(cloud, seconds), ours(cloud, seconds)
            took = f"{seconds / 2:g} to {seconds * 1.5:g} s" if seconds else "no time"
            print(
                f"{JOBS} jobs of one card and {took}: {mine:.1f}/s through Headframe, {theirs:.1f}/s by sbatch: {mine / theirs:.2f} of it (goal 0.8)",
                flush=True,
            )


if __name__ == "__main__":
    main()
