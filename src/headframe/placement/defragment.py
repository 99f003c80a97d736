"""Moving work together, so that what waits for a whole machine need not: a proposal with its gain and its cost, never an act.

Only what keeps checkpoints is moved, on one machine at a time, and only where each of it has another place now. What is lost
and gained is reckoned as in `preempt.py`.
"""

from collections.abc import Iterator, Sequence

import msgspec

from headframe.model.ids import AllocationId, NodeId, WorkloadId
from headframe.model.states import AllocationState
from headframe.model.units import MS_PER_HOUR
from headframe.model.work import Allocation, Part, Workload
from headframe.model.world import World
from headframe.placement.fleet import Fleet, cheapest
from headframe.placement.kernels import NEVER
from headframe.placement.order import Order
from headframe.placement.preempt import GAIN_OVER_LOSS, TRIES, WORTH, gain, lost_milli_ms, may_go, victims

LOOKED_AT = 8
"""How many that wait are looked at, first in the queue first."""


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """An allocation that would stop here and start again there."""

    allocation_id: AllocationId
    to: tuple[NodeId, ...]
    lost_milli_h: float


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """With these moves `for_id` fits on the node: GPU-hours (in thousandths) gained for it, and lost by the moves."""

    for_id: WorkloadId
    node_id: NodeId
    moves: tuple[Move, ...]
    gain_milli_h: float
    lost_milli_h: float


def defragment(world: World, now_ms: int) -> Proposal | None:
    """The first that waits and would fit if others moved, with the moves that lose least; None where nothing is worth it."""
    fleet = Fleet.of(world)
    fleet.sync()
    movable = frozenset(_movable(fleet, now_ms))
    waiting = (workload for workload in Order(world, now_ms) if workload.not_before_ms <= now_ms and workload.spec.nodes == 1) if movable else ()
    for _, workload in zip(range(LOOKED_AT), waiting, strict=False):
        if workload.spec.homed or not workload.spec.resources.gpu.milli or (fleet.costs(workload.spec) < NEVER).any():
            continue
        losses = fleet.losses(workload.spec, now_ms, movable)
        for rank in cheapest(losses, min(TRIES, int((losses < NEVER).sum()))):
            found = _emptied(fleet, workload, rank, movable, now_ms)
            if found is not None:
                return found
    return None


def _movable(fleet: Fleet, now_ms: int) -> Iterator[AllocationId]:
    """Running work of one machine that keeps checkpoints and has run long enough to be interrupted."""
    world = fleet.world
    for key, allocation in world.held.items():
        workload = world.workloads.get(allocation.workload_id)
        if workload is None or not workload.spec.checkpoint or workload.spec.homed or len(allocation.parts) > 1:
            continue
        if may_go(fleet, allocation, now_ms, (key,)) and allocation.state is AllocationState.RUNNING:
            yield key


def _emptied(fleet: Fleet, workload: Workload, rank: int, movable: frozenset[AllocationId], now_ms: int) -> Proposal | None:
    node_id = fleet.ids[rank]
    there = victims(fleet, workload.spec, node_id, (), movable, now_ms)
    if not there or not all(allocation.id in movable for allocation in there):
        return None
    lost = {a.id: lost_milli_ms(a, fleet.world.workloads[a.workload_id], now_ms) for a in there}
    if gain(workload.spec) < GAIN_OVER_LOSS * sum(WORTH[a.tier] * lost[a.id] for a in there):
        return None
    elsewhere = _elsewhere(fleet, rank, there)
    if elsewhere is None:
        return None
    moves = tuple(
        Move(allocation_id=a.id, to=tuple(part.node_id for part in parts), lost_milli_h=lost[a.id] / MS_PER_HOUR)
        for a, parts in zip(there, elsewhere, strict=True)
    )
    return Proposal(for_id=workload.id, node_id=node_id, moves=moves, lost_milli_h=sum(lost.values()) / MS_PER_HOUR,
                    gain_milli_h=gain(workload.spec) / WORTH[workload.spec.tier] / MS_PER_HOUR)  # fmt: skip


def _elsewhere(fleet: Fleet, rank: int, there: Sequence[Allocation]) -> list[tuple[Part, ...]] | None:
    """Another place for each, or None; the fleet is left as it was."""
    fleet.hold(rank, 0)
    placed: list[tuple[Part, ...]] = []
    for allocation in there:
        parts = fleet.place(fleet.world.workloads[allocation.workload_id].spec)
        if not parts:
            break
        placed.append(parts)
    for parts in placed:
        fleet.take_back(parts)
    fleet.release(rank)
    return placed if len(placed) == len(there) else None
