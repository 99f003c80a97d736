"""The world as placement sees it: machines that are alike as one class, free capacity as rows of numbers.

One `Fleet` belongs to one world and follows it: the world notes which nodes were touched, and only their rows are made anew.
What a plan hands out is written into the rows at once and the nodes noted as touched, so the next look finds the truth again.
"""

import itertools
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from headframe.model.fleet import Gpu, Node
from headframe.model.ids import GpuId, NodeId
from headframe.model.states import NodeState
from headframe.model.units import MILLI
from headframe.model.work import Network, Part, Resources, Share, Spec
from headframe.model.world import World
from headframe.placement.compiled import Code, plain
from headframe.placement.fit import Room, cards_of, changed, matches, refuse, room_idle, room_now
from headframe.placement.horizon import NEVER_MS, Horizon
from headframe.placement.index import Index, Placed
from headframe.placement.kernels import CLASS, GPUS, HELD, NEVER, Ints
from headframe.placement.policies import Policy
from headframe.placement.score import Demand, Wanted, Weights

LOOK_AHEAD_FROM = 64
"""Nodes from which looking ahead is worth its time, and machine code worth its memory; in smaller fleets, and until the code
is ready, the other terms of the score decide alone."""
LEARN_FIRST, LEARN_MAX = 500, 20_000
"""Requests after which the demand is looked at again: doubling from the first to the last."""
UNLIMITED_W = 1 << 40
KEPT = 1
CLOSED = {state: 0 if state is NodeState.READY else KEPT + number for number, state in enumerate(NodeState, 1)}
"""The column HELD: 0 for a node that takes work, KEPT in this plan for someone, or the state that it is in."""


class Class(msgspec.Struct, frozen=True):
    """Machines that differ in nothing that placement asks about but what is free on them. `cards` by column,
    `runs` where the columns of one kind begin and end.
    """

    number: int
    node: Node
    cards: tuple[Gpu, ...]
    runs: tuple[tuple[int, int], ...]


class Fleet:
    """See the module. `code` runs the kernels."""

    def __init__(self, world: World, code: Code | None = None, policy: Policy = Policy.HEADFRAME) -> None:
        self.world = world
        self.policy = policy
        self.code = code or plain()
        self.rooms: dict[NodeId, Room] = {}
        self.held_until: dict[int, int] = {}
        self.classes: list[Class] = []
        self.ids: list[NodeId] = []
        self.rank: dict[NodeId, int] = {}
        self._numbers: dict[tuple[object, ...], int] = {}
        self._machines: dict[NodeId, tuple[Node, tuple[Gpu, ...], Class, tuple[Gpu, ...]]] = {}
        self._touched: set[NodeId] = world.watch()
        self._seen: dict[Resources, float] = {}
        self._since_learned = 0
        self._learn_after = LEARN_FIRST
        self._idle: list[tuple[Room, int]] | None = None
        self.index: Index
        self.horizon: Horizon
        self.rack: Ints
        self.racks = 0
        self._rebuild()

    @classmethod
    def of(cls, world: World) -> "Fleet":
        """The world's one fleet, made on first use."""
        found = world.views.get(cls)
        if not isinstance(found, cls):
            found = world.views[cls] = cls(world)
        return found

    def use(self, code: Code) -> None:
        """Run the kernels as `code` from now on."""
        self.code = code
        self._rebuild()

    def sync(self) -> None:
        """Follow what changed in the world since the last look."""
        self.rooms.clear()
        self.held_until.clear()
        touched = sorted(self._touched)
        self._touched.clear()
        for node_id in touched:
            rank = self.rank.get(node_id, -1)
            row = self._row(self.world.nodes[node_id]) if rank >= 0 and node_id in self.world.nodes else None
            if row is None:
                self._rebuild()
                return
            if not np.array_equal(row[[CLASS, HELD]], self.index.slots.row[self.index.members.slot[rank], [CLASS, HELD]]):
                self._idle = None
            self.index.set(rank, row)
            self._look_ahead(rank)
        if self._since_learned >= self._learn_after:
            self._since_learned, self._learn_after = 0, min(2 * self._learn_after, LEARN_MAX)
            self.index.learn(self._demand(), self._weights())

    def _look_ahead(self, rank: int) -> None:
        """When the cards of a node are expected to be free."""
        node_id, world = self.ids[rank], self.world
        holders = world.on_node.get(node_id, {}).values()
        _, cards = self._machine(world.nodes[node_id])
        pairs = [(allocation, world.workloads.get(allocation.workload_id)) for allocation in holders]
        self.horizon.set(rank, cards, world.free[node_id].gpu_milli, pairs)

    def ready(self, spec: Spec, now_ms: int) -> Ints:
        """When one rank of `spec` is expected to fit on each node; NEVER where it never does, or something else waits."""
        return self._possible(spec, self.horizon.ready(self._masks(spec), max(1, cards_of(spec.resources.gpu)[1]), now_ms))

    def losses(self, spec: Spec, now_ms: int) -> Ints:
        """What freeing one rank's cards on each node would lose, see `Horizon.losses`; NEVER where that can't be."""
        return self._possible(spec, self.horizon.losses(self._masks(spec), max(1, cards_of(spec.resources.gpu)[1]), now_ms))

    def _possible(self, spec: Spec, at: Ints) -> Ints:
        closed = self.index.slots.row[self.index.members.slot, HELD] != 0
        at[closed | ~self._big_enough(spec) | (at >= NEVER_MS)] = NEVER
        return at

    def _masks(self, spec: Spec) -> Ints:
        return self.index.shapes.mask[self.shape(spec)][self.index.slots.row[self.index.members.slot, CLASS]]

    def _big_enough(self, spec: Spec) -> "np.typing.NDArray[np.bool_]":
        need = spec.resources
        enough = np.array([
            kind.node.cpu_milli >= need.cpu_milli and kind.node.memory_mib >= need.memory_mib and kind.node.disk_mib >= need.disk_mib
            for kind in self.classes
        ], dtype=np.bool_)  # fmt: skip
        return enough[self.index.slots.row[self.index.members.slot, CLASS]]

    def seen(self, resources: Resources) -> None:
        """Note a request, so that scores follow what is asked for."""
        self._seen[resources] = self._seen.get(resources, 0.0) + 1.0
        self._since_learned += 1

    def shape(self, spec: Spec) -> int:
        """The index's number for what one rank of `spec` needs."""
        need = spec.resources
        if need not in self.index:
            masks = [self._mask(need, kind) for kind in self.classes]
            self.index.shape(need, _need(need), masks, [0] * len(self.classes))
        return self.index.shape(need, (), (), ())

    def room(self, node_id: NodeId) -> Room:
        """A node as it is after what this plan has handed out."""
        return self.rooms.get(node_id) or room_now(self.world, self.world.nodes[node_id])

    def place(self, spec: Spec) -> tuple[Part, ...]:
        """Hand out what `spec` needs where it costs least, on distinct nodes; () where it does not fit now."""
        shape = self.shape(spec)
        if spec.nodes == 1:
            placed = self.index.place(shape)
            return (self._part(spec, placed, 0),) if placed else ()
        ranks = cheapest(self.near(spec, self.index.costs(shape)), spec.nodes)
        return tuple(self._part(spec, self.index.put(shape, int(node)), rank) for rank, node in enumerate(ranks))

    def take_back(self, parts: Iterable[Part]) -> None:
        """Undo a placement of this plan."""
        for part in parts:
            room = self._change(part, 1)
            row = self._row_of(room, self._class(room.node))
            row[HELD] = row[HELD] or KEPT * (self.rank[part.node_id] in self.held_until)
            self.index.set(self.rank[part.node_id], row)

    def near(self, spec: Spec, cost: Ints) -> Ints:
        """The costs of a gang's nodes with NEVER for those that are too far from the others: all in one rack where that can be, in the
        rack that it fills best; else, unless that is required, in the racks with most room, as few as can be.
        """
        if spec.nodes == 1 or spec.network is Network.UNCONSTRAINED:
            return cost
        able = np.bincount(self.rack[cost < NEVER], minlength=self.racks)
        enough = np.nonzero(able >= spec.nodes)[0]
        if len(enough):
            chosen = enough[np.argmin(able[enough])]
            return np.where(self.rack == chosen, cost, NEVER)
        if spec.network is Network.REQUIRED:
            return np.full(len(cost), NEVER, dtype=np.int64)
        order = np.argsort(-able, kind="stable")
        needed = int(np.searchsorted(np.cumsum(able[order]), spec.nodes)) + 1
        return np.where(np.isin(self.rack, order[:needed]), cost, NEVER)

    def soonest(self, spec: Spec, ready: Ints) -> Ints:
        """Times at which a gang's nodes are ready, with NEVER outside the rack that has enough of them first, where one rack is required."""
        if spec.nodes == 1 or spec.network is not Network.REQUIRED:
            return ready
        best, chosen = NEVER, -1
        for rack in range(self.racks):
            times = np.sort(ready[self.rack == rack])
            if len(times) >= spec.nodes and times[spec.nodes - 1] < best:
                best, chosen = int(times[spec.nodes - 1]), rack
        return np.where(self.rack == chosen, ready, NEVER)

    def largest_rack(self, spec: Spec) -> int:
        """How many nodes of one rack one rank fits on now, at best."""
        return int(np.bincount(self.rack[self.index.costs(self.shape(spec)) < NEVER], minlength=1).max())

    def states(self) -> list[tuple[NodeId, int]]:
        """One node of each state that exists, and how many nodes are in it; by rank."""
        slots = self.index.slots
        live = np.nonzero(slots.count)[0]
        live = live[np.argsort(slots.root[live], kind="stable")]
        return [(self.ids[slots.root[slot]], int(slots.count[slot])) for slot in live]

    def stranded_milli(self) -> float:
        """Free thousandths that a typical request cannot use, averaged over the typical requests: FGD's fragmentation."""
        self.sync()
        slots, code = self.index.slots, self.code
        return sum(code.stranded(slots.row[slot], self.index.scores) * int(slots.count[slot]) for slot in np.nonzero(slots.count)[0])

    def idle_rooms(self) -> list[tuple[Room, int]]:
        """One idle room of each class with nodes that are not retired, and how many nodes are in it."""
        if self._idle is not None:
            return self._idle
        rows = self.index.rows()
        there = np.nonzero(rows[:, HELD] != CLOSED[NodeState.RETIRED])[0]
        _, first, count = np.unique(rows[there, CLASS], return_index=True, return_counts=True)
        self._idle = [
            (room_idle(self.world, self.world.nodes[self.ids[there[rank]]]), int(n)) for rank, n in zip(first, count, strict=True)
        ]  # fmt: skip
        return self._idle

    def kinds(self) -> list[Gpu]:
        """One card of each kind on nodes that are not retired."""
        found = {_like(gpu): gpu for room, _ in self.idle_rooms() for gpu in room.gpus.values() if gpu.id in room.gpu_milli}
        return [found[like] for like in sorted(found)]

    def hold(self, rank: int, until_ms: int) -> None:
        """Keep a node for one workload for the rest of this plan; others may use it only if they end by `until_ms`."""
        self.held_until[rank] = until_ms
        self._set_held(rank, KEPT)

    def _set_held(self, rank: int, held: int) -> None:
        row = self.index.row(rank)
        row[HELD] = held
        self._touched.add(self.ids[rank])
        self.index.set(rank, row)

    def backfill(self, spec: Spec, ends_ms: int) -> tuple[Part, ...]:
        """Hand out nodes that are kept for later to work that ends before; () where it does not fit."""
        usable = [rank for rank, until in self.held_until.items() if until >= ends_ms and refuse(spec, self.room(self.ids[rank]), idle=False) is None]
        if len(usable) < spec.nodes:
            return ()
        parts: list[Part] = []
        for number, rank in enumerate(sorted(usable, key=lambda rank: (-self.held_until[rank], rank))[: spec.nodes]):
            self._set_held(rank, 0)
            parts.append(self._part(spec, self.index.put(self.shape(spec), rank), number))
            self._set_held(rank, KEPT)
        return tuple(parts)

    def _part(self, spec: Spec, placed: Placed, rank: int) -> Part:
        """Name the cards: those of the kind and fullness that the index chose, lowest number first."""
        room = self.room(self.ids[placed.node])
        need, kind = spec.resources, self._class(room.node)
        each, count = cards_of(need.gpu)
        if count == 0:
            chosen: list[Gpu] = []
        elif each < MILLI:
            like = _like(kind.cards[placed.column - GPUS])
            free = (gpu for gpu in room.gpus.values() if room.gpu_milli.get(gpu.id) == placed.milli and _like(gpu) == like)
            chosen = [min(free, key=_by_index)]
        else:
            whole = (gpu for gpu in room.gpus.values() if room.gpu_milli.get(gpu.id) == MILLI and matches(need.gpu, gpu))
            order = {_like(gpu): column for column, gpu in enumerate(kind.cards)}
            chosen = sorted(sorted(whole, key=lambda gpu: (-order[_like(gpu)], gpu.index, gpu.id))[:count], key=_by_index)
        assert len(chosen) == count, (spec, placed, room)
        part = Part(
            rank=rank, node_id=room.node.id, cpu_milli=need.cpu_milli, memory_mib=need.memory_mib, disk_mib=need.disk_mib,
            shares=tuple(Share(gpu_id=gpu.id, index=gpu.index, model=gpu.model, milli=each) for gpu in chosen),
        )  # fmt: skip
        self._change(part, -1)
        return part

    def _change(self, part: Part, sign: int) -> Room:
        room = self.rooms[part.node_id] = changed(self.room(part.node_id), part, sign)
        self._touched.add(part.node_id)
        return room

    def _rebuild(self) -> None:
        """Everything from the world: at the start, for new machines, and when the demand has changed."""
        self._touched.clear()
        self._idle = None
        self.ids = sorted(self.world.nodes)
        self.rank = {node_id: rank for rank, node_id in enumerate(self.ids)}
        self.classes, self._numbers, self._machines = [], {}, {}
        for node_id in self.ids:
            self._class(self.world.nodes[node_id])
        width = max((len(kind.cards) for kind in self.classes), default=0) or 1
        kinds = np.full((len(self.classes), width), -1, dtype=np.int64)
        for kind in self.classes:
            alike = {_like(gpu): column for column, gpu in enumerate(kind.cards)}
            kinds[kind.number, : len(kind.cards)] = [alike[_like(gpu)] for gpu in kind.cards]
        self._width = width
        rows = np.zeros((len(self.ids), GPUS + width), dtype=np.int64)
        for rank, node_id in enumerate(self.ids):
            node = self.world.nodes[node_id]
            rows[rank] = self._row_of(room_now(self.world, node), self._class(node))
        self.index = Index(rows, kinds, self._demand(), self.policy, self._weights(), self.code)
        names = sorted({node.rack_id for node in self.world.nodes.values()})
        number = {rack_id: n for n, rack_id in enumerate(names)}
        self.racks = len(names)
        self.rack = np.array([number[self.world.nodes[node_id].rack_id] for node_id in self.ids], dtype=np.int64)
        self.horizon = Horizon(len(self.ids), width)
        for rank in range(len(self.ids)):
            self._look_ahead(rank)

    def _weights(self) -> Weights:
        ahead = len(self.ids) >= LOOK_AHEAD_FROM and self.code is not plain()
        return Weights() if ahead else Weights(rollout=0)

    def _demand(self) -> Demand:
        """What was asked for, older requests counting less each time, on top of a little of everything that fits the machines."""
        for workload in () if self._seen else self.world.workloads.values():
            self._seen[workload.spec.resources] = self._seen.get(workload.spec.resources, 0.0) + 1.0
        wanted = {resources: often for resources, often in self._seen.items() if often >= 1 / 64}
        self._seen = {resources: often / 2 for resources, often in wanted.items()}
        total = sum(wanted.values())
        for resources in _likely(self.classes) or [Resources()]:
            wanted[resources] = wanted.get(resources, 0.0) + max(1.0, total / 1000)
        return Demand.of(
            Wanted(
                need=_need(resources), mask=tuple(self._mask(resources, kind) for kind in self.classes), often=often,
                scope=f"{resources.gpu.model}/{resources.gpu.memory_min_mib}/{resources.gpu.memory_max_mib}",
            )
            for resources, often in wanted.items()
        )  # fmt: skip

    def _mask(self, need: Resources, kind: Class) -> int:
        """The columns of a class with cards that do, as bits."""
        return sum(1 << column for column, gpu in enumerate(kind.cards) if matches(need.gpu, gpu))

    def _class(self, node: Node) -> Class:
        return self._machine(node)[0]

    def _machine(self, node: Node) -> tuple[Class, tuple[Gpu, ...]]:
        """A node's class and its cards by column, remembered while node and cards are the same."""
        there = tuple(self.world.node_gpus[node.id].values())
        known = self._machines.get(node.id)
        if known is not None and known[0] is node and known[1] == there:
            return known[2], known[3]
        cards = tuple(sorted(there, key=_by_kind))
        key = (node.engine, node.cpu_milli, node.memory_mib, node.disk_mib, *map(_like, cards))
        number = self._numbers.get(key, -1)
        if number < 0:
            number = self._numbers[key] = len(self.classes)
            self.classes.append(Class(number=number, node=node, cards=cards, runs=_runs(cards)))
        self._machines[node.id] = (node, there, self.classes[number], cards)
        return self.classes[number], cards

    def _row(self, node: Node) -> Ints | None:
        """A node's state as it is in the world; None where it is of a class that the index has no place for."""
        known = len(self.classes)
        kind = self._class(node)
        if kind.number >= self.index.classes or len(kind.cards) > self._width or len(self.classes) > known:
            return None
        return self._row_of(room_now(self.world, node), kind)

    def _row_of(self, room: Room, kind: Class) -> Ints:
        row = np.full(GPUS + self._width, -1, dtype=np.int64)
        row[:GPUS] = (kind.number, CLOSED[room.node.state], room.cpu_milli, room.memory_mib, room.disk_mib, UNLIMITED_W, 0)
        milli = [room.gpu_milli.get(gpu.id, -1) for gpu in self._machine(room.node)[1]]
        for begin, end in kind.runs:
            milli[begin:end] = sorted(milli[begin:end])
        row[GPUS : GPUS + len(milli)] = milli
        return row


def cheapest(cost: Ints, count: int) -> Sequence[int]:
    """The `count` cheapest nodes in order of cost, ties by rank; () where fewer can be had."""
    able = np.nonzero(cost < NEVER)[0]
    if len(able) < count:
        return ()
    chosen = cost[able]
    if len(able) > count:
        limit = np.partition(chosen, count - 1)[count - 1]
        below, equal = able[chosen < limit], able[chosen == limit]
        able = np.concatenate([below, equal[: count - len(below)]])
        chosen = cost[able]
    return able[np.lexsort((able, chosen))].tolist()


def _need(need: Resources) -> tuple[int, ...]:
    each, count = cards_of(need.gpu)
    tag = (0 if each < MILLI else min(count, 8).bit_length()) if count else 5
    return (need.cpu_milli, need.memory_mib, need.disk_mib, each if count else 0, count, tag)


def _likely(classes: Sequence[Class]) -> list[Resources]:
    """What to expect of any machine before anyone has asked: halves, single cards, pairs, and all of it, each with its part of
    the host.
    """
    found: dict[Resources, None] = {}
    for kind in classes:
        cards = len(kind.cards)
        for part in (0.5, 1, 2, 4, 8):
            if part <= cards:
                share = part / cards
                host = kind.node
                gpu = Resources().gpu
                found[
                    Resources(
                        gpu=msgspec.structs.replace(gpu, milli=round(part * MILLI)), cpu_milli=int(host.cpu_milli * share),
                        memory_mib=int(host.memory_mib * share), disk_mib=0,
                    )
                ] = None  # fmt: skip
    return list(found)


def _runs(cards: Sequence[Gpu]) -> tuple[tuple[int, int], ...]:
    """Where the columns of one kind begin and end."""
    starts = [column for column, gpu in enumerate(cards) if column == 0 or _like(cards[column - 1]) != _like(gpu)]
    return tuple(itertools.pairwise([*starts, len(cards)]))


def _like(gpu: Gpu) -> tuple[str, int, str]:
    return (gpu.model, gpu.memory_mib, gpu.compute_capability)


def _by_kind(gpu: Gpu) -> tuple[str, int, str, int, GpuId]:
    return (*_like(gpu), gpu.index, gpu.id)


def _by_index(gpu: Gpu) -> tuple[int, GpuId]:
    return (gpu.index, gpu.id)
