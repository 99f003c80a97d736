"""What dispatch decided, to drafts: postures, fillers begun and ended, what an emergency sheds. Pure.

A filler is an allocation like any other, of the lowest tier: one workload for each card and start, its name the filler and the card, so that a card has one at most.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from headframe.dispatch.plan import Schedule, whole
from headframe.dispatch.power import CAPPED_LEAST
from headframe.dispatch.settle import DWELL_MS, SLEEP, STEP_MS, Choice, Room, starts_at_once
from headframe.dispatch.shed import Rung, shed
from headframe.dispatch.survey import NO_LIMIT_W, Held, Problem, Survey, asic_groups, filler_of, loads, mines, posture_id, shed_always
from headframe.model.event import Draft, Kind
from headframe.model.fleet import Gpu, Grade, Rack
from headframe.model.ids import WORKLOAD_ENTROPY_BYTES, AllocationId, KeyId, NodeId, RackId, allocation_id, workload_id
from headframe.model.people import Project
from headframe.model.power import Asic, AsicState, Filler, LoadClass, Posture, filler_id
from headframe.model.states import OWN_FAULTS, AllocationState, GpuState, NodeState, Reason, WorkloadState
from headframe.model.units import MILLI, MS_PER_DAY, counted, duration
from headframe.model.work import FILLER, Allocation, Facts, GpuRequest, Part, Resources, Retry, Share, Spec, Tier, Workload
from headframe.model.world import World
from headframe.placement.power import rack_w
from headframe.reconcile.jobs import stop
from headframe.server.power import DAYS_KEPT
from headframe.server.qualify import HOUSE

CAP_STEP = 0.05
"""A cap that changes by less is left as it is."""
CLASSES = (LoadClass.ONLINE, LoadClass.BATCH, LoadClass.SPOT, LoadClass.FILLER)
PAUSE_FIRST_MS, PAUSE_MAX_MS, WELL_MS = 10_000, 600_000, 600_000
STATS_PORT = 4100
"""Where a filler's own figures are read, plus the card's number, unless its file names a port."""


def settled(world: World, survey: Survey, problem: Problem, schedule: Schedule, picked: Mapping[str, Choice]) -> Iterator[Draft]:
    """Each model's posture as the schedule has it for the first interval, and which mining machines run."""
    for model, cards in survey.cards.items():
        choice = picked.get(model) or Choice(filler=SLEEP, usd_h=0.0, why="")
        after = _posture(world, survey, model, len(cards), choice, problem, schedule)
        before = world.postures.get(after.id)
        if before is None and after.filler == SLEEP and not after.caps:
            continue  # nothing to say of cards that nothing is known to do with
        if before is None or (before.filler, before.most, before.caps) != (after.filler, after.most, after.caps):
            what = f"{after.filler} on up to {counted(after.most, 'idle card')}" if after.filler else "idle cards sleep"
            caps = "".join(f", {name} at {share:.0%} of its draw" for name, share in after.caps.items())
            yield Draft(kind=Kind.POSTURE_CHANGED, subject=after.id, text=f"{model}: {what}{caps}; {after.why}", rows=(after,))
    yield from _mining_machines(world, survey, schedule)


def _posture(world: World, survey: Survey, model: str, cards: int, choice: Choice, problem: Problem, schedule: Schedule) -> Posture:
    key, now_ms = posture_id(survey.site, model), survey.now_ms
    before = world.postures.get(key)
    mine = {pool for pool, name in problem.models.items() if name == model}
    used = {kind: [use for use in schedule.uses if use.pool in mine and use.work.startswith(f"{kind}/")] for kind in LoadClass}
    filling = whole(sum(use.cards[0] for use in used[LoadClass.FILLER]))
    busy = sum(use.cards[0] for kind in LoadClass if kind is not LoadClass.FILLER for use in used[kind])
    most = 0 if choice.filler == SLEEP else cards if filling >= int(cards - busy) else filling
    caps: dict[str, float] = {}
    for kind in CLASSES:
        count = sum(use.cards[0] for use in used[kind])
        share = round(sum(use.cards[0] * use.x for use in used[kind]) / count, 2) if count > 0.5 else 1.0
        old = before.caps.get(kind, 1.0) if before else 1.0
        share = old if abs(share - old) < CAP_STEP and share < 1 else share
        if share < 1:
            caps[str(kind)] = share
    same = before is not None and before.filler == choice.filler
    limited = "" if most in {0, cards} else f"; {cards - int(busy) - most} more find no power"
    return Posture(id=key, site_id=survey.site.id, model=model, filler=choice.filler, most=most, caps=caps, since_ms=before.since_ms if same and before else now_ms,
                   why=choice.why + limited)  # fmt: skip


def _mining_machines(world: World, survey: Survey, schedule: Schedule) -> Iterator[Draft]:
    """Of each group as many run as the schedule says; within a dwell none is switched."""
    halted = Rung.MINING in shed_always(world, survey.site, survey.now_ms)
    for name, there in asic_groups(world, survey.site).items():
        if name not in schedule.asics:
            continue
        run = whole(schedule.asics[name][0])
        for number, asic in enumerate(there):
            wanted = AsicState.MINING if number < run and not halted else AsicState.STOPPED
            if asic.can_stop and wanted is not asic.wanted and survey.now_ms - asic.changed_ms >= DWELL_MS:
                off = "a signal sheds mining" if halted else "its power costs more than it earns, or finds no room"
                yield _switched(asic, wanted, survey.now_ms, "mining pays" if wanted is AsicState.MINING else off)


def _switched(asic: Asic, wanted: AsicState, now_ms: int, why: str) -> Draft:
    row = msgspec.structs.replace(asic, wanted=wanted, changed_ms=now_ms, why=why)
    return Draft(kind=Kind.ASIC_CHANGED, subject=asic.id, text=f"{asic.name}: to be {wanted}, {why}", rows=(row,))


def over(world: World, now_ms: int) -> Iterator[Draft]:
    """Signals whose time has passed, and days of prices that are of no more use: the store keeps them."""
    old = tuple(
        msgspec.structs.replace(day, closed=True)
        for _, day in sorted(world.market_days.items())
        if now_ms >= day.start_ms + (DAYS_KEPT + 1) * MS_PER_DAY
    )
    if old:
        yield Draft(kind=Kind.MARKET_TOLD, subject=old[0].market, text=f"prices of {counted(len(old), 'day')} are over", rows=old)
    for key in sorted(world.signals):
        row = world.signals[key]
        if now_ms >= row.end_ms:
            done = msgspec.structs.replace(row, closed=True)
            yield Draft(kind=Kind.SIGNAL_OVER, subject=row.id, text=f"{row.source}: {row.event} is over", rows=(done,))


def failed(world: World, facts: Facts, now_ms: int) -> Iterator[Draft]:
    """Fillers that ended by their own fault: each such end in a row doubles the pause before the next start. To be decided before the end is."""
    for seen in facts.observations:
        held = world.held.get(seen.allocation_id)
        if held is None or held.tier is not Tier.FILLER or seen.state is not AllocationState.ENDED or seen.reason not in OWN_FAULTS:
            continue
        filler = filler_of(world, world.workloads.get(held.workload_id))
        if filler is None or now_ms < filler.not_before_ms:
            continue  # one end of many that happened together
        lasted_ms = seen.ended_ms - (held.started_ms or held.granted_ms)
        failures = 1 if lasted_ms >= WELL_MS else filler.failures + 1
        pause_ms = min(PAUSE_MAX_MS, PAUSE_FIRST_MS * 2 ** (failures - 1))
        why = f"it ended, {seen.reason}" + (f" with {seen.exit_code}" if seen.exit_code else "") + (f": {seen.detail}" if seen.detail else "")
        row = msgspec.structs.replace(filler, failures=failures, not_before_ms=now_ms + pause_ms, why=why)
        yield Draft(
            kind=Kind.FILLER_CHANGED, subject=row.id, text=f"{row.name}: {why}; the next start in {duration(pause_ms)} at the earliest", rows=(row,)
        )


# The ladder


def emergency(world: World, survey: Survey) -> Iterator[Draft]:
    """What has to go now, so that the meter comes below its limit: by the ladder, without a solver. Asking again changes nothing, as what is going counts as gone."""
    always, meter = shed_always(world, survey.site, survey.now_ms), survey.meter
    need = meter.total_w - meter.going_w - survey.limit_w
    if need <= 0 and not always:
        return
    there = loads(world, survey)
    done = shed(there, need, always)
    if not done.which:
        return
    going = [there[n] for n in done.which]
    counts = {rung: sum(load.rung is rung for load in going) for rung in Rung}
    said = ", ".join(f"{count} of {rung.name.lower()}" for rung, count in counts.items() if count)
    capped = {load.id.removeprefix("cap/") for load in going if load.rung is Rung.CAPS}
    changed = list(_capped(world, survey, capped))
    stops = [load.id for load in going if load.rung is not Rung.CAPS]
    if not stops and not changed:
        return
    missing = f"; {done.missing_w / 1000:.1f} kW are still missing, and only what is firmly sold is left" if done.missing_w > 0 else ""
    yield Draft(kind=Kind.SHED, subject=survey.site.id, rows=tuple(changed),
                text=f"{survey.site.name}: {done.watts / 1000:.1f} kW go, {said}; it costs US$ {done.usd_h:.2f} an hour{missing}")  # fmt: skip
    for key in stops:
        if key in world.asics:
            yield _switched(world.asics[key], AsicState.STOPPED, survey.now_ms, "shed")
        elif key in world.allocations:
            yield stop(world, world.allocations[AllocationId(key)], Reason.PREEMPTED, survey.now_ms)


def _capped(world: World, survey: Survey, allocations: set[str]) -> Iterator[Posture]:
    """The postures with the lowest caps for the classes that the ladder caps."""
    wanted: dict[str, dict[str, float]] = {}
    for each in survey.held:
        if each.allocation.id in allocations:
            wanted.setdefault(each.gpu.model, {})[str(each.kind)] = CAPPED_LEAST[each.kind]
    for model in sorted(wanted):
        key = posture_id(survey.site, model)
        before = world.postures.get(key) or Posture(id=key, site_id=survey.site.id, model=model)
        caps = {**before.caps, **{name: min(share, before.caps.get(name, 1.0)) for name, share in wanted[model].items()}}
        if caps != before.caps:
            yield msgspec.structs.replace(before, caps=caps, why="shed: power is short")


# Fillers


def filled(world: World, survey: Survey, resting: Mapping[NodeId, int]) -> Iterator[Draft]:
    """End fillers that are not wanted, begin those that are: a few at a time, below every limit, and not on machines whose cards are being freed for others."""
    running: dict[str, list[Held]] = {}
    for each in survey.held:
        if each.kind is LoadClass.FILLER and each.allocation.state is not AllocationState.STOPPING:
            running.setdefault(each.gpu.model, []).append(each)
    for model in sorted(running):
        yield from _ended(world, survey, model, running[model])
    if Rung.MINING in shed_always(world, survey.site, survey.now_ms):
        return
    left = _Left(world, survey)
    for model in survey.cards:
        posture = world.postures.get(posture_id(survey.site, model))
        filler = _wanted(world, posture)
        if posture is not None and filler is not None and survey.now_ms >= filler.not_before_ms:
            yield from _begun(world, survey, model, filler, posture.most - len(running.get(model, ())), left, resting)


def _ended(world: World, survey: Survey, model: str, running: Sequence[Held]) -> Iterator[Draft]:
    posture = world.postures.get(posture_id(survey.site, model))
    filler = _wanted(world, posture)
    good = [
        each
        for each in running
        if filler is not None and _stays(world, each) and world.workloads[each.allocation.workload_id].spec == _spec(filler, each.gpu)
    ]
    kept = {each.allocation.id for each in sorted(good, key=lambda each: each.allocation.id)[: posture.most if posture else 0]}
    for each in running:
        if each.allocation.id not in kept:
            yield stop(world, world.allocations[each.allocation.id], Reason.CANCELLED, survey.now_ms)


def _stays(world: World, each: Held) -> bool:
    """Whether a card may go on being filled: one that is out of service, or on a machine that drains, would never come free."""
    return each.gpu.state is GpuState.READY and world.nodes[each.gpu.node_id].state is NodeState.READY


def _wanted(world: World, posture: Posture | None) -> Filler | None:
    """The filler that a posture names, where it is still there and switched on."""
    filler = world.fillers.get(filler_id(posture.filler)) if posture else None
    return filler if filler is not None and filler.enabled else None


class _Left:
    """What limits leave for starts: of the site, of each rack, and of this step."""

    def __init__(self, world: World, survey: Survey) -> None:
        self._world, self._pue = world, survey.site.pue
        lately = sum(each.kind is LoadClass.FILLER and survey.now_ms - each.allocation.granted_ms < STEP_MS for each in survey.held)
        self.count = max(0, starts_at_once(sum(len(cards) for cards in survey.cards.values())) - lately)
        self._site = Room(survey.limit_w, survey.meter.total_w)
        self._racks: dict[RackId, Room] = {}

    def take(self, rack: Rack | None, watts: float) -> bool:
        """Whether one more start of so many watts fits; then it is counted."""
        there = self._room(rack)
        if not self.count or not self._site.fits(watts * self._pue) or not there.fits(watts):
            return False
        self.count -= 1
        self._site.take(watts * self._pue)
        there.take(watts)
        return True

    def _room(self, rack: Rack | None) -> Room:
        if rack is None or not rack.limit_w:
            return Room(NO_LIMIT_W, 0.0)
        if rack.id not in self._racks:
            nodes = {node.id: node for node in self._world.nodes.values() if node.rack_id == rack.id}
            self._racks[rack.id] = Room(rack.limit_w, rack_w(self._world, nodes))
        return self._racks[rack.id]


def _begun(world: World, survey: Survey, model: str, filler: Filler, most: int, left: _Left, resting: Mapping[NodeId, int]) -> Iterator[Draft]:
    does = mines(filler, model)
    for gpu in survey.cards[model]:
        if most <= 0 or not left.count:
            return
        node = world.nodes[gpu.node_id]
        free = world.free[node.id]
        able = (
            node.state is NodeState.READY
            and gpu.grade is not Grade.REJECT
            and free.gpu_milli.get(gpu.id) == MILLI
            and free.cpu_milli >= filler.cpu_milli
        )
        if not able or free.memory_mib < filler.memory_mib or resting.get(node.id, 0) > survey.now_ms or does is None:
            continue
        if not left.take(world.racks.get(node.rack_id), does.watts):
            continue
        most -= 1
        yield _start(world, gpu, filler, survey.now_ms)


def _start(world: World, gpu: Gpu, filler: Filler, now_ms: int) -> Draft:
    spec = _spec(filler, gpu)
    key = workload_id(now_ms, hashlib.sha256(f"{spec.name} {now_ms}".encode()).digest()[:WORKLOAD_ENTROPY_BYTES])
    workload = Workload(id=key, project_id=HOUSE, key_id=KeyId("Headframe"), name=spec.name, spec=spec, state=WorkloadState.STARTING, attempt=1,
                        submitted_ms=now_ms, queued_ms=now_ms)  # fmt: skip
    part = Part(rank=0, node_id=gpu.node_id, shares=(Share(gpu_id=gpu.id, index=gpu.index, model=gpu.model, milli=MILLI),), cpu_milli=filler.cpu_milli,
                memory_mib=filler.memory_mib, disk_mib=0)  # fmt: skip
    allocation = Allocation(id=allocation_id(key, 1), workload_id=key, project_id=HOUSE, attempt=1, tier=Tier.FILLER, parts=(part,), state=AllocationState.GRANTED,
                            granted_ms=now_ms)  # fmt: skip
    house = () if HOUSE in world.projects else (Project(id=HOUSE, name="house", created_ms=now_ms),)
    return Draft(
        kind=Kind.WORKLOAD_STARTING, subject=key, project_id=HOUSE, text=f"{world.named(gpu)}: {filler.name}", rows=(*house, workload, allocation)
    )


def _spec(filler: Filler, gpu: Gpu) -> Spec:
    """What runs on a card. A program that is named has to be the one whose hash was allowed, each time it starts."""
    port = filler.port or STATS_PORT
    env = {**filler.env, "HEADFRAME_STATS_PORT": str(port + gpu.index), "HEADFRAME_FILLER": filler.name}
    allowed = f"echo '{filler.sha256}  {filler.program}' | sha256sum --check --status || {{ echo 'not started: {filler.program} is not the program that was allowed' >&2; exit 78; }}\n"
    resources = Resources(gpu=GpuRequest(milli=MILLI, model=gpu.model), cpu_milli=filler.cpu_milli, memory_mib=filler.memory_mib, disk_mib=0)
    return Spec(type=FILLER, name=f"{filler.id}@{gpu.id}", resources=resources, run=(allowed if filler.program else "") + filler.run, image=filler.image, env=env, tier=Tier.FILLER,
                retry=Retry(on=(), attempts=1))  # fmt: skip
