"""What a card does with fewer watts: speed under a power cap, by what it is doing.

x is the cap over what the card would draw uncapped. The curves are medians of published measurements: training from the traces of Zeus (NSDI 2023, V100, A40, RTX 6000 and
others; q10 to q90 are about ±0.1), decoding from a 3090's sweep of 150 to 350 W (J. Brito, April 2026); a card's own sweep takes their place where there is one.
Their upper hull is concave, so that mixing two modes is never better than the mode between.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import msgspec

from headframe.model.power import LoadClass

Curve = tuple[tuple[float, float], ...]
"""(x, share of the speed), rising."""
TRAINING: Curve = ((0.40, 0.40), (0.55, 0.66), (0.70, 0.85), (0.80, 0.915), (1.0, 1.0))
DECODING: Curve = ((0.60, 0.64), (0.74, 0.985), (1.0, 1.0))
HASHING: Curve = ((0.5, 0.707), (0.65, 0.806), (0.8, 0.894), (1.0, 1.0))
"""An assumption (the root of x) until the miner's own figures are known."""
CURVES = {LoadClass.FIRM: TRAINING, LoadClass.ONLINE: DECODING, LoadClass.BATCH: TRAINING, LoadClass.SPOT: TRAINING, LoadClass.FILLER: HASHING}
SWEPT = {LoadClass.FIRM: "training", LoadClass.ONLINE: "decoding", LoadClass.BATCH: "training", LoadClass.SPOT: "training"}
"""Which of a card's own sweeps stands for a class; a miner's figures are not swept."""
CAPPED_LEAST = {LoadClass.FIRM: 1.0, LoadClass.ONLINE: 0.74, LoadClass.BATCH: 0.55, LoadClass.SPOT: 0.55, LoadClass.FILLER: 0.5}
"""No class is capped lower. What is firmly sold is not slowed at all; decoding keeps 98 % of its speed."""
DRAW_SHARE = {LoadClass.FIRM: 0.85, LoadClass.ONLINE: 0.75, LoadClass.BATCH: 0.85, LoadClass.SPOT: 0.85, LoadClass.FILLER: 0.75}
"""What a card draws on average, of its limit: an H200 drew 82 to 99 % in our measurements of single kernels (benchmarks/results.md), whole jobs less; where telemetry
knows better, that counts."""
IDLE_SHARE, IDLE_MOST_W = 0.08, 80.0
"""An idle card's draw, of its limit: 78 of 700 W for an H200, 15 to 25 of 350 W for consumer cards."""
LIMIT_LEAST = 0.6
"""No limit is set below this share of the card's own: a 3090 falls off a cliff below some 200 of 350 W."""


class Mode(msgspec.Struct, frozen=True):
    """A cap (of what would be drawn), and the speed that it leaves."""

    x: float
    speed: float


def modes(kind: LoadClass, curve: Curve | None = None, least: float = 0.0) -> tuple[Mode, ...]:
    """The caps worth choosing among for a class, the uncapped first; none below the class's own bound, or `least`."""
    points, lowest = hull(curve or CURVES[kind]), max(CAPPED_LEAST[kind], least)
    kept = [point for point in points if point[0] > lowest + 1e-9 or point[0] == 1.0]
    if lowest < 1 and points[0][0] < 1:
        kept.insert(0, (lowest, speed_at(points, lowest)))
    return tuple(Mode(x, speed) for x, speed in reversed(kept))


def speed_at(curve: Curve, x: float) -> float:
    """The speed at a cap, on straight lines between the points; below the first it falls to nothing at x = 0."""
    if x >= curve[-1][0]:
        return curve[-1][1]
    points = ((0.0, 0.0), *curve)
    for (low, slow), (high, fast) in pairwise(points):
        if x <= high:
            return slow + (fast - slow) * (x - low) / (high - low)
    raise AssertionError(x)


def median_curve(curves: Sequence[Curve]) -> Curve:
    """Of several cards' curves, the median speed at each x that any of them has."""
    return tuple((x, median(speed_at(curve, x) for curve in curves)) for x in sorted({x for curve in curves for x, _ in curve}))


def hull(points: Sequence[tuple[float, float]]) -> Curve:
    """The points that lie on the upper concave hull, by x (Andrew's monotone chain)."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(points):
        while len(kept) >= 2 and (kept[-1][1] - kept[-2][1]) * (x - kept[-2][0]) <= (y - kept[-2][1]) * (kept[-1][0] - kept[-2][0]):
            kept.pop()
        kept.append((x, y))
    return tuple(kept)


def idle_w(limit_w: float) -> float:
    """What a card of that limit draws with nothing to do."""
    return min(IDLE_SHARE * limit_w, IDLE_MOST_W)
