"""Engines that an operator adds, and the machines that they bring: enrolled by themselves, brought up to date by themselves. Pure."""

from collections.abc import Iterator

import msgspec

from headframe.model.command import AddEngine, Enrol, RemoveEngine
from headframe.model.errors import Conflicting, NotFound
from headframe.model.event import Draft, Kind
from headframe.model.fleet import SLURM, Machine, Rack
from headframe.model.ids import RackId
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
    for each in facts.machines:
        known = world.nodes.get(each.node.id)
        if known is None or known.state is not NodeState.RETIRED:
            yield from _machine(world, each, now_ms)


def _machine(world: World, each: Machine, now_ms: int) -> Iterator[Draft]:
    rack = _rack(world, each.rack, now_ms)
    if rack.id not in world.racks:
        yield Draft(kind=Kind.RACK_CHANGED, subject=rack.id, text=f"{rack.name}: new", rows=(rack,))
    named = any(other.name == each.node.name and other.id != each.node.id for other in world.nodes.values())
    name = f"{each.node.name}-{each.node.id[-4:]}" if named else each.node.name
    node = msgspec.structs.replace(each.node, name=name, site_id=rack.site_id, rack_id=rack.id)
    try:
        yield from enrol(world, Enrol(node=node, gpus=each.gpus), now_ms)
    except Conflicting:
        return
    there = {gpu.id for gpu in each.gpus}
    for gpu in list(world.node_gpus.get(node.id, {}).values()):
        if gpu.id not in there and gpu.state is GpuState.READY:
            row = msgspec.structs.replace(gpu, state=GpuState.SUSPECT, why="Slurm does not list it any more")
            yield Draft(kind=Kind.GPU_CHANGED, subject=gpu.id, text=f"{world.named(gpu)}: suspect, {row.why}", rows=(row,))
        elif gpu.id in there and gpu.state is GpuState.SUSPECT and gpu.why == "Slurm does not list it any more":
            for state in (GpuState.TESTING, GpuState.READY):
                gpu = msgspec.structs.replace(gpu, state=state, why="")  # noqa: PLW2901 - through the doors that its table has
                yield Draft(kind=Kind.GPU_CHANGED, subject=gpu.id, text=f"{world.named(gpu)}: {state}, listed again", rows=(gpu,))


def _rack(world: World, name: str, now_ms: int) -> Rack:
    """The rack of that name, or a new one; the first there is where no name is told."""
    racks = sorted(world.racks.values(), key=lambda rack: (rack.created_ms, rack.id))
    known = next((rack for rack in racks if name in {"", rack.name, rack.id}), None)
    return known or Rack(id=RackId(f"rack.{name}"), site_id=next(iter(world.sites)), name=name, created_ms=now_ms)
