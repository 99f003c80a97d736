"""A site's power in figures for people: what runs where, in kW and US$ an hour; the next day; what is shed next; and why a card does what it does. Pure."""

from collections.abc import Iterable, Mapping, Sequence

from headframe.dispatch import mining
from headframe.dispatch.power import DRAW_SHARE, idle_w
from headframe.dispatch.settle import SLEEP
from headframe.dispatch.shed import ladder
from headframe.dispatch.survey import (
    NO_LIMIT_W,
    Held,
    Survey,
    active,
    asics,
    earned_usd_h,
    filler_key,
    filler_of,
    latest,
    loads,
    mines,
    posture_id,
    usd_of,
    worths,
)
from headframe.model.fleet import Gpu, plain_model
from headframe.model.ids import AllocationId
from headframe.model.money import PriceList
from headframe.model.power import AsicState, LoadClass, Reading
from headframe.model.power_api import Alternative, Explanation, FillerView, HourView, ModelNow, PowerView, UseView
from headframe.model.states import GpuState
from headframe.model.units import clock
from headframe.model.world import World
from headframe.server.dispatcher import Dispatcher, Planned, spot_floors

NAMES = {LoadClass.FIRM: "sold", LoadClass.ONLINE: "served", LoadClass.SPOT: "spot", LoadClass.BATCH: "batch", LoadClass.FILLER: "fillers"}


def power_view(world: World, survey: Survey, dispatcher: Dispatcher) -> PowerView:
    """See `PowerView`."""
    site = survey.site
    uses, planned = tuple(_uses(world, survey)), dispatcher.planned.get(site.id)
    read = sum(each.watts for each in survey.held if dispatcher.known(each.gpu.id) is not None)
    drawn = sum(each.watts for each in survey.held)
    return PowerView(
        site=site.name, now_ms=survey.now_ms, contract_w=site.contract_w, limit_w=0.0 if survey.limit_w >= NO_LIMIT_W else survey.limit_w, pue=site.pue,
        tariff=site.tariff.name if site.tariff else "", usd_kwh=survey.usd_kwh, meter_w=survey.meter.total_w, going_w=survey.meter.going_w,
        measured=read / drawn if drawn else 1.0, net_usd_h=sum(use.earns_usd_h - use.power_usd_h for use in uses), uses=uses,
        hours=tuple(_hours(planned)) if planned else (), ladder=ladder(loads(world, survey)),
        postures=tuple(row for _, row in sorted(world.postures.items()) if row.site_id == site.id),
        signals=tuple(sorted((row for row in world.signals.values() if row.site_id == site.id), key=lambda row: (row.start_ms, row.id))),
        spot_floor_usd_h=spot_floors(survey, planned), reached_w=site.reached_w, planned_ms=planned.at_ms if planned else 0,
    )  # fmt: skip


def _uses(world: World, survey: Survey) -> Iterable[UseView]:
    pue, rate = survey.site.pue, survey.usd_kwh or 0.0
    prices = latest(world)
    for kind in LoadClass:
        there = [each for each in survey.held if each.kind is kind]
        if not there:
            continue
        watts = sum(each.watts for each in there) * pue
        earns = sum(_brings(world, prices, each) for each in there)
        yield UseView(what=NAMES[kind], watts=watts, earns_usd_h=earns, power_usd_h=watts / 1000 * rate)
    machines = [asic for asic in asics(world, survey.site) if asic.state is AsicState.MINING]
    if machines:
        watts = sum(asic.watts for asic in machines) * pue
        earns = sum(mining.asic_usd_h(asic, world.coins.get(asic.coin)) or 0.0 for asic in machines)
        yield UseView(what="mining machines", watts=watts, earns_usd_h=earns, power_usd_h=watts / 1000 * rate)
    yield UseView(what="idle", watts=survey.meter.idle_w, earns_usd_h=0.0, power_usd_h=survey.meter.idle_w / 1000 * rate)


def _sold(each: Held) -> float:
    """The share of a card that is paid for; checks are nobody's."""
    if each.allocation.tier not in {"on-demand", "reserved", "spot"}:
        return 0.0
    return sum(share.milli for part in each.allocation.parts for share in part.shares if share.gpu_id == each.gpu.id) / 1000


def _brings(world: World, prices: PriceList | None, each: Held) -> float:
    """US$ an hour of a card that is held, before its power."""
    return _filler_usd_h(world, each) if each.kind is LoadClass.FILLER else usd_of(prices, each.gpu.model, each.kind) * _sold(each)


def _filler_usd_h(world: World, each: Held) -> float:
    return earned_usd_h(world, filler_of(world, world.workloads.get(each.allocation.workload_id)), each.gpu.model) or 0.0


def _hours(planned: Planned) -> Iterable[HourView]:
    site, schedule = planned.problem.site, planned.schedule
    idle = site.pue * (site.static_w + sum(pool.cards * pool.idle_w for pool in site.pools))
    pools = {pool.id: pool for pool in site.pools}
    for t, start_ms in enumerate(planned.problem.starts_ms):
        by_use = {"idle": idle}
        for use in schedule.uses:
            name = NAMES[LoadClass(use.work.partition("/")[0])]
            by_use[name] = by_use.get(name, 0.0) + use.cards[t] * (use.watts - pools[use.pool].idle_w) * site.pue
        asics = sum(group.watts * schedule.asics[group.id][t] for group in site.asics) * site.pue
        by_use |= {"mining machines": asics} if asics else {}
        yield HourView(start_ms=start_ms, usd_kwh=site.usd_kwh[t], limit_w=0.0 if site.limit_w[t] >= NO_LIMIT_W else site.limit_w[t], meter_w=schedule.meter_w[t],
                       by_use_w=by_use, marginal_usd_kwh=site.usd_kwh[t] + schedule.kwh_usd[t])  # fmt: skip


def models_now(world: World, survey: Survey) -> list[ModelNow]:
    """What cards do now and what else they could, by model: sold, filled or asleep."""
    found: list[ModelNow] = []
    rate, prices = survey.usd_wh, latest(world)
    for model, cards in survey.cards.items():
        mine = [each for each in survey.held if each.gpu.model == model]
        earns, costs = worths(world, survey, model)
        best = max(earns, key=lambda name: earns[name] - costs[name], default="")
        filling = [each for each in mine if each.kind is LoadClass.FILLER]
        asleep = max(0, len(cards) - len(mine))
        brings = sum(_brings(world, prices, each) for each in mine)
        found.append(ModelNow(
            model=model, sold=len(mine) - len(filling), filling=len(filling), asleep=asleep, now_usd_h=brings - sum(each.watts for each in mine) * rate - asleep * costs[SLEEP],
            sold_usd_h=usd_of(prices, model, LoadClass.FIRM) - cards[0].full_w * DRAW_SHARE[LoadClass.FIRM] * rate,
            filler=best, filler_usd_h=earns[best] - costs[best] if best else 0.0, asleep_usd_h=-costs[SLEEP],
        ))  # fmt: skip
    return found


def filler_views(world: World, survey: Survey, readings: Mapping[AllocationId, Reading]) -> list[FillerView]:
    """Fillers with what they bring now."""
    site = survey.site
    found: list[FillerView] = []
    for key in sorted(world.fillers):
        filler = world.fillers[key]
        there = [each for each in survey.held if each.kind is LoadClass.FILLER and filler_key(world.workloads[each.allocation.workload_id]) == key]
        even = {
            model: mining.break_even_usd_kwh(earned, does.watts * site.pue) for model, does in filler.models.items()
            if (earned := mining.usd_h(filler, does, world.coins.get(filler.coin))) is not None
        }  # fmt: skip
        told = [
            (does.hashes_s, readings[each.allocation.id].hashes_s)
            for each in there
            if each.allocation.id in readings and (does := mines(filler, each.gpu.model))
        ]
        whys = [row.why for model in survey.cards if mines(filler, model) and (row := world.postures.get(posture_id(site, model)))]
        found.append(FillerView(filler=filler, cards=len(there), usd_h=sum(_filler_usd_h(world, each) for each in there), watts=sum(each.watts for each in there),
                                break_even_usd_kwh=even, promised=sum(each for each, _ in told), read=sum(each for _, each in told), why="switched off" if not filler.enabled else filler.why if survey.now_ms < filler.not_before_ms else whys[0] if whys else "no card of these models is in service"))  # fmt: skip
    return found


# Why


def explain_gpu(world: World, survey: Survey, gpu: Gpu) -> Explanation:
    """Why this card mines, runs or sleeps now."""
    holder = next((each for each in survey.held if each.gpu.id == gpu.id), None)
    posture = world.postures.get(posture_id(survey.site, gpu.model))
    running = _filler_name(world, holder) if holder and holder.kind is LoadClass.FILLER else ""
    doing = ASLEEP if holder is None else running or _work(LoadClass.SPOT if holder.kind is LoadClass.BATCH else holder.kind)
    rows = [
        Alternative(
            what=what,
            earns_usd_h=earned,
            power_usd_h=power,
            net_usd_h=earned - power,
            now=what == doing,
            note="nobody asks for it now" if what in SOLD and what != doing else "",
        )
        for what, (earned, power) in _options(world, survey, gpu).items()
    ]
    does, why = _said(world, survey, gpu, holder, running, posture.why if posture else "")
    return Explanation(
        subject=world.named(gpu),
        does=does,
        why=why,
        usd_kwh=survey.usd_kwh,
        alternatives=tuple(sorted(rows, key=lambda row: -row.net_usd_h)),
        limits=limits(world, survey),
    )


def _work(kind: LoadClass) -> str:
    return f"{NAMES[kind]} work"


ASLEEP = "sleep"
SOLD = frozenset({_work(LoadClass.FIRM), _work(LoadClass.SPOT)})


def _options(world: World, survey: Survey, gpu: Gpu) -> dict[str, tuple[float, float]]:
    """What such a card can do: US$ an hour that it earns, and that its power costs."""
    earns, costs = worths(world, survey, gpu.model)
    prices, rate = latest(world), survey.usd_wh
    sold = {_work(kind): (usd_of(prices, gpu.model, kind), gpu.full_w * DRAW_SHARE[kind] * rate) for kind in (LoadClass.FIRM, LoadClass.SPOT)}
    return {**sold, **{name: (earned, costs[name]) for name, earned in earns.items()}, ASLEEP: (0.0, costs[SLEEP])}


def _said(world: World, survey: Survey, gpu: Gpu, holder: Held | None, running: str, why: str) -> tuple[str, str]:
    if gpu.state is not GpuState.READY:
        return f"is {gpu.state}", gpu.why or "cards in this state get no work"
    if holder is not None and not running:
        return "works", f"{world.workloads[holder.allocation.workload_id].name} holds it ({holder.allocation.tier}): paid work comes first"
    if running:
        return f"runs {running}", why
    if not world.fillers:
        return "sleeps", "no filler is known: `headframe mining set FILE`"
    if survey.usd_kwh is None:
        why = why or "it is not known what power costs: `headframe site set NAME --tariff FILE`"
    return "sleeps", why or f"no filler is known for {plain_model(gpu.model)}"


def _filler_name(world: World, each: Held) -> str:
    return world.workloads[each.allocation.workload_id].spec.env.get("HEADFRAME_FILLER", "")


def explain_many(world: World, survey: Survey, name: str, cards: Sequence[Gpu]) -> Explanation:
    """A rack's or a site's cards by what they do: earned, spent, left, all together."""
    rate = survey.usd_wh
    prices = latest(world)
    ids, held = {gpu.id for gpu in cards}, {each.gpu.id: each for each in survey.held}
    rows: dict[str, list[float]] = {}
    for gpu in cards:
        each = held.get(gpu.id)
        watts = each.watts if each else idle_w(gpu.full_w)
        what = ASLEEP if each is None else _filler_name(world, each) if each.kind is LoadClass.FILLER else _work(each.kind)
        earned = 0.0 if each is None else _brings(world, prices, each)
        row = rows.setdefault(what, [0.0, 0.0, 0.0])
        row[0], row[1], row[2] = row[0] + earned, row[1] + watts * rate, row[2] + 1
    found = [
        Alternative(what=f"{what} on {int(count)}", earns_usd_h=earned, power_usd_h=power, net_usd_h=earned - power, now=True)
        for what, (earned, power, count) in sorted(rows.items())
    ]
    whole: dict[str, list[float]] = {}
    for (gpu, *_), count in _alike(cards):
        for what, (earned, power) in _options(world, survey, gpu).items():
            row = whole.setdefault(what, [0.0, 0.0, 0.0])
            row[0], row[1], row[2] = row[0] + earned * count, row[1] + power * count, row[2] + count
    found += [
        Alternative(what=f"{what} on {int(count)}", earns_usd_h=earned, power_usd_h=power, net_usd_h=earned - power, now=False, note="if all did it that can")
        for what, (earned, power, count) in sorted(whole.items()) if list(rows) != [what] or rows[what][2] != count
    ]  # fmt: skip
    whys = dict.fromkeys(
        f"{gpu.model}: {row.why}" for gpu in cards if gpu.id in ids and (row := world.postures.get(posture_id(survey.site, gpu.model)))
    )
    return Explanation(subject=name, does=f"{len(cards)} cards", why="; ".join(list(whys)[:4]), usd_kwh=survey.usd_kwh,
                       alternatives=tuple(sorted(found, key=lambda row: -row.net_usd_h)), limits=limits(world, survey))  # fmt: skip


def _alike(cards: Sequence[Gpu]) -> list[tuple[list[Gpu], int]]:
    """Cards that can do the same for the same watts, together."""
    groups: dict[tuple[str, int], list[Gpu]] = {}
    for gpu in cards:
        groups.setdefault((gpu.model, gpu.full_w), []).append(gpu)
    return [(group, len(group)) for group in groups.values()]


def limits(world: World, survey: Survey) -> tuple[str, ...]:
    """What bounds the site now."""
    found: list[str] = []
    if survey.limit_w < NO_LIMIT_W:
        found.append(f"{survey.meter.total_w / 1000:.2f} of {survey.limit_w / 1000:g} kW are drawn at the meter")
    found.extend(f"{row.source} asks for {row.kind} {row.value:g} until {clock(row.end_ms)}" for row in active(world, survey.site, survey.now_ms))
    return tuple(found)
