"""A person takes machines and cards out of service, and puts them back: commands to drafts. Pure.

Every move is one of the state tables' and says who made it and why. Nothing leaves by being forgotten: what is out of service
stays out, over restarts and lost links, until a person puts it back.
"""

from collections.abc import Iterator

import msgspec

from headframe.model.command import MoveGpu, MoveNode
from headframe.model.errors import Conflicting
from headframe.model.event import Draft, Kind
from headframe.model.fleet import Node
from headframe.model.states import GPU_MOVES, NODE_MOVES, GpuState, NodeState, Reason, Service
from headframe.model.units import counted
from headframe.model.world import World
from headframe.reconcile.nodes import vacate

_OUT = frozenset({NodeState.MAINTENANCE, NodeState.QUARANTINED})


def serve(world: World, command: MoveNode | MoveGpu, now_ms: int) -> Iterator[Draft]:
    """What `command` does to `world`."""
    match command:
        case MoveGpu():
            yield from _gpu(world, command, now_ms)
        case MoveNode(to=Service.DRAIN):
            yield from _drain(world, command)
        case MoveNode(to=Service.RESUME):
            yield from _resume(world, command)
        case MoveNode():
            yield _retire(world, command, now_ms)


def _drain(world: World, command: MoveNode) -> Iterator[Draft]:
    node = world.nodes[command.node_id]
    if node.state in _OUT:
        return  # it is out of service already
    if node.state is not NodeState.DRAINING:
        _may(node, NodeState.DRAINING)
    after = msgspec.structs.replace(node, state=NodeState.DRAINING, why=command.why, drain_ms=command.until_ms)
    if after != node:
        there = len(world.on_node.get(node.id, {}))
        ends = "may finish" if not command.until_ms else "is stopped at its deadline"
        yield _said(
            world, after, f"draining, {counted(there, 'allocation')} there: what runs {ends}" if there else "draining, nothing runs there", command
        )


def _resume(world: World, command: MoveNode) -> Iterator[Draft]:
    node = world.nodes[command.node_id]
    if node.state is NodeState.READY:
        return
    if node.state is NodeState.UNKNOWN:
        raise Conflicting(f"{node.name} has not been heard of", "it is ready by itself once its link is back")
    doors = (NodeState.QUALIFYING, NodeState.READY) if node.state in _OUT else (NodeState.READY,)
    for door in doors:
        _may(node, door)
        node = msgspec.structs.replace(node, state=door, why="", drain_ms=0)
        yield _said(world, node, str(door), command)


def _retire(world: World, command: MoveNode, now_ms: int) -> Draft:
    node = world.nodes[command.node_id]
    held = len(world.on_node.get(node.id, {}))
    if held:
        raise Conflicting(f"{node.name} still holds {counted(held, 'allocation')}", f"drain it first: `headframe node drain {node.name}`")
    if node.state is NodeState.READY:
        raise Conflicting(f"{node.name} is in service", f"drain it first: `headframe node drain {node.name}`")
    _may(node, NodeState.RETIRED)
    made = _said(world, msgspec.structs.replace(node, state=NodeState.RETIRED, why=command.why, drain_ms=0), "retired", command)
    keys = (msgspec.structs.replace(key, revoked_ms=now_ms) for key in world.keys.values() if key.node_id == node.id and not key.revoked_ms)
    return msgspec.structs.replace(made, rows=(*made.rows, *keys))


def _may(node: Node, to: NodeState) -> None:
    if to not in NODE_MOVES[node.state]:
        legal = ", ".join(sorted(NODE_MOVES[node.state]))
        raise Conflicting(f"{node.name} is {node.state}, which can't become {to}", f"it can become {legal}" if legal else f"{node.state} is final")


def _said(world: World, node: Node, what: str, command: MoveNode) -> Draft:
    return Draft(kind=Kind.NODE_CHANGED, subject=node.id, text=f"{node.name}: {what}{_because(world, command)}", rows=(node,))


def _because(world: World, command: MoveNode | MoveGpu) -> str:
    """Who, and why if they said so."""
    return f" (by {world.person(command.by)}{f': {command.why}' if command.why else ''})"


def _gpu(world: World, command: MoveGpu, now_ms: int) -> Iterator[Draft]:
    gpu = world.gpus[command.gpu_id]
    doors = (GpuState.TESTING, GpuState.READY) if command.enable else (GpuState.SUSPECT,)
    why = "" if command.enable else command.why or "disabled"
    for door in doors if gpu.state is not doors[-1] else ():
        if door not in GPU_MOVES[gpu.state]:
            raise Conflicting(f"{gpu.id} is {gpu.state}, which can't become {door}")
        gpu = msgspec.structs.replace(gpu, state=door, why=why, concern="", concern_rule="",
                                   ready_ms=now_ms if door is GpuState.READY else gpu.ready_ms)  # fmt: skip
        yield Draft(kind=Kind.GPU_CHANGED, subject=gpu.id, text=f"{world.named(gpu)}: {door}{_because(world, command)}", rows=(gpu,))
    if command.evict and not command.enable:
        yield from vacate(world, world.holders(gpu), Reason.PREEMPTED, now_ms)
