"""The simulator at 100,000 GPUs, through the real tick: wall time and memory for 10,000, 100,000 and 1,000,000 jobs, each ten times the one before (goal: linear).

`python benchmarks/bench_replay.py [--jobs 10000 100000 1000000]` (the million takes a quarter of an hour)
"""

import argparse
import json
import os
import subprocess
import sys
import time


def replayed(jobs):
    """What one replay in a process of its own says, its seconds and its peak memory in MB."""
    command = [sys.executable, "-m", "headframe", "simulate", "--fleet", "12500x8xH100", "--jobs", str(jobs), "--json"]
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    answer = json.load(child.stdout)[0]
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, status
    return answer, time.perf_counter() - began, used.ru_maxrss / 1024


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    before = None
    for jobs in arguments.parse_args().jobs:
        answer, seconds, memory = replayed(jobs)
        more = f"; {seconds / before[1]:.1f} times the time, {memory / before[2]:.1f} times the memory of {before[0]:,}" if before else ""
        print(f"{jobs:,} jobs on {answer['gpus']:,} GPUs, {answer['ticks']:,} ticks: {seconds:.0f} s, {memory:,.0f} MB{more}", flush=True)
        before = (jobs, seconds, memory)


if __name__ == "__main__":
    main()
