"""The emergency ladder: what is shed, in which order, until so many watts are saved. No solver: sorted once, summed once.

The order is fixed: mining, then power caps, then spot work (with notice), then batch work that keeps checkpoints; what is firmly sold (reserved, on-demand, served) is never touched.
Within a rung the least worth per watt goes first, ties by id. It is also the site's bid curve: each step's watts, seconds and US$ an hour.
"""

from collections.abc import Sequence
from enum import IntEnum

import msgspec
import numpy as np

from headframe.model.power_api import Step


class Rung(IntEnum):
    """What goes first, and how soon it is gone (`SECONDS`)."""

    MINING = 0
    CAPS = 1
    SPOT = 2
    BATCH = 3


SECONDS = {Rung.MINING: 5, Rung.CAPS: 5, Rung.SPOT: 30, Rung.BATCH: 30}
"""To shed: a miner has 3 s of grace and a cap is set at once; spot and batch get their notice."""
BACK_SECONDS = {Rung.MINING: 60, Rung.CAPS: 5, Rung.SPOT: 120, Rung.BATCH: 120}
"""Until it is back: starting, loading, for a miner its work files."""
LEVELS = {0: frozenset[Rung](), 1: frozenset({Rung.MINING}), 2: frozenset({Rung.MINING, Rung.CAPS}), 3: frozenset(Rung)}
"""What a grid's level of 0 to 3 sheds, whatever it saves."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that can be shed: watts at the meter that this saves, and US$ an hour that it loses. What can be capped and stopped is two loads: the cap's, and what is left."""

    id: str
    rung: Rung
    watts: float
    usd_h: float


class Shed(msgspec.Struct, frozen=True, kw_only=True):
    """What goes, by number in the loads given; what that saves and loses; and what could not be saved."""

    which: tuple[int, ...]
    watts: float
    usd_h: float
    missing_w: float


def order(loads: Sequence[Load]) -> "np.typing.NDArray[np.int64]":
    """The loads' numbers, first to go first."""
    rung = np.array([load.rung for load in loads], dtype=np.int64)
    worth = np.array([load.usd_h / load.watts if load.watts > 0 else np.inf for load in loads], dtype=np.float64)
    ids = np.array([load.id for load in loads], dtype=np.str_)
    return np.lexsort((ids, worth, rung))


def shed(loads: Sequence[Load], need_w: float, always: frozenset[Rung] = frozenset()) -> Shed:
    """The first of the ladder that save `need_w`, and all on the rungs of `always`; none where nothing is needed."""
    if not loads or (need_w <= 0 and not always):
        return Shed(which=(), watts=0.0, usd_h=0.0, missing_w=max(0.0, need_w))
    first = order(loads)
    watts = np.array([loads[n].watts for n in first], dtype=np.float64)
    saved = np.cumsum(watts)
    count = int(np.searchsorted(saved, need_w - 1e-9)) + 1 if need_w > 0 else 0
    forced = [n for n, number in enumerate(first) if n >= count and loads[number].rung in always]
    which = [int(first[n]) for n in (*range(min(count, len(first))), *forced)]
    total = float(sum(loads[n].watts for n in which))
    return Shed(which=tuple(which), watts=total, usd_h=float(sum(loads[n].usd_h for n in which)), missing_w=max(0.0, need_w - total))


def ladder(loads: Sequence[Load]) -> tuple[Step, ...]:
    """The rungs, and what each holds now."""
    return tuple(
        Step(rung=rung.name.lower(), loads=len(there), watts=sum(load.watts for load in there), usd_h=sum(load.usd_h for load in there),
             seconds=SECONDS[rung], back_seconds=BACK_SECONDS[rung])
        for rung in Rung for there in ([load for load in loads if load.rung is rung],)
    )  # fmt: skip
