"""What a placement draws from its rack: at most its cards' power limits, by their shares; what cards whose limit is not known draw is
an assumption.
"""

from collections.abc import Container, Iterable, Mapping

from headframe.model.fleet import UNKNOWN_GPU_W, Gpu, Node
from headframe.model.ids import NodeId
from headframe.model.units import MILLI
from headframe.model.work import GpuRequest, Part
from headframe.model.world import World


def watts_of(request: GpuRequest, cards: Iterable[Gpu]) -> int:
    """What a request may draw on a machine with these cards: its thousandths of the thirstiest of them."""
    return request.milli * max((card.full_w for card in cards), default=0) // MILLI


def drawn_w(world: World, parts: Iterable[Part], nodes: Container[NodeId]) -> int:
    """What parts of allocations may draw at most on some nodes."""
    shares = [share for part in parts if part.node_id in nodes for share in part.shares]
    return sum(share.milli * (gpu.full_w if (gpu := world.gpus.get(share.gpu_id)) else UNKNOWN_GPU_W) // MILLI for share in shares)


def rack_w(world: World, nodes: Mapping[NodeId, Node]) -> int:
    """What the machines of a rack draw idle, and their cards may draw at most under what runs there now."""
    there = {allocation.id: allocation for node_id in nodes for allocation in world.on_node.get(node_id, {}).values()}
    return sum(node.idle_w for node in nodes.values()) + sum(drawn_w(world, allocation.parts, nodes) for allocation in there.values())
