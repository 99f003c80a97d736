"""Job completion times on traces with real durations: Headframe through its real tick, beside idealised peers.

All peers but one are counts of GPUs without machines: no fragmentation, no gang topology, no start-up, FIFO and backfill without placement, SJF
with the true run times known (an oracle), LAS in two queues by GPU-time attained (after Tiresias, NSDI 2019) with free, instant
preemption. They are bounds to read a real system against, not products.

`python benchmarks/bench_jct.py [--jobs 20000] [--gpus 512]`
"""

import argparse
import heapq
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from headframe.model.report import spread
from headframe.placement.warm import warmed
from headframe.simulate.replay import Replay, Setting
from headframe.simulate.traces import Machine, read_jobs

DATA = Path(__file__).parent / "data"
LAS_LIMIT_GPU_S = 3600.0 * 4


def counted(jobs, gpus, order):
    """Non-preemptive peers: FIFO (head of line), EASY backfill with true run times, SJF by true run time."""
    clock, free, number, waiting, running, done = 0.0, gpus, 0, [], [], {}
    while number < len(jobs) or waiting or running:
        following = jobs[number].at_s if number < len(jobs) else float("inf")
        clock = min(following, running[0][0] if running else float("inf"))
        while number < len(jobs) and jobs[number].at_s <= clock:
            job = jobs[number]
            waiting.append((job.run_s if order == "sjf" else number, number, size(job), job.run_s))
            number += 1
        while running and running[0][0] <= clock:
            free += heapq.heappop(running)[1]
        waiting.sort()
        left, shadow, extra = [], None, 0
        for at, item in enumerate(waiting):
            _, n, need, run = item
            fits = need <= free and (shadow is None or order == "sjf" or clock + run <= shadow or need <= extra)
            if fits:
                free -= need
                extra -= need if shadow is not None and clock + run > shadow else 0
                heapq.heappush(running, (clock + run, need))
                done[n] = clock + run
                continue
            left.append(item)
            if order == "fifo":
                left += waiting[at + 1 :]
                break
            if order == "backfill" and shadow is None:
                ends, have = sorted(running), free
                for end, gives in ends:
                    have += gives
                    if have >= need:
                        shadow, extra = end, have - need
                        break
            if free <= 0:
                left += waiting[at + 1 :]
                break
        waiting = left
    return [done[n] - job.at_s for n, job in enumerate(jobs)]


def fifo_on_machines(jobs, gpus):
    """FIFO, head of line, on machines of 8 cards: up to 8 on the fullest that has room, more on whole machines. What an operator who
    changes nothing else has today; unlike `counted` it knows that a gang needs its cards together.
    """
    clock, number, free, waiting, running, done = 0.0, 0, [8] * (gpus // 8), [], [], {}
    while number < len(jobs) or waiting or running:
        clock = min(jobs[number].at_s if number < len(jobs) else float("inf"), running[0][0] if running else float("inf"))
        while number < len(jobs) and jobs[number].at_s <= clock:
            waiting.append(number)
            number += 1
        while running and running[0][0] <= clock:
            _, _, nodes, each = heapq.heappop(running)
            for node in nodes:
                free[node] += each
        while waiting:
            need, each = size(jobs[waiting[0]]), min(8, size(jobs[waiting[0]]))
            able = sorted((free[node], node) for node in range(len(free)) if free[node] >= each)[: -(-need // 8)]
            if len(able) < -(-need // 8):
                break
            n = waiting.pop(0)
            for _, node in able:
                free[node] -= each
            done[n] = clock + jobs[n].run_s
            heapq.heappush(running, (done[n], n, [node for _, node in able], each))
    return [done[n] - job.at_s for n, job in enumerate(jobs)]


def las(jobs, gpus):
    """Two queues by GPU-time attained, FIFO in each; the lower gives way at once and at no cost."""
    clock, number, live, done = 0.0, 0, {}, {}
    while number < len(jobs) or live:
        while number < len(jobs) and jobs[number].at_s <= clock:
            live[number] = [0.0, jobs[number].run_s]
            number += 1
        order = sorted(live, key=lambda n: (live[n][0] * size(jobs[n]) >= LAS_LIMIT_GPU_S, n))
        free, active = gpus, []
        for n in order:
            if size(jobs[n]) <= free:
                free -= size(jobs[n])
                active.append(n)
            if free <= 0:
                break
        until = jobs[number].at_s if number < len(jobs) else float("inf")
        for n in active:
            until = min(until, clock + live[n][1])
            demotes = LAS_LIMIT_GPU_S / size(jobs[n]) - live[n][0]
            until = min(until, clock + demotes) if demotes > 1e-6 else until
        for n in active:
            live[n][0] += until - clock
            live[n][1] -= until - clock
            if live[n][1] <= 1e-6:
                done[n] = until
                del live[n]
        clock = until
    return [done[n] - job.at_s for n, job in enumerate(jobs)]


def size(job):
    return max(1, job.milli // 1000) * job.nodes


def ours(jobs, gpus, limits, code):
    machines = [Machine(name=f"n{n:05}", model="V100", gpus=8, cpu_milli=64_000, memory_mib=524_288) for n in range(gpus // 8)]
    replay = Replay(machines, jobs, Setting(step_s=1.0, limits=limits), code)
    for _ in replay.steps():
        pass
    assert not replay.refused and len(replay.ran) == len(jobs)
    return [ran.ended_s - ran.submitted_s for ran in replay.ran], [ran.gpus >= 8 for ran in replay.ran]


def show(name, jct, big, base=None):
    every, gangs = spread(jct), spread([t for t, b in zip(jct, big, strict=True) if b])
    against = f"   {base.mean / every.mean:5.2f} x FIFO's mean" if base else ""
    print(
        f"  {name:34} mean {every.mean / 3600:7.2f} h   p50 {every.p50 / 3600:6.2f}   p99 {every.p99 / 3600:7.1f}   gangs of 8 and more: mean {gangs.mean / 3600:7.2f}   p99 {gangs.p99 / 3600:7.1f}{against}",
        flush=True,
    )
    return every


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--jobs", type=int, default=8000)
    arguments.add_argument("--gpus", type=int, nargs=2, default=(400, 1016), help="for philly and for itp2021")
    given = arguments.parse_args()
    code = warmed()
    for trace, gpus in zip(("philly", "itp2021"), given.gpus, strict=True):
        jobs = read_jobs([str(path) for path in sorted((DATA / trace).glob("jobs_*.csv.gz"))])
        start = len(jobs) // 3
        first = jobs[start].at_s
        jobs = [
            job.__class__(**{**{f: getattr(job, f) for f in job.__struct_fields__}, "at_s": job.at_s - first, "tenant": "all"})
            for job in jobs[start : start + given.jobs]
        ]
        jobs = [job for job in jobs if size(job) <= gpus // 2]
        load = sum(size(job) * job.run_s for job in jobs) / gpus / jobs[-1].at_s
        print(f"{trace}: {len(jobs):,} jobs over {jobs[-1].at_s / 86400:.1f} days on {gpus} GPUs, load {load:.2f}")
        big = [size(job) >= 8 for job in jobs]
        base = show("FIFO (ideal)", counted(jobs, gpus, "fifo"), big)
        show("FIFO on machines of 8", fifo_on_machines(jobs, gpus), big, base)
        show("EASY backfill, true times (ideal)", counted(jobs, gpus, "backfill"), big, base)
        show("SJF, true times (ideal)", counted(jobs, gpus, "sjf"), big, base)
        show("LAS, free preemption (ideal)", las(jobs, gpus), big, base)
        for limits in (0.0, 1.5):
            began = time.perf_counter()
            jct, large = ours(jobs, gpus, limits, code)
            show("Headframe" + (f", max_duration {limits} x the truth" if limits else ", no limits given"), jct, large, base)
            print(f"    replayed in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
