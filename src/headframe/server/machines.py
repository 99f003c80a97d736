"""Engines that an operator adds, and the machines that they bring: enrolled by themselves, brought up to date by themselves. Pure."""

from collections.abc import Iterator

import msgspec

from headframe.model.command import AddEngine, Enrol, RemoveEngine
from headframe.model.errors import Conflicting, NotFound
from headframe.model.event import Draft, Kind
from headframe.model.fleet import SLURM, Machine, Node, Rack
from headframe.model.ids import NodeId, RackId
from headframe.model.states import GpuState, NodeState
from headframe.model.units import counted
from headframe.model.work import Facts
from headframe.model.world import World
from headframe.server.enrol import enrol


def engines(world: World, command: AddEngine | RemoveEngine) -> Iterator[Draft]:
    """What `command` does to `world`."""
    if isinstance(command, AddEngine):
        yield from _added(world, command)
    else:
        yield _removed(world, command)


def _added(world: World, command: AddEngine) -> Iterator[Draft]:
    setup = command.setup
    known = world.engines.get(setup.id)
    other = next((row for row in world.engines.values() if row.id != setup.id), None)
    if other is not None:
        raise Conflicting(
            f"{other.id} is in use already, and a server runs work on one Slurm cluster",
            f"`headframe engine rm {other.id}` first, or set that one anew",
        )
    if (
        known is not None
        and known.shared != setup.shared
        and any(world.nodes[part.node_id].engine == SLURM for held in world.held.values() for part in held.parts)
    ):
        raise Conflicting("work runs there whose directories are on the shared path in use now", "wait for it to end, then change `--shared`")
    if known is None or msgspec.structs.replace(known, created_ms=setup.created_ms) != setup:
        text = f"{setup.id}: Slurm at {setup.url}, shared path {setup.shared} (by {world.person(command.by)})"
        yield Draft(kind=Kind.ENGINE_ADDED, subject=setup.id, text=text, rows=(setup,))


def _removed(world: World, command: RemoveEngine) -> Draft:
    known = world.engines.get(command.engine_id)
    if known is None:
        raise NotFound(f"no engine {command.engine_id}", "list them: `headframe engine ls`")
    busy = sum(any(world.nodes[part.node_id].engine == SLURM for part in held.parts) for held in world.held.values())
    if busy:
        raise Conflicting(f"{counted(busy, 'allocation')} there", "wait for their end, or stop them, first")
    gone = msgspec.structs.replace(known, removed=True)
    text = f"{known.id}: removed (by {world.person(command.by)}); its machines are unknown from now on"
    return Draft(kind=Kind.ENGINE_REMOVED, subject=known.id, text=text, rows=(gone,))


def machines(world: World, facts: Facts, now_ms: int) -> Iterator[Draft]:
    """Each draft is to be applied to the world before the next is asked for."""
    if not facts.machines:
        return
    known = _Known(world)
    for each in facts.machines:
        there = world.nodes.get(each.node.id)
        if there is None or there.state is not NodeState.RETIRED:
            yield from _machine(world, each, known, now_ms)


class _Known:
    """The fleet by what machines are told apart by, looked at once for all that are told: they are thousands."""

    def __init__(self, world: World) -> None:
        self.names: dict[str, set[NodeId]] = {}
        for node in world.nodes.values():
            self.take(node)
        self.racks: dict[str, Rack] = {}
        for rack in sorted(world.racks.values(), key=lambda rack: (rack.created_ms, rack.id)):
            self.add(rack)

    def take(self, node: Node) -> None:
        """One more that has its name."""
        self.names.setdefault(node.name, set()).add(node.id)

    def add(self, rack: Rack) -> None:
        """One more, found by its name and its id; the first there is where no name is told."""
        for name in ("", rack.name, rack.id):
            self.racks.setdefault(name, rack)


def _machine(world: World, each: Machine, known: _Known, now_ms: int) -> Iterator[Draft]:
    rack = known.racks.get(each.rack)
    if rack is None:
        rack = Rack(id=RackId(f"rack.{each.rack}"), site_id=next(iter(world.sites)), name=each.rack, created_ms=now_ms)
        yield Draft(kind=Kind.RACK_CHANGED, subject=rack.id, text=f"{rack.name}: new", rows=(rack,))
        known.add(rack)
    named = known.names.get(each.node.name, set()) - {each.node.id}
    name = f"{each.node.name}-{each.node.id[-4:]}" if named else each.node.name
    node = msgspec.structs.replace(each.node, name=name, site_id=rack.site_id, rack_id=rack.id)
    try:
        yield from enrol(world, Enrol(node=node, gpus=each.gpus), now_ms)
    except Conflicting:
        return
    known.take(world.nodes[node.id])
    there = {gpu.id for gpu in each.gpus}
    for gpu in list(world.node_gpus.get(node.id, {}).values()):
        if gpu.id not in there and gpu.state is GpuState.READY:
            row = msgspec.structs.replace(gpu, state=GpuState.SUSPECT, why="Slurm does not list it any more")
            yield Draft(kind=Kind.GPU_CHANGED, subject=gpu.id, text=f"{world.named(gpu)}: suspect, {row.why}", rows=(row,))
        elif gpu.id in there and gpu.state is GpuState.SUSPECT and gpu.why == "Slurm does not list it any more":
            for state in (GpuState.TESTING, GpuState.READY):
                gpu = msgspec.structs.replace(gpu, state=state, why="")  # noqa: PLW2901 - through the doors that its table has
                yield Draft(kind=Kind.GPU_CHANGED, subject=gpu.id, text=f"{world.named(gpu)}: {state}, listed again", rows=(gpu,))
