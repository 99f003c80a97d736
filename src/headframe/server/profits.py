"""Each hour's yields, from readings and usage to the store and the ledger, once; and what they add up to."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from headframe.billing.yields import Hour, postings, yields
from headframe.dispatch.power import DRAW_SHARE, idle_w
from headframe.dispatch.survey import earned_usd_h, filler_key, market_of
from headframe.dispatch.tariff import usd_kwh
from headframe.model import fleet
from headframe.model.endpoint import Served
from headframe.model.errors import HeadframeError
from headframe.model.event import Draft, Kind
from headframe.model.fleet import Node
from headframe.model.health import NodeHour
from headframe.model.ids import AllocationId, GpuId, WorkloadId
from headframe.model.money import CardYield, NodeYield, Usage
from headframe.model.power import Filler, LoadClass
from headframe.model.power_api import Profit, ProfitHour
from headframe.model.states import GpuState
from headframe.model.units import MS_PER_HOUR, NANO_PER_USD, counted, usd
from headframe.model.work import Allocation, Tier, Workload
from headframe.model.world import World
from headframe.server.desk import Desk
from headframe.server.lead import Leadership
from headframe.store.base import Query, Store, every

LOOK_S, LATE_MS, BACK_HOURS, CHUNK = 60.0, 15 * 60_000, 48, 250
"""An hour is added up a quarter of an hour after its end: until then its last usage and readings come in. What is billed later still is in the ledger, not in here."""
_log = logging.getLogger("headframe")


class By(StrEnum):
    """What profits are told by."""

    GPU = "gpu"
    NODE = "node"
    RACK = "rack"
    MODEL = "model"
    OWNER = "owner"
    SITE = "site"


async def keep_yields(desk: Desk, leadership: Leadership) -> None:
    """For ever, while this server leads."""
    while True:
        await asyncio.sleep(LOOK_S)
        if leadership.epoch is None:
            continue
        try:
            await catch_up(desk, leadership.epoch)
        except HeadframeError as error:
            _log.warning("what cards brought is not added up yet: %s; it is tried again", error.detail)


async def catch_up(desk: Desk, epoch: int | None) -> None:
    """Every hour that is over and not yet added up, the oldest first; chunk by chunk, each once."""
    last = (desk.clock_ms() - LATE_MS) // MS_PER_HOUR - 1
    for site in list(desk.world.sites.values()):
        nodes = [
            (node, [gpu.id for gpu in desk.world.node_gpus[node.id].values() if gpu.state is not GpuState.RETIRED])
            for node in sorted(desk.world.nodes.values(), key=lambda node: node.id)
            if node.site_id == site.id
        ]
        for number, start in enumerate(range(0, len(nodes), CHUNK)):
            part = nodes[start : start + CHUNK]
            known = await asyncio.to_thread(desk.store.page, NodeYield, Query(parent_id=part[0][0].id, limit=1))
            first = (
                known[0].start_ms // MS_PER_HOUR + 1 if known else max(last - BACK_HOURS + 1, min(node.joined_ms for node, _ in part) // MS_PER_HOUR)
            )
            for hour in range(max(first, last - BACK_HOURS + 1), last + 1):
                await _add(desk, site, part, hour * MS_PER_HOUR, number, epoch)


async def _add(desk: Desk, site: fleet.Site, nodes: Sequence[tuple[Node, Sequence[GpuId]]], start_ms: int, chunk: int, epoch: int | None) -> None:
    world = desk.world
    gathered = await asyncio.to_thread(_gathered, desk.store, [node.id for node, _ in nodes], start_ms)
    price = usd_kwh(site.tariff, market_of(world, site), start_ms) if site.tariff else None
    hour = Hour(
        start_ms=start_ms,
        site=site,
        usages=gathered.usages,
        allocations=gathered.allocations,
        readings=gathered.readings,
        usd_kwh=price,
        assumed_w=_assumed(world),
        filler_usd_h=_earned(world, gathered.fillers),
        tokens_nano=gathered.tokens_nano,
        endpoints=gathered.endpoints,
    )
    rows = yields(hour, nodes)
    entries = postings(hour, rows, chunk)
    total = (
        sum(entry.amount_nano for entry in entries if entry.id.endswith("operator/energy")),
        sum(entry.amount_nano for entry in entries if entry.id.endswith("operator/mined")),
    )
    text = f"{site.name}: an hour of {counted(len(rows), 'machine')} added up: energy {usd(total[0])}, mined {usd(total[1])}"
    draft = Draft(kind=Kind.ENERGY_POSTED, subject=site.id, text=text, rows=(*rows, *entries))
    await desk.write(lambda _world, _now_ms: iter((draft,)), epoch)


class _Gathered(msgspec.Struct, frozen=True, kw_only=True):
    """What the store has of an hour: usage, whose it was, which filler's and which endpoint's, what each endpoint's tokens brought, and what some machines' cards said."""

    usages: list[Usage]
    allocations: dict[AllocationId, Allocation]
    fillers: dict[AllocationId, Filler]
    readings: dict[str, NodeHour]
    endpoints: dict[AllocationId, WorkloadId]
    tokens_nano: dict[WorkloadId, int]


def _gathered(store: Store, nodes: Sequence[str], start_ms: int) -> _Gathered:
    usages = list(every(store, Usage, Query(since_ms=start_ms, until_ms=start_ms + MS_PER_HOUR)))
    allocations = {key: row for key in dict.fromkeys(usage.allocation_id for usage in usages) if (row := store.get(Allocation, key)) is not None}
    works = {
        key: work
        for key, row in allocations.items()
        if row.tier in {Tier.FILLER, Tier.SERVED} and (work := store.get(Workload, row.workload_id)) is not None
    }
    endpoints = {key: work.endpoint_id for key, work in works.items() if work.endpoint_id}
    tokens_nano: dict[WorkloadId, int] = {}
    for row in every(store, Served, Query(since_ms=start_ms, until_ms=start_ms + MS_PER_HOUR)) if endpoints else ():
        tokens_nano[row.endpoint_id] = tokens_nano.get(row.endpoint_id, 0) + row.amount_nano
    known = {key: filler for key in set(map(filler_key, works.values())) if (filler := store.get(Filler, key)) is not None}
    return _Gathered(
        usages=usages,
        allocations=allocations,
        fillers={key: known[filler_key(work)] for key, work in works.items() if filler_key(work) in known},
        endpoints=endpoints,
        tokens_nano=tokens_nano,
        readings={node: found[0] for node in nodes if (found := [row for row in store.hours(node, start_ms, 1) if row.hour_ms == start_ms])},
    )


def _assumed(world: World) -> Callable[[GpuId, float], float]:
    def watts(key: GpuId, busy: float) -> float:
        limit = world.gpus[key].full_w if key in world.gpus else fleet.UNKNOWN_GPU_W
        return busy * DRAW_SHARE[LoadClass.FIRM] * limit + (1 - busy) * idle_w(limit)

    return watts


def _earned(world: World, fillers: Mapping[AllocationId, Filler]) -> Callable[[Allocation], float]:
    """US$ an hour that a filler's allocation earns, at the coin's terms known now; the filler may be gone meanwhile."""

    def earned(allocation: Allocation) -> float:
        return earned_usd_h(world, fillers.get(allocation.id), allocation.parts[0].shares[0].model) or 0.0

    return earned


# What they add up to


def profits(world: World, rows: Iterator[NodeYield], by: By) -> list[Profit]:
    """Sums by what is asked for, the best first."""
    found: dict[str, list[float]] = {}
    for row in rows:
        _count(found, _name(world, row, None, by), row.host_wh, row.host_energy_nano, 0, 0, measured=False)
        for card in row.cards:
            _count(found, _name(world, row, card, by), card.wh, card.energy_nano, card.sold_nano, card.mined_nano, measured=card.measured)
    made = [
        Profit(name=name, kwh=wh / 1000, energy_nano=int(energy), sold_nano=int(sold), mined_nano=int(mined), net_nano=int(sold + mined - energy), measured=known / wh if wh else 1.0)
        for name, (wh, energy, sold, mined, known) in found.items() if name
    ]  # fmt: skip
    return sorted(made, key=lambda row: (-row.net_nano, row.name))


def hourly(rows: Sequence[NodeYield]) -> list[ProfitHour]:
    """All machines together, hour by hour, the oldest first."""
    found: dict[int, list[float]] = {}
    for row in rows:
        sums = found.setdefault(row.start_ms, [0.0] * 4)
        cards = row.cards
        more = (
            row.host_wh + sum(card.wh for card in cards),
            row.host_energy_nano + sum(card.energy_nano for card in cards),
            sum(card.sold_nano for card in cards),
            sum(card.mined_nano for card in cards),
        )
        for n, value in enumerate(more):
            sums[n] += value
    return [
        ProfitHour(start_ms=start_ms, kwh=wh / 1000, energy_usd=energy / NANO_PER_USD, sold_usd=sold / NANO_PER_USD, mined_usd=mined / NANO_PER_USD)
        for start_ms, (wh, energy, sold, mined) in sorted(found.items())
    ]


def _count(found: dict[str, list[float]], name: str, wh: int, energy: int, sold: int, mined: int, *, measured: bool) -> None:
    row = found.setdefault(name, [0.0] * 5)
    for n, value in enumerate((wh, energy, sold, mined, wh if measured else 0)):
        row[n] += value


def _name(world: World, row: NodeYield, card: CardYield | None, by: By) -> str:
    """Who an hour counts for; a machine's own draw is no card's and no model's."""
    node = world.nodes.get(fleet.NodeId(row.node_id))
    match by:
        case By.GPU:
            return card.gpu_id if card else ""
        case By.MODEL:
            return world.gpus[card.gpu_id].model if card and card.gpu_id in world.gpus else ""
        case By.NODE:
            return node.name if node else row.node_id
        case By.RACK:
            rack = world.racks.get(node.rack_id) if node else None
            return rack.name if rack else "–"
        case By.OWNER:
            return row.owner or "the operator"
        case By.SITE:
            site = world.sites.get(node.site_id) if node else None
            return site.name if site else "–"


def kept(store: Store, since_ms: int, until_ms: int) -> Iterator[NodeYield]:
    """All yields of hours that began in between."""
    return every(store, NodeYield, Query(since_ms=since_ms, until_ms=until_ms))
