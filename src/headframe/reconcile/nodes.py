"""Nodes that answer are ready, those that do not become unknown and get nothing new; drained ones end in maintenance.

A node that is not heard of may still be running its work (a partition looks like a death), so its allocations are not
ended here: they keep their GPUs until the engine, which alone can be certain, says that they have ended.
"""

from collections.abc import Iterable, Iterator

import msgspec

from headframe.model.event import Draft, Kind
from headframe.model.fleet import Down, Node
from headframe.model.states import AllocationState, NodeState, Reason
from headframe.model.units import duration
from headframe.model.work import Allocation, Facts
from headframe.model.world import World
from headframe.reconcile.jobs import stop

SILENT_LIMIT_MS = 40_000
"""A node not heard of for this long is unknown: nothing new goes there (Kubernetes uses the same 40 s)."""


ITS_OWN = "Slurm: "
"""How the reason begins for which a machine's own system, not a person of ours, gives it nothing new."""


def nodes(world: World, facts: Facts, now_ms: int) -> Iterator[Draft]:
    """Link state, from when each node was last heard of, and what its own system says of it."""
    for key in sorted(facts.down):
        node, told = world.nodes.get(key), facts.down[key]
        if node is not None and node.state is NodeState.READY:
            yield _down(node, told, now_ms)
    for key, heard_ms in facts.nodes.items():
        silent_ms, node = now_ms - heard_ms, world.nodes.get(key)
        if node is None or (node.state is NodeState.READY and silent_ms < SILENT_LIMIT_MS):
            continue  # nearly all, each time
        down = key in facts.down
        if node.state in _BACK and not down and node.why.startswith(ITS_OWN):
            yield from _back(node)
            continue
        if node.state is NodeState.RETIRED or (down and node.state is NodeState.UNKNOWN):
            continue
        if node.state is NodeState.DRAINING:
            yield from _drained(world, node, now_ms)
        elif node.state is NodeState.UNKNOWN and silent_ms < SILENT_LIMIT_MS:
            back = msgspec.structs.replace(node, state=NodeState.READY, why="", seen_ms=heard_ms)
            yield Draft(kind=Kind.NODE_CHANGED, subject=key, text=f"{node.name}: heard of again, ready", rows=(back,))
        elif node.state is NodeState.READY and silent_ms >= SILENT_LIMIT_MS:
            gone = msgspec.structs.replace(node, state=NodeState.UNKNOWN, seen_ms=heard_ms)
            text = f"{node.name}: not heard of for {duration(silent_ms)}, unknown"
            yield Draft(kind=Kind.NODE_CHANGED, subject=key, text=text, rows=(gone,))


_BACK = {NodeState.DRAINING: (NodeState.READY,), NodeState.MAINTENANCE: (NodeState.QUALIFYING, NodeState.READY)}


def _down(node: Node, told: Down, now_ms: int) -> Draft:
    """Nothing new goes there from now on: at once where its own system has lost it, else what runs there may finish."""
    state = NodeState.UNKNOWN if told.lost else NodeState.DRAINING
    row = msgspec.structs.replace(node, state=state, why=told.why, drain_ms=0, seen_ms=now_ms)
    return Draft(kind=Kind.NODE_CHANGED, subject=node.id, text=f"{node.name}: {state}, {told.why}", rows=(row,))


def _back(node: Node) -> Iterator[Draft]:
    for state in _BACK[node.state]:
        node = msgspec.structs.replace(node, state=state, why="")
        yield Draft(kind=Kind.NODE_CHANGED, subject=node.id, text=f"{node.name}: {state}, its own system gives it work again", rows=(node,))


def _drained(world: World, node: Node, now_ms: int) -> Iterator[Draft]:
    """Out of service once it is empty; what is still there at the deadline gives way, and is queued again."""
    if not world.on_node.get(node.id):
        empty = msgspec.structs.replace(node, state=NodeState.MAINTENANCE, drain_ms=0)
        yield Draft(kind=Kind.NODE_CHANGED, subject=node.id, text=f"{node.name}: empty, in maintenance", rows=(empty,))
    elif node.drain_ms and now_ms >= node.drain_ms:
        there = world.on_node[node.id]
        yield from vacate(world, [there[key] for key in sorted(there)], Reason.PREEMPTED, now_ms)


def vacate(world: World, holders: Iterable[Allocation], because: Reason, now_ms: int) -> Iterator[Draft]:
    """Tell those to stop that have not been told yet."""
    for allocation in holders:
        if allocation.state is not AllocationState.STOPPING:
            yield stop(world, allocation, because, now_ms)
