"""The floor: every card of every machine as one cell, by site and rack, coloured by what is asked for. Pure: a world to rows."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import msgspec

from headframe.model.fleet import Gpu, Grade, Node, Rack
from headframe.model.health import Sample
from headframe.model.ids import GpuId
from headframe.model.states import GpuState, NodeState
from headframe.model.units import counted
from headframe.model.world import World

UNKNOWN = "x"


class Key(msgspec.Struct, frozen=True):
    """One colour of the legend: its style, what it means, how many cells have it."""

    style: str
    label: str
    count: int


class Rig(msgspec.Struct, frozen=True, kw_only=True):
    """A machine: its name, what to say of it, and the styles of its cells."""

    name: str
    title: str
    away: bool
    cells: tuple[str, ...]


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A rack with its machines."""

    site: str
    rack: str
    note: str
    rigs: tuple[Rig, ...]


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, coloured `by` one thing."""

    by: str
    legend: tuple[Key, ...]
    blocks: tuple[Block, ...]
    total: int


class Shades(msgspec.Struct, frozen=True):
    """How a colouring works: the style of a card, and what the styles mean, in the legend's order."""

    style: Callable[[Gpu, Node, Sample | None, bool], str]
    labels: Mapping[str, str]


def _state(gpu: Gpu, node: Node, said: Sample | None, held: bool) -> str:  # noqa: FBT001
    del said
    if gpu.state is GpuState.TESTING:
        return "testing"
    if gpu.state is not GpuState.READY:
        return "bad"
    if held:
        return "used"
    return "free" if node.state is NodeState.READY else "away"


def _grade(gpu: Gpu, node: Node, said: Sample | None, held: bool) -> str:  # noqa: FBT001
    del node, said, held
    return UNKNOWN if gpu.grade is Grade.UNMEASURED else str(_GRADES.index(gpu.grade))


_GRADES = [grade for grade in Grade if grade is not Grade.UNMEASURED]


def _measure(read: Callable[[Gpu, Sample], float | None], edges: Sequence[float]) -> Callable[[Gpu, Node, Sample | None, bool], str]:
    def style(gpu: Gpu, node: Node, said: Sample | None, held: bool) -> str:  # noqa: FBT001
        del node, held
        value = read(gpu, said) if said is not None and said.present else None
        return UNKNOWN if value is None else str(sum(value >= edge for edge in edges))

    return style


def _bands(edges: Sequence[float], unit: str, scale: float = 1) -> dict[str, str]:
    shown = [f"{edge * scale:g}" for edge in edges]
    middle = {str(n + 1): f"{low} to {high} {unit}" for n, (low, high) in enumerate(pairwise(shown))}
    return {"0": f"below {shown[0]} {unit}", **middle, str(len(edges)): f"{shown[-1]} {unit} and more", UNKNOWN: "not said"}


def _power(gpu: Gpu, said: Sample) -> float | None:
    limit = said.power_limit_w or gpu.max_w
    return said.power_w / limit if said.power_w is not None and limit else None


_HEAT, _SHARE = (50, 65, 75, 85), (0.1, 0.4, 0.7, 0.95)
COLOURS: dict[str, Shades] = {
    "state": Shades(
        _state, {"used": "in use", "free": "free", "away": "free, its machine is not ready", "testing": "under test", "bad": "out of service"}
    ),
    "grade": Shades(_grade, {**{str(n): str(grade) for n, grade in enumerate(_GRADES)}, UNKNOWN: "unmeasured"}),
    "temperature": Shades(_measure(lambda _, said: said.temperature_c, _HEAT), _bands(_HEAT, "°C")),
    "power": Shades(_measure(_power, _SHARE), _bands(_SHARE, "% of the limit", 100)),
    "use": Shades(_measure(lambda _, said: said.use, _SHARE), _bands(_SHARE, "%", 100)),
}


def floor(world: World, latest: Callable[[GpuId], Sample | None], by: str) -> Floor:
    """The floor coloured by one of COLOURS; racks and machines by name, retired ones left out."""
    shades = COLOURS[by]
    held = {share.gpu_id for allocation in world.held.values() for part in allocation.parts for share in part.shares}
    count: Counter[str] = Counter()
    racks: dict[str, list[Rig]] = {}
    for node in sorted(world.nodes.values(), key=lambda node: (len(node.name), node.name)):
        if node.state is NodeState.RETIRED:
            continue
        cards = sorted(world.node_gpus.get(node.id, {}).values(), key=lambda gpu: gpu.index)
        styles = tuple(shades.style(gpu, node, latest(gpu.id), gpu.id in held) for gpu in cards if gpu.state is not GpuState.RETIRED)
        count.update(styles)
        racks.setdefault(node.rack_id, []).append(_rig(node, cards, styles))
    blocks = [_block(world, world.racks[rack], rigs) for rack in world.racks if (rigs := racks.get(rack))]
    legend = tuple(Key(style, label, count[style]) for style, label in shades.labels.items())
    return Floor(by=by, legend=legend, blocks=tuple(sorted(blocks, key=lambda block: (block.site, len(block.rack), block.rack))), total=count.total())


def _rig(node: Node, cards: Sequence[Gpu], styles: tuple[str, ...]) -> Rig:
    models = Counter(gpu.model for gpu in cards)
    what = ", ".join(f"{number} × {model}" for model, number in models.items()) or "no GPU"
    wrong = [f"GPU {gpu.index}: {gpu.why or gpu.concern}" for gpu in cards if gpu.why or gpu.concern]
    return Rig(name=node.name, title="; ".join((f"{node.name}, {node.state}: {what}", *wrong)), away=node.state is not NodeState.READY, cells=styles)


def _block(world: World, rack: Rack, rigs: Sequence[Rig]) -> Block:
    limit = f", at most {rack.limit_w / 1000:g} kW" if rack.limit_w else ""
    site = world.sites[rack.site_id].name if rack.site_id in world.sites else rack.site_id
    cells = sum(len(rig.cells) for rig in rigs)
    return Block(site=site, rack=rack.name, note=f"{counted(len(rigs), 'node')}, {counted(cells, 'GPU')}{limit}", rigs=tuple(rigs))
