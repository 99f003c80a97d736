"""How many replicas an endpoint should have, from what gateways count. Two windows, as Knative's autoscaler has them
(https://knative.dev/docs/serving/autoscaling/kpa-specific/): a long one that decides, and a short one that, when load doubles, takes over and never lets go down.

Units: demand is requests (under way and held, or held alone) or tokens per second, as the endpoint's metric says; times are milliseconds.
"""

from collections.abc import Sequence
from math import ceil

import msgspec

from headframe.model.serving import Serving, least
from headframe.model.units import duration

STABLE_MS, PANIC_MS = 60_000, 6_000
USED = 0.7
"""Replicas are planned to carry this much of their target: what is left takes what comes while another one starts."""
PANIC_AT = 2.0
DOWN_AFTER_MS = 300_000
"""Loading a model takes minutes: a replica goes when it was not needed for so long."""


class Sample(msgspec.Struct, frozen=True):
    """The demand at one moment."""

    at_ms: int
    demand: float


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What scaling remembers of an endpoint: until when it panics, what it wanted lately (when, how many), and when somebody last asked for something."""

    panic_until_ms: int = 0
    wanted: tuple[tuple[int, int], ...] = ()
    busy_ms: int = 0


class Scaled(msgspec.Struct, frozen=True, kw_only=True):
    """The decision, why, and what to remember."""

    wanted: int
    why: str
    memory: Memory


def scale(serving: Serving, samples: Sequence[Sample], ready: int, have: int, memory: Memory, now_ms: int) -> Scaled:
    """How many replicas there should be, where `ready` answer and `have` are there or on their way. `samples` are oldest first."""
    stable, panic, asked = mean(samples, now_ms - STABLE_MS), mean(samples, now_ms - PANIC_MS), samples[-1].demand if samples else 0.0
    busy_ms = now_ms if asked > 0 else memory.busy_ms or now_ms
    each = USED * serving.target
    want, burst = ceil(stable / each), ceil(panic / each)
    until_ms = now_ms + STABLE_MS if burst >= PANIC_AT * max(ready, 1) else memory.panic_until_ms
    why = f"{stable:.3g} {UNIT[serving.metric]} on average, {serving.target:g} for each"
    if now_ms < until_ms:
        want, why = max(burst, have), f"{panic:.3g} {UNIT[serving.metric]} lately, {serving.target:g} for each"
    if asked > 0 and want == 0:
        want, why = 1, "somebody asked"
    lately = (*((at, n) for at, n in memory.wanted if at > now_ms - DOWN_AFTER_MS and n > want), (now_ms, want))
    want = max(n for _, n in lately) if want < have else want
    quiet_ms = now_ms - busy_ms
    if want == 0 or quiet_ms >= serving.idle_s * 1000:
        idle = quiet_ms >= serving.idle_s * 1000
        want, why = (0, f"nobody asked for {duration(quiet_ms)}") if idle else (min(have, 1), why)
    fewest = least(serving, now_ms)
    if want < fewest and fewest > serving.replicas_min:
        why = f"{fewest} are to be ready at this hour"
    want = min(max(want, fewest), serving.replicas_max)
    return Scaled(wanted=want, why=why, memory=Memory(panic_until_ms=until_ms, wanted=_thinned(lately), busy_ms=busy_ms))


UNIT = {"concurrency": "requests", "queue": "requests held", "tokens_per_s": "tokens/s"}


def mean(samples: Sequence[Sample], since_ms: int) -> float:
    """The average of what was sampled since then; 0 where nothing was."""
    found = [sample.demand for sample in samples if sample.at_ms > since_ms]
    return sum(found) / len(found) if found else 0.0


def _thinned(lately: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Only what may still be the greatest: later ones that are as great make earlier ones needless."""
    kept: list[tuple[int, int]] = []
    for at, n in lately:
        while kept and kept[-1][1] <= n:
            kept.pop()
        kept.append((at, n))
    return tuple(kept)
