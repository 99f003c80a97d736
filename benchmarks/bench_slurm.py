"""Short jobs through Headframe on a real Slurm of eight machines, beside plain `sbatch` on the same cluster in the same run: jobs a second, and from submission to the job's first command.
Slurm's controller looks at new jobs about once a second, so each is submitted at a moment of chance, and both are spread over that second. All machines are one, so the keepers' processor time is
the controller's and the server's too. Run: python benchmarks/bench_slurm.py [JOBS]. Needs Slurm's packages (tests/components.py installs them where CI=true).
"""

import random
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent / "tests" / "real")]

from test_slurm import Cloud

JOBS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
ALONE = 60
FILE = "name: {name}\nrun: {run}\nresources: {{gpu: 1, cpu: 1, memory: 20MB, disk: 1MB}}"


def sbatch(cloud, name, run="true"):
    cloud.slurm.run("sbatch", "-n1", "--mem=20", "--gres=gpu:1", f"--job-name={name}", "-o", "/dev/null", "--wrap", run)


def plain(cloud):
    began = time.monotonic()
    for n in range(JOBS):
        sbatch(cloud, f"plain-{n}")
    while cloud.slurm.run("squeue", "-h", "-o", "%i").strip():
        time.sleep(0.1)
    return JOBS / (time.monotonic() - began)


def ours(cloud):
    began = time.monotonic()
    names = [f"ours-{n}" for n in range(JOBS)]
    for name in names:
        cloud.tenant.submit(FILE.format(name=name, run="'true'"))
    while sum(view.workload.state == "succeeded" for view in cloud.tenant.workloads(limit=500) if view.workload.name in set(names)) < JOBS:
        time.sleep(0.3)
    return JOBS / (time.monotonic() - began)


def alone(cloud, submit):
    """Seconds from submission to what the job's first command saw, one at a time."""
    took = []
    for n in range(ALONE):
        said = cloud.root / f"at-{n}"
        said.unlink(missing_ok=True)
        time.sleep(random.random())
        began = time.time()
        submit(n, f"date +%s%N >{said}.new && mv {said}.new {said}")
        while not said.exists():
            time.sleep(0.005)
        took.append(int(said.read_text()) / 1e9 - began)
    return min(took), statistics.median(took), max(took)


def main():
    with Cloud(nodes=8, gpus="rtx3090:4", cpus=8) as cloud:
        bare = alone(cloud, lambda n, run: sbatch(cloud, f"one-{n}", run))
        through = alone(cloud, lambda n, run: cloud.tenant.submit(FILE.format(name=f"one-{n}", run=run)))
        for name, (least, middle, most) in (("Headframe", through), ("sbatch", bare)):
            print(
                f"one job, submitted to its first command, through {name}: least {least * 1000:.0f} ms, p50 {middle * 1000:.0f}, most {most * 1000:.0f} of {ALONE}"
            )
        theirs = plain(cloud)
        mine = ours(cloud)
        print(f"{JOBS} jobs of one card: {mine:.1f}/s through Headframe, {theirs:.1f}/s by sbatch: {mine / theirs:.2f} of it")


if __name__ == "__main__":
    main()
