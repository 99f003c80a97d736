"""One tick: facts in, then judge, reconcile, meter, place; commit; act. It takes no input and is idempotent.

Woken by a write, a fact or a timer. What was wanted before a crash is found again by comparing the world with what the
engine sees, so a tick may be cut off anywhere and the next one does what is left.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import msgspec

from headframe.billing.meter import can_hold, extend_hold, meter
from headframe.billing.price import price_at, rate_nano
from headframe.engines.base import FILLER_GRACE_S, GRACE_S, Engine, Sight
from headframe.health.grade import OURS
from headframe.health.rules import UNCLEAN, Rules
from headframe.model.event import Draft, Event, Kind
from headframe.model.fleet import Machine, Volume
from headframe.model.health import CardFacts, Finding, HostFacts
from headframe.model.ids import AllocationId, GpuId, NodeId, ProjectId, SiteId, VolumeId, allocation_id
from headframe.model.money import PriceList
from headframe.model.people import Project
from headframe.model.power import Budget
from headframe.model.states import AllocationState, Reason, WorkloadState
from headframe.model.units import money
from headframe.model.work import WORKSPACE, Allocation, Facts, Observation, Part, Refusal, Tier, Workload, mounted_id
from headframe.model.world import World
from headframe.placement import Admit, Grant, plan
from headframe.placement.elastic import grows
from headframe.reconcile.cards import cards
from headframe.reconcile.endpoints import endpoints
from headframe.reconcile.jobs import jobs, stop
from headframe.reconcile.nodes import nodes
from headframe.reconcile.reservations import reservations
from headframe.server.decide import live_rate_nano
from headframe.server.demand import Demand
from headframe.server.desk import Desk
from headframe.server.enrol import unchecked
from headframe.server.filling import failed
from headframe.server.idle import give_way, idle_checks
from headframe.server.machines import machines
from headframe.server.operate import CACHE_S, moves, stale
from headframe.server.qualify import expired, graded, is_check, said
from headframe.server.serving import silent
from headframe.server.sessions import Sessions
from headframe.server.watch import Watch
from headframe.server.watts import Starts, Watts

SWEEP_MS = 3_600_000
LINES_MAX = 1000
"""Of a check's log; it tells one line for each card."""


class Tick:
    """The leader's loop body. It remembers only when nodes and allocations were last heard of, to judge silence."""

    def __init__(
        self,
        desk: Desk,
        engine: Engine,
        clock_ms: Callable[[], int],
        watch: Watch | None = None,
        rules: Rules = OURS,
        demand: Demand | None = None,
        sessions: Sessions | None = None,
        secret_for: Callable[[AllocationId], str] = lambda _: "",
        budgets: Mapping[SiteId, Budget] = MappingProxyType({}),
    ) -> None:
        self._desk = desk
        self._engine = engine
        self._clock_ms = clock_ms
        self._watch = watch or Watch()
        self._rules = rules
        self._demand = demand or Demand()
        self._sessions = sessions or Sessions(clock_ms)
        self._secret_for = secret_for
        self._budgets = budgets
        self._heard_ms: dict[NodeId, int] = {}
        self._taken: dict[NodeId, Machine] = {}
        self._missing_since_ms: dict[AllocationId, int] = {}
        self._swept_ms = 0
        self._removed: dict[VolumeId, Volume] = {}
        desk.listeners.append(self._heard)

    def _heard(self, events: Sequence[Event]) -> None:
        removed = (row for event in events if event.kind is Kind.VOLUME_REMOVED for row in event.rows)
        self._removed.update((row.id, row) for row in removed if isinstance(row, Volume))

    async def run(self, epoch: int) -> None:
        """Catch up with what other servers committed, look, decide, commit under `epoch`, act."""
        await self._desk.catch_up()
        sight = await self._engine.observe()
        facts = msgspec.structs.replace(self._facts(sight), checked=await self._checked(sight))
        await self._desk.write(lambda world, now_ms: decisions(world, facts, now_ms, self._rules), epoch)
        self._taken.update({each.node.id: each for each in facts.machines})
        await self._act(sight)

    def _facts(self, sight: Sight) -> Facts:
        world, now_ms = self._desk.world, self._clock_ms()
        if len(self._heard_ms) < len(world.nodes):  # silence counts from when this server first knew of a node
            self._heard_ms = {**dict.fromkeys(world.nodes, now_ms), **self._heard_ms}
        self._heard_ms.update(dict.fromkeys(sight.nodes, now_ms))
        seen = {observation.allocation_id for observation in sight.observations}
        self._missing_since_ms = {key: since_ms for key, since_ms in self._missing_since_ms.items() if key not in seen and key in world.held}
        if sight.complete:
            reachable = set(sight.nodes)
            absent = {key for key, held in world.held.items() if key not in seen and all(part.node_id in reachable for part in held.parts)}
            self._missing_since_ms = {key: self._missing_since_ms.get(key, now_ms) for key in sorted(absent)}
        told = tuple(each for each in sight.machines if self._taken.get(each.node.id) is not each)  # an engine makes them anew now and then
        return Facts(machines=told, down=sight.down, nodes=self._heard_ms.copy(), observations=sight.observations, missing_since_ms=self._missing_since_ms,
                     loads=self._demand.loads(world, now_ms), idle=self._sessions.idle(world, now_ms), budgets=dict(self._budgets),
                     sweep=self._sweep(now_ms), findings={**self._watch.findings(world, now_ms), **unclean(world, sight.observations)})  # fmt: skip

    def _sweep(self, now_ms: int) -> bool:
        """Whether it is time for what looks at everything; once an hour, so that other ticks cost what changed."""
        due = now_ms - self._swept_ms >= SWEEP_MS
        self._swept_ms = now_ms if due else self._swept_ms
        return due

    async def _checked(self, sight: Sight) -> dict[AllocationId, tuple[CardFacts | HostFacts, ...]]:
        """What checks that have ended told, in their logs."""
        over = [
            seen.allocation_id
            for seen in sight.observations
            if seen.state is AllocationState.ENDED and is_check(self._desk.world, seen.allocation_id)
        ]
        known = self._desk.world.allocations
        return {key: said([line.text for line in await self._engine.logs(known[key], 0, LINES_MAX)]) for key in over}

    async def _act(self, sight: Sight) -> None:
        """Wanted against seen: start what is granted, stop what should not be, forget what is settled."""
        world = self._desk.world
        seen = {observation.allocation_id: observation for observation in sight.observations}
        while self._removed:  # before anything starts: what is mounted anew under the same name begins empty
            await self._engine.erase(self._removed.popitem()[1])
        starts = Starts(world, self._budgets, self._clock_ms())
        for allocation in starts.ordered():
            if allocation.state is AllocationState.GRANTED and allocation.id not in seen and starts.fits(allocation):
                await self._engine.start(allocation, self._keyed(allocation, world.workloads[allocation.workload_id]))
            elif allocation.state is AllocationState.STOPPING:
                grace_s = FILLER_GRACE_S if allocation.tier is Tier.FILLER else GRACE_S
                await self._engine.stop(allocation.id, allocation.stop_because or Reason.CANCELLED, grace_s)
        for key, observation in seen.items():
            if key in world.allocations:
                continue
            if observation.state is AllocationState.ENDED:
                await self._engine.forget(key)
            else:
                await self._engine.stop(key, Reason.CANCELLED, GRACE_S)

    def _keyed(self, allocation: Allocation, workload: Workload) -> Workload:
        """What is served gets the key that gateways show to it, under the names by which servers look for one."""
        if workload.spec.serve is None:
            return workload
        key = self._secret_for(allocation.id)
        env = {**dict.fromkeys(KEY_NAMES, key), **workload.spec.env}
        return msgspec.structs.replace(workload, spec=msgspec.structs.replace(workload.spec, env=env))


KEY_NAMES = ("HEADFRAME_API_KEY", "VLLM_API_KEY", "LLAMA_API_KEY")


def unclean(world: World, observations: Sequence[Observation]) -> dict[GpuId, tuple[Finding, ...]]:
    """The cards on which work could not start for what others left there: as bad as any that is wrong by itself."""
    found: dict[GpuId, tuple[Finding, ...]] = {}
    for seen in observations:
        allocation = world.allocations.get(seen.allocation_id)
        for card in seen.unclean if allocation and allocation.state is not AllocationState.ENDED else ():
            if allocation and allocation.holds(card):
                found[card] = (UNCLEAN,)
    return found


def decisions(world: World, facts: Facts, now_ms: int, rules: Rules = OURS) -> Iterator[Draft]:
    """The tick's sentence. Each draft is applied to the world before the next is asked for."""
    seen_ms = {seen.allocation_id: seen.seen_ms for seen in facts.observations}
    yield from machines(world, facts, now_ms)
    yield from nodes(world, facts, now_ms)
    yield from cards(world, facts, now_ms)
    yield from graded(world, facts, now_ms, rules)
    if facts.sweep:
        yield from expired(world, now_ms)
        yield from unchecked(world, now_ms)
        yield from idle_checks(world, now_ms)
        yield from silent(world, now_ms)
        yield from stale(world, now_ms)
    yield from failed(world, facts, now_ms)
    yield from jobs(world, facts, now_ms)
    yield from endpoints(world, facts, now_ms)
    yield from reservations(world, now_ms)
    yield from meter(world, seen_ms, now_ms)
    yield from grants(world, now_ms, facts.budgets)
    yield from give_way(world, now_ms)
    yield from grown(world, now_ms, facts.budgets)


def grants(world: World, now_ms: int, budgets: Mapping[SiteId, Budget] = MappingProxyType({})) -> Iterator[Draft]:
    """What the plan grants, each with the next hour held."""
    if not world.queued:
        return
    made = plan(world, now_ms, admitter(world, now_ms, budgets), reasons=False)
    prices = price_at(world.prices(), now_ms)
    for grant in made.grants:
        yield from _granted(world, grant, prices, now_ms)
    for eviction in made.evictions:
        yield stop(world, world.allocations[eviction.allocation_id], Reason.PREEMPTED, now_ms)
    if world.queued and not world.unsteady and any(site.defragment for site in world.sites.values()):
        yield from moves(world, now_ms)


def grown(world: World, now_ms: int, budgets: Mapping[SiteId, Budget]) -> Iterator[Draft]:
    """An elastic gang that is to start again on more nodes is stopped. What it pays now counts as given back; its watts do not, as it goes on drawing them until it has stopped."""

    def instead_of(allocation: Allocation) -> Admit:
        admit, rate = admitter(world, now_ms, budgets), rate_nano(price_at(world.prices(), now_ms), allocation.parts, allocation.tier)
        return lambda workload, parts, granted: admit(workload, parts, {**granted, workload.project_id: -rate})

    allocation = grows(world, now_ms, instead_of)
    if allocation is not None:
        yield stop(world, allocation, Reason.RESIZED, now_ms)


def admitter(world: World, now_ms: int, budgets: Mapping[SiteId, Budget] = MappingProxyType({})) -> Admit:
    """The say of money and watts in a placement: max_price, the hourly budget, credit for another hour, and what the site's limit leaves."""
    prices = price_at(world.prices(), now_ms)
    watts = Watts(world, budgets, prices)
    live: dict[ProjectId, int] = {}  # asked once for each project: nothing starts while a plan is made

    def admit(workload: Workload, parts: Sequence[Part], granted: dict[ProjectId, int]) -> Refusal | None:
        rate, project = rate_nano(prices, parts, workload.spec.tier), world.projects[workload.project_id]
        if project.budget_hour_nano and project.id not in live:
            live[project.id] = live_rate_nano(world, {project.id}, now_ms)
        running = live.get(project.id, 0) + granted.get(project.id, 0)
        refusal = _unaffordable(project, workload, rate, running, now_ms) or watts.take(workload, parts)
        if refusal is None:
            granted[workload.project_id] = granted.get(workload.project_id, 0) + rate
        return refusal

    return admit


def _unaffordable(project: Project, workload: Workload, rate: int, running: int, now_ms: int) -> Refusal | None:
    limit = workload.spec.max_price_nano
    if limit and rate > limit:
        return Refusal(rule="max-price", need=f"≤ {money(limit)}/h", have=f"{money(rate)}/h", nodes=0,
                       change="raise max_price or wait for the price to fall")  # fmt: skip
    if project.budget_hour_nano and running + rate > project.budget_hour_nano:
        return Refusal(rule="budget", need=f"{money(rate)}/h", nodes=0, change="waits for the project's own work to end",
                       have=f"{money(max(0, project.budget_hour_nano - running))}/h of {money(project.budget_hour_nano)}/h")  # fmt: skip
    short = _short_nano(workload, rate)
    if short and not can_hold(project, short, now_ms):
        return Refusal(rule="credit", need=f"{money(short)} held", have=f"{money(project.credit_nano)}", nodes=0,
                       change="an operator can add credit")  # fmt: skip
    return None


def _short_nano(workload: Workload, rate: int) -> int:
    """What the hold lacks for the first hour of another attempt, or for all of a shorter one."""
    limit_s = min(workload.spec.max_duration_s or 3600, 3600)
    return max(0, rate * limit_s // 3600 - workload.held_nano)


def _granted(world: World, grant: Grant, prices: PriceList, now_ms: int) -> Iterator[Draft]:
    workload = world.workloads[grant.workload_id]
    rate = rate_nano(prices, grant.parts, workload.spec.tier)
    short = _short_nano(workload, rate)
    attempt = workload.attempt + 1
    if short:
        if not can_hold(world.projects[workload.project_id], short, now_ms):
            return  # an earlier grant of this plan took the credit: it waits, and says so
        yield extend_hold(world.projects[workload.project_id], workload, short, f"{workload.id}.{attempt}", now_ms)
        workload = world.workloads[grant.workload_id]
    allocation = Allocation(
        id=allocation_id(workload.id, attempt), workload_id=workload.id, project_id=workload.project_id, attempt=attempt,
        tier=workload.spec.tier, parts=_listening(world, workload, grant.parts, attempt), state=AllocationState.GRANTED, granted_ms=now_ms,
    )  # fmt: skip
    after = msgspec.structs.replace(workload, state=WorkloadState.STARTING, attempt=attempt, not_before_ms=0)
    rows = (allocation, after, *_volumes(world, allocation, after, now_ms))
    where = ", ".join(world.nodes[part.node_id].name for part in grant.parts)
    yield Draft(kind=Kind.WORKLOAD_STARTING, subject=workload.id, project_id=workload.project_id,
                text=f"{workload.name}: granted on {where} at {money(rate)}/h (attempt {attempt})", rows=rows)  # fmt: skip


PORTS = range(20_000, 30_000)
"""Where what is served listens, one for each replica on a machine; below what Linux hands out to clients."""


def _listening(world: World, workload: Workload, parts: Sequence[Part], attempt: int) -> tuple[Part, ...]:
    """Each part with an address of its own, where something is served. Where to begin looking follows from the replica, so that one is not soon given out again."""
    if workload.spec.serve is None:
        return tuple(parts)
    first = zlib.crc32(f"{workload.id}.{attempt}".encode()) % len(PORTS)
    found: list[Part] = []
    for part in parts:
        taken = {each.port for held in world.on_node.get(part.node_id, {}).values() for each in held.parts if each.node_id == part.node_id}
        port = next(PORTS[(first + n) % len(PORTS)] for n in range(len(PORTS)) if PORTS[(first + n) % len(PORTS)] not in taken)
        found.append(msgspec.structs.replace(part, port=port, host=world.nodes[part.node_id].address))
    return tuple(found)


def _volumes(world: World, allocation: Allocation, workload: Workload, now_ms: int) -> list[Volume]:
    """The volumes that this attempt is the first to mount, which from now on lie where it runs, and the caches that it uses there."""
    project, found = workload.project_id, dict[VolumeId, Volume]()
    for mount in workload.spec.volumes:
        for node in [part.node_id for part in allocation.parts] if mount.cache else [allocation.parts[0].node_id]:
            key = mounted_id(workload, mount, node)
            delete_s = CACHE_S if mount.cache else workload.spec.delete_s
            new = Volume(id=key, project_id=project, name=mount.volume, node_id=node, created_ms=now_ms, cache=mount.cache, delete_s=delete_s)
            known = world.volumes.get(key, new)
            decides = mount.cache or workload.spec.type == WORKSPACE
            found[key] = msgspec.structs.replace(known, used_ms=now_ms, delete_s=delete_s if decides else known.delete_s)
    return [row for key, row in found.items() if row.delete_s or key not in world.volumes or world.volumes[key].delete_s]
