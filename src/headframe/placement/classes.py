"""Machines that are alike, as one class: what differs between two machines of a class is only what is free on them.

Fleets have few kinds of machines, so what is asked of machines is asked of classes, and their cards have columns: ordered by
kind, so that two machines with the same cards free are in the same state.
"""

import itertools
from collections.abc import Sequence

import msgspec

from headframe.model.fleet import DIALS_OUT, SLURM, TOGETHER, Gpu, Node
from headframe.model.ids import GpuId, NodeId
from headframe.model.units import MILLI
from headframe.model.work import GpuRequest, Resources
from headframe.model.world import World
from headframe.placement.fit import cards_of, matches
from headframe.placement.power import watts_of

P2P_MAX = 8
"""Groups of cards on one machine that reach each other's memory: more are not looked at."""
UNUSABLE = -1


class Class(msgspec.Struct, frozen=True):
    """One kind of machine, with an example. `cards` by column, `runs` where the columns of one kind begin and end."""

    number: int
    node: Node
    cards: tuple[Gpu, ...]
    runs: tuple[tuple[int, int], ...]


class Classes:
    """The kinds of machines that a world has, numbered as they are met."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.all: list[Class] = []
        self._numbers: dict[tuple[object, ...], int] = {}
        self._machines: dict[NodeId, tuple[Node, tuple[Gpu, ...], Class, tuple[Gpu, ...]]] = {}

    @property
    def width(self) -> int:
        """Columns that hold the cards of any machine."""
        return max((len(kind.cards) for kind in self.all), default=0) or 1

    def of(self, node: Node) -> Class:
        """A node's class."""
        return self.machine(node)[0]

    def machine(self, node: Node) -> tuple[Class, tuple[Gpu, ...]]:
        """A node's class and its cards by column, remembered while node and cards are the same."""
        there = tuple(self.world.node_gpus[node.id].values())
        known = self._machines.get(node.id)
        if known is not None and known[0] is node and known[1] == there:
            return known[2], known[3]
        cards = tuple(sorted(there, key=_by_kind))
        rack = self.world.racks.get(node.rack_id)
        key = (
            node.cpu_milli,
            node.memory_mib,
            node.disk_mib,
            node.arch,
            node.engine,
            bool(node.address),
            node.taints,
            rack.limit_w if rack else 0,
            *map(like, cards),
        )
        number = self._numbers.get(key, -1)
        if number < 0:
            number = self._numbers[key] = len(self.all)
            self.all.append(Class(number=number, node=node, cards=cards, runs=_runs(cards)))
        self._machines[node.id] = (node, there, self.all[number], cards)
        return self.all[number], cards

    def masks(self, need: Resources) -> list[tuple[int, ...]]:
        """The usable columns of each class, as bits; UNUSABLE where the machine won't do at all. One list of classes; several
        where cards must reach each other, each with one group of them.
        """
        _, count = cards_of(need.gpu)
        if not need.gpu.p2p or count < 2:
            return [tuple(_mask(need, kind) for kind in self.all)]
        groups = [_groups(need, kind) for kind in self.all]
        most = min(P2P_MAX, max(map(len, groups), default=0)) or 1
        return [tuple(found[n] if n < len(found) else UNUSABLE for found in groups) for n in range(most)]

    def watts(self, need: GpuRequest) -> tuple[int, ...]:
        """What the request may draw on each class."""
        return tuple(watts_of(need, kind.cards) for kind in self.all)


def _mask(need: Resources, kind: Class) -> int:
    if not _will_do(need, kind):
        return UNUSABLE
    usable = sum(1 << column for column, gpu in enumerate(kind.cards) if matches(need.gpu, gpu))
    return usable if usable.bit_count() >= cards_of(need.gpu)[1] else UNUSABLE


def _will_do(need: Resources, kind: Class) -> bool:
    """Whether such a machine would take the work if nothing else ran there."""
    host = kind.node
    if need.cpu_milli > host.cpu_milli or need.memory_mib > host.memory_mib or need.disk_mib > host.disk_mib:
        return False
    if (need.arch and need.arch != host.arch) or not set(host.taints) <= set(need.tolerations):
        return False
    if need.gang and host.engine not in TOGETHER:
        return False
    if need.reached and host.engine in DIALS_OUT and not host.address:
        return False
    if host.engine == SLURM and need.cpu_milli % MILLI:
        return False
    return not need.exclusive or len(kind.cards) == cards_of(need.gpu)[1]


def _groups(need: Resources, kind: Class) -> list[int]:
    """The usable columns of each group that is large enough, largest first."""
    _, count = cards_of(need.gpu)
    found: dict[str, int] = {}
    for column, gpu in enumerate(kind.cards):
        if gpu.p2p and matches(need.gpu, gpu) and _will_do(need, kind):
            found[gpu.p2p] = found.get(gpu.p2p, 0) | 1 << column
    return sorted((mask for mask in found.values() if mask.bit_count() >= count), key=lambda mask: (-mask.bit_count(), mask))


def likely(classes: Sequence[Class]) -> list[Resources]:
    """What to expect of any machine before anyone has asked: halves, single cards, pairs, and all of it, each with its part of
    the host.
    """
    found: dict[Resources, None] = {}
    for kind in classes:
        cards, host = len(kind.cards), kind.node
        for part in (0.5, 1, 2, 4, 8):
            if part <= cards:
                share = part / cards
                wanted = Resources(
                    gpu=GpuRequest(milli=round(part * MILLI)), cpu_milli=int(host.cpu_milli * share),
                    memory_mib=int(host.memory_mib * share), disk_mib=0, tolerations=host.taints,
                )  # fmt: skip
                found[wanted] = None
    return list(found)


def like(gpu: Gpu) -> tuple[str, ...]:
    """All that a request can ask of a card: cards of which it is equal are interchangeable."""
    return (
        gpu.model, str(gpu.memory_mib), gpu.compute_capability, gpu.grade, gpu.sharing, gpu.mig, gpu.p2p, f"{gpu.pcie_width}/{gpu.max_w}",
    )  # fmt: skip


def by_index(gpu: Gpu) -> tuple[int, GpuId]:
    """Cards in the order that people count them."""
    return (gpu.index, gpu.id)


def _runs(cards: Sequence[Gpu]) -> tuple[tuple[int, int], ...]:
    """Where the columns of one kind begin and end."""
    starts = [column for column, gpu in enumerate(cards) if column == 0 or like(cards[column - 1]) != like(gpu)]
    return tuple(itertools.pairwise([*starts, len(cards)]))


def _by_kind(gpu: Gpu) -> tuple[tuple[str, ...], int, GpuId]:
    return (like(gpu), gpu.index, gpu.id)
