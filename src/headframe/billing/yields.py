"""What each card brought and cost in an hour: energy at the meter at that hour's price, what was sold of it, what it mined. Pure; history, which no decision looks at.

Energy is what telemetry read (mean watts), times the site's PUE; of an hour without readings it is what the card's holders are assumed to have drawn, and `measured` says so. What was
sold is the usage that began in the hour, shared among an allocation's cards, and the tokens that were served in it, shared among their endpoint's replicas by the time of their cards; what was mined is the filler's worth then, for as long as it held the card.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from headframe.model.fleet import Node, Site
from headframe.model.health import NodeHour
from headframe.model.ids import AllocationId, GpuId, PostingId, ProjectId, WorkloadId
from headframe.model.money import CardYield, Entry, EntryKind, NodeYield, Usage
from headframe.model.units import MS_PER_HOUR, NANO_PER_USD
from headframe.model.work import Allocation, Tier

ENERGY, POWER_BILL, MINED, POOLS = "operator/energy", "utility/payable", "operator/mined", "pools/receivable"
"""Accounts: energy is a cost (positive: used up) owed to the utility; what is mined is owed by pools (negative) and the operator's (positive)."""


class Hour(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that an hour's yields are made from: usage that began in it with its allocations, readings by machine, US$ per kWh (None: not known), watts assumed of a card
    (by card and whether it was held), US$ an hour that a filler's allocation earned; what each endpoint's tokens brought, and which endpoint's replica an allocation is.
    """

    start_ms: int
    site: Site
    usages: Sequence[Usage]
    allocations: Mapping[AllocationId, Allocation]
    readings: Mapping[str, NodeHour]
    usd_kwh: float | None
    assumed_w: Callable[[GpuId, float], float]
    filler_usd_h: Callable[[Allocation], float]
    tokens_nano: Mapping[WorkloadId, int] = {}
    endpoints: Mapping[AllocationId, WorkloadId] = {}


def yields(hour: Hour, nodes: Sequence[tuple[Node, Sequence[GpuId]]]) -> list[NodeYield]:
    """One row for each machine, its cards in id order."""
    sold: dict[GpuId, float] = {}
    mined: dict[GpuId, float] = {}
    busy: dict[GpuId, float] = {}
    served: dict[WorkloadId, int] = {}
    for usage in hour.usages:
        if (endpoint := hour.endpoints.get(usage.allocation_id)) is not None:
            served[endpoint] = served.get(endpoint, 0) + _card_ms(usage)
    for usage in hour.usages:
        allocation = hour.allocations.get(usage.allocation_id)
        total = allocation.gpu_milli if allocation else 0
        span_h = (usage.end_ms - usage.start_ms) / MS_PER_HOUR
        for share in (share for part in allocation.parts for share in part.shares) if allocation and total else ():
            part = share.milli / total
            sold[share.gpu_id] = sold.get(share.gpu_id, 0.0) + (usage.amount_nano + _tokens_nano(hour, usage, served)) * part
            busy[share.gpu_id] = min(1.0, busy.get(share.gpu_id, 0.0) + span_h * share.milli / 1000)
            if allocation and allocation.tier is Tier.FILLER:
                mined[share.gpu_id] = mined.get(share.gpu_id, 0.0) + hour.filler_usd_h(allocation) * span_h * part * NANO_PER_USD
    return [_node(hour, node, cards, sold, mined, busy) for node, cards in nodes]


def _card_ms(usage: Usage) -> int:
    return usage.gpu_milli * (usage.end_ms - usage.start_ms)


def _tokens_nano(hour: Hour, usage: Usage, served: Mapping[WorkloadId, int]) -> float:
    """What a replica's tokens brought while it was used: its share of its endpoint's."""
    endpoint = hour.endpoints.get(usage.allocation_id)
    total = served.get(endpoint, 0) if endpoint else 0
    return hour.tokens_nano.get(endpoint, 0) * _card_ms(usage) / total if endpoint and total else 0.0


def _node(
    hour: Hour, node: Node, cards: Sequence[GpuId], sold: Mapping[GpuId, float], mined: Mapping[GpuId, float], busy: Mapping[GpuId, float]
) -> NodeYield:
    read = {card.gpu_id: card for card in hour.readings[node.id].cards} if node.id in hour.readings else {}
    rate = (hour.usd_kwh or 0.0) * NANO_PER_USD / 1000
    rows: list[CardYield] = []
    for key in sorted(cards):
        reading = read.get(key)
        measured = reading is not None and reading.power_w is not None and reading.minutes >= LEAST_MINUTES
        watts = reading.power_w if measured and reading is not None and reading.power_w is not None else hour.assumed_w(key, busy.get(key, 0.0))
        meter_wh = watts * hour.site.pue
        rows.append(
            CardYield(
                gpu_id=key,
                wh=round(meter_wh),
                energy_nano=round(meter_wh * rate),
                sold_nano=round(sold.get(key, 0.0)),
                mined_nano=round(mined.get(key, 0.0)),
                measured=measured,
            )
        )
    idle_wh = node.idle_w * hour.site.pue
    return NodeYield(
        id=f"{node.id}/{hour.start_ms}",
        node_id=node.id,
        start_ms=hour.start_ms,
        owner=node.owner,
        host_wh=round(idle_wh),
        host_energy_nano=round(idle_wh * rate),
        cards=tuple(rows),
    )


LEAST_MINUTES = 30
"""Of an hour: with fewer readings the mean is not taken for the whole of it."""


def postings(hour: Hour, rows: Sequence[NodeYield], chunk: int) -> tuple[Entry, ...]:
    """What these machines' energy cost and what they mined, each a posting that sums to zero."""
    energy = sum(row.host_energy_nano + sum(card.energy_nano for card in row.cards) for row in rows)
    mined = sum(card.mined_nano for row in rows for card in row.cards)
    found: list[Entry] = []
    for name, kind, amount, ours, theirs in (
        ("energy", EntryKind.ENERGY, energy, ENERGY, POWER_BILL),
        ("mined", EntryKind.MINED, mined, MINED, POOLS),
    ):
        posting = f"{name}/{hour.site.id}/{hour.start_ms}/{chunk}"
        for account, signed in ((ours, amount), (theirs, -amount)):
            if amount:
                found.append(Entry(id=f"{posting}#{account}", posting_id=PostingId(posting), kind=kind, account=account, amount_nano=signed, project_id=ProjectId(""), workload_id=WorkloadId(""),
                                   at_ms=hour.start_ms, memo=f"{hour.site.name}: {name} of {len(rows)} machines"))  # fmt: skip
    return tuple(found)
