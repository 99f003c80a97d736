"""One node, one rank: what it would hold there, or the rule that refuses it, with numbers.

A room is a view of a node's capacity: as free now, or as if idle, so that "not now" and "never" are the same rules asked of
different rooms. Every rule is a function of its own: `NODE_RULES` ask the machine, `CARD_RULES` ask one card.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache

import msgspec

from headframe.model.fleet import DIALS_OUT, SLURM, TOGETHER, Gpu, Grade, Node, Sharing, plain_model
from headframe.model.ids import GpuId
from headframe.model.states import GpuState, NodeState
from headframe.model.units import MILLI, gpus, mib
from headframe.model.work import GpuRequest, Part, Resources, Share, Spec
from headframe.model.world import World
from headframe.placement.power import watts_of

GRADES = {grade: rank for rank, grade in enumerate(Grade)}
UNLIMITED_W = 1 << 40


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What a node offers: `gpu_milli` maps each usable GPU to its free thousandths; `power_w` is what its rack can still carry,
    `idle` says that this is the node as if nothing ran there.
    """

    node: Node
    gpus: dict[GpuId, Gpu]
    gpu_milli: dict[GpuId, int]
    whole: int
    cpu_milli: int
    memory_mib: int
    disk_mib: int
    power_w: int = UNLIMITED_W
    idle: bool = False


class No(msgspec.Struct, frozen=True):
    """A refusal of one node; `size` orders haves, so that the best one can be shown."""

    rule: str
    need: str
    have: str
    size: float
    change: str


class CardRule(msgspec.Struct, frozen=True):
    """One thing that a card must be: what a request asks for in words ("" where nothing), what a card has, whether it does."""

    name: str
    asks: Callable[[GpuRequest], str]
    has: Callable[[Gpu], str]
    good: Callable[[GpuRequest, Gpu], bool]
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
    limit_w = world.racks[node.rack_id].limit_w if node.rack_id in world.racks else 0
    return Room(
        node=node, gpus=world.node_gpus[node.id], gpu_milli=cards, whole=len(cards), cpu_milli=node.cpu_milli,
        memory_mib=node.memory_mib, disk_mib=node.disk_mib, power_w=max(0, limit_w - node.idle_w) if limit_w else UNLIMITED_W, idle=True,
    )  # fmt: skip


def refuse(spec: Spec, room: Room) -> No | None:
    """The first rule that refuses `spec` in `room`, cheapest rule first; None where it fits."""
    need = spec.resources
    for rule in NODE_RULES:
        no = rule(need, room)
        if no is not None:
            return no
    return None


def _ready(need: Resources, room: Room) -> No | None:
    del need
    if room.idle or room.node.state is NodeState.READY:
        return None
    why = f": {room.node.why}" if room.node.why else ""
    return No("node-state", "a ready node", f"{room.node.state}{why}", 0, "resume or repair the node")


def _tolerated(need: Resources, room: Room) -> No | None:
    taints = [taint for taint in room.node.taints if taint not in need.tolerations]
    if not taints:
        return None
    return No("taint", "a node without taints that it does not tolerate", ", ".join(taints), 0, f"add `tolerations: [{', '.join(taints)}]`")


def _processor(need: Resources, room: Room) -> No | None:
    if not need.arch or need.arch == room.node.arch:
        return None
    return No("arch", need.arch, room.node.arch or "not known", 0, "build for the machines there are, or leave `arch` out")


def _whole_cores(need: Resources, room: Room) -> No | None:
    if room.node.engine != SLURM or need.cpu_milli % MILLI == 0:
        return None
    return No("cpu-whole", "a machine that divides cores", "Slurm, which gives whole ones", 0, f"ask for cpu: {-(-need.cpu_milli // MILLI)}")


def _together(need: Resources, room: Room) -> No | None:
    if not need.gang or room.node.engine in TOGETHER:
        return None
    return No("gang", "machines that are started as one", "machines that each run their own work", 0, "ask for `nodes: 1` with more GPUs")


def _reached(need: Resources, room: Room) -> No | None:
    if not need.reached or room.node.engine not in DIALS_OUT or room.node.address:
        return None
    return No(
        "address",
        "a machine that gateways reach",
        "one that only dials out",
        0,
        "an operator can say where it is reached: `headframe node set NAME --address`",
    )


def _amounts(need: Resources, room: Room) -> No | None:
    if need.cpu_milli > room.cpu_milli:
        have = f"{room.cpu_milli / MILLI:g}"
        return No("cpu", f"{need.cpu_milli / MILLI:g} cores", have, room.cpu_milli, _change("cpu", have, idle=room.idle))
    if need.memory_mib > room.memory_mib:
        have = mib(room.memory_mib)
        return No("memory", mib(need.memory_mib), have, room.memory_mib, _change("memory", have, idle=room.idle))
    if need.disk_mib > room.disk_mib:
        have = mib(room.disk_mib)
        return No("disk", mib(need.disk_mib), have, room.disk_mib, _change("disk", have, idle=room.idle))
    return None


def _alone(need: Resources, room: Room) -> No | None:
    if not need.exclusive:
        return None
    cards = sum(matches(need.gpu, gpu) for gpu in room.gpus.values() if gpu.id in room.gpu_milli)
    _, count = cards_of(need.gpu)
    if len(room.gpu_milli) != count or cards != count:
        have = f"{gpus(len(room.gpu_milli) * MILLI)} GPU"
        return No(
            "exclusive", f"a machine of just {count} GPU for itself", have, -abs(len(room.gpu_milli) - count), "ask for as many GPUs as a machine has"
        )
    if room.idle or room.cpu_milli == room.node.cpu_milli:
        return None
    return No("exclusive", "an idle machine", "one with work on it", 0, "waits until the machine is idle")


def _cards(need: Resources, room: Room) -> No | None:
    return None if _has_gpus(need.gpu, room) else _no_gpus(need.gpu, room)


def _power(need: Resources, room: Room) -> No | None:
    watts = watts_of(need.gpu, room.gpus.values())
    if watts <= room.power_w:
        return None
    change = "raise the rack's limit, or ask for fewer GPUs per node" if room.idle else "waits until power in the rack is released"
    return No("power", f"{watts} W", f"{room.power_w} W left in the rack", room.power_w, change)


NODE_RULES = (_ready, _tolerated, _processor, _together, _reached, _whole_cores, _amounts, _alone, _cards, _power)


def take(spec: Spec, room: Room, rank: int) -> Part:
    """What `spec` holds in a room that does not refuse it: the fullest cards that still fit, so that whole ones stay whole."""
    need = spec.resources
    usable = sorted(_usable(need.gpu, room), key=lambda gpu: (room.gpu_milli[gpu.id], gpu.index, gpu.id)) if need.gpu.milli else []
    _, count = cards_of(need.gpu)
    assert len(usable) >= count, "only a room that does not refuse is taken from"
    return part_of(need, room, usable[:count], rank)


def part_of(need: Resources, room: Room, cards: Iterable[Gpu], rank: int) -> Part:
    """The part that holds these cards, and of the machine what is needed: all that is left of it where it is to be alone."""
    each, _ = cards_of(need.gpu)
    host = room if need.exclusive else need
    return Part(
        rank=rank, node_id=room.node.id, cpu_milli=host.cpu_milli, memory_mib=host.memory_mib, disk_mib=host.disk_mib,
        shares=tuple(
            Share(gpu_id=gpu.id, index=gpu.index, model=gpu.model, milli=each, sharing=Sharing.EXCLUSIVE if each == MILLI else gpu.sharing)
            for gpu in cards
        ),
    )  # fmt: skip


def changed(room: Room, part: Part, sign: int) -> Room:
    """The room once a part is given back (+1) or taken (-1); cards that it has not are passed over."""
    milli = dict(room.gpu_milli)
    for share in part.shares:
        if share.gpu_id in milli:
            milli[share.gpu_id] += sign * share.milli
    return msgspec.structs.replace(
        room, gpu_milli=milli, whole=list(milli.values()).count(MILLI), cpu_milli=room.cpu_milli + sign * part.cpu_milli,
        memory_mib=room.memory_mib + sign * part.memory_mib, disk_mib=room.disk_mib + sign * part.disk_mib,
    )  # fmt: skip


def matches(request: GpuRequest, gpu: Gpu) -> bool:
    """Whether a card is what was asked for."""
    return all(rule.good(request, gpu) for rule in CARD_RULES)


def _of_kind(request: GpuRequest, gpu: Gpu) -> bool:
    """Models compare without case, spaces and the maker's prefix."""
    if request.model and plain_model(request.model) != plain_model(gpu.model):
        return False
    # A "24GB" card reports a little less than 24 GiB: 4 % is the most that ECC and firmware were seen to take.
    if request.memory_min_mib > gpu.memory_mib * 1.04:
        return False
    return not request.memory_max_mib or gpu.memory_mib <= request.memory_max_mib


def _kind_asked(request: GpuRequest) -> str:
    return request.model or (f"≥ {mib(request.memory_min_mib)}" if request.memory_min_mib else "any model")


@lru_cache(maxsize=256)
def capability(text: str) -> tuple[int, ...]:
    """A compute capability as numbers that compare: "8.6" is (8, 6), and what is not known, or is no NVIDIA card's (gfx906), is ()."""
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdigit() for part in parts) else ()


CARD_RULES = (
    CardRule("gpu-model", _kind_asked, lambda gpu: gpu.model, _of_kind, "ask for a model that the fleet has: `headframe offers`"),
    CardRule(
        "mig", lambda request: request.mig and f"MIG {request.mig}", lambda gpu: gpu.mig or "a card that is not divided",
        lambda request, gpu: request.mig == gpu.mig, "ask for a profile that the fleet has, or divide a card with `nvidia-smi mig`",
    ),
    CardRule(
        "compute-capability", lambda request: request.compute_capability, lambda gpu: gpu.compute_capability or "not known",
        lambda request, gpu: capability(request.compute_capability) <= capability(gpu.compute_capability), "ask for less, or a newer model",
    ),
    CardRule(
        "grade", lambda request: request.grade or "", lambda gpu: gpu.grade,
        lambda request, gpu: request.grade is None or GRADES[gpu.grade] <= GRADES[request.grade], "ask for a lower grade, or qualify the cards",
    ),
    CardRule(
        "pcie", lambda request: f"x{request.pcie_width} or wider" if request.pcie_width else "",
        lambda gpu: f"x{gpu.pcie_width}" if gpu.pcie_width else "not known",
        lambda request, gpu: request.pcie_width <= gpu.pcie_width, "ask for fewer lanes; cards on risers have one",
    ),
    CardRule(
        "sharing", lambda request: request.sharing or ("a card that may be shared" if 0 < request.milli < MILLI else ""),
        lambda gpu: gpu.sharing,
        lambda request, gpu: not 0 < request.milli < MILLI or gpu.sharing == (request.sharing or gpu.sharing) != Sharing.EXCLUSIVE,
        "ask for a whole card, or set the cards' sharing: `headframe gpu set`",
    ),
)  # fmt: skip
"""Asked in this order: the first that no card of a machine passes is its reason."""


def cards_of(request: GpuRequest) -> tuple[int, int]:
    """Thousandths of each card, and how many cards."""
    return (request.milli, 1) if 0 < request.milli < MILLI else (MILLI, request.milli // MILLI)


def _has_gpus(request: GpuRequest, room: Room) -> bool:
    each, count = cards_of(request)
    if count == 0 or (each == MILLI and room.whole < count):
        return count == 0
    return len(_usable(request, room)) >= count


def _usable(request: GpuRequest, room: Room) -> list[Gpu]:
    """Cards that do and have enough left; where they are to reach each other, those of the domain that has most of them."""
    each, count = cards_of(request)
    found = [room.gpus[key] for key, milli in room.gpu_milli.items() if milli >= each and matches(request, room.gpus[key])]
    return _joined(found) if request.p2p and count > 1 else found


def _joined(cards: Iterable[Gpu]) -> list[Gpu]:
    """The cards of the largest domain among these."""
    domains: dict[str, list[Gpu]] = {}
    for gpu in cards:
        if gpu.p2p:
            domains.setdefault(gpu.p2p, []).append(gpu)
    return max((domains[name] for name in sorted(domains)), key=len, default=[])


def _no_gpus(request: GpuRequest, room: Room) -> No:
    _, count = cards_of(request)
    cards = [gpu for key, gpu in sorted(room.gpus.items()) if key in room.gpu_milli]
    need = f"{gpus(request.milli)} GPU ({_kind_asked(request)})"
    for rule in CARD_RULES:
        good = [gpu for gpu in cards if rule.good(request, gpu)]
        if not good:
            have = ", ".join(sorted({rule.has(gpu) for gpu in cards})) or "no GPU"
            return No(rule.name, need if rule is CARD_RULES[0] else rule.asks(request) or "a whole card", have, len(cards), rule.change)
        cards = good
    if request.p2p and count > 1 and len(_joined(cards)) < count:
        size = len(_joined(cards))
        return No("p2p", f"{count} GPU that reach each other's memory", f"{size} that do", size, "ask for fewer GPUs per node, or leave `p2p` out")
    free = [room.gpu_milli[gpu.id] for gpu in cards]
    if request.milli < MILLI:
        have = f"{gpus(max(free))} of one GPU free"
        return No("gpu-share", need, have, max(free), _change("gpu", gpus(max(free)), idle=room.idle))
    whole = sum(milli == MILLI for milli in free)
    have = f"{whole} of {len(cards)} free"
    return No("gpu", need, have, whole, _change("gpu", str(whole), idle=room.idle))


def _change(what: str, have: str, *, idle: bool) -> str:
    if idle:
        return f"ask for {what} ≤ {have}" if have not in {"0", "0 MiB"} else f"add a node with more {what}"
    return f"waits until {what} is released"
