"""One node, one rank: what it would hold there, or the rule that refuses it, with numbers.

A room is a view of a node's capacity: as free now, or as if idle, so that "not now" and "never" are the same rules asked of
different rooms.
"""

from collections.abc import Iterator
from functools import lru_cache

import msgspec

from headframe.model.fleet import Gpu, Node
from headframe.model.ids import GpuId
from headframe.model.states import GpuState, NodeState
from headframe.model.units import MILLI, gpus, mib
from headframe.model.work import GpuRequest, Part, Share, Spec
from headframe.model.world import World


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What a node offers: `gpu_milli` maps each usable GPU to its free thousandths."""

    node: Node
    gpus: dict[GpuId, Gpu]
    gpu_milli: dict[GpuId, int]
    whole: int
    cpu_milli: int
    memory_mib: int
    disk_mib: int


class No(msgspec.Struct, frozen=True):
    """A refusal of one node; `size` orders haves, so that the best one can be shown."""

    rule: str
    need: str
    have: str
    size: float
    change: str


def room_now(world: World, node: Node) -> Room:
    """The node as it is: what others hold is taken."""
    free = world.free[node.id]
    return Room(
        node=node, gpus=world.node_gpus[node.id], gpu_milli=free.gpu_milli, whole=free.whole,
        cpu_milli=free.cpu_milli, memory_mib=free.memory_mib, disk_mib=free.disk_mib,
    )  # fmt: skip


def room_idle(world: World, node: Node) -> Room:
    """The node as if nothing ran on it."""
    cards = {gpu.id: MILLI for gpu in world.node_gpus[node.id].values() if gpu.state is not GpuState.RETIRED}
    return Room(
        node=node, gpus=world.node_gpus[node.id], gpu_milli=cards, whole=len(cards),
        cpu_milli=node.cpu_milli, memory_mib=node.memory_mib, disk_mib=node.disk_mib,
    )  # fmt: skip


def refuse(spec: Spec, room: Room, *, idle: bool) -> No | None:
    """The first rule that refuses `spec` in `room`, cheapest rule first; None where it fits."""
    need = spec.resources
    if not idle and room.node.state is not NodeState.READY:
        return No("node-state", "a ready node", str(room.node.state), 0, "resume or repair the node")
    if need.cpu_milli > room.cpu_milli:
        have = f"{room.cpu_milli / MILLI:g}"
        return No("cpu", f"{need.cpu_milli / MILLI:g} cores", have, room.cpu_milli, _change("cpu", have, idle=idle))
    if need.memory_mib > room.memory_mib:
        have = mib(room.memory_mib)
        return No("memory", mib(need.memory_mib), have, room.memory_mib, _change("memory", have, idle=idle))
    if need.disk_mib > room.disk_mib:
        have = mib(room.disk_mib)
        return No("disk", mib(need.disk_mib), have, room.disk_mib, _change("disk", have, idle=idle))
    return None if _has_gpus(need.gpu, room) else _no_gpus(need.gpu, room, idle=idle)


def take(spec: Spec, room: Room, rank: int) -> Part:
    """What `spec` holds in a room that does not refuse it: the fullest cards that still fit, so that whole ones stay whole."""
    need = spec.resources
    usable = sorted((milli, room.gpus[key].index, key) for key, milli in _usable(need.gpu, room)) if need.gpu.milli else []
    each, count = cards_of(need.gpu)
    shares = tuple(Share(gpu_id=key, index=index, model=room.gpus[key].model, milli=each) for _, index, key in usable[:count])
    assert len(shares) == count, "only a room that does not refuse is taken from"
    return Part(
        rank=rank, node_id=room.node.id, shares=shares,
        cpu_milli=need.cpu_milli, memory_mib=need.memory_mib, disk_mib=need.disk_mib,
    )  # fmt: skip


def changed(room: Room, part: Part, sign: int) -> Room:
    """The room once a part is given back (+1) or taken (-1); cards that it has not are passed over."""
    milli = dict(room.gpu_milli)
    for share in part.shares:
        if share.gpu_id in milli:
            milli[share.gpu_id] += sign * share.milli
    return msgspec.structs.replace(
        room, gpu_milli=milli, whole=sum(left == MILLI for left in milli.values()), cpu_milli=room.cpu_milli + sign * part.cpu_milli,
        memory_mib=room.memory_mib + sign * part.memory_mib, disk_mib=room.disk_mib + sign * part.disk_mib,
    )  # fmt: skip


def matches(request: GpuRequest, gpu: Gpu) -> bool:
    """Whether a card is of the model and memory asked for; models compare without case, spaces and the maker's prefix."""
    if request.model and plain_model(request.model) != plain_model(gpu.model):
        return False
    # A "24GB" card reports a little less than 24 GiB: 4 % is the most that ECC and firmware were seen to take.
    if request.memory_min_mib > gpu.memory_mib * 1.04:
        return False
    return not request.memory_max_mib or gpu.memory_mib <= request.memory_max_mib


@lru_cache(maxsize=1024)
def plain_model(model: str) -> str:
    """One spelling for a model: "NVIDIA GeForce RTX 3090" and "RTX3090" are the same."""
    text = model.lower()
    for noise in ("nvidia", "geforce", "amd", "radeon", "tesla", "graphics"):
        text = text.replace(noise, "")
    return "".join(filter(str.isalnum, text))


def cards_of(request: GpuRequest) -> tuple[int, int]:
    """Thousandths of each card, and how many cards."""
    return (request.milli, 1) if 0 < request.milli < MILLI else (MILLI, request.milli // MILLI)


def _has_gpus(request: GpuRequest, room: Room) -> bool:
    each, count = cards_of(request)
    if count == 0 or (each == MILLI and room.whole < count):
        return count == 0
    if each == MILLI and not request.model and not request.memory_min_mib and not request.memory_max_mib:
        return True  # any whole cards do, and they are counted already
    return sum(1 for _ in _usable(request, room)) >= count


def _usable(request: GpuRequest, room: Room) -> Iterator[tuple[GpuId, int]]:
    each, _ = cards_of(request)
    return ((key, milli) for key, milli in room.gpu_milli.items() if milli >= each and matches(request, room.gpus[key]))


def _no_gpus(request: GpuRequest, room: Room, *, idle: bool) -> No:
    kind = request.model or (f"≥ {mib(request.memory_min_mib)}" if request.memory_min_mib else "any model")
    of_kind = sorted(key for key, gpu in room.gpus.items() if matches(request, gpu) and key in room.gpu_milli)
    need = f"{gpus(request.milli)} GPU ({kind})"
    if not of_kind:
        have = ", ".join(sorted({gpu.model for gpu in room.gpus.values()})) or "no GPU"
        return No("gpu-model", need, have, len(room.gpus), "ask for a model that the fleet has: `headframe offers`")
    free = [room.gpu_milli[key] for key in of_kind]
    if request.milli < MILLI:
        have = f"{gpus(max(free))} of one GPU free"
        return No("gpu-share", need, have, max(free), _change("gpu", gpus(max(free)), idle=idle))
    whole = sum(milli == MILLI for milli in free)
    have = f"{whole} of {len(of_kind)} free"
    return No("gpu", need, have, whole, _change("gpu", str(whole), idle=idle))


def _change(what: str, have: str, *, idle: bool) -> str:
    if idle:
        return f"ask for {what} ≤ {have}" if have not in {"0", "0 MiB"} else f"add a node with more {what}"
    return f"waits until {what} is released"
