"""Short jobs through Headframe on a real Slurm of eight machines, beside plain `sbatch` on the same cluster in the same run: jobs a second, and from
submission to running. Run: python benchmarks/bench_slurm.py [JOBS]. Needs Slurm's packages (tests/components.py installs them where CI=true).
"""

import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent / "tests" / "real")]

from test_slurm import Cloud

JOBS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
ALONE = 15
FILE = "name: {name}\nrun: 'true'\nresources: {{gpu: 1, cpu: 1, memory: 20MB, disk: 1MB}}"


def sbatch(cloud, name, wait=False):
    words = ["sbatch", *(["--wait"] if wait else []), "-n1", "--mem=20", "--gres=gpu:1", f"--job-name={name}", "-o", "/dev/null", "--wrap", "true"]
    cloud.slurm.run(*words)


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
        cloud.tenant.submit(FILE.format(name=name))
    while sum(view.workload.state == "succeeded" for view in cloud.tenant.workloads(limit=500) if view.workload.name in set(names)) < JOBS:
        time.sleep(0.3)
    return JOBS / (time.monotonic() - began)


def alone(submit):
    took = []
    for n in range(ALONE):
        began = time.monotonic()
        submit(n)
        took.append(time.monotonic() - began)
    return statistics.median(took), max(took)


def main():
    with Cloud(nodes=8, gpus="rtx3090:4", cpus=8) as cloud:

        def one(n):
            cloud.tenant.submit(FILE.format(name=f"one-{n}"))
            while cloud.state(f"one-{n}") != "succeeded":
                time.sleep(0.01)

        bare, bare_most = alone(lambda n: sbatch(cloud, f"wait-{n}", wait=True))
        through, through_most = alone(one)
        print(
            f"one job, submitted to its end: {through * 1000:.0f} ms (most {through_most * 1000:.0f}) through Headframe, {bare * 1000:.0f} ms (most {bare_most * 1000:.0f}) by `sbatch --wait`"
        )
        theirs = plain(cloud)
        mine = ours(cloud)
        print(f"{JOBS} jobs of one card: {mine:.1f}/s through Headframe, {theirs:.1f}/s by sbatch: {mine / theirs:.2f} of it")


if __name__ == "__main__":
    main()
