"""The fleet as dispatch sees it: from the world, and what cards are known to draw, to the programme's site, the ladder's loads and the meter. Pure.

Cards are counted by model; racks that are alike (same limit, same cards) are one pool. What runs now is taken to go on for the horizon, what waits is taken to want cards now: the tariff's
shape and the limits decide, not a forecast.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache

import msgspec

from headframe.dispatch import mining
from headframe.dispatch.plan import Asics, Pool, Site, Work
from headframe.dispatch.power import CAPPED_LEAST, DRAW_SHARE, LIMIT_LEAST, SWEPT, idle_w, median_curve
from headframe.dispatch.settle import SLEEP, Choice, chosen, sticky
from headframe.dispatch.shed import LEVELS, Load, Rung
from headframe.dispatch.tariff import Market, peaks, series, usd_kwh
from headframe.model import fleet
from headframe.model.fleet import UNKNOWN_GPU_W, Gpu, plain_model
from headframe.model.ids import GpuId, NodeId, RackId
from headframe.model.money import PriceList
from headframe.model.power import Asic, AsicState, Filler, LoadClass, Mines, Posture, Signal, SignalKind, filler_id
from headframe.model.states import AllocationState, GpuState, NodeState
from headframe.model.units import MS_PER_DAY, MS_PER_HOUR, NANO_PER_USD
from headframe.model.work import Allocation, Tier, Workload
from headframe.model.world import World

HOURS = 48
"""Two days: what can wait may wait for tomorrow night; hours whose price is not known yet cost the mean of those that are."""
NO_LIMIT_W = 1e12
UNCAPPED = ((1.0, 1.0),)
"""The curve of cards whose limits nobody sets."""
Known = Callable[[GpuId], float | None]
"""What a card was last read to draw (W), None where that is not known."""
CAPS_COST = 0.15
"""Of what work brings, at its class's lowest cap: training keeps 85 % of its speed at 0.7 of its draw."""
_RUNGS = {LoadClass.SPOT: Rung.SPOT, LoadClass.BATCH: Rung.BATCH}
LEAD_MS = 45_000
"""A limit that is told ahead is kept from so long before it begins: spot work has 30 s to go."""
RISES_MS = 60_000
"""For so long after its start work counts at least as what it is assumed to draw, whatever its cards were last read to draw: programs load before they compute."""
_UP = frozenset({AllocationState.GRANTED, AllocationState.STARTING})
_SERVICE = frozenset({NodeState.READY, NodeState.DRAINING})


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A card that is held, by what, and what it draws."""

    gpu: Gpu
    allocation: Allocation
    kind: LoadClass
    watts: float


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """What the site draws now at the meter (W), by use; `going_w` of it is being stopped, `idle_w` drawn by what does nothing, machines without their cards' work included."""

    total_w: float
    firm_w: float
    spot_w: float
    filler_w: float
    asic_w: float
    idle_w: float
    going_w: float


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """A site in figures: its cards in service and who holds them, by model; what is drawn, also by rack (W, before the site's PUE); the price and the limit now."""

    site: fleet.Site
    now_ms: int
    cards: dict[str, tuple[Gpu, ...]]
    held: tuple[Held, ...]
    meter: Meter
    usd_kwh: float | None
    limit_w: float
    racks_w: dict[RackId, float]

    @property
    def usd_wh(self) -> float:
        """What a watt of a card costs for an hour now, with what the site adds to it; 0 where no price is known."""
        return (self.usd_kwh or 0.0) * self.site.pue / 1000


def kind_of(allocation: Allocation, workload: Workload | None) -> LoadClass:
    """What a watt of it is spent on. Spot work with a checkpoint can wait; served tokens can be slower; all other work is firm."""
    if allocation.tier is Tier.FILLER:
        return LoadClass.FILLER
    if allocation.tier is Tier.SERVED:
        return LoadClass.ONLINE
    if allocation.tier is Tier.SPOT:
        return LoadClass.BATCH if workload is not None and workload.spec.checkpoint else LoadClass.SPOT
    return LoadClass.FIRM


def surveyed(world: World, site: fleet.Site, now_ms: int, known: Known) -> Survey:
    """Look at a site once: costs what it has."""
    cards: dict[str, list[Gpu]] = {}
    held: list[Held] = []
    idle, static = 0.0, 0.0
    racks: dict[RackId, float] = {}

    @cache
    def assumed(model: str, watts: int, kind: LoadClass, filler: str) -> float:
        return assumed_w(world, site, alike[model, watts], kind, filler)

    alike: dict[tuple[str, int], Gpu] = {}
    for node in world.nodes.values():
        if node.site_id != site.id or node.state is NodeState.RETIRED:
            continue
        static += node.idle_w
        holders, drawn = _holders(world, node.id), float(node.idle_w)
        for gpu in world.node_gpus[node.id].values():
            if gpu.state is GpuState.RETIRED:
                continue
            alike.setdefault((gpu.model, gpu.max_w), gpu)
            if gpu.state is GpuState.READY and node.state in _SERVICE:
                cards.setdefault(gpu.model, []).append(gpu)
            owner = holders.get(gpu.id)
            if owner is None:
                watts = known(gpu.id) or idle_w(gpu.full_w)
                idle += watts
            else:
                workload = world.workloads.get(owner.workload_id)
                kind = kind_of(owner, workload)
                watts = known(gpu.id) or 0.0
                if not watts or _rising(owner, now_ms):
                    watts = max(watts, assumed(gpu.model, gpu.max_w, kind, filler_key(workload) if workload and kind is LoadClass.FILLER else ""))
                held.append(Held(gpu=gpu, allocation=owner, kind=kind, watts=watts))
            drawn += watts
        racks[node.rack_id] = racks.get(node.rack_id, 0.0) + drawn
    market = market_of(world, site)
    price = usd_kwh(site.tariff, market, now_ms) if site.tariff else None
    ordered = {model: tuple(sorted(there, key=lambda gpu: gpu.id)) for model, there in sorted(cards.items())}
    return Survey(site=site, now_ms=now_ms, cards=ordered, held=tuple(held), meter=_meter(world, site, held, idle + static), usd_kwh=price,
                  limit_w=min(limit_w(world, site, at_ms) for at_ms in (now_ms, now_ms + LEAD_MS)), racks_w=racks)  # fmt: skip


def _rising(allocation: Allocation, now_ms: int) -> bool:
    """Whether it draws less than it will: it has not started, or only just."""
    return allocation.state in _UP or (allocation.state is AllocationState.RUNNING and now_ms - (allocation.started_ms or now_ms) < RISES_MS)


def _holders(world: World, node_id: NodeId) -> dict[GpuId, Allocation]:
    """Who holds each card of a machine; of several who share one, the firmest."""
    found: dict[GpuId, Allocation] = {}
    there = world.on_node.get(node_id, {})
    for allocation in sorted(there.values(), key=lambda a: (a.tier is Tier.FILLER, a.tier is Tier.SPOT, a.id), reverse=True):
        for part in allocation.parts:
            if part.node_id == node_id:
                found.update((share.gpu_id, allocation) for share in part.shares)
    return found


def _meter(world: World, site: fleet.Site, held: Sequence[Held], idle: float) -> Meter:
    drawn = dict.fromkeys(LoadClass, 0.0)
    going = 0.0
    for each in held:
        drawn[each.kind] += each.watts
        going += each.watts - idle_w(each.gpu.full_w) if each.allocation.state is AllocationState.STOPPING else 0.0
    machines = tuple(asics(world, site))
    mined = sum(asic.watts for asic in machines if asic.state is not AsicState.STOPPED)
    going += sum(asic.watts for asic in machines if asic.state is AsicState.MINING and asic.wanted is AsicState.STOPPED)
    firm, spot = drawn[LoadClass.FIRM] + drawn[LoadClass.ONLINE], drawn[LoadClass.SPOT] + drawn[LoadClass.BATCH]
    scale = site.pue
    return Meter(total_w=scale * (sum(drawn.values()) + idle + mined), firm_w=scale * firm, spot_w=scale * spot, filler_w=scale * drawn[LoadClass.FILLER],
                 asic_w=scale * mined, idle_w=scale * idle, going_w=scale * going)  # fmt: skip


def asics(world: World, site: fleet.Site) -> Iterable[Asic]:
    """Mining machines of a site: those in its racks, and those in none."""
    return (world.asics[key] for key in sorted(world.asics) if not (rack := world.racks.get(world.asics[key].rack_id)) or rack.site_id == site.id)


# Prices and limits


def market_of(world: World, site: fleet.Site) -> Market:
    """The prices that are known of a site's market, and what signals say instead of them."""
    name = site.tariff.market if site.tariff else ""
    days = {row.start_ms: row for row in world.market_days.values() if row.market == name}
    told = [row for row in world.signals.values() if row.site_id == site.id and row.kind is SignalKind.PRICE and not row.cancelled]

    def price(at_ms: int) -> float | None:
        for signal in sorted(told, key=lambda row: (-row.received_ms, row.id)):
            if signal.start_ms <= at_ms < signal.end_ms:
                return signal.value
        day_ms = at_ms // MS_PER_DAY * MS_PER_DAY
        row, hour = days.get(day_ms), (at_ms - day_ms) // MS_PER_HOUR
        return row.usd_mwh[hour] if row is not None and hour < len(row.usd_mwh) else None

    return price


def limit_w(world: World, site: fleet.Site, at_ms: int) -> float:
    """What may be drawn at the meter: the contract, or less where a signal says so."""
    told = [signal.value for signal in active(world, site, at_ms) if signal.kind is SignalKind.LIMIT]
    return min([float(site.contract_w or NO_LIMIT_W), *told])


def level(world: World, site: fleet.Site, at_ms: int) -> int:
    """The highest level that a signal asks for, 0 as usual."""
    return max((int(signal.value) for signal in active(world, site, at_ms) if signal.kind is SignalKind.LEVEL), default=0)


def active(world: World, site: fleet.Site, at_ms: int) -> list[Signal]:
    """The signals in force at a time. A source that is lost keeps its last word until that word's end."""
    rows = (world.signals[key] for key in sorted(world.signals))
    return [row for row in rows if row.site_id == site.id and not row.cancelled and row.start_ms <= at_ms < row.end_ms]


# What fillers bring


def mines(filler: Filler, gpu_model: str) -> Mines | None:
    """What a filler does on a model, by the model's name as its file wrote it: letters and digits count."""
    return next((found for name, found in filler.models.items() if plain_model(name) in {plain_model(gpu_model), "any"}), None)


def filler_key(workload: Workload) -> str:
    """The id of the filler that a workload runs: its name is that and the card's."""
    return workload.spec.name.rpartition("@")[0]


def filler_of(world: World, workload: Workload | None) -> Filler | None:
    """The filler that a workload runs, None where that is gone."""
    return world.fillers.get(filler_key(workload)) if workload else None


def earned_usd_h(world: World, filler: Filler | None, model: str) -> float | None:
    """US$ an hour that a card of a model earns with a filler, before its power; None where that can't be known."""
    does = mines(filler, model) if filler else None
    return mining.usd_h(filler, does, world.coins.get(filler.coin)) if filler and does else None


def worths(world: World, survey: Survey, model: str) -> tuple[dict[str, float], dict[str, float]]:
    """US$ per card-hour that each filler earns on a model, and what its power costs; sleeping's cost is among the latter."""
    cards = survey.cards.get(model, ())
    limit = cards[0].full_w if cards else UNKNOWN_GPU_W
    rate = survey.usd_wh
    earns, costs = dict[str, float](), {SLEEP: idle_w(limit) * rate}
    for key in sorted(world.fillers):
        filler = world.fillers[key]
        does = mines(filler, model) if filler.enabled else None
        earned = earned_usd_h(world, filler, model) if does else None
        if does is not None and earned is not None:
            earns[filler.name], costs[filler.name] = earned, does.watts * rate
    return earns, costs


def choices(world: World, survey: Survey) -> dict[str, Choice]:
    """What idle cards of each model are to do."""
    found: dict[str, Choice] = {}
    for model in survey.cards:
        before = world.postures.get(posture_id(survey.site, model))
        earns, costs = worths(world, survey, model)
        found[model] = chosen(before.filler if before else SLEEP, before.since_ms if before else 0, earns, costs, survey.now_ms)
    return found


def posture_id(site: fleet.Site, model: str) -> str:
    """One for each model of a site."""
    return f"{site.id}/{model}"


# The programme


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The programme's site, which model each pool's cards are, and the hours that the intervals begin."""

    site: Site
    models: dict[str, str]
    starts_ms: tuple[int, ...]


def problem(world: World, survey: Survey, picked: Mapping[str, Choice], hours: int = HOURS) -> Problem:
    """What to solve. Firm work that runs is given its cards; nothing is asked of what is not known."""
    first = survey.now_ms // MS_PER_HOUR * MS_PER_HOUR
    starts = [first + n * MS_PER_HOUR for n in range(hours)]
    tariff, row = survey.site.tariff, survey.site
    prices = series(tariff, market_of(world, row), starts) if tariff else [0.0] * hours
    pools, models, racks = _pools(world, survey)
    return Problem(models=models, starts_ms=tuple(starts), site=Site(
        hours=1.0, usd_kwh=tuple(prices), limit_w=tuple(limit_w(world, row, max(at_ms, survey.now_ms)) for at_ms in starts), pue=row.pue,
        static_w=sum(node.idle_w for node in world.nodes.values() if node.site_id == row.id and node.state is not NodeState.RETIRED),
        pools=pools, racks=racks, work=tuple(_works(world, survey, pools, models, picked, hours)), asics=tuple(_alike(world, name, there) for name, there in sorted(asic_groups(world, row).items())),
        peaks=peaks(tariff, market_of(world, row), starts, lambda name: row.reached_w.get(name, 0.0)) if tariff else (),
    ))  # fmt: skip


def _pools(world: World, survey: Survey) -> tuple[tuple[Pool, ...], dict[str, str], dict[str, float]]:
    """Cards by kind of rack and model; racks are of a kind where they carry as much and have as many cards of each model."""
    by_rack: dict[RackId, dict[str, list[Gpu]]] = {}
    for model, cards in survey.cards.items():
        for gpu in cards:
            by_rack.setdefault(world.nodes[gpu.node_id].rack_id, {}).setdefault(model, []).append(gpu)
    kinds: dict[tuple[float, tuple[tuple[str, int], ...]], list[RackId]] = {}
    for rack_id, models in sorted(by_rack.items()):
        limit = world.racks[rack_id].limit_w if rack_id in world.racks else 0
        static = sum(node.idle_w for node in world.nodes.values() if node.rack_id == rack_id) if limit else 0
        kinds.setdefault(
            (max(0.0, float(limit - static)) if limit else 0.0, tuple((model, len(models[model])) for model in sorted(models))), []
        ).append(rack_id)
    pools, names, limits = list[Pool](), dict[str, str](), dict[str, float]()
    for number, ((limit, models), there) in enumerate(sorted(kinds.items(), key=lambda item: item[1])):
        rack = f"rack-kind-{number}"
        if limit:
            limits[rack] = limit * len(there)
        for model, count in models:
            pools.append(Pool(id=f"{rack}/{model}", rack=rack, cards=count * len(there), idle_w=idle_w(survey.cards[model][0].full_w)))
            names[pools[-1].id] = model
    return tuple(pools), names, limits


def _works(
    world: World, survey: Survey, pools: Sequence[Pool], models: Mapping[str, str], picked: Mapping[str, Choice], hours: int
) -> Iterable[Work]:
    prices = latest(world)
    running: dict[tuple[LoadClass, str], int] = {}
    for each in survey.held:
        if each.gpu.model in survey.cards:
            running[each.kind, each.gpu.model] = running.get((each.kind, each.gpu.model), 0) + 1
    for model, cards in survey.cards.items():
        mine = [pool for pool in pools if models[pool.id] == model]
        limit = cards[0].full_w
        for kind in (LoadClass.FIRM, LoadClass.ONLINE, LoadClass.BATCH, LoadClass.SPOT):
            count = min(running.get((kind, model), 0), len(cards))
            if count:
                worth = usd_of(prices, model, kind)
                yield Work(
                    id=f"{kind}/{model}",
                    kind=kind,
                    usd_h=worth,
                    draw_w={pool.id: limit * DRAW_SHARE[kind] for pool in mine},
                    cards=(float(count),) * hours,
                    curve=_curve(survey, model, kind),
                    least=LIMIT_LEAST / DRAW_SHARE[kind],
                )
        choice = picked.get(model)
        filler = world.fillers.get(filler_id(choice.filler)) if choice else None
        does, earned = mines(filler, model) if filler else None, earned_usd_h(world, filler, model)
        if filler and does and earned is not None:
            before = world.postures.get(posture_id(survey.site, model))
            on = before is not None and before.filler == filler.name
            yield Work(id=f"{LoadClass.FILLER}/{model}", kind=LoadClass.FILLER, usd_h=sticky(earned, on=on), draw_w={pool.id: does.watts for pool in mine},
                       cards=(float(len(cards)),) * hours, curve=_curve(survey, model, LoadClass.FILLER), least=LIMIT_LEAST * cards[0].full_w / does.watts)  # fmt: skip


def asic_groups(world: World, site: fleet.Site) -> dict[str, list[Asic]]:
    """Mining machines that are alike, by their group's name in the programme; one whose draw or state is not known is in none."""
    groups: dict[str, list[Asic]] = {}
    for asic in asics(world, site):
        if asic.watts > 0 and asic.state is not AsicState.UNKNOWN:
            name = "/".join((asic.model, "stops" if asic.can_stop else "always", "on" if asic.wanted is AsicState.MINING else "off"))
            groups.setdefault(name, []).append(asic)
    return groups


def _alike(world: World, name: str, there: Sequence[Asic]) -> Asics:
    first, count = there[0], len(there)
    earned = sum(mining.asic_usd_h(asic, world.coins.get(asic.coin)) or 0.0 for asic in there)
    return Asics(id=name, count=count, watts=sum(asic.watts for asic in there) / count, usd_h=sticky(earned / count, on=first.wanted is AsicState.MINING),
                 can_stop=first.can_stop)  # fmt: skip


def _curve(survey: Survey, model: str, kind: LoadClass) -> tuple[tuple[float, float], ...] | None:
    """What cards of a model do under caps: their own sweep's medians where there is one, None for the published curves; full speed alone where nobody sets limits."""
    if not survey.site.caps:
        return UNCAPPED
    name = SWEPT.get(kind)
    swept = [gpu.graded.caps[name] for gpu in survey.cards[model] if name and gpu.graded and gpu.graded.caps and name in gpu.graded.caps]
    return median_curve(swept) if swept else None


def usd_of(prices: PriceList | None, model: str, kind: LoadClass) -> float:
    """What an hour of a card is sold for."""
    if prices is None:
        return 0.0
    price = prices.of(model)
    return (price.spot_nano if kind in {LoadClass.SPOT, LoadClass.BATCH} else price.on_demand_nano) / NANO_PER_USD


def latest(world: World) -> PriceList | None:
    """What things are sold for now; none before the store has a price list."""
    return max(world.price_lists.values(), key=lambda prices: prices.version, default=None)


# The ladder


def loads(world: World, survey: Survey) -> list[Load]:
    """What could be shed now, each at the meter. What is being stopped is gone already."""
    prices, pue = latest(world), survey.site.pue
    found: list[Load] = []
    for asic in asics(world, survey.site):
        if asic.can_stop and asic.state is AsicState.MINING and asic.wanted is AsicState.MINING:
            found.append(Load(id=asic.id, rung=Rung.MINING, watts=asic.watts * pue, usd_h=mining.asic_usd_h(asic, world.coins.get(asic.coin)) or 0.0))
    by_allocation: dict[str, list[Held]] = {}
    for each in survey.held:
        if each.kind not in {LoadClass.FIRM, LoadClass.ONLINE} and each.allocation.state is not AllocationState.STOPPING:
            by_allocation.setdefault(each.allocation.id, []).append(each)

    @cache
    def sold(model: str, kind: LoadClass) -> float:
        return usd_of(prices, model, kind)

    @cache
    def mined(key: str, model: str) -> float:
        return earned_usd_h(world, world.fillers.get(key), model) or 0.0

    for key in sorted(by_allocation):
        cards = by_allocation[key]
        kind, saved = cards[0].kind, sum(max(0.0, each.watts - idle_w(each.gpu.full_w)) for each in cards) * pue
        if kind is LoadClass.FILLER:
            filler = filler_of(world, world.workloads.get(cards[0].allocation.workload_id))
            earned = sum(mined(filler.id, each.gpu.model) for each in cards) if filler else 0.0
            found.append(Load(id=key, rung=Rung.MINING, watts=saved, usd_h=earned))
            continue
        worth, capped = sum(sold(each.gpu.model, kind) for each in cards), sum(_cap_saves(world, survey, each) for each in cards) * pue
        if capped > 0:
            found.append(Load(id=f"cap/{key}", rung=Rung.CAPS, watts=capped, usd_h=worth * CAPS_COST))
        found.append(Load(id=key, rung=_RUNGS[kind], watts=saved - capped, usd_h=worth))
    return found


def _cap_saves(world: World, survey: Survey, each: Held) -> float:
    """Watts of a card that its class's lowest cap would still save; nothing where nobody sets limits, or where it is set already."""
    if not survey.site.caps:
        return 0.0
    posture = world.postures.get(posture_id(survey.site, each.gpu.model))
    if posture is not None and posture.caps.get(str(each.kind), 1.0) <= CAPPED_LEAST[each.kind] + 1e-9:
        return 0.0
    full = each.gpu.full_w
    return max(0.0, each.watts - max(LIMIT_LEAST * full, CAPPED_LEAST[each.kind] * DRAW_SHARE[each.kind] * full))


def shed_always(world: World, site: fleet.Site, now_ms: int) -> frozenset[Rung]:
    """The rungs that the level in force sheds whatever they save."""
    return LEVELS.get(min(3, max(0, level(world, site, now_ms))), frozenset())


# Power limits


def wished_limits(world: World, survey: Survey) -> dict[NodeId, dict[GpuId, int]]:
    """What each card in service may draw (W), by machine, where dispatch sets limits: its own limit, or less under its posture's caps; never below LIMIT_LEAST of it."""
    found: dict[NodeId, dict[GpuId, int]] = {}
    if not survey.site.caps:
        return found
    kinds = {each.gpu.id: each.kind for each in survey.held}
    for model, cards in survey.cards.items():
        posture = world.postures.get(posture_id(survey.site, model))
        for gpu in cards:
            kind = kinds.get(gpu.id)
            share = posture.caps.get(str(kind), 1.0) if posture and kind else 1.0
            full = gpu.full_w
            watts = full if share >= 1 or kind is None else max(LIMIT_LEAST * full, share * _uncapped_w(world, posture, gpu, kind))
            if gpu.max_w:
                found.setdefault(gpu.node_id, {})[gpu.id] = round(watts)
    return found


def assumed_w(world: World, site: fleet.Site, gpu: Gpu, kind: LoadClass, filler: str = "") -> float:
    """What a card is taken to draw at some work where no reading says: its share of its limit, or what the file of its filler (by id; else the one it would have) says; less under a cap."""
    posture = world.postures.get(posture_id(site, gpu.model))
    uncapped = _uncapped_w(world, posture, gpu, kind, filler)
    share = posture.caps.get(str(kind), 1.0) if posture and site.caps else 1.0
    return uncapped if share >= 1 else min(uncapped, max(LIMIT_LEAST * gpu.full_w, share * uncapped))


def _uncapped_w(world: World, posture: Posture | None, gpu: Gpu, kind: LoadClass, filler: str = "") -> float:
    named = filler or (filler_id(posture.filler) if posture else "")
    known = world.fillers.get(named) if kind is LoadClass.FILLER else None
    does = mines(known, gpu.model) if known else None
    return does.watts if does else DRAW_SHARE[kind] * gpu.full_w
