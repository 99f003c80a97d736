"""Keeps watts where they earn most: looks at the site every few seconds and when a signal comes, sheds what has to go, plans every five minutes, begins and ends fillers.

Everything decided is committed under the leader's epoch before an engine hears of it (the tick starts and stops allocations); what is remembered here is only what may be
forgotten: the last problem, its schedule, and which machines are being freed for others.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import msgspec

from headframe.dispatch.heat import after_c, settled_c
from headframe.dispatch.meter import Means
from headframe.dispatch.plan import Basis, Schedule, Site
from headframe.dispatch.power import DRAW_SHARE, idle_w
from headframe.dispatch.shed import Rung
from headframe.dispatch.survey import LEAD_MS, NO_LIMIT_W, Problem, Survey, active, choices, problem, shed_always, surveyed, wished_limits
from headframe.dispatch.tariff import billing_month, counting
from headframe.model import fleet
from headframe.model.errors import HeadframeError
from headframe.model.event import Draft, Event, Kind
from headframe.model.ids import AllocationId, GpuId, NodeId, RackId, SiteId
from headframe.model.power import Budget, LoadClass, SignalKind
from headframe.model.states import AllocationState, Reason
from headframe.model.work import Allocation, Tier
from headframe.model.world import World
from headframe.server.desk import Desk
from headframe.server.filling import emergency, filled, over, settled
from headframe.server.lead import Leadership
from headframe.server.qualify import HOUSE
from headframe.server.solving import Answer, solve
from headframe.server.watch import Watch
from headframe.server.watts import granted

LOOK_S, PLAN_MS = 5.0, 300_000
REST_MS = 60_000
"""A machine on which a filler made room gets no new one for so long: what it made room for may need several of its cards."""
STALE_MS, LIMITS_AGAIN_MS, FALLS_MS = 60_000, 300_000, 2_000
"""How long a reading counts, and how soon after work has ended on a card it says what the idle card draws: NVML's watts are a mean over up to a second."""
AT_ONCE = frozenset(
    {Kind.SIGNAL_TAKEN, Kind.SITE_CHANGED, Kind.FILLER_CHANGED, Kind.COIN_TOLD, Kind.MARKET_TOLD, Kind.WORKLOAD_STARTING, Kind.RACK_CHANGED}
)
_log = logging.getLogger("headframe")


Limits = Callable[[NodeId, Mapping[GpuId, int]], Awaitable[None]]
"""Sets the power limits (W) of a machine's cards, or has them set; what can't be set stays."""


async def _no_limits(_node: NodeId, _watts: Mapping[GpuId, int]) -> None:
    """Nobody sets limits here."""


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A problem with its schedule."""

    at_ms: int
    problem: Problem
    schedule: Schedule


class Inlet(msgspec.Struct, frozen=True):
    """A rack's inlet by the model (C), as of `at_ms`, and where it settles under what is drawn."""

    at_ms: int
    now_c: float
    settles_c: float


class Dispatcher:
    """`solver` answers with a schedule, or none in time."""

    def __init__(
        self,
        desk: Desk,
        leadership: Leadership,
        watch: Watch,
        wake: Callable[[], None],
        solver: Callable[..., Awaitable[Answer]] = solve,
        limit: Limits | None = None,
    ) -> None:
        self.budgets: dict[SiteId, Budget] = {}
        self.planned: dict[SiteId, Planned] = {}
        self.inlets: dict[RackId, Inlet] = {}
        self._desk, self._leadership, self._watch, self._wake, self._solver = desk, leadership, watch, wake, solver
        self._resting: dict[NodeId, int] = {}
        self._freed: dict[GpuId, int] = {}
        self._basis: dict[SiteId, Basis | None] = {}
        self._asked: dict[SiteId, tuple[int, Site]] = {}
        self._limits: dict[NodeId, dict[GpuId, int]] = {}
        self._limited_ms = 0
        self._set_limits = limit or _no_limits
        self._surveys: dict[SiteId, Survey] = {}
        self._means: dict[tuple[SiteId, int], Means] = {}
        self._look = asyncio.Event()
        desk.listeners.append(self._heard)

    async def run(self) -> None:
        """For ever, while this server leads."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), LOOK_S)
            self._look.clear()
            if self._leadership.epoch is None:
                self.budgets.clear()
                continue
            try:
                for site in list(self._desk.world.sites.values()):
                    await self.once(site.id)
            except HeadframeError as error:
                _log.warning("dispatch could not finish: %s; it goes on by itself", error.detail)
            except Exception:
                _log.exception("dispatch failed; this is a bug in Headframe, it goes on by itself")
                await asyncio.sleep(LOOK_S)

    async def once(self, site_id: SiteId) -> None:
        """Look at a site, shed, plan where it is time to, fill."""
        world, epoch = self._desk.world, self._leadership.epoch
        if epoch is None or not concerned(world, world.sites[site_id]):
            self.budgets.pop(site_id, None)
            return
        await self._desk.write(lambda world, now_ms: self._step(world, site_id, now_ms), epoch)
        await self._plan(site_id, epoch)
        await self._limit(site_id)

    async def _limit(self, site_id: SiteId) -> None:
        """Cards' power limits as they are wished, told where they changed, and all again now and then."""
        world, now_ms = self._desk.world, self._desk.clock_ms()
        wished = wished_limits(world, self._surveys[site_id])
        if not wished:  # caps are left alone from now on: once more as they were
            wished = {node: {gpu: world.gpus[gpu].max_w for gpu in watts if gpu in world.gpus} for node, watts in self._limits.items()}
        again = now_ms - self._limited_ms >= LIMITS_AGAIN_MS
        for node, watts in wished.items():
            if again or self._limits.get(node) != watts:
                await self._set_limits(node, watts)
        self._limits = wished if world.sites[site_id].caps else {}
        self._limited_ms = now_ms if again else self._limited_ms

    def _step(self, world: World, site_id: SiteId, now_ms: int) -> Iterator[Draft]:
        yield from over(world, now_ms)
        survey = surveyed(world, world.sites[site_id], now_ms, self.known)
        self._surveys[site_id] = survey
        self._count(world, survey)
        self._warm(world, survey)
        shedding = False
        for draft in emergency(world, survey):
            shedding = True
            yield draft
        if not shedding:
            yield from filled(world, survey, self._resting)
        yield from _reached(survey, self._means)

    async def _plan(self, site_id: SiteId, epoch: int) -> None:
        now_ms, world, survey = self._desk.clock_ms(), self._desk.world, self._surveys[site_id]
        picked = choices(world, survey)
        asked = problem(world, survey, picked)
        before = self._asked.get(site_id)
        if before is not None and before[1] == asked.site and now_ms - before[0] < PLAN_MS:
            return
        answer = await self._solver(asked.site, self._basis.get(site_id))
        if answer.schedule is None:
            _log.warning("no schedule for %s in time: the last one stays in force", world.sites[site_id].name)
            return
        schedule = answer.schedule
        self._asked[site_id], self._basis[site_id] = (now_ms, asked.site), answer.basis
        self.planned[site_id] = Planned(at_ms=now_ms, problem=asked, schedule=schedule)

        def decided(world: World, now_ms: int) -> Iterator[Draft]:
            there = surveyed(world, world.sites[site_id], now_ms, self.known)
            return settled(world, there, asked, schedule, picked)

        if await self._desk.write(decided, epoch):
            self._look.set()

    def known(self, gpu: GpuId) -> float | None:
        """What a card was last read to draw; None where that is too long ago, or from under work that has ended since."""
        sample = self._watch.latest(gpu)
        valid = sample is not None and self._desk.clock_ms() - sample.at_ms < STALE_MS and sample.at_ms >= self._freed.get(gpu, 0)
        return sample.power_w if sample is not None and valid else None

    def _count(self, world: World, survey: Survey) -> None:
        """What placement may still give out."""
        meter, before = survey.meter, self.budgets.get(survey.site.id)
        told = active(world, survey.site, survey.now_ms)
        told += [row for row in active(world, survey.site, survey.now_ms + LEAD_MS) if row not in told]
        no_spot = Rung.SPOT in shed_always(world, survey.site, survey.now_ms)
        floors = spot_floors(survey, self.planned.get(survey.site.id))
        if survey.limit_w >= NO_LIMIT_W and not no_spot and not any(floors.values()):
            self.budgets.pop(survey.site.id, None)
            return
        limits = [signal for signal in told if no_spot or (signal.kind is SignalKind.LIMIT and signal.value == survey.limit_w)]
        firm_w = meter.total_w - meter.going_w - meter.filler_w - meter.asic_w
        budget = Budget(left_w=survey.limit_w - firm_w, free_w=survey.limit_w - meter.total_w, waiting=_waiting(survey), limit_w=survey.limit_w, pue=survey.site.pue, until_ms=limits[0].end_ms if limits else 0,
                        why=f"{limits[0].source} asked for it" if limits else "its contract", no_spot=no_spot, floor_usd_h=floors)  # fmt: skip
        self.budgets[survey.site.id] = budget
        if before is None or budget.left_w > before.left_w + 1 or (budget.free_w >= 0 and before.free_w < budget.free_w and budget.waiting):
            self._wake()

    def _warm(self, world: World, survey: Survey) -> None:
        """Racks' inlets go on from where they were towards where what is drawn takes them; one that is looked at for the first time has settled."""
        aired = {rack.id: rack for rack in world.racks.values() if rack.airflow_m3_s and rack.site_id == survey.site.id}
        for key, rack in aired.items():
            settles, before = settled_c(survey.racks_w.get(key, 0.0), rack.airflow_m3_s, rack.supply_c), self.inlets.get(key)
            now_c = after_c(before.now_c, settles, (survey.now_ms - before.at_ms) / 1000) if before else settles
            self.inlets[key] = Inlet(survey.now_ms, now_c, settles)
        for gone in self.inlets.keys() - world.racks.keys():
            del self.inlets[gone]

    def _heard(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.kind in AT_ONCE:
                self._look.set()
            for row in event.rows:
                if isinstance(row, Allocation):
                    self._moved(row, event.at_ms)

    def _moved(self, row: Allocation, now_ms: int) -> None:
        match row.state:
            case AllocationState.GRANTED:
                self.budgets.update({key: granted(self._desk.world, key, budget, row) for key, budget in self.budgets.items()})
            case AllocationState.STOPPING if row.tier is Tier.FILLER and row.stop_because is Reason.PREEMPTED:
                self._resting.update((part.node_id, now_ms + REST_MS) for part in row.parts)
                self._look.set()
            case AllocationState.ENDED:
                self._freed.update((share.gpu_id, now_ms + FALLS_MS) for part in row.parts for share in part.shares)
                if any(budget.free_w < 0 for budget in self.budgets.values()):
                    self._look.set()  # something may wait for its watts
            case _:
                pass


def _waiting(survey: Survey) -> dict[AllocationId, float]:
    """What was granted and has not started, and the watts that were counted for it at the meter."""
    found: dict[AllocationId, float] = {}
    for each in survey.held:
        if each.allocation.state is AllocationState.GRANTED:
            found[each.allocation.id] = found.get(each.allocation.id, 0.0) + survey.site.pue * (each.watts - idle_w(each.gpu.full_w))
    return found


def spot_floors(survey: Survey, planned: Planned | None) -> dict[str, float]:
    """What a card-hour of spot work has to bring at least, by model: its energy at the marginal price, and what the card would earn otherwise (the programme's duals)."""
    found: dict[str, float] = {}
    for model, cards in survey.cards.items():
        pools = [key for key, name in planned.problem.models.items() if name == model] if planned else []
        card = max((planned.schedule.card_usd_h[key][0] for key in pools), default=0.0) if planned else 0.0
        kwh = (survey.usd_kwh or 0.0) + (planned.schedule.kwh_usd[0] if planned else 0.0)
        limit = cards[0].full_w
        found[model] = round(card + (limit * DRAW_SHARE[LoadClass.SPOT] - idle_w(limit)) * survey.site.pue / 1000 * kwh, 6)
    return found


def concerned(world: World, site: fleet.Site) -> bool:
    """Whether there is anything to dispatch at a site: a limit, a price, a filler, a mining machine, a signal, or a filler that still runs."""
    told = site.contract_w or site.tariff or world.fillers or world.asics or world.signals
    return bool(told) or (bool(world.gpu_use_milli.get(HOUSE)) and any(held.tier is Tier.FILLER for held in world.held.values()))


def _reached(survey: Survey, means: dict[tuple[SiteId, int], Means]) -> Iterator[Draft]:
    """The month's peaks, where they have grown by more than a hundredth: what a demand charge will be paid for."""
    site = survey.site
    if site.tariff is None or not site.tariff.demand:
        return
    month = billing_month(site.tariff, survey.now_ms)
    reached = dict(site.reached_w) if site.month == month else {}
    for length_ms in sorted({charge.interval_min * 60_000 for charge in site.tariff.demand}):
        for mean in means.setdefault((site.id, length_ms), Means(length_ms)).heard(survey.now_ms, survey.meter.total_w):
            if billing_month(site.tariff, mean.start_ms) != month:
                continue
            for charge in counting(site.tariff, mean.start_ms):
                if charge.interval_min * 60_000 == length_ms and mean.watts > reached.get(charge.name, 0.0) * 1.01:
                    reached[charge.name] = round(mean.watts)
    if reached != site.reached_w or (site.reached_w and site.month != month):
        row = msgspec.structs.replace(site, month=month, reached_w=reached)
        said = ", ".join(f"{name} {watts / 1000:.1f} kW" for name, watts in reached.items()) or "none yet"
        yield Draft(kind=Kind.SITE_CHANGED, subject=site.id, text=f"{site.name}: the month's peaks: {said}", rows=(row,))
