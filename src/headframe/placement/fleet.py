"""The world as placement sees it: machines that are alike as one class, free capacity as rows of numbers.

One `Fleet` belongs to one world and follows it: the world notes which nodes were touched, and only their rows are made anew.
What a plan hands out is written into the rows at once and the nodes noted as touched, so the next look finds the truth again.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
import numpy as np

from headframe.model.fleet import Gpu, Node
from headframe.model.ids import AllocationId, GpuId, NodeId, WorkloadId
from headframe.model.report import Policy
from headframe.model.states import NodeState
from headframe.model.units import MILLI, faded
from headframe.model.work import Allocation, Part, Resources, Spec, Tier, Workload
from headframe.model.world import World
from headframe.placement.classes import UNUSABLE, Class, Classes, by_index, like, likely
from headframe.placement.compiled import Code, plain
from headframe.placement.fit import Room, cards_of, changed, part_of, refuse, room_idle, room_now
from headframe.placement.horizon import NEVER_MS, Horizon, outlook
from headframe.placement.index import Index, Placed
from headframe.placement.kernels import CLASS, CPU, FX, GPUS, HELD, NEVER, Ints
from headframe.placement.power import drawn_w
from headframe.placement.racks import Racks, lemon
from headframe.placement.score import Demand, Wanted, Weights

T = TypeVar("T")
LOOK_AHEAD_FROM = 64
"""Nodes from which looking ahead is worth its time, and machine code worth its memory; in smaller fleets the other terms of the score
decide alone."""
LEARN_FIRST, LEARN_MAX = 500, 20_000
"""Requests after which the demand is looked at again: doubling from the first to the last."""
AT_HAND, IMAGE_MINUTES, CACHE_MINUTES = FX // 60, 1, 3
"""What a minute of loading costs, of an hour's work, and how many an image or a cache on a node saves: 20 GB come in three minutes over a gigabit line."""
IMAGES_MAX = 256
CHANGED_MAX = 1_000
"""Nodes that nobody has looked ahead on since they changed: 25 ms for whoever does."""
ANSWERS_MAX = 10_000
"""How many answers about the idle fleet are kept."""
KEPT = 1
CLOSED = {state: 0 if state is NodeState.READY else KEPT + number for number, state in enumerate(NodeState, 1)}
"""The column HELD: 0 for a node that takes work, KEPT in this plan for someone, or the state that it is in."""


class Fleet:
    """See the module. `code` runs the kernels."""

    def __init__(self, world: World, code: Code | None = None, policy: Policy = Policy.HEADFRAME) -> None:
        self.world = world
        self.policy = policy
        self.code = code or plain()
        self.rooms: dict[NodeId, Room] = {}
        self.held_until: dict[int, int] = {}
        self.ids: list[NodeId] = []
        self.rank: dict[NodeId, int] = {}
        self._touched: set[NodeId] = world.watch()
        self._seen: dict[Resources, float] = {}
        self._given, self._back = 0.0, 0.0
        self._since_learned = 0
        self._learn_after = LEARN_FIRST
        self._idle: list[tuple[Room, int]] | None = None
        self.kept: dict[WorkloadId, tuple[NodeId, ...]] = {}  # for whom the last plan kept which nodes
        self._idle_answers: dict[Hashable, Any] = {}
        self._shapes: dict[Resources, int] = {}
        self._images: dict[str, dict[NodeId, None]] = {}
        self.classes: Classes
        self.index: Index
        self._horizon: Horizon
        self._changed: set[int]  # since somebody looked ahead
        self.racks: Racks
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
        if self._touched:
            self._follow()
        if len(self._changed) > CHANGED_MAX:
            self.ahead()
        if self._since_learned >= self._learn_after:
            self._since_learned, self._learn_after = 0, min(2 * self._learn_after, LEARN_MAX)
            self.index.learn(self._demand(), self._weights())

    def _follow(self) -> None:
        touched = sorted(self._touched)
        self._touched.clear()
        racks = {int(self.racks.of[self.rank[key]]) for key in touched if key in self.rank}
        if self.racks.stale(racks):
            self._rebuild()
            return
        for number in sorted(racks & self.racks.limited.keys()):
            self.racks.measure(number)
            touched = sorted({*touched, *(self.ids[rank] for rank in self.racks.limited[number])})
        for node_id in touched:
            if not self._look_again(node_id):
                self._rebuild()
                return

    def _look_again(self, node_id: NodeId) -> bool:
        """Make one node's row anew; False where the index has no place for it."""
        rank, node = self.rank.get(node_id, -1), self.world.nodes.get(node_id)
        if node is None or rank < 0 or self.racks.names[self.racks.of[rank]] != node.rack_id:
            return False
        row = self._row(node)
        if row is None:
            return False
        was, now = self.index.row(rank).tolist(), row.tolist()  # a few numbers: quicker than arrays
        if now != was:  # what has only begun to run took its room when it was granted
            if (now[CLASS], now[HELD], [milli < 0 for milli in now[GPUS:]]) != (was[CLASS], was[HELD], [milli < 0 for milli in was[GPUS:]]):
                self._idle = None
            self._back += max(0, sum(milli for milli in now[GPUS:] if milli > 0) - sum(milli for milli in was[GPUS:] if milli > 0))
            self.index.set(rank, row)
        self._changed.add(rank)
        return True

    def ahead(self) -> Horizon:
        """When cards are expected to be free. Nodes that changed are looked at here, as nobody asks while whatever comes finds room."""
        for rank in self._changed:
            self._horizon.set(rank, *self._held(self.ids[rank]))
        self._changed.clear()
        return self._horizon

    def _held(self, node_id: NodeId) -> tuple[Sequence[Gpu], Mapping[GpuId, int], list[tuple[Allocation, Workload | None]]]:
        """A node's cards by column, those that are there, and who holds some of them."""
        world = self.world
        holders = [(allocation, world.workloads.get(allocation.workload_id)) for allocation in world.on_node.get(node_id, {}).values()]
        return self.classes.machine(world.nodes[node_id])[1], world.free[node_id].gpu_milli, holders

    def ready(self, spec: Spec, now_ms: int) -> Ints:
        """When one rank of `spec` is expected to fit on each node; NEVER where it never does, or something else waits."""
        masks = self._masks(spec)
        return self._possible(masks, self.ahead().ready(masks, self._count(spec), now_ms))

    def losses(self, spec: Spec, now_ms: int, borrowed: Iterable[AllocationId] = ()) -> Ints:
        """What freeing one rank's cards on each node would lose, see `Horizon.losses`; NEVER where that can't be. What is
        `borrowed` can be taken back.
        """
        instead, lent = dict[int, list[int]](), set(borrowed)
        for node_id in sorted({part.node_id for key in lent for part in self.world.held[key].parts}):
            _, instead[self.rank[node_id]] = outlook(*self._held(node_id), lent)
        masks = self._masks(spec)
        return self._possible(masks, self.ahead().losses(masks, self._count(spec), now_ms, instead, for_spot=spec.tier is Tier.SPOT))

    def _count(self, spec: Spec) -> int:
        """How many cards must be free at once."""
        return max(1, cards_of(spec.resources.gpu)[1])

    def _possible(self, masks: Ints, at: Ints) -> Ints:
        closed = self.index.slots.row[self.index.members.slot, HELD] != 0
        at[closed | (masks < 0) | (at >= NEVER_MS)] = NEVER
        return at

    def _masks(self, spec: Spec) -> Ints:
        return self.index.shapes.mask[self.shapes(spec)[0]][self.index.slots.row[self.index.members.slot, CLASS]]

    def ran(self, spec: Spec, parts: Iterable[Part]) -> None:
        """Note what was placed: scores follow what is asked for, and an image is at hand where it has run."""
        self._seen[spec.resources] = self._seen.get(spec.resources, 0.0) + 1.0
        self._given += spec.gpu_milli
        self._since_learned += 1
        if spec.image:
            images = self._images
            there = images[spec.image] = images.pop(spec.image, {})
            there |= {part.node_id: None for part in parts}
            while len(images) > IMAGES_MAX:
                del images[next(iter(images))]

    def at_hand(self, workload: Workload) -> dict[int, int]:
        """Minutes of loading that nodes save it: those that have run its image lately, and those that have its caches."""
        found: dict[int, int] = {}
        if not workload.spec.image and not workload.spec.volumes:
            return found
        images = self._images.get(workload.spec.image, {}) if workload.spec.image else {}
        caches = [self.world.caches.get((workload.project_id, mount.volume), {}) for mount in workload.spec.volumes if mount.cache]
        for nodes, minutes in ((images, IMAGE_MINUTES), *((there, CACHE_MINUTES) for there in caches)):
            for key in nodes:
                if (rank := self.rank.get(key)) is not None:
                    found[rank] = found.get(rank, 0) + minutes
        return found

    def shapes(self, spec: Spec) -> tuple[int, ...]:
        """The index's numbers for what one rank of `spec` needs: one, or one for each group of cards that it could go to."""
        need = spec.resources
        groups = self._shapes.get(need, 1)
        if not all((need, group) in self.index for group in range(groups)):
            masks, watts = self.classes.masks(need), self.classes.watts(need.gpu)
            groups = self._shapes[need] = len(masks)
            for group, mask in enumerate(masks):
                self.index.shape((need, group), _need(need), mask, watts)
        return tuple(self.index.shape((need, group), (), (), ()) for group in range(groups))

    def room(self, node_id: NodeId) -> Room:
        """A node as it is after what this plan has handed out."""
        found = self.rooms.get(node_id) or room_now(self.world, self.world.nodes[node_id])
        if not self.racks.limited:
            return found
        return msgspec.structs.replace(found, power_w=int(self.racks.left_w[self.racks.of[self.rank[node_id]]]))

    def place(self, spec: Spec, among: Sequence[int] = (), near: Mapping[int, int] = MappingProxyType({})) -> tuple[Part, ...]:
        """Hand out what `spec` needs where it costs least, on distinct nodes; () where it does not fit now. `among` are the only
        nodes that will do, where any are given; `near` is how many minutes of loading nodes save.
        """
        shapes = self.shapes(spec)
        if spec.nodes == 1 and len(shapes) == 1 and not (spec.resources.exclusive or among or near):
            placed = self.index.place(shapes[0])
            return (self._part(spec, placed, shapes[0], 0),) if placed else ()
        cost, which = self._costs(spec, shapes)
        if among:
            cost[np.delete(np.arange(len(cost)), among)] = NEVER
        for rank, minutes in near.items():
            if cost[rank] < NEVER:
                cost[rank] -= AT_HAND * minutes * spec.resources.gpu.milli
        ranks = cheapest(self.racks.near(spec, cost), spec.nodes)
        return tuple(self._part(spec, self.index.put(int(which[node]), int(node)), int(which[node]), rank) for rank, node in enumerate(ranks))

    def costs(self, spec: Spec) -> Ints:
        """What one rank of `spec` would cost on each node, NEVER where it does not fit."""
        return self._costs(spec, self.shapes(spec))[0]

    def _costs(self, spec: Spec, shapes: Sequence[int]) -> tuple[Ints, Ints]:
        if len(shapes) == 1:
            cost = self.index.costs(shapes[0])
            which: Ints = np.broadcast_to(np.int64(shapes[0]), cost.shape)
        else:
            each = np.stack([self.index.costs(shape) for shape in shapes])
            cost, which = each.min(axis=0), np.array(shapes, dtype=np.int64)[each.argmin(axis=0)]
        if spec.resources.exclusive:
            rows = self.index.rows()
            whole = np.array([kind.node.cpu_milli for kind in self.classes.all], dtype=np.int64)
            cost[rows[:, CPU] != whole[rows[:, CLASS]]] = NEVER
        if spec.nodes > 1 and self.racks.limited:
            watts, of_class = self.index.shapes.watts[shapes[0]], self.index.rows()[:, CLASS]
            cost = self.racks.within_power(cost, lambda rank: int(watts[of_class[rank]]))
        return cost, which

    def take_back(self, parts: Iterable[Part]) -> None:
        """Undo a placement of this plan."""
        for part in parts:
            self._change(part, 1)
            self._refresh(self.rank[part.node_id])

    def _refresh(self, rank: int) -> None:
        """Write what this plan has left of a node into its row."""
        room = self.room(self.ids[rank])
        row = self._row_of(room, self.classes.of(room.node))
        row[HELD] = row[HELD] or KEPT * (rank in self.held_until)
        self.index.set(rank, row)

    def largest_rack(self, spec: Spec) -> int:
        """How many nodes of one rack one rank fits on now, at best."""
        return self.racks.most(self.costs(spec))

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
        self._idle_answers.clear()
        rows = self.index.rows()
        there = np.nonzero(rows[:, HELD] != CLOSED[NodeState.RETIRED])[0]
        _, first, count = np.unique(rows[there, CLASS], return_index=True, return_counts=True)
        self._idle = [
            (room_idle(self.world, self.world.nodes[self.ids[there[rank]]]), int(n)) for rank, n in zip(first, count, strict=True)
        ]  # fmt: skip
        return self._idle

    def idle_answer(self, key: Hashable, ask: Callable[[Sequence[tuple[Room, int]]], T]) -> T:
        """What `ask` says of the idle rooms, remembered by `key` while they stay as they are."""
        rooms = self.idle_rooms()
        if key not in self._idle_answers:
            if len(self._idle_answers) >= ANSWERS_MAX:
                self._idle_answers.clear()
            self._idle_answers[key] = ask(rooms)
        return self._idle_answers[key]

    def hold(self, rank: int, until_ms: int) -> None:
        """Keep a node for one workload for the rest of this plan; others may use it only if they end by `until_ms`."""
        self.held_until[rank] = until_ms
        self._set_held(rank, KEPT)

    def release(self, rank: int) -> None:
        """Keep a node no longer."""
        del self.held_until[rank]
        self._refresh(rank)

    def _set_held(self, rank: int, held: int) -> None:
        row = self.index.row(rank)
        row[HELD] = held
        self._touched.add(self.ids[rank])
        self.index.set(rank, row)

    def place_on(self, spec: Spec, ranks: Sequence[int]) -> tuple[Part, ...]:
        """Hand out nodes that are kept, the first of these that it fits on; () where it does not fit."""
        usable: list[int] = []
        for rank in ranks:
            if len(usable) < spec.nodes and refuse(spec, self.room(self.ids[rank])) is None:
                usable.append(rank)
        if len(usable) < spec.nodes:
            return ()
        for rank in usable:
            self._set_held(rank, 0)
        parts = self.place(spec, among=usable)
        for rank in usable:
            self._set_held(rank, KEPT)
        return parts

    def _part(self, spec: Spec, placed: Placed, shape: int, rank: int) -> Part:
        """Name the cards: those of the kind and fullness that the index chose; of equals those that broke least, then lowest number first."""
        room, need = self.room(self.ids[placed.node]), spec.resources
        kind, cards = self.classes.machine(room.node)
        each, count = cards_of(need.gpu)
        free, chosen = room.gpu_milli, list[Gpu]()
        for begin, end in reversed(kind.runs) if count else ():  # of the kind in the last columns first, as the kernels do
            if each < MILLI:
                here = begin <= placed.column - GPUS < end
                equals = [gpu for gpu in cards[begin:end] if here and free.get(gpu.id) == placed.milli]
            else:
                mask = int(self.index.shapes.mask[shape, kind.number]) >> begin
                equals = [gpu for n, gpu in enumerate(cards[begin:end]) if mask >> n & 1 and free.get(gpu.id) == MILLI]
            # Cards of one kind are in the order of their numbers, which sorting keeps among equals.
            chosen += sorted(equals, key=lambda gpu: lemon(faded(gpu.faults, gpu.faults_ms, room.node.seen_ms)) if gpu.faults else 0)
        chosen = sorted(chosen[:count], key=by_index)
        assert len(chosen) == count, (spec, placed, room)
        part = part_of(need, room, chosen, rank)
        self._change(part, -1)
        if need.exclusive:
            self._refresh(placed.node)
        return part

    def _change(self, part: Part, sign: int) -> None:
        self.rooms[part.node_id] = changed(self.room(part.node_id), part, sign)
        self._touched.add(part.node_id)
        number = int(self.racks.of[self.rank[part.node_id]])
        if number in self.racks.limited:
            self.racks.left_w[number] += sign * drawn_w(self.world, (part,), {part.node_id})
            for rank in self.racks.limited[number]:
                self._refresh(rank)

    def _rebuild(self) -> None:
        """Everything from the world: at the start, for new machines, and when a rack has changed."""
        self._touched.clear()
        self._since_learned = 0
        self._shapes.clear()
        self._idle = None
        self.ids = sorted(self.world.nodes)
        self.rank = {node_id: rank for rank, node_id in enumerate(self.ids)}
        self.classes = Classes(self.world)
        for node_id in self.ids:
            self.classes.of(self.world.nodes[node_id])
        width = self._width = self.classes.width
        kinds = np.full((len(self.classes.all), width), -1, dtype=np.int64)
        for kind in self.classes.all:
            alike = {like(gpu): column for column, gpu in enumerate(kind.cards)}
            kinds[kind.number, : len(kind.cards)] = [alike[like(gpu)] for gpu in kind.cards]
        self.racks = Racks(self.world, self.ids)
        rows = np.zeros((len(self.ids), GPUS + width), dtype=np.int64)
        for rank, node_id in enumerate(self.ids):
            rows[rank] = self._row_of(self.room(node_id), self.classes.of(self.world.nodes[node_id]))
        self.index = Index(rows, kinds, self._demand(), self.policy, self._weights(), self.code)
        self._horizon = Horizon(len(self.ids), width)
        self._changed = set(range(len(self.ids)))

    def _weights(self) -> Weights:
        return Weights() if len(self.ids) >= LOOK_AHEAD_FROM else Weights(rollout=0)

    def _demand(self) -> Demand:
        """What was asked for, older requests counting less each time, on top of a little of everything that fits the machines."""
        for workload in () if self._seen else self.world.workloads.values():
            self._seen[workload.spec.resources] = self._seen.get(workload.spec.resources, 0.0) + 1.0
        wanted = {resources: often for resources, often in self._seen.items() if often >= 1 / 64}
        self._seen = {resources: often / 2 for resources, often in wanted.items()}
        turnover = min(1.0, self._back / max(1.0, self._given))
        self._given, self._back = self._given / 2, self._back / 2
        total = sum(wanted.values())
        for resources in likely(self.classes.all) or [Resources()]:
            wanted[resources] = wanted.get(resources, 0.0) + max(1.0, total / 1000)
        kinds = (
            Wanted(need=_need(resources), mask=mask, often=often, scope=str([bits not in {UNUSABLE, 0} for bits in mask]))
            for resources, often in wanted.items()
            for mask in self.classes.masks(resources)[:1]
        )
        return Demand.of(kinds, turnover)

    def _row(self, node: Node) -> Ints | None:
        """A node's state as it is in the world; None where it is of a class that the index has no place for."""
        kind = self.classes.of(node)
        if kind.number >= self.index.classes or len(kind.cards) > self._width:
            return None
        return self._row_of(self.room(node.id), kind)

    def _row_of(self, room: Room, kind: Class) -> Ints:
        node = room.node
        row = np.full(GPUS + self._width, -1, dtype=np.int64)
        surcharge = lemon(faded(node.faults, node.faults_ms, node.seen_ms)) + self.racks.heat(int(self.racks.of[self.rank[node.id]]))
        row[:GPUS] = (kind.number, CLOSED[node.state], room.cpu_milli, room.memory_mib, room.disk_mib, room.power_w, 0, surcharge)
        milli = [room.gpu_milli.get(gpu.id, -1) for gpu in self.classes.machine(node)[1]]
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
