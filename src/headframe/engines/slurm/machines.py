"""Slurm's machines as nodes and GPUs of ours, pure. A card here is a place: Slurm numbers cards itself when it starts work, and what it is asked for is
the machine and the type, so of cards of one type in one machine it does not matter which is which.
"""

import functools
import hashlib
import re

from headframe.engines.slurm.words import SlurmNode, gpus, whole
from headframe.health.catalogue import Model
from headframe.model.engine import EngineSetup
from headframe.model.fleet import SLURM, Gpu, Machine, Node, Sharing
from headframe.model.ids import GpuId, NodeId, RackId, SiteId
from headframe.model.states import GpuState, NodeState
from headframe.model.units import MILLI

MIB_PER_GIB = 1024


def machine(node: SlurmNode, setup: EngineSetup, known: tuple[Model, ...], now_ms: int, leaf: str = "") -> Machine:
    """A machine as it is to be enrolled, in the rack that its features name, else at its `leaf` switch. Cores are what is sold: where Slurm counts threads, each core has several."""
    key = node_id(setup, node.name)
    row = Node(
        id=key, name=node.name, site_id=SiteId(""), rack_id=RackId(""), state=NodeState.NEW, engine=SLURM, cpu_milli=node.cpus // max(1, node.threads) * MILLI,
        memory_mib=node.real_memory, disk_mib=node.temporary_disk, cpu_model=node.architecture, os=(node.operating_system or "")[:100], arch=node.architecture, address=node.address,
        boot_id=str(whole(node.boot_time)), joined_ms=now_ms, seen_ms=now_ms,
    )  # fmt: skip
    cards: list[Gpu] = []
    for kind, count in gpus(node.gres):
        model = sold_as(known, kind)
        for _ in range(count):
            cards.append(_card(key, len(cards), kind, model, now_ms))
    return Machine(node=row, gpus=tuple(cards), rack=node.rack or leaf)


def _card(node: NodeId, index: int, kind: str, model: Model | None, now_ms: int) -> Gpu:
    return Gpu(
        id=GpuId(f"{node}-gpu-{index}"), node_id=node, index=index, model=model.name if model else kind or "unknown",
        memory_mib=int(model.memory_gib * MIB_PER_GIB) if model else 0, compute_capability=model.capability if model and model.vendor == "nvidia" else "",
        sharing=Sharing.EXCLUSIVE, state=GpuState.NEW, joined_ms=now_ms,
    )  # fmt: skip


def kind_of(node: SlurmNode, model: str, known: tuple[Model, ...]) -> str:
    """Slurm's own word for the type of card that is sold as `model`."""
    named = ((kind, sold_as(known, kind)) for kind, _ in gpus(node.gres))
    return next((kind for kind, sold in named if model == (sold.name if sold else kind or "unknown")), "")


def node_id(setup: EngineSetup, name: str) -> NodeId:
    """A machine is known by its cluster and its name there."""
    return NodeId("node-" + hashlib.sha256(f"{setup.id}/{name}".encode()).hexdigest()[:12])


def sold_as(models: tuple[Model, ...], kind: str) -> Model | None:
    """The model that a type of Slurm's stands for: `rtx3090`, `a100`, `h100_sxm`, `tesla_v100`; None where it is none that is known."""
    found = _by_plain_name(models).get(_plain(kind), [])
    form = next((form for form in ("sxm", "pcie") if form in kind.lower()), "")
    return min(found, key=lambda model: (form not in model.name.lower(), len(model.name), model.name), default=None)


@functools.lru_cache(maxsize=4)
def _by_plain_name(models: tuple[Model, ...]) -> dict[str, list[Model]]:
    """Models by what is left of their names, with their memory's size and without."""
    found: dict[str, list[Model]] = {}
    for model in models:
        for name in dict.fromkeys((_plain(model.name), _plain(re.sub(r"\b\d+ ?GB\b", "", model.name)))):
            found.setdefault(name, []).append(model) if name else None
    return found


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|quadro|amd|radeon|instinct|pcie|sxm\d?|[^a-z0-9]", "", name.lower())
