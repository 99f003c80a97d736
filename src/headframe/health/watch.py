"""Readings of a card in service, gathered into the window that is judged: shares of the samples, rates between the first and the last."""

from collections.abc import Callable, Sequence
from typing import Any

from headframe.model.health import Errors, Sample, Watched

SLOWDOWN, SOFTWARE_THERMAL, HARDWARE_THERMAL, POWER_BRAKE = 0x8, 0x20, 0x40, 0x80
"""NVML's reasons for held-back clocks (nvml.h); 0x20 covers the memory too."""
LOADED_FROM = 0.5
MS_PER_MINUTE = 60_000


def window(samples: Sequence[Sample], equals_mhz: float | None = None) -> Watched:
    """The window of `samples`, oldest first; `equals_mhz` is the median clock under load of equal cards at an equal power limit."""
    last, there = samples[-1], [each for each in samples if each.present]
    loaded = [each for each in there if (each.use or 0) >= LOADED_FROM]
    return Watched(
        present=last.present, loaded=bool(loaded), answer_s=max(each.answer_ms for each in samples) / 1000,
        temperature_c=_most(there, lambda each: each.temperature_c), memory_temperature_c=_most(there, lambda each: each.memory_temperature_c),
        slowdown_c=_latest(there, lambda each: each.slowdown_c), power_w=_most(there, lambda each: each.power_w),
        power_limit_w=_latest(there, lambda each: each.power_limit_w),
        software_thermal=_share(loaded, SOFTWARE_THERMAL), hardware_thermal=_share(there, HARDWARE_THERMAL),
        hardware_slowdown=_share(there, SLOWDOWN), power_brake=_share(there, POWER_BRAKE),
        clock_share=_clock(loaded, equals_mhz), link_gen=_most(loaded, lambda each: each.link_gen), link_width=_most(loaded, lambda each: each.link_width),
        replays_min=_rate(there, lambda each: each.replays), **_errors(there),
    )  # fmt: skip


def _known(samples: Sequence[Sample], datum: Callable[[Sample], int | float | bool | None]) -> list[int | float | bool]:
    return [value for each in samples if (value := datum(each)) is not None]


def _most(samples: Sequence[Sample], datum: Callable[[Sample], int | float | None]) -> int | None:
    return round(max(known)) if (known := _known(samples, datum)) else None


def _latest(samples: Sequence[Sample], datum: Callable[[Sample], int | float | None]) -> int | None:
    return round(known[-1]) if (known := _known(samples, datum)) else None


def _errors(samples: Sequence[Sample]) -> dict[str, Any]:
    """The last known of each counter and flag."""
    return {name: value for each in samples for name in Errors.__struct_fields__ if (value := getattr(each, name)) is not None}


def _share(samples: Sequence[Sample], reason: int) -> float | None:
    known = [each.reasons for each in samples if each.reasons is not None]
    return sum(bool(mask & reason) for mask in known) / len(known) if known else None


def _clock(loaded: Sequence[Sample], equals_mhz: float | None) -> float | None:
    known = [each.sm_mhz for each in loaded if each.sm_mhz is not None]
    return sum(known) / len(known) / equals_mhz if known and equals_mhz else None


def _rate(samples: Sequence[Sample], datum: Callable[[Sample], int | None]) -> float | None:
    """By how much a counter grew a minute; one that fell was reset (a new driver), and says nothing."""
    known = [(each.at_ms, value) for each in samples if (value := datum(each)) is not None]
    if len(known) < 2 or known[-1][0] <= known[0][0] or known[-1][1] < known[0][1]:
        return None
    return (known[-1][1] - known[0][1]) * MS_PER_MINUTE / (known[-1][0] - known[0][0])
