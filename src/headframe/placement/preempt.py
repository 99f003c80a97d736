"""Whose work gives way: the least work lost, and only where clearly more is gained.

Fillers give way to everything at once, and lose nothing but a restart. Spot work gives way to reserved and on-demand work, whole gangs at a time; and what a project has borrowed beyond its own
guarantee, to one that is below its. It has run for MIN_RUN_MS before, and work that gave way within the last CALM_MS does not
do so again. What is lost is the time since the start (at most CHECKPOINT_MS where there is a checkpoint) and a restart, on all
the cards of the victim; what is gained is the time that the other would else wait, on all of its cards, at most HORIZON_MS.
What was borrowed is given back whatever is gained, but the least loss first.
"""

from collections.abc import Container, Iterable, Iterator, Sequence

import msgspec

from headframe.model.ids import AllocationId, NodeId, ProjectId, WorkloadId
from headframe.model.states import AllocationState, Reason
from headframe.model.units import MS_PER_HOUR
from headframe.model.work import Allocation, Spec, Tier, Workload
from headframe.model.world import World
from headframe.placement.fit import Room, changed, refuse
from headframe.placement.fleet import Fleet, cheapest
from headframe.placement.kernels import NEVER

MIN_RUN_MS = 600_000
CALM_MS = MS_PER_HOUR
CHECKPOINT_MS = 1_800_000
"""What work with a checkpoint loses at most, where nothing better is known: half an hour of it."""
RESTART_MS = 120_000
"""Stopping, placing and loading again: 25 to 250 s were measured for training jobs (Sia, SOSP 2023)."""
HORIZON_MS = 4 * MS_PER_HOUR
WORTH = {Tier.RESERVED: 100, Tier.ON_DEMAND: 100, Tier.SERVED: 100, Tier.SPOT: 50, Tier.HOUSE: 100, Tier.FILLER: 1}
"""What an hour of a card brings, tier against tier, in percent of on-demand."""
GAIN_OVER_LOSS = 1.25
TRIES = 8


class Eviction(msgspec.Struct, frozen=True, kw_only=True):
    """This allocation gives way to that workload; `lost_milli_h` of its work (thousandths of a GPU times hours) is lost."""

    allocation_id: AllocationId
    for_id: WorkloadId
    lost_milli_h: float


class Soon(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes that a workload is to get, by rank, and who gives way there (nobody, where they are being freed already)."""

    ranks: tuple[int, ...]
    evictions: tuple[Eviction, ...]


class Lending:
    """What projects with a guarantee hold beyond it: lent, and to be given back to those that are below theirs."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lent: frozenset[AllocationId] | None = None
        self._promised: dict[ProjectId, int] = {}

    def promise(self, workload: Workload) -> None:
        """Count what this plan gives a project, now or as soon as others have gone."""
        self._promised[workload.project_id] = self._promised.get(workload.project_id, 0) + workload.spec.gpu_milli

    def back_for(self, workload: Workload) -> frozenset[AllocationId]:
        """What may be taken back for this workload: nothing, unless it stays within its project's guarantee."""
        project = self._world.projects[workload.project_id]
        has = self._world.gpu_use_milli.get(project.id, 0) + self._promised.get(project.id, 0)
        if has + workload.spec.gpu_milli > project.guaranteed_gpus_milli:
            return frozenset()
        if self._lent is None:
            self._lent = frozenset(self._beyond())
        return self._lent

    def _beyond(self) -> Iterator[AllocationId]:
        """The newest of a project's firm work, as far as it goes beyond the guarantee."""
        lenders = {key: project.guaranteed_gpus_milli for key, project in self._world.projects.items() if project.guaranteed_gpus_milli}
        for allocation in sorted(self._world.held.values(), key=lambda a: (a.granted_ms, a.id)):
            if allocation.project_id in lenders and allocation.tier is not Tier.SPOT:
                lenders[allocation.project_id] -= allocation.gpu_milli
                if lenders[allocation.project_id] < 0:
                    yield allocation.id


def make_room(fleet: Fleet, workload: Workload, now_ms: int, lending: Lending) -> Soon | None:
    """Room for a workload that fits nowhere now; None where freeing it would cost more than it gains."""
    spec = workload.spec
    if not spec.resources.gpu.milli:
        return None
    lent = frozenset[AllocationId]() if spec.tier is Tier.SPOT else lending.back_for(workload)
    losses = fleet.losses(spec, now_ms, lent)
    if spec.nodes > 1:
        return _whole(fleet, workload, cheapest(fleet.racks.soonest(spec, losses), spec.nodes), now_ms, lent)
    for rank in cheapest(losses, min(TRIES, int((losses < NEVER).sum()))):
        found = _whole(fleet, workload, [rank], now_ms, lent)
        if found is not None:
            return found
    return None


def _whole(fleet: Fleet, workload: Workload, ranks: Sequence[int], now_ms: int, lent: Container[AllocationId]) -> Soon | None:
    if not ranks:
        return None
    going_too: dict[AllocationId, Allocation] = {}
    for rank in ranks:
        there = victims(fleet, workload.spec, fleet.ids[rank], going_too, lent, now_ms)
        if there is None:
            return None
        going_too |= {allocation.id: allocation for allocation in there}
    going = [allocation for allocation in going_too.values() if allocation.state is not AllocationState.STOPPING]
    lost = {allocation.id: lost_milli_ms(allocation, fleet.world.workloads[allocation.workload_id], now_ms) for allocation in going}
    given = sum(WORTH[allocation.tier] * lost[allocation.id] for allocation in going if allocation.id not in lent)
    if gain(workload.spec) < GAIN_OVER_LOSS * given:
        return None
    evictions = (Eviction(allocation_id=key, for_id=workload.id, lost_milli_h=lost[key] / MS_PER_HOUR) for key in sorted(lost))
    return Soon(ranks=tuple(ranks), evictions=tuple(evictions))


def gain(spec: Spec) -> float:
    """What placing it now is worth, in the measure of losses."""
    span_ms = min(spec.max_duration_s * 1000 or HORIZON_MS, HORIZON_MS)
    return WORTH[spec.tier] * spec.gpu_milli * span_ms


def lost_milli_ms(allocation: Allocation, workload: Workload, now_ms: int) -> int:
    """What stopping it now would lose, in thousandths of a GPU times milliseconds."""
    ran_ms = 0 if allocation.tier is Tier.FILLER else max(0, now_ms - (allocation.started_ms or now_ms))
    lost_ms = min(ran_ms, CHECKPOINT_MS) if workload.spec.checkpoint else ran_ms
    return (lost_ms + RESTART_MS) * allocation.gpu_milli


def victims(fleet: Fleet, spec: Spec, node_id: NodeId, known: Iterable[AllocationId], lent: Container[AllocationId],
             now_ms: int) -> list[Allocation] | None:  # fmt: skip
    """Who must go from one node, cheapest first, nobody that is not needed; None where that is not enough."""
    room, chosen = fleet.room(node_id), list[Allocation]()
    already = set(known)
    there = [a for a in fleet.world.on_node.get(node_id, {}).values() if a.id in already or may_go(fleet, a, now_ms, lent, spec.tier)]
    there.sort(
        key=lambda a: (
            a.id not in already,
            a.state is not AllocationState.STOPPING,
            a.tier is not Tier.FILLER,
            _price(fleet, a),
            _loss(fleet, a, now_ms),
            a.id,
        )
    )
    for allocation in there:
        if refuse(spec, room) is None:
            break
        chosen.append(allocation)
        room = without(room, allocation)
    if refuse(spec, room) is not None:
        return None
    for allocation in reversed(chosen[:-1]):  # whoever turned out not to be needed stays
        fewer = [other for other in chosen if other is not allocation]
        if refuse(spec, _without_all(fleet.room(node_id), fewer)) is None:
            chosen = fewer
    return chosen


def may_go(fleet: Fleet, allocation: Allocation, now_ms: int, lent: Container[AllocationId] = (), to: Tier = Tier.ON_DEMAND) -> bool:
    """Whether this work may give way now, to work of that tier."""
    if allocation.state is AllocationState.STOPPING or allocation.tier is Tier.FILLER:
        return True
    if to is Tier.SPOT:
        return False
    workload = fleet.world.workloads.get(allocation.workload_id)
    firm = allocation.tier is not Tier.SPOT and allocation.id not in lent
    if firm or allocation.state is not AllocationState.RUNNING or workload is None:
        return False
    calm_ms = CALM_MS if workload.reason is Reason.PREEMPTED else MIN_RUN_MS
    return now_ms - allocation.started_ms >= calm_ms


def without(room: Room, allocation: Allocation) -> Room:
    """The room once the allocation has gone."""
    for part in allocation.parts:
        if part.node_id == room.node.id:
            room = changed(room, part, 1)
    return room


def _without_all(room: Room, allocations: Iterable[Allocation]) -> Room:
    for allocation in allocations:
        room = without(room, allocation)
    return room


def _price(fleet: Fleet, allocation: Allocation) -> int:
    """What the tenant offered to pay at most: the lowest offer goes first; none is the highest."""
    return fleet.world.workloads[allocation.workload_id].spec.max_price_nano or 1 << 62


def _loss(fleet: Fleet, allocation: Allocation, now_ms: int) -> int:
    return lost_milli_ms(allocation, fleet.world.workloads[allocation.workload_id], now_ms)
