"""What reservations ask of the tick: whatever is still there when one begins has to go, and one that is over is forgotten."""

from collections.abc import Iterator

import msgspec

from headframe.model.event import Draft, Kind
from headframe.model.fleet import SLACK_MS, Reservation
from headframe.model.states import AllocationState, Reason
from headframe.model.work import Allocation, Tier
from headframe.model.world import World
from headframe.reconcile.jobs import stop


def reservations(world: World, now_ms: int) -> Iterator[Draft]:
    """Each draft is to be applied to the world before the next is asked for."""
    for key in sorted(world.reservations):
        row = world.reservations[key]
        if now_ms >= row.end_ms:
            closed = msgspec.structs.replace(row, closed=True)
            yield Draft(kind=Kind.RESERVATION_OVER, subject=key, project_id=row.project_id, text=f"{row.name}: over", rows=(closed,))
        elif row.evict and now_ms >= row.start_ms - SLACK_MS:
            for allocation in overstayers(world, row):
                yield stop(world, allocation, Reason.PREEMPTED, now_ms)


def overstayers(world: World, row: Reservation) -> list[Allocation]:
    """What runs on its nodes and is not its project's reserved work."""
    there = {a.id: a for node_id in row.node_ids for a in world.on_node.get(node_id, {}).values()}
    return [there[key] for key in sorted(there) if there[key].state is not AllocationState.STOPPING and not _belongs(there[key], row)]


def _belongs(allocation: Allocation, row: Reservation) -> bool:
    return bool(row.project_id) and allocation.project_id == row.project_id and allocation.tier is Tier.RESERVED
