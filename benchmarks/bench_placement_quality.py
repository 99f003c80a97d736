"""How much of a real fleet can be sold: the openb trace by the FGD paper's protocol, every policy beside its published figure.

Where pods arrive in the published order what still differs is the rank of nodes, which is not known: packing and clustering, which
choose by it, differ by 0.4 points (one standard deviation) from one rank to the next, so they are run under many: under eight the mean of
ten orders is still off by 0.05. With all of it the run takes 40 minutes on two cores.

`python benchmarks/bench_placement_quality.py [--seeds 10] [--variants default gpuspec33 …] [--data DIR] [--churn] [--chart FILE.svg]`
"""

import argparse
import csv
import multiprocessing
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import openb
from headframe.model.report import Policy

LOADS = (0.95, 1.0, 1.1)
RANKS = {"clustering": 64, "packing": 64}
POLICIES = ("random", "dot-product", "clustering", "packing", "best-fit", "fgd", "headframe")


def published():
    with (openb.DATA / "published.csv").open() as file:
        return {(r["workload"], r["policy"], int(r["arrived_percent"])): float(r["allocated_percent"]) for r in csv.DictReader(file)}


def one(job):
    kind, variant, policy, seed, data, *more = job
    trace = openb.Trace(variant, Path(data))
    if kind == "fill":
        return np.mean([openb.at_points(openb.fill(trace, Policy(policy), seed, rank)) for rank in range(RANKS.get(policy, 1))], axis=0)
    if kind == "spare":
        return openb.spare(trace, Policy(policy), seed)
    if kind == "curve":
        return openb.stranded(trace, Policy(policy), seed)
    return openb.churn(trace, Policy(policy), seed, more[0])


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=10)
    arguments.add_argument("--variants", nargs="*", choices=openb.VARIANTS, default=openb.VARIANTS)
    arguments.add_argument("--policies", nargs="*", choices=POLICIES, default=POLICIES)
    arguments.add_argument("--data", default=str(openb.DATA))
    arguments.add_argument("--churn", action="store_true")
    arguments.add_argument("--chart")
    arguments.add_argument("--only-churn", action="store_true")
    arguments.add_argument("--churn-seeds", type=int, default=6)
    given = arguments.parse_args()
    known = published()
    openb.fill(openb.Trace("default"), Policy.HEADFRAME, 0)  # compile once, before the processes share the machine
    with multiprocessing.Pool() as pool:
        print(f"GPUs allocated, % of all, when 95 / 100 / 120 / 130 % have arrived; mean of {given.seeds} seeds; published in brackets")
        for variant in () if given.only_churn else given.variants:
            limit = openb.bound(openb.Trace(variant, Path(given.data)))
            print(f"\n{variant}: no policy can exceed {limit:.2f} at 100 %")
            jobs = [("fill", variant, policy, seed, given.data) for policy in given.policies for seed in range(given.seeds)]
            results = np.array(pool.map(one, jobs, chunksize=1)).reshape(len(given.policies), given.seeds, 4)
            for policy, runs in zip(given.policies, results, strict=True):
                mean, spread = runs.mean(0), runs.std(0)
                figures = "  ".join(
                    f"{x:6.2f}"
                    + (f" ({known[variant, policy, at]:6.2f}, {x - known[variant, policy, at]:+.2f})" if (variant, policy, at) in known else "")
                    for x, at in zip(mean, openb.POINTS, strict=True)
                )
                print(f"  {policy:12} {figures}   spread at 100 %: {spread[1]:.2f}; of the bound {mean[1] / limit:.4f}", flush=True)
            both = [policy for policy in ("fgd", "headframe") if policy in given.policies]
            jobs = [("spare", variant, policy, seed, given.data) for policy in both for seed in range(given.seeds)]
            more = np.array(pool.map(one, jobs, chunksize=1)).reshape(len(both), given.seeds).mean(1)
            told = ", ".join(f"{policy} {percent:.2f}" for policy, percent in zip(both, more, strict=True))
            if told:
                print(f"  cards that hold fractions at 100 %, beyond the fewest that could hold those, % of all: {told}", flush=True)
        if given.churn or given.only_churn:
            print(
                "\nchurn: pods leave; demand lost, % of GPU-time asked for, at an offered load of 0.95 / 1.0 / 1.1: fgd, ours, and what ours loses more"
            )
            for variant in given.variants:
                jobs = [
                    ("churn", variant, policy, seed, given.data, load)
                    for policy in ("fgd", "headframe")
                    for load in LOADS
                    for seed in range(given.churn_seeds)
                ]
                fgd, ours = np.array(pool.map(one, jobs, chunksize=1)).reshape(2, len(LOADS), -1)
                more = ours - fgd
                print(
                    f"  {variant:12} "
                    + "   ".join(
                        f"{a:5.2f} {b:5.2f} {c:+.2f} ± {d:.2f}"
                        for a, b, c, d in zip(
                            fgd.mean(1), ours.mean(1), more.mean(1), more.std(1) / max(1, given.churn_seeds - 1) ** 0.5, strict=True
                        )
                    ),
                    flush=True,
                )
        if given.chart:
            curves = {policy: pool.apply(one, (("curve", "default", policy, 0, given.data),)) for policy in given.policies}
            Path(given.chart).write_text(chart(curves))


def chart(curves):
    """Free GPUs that the next request cannot use, % of all, against the share arrived."""
    width, height, left, bottom = 760, 380, 50, 40
    top = max(y for curve in curves.values() for _, y in curve)
    colours = ("#999", "#b58900", "#6c71c4", "#2aa198", "#268bd2", "#cb4b16", "#0a7d33")

    def at(x, y):
        return f"{left + x / 130 * (width - left - 130):.1f},{height - bottom - y / top * (height - bottom - 20):.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">']
    for y in range(0, int(top) + 1, 2):
        parts.append(f'<text x="{left - 8}" y="{at(0, y).split(",")[1]}" text-anchor="end">{y}</text>')
    for x in range(0, 131, 10):
        parts.append(f'<text x="{at(x, 0).split(",")[0]}" y="{height - bottom + 18}" text-anchor="middle">{x}</text>')
    parts.append(f'<text x="{left}" y="14">free GPUs that the next request cannot use, % of all; below: requests arrived, % of all GPUs</text>')
    ends = sorted((curve[-1][1], policy) for policy, curve in curves.items())
    for colour, (policy, curve) in zip(colours, curves.items(), strict=False):
        line = " ".join(at(x, y) for x, y in curve)
        place = 30 + 16 * (len(ends) - 1 - [name for _, name in ends].index(policy))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{3 if policy == "headframe" else 1.5}"/>')
        parts.append(f'<text x="{width - 118}" y="{place + 60}" fill="{colour}">{policy}</text>')
    return "\n".join([*parts, "</svg>"])


if __name__ == "__main__":
    main()
