"""How fast placement decides, on one core, from 10,000 to 1,000,000 GPUs; beside the goals, and beside what others publish.

Each fleet has nodes of 8 GPUs and is empty, half full or 95 % full of a mix of requests (fractions, single cards, halves and whole
nodes). A decision is timed from the request to the node and card, with the state brought up to date; then something ends, untimed.

`python benchmarks/bench_placement_speed.py [--nodes 1250 12500 125000] [--quick]`
"""

import argparse
import random
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from headframe.placement.compiled import compiled, plain
from headframe.placement.fleet import cheapest
from headframe.placement.index import Index
from headframe.placement.kernels import GPUS, MILLI
from headframe.model.report import Policy
from headframe.placement.score import Demand, Wanted

CPU, MEMORY = 128_000, 1_048_576
MIX = [(250, 1, 8), (500, 1, 10), (MILLI, 1, 50), (MILLI, 2, 10), (MILLI, 4, 10), (MILLI, 8, 12)]
PUBLISHED = "as published: Kubernetes 180-810/s, Nomad 1,500-3,750/s, Slurm 500/s, Kueue 43/s, Volcano 40-56/s, KAI minutes a cycle at 1,000 nodes"


def need(each, count):
    share = each * count / (8 * MILLI)
    return (int(CPU * share * 0.8), int(MEMORY * share * 0.8), 0, each, count, -1)


def build(nodes, policy, code=None):
    rows = np.full((nodes, GPUS + 8), MILLI, dtype=np.int64)
    rows[:, :GPUS] = (0, 0, CPU, MEMORY, 1 << 40, 1 << 40, 0, 0)
    demand = Demand.of(Wanted(need=need(each, count), mask=(255,), scope="", often=often) for each, count, often in MIX)
    return Index(rows, np.zeros((1, 8), dtype=np.int64), demand, policy, code=code or compiled())


class Load:
    """A fleet that is kept at a level: what was placed first ends first."""

    def __init__(self, index, level, seed=1):
        self.index, self.rng, self.held, self.used = index, random.Random(seed), [], 0
        self.total = len(index) * 8 * MILLI
        self.goal = level * self.total
        while self.used < self.goal and self.place(self.draw()) is not None:
            pass

    def draw(self):
        return self.rng.choices(MIX, weights=[often for *_, often in MIX])[0][:2]

    def shape(self, ask):
        return self.index.shape(ask, need(*ask), (255,), (0,))

    def place(self, ask):
        placed = self.index.place(self.shape(ask))
        if placed is not None:
            self.held.append((ask, placed))
            self.used += ask[0] * ask[1]
        return placed

    def trim(self):
        while self.used > self.goal and self.held:
            self.end(self.rng.randrange(len(self.held)))

    def end(self, at):
        self.held[at], last = self.held[-1], self.held[at]
        self.held.pop()
        (each, count), placed = last
        row = self.index.row(placed.node)
        row[2] += need(each, count)[0]
        row[3] += need(each, count)[1]
        cards = row[GPUS:]
        if each < MILLI:
            fullest = max(p for p in range(8) if cards[p] + each <= MILLI)
            cards[fullest] += each
        else:
            cards[np.nonzero(cards == 0)[0][:count]] = MILLI
        row[GPUS:] = np.sort(cards)
        self.index.set(placed.node, row)
        self.used -= each * count


def timed(load, asks, rounds):
    times = []
    for n in range(rounds):
        shape = load.shape(ask := asks[n % len(asks)])
        began = time.perf_counter()
        placed = load.index.place(shape)
        times.append(time.perf_counter() - began)
        if placed is not None:
            load.held.append((ask, placed))
            load.used += ask[0] * ask[1]
        load.trim()
    return times


def gang(load, nodes):
    """All of a gang or nothing, on distinct nodes; then it ends."""
    shape = load.shape((MILLI, 8))
    began = time.perf_counter()
    ranks = cheapest(load.index.costs(shape), nodes)
    rows = [load.index.row(rank) for rank in ranks]
    for rank in ranks:
        load.index.put(shape, rank)
    took = time.perf_counter() - began
    for rank, row in zip(ranks, rows, strict=True):
        load.index.set(rank, row)
    return took if ranks else None


def figures(times):
    ordered = sorted(times)
    return f"{len(times) / sum(times):9,.0f}/s  p50 {ordered[len(times) // 2] * 1e6:6.1f} us  p99 {ordered[int(len(times) * 0.99)] * 1e6:7.1f} us  worst {ordered[-1] * 1e3:5.2f} ms"


def without_machine_code(nodes):
    """NumPy alone, which answers while Numba compiles: a fleet 95 % full, its first decision, and the following ones."""
    full = Load(build(nodes, Policy.HEADFRAME), 0.95)
    index = build(nodes, Policy.HEADFRAME, plain())
    for node, row in enumerate(full.index.rows()):
        index.set(node, row.copy())
    load = Load(index, 0.0)
    load.goal = 8 * MILLI * 20
    first = timed(load, [(MILLI, 1)], 1)[0]
    timed(load, [a[:2] for a in MIX], 60)
    print(
        f"\n{nodes * 8:9,} GPUs,  95% full, NumPy alone: {index.states} states, first decision after {first:.2f} s\n  mixed        {figures(timed(load, [a[:2] for a in MIX], 500))}"
    )


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--nodes", type=int, nargs="*", default=[1250, 12_500, 125_000])
    arguments.add_argument("--quick", action="store_true")
    given = arguments.parse_args()
    rounds = 2000 if given.quick else 10_000
    began = time.perf_counter()
    warm = build(64, Policy.HEADFRAME)
    Load(warm, 0.5)
    print(
        f"kernels ready after {time.perf_counter() - began:.2f} s (from their cache, or compiled: run again to compare; goal < 2 s to the first decision)"
    )
    single = {}
    for nodes in given.nodes:
        for policy in (Policy.BEST_FIT, Policy.HEADFRAME):
            for level in (0.0, 0.5, 0.95):
                began = time.perf_counter()
                index = build(nodes, policy)
                built = time.perf_counter() - began
                load = Load(index, level)
                load.goal = max(load.goal, 8 * MILLI * 20)
                timed(load, [a[:2] for a in MIX], 500)
                ones = timed(load, [(MILLI, 1)], rounds)
                parts = timed(load, [(250, 1), (500, 1)], rounds)
                mixed = timed(load, [a[:2] for a in MIX], rounds)
                gangs = {n: [took for _ in range(20) if (took := gang(load, n // 8)) is not None] for n in (64, 512)}
                single[nodes, policy, level] = statistics.median(ones)
                print(f"\n{nodes * 8:9,} GPUs, {level:4.0%} full, {policy}: built in {built:.2f} s, {index.states} states")
                print(f"  single cards {figures(ones)}\n  fractions    {figures(parts)}\n  mixed        {figures(mixed)}")
                for size, times in gangs.items():
                    print(
                        f"  gang of {size:3}  "
                        + (f"{statistics.median(times) * 1e3:.2f} ms, worst {max(times) * 1e3:.2f} ms" if times else "does not fit"),
                        flush=True,
                    )
    for policy in (Policy.BEST_FIT, Policy.HEADFRAME):
        if (12_500, policy, 0.95) in single and (125_000, policy, 0.95) in single:
            print(
                f"\n{policy}: a decision at 1,000,000 GPUs takes {single[125_000, policy, 0.95] / single[12_500, policy, 0.95]:.2f} x one at 100,000 (goal < 3)"
            )
    without_machine_code(12_500)
    print(f"\ngoals at 100,000 GPUs: 50,000/s plain, 20,000/s ours, p99 < 1,000 us, gang of 512 < 5 ms, build < 1 s\n{PUBLISHED}")
    print(f"memory at the end: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


if __name__ == "__main__":
    main()
