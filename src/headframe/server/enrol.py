"""A machine becomes one of the fleet, and says later what has changed: what it tells is checked, and never taken for what it is not. Pure.

It tells what it has. Where it stands, in which state it is and what its cards are good for is not its to say.
"""

import re
from collections.abc import Iterator, Sequence

import msgspec

from headframe.model.agent import Hello
from headframe.model.command import Enrol, Join, ListRigs, Qualify
from headframe.model.errors import BadRequest, Conflicting, Unauthenticated
from headframe.model.event import Draft, Kind
from headframe.model.fleet import JOINED, SLURM, Gpu, Node, Rack, Sharing
from headframe.model.health import Depth
from headframe.model.ids import KeyId, NodeId, RackId, WorkloadId, is_machine_name
from headframe.model.states import GpuState, NodeState
from headframe.model.units import counted
from headframe.model.world import World
from headframe.server.qualify import qualify
from headframe.server.rigs import CARDS_MAX, arrived, awaited, listed, plain

_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$")
_NODE_ID = re.compile(r"^node-[0-9a-f]{12}$")
_LIVES = frozenset({NodeState.READY, NodeState.DRAINING, NodeState.QUALIFYING, NodeState.NEW})
_FOUND = ("node_id", "index", "model", "memory_mib", "compute_capability", "pci_bus", "driver", "vbios", "pcie_gen", "pcie_width", "p2p",
          "mig", "max_w")  # fmt: skip
"""What a machine finds of a card each time; all else was said or concluded, and is kept."""


def welcome(hello: Hello, now_ms: int) -> tuple[Node, tuple[Gpu, ...]]:
    """What a machine may say of itself, without what it may not; raises BadRequest where that can't be."""
    node = hello.node
    if not _NODE_ID.fullmatch(node.id):
        raise BadRequest("a machine is known by `node-` and twelve hexadecimal digits")
    if not is_machine_name(node.name):
        raise BadRequest("a machine's name is 1 to 63 letters, digits, dots, dashes or underscores", "give it one: `headframe agent join --name`")
    if len(hello.gpus) > CARDS_MAX or len({gpu.id for gpu in hello.gpus}) < len(hello.gpus):
        raise BadRequest(f"a machine has at most {CARDS_MAX} cards, and each once")
    for row in (node, *hello.gpus):
        plain(row)
    for gpu in hello.gpus:
        if not _ID.fullmatch(gpu.id) or gpu.id.startswith("-"):
            raise BadRequest(f"{gpu.id[:40]!r} is no card's UUID")
    fresh = Node(
        id=node.id, name=node.name, site_id=node.site_id, rack_id=node.rack_id, state=NodeState.NEW, engine=JOINED, cpu_milli=node.cpu_milli,
        memory_mib=node.memory_mib, disk_mib=node.disk_mib, cpu_model=node.cpu_model, os=node.os, boot_id=node.boot_id, arch=node.arch,
        joined_ms=now_ms, seen_ms=now_ms,
    )  # fmt: skip
    return fresh, tuple(_fresh(gpu, node.id, now_ms) for gpu in hello.gpus)


def _fresh(gpu: Gpu, node_id: NodeId, now_ms: int) -> Gpu:
    blank = Gpu(
        id=gpu.id,
        node_id=node_id,
        index=gpu.index,
        model=gpu.model,
        memory_mib=gpu.memory_mib,
        sharing=gpu.sharing,
        state=GpuState.NEW,
        joined_ms=now_ms,
    )
    return msgspec.structs.replace(blank, **{name: getattr(gpu, name) for name in _FOUND if name != "node_id"})


def enrol(world: World, command: Enrol | Join | ListRigs, now_ms: int) -> Iterator[Draft]:
    """What `command` does to `world`."""
    if isinstance(command, Join):
        yield from _joined(world, command, now_ms)
    elif isinstance(command, ListRigs):
        yield from listed(world, command, now_ms)
    else:
        yield from _enrolled(world, command.node, command.gpus, now_ms)


def _joined(world: World, command: Join, now_ms: int) -> Iterator[Draft]:
    token, node = world.keys[command.token], command.node
    if token.revoked_ms:
        raise Unauthenticated("this token was used already", "make another: `headframe node add`")
    known = world.nodes.get(node.id)
    if known is not None and known.state is NodeState.RETIRED:
        raise Conflicting(f"{known.name} was retired and can't come back under this identity", "join with --new-identity")
    rig = awaited(world, node, command.macs)
    if rig is not None:
        node = msgspec.structs.replace(node, name=rig.name)
    rack, fresh = _rack(world, token.rack or (rig.rack if rig else ""), command.rack_id, now_ms)
    if fresh:
        yield Draft(kind=Kind.RACK_CHANGED, subject=rack.id, text=f"{rack.name}: new", rows=(rack,))
    if any(other.name == node.name and other.id != node.id for other in world.nodes.values()):
        node = msgspec.structs.replace(node, name=f"{node.name}-{node.id[-4:]}")
    node = msgspec.structs.replace(node, site_id=rack.site_id, rack_id=rack.id)
    yield from _enrolled(world, node, command.gpus, now_ms)
    keys = [token, *(key for key in world.keys.values() if key.node_id == node.id and not key.revoked_ms)]
    rows = (*(msgspec.structs.replace(key, revoked_ms=now_ms) for key in keys), command.key)
    yield Draft(kind=Kind.KEY_CREATED, subject=command.key.id, text=f"key of {node.name} created, its token is used up", rows=rows)
    if rig is not None:
        yield arrived(rig, node, command.gpus)


def _rack(world: World, name: str, rack_id: RackId, now_ms: int) -> tuple[Rack, bool]:
    """Where it is to stand, and whether that is new."""
    racks = sorted(world.racks.values(), key=lambda rack: (rack.created_ms, rack.id))
    known = next((rack for rack in racks if name in {"", rack.name, rack.id}), None)
    return (known, False) if known else (Rack(id=rack_id, site_id=next(iter(world.sites)), name=name, created_ms=now_ms), True)


def _enrolled(world: World, node: Node, gpus: Sequence[Gpu], now_ms: int) -> Iterator[Draft]:
    _own(world, node, gpus)
    known = world.nodes.get(node.id)
    checks = node.engine != SLURM and node.site_id in world.sites and world.sites[node.site_id].check_new  # a cluster's cards are in use already
    if known is None:
        for state in (NodeState.NEW, NodeState.QUALIFYING, NodeState.READY):
            row = msgspec.structs.replace(node, state=state)
            cards = tuple(_carded(gpu, state, checks=checks) for gpu in gpus)
            text = f"{node.name}: {state}" + (f" with {counted(len(cards), 'GPU')}" if state is NodeState.READY else "")
            yield Draft(kind=Kind.NODE_JOINED, subject=node.id, text=text, rows=(row, *cards))
    else:
        yield from _changed(world, known, node, gpus, GpuState.NEW if checks else GpuState.READY)
    if checks:
        yield from first_check(world, node.id, now_ms)


def _changed(world: World, known: Node, node: Node, gpus: Sequence[Gpu], fresh: GpuState) -> Iterator[Draft]:
    same = msgspec.structs.replace(
        node, name=known.name, state=known.state, joined_ms=known.joined_ms, seen_ms=known.seen_ms, rack_id=known.rack_id, taints=known.taints, address=node.address or known.address,
        idle_w=known.idle_w, owner=known.owner, faults=known.faults, faults_ms=known.faults_ms, why=known.why, drain_ms=known.drain_ms, graded=known.graded,
    )  # fmt: skip
    capped = known.site_id in world.sites and world.sites[known.site_id].caps
    cards = [after for gpu in gpus if (after := _merged(world.gpus.get(gpu.id), gpu, fresh, capped=capped)) != world.gpus.get(gpu.id)]
    if same != known or cards:
        yield Draft(kind=Kind.NODE_CHANGED, subject=node.id, text=f"{known.name}: inventory changed", rows=(same, *cards))


def first_check(world: World, node_id: NodeId, now_ms: int) -> Iterator[Draft]:
    """The check of a node's new cards. Where it can't be now it is tried again by the hour."""
    node = world.nodes[node_id]
    if node.state is not NodeState.READY or not any(gpu.state is GpuState.NEW for gpu in world.node_gpus[node_id].values()):
        return
    command = Qualify(node_id=node_id, depth=Depth.QUICK, id=WorkloadId(f"wl-first-{node_id}-{now_ms}"), by=KeyId("Headframe"))
    try:
        yield from qualify(world, command, now_ms)
    except Conflicting:
        return


def unchecked(world: World, now_ms: int) -> Iterator[Draft]:
    """The first checks that could not be when their cards were new."""
    for node_id in sorted({gpu.node_id for gpu in world.gpus.values() if gpu.state is GpuState.NEW}):
        yield from first_check(world, node_id, now_ms)


def _own(world: World, node: Node, gpus: Sequence[Gpu]) -> None:
    """A card is in one machine: it has left another only once that one is out of service or silent."""
    for gpu in gpus:
        known = world.gpus.get(gpu.id)
        if known is None or known.node_id == node.id:
            continue
        other = world.nodes[known.node_id]
        if other.state in _LIVES or world.holders(known):
            raise Conflicting(
                f"{gpu.id} is in {other.name}, which is {other.state}", f"drain that machine first: `headframe node drain {other.name}`"
            )


def _carded(gpu: Gpu, node_state: NodeState, *, checks: bool) -> Gpu:
    """A card goes through the same doors as its node, and waits at the first where it is to be checked."""
    states = {NodeState.NEW: GpuState.NEW, NodeState.QUALIFYING: GpuState.TESTING, NodeState.READY: GpuState.READY}
    return msgspec.structs.replace(gpu, state=GpuState.NEW if checks else states[node_state])


def _merged(known: Gpu | None, gpu: Gpu, fresh: GpuState, *, capped: bool) -> Gpu:
    """What is found now, with what is known from before: its state, and a person's word."""
    if known is None:
        return msgspec.structs.replace(gpu, state=fresh)
    sharing = gpu.sharing if gpu.sharing is Sharing.EXCLUSIVE else known.sharing
    found = {name: getattr(gpu, name) for name in _FOUND}
    if capped and 0 < gpu.max_w < known.max_w:
        found["max_w"] = known.max_w  # the limit that is read is one that dispatch has set
    return msgspec.structs.replace(known, sharing=sharing, **found)
