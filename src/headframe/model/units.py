"""Units: money as integer nano-dollars, time as integer milliseconds, memory as MiB, GPUs as thousandths.

Parsing takes what people write ("32GB", "12h", "1.50") and gives integers; the one place that rounds money is `cost_nano`.
"""

import re
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache

NANO_PER_USD = 1_000_000_000
MS_PER_HOUR = 3_600_000
MS_PER_DAY = 24 * MS_PER_HOUR
MILLI = 1000

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]i?B?)?$", re.IGNORECASE)
_SIZE_MIB = {"K": Fraction(1, 1024), "M": Fraction(1), "G": Fraction(1024), "T": Fraction(1024 * 1024)}
_DURATION = re.compile(r"^(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?$")
_HASHES = re.compile(r"^(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([kMGTPEZ]?)(?:H|h|Sol)?(?:/s)?$")
_DURATION_S = (86_400, 3_600, 60, 1)


def cost_nano(duration_ms: int, nano_per_hour: int) -> int:
    """What `duration_ms` costs at `nano_per_hour`: rounds half up, here and nowhere else."""
    assert duration_ms >= 0, duration_ms
    assert nano_per_hour >= 0, nano_per_hour
    return (duration_ms * nano_per_hour + MS_PER_HOUR // 2) // MS_PER_HOUR


def parse_usd(text: str) -> int:
    """US dollars as written ("1.50", "$0.35") to nano-dollars; ValueError where it is no amount or finer than a nano."""
    cleaned = text.strip().removeprefix("$").replace("_", "")
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", cleaned):
        raise ValueError(f"{text!r} is no amount in US$")
    return int(Fraction(cleaned) * NANO_PER_USD)


@lru_cache(maxsize=1024)  # thousands of jobs of one batch cost the same
def money(amount_nano: int) -> str:
    """Nano-dollars with as many places as the amount needs to be seen: "$12.35", "$0.0121", "$0.000005"."""
    amount = abs(amount_nano)
    places = 2 if amount >= 10 * NANO_PER_USD or not amount else 4 if amount >= NANO_PER_USD // 100 else 6
    return usd(amount_nano, places)


def usd(amount_nano: int, places: int = 4) -> str:
    """Nano-dollars as "$1.2345", truncating nothing that matters to people: half up at `places`."""
    sign, amount = ("-" if amount_nano < 0 else ""), abs(amount_nano)
    scale = 10 ** (9 - places)
    whole = (amount + scale // 2) // scale
    return f"{sign}${whole // 10**places:,}.{whole % 10**places:0{places}d}"


def parse_mib(text: str) -> int:
    """A size ("32GB", "500M", "16GiB", plain numbers are GB) to MiB, rounded up; powers of 1024, as memory is sold."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size")
    unit = (match[2] or "G")[0].upper()
    exact = Fraction(match[1]) * _SIZE_MIB[unit]
    return -(-exact.numerator // exact.denominator)


def parse_duration_s(text: str) -> int:
    """A duration ("90", "45s", "30m", "12h", "1d12h") to whole seconds, at least one."""
    match = _DURATION.fullmatch(text.strip())
    parts = match.groups() if match else ()
    if not any(parts):
        raise ValueError(f"{text!r} is no duration")
    seconds = sum(Fraction(part) * unit for part, unit in zip(parts, _DURATION_S, strict=True) if part)
    if seconds < 1:
        raise ValueError(f"{text!r} is shorter than a second")
    return int(seconds)


def parse_hashes(text: str) -> float:
    """A hashrate as people write it ("52MH", "110 TH/s", "5e7") in hashes a second; powers of 1000. ValueError where it is none."""
    match = _HASHES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no hashrate")
    return float(match[1]) * 1000.0 ** " kMGTPEZ".index(match[2] or " ")


def hashes(rate: float) -> str:
    """Hashes a second for people: "52 MH/s"."""
    power = next((n for n in range(7, 0, -1) if rate >= 1000.0**n), 0)
    return f"{rate / 1000.0**power:.4g} {' kMGTPEZ'[power].strip()}H/s"


def duration(ms: int) -> str:
    """Milliseconds for people: "0.8 s", "42 s", "3 min 05 s", "2 h 10 min", "3 d 4 h"."""
    if ms < 10_000:
        return f"{ms / 1000:.1f} s"
    seconds = ms // 1000
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"


def mib(size: int) -> str:
    """MiB for people: "512 MiB", "31.4 GiB"."""
    return f"{size} MiB" if size < 1024 else f"{size / 1024:.1f}".removesuffix(".0") + " GiB"


def gpus(milli: int) -> str:
    """Thousandths of a GPU for people: "2", "0.25"."""
    return f"{milli / MILLI:g}"


def counted(number: int, noun: str) -> str:
    """Such as `1 allocation`, `2 allocations`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


HALF_LIFE_MS = 7 * MS_PER_DAY
"""What a project used, and what broke, counts half after a week: Slurm's usual choice for fair share."""


def faded(amount: float, at_ms: int, now_ms: int) -> float:
    """An amount as of `at_ms`, halved every HALF_LIFE_MS since."""
    return amount * 2.0 ** (-max(0, now_ms - at_ms) / HALF_LIFE_MS) if amount else 0.0


def clock(at_ms: int) -> str:
    """An instant for people: "2026-11-27 18:00 UTC"."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
