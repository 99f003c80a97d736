"""What replaying a trace came to: the policies that can be chosen, ours and those it is held against, and the figures of one."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec


class Policy(StrEnum):
    """Where a request goes among the nodes that fit it.

    - `headframe`: least lost value; see `placement/score.py`.
    - `fgd`: least fragmentation growth (Weng et al., USENIX ATC 2023), with the integer score of its authors' scheduler.
    - `best-fit`: least free CPU and GPU left over.
    - `packing`: GPUs in use, then nodes in use, then empty nodes (Weng et al., NSDI 2022).
    - `clustering`: nodes that already run the same kind of request.
    - `dot-product`: least product of the free and the requested amounts (after Grandl et al., SIGCOMM 2014).
    - `first-fit`: the first node; `random`: any node.
    """

    HEADFRAME = "headframe"
    FGD = "fgd"
    BEST_FIT = "best-fit"
    PACKING = "packing"
    CLUSTERING = "clustering"
    DOT_PRODUCT = "dot-product"
    FIRST_FIT = "first-fit"
    RANDOM = "random"


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: mean, median and 99th percentile."""

    mean: float
    p50: float
    p99: float


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs of one size. Delay is from submission to the first start, JCT to the end; slowdown is max(1, JCT / max(run, 10 s))."""

    name: str
    jobs: int
    delay_s: Spread
    jct_s: Spread
    slowdown: float


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A moment: hours since the first submission, GPUs held and GPUs stranded in percent of all, jobs waiting.

    Stranded is FGD's fragmentation: free parts of GPUs that a typical request cannot use, averaged over the typical requests.
    """

    at_h: float
    held: float
    stranded: float
    waiting: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One policy over one trace. `held` and `stranded` are means over the time in which jobs arrive, in percent of all GPUs;
    `fairness` is Jain's index over the tenants' mean slowdowns (1 is equal).
    """

    policy: str
    fleet: str
    trace: str
    gpus: int
    nodes: int
    jobs: int
    never: int
    waiting: int
    span_h: float
    makespan_h: float
    held: float
    stranded: float
    groups: tuple[Group, ...]
    preempted: int
    lost_gpu_h: float
    fairness: float
    revenue_usd: float
    revenue_per_gpu_h_usd: float
    ticks: int
    wall_s: float
    samples: tuple[Sample, ...]


def spread(values: Sequence[float]) -> Spread:
    """Of unsorted values; zeros where there are none."""
    if not values:
        return Spread(mean=0.0, p50=0.0, p99=0.0)
    ordered = sorted(values)
    last = len(ordered) - 1
    return Spread(mean=sum(ordered) / len(ordered), p50=ordered[last // 2], p99=ordered[round(last * 0.99)])


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 where all are equal, 1/n where one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
