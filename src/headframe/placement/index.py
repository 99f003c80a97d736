"""The fleet as arrays: which node is in which state, and the shapes that were asked for. Kept up to date by single rows.

Nodes are numbered by rank, their order by id, which breaks every tie.
"""

from collections.abc import Hashable, Sequence

import msgspec
import numpy as np

from headframe.model.report import Policy
from headframe.placement.compiled import Code, plain
from headframe.placement.kernels import (
    CLASS,
    CPU,
    GPUS,
    LIVE,
    MILLI,
    NEED_COUNT,
    NEED_EACH,
    NEVER,
    PAGE,
    PLACED,
    SHAPE_WIDTH,
    Arrays,
    Ints,
    Members,
    Scores,
    Shapes,
    Slots,
)  # fmt: skip
from headframe.placement.policies import NUMBER
from headframe.placement.score import MEMO, Demand, Weights, tables

SHAPES_MAX = 512
LOG = 1 << 12


class Placed(msgspec.Struct, frozen=True):
    """A node, and for a fraction the column of its state and what was free on the card (0 for whole cards)."""

    node: int
    column: int
    milli: int


class Index:
    """`rows` [nodes, columns] of states in rank order, `kinds` [classes, cards] of card kinds."""

    def __init__(self, rows: Ints, kinds: Ints, demand: Demand, policy: Policy = Policy.HEADFRAME, weights: Weights | None = None,
                 code: Code | None = None, memo: int = MEMO) -> None:  # fmt: skip
        nodes, classes = len(rows), len(kinds)
        self.classes = classes
        self.code = code or plain()
        self.policy = policy
        self.pages = 2 * nodes // PAGE + classes + 2
        self.slots = _slots(self.pages, classes, rows.shape[1], nodes)
        self.members = Members(*(np.full(nodes, -1, dtype=np.int64) for _ in Members._fields))
        self.shapes = _shapes(self.pages, classes)
        self._largest = max(1, int(rows[:, CPU].max(initial=1))), max(MILLI, int(np.maximum(rows[:, GPUS:], 0).sum(axis=1).max(initial=0)))
        self.scores: Scores = tables(demand, kinds, (NUMBER[policy], *self._largest), weights or Weights(), memo)
        self._known: dict[Hashable, int] = {}
        self._out = np.zeros(3, dtype=np.int64)
        self._arrays = self._all()
        for node in range(nodes):
            self.code.move(node, rows[node], self._arrays)

    def _all(self) -> Arrays:
        return self.code.arrays(self.slots, self.members, self.shapes, self.scores, self._out)

    def learn(self, demand: Demand, weights: Weights) -> None:
        """Score by another demand from now on; where everything is stays known."""
        policy = (NUMBER[self.policy], *self._largest)
        self.scores = tables(demand, self.scores.kind, policy, weights, len(self.scores.memo_key))
        self._arrays = self._all()
        self.shapes.epoch[:] = -1
        for slot in np.nonzero(self.slots.count)[0]:
            self.code.account(self.slots.row[slot], int(self.slots.count[slot]), self.scores)

    def __len__(self) -> int:
        return len(self.members.slot)

    @property
    def states(self) -> int:
        """How many different states the nodes are in."""
        return int(self.slots.size[LIVE])

    def row(self, node: int) -> Ints:
        """A copy of a node's state."""
        return self.slots.row[self.members.slot[node]].copy()

    def rows(self) -> Ints:
        """All states, by rank."""
        return self.slots.row[self.members.slot]

    def set(self, node: int, row: Ints) -> None:
        """Put a node into a state."""
        self.code.move(node, row, self._arrays)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._known

    def shape(self, key: Hashable, need: Sequence[int], mask: Sequence[int], watts: Sequence[int]) -> int:
        """The number of a shape, known by `key`; the one asked for longest ago makes room for a new one."""
        number = self._known.pop(key, -1)
        if number < 0:
            assert len(need), "an unknown shape comes with its needs"
            number = len(self._known) if len(self._known) < SHAPES_MAX else self._known.pop(next(iter(self._known)))
            self.shapes.need[number] = need
            self.shapes.mask[number] = mask
            self.shapes.watts[number] = watts
            self.shapes.epoch[number] = -1
        self._known[key] = number
        return number

    def place(self, shape: int) -> Placed | None:
        """Put one rank where it costs least; None where it fits nowhere."""
        if self.policy is Policy.RANDOM:
            return self._anywhere(shape)
        node = self.code.place(shape, self._arrays)
        return Placed(node, int(self._out[0]), int(self._out[1])) if node >= 0 else None

    def put(self, shape: int, node: int) -> Placed:
        """Put one rank on a node that it fits on."""
        self.code.refresh(shape, self.slots, self.shapes, self.scores)
        self.code.put(node, shape, self._arrays)
        return Placed(node, int(self._out[0]), int(self._out[1]))

    def costs(self, shape: int) -> Ints:
        """What the shape would cost on each node, NEVER where it does not fit."""
        self.code.refresh(shape, self.slots, self.shapes, self.scores)
        milli = int(self.shapes.need[shape, NEED_EACH] * self.shapes.need[shape, NEED_COUNT])
        cost = self.shapes.cost[shape][self.members.slot]
        return np.where(cost == NEVER, NEVER, cost + self.scores.price[self.slots.row[self.members.slot, CLASS]] * milli)

    def _anywhere(self, shape: int) -> Placed | None:
        fitting = np.nonzero(self.costs(shape) < NEVER)[0]
        if not len(fitting):
            return None
        turn = int(self.slots.size[PLACED])
        node = int(fitting[_shuffled(turn) * len(fitting) >> 32])
        need, slot = self.shapes.need[shape], self.members.slot[node]
        if 0 < need[NEED_EACH] < MILLI:
            mask, row = int(self.shapes.mask[shape, self.slots.row[slot, CLASS]]), self.slots.row[slot]
            cards = [p for p in range(GPUS, len(row)) if mask >> (p - GPUS) & 1 and row[p] >= need[NEED_EACH]]
            self.shapes.pick[shape, slot] = cards[_shuffled(turn + 1) * len(cards) >> 32]
        return self.put(shape, node)


def _shuffled(turn: int) -> int:
    """32 bits that look random: the same for the same turn."""
    x = (turn * 2654435761 + 12345) & 0xFFFFFFFF
    x = ((x ^ x >> 16) * 0x45D9F3B) & 0xFFFFFFFF
    return (x ^ x >> 16) & 0xFFFFFFFF


def _slots(pages: int, classes: int, width: int, nodes: int) -> Slots:
    size = pages * PAGE
    return Slots(
        row=np.zeros((size, width), dtype=np.int64), count=np.zeros(size, dtype=np.int64), root=np.full(size, -1, dtype=np.int64),
        stamp=np.zeros(size, dtype=np.int64), spare=np.full(size, -1, dtype=np.int64), page_class=np.zeros(pages, dtype=np.int64),
        class_spare=np.full(classes, -1, dtype=np.int64), table=np.full(1 << (4 * nodes + 64).bit_length(), -1, dtype=np.int64),
        log=np.zeros(LOG, dtype=np.int64), size=np.zeros(4, dtype=np.int64),
    )  # fmt: skip


def _shapes(pages: int, classes: int) -> Shapes:
    """Zeroed memory, of which the system hands out only what is touched."""
    slots = pages * PAGE
    return Shapes(
        need=np.zeros((SHAPES_MAX, SHAPE_WIDTH), dtype=np.int64), mask=np.zeros((SHAPES_MAX, classes), dtype=np.int64),
        watts=np.zeros((SHAPES_MAX, classes), dtype=np.int64), cost=np.zeros((SHAPES_MAX, slots), dtype=np.int64),
        pick=np.zeros((SHAPES_MAX, slots), dtype=np.int8), stamp=np.zeros((SHAPES_MAX, slots), dtype=np.int32),
        page_cost=np.zeros((SHAPES_MAX, pages), dtype=np.int64), page_slot=np.zeros((SHAPES_MAX, pages), dtype=np.int32),
        cursor=np.zeros(SHAPES_MAX, dtype=np.int64), epoch=np.full(SHAPES_MAX, -1, dtype=np.int64),
    )  # fmt: skip
