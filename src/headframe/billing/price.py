"""What an allocation costs per hour, and what a specification would: whole price lists, pinned per interval."""

from collections.abc import Iterable, Sequence

from headframe.model.money import PriceList, Quote, QuoteLine
from headframe.model.people import Project
from headframe.model.units import MILLI, cost_nano, gpus, mib
from headframe.model.work import UNTIMED, Part, Resources, Spec, Tier

HOLD_ROLLING_S = 3600
"""Without a max_duration, an hour is held at a time, and again before each hour begins."""
HOLD_MAX_S = 24 * 3600
"""With one, the whole of it is held, up to a day."""


def price_at(prices: Sequence[PriceList], at_ms: int) -> PriceList:
    """The list in force at `at_ms`; `prices` oldest first. Before the first list, the first holds."""
    assert prices, "a store always has a price list"
    in_force = [listed for listed in prices if listed.effective_ms <= at_ms]
    return in_force[-1] if in_force else prices[0]


def rate_nano(prices: PriceList, parts: Iterable[Part], tier: Tier) -> int:
    """US$ per hour of these parts: GPUs by model and tier, CPU, memory and disk. Nothing where time is not sold."""
    return 0 if tier in UNTIMED else sum(_part_nano(prices, part, tier) for part in parts)


def _part_nano(prices: PriceList, part: Part, tier: Tier) -> int:
    cards = sum(share.milli * prices.of(share.model).nano(tier) // MILLI for share in part.shares)
    return cards + sum(_beside_nano(prices, part))


def _beside_nano(prices: PriceList, need: Part | Resources) -> tuple[int, int, int]:
    """What CPU, memory and disk cost per hour."""
    cpu = need.cpu_milli * prices.cpu_core_hour_nano // MILLI
    return cpu, need.memory_mib * prices.memory_gib_hour_nano // 1024, need.disk_mib * prices.disk_gib_hour_nano // 1024


def spec_rate_nano(prices: PriceList, spec: Spec, model: str) -> int:
    """US$ per hour of `spec` on GPUs of `model`: the sum of its lines."""
    if spec.tier in UNTIMED:
        return 0
    milli = spec.resources.gpu.milli
    cards = milli * prices.of(model).nano(spec.tier) // MILLI if milli else 0
    return (cards + sum(_beside_nano(prices, spec.resources))) * spec.nodes


def spec_lines(prices: PriceList, spec: Spec, model: str) -> tuple[QuoteLine, ...]:
    """The priced lines of `spec` on GPUs of `model`, per hour."""
    need, count = spec.resources, spec.nodes
    if spec.tier in UNTIMED:
        return ()
    each: list[tuple[str, str, int, int]] = []
    if need.gpu.milli:
        unit = prices.of(model).nano(spec.tier)
        each.append((f"GPU {model} ({spec.tier})", gpus(need.gpu.milli * count), unit, need.gpu.milli * unit // MILLI))
    cpu, memory, disk = _beside_nano(prices, need)
    each += [
        ("CPU cores", f"{need.cpu_milli * count / MILLI:g}", prices.cpu_core_hour_nano, cpu),
        ("memory", mib(need.memory_mib * count), prices.memory_gib_hour_nano, memory),
        ("disk", mib(need.disk_mib * count), prices.disk_gib_hour_nano, disk),
    ]
    return tuple(QuoteLine(what=what, quantity=quantity, unit_nano=unit, amount_nano=amount * count) for what, quantity, unit, amount in each)


def hold_s(spec: Spec) -> int:
    """How many seconds a hold at submit covers."""
    return min(spec.max_duration_s, HOLD_MAX_S) or HOLD_ROLLING_S


def quote(prices: PriceList, spec: Spec, models: Iterable[str], project: Project, *, lines: bool = False) -> Quote:
    """The quote for `spec` over the models of cards that could serve it; the hold covers the dearest of them. With its `lines` where somebody is to read it."""
    rates = sorted((spec_rate_nano(prices, spec, model), model) for model in models or ("",))
    covers_s = hold_s(spec)
    return Quote(
        name=spec.name, tier=spec.tier, price_version=prices.version,
        rate_min_nano=rates[0][0], rate_max_nano=rates[-1][0], lines=spec_lines(prices, spec, rates[-1][1]) if lines else (),
        hold_nano=cost_nano(covers_s * 1000, rates[-1][0]), hold_covers_s=covers_s,
        credit_nano=project.credit_nano,
    )  # fmt: skip
