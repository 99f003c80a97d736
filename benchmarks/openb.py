"""The FGD experiment on the openb trace, as its authors run it; shared by the quality and speed benchmarks.

Pods arrive one by one in shuffled order and never leave (or leave after their own life time, in the churn run); one that fits
nowhere is dropped. Shuffled pods are followed by pods drawn at random until requests are worth 130 % of the fleet. The order is
that of the authors' ten runs, pod by pod: their published curves, which show what had arrived when, agree to the last digit. Nodes
have a random rank that breaks ties; theirs is not known. Every policy is the product's own: the same `Index` that the server places with.
"""

import collections
import csv
import gzip
import heapq
import random
from pathlib import Path

import numpy as np
from go_rand import GoRand
from headframe.placement.compiled import compiled
from headframe.placement.index import Index
from headframe.placement.kernels import GPUS, MILLI
from headframe.placement.score import FGD_COVERED, Demand, Wanted, knapsack, quiet_solver, remnant_values

DATA = Path(__file__).parent / "data" / "openb"
VARIANTS = ("default", "cpu050", "gpushare40", "gpuspec10", "gpuspec33", "multigpu20")
POINTS = (95, 100, 120, 130)
FIRST_SEED = 42


def read(path):
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


class Trace:
    """One variant: nodes as rows, pods as (cpu, memory, each, count, models), the demand that policies are told."""

    def __init__(self, variant, data=DATA):
        nodes, pods = read(data / "nodes.csv.gz"), read(data / f"pods_{variant}.csv.gz")
        self.classes = sorted({kind(n) for n in nodes})
        number = {key: c for c, key in enumerate(self.classes)}
        self.rows = np.full((len(nodes), GPUS + 8), -1, dtype=np.int64)
        for row, n in zip(self.rows, nodes, strict=True):
            row[:GPUS] = (number[kind(n)], 0, int(n["cpu_milli"]), int(n["memory_mib"]), 1 << 40, 1 << 40, 0, 0)
            row[len(row) - int(n["gpu"]) :] = MILLI
        self.kinds = np.zeros((len(self.classes), 8), dtype=np.int64)
        self.capacity = int((self.rows[:, GPUS:] > 0).sum()) * MILLI
        self.pods = [pod(p) for p in pods]
        self.asks = {p: self.ask(p) for p in dict.fromkeys(self.pods)}
        often = collections.Counter(self.pods)
        self.demand = Demand.of(
            Wanted(need=self.asks[p][0], mask=self.asks[p][1], scope=str([m > 0 for m in self.asks[p][1]]), often=often[p]) for p in self.asks
        )

    def ask(self, p):
        cpu, memory, each, count, models = p
        tag = (0 if each < MILLI else count.bit_length()) if count else 5
        able = [(not models or m in models) and gpus >= count and cpus >= cpu and ram >= memory for m, gpus, cpus, ram in self.classes]
        return (cpu, memory, 0, each, count, tag), tuple(255 if a else -1 for a in able)

    def arrivals(self, seed):
        rng = GoRand(FIRST_SEED + seed)
        rng.int63()  # the authors' program draws once before it shuffles
        order = list(self.pods)
        rng.shuffle(order)
        limit, total = 1.3 * self.capacity, sum(p[2] * p[3] for p in order)
        while total > limit:
            gone = order.pop(rng.below(len(order)))
            total -= gone[2] * gone[3]
        shuffled = list(order)
        while total + (p := shuffled[rng.below(len(shuffled))])[2] <= limit:
            order.append(p)
            total += p[2] * p[3]
        return order

    def index(self, policy, seed, turnover=0.0):
        """A fleet whose nodes are ranked by `seed`, a number or several."""
        demand = Demand.of(self.demand.wanted, turnover)
        return Index(self.rows[np.random.default_rng(seed).permutation(len(self.rows))], self.kinds, demand, policy, code=compiled())

    def shape(self, index, p):
        need, mask = self.asks[p]
        return index.shape(p, need, mask, [0] * len(mask))


def kind(n):
    return n["model"], int(n["gpu"]), int(n["cpu_milli"]), int(n["memory_mib"])


def pod(p):
    count = int(p["num_gpu"])
    models = tuple(sorted(set((p.get("gpu_spec") or "").split("|")) - {""}))
    return int(p["cpu_milli"]), int(p["memory_mib"]), int(p["gpu_milli"]) if count else 0, count, models


def fill(trace, policy, seed, rank=0):
    """Arrived and allocated shares of all GPUs, in percent, after each arrival [arrivals, 2]."""
    index, given, arrived = trace.index(policy, (seed, rank)), 0, 0
    curve = []
    for p in trace.arrivals(seed):
        arrived += p[2] * p[3]
        if index.place(trace.shape(index, p)) is not None:
            given += p[2] * p[3]
        curve.append((arrived, given))
    return np.array(curve) * 100 / trace.capacity


def spare(trace, policy, seed):
    """Cards that hold fractions when 100 percent have arrived, beyond the fewest that could hold the same ones, in percent of the fleet: what a policy that
    never refuses what fits could still gain. The fewest are bounded by the duals of the cutting-stock linear program, models, CPU and memory left out.
    """
    index, placed, used, arrived = trace.index(policy, (seed, 0)), collections.Counter(), 0, 0
    for p in trace.arrivals(seed):
        arrived += p[2] * p[3]
        if arrived > trace.capacity:
            break
        where = index.place(trace.shape(index, p))
        if where is not None and 0 < p[2] < MILLI:
            placed[p[2]] += 1
            used += where.milli == MILLI
    worth = remnant_values(placed)
    return (used - sum(count * worth[size] for size, count in placed.items())) * MILLI * 100 / trace.capacity


def at_points(curve):
    rounded = np.round(curve[:, 0])
    return [curve[rounded == x, 1].mean() if (rounded == x).any() else curve[-1, 1] for x in POINTS]


def stranded(trace, policy, seed, step=5):
    """The fragmentation curve: share of all GPUs that is free and that the next request (at random) cannot use, by arrived."""
    index, arrived, marks, curve = trace.index(policy, seed), 0, 0, []
    typical = trace.demand.typical(FGD_COVERED)
    often = np.array([w.often for w in typical]) / sum(w.often for w in typical)
    for p in trace.arrivals(seed):
        arrived += p[2] * p[3]
        index.place(trace.shape(index, p))
        if arrived * 100 / trace.capacity >= marks:
            rows = index.rows()
            cards = np.maximum(rows[:, GPUS:], 0)
            lost = np.zeros(len(rows))
            for w, f in zip(typical, often, strict=True):
                ok = (rows[:, 2] >= w.need[0]) & (rows[:, 3] >= w.need[1]) & (np.array(w.mask)[rows[:, 0]] > 0)
                can = (cards >= max(w.need[3], 1)) & ok[:, None]
                usable = np.where(can.sum(1) >= max(w.need[4], 1), (cards * can).sum(1), 0) * (w.need[4] > 0)
                lost += f * (cards.sum(1) - usable)
            curve.append((marks, lost.sum() * 100 / trace.capacity))
            marks += step
    return curve


def churn(trace, policy, seed, load, count=50_000):
    """Pods leave: demand lost, in percent of GPU-time asked for, at an offered load (1 = the fleet). Life times are exponential, so
    that the fleet settles within the run (the trace's own reach half a year); the first half of the arrivals is not counted.
    """
    rng = random.Random(seed)
    index, clock, ends, asked, lost = trace.index(policy, seed, turnover=1.0), 0.0, [], 0.0, 0.0
    cards = index.rows()[:, GPUS:].copy()
    rate = load * trace.capacity / (sum(p[2] * p[3] for p in trace.pods) / len(trace.pods))
    for n in range(count):
        clock += rng.expovariate(rate)
        while ends and ends[0][0] <= clock:
            _, _, node, (cpu, memory, _, each, *_), there = heapq.heappop(ends)
            row = index.row(node)
            cards[node][there] += each
            row[2:4] += (cpu, memory)
            row[GPUS:] = np.sort(cards[node])
            index.set(node, row)
        p, life = rng.choice(trace.pods), rng.expovariate(1)
        placed = index.place(trace.shape(index, p))
        asked += (n > count // 2) * p[2] * p[3] * life
        if placed is None:
            lost += (n > count // 2) * p[2] * p[3] * life
            continue
        free = placed.milli if 0 < p[2] < MILLI else MILLI
        there = np.nonzero(cards[placed.node] == free)[0][: p[3]]
        cards[placed.node][there] -= p[2]
        heapq.heappush(ends, (clock + life, n, placed.node, trace.asks[p][0], there))
    return 100 * lost / asked


def bound(trace, percent=100):
    """No policy can allocate more, in percent of all GPUs, when requests worth `percent` have arrived: a configuration linear
    program over the patterns of one card, per model, with whole cards, sizes and accepted models, CPU and memory left out.
    """
    models = sorted({m for m, *_ in trace.classes})
    cards = {m: 0 for m in models}
    for row in trace.rows:
        cards[trace.classes[row[0]][0]] += int((row[GPUS:] > 0).sum())
    demand = collections.Counter()
    for p in trace.pods:
        if p[3]:
            demand[p[2], p[4]] += p[3]
    scale = percent / 100 * trace.capacity / sum(size * n for (size, _), n in demand.items())
    sizes = sorted({size for size, _ in demand})
    asks = sorted(demand)
    h = quiet_solver()
    for size, scope in asks:
        h.addRow(0.0, demand[size, scope] * scale, 0, np.array([], np.int32), np.array([]))
    room = {m: len(asks) + i for i, m in enumerate(models)}
    for m in models:
        h.addRow(0.0, float(cards[m]), 0, np.array([], np.int32), np.array([]))
    link = {}
    for m in models:
        for size in sizes:
            link[m, size] = h.getNumRow()
            h.addRow(-np.inf, 0.0, 0, np.array([], np.int32), np.array([]))
    for i, (size, scope) in enumerate(asks):
        for m in models:
            if not scope or m in scope:
                h.addCol(float(size), 0.0, np.inf, 2, np.array([i, link[m, size]], np.int32), np.array([1.0, 1.0]))

    def add(m, pattern):
        at = [room[m]] + [link[m, s] for s, n in zip(sizes, pattern, strict=True) if n]
        value = [1.0] + [-float(n) for n in pattern if n]
        h.addCol(0.0, 0.0, np.inf, len(at), np.array(at, np.int32), np.array(value))

    for m in models:
        for i, s in enumerate(sizes):
            add(m, tuple(MILLI // s if i == k else 0 for k in range(len(sizes))))
    while True:
        h.run()
        dual, grown = np.array(h.getSolution().row_dual), False
        for m in models:
            price = np.array([max(0.0, dual[link[m, s]]) for s in sizes])
            worth, pattern = knapsack(sizes, price)
            if worth[MILLI] > dual[room[m]] + 1e-6:
                add(m, pattern)
                grown = True
        if not grown:
            return h.getInfo().objective_function_value * 100 / trace.capacity
