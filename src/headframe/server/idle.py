"""Idle machines are checked again now and then, where the operator wants it, and the check gives way as soon as work could use its cards. Pure."""

from collections.abc import Iterator

import msgspec

from headframe.model.command import Qualify
from headframe.model.event import Draft
from headframe.model.fleet import Node
from headframe.model.health import Depth
from headframe.model.ids import KeyId, NodeId, WorkloadId
from headframe.model.states import AllocationState, GpuState, NodeState, Reason
from headframe.model.units import MILLI, MS_PER_HOUR
from headframe.model.work import CHECK, Allocation, Workload
from headframe.model.world import World
from headframe.placement.fit import Room, refuse, room_now
from headframe.reconcile.jobs import stop
from headframe.server.qualify import GIVES_WAY, HOUSE, qualify

AGAIN_MS = 24 * MS_PER_HOUR
"""A machine is checked so at most once a day (ours; CoreWeave checks idle nodes by the hour)."""
AT_ONCE_SHARE = 10
"""Of so many machines one at a time: cards under test draw full power."""
QUEUE_LOOKED_AT = 100


def idle_checks(world: World, now_ms: int) -> Iterator[Draft]:
    """Start checks of machines that stand idle, the one checked longest ago first; none while anything waits."""
    sites = {site.id for site in world.sites.values() if site.check_idle}
    if world.queued or not sites:
        return
    most = max(1, sum(node.site_id in sites for node in world.nodes.values()) // AT_ONCE_SHARE) - len(running(world))
    due = sorted((_checked_ms(world, node), node.id) for node in world.nodes.values() if node.site_id in sites and _idle(world, node))
    for at_ms, node_id in due[: max(0, most)]:
        if now_ms - at_ms >= AGAIN_MS:
            yield from _started(world, node_id, now_ms)


def _started(world: World, node_id: NodeId, now_ms: int) -> Iterator[Draft]:
    command = Qualify(node_id=node_id, depth=Depth.IDLE, id=WorkloadId(f"wl-idle-{node_id}-{now_ms}"), by=KeyId("Headframe"))
    yield from qualify(world, command, now_ms)


def _idle(world: World, node: Node) -> bool:
    """A machine of which all cards in service are free and were checked once: new and suspect ones are not for this check."""
    cards = [gpu for gpu in world.node_gpus[node.id].values() if gpu.state is not GpuState.RETIRED]
    well = bool(cards) and all(gpu.state is GpuState.READY and gpu.graded for gpu in cards)
    return well and node.state is NodeState.READY and not world.on_node.get(node.id)


def _checked_ms(world: World, node: Node) -> int:
    return min((gpu.graded.at_ms for gpu in world.node_gpus[node.id].values() if gpu.graded), default=0)


def running(world: World) -> list[Allocation]:
    """The checks that give way, in id order."""
    if not world.gpu_use_milli.get(HOUSE):
        return []  # the usual case, for which nothing is gone through
    checks = (held for held in world.held.values() if world.workloads[held.workload_id].spec.type == CHECK)
    return sorted((held for held in checks if world.workloads[held.workload_id].spec.priority == GIVES_WAY), key=lambda held: held.id)


def give_way(world: World, now_ms: int) -> Iterator[Draft]:
    """Stop those checks whose cards something in the queue could use: to be asked after the plan, of what it left waiting."""
    checks = running(world) if world.queued else []
    if not checks:
        return
    waiting = [each for each in world.queued.values() if each.not_before_ms <= now_ms][:QUEUE_LOOKED_AT]
    for check in checks:
        if check.state is not AllocationState.STOPPING and any(_fits(world, check, each) for each in waiting):
            yield stop(world, check, Reason.PREEMPTED, now_ms)


def _fits(world: World, check: Allocation, workload: Workload) -> bool:
    """Whether work would fit on the check's machine, or one rank of a gang would, were the check not there."""
    part = check.parts[0]
    node = world.nodes[part.node_id]
    return refuse(workload.spec, _without(room_now(world, node), check)) is None


def _without(room: Room, check: Allocation) -> Room:
    part = check.parts[0]
    cards = {share.gpu_id: MILLI for share in part.shares}
    return msgspec.structs.replace(
        room, gpu_milli={**room.gpu_milli, **cards}, whole=room.whole + len(cards), cpu_milli=room.cpu_milli + part.cpu_milli,
        memory_mib=room.memory_mib + part.memory_mib,
    )  # fmt: skip
