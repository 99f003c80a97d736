"""A tariff to numbers: what each interval's kWh costs, and in which intervals a peak would be paid for. Pure: the time zone's rules are data of the system's."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec

from headframe.model.power import MARKET_LEAST_USD_MWH, MARKET_MOST_USD_MWH, MINUTES_A_DAY, DemandCharge, Tariff, Window
from headframe.model.units import MS_PER_HOUR

MWH_KWH = 1000.0
LIKE_DAYS = 14
Market = Callable[[int], float | None]
"""The market's price (US$ per MWh) at an instant (ms), None where it is not known."""


class Peak(msgspec.Struct, frozen=True, kw_only=True):
    """US$ for each kW of the highest interval among those marked, beyond what the month has reached already. A new peak is paid for once and used for the rest of the month:
    `later_h` hours like those marked come after them, at prices like `like_usd_kwh`.
    """

    name: str
    usd_kw: float
    within: tuple[bool, ...]
    reached_w: float = 0.0
    later_h: float = 0.0
    like_usd_kwh: tuple[float, ...] = ()


def holds(window: Window, local: datetime) -> bool:
    """Whether an instant lies in a window. A window over midnight belongs to the day on which it began."""
    minute = local.hour * 60 + local.minute
    over_midnight = window.to_min <= window.from_min
    day = local.weekday()
    if over_midnight and minute < window.to_min:
        day = (day - 1) % 7
    inside = window.from_min <= minute < window.to_min if not over_midnight else minute >= window.from_min or minute < window.to_min
    return inside and (not window.months or local.month in window.months) and (not window.days or day in window.days)


def usd_kwh(tariff: Tariff, market: Market, at_ms: int) -> float | None:
    """What a kWh costs at an instant; None where neither the market nor a charge says."""
    if tariff.market:
        price = market(at_ms)
        if price is not None and trusted(price):
            return price / MWH_KWH + tariff.adder_usd_kwh
    local = _local(tariff, at_ms)
    found = next((charge for charge in tariff.energy if not charge.when or any(holds(window, local) for window in charge.when)), None)
    return found.usd_kwh + tariff.adder_usd_kwh if found else None


def series(tariff: Tariff, market: Market, starts_ms: Sequence[int]) -> list[float]:
    """US$ per kWh of each interval. One whose price is not known costs what the known ones do on average, so that nothing is switched by a gap; with none known, 0."""
    known = [usd_kwh(tariff, market, at_ms) for at_ms in starts_ms]
    there = [price for price in known if price is not None]
    usual = sum(there) / len(there) if there else 0.0
    return [usual if price is None else price for price in known]


def peaks(tariff: Tariff, market: Market, starts_ms: Sequence[int], reached_w: Callable[[str], float]) -> tuple[Peak, ...]:
    """The demand charges that some of the intervals (hours) may raise. `reached_w` is the month's peak so far, by the charge's name: what is below it costs nothing more.
    What the month's later hours will cost is taken to be what hours in the charge's windows cost in the intervals and in the two weeks before them, where that is known.
    """
    local = [_local(tariff, at_ms) for at_ms in starts_ms]
    found: list[Peak] = []
    for charge in tariff.demand:
        within = tuple(_counts(charge, at) for at in local)
        if any(within):
            now = sum(inside and at.month == local[0].month for inside, at in zip(within, local, strict=True))
            before = [starts_ms[0] - hour * MS_PER_HOUR for hour in range(1, 24 * LIKE_DAYS + 1)]
            hours = [at_ms for at_ms in [*before, *starts_ms] if _counts(charge, _local(tariff, at_ms))]
            like = tuple(price for at_ms in hours if (price := usd_kwh(tariff, market, at_ms)) is not None)
            later = max(0, _left(tariff, charge, starts_ms[0]) - now)
            found.append(
                Peak(name=charge.name, usd_kw=charge.usd_kw, within=within, reached_w=reached_w(charge.name), later_h=later, like_usd_kwh=like)
            )
    return tuple(found)


def counting(tariff: Tariff, at_ms: int) -> list[DemandCharge]:
    """The demand charges that what is drawn at an instant counts for."""
    local = _local(tariff, at_ms)
    return [charge for charge in tariff.demand if _counts(charge, local)]


def billing_month(tariff: Tariff, at_ms: int) -> str:
    """Such as 2026-11, in the site's own time."""
    return _local(tariff, at_ms).strftime("%Y-%m")


def trusted(usd_mwh: float) -> bool:
    """Whether that can be a market's price at all; NaN is not."""
    return MARKET_LEAST_USD_MWH <= usd_mwh <= MARKET_MOST_USD_MWH


def minute(text: str) -> int:
    """A time of day ("7", "14:30", "24") as minutes; ValueError where it is none."""
    hours, _, minutes = text.strip().partition(":")
    if hours.isdecimal() and (minutes.isdecimal() or ":" not in text):
        value = int(hours) * 60 + int(minutes or 0)
        if value <= MINUTES_A_DAY and int(minutes or 0) < 60:
            return value
    raise ValueError(f"{text!r} is no time of day")


def _counts(charge: DemandCharge, local: datetime) -> bool:
    return not charge.when or any(holds(window, local) for window in charge.when)


def _left(tariff: Tariff, charge: DemandCharge, at_ms: int) -> int:
    """Hours in the charge's windows from an instant to the end of its month."""
    month, count = _local(tariff, at_ms).month, 0
    for hour in range(31 * 24):
        local = _local(tariff, at_ms + hour * MS_PER_HOUR)
        if local.month != month:
            break
        count += _counts(charge, local)
    return count


def _local(tariff: Tariff, at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(ZoneInfo(tariff.zone))
