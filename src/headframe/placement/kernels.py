"""The arithmetic of placement on plain arrays: which state fits, what a placement costs there, and where the best one is.

Nodes in the same state (same class, same free capacity) share one *slot*; a decision costs what changed since its shape was
last asked for, not the number of nodes. Written once, in the part of Python that Numba compiles: `compiled.py` runs the
same functions as machine code; `vectors.py` gives the same integers by NumPy without it. No function here allocates.
"""

# An element of an array is a number here, which NumPy's types do not say.
# pyright: reportArgumentType=false, reportReturnType=false, reportIncompatibleMethodOverride=false

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# The columns of a state. GPU cards follow from column GPUS, free thousandths each, ascending within one kind; -1 is no card.
# SURCHARGE is what a card costs more on this node than elsewhere, in 1/1024 of its price.
CLASS, HELD, CPU, MEMORY, DISK, POWER, TAGS, SURCHARGE, GPUS = range(9)
# The columns of a shape.
NEED_CPU, NEED_MEMORY, NEED_DISK, NEED_EACH, NEED_COUNT, NEED_TAG = range(6)
SHAPE_WIDTH = 6

MILLI = 1000
FX = 1024
"""Costs count 1/1024 of a thousandth of a GPU."""
NEVER = 1 << 60
PAGE = 64
"""Slots of one class lie together in pages, each with its best slot kept; choosing looks at pages only."""
BLOCKS = 4
TAG_BITS = 8
NOTCH = 1 << 24
"""More than any node has free: one rank of preference."""

RANDOM, FIRST, BEST_FIT, DOT_PRODUCT, CLUSTERING, PACKING, FGD, OURS = range(8)


class Slots(NamedTuple):
    """The states that exist: `row` [slots, columns], how many nodes are in each, the first of them by rank, and the page
    bookkeeping. `stamp` changes when a slot is used for another state.
    """

    row: Ints
    count: Ints
    root: Ints
    stamp: Ints
    spare: Ints
    page_class: Ints
    class_spare: Ints
    table: Ints
    log: Ints
    size: Ints


class Members(NamedTuple):
    """Which slot each node is in, and a pairing heap per slot that keeps its lowest rank at the root."""

    slot: Ints
    child: Ints
    right: Ints
    left: Ints


class Shapes(NamedTuple):
    """Requests: `need` [shapes, SHAPE_WIDTH], usable cards as bits and watts by class, and each shape's book of costs."""

    need: Ints
    mask: Ints
    watts: Ints
    cost: Ints
    pick: npt.NDArray[np.int8]
    stamp: npt.NDArray[np.int32]
    page_cost: Ints
    page_slot: npt.NDArray[np.int32]
    cursor: Ints
    epoch: Ints


class Scores(NamedTuple):
    """What a policy knows of the workload: see `score.py` for the meaning of each."""

    policy: Ints
    weight: Ints
    kind: Ints
    mix: Ints
    mix_mask: Ints
    mix_share: Floats
    sequence: Ints
    value: Ints
    block_size: Ints
    block_share: Ints
    block_price: Ints
    block_left: Ints
    scope: npt.NDArray[np.bool_]
    scope_share: Ints
    free: Ints
    price: Ints
    memo_key: Ints
    memo_value: Ints
    epoch: Ints
    scratch: Ints


class Arrays(NamedTuple):
    """Everything that a placement reads and writes; `out` is what it says beside the node."""

    slots: Slots
    members: Members
    shapes: Shapes
    scores: Scores
    out: Ints


# Indices into Slots.size.
USED_PAGES, LOG_END, LIVE, PLACED = range(4)


def fits(row: Ints, need: Ints, mask: int, watts: int) -> bool:
    """Whether one rank of the shape fits in the state."""
    if row[HELD] or mask < 0 or row[CPU] < need[NEED_CPU] or row[MEMORY] < need[NEED_MEMORY]:
        return False
    if row[DISK] < need[NEED_DISK] or row[POWER] < watts:
        return False
    count = need[NEED_COUNT]
    if count == 0:
        return True
    for p in range(GPUS, row.shape[0]):
        if (mask >> (p - GPUS)) & 1 and row[p] >= need[NEED_EACH]:
            count -= 1
            if count == 0:
                return True
    return False


def next_pick(row: Ints, kind: Ints, each: int, mask: int, after: int) -> int:
    """The column of the next card that a fraction fits on, tightest first; equal remnants of one kind count once. `after` is
    what `tried` gave for the last one, -1 at first.
    """
    best = -1
    for p in range(GPUS, row.shape[0]):
        if not (mask >> (p - GPUS)) & 1 or row[p] < each or tried(row, p) <= after:
            continue
        if p > GPUS and row[p - 1] == row[p] and kind[p - 1 - GPUS] == kind[p - GPUS]:
            continue
        if best < 0 or row[p] < row[best]:
            best = p
    return best


def tried(row: Ints, p: int) -> int:
    """The place of a card in the order in which cards are tried."""
    return row[p] * 64 + p


def settle(row: Ints, kind: Ints, at: int, milli: int) -> None:
    """Lower the card in column `at` to `milli`, keeping cards of one kind ascending."""
    p = at
    while p > GPUS and kind[p - 1 - GPUS] == kind[at - GPUS] and row[p - 1] > milli:
        row[p] = row[p - 1]
        p -= 1
    row[p] = milli


def taken(row: Ints, kind: Ints, need: Ints, mask: int, watts: int, pick: int, out: Ints) -> None:
    """The state after the shape was placed: a fraction on the card in column `pick`, whole cards from the right."""
    for i in range(row.shape[0]):
        out[i] = row[i]
    out[CPU] -= need[NEED_CPU]
    out[MEMORY] -= need[NEED_MEMORY]
    out[DISK] -= need[NEED_DISK]
    out[POWER] -= watts
    if need[NEED_TAG] >= 0:
        out[TAGS] += 1 << (TAG_BITS * need[NEED_TAG])
    count, each = need[NEED_COUNT], need[NEED_EACH]
    if count == 0:
        return
    if each < MILLI:
        settle(out, kind, pick, row[pick] - each)
        return
    for p in range(row.shape[0] - 1, GPUS - 1, -1):
        if count > 0 and (mask >> (p - GPUS)) & 1 and row[p] == MILLI:
            out[p] = 0
            count -= 1
    for i in range(GPUS + 1, row.shape[0]):
        settle(out, kind, i, out[i])


def whole(row: Ints) -> int:
    """Wholly free cards."""
    count = 0
    for p in range(GPUS, row.shape[0]):
        if row[p] == MILLI:
            count += 1
    return count


def left(row: Ints) -> int:
    """Free thousandths on all cards."""
    total = 0
    for p in range(GPUS, row.shape[0]):
        if row[p] > 0:
            total += row[p]
    return total


def idle(row: Ints, s: Scores) -> int:
    """Thousandths left idle when the node alone is filled with each of the fixed sequences of likely requests, summed over
    the sequences: how well what is left of the node can still be sold.
    """
    total = 0
    cards = s.scratch[1]
    for k in range(s.sequence.shape[0]):
        total += _filled(row, s, k, cards)
    return total


def _filled(row: Ints, s: Scores, k: int, cards: Ints) -> int:
    cpu, memory, rest = row[CPU], row[MEMORY], 0
    width, c = row.shape[0], row[CLASS]
    for p in range(GPUS, width):
        cards[p] = max(row[p], 0)
        rest += cards[p]
    for i in range(s.sequence.shape[1]):
        if rest <= 0:
            break
        t = s.sequence[k, i]
        if s.mix[t, NEED_CPU] > cpu or s.mix[t, NEED_MEMORY] > memory:
            continue
        count, each, mask = s.mix[t, NEED_COUNT], s.mix[t, NEED_EACH], max(s.mix_mask[t, c], 0)
        if count > 0:
            if not _pack(cards, width, count, each, mask):
                continue
            rest -= count * each
        cpu -= s.mix[t, NEED_CPU]
        memory -= s.mix[t, NEED_MEMORY]
    return rest


def _pack(cards: Ints, width: int, count: int, each: int, mask: int) -> bool:
    """Put a request on the cards, a fraction on the fullest that holds it; False, and nothing done, where it does not fit."""
    if each < MILLI:
        best = -1
        for p in range(GPUS, width):
            if (mask >> (p - GPUS)) & 1 and cards[p] >= each and (best < 0 or cards[p] < cards[best]):
                best = p
        if best < 0:
            return False
        cards[best] -= each
        return True
    free = 0
    for p in range(GPUS, width):
        if (mask >> (p - GPUS)) & 1 and cards[p] == MILLI:
            free += 1
    if free < count:
        return False
    for p in range(GPUS, width):
        if count > 0 and (mask >> (p - GPUS)) & 1 and cards[p] == MILLI:
            cards[p] = 0
            count -= 1
    return True


def hashed(row: Ints) -> int:
    """A 62-bit hash of a state, from products that never overflow 63 bits (so that Python, NumPy and machine code agree)."""
    a, b, mask = 1, 7, (1 << 42) - 1
    for i in range(row.shape[0]):
        a = (a * 1000003 + row[i] + 17) & mask
        a ^= a >> 19
        b = (b * 998244 + row[i] * 3 + 5) & mask
        b ^= b >> 23
    return ((a << 20) ^ b) & ((1 << 62) - 1)


def unsold_kept(row: Ints, s: Scores) -> int:
    """What of the node stays unsold, weighted, times the number of sequences: by looking ahead, and where work comes and goes also
    what is stranded now. Remembered by state.
    """
    key = hashed(row) + 1
    i = key & (s.memo_key.shape[0] - 1)
    if s.memo_key[i] != key:
        value = idle(row, s) * s.weight[0]
        if s.weight[2] > 0:
            value += s.sequence.shape[0] * int(s.weight[2] * stranded(row, s))
        s.memo_value[i] = value
        s.memo_key[i] = key
    return s.memo_value[i]


def stranded(row: Ints, s: Scores) -> float:
    """FGD's fragmentation of a node: thousandths that a typical request cannot use, averaged over the typical requests
    (Weng et al., "Beware of Fragmentation", USENIX ATC 2023, section 3).
    """
    rest, total = left(row), 0.0
    if rest == 0:
        return total
    c, width = row[CLASS], row.shape[0]
    for t in range(s.mix.shape[0]):
        count, each, mask = s.mix[t, NEED_COUNT], s.mix[t, NEED_EACH], max(s.mix_mask[t, c], 0)
        free, lost = 0, 0
        for p in range(GPUS, width):
            if (mask >> (p - GPUS)) & 1 and row[p] >= each:
                free += 1
            elif row[p] > 0:
                lost += row[p]
        if count == 0 or mask <= 0 or free < count or s.mix[t, NEED_CPU] > row[CPU] or s.mix[t, NEED_MEMORY] > row[MEMORY]:
            lost = rest
        total += s.mix_share[t] * lost
    return total


def cost_of(row: Ints, after: Ints, need: Ints, s: Scores, pick: int) -> int:
    """What placing the shape costs, lowest is best; the policies are described in `policies.py`."""
    policy = s.policy[0]
    if policy == OURS:
        return _cost_ours(row, after, need, s, pick)
    if policy == BEST_FIT:
        return -int(100.0 * (1 - after[CPU] / s.policy[1] / 2 - left(after) / s.policy[2] / 2))
    if policy == DOT_PRODUCT:
        free = whole(row) * MILLI if need[NEED_EACH] >= MILLI else left(row)
        milli = need[NEED_COUNT] * need[NEED_EACH]
        product = row[CPU] * need[NEED_CPU] / s.policy[1] / s.policy[1] + free * milli / s.policy[2] / s.policy[2]
        return -int(100.0 * (1 - product / 2))
    if policy == PACKING:
        return _cost_packing(row, need)
    if policy == CLUSTERING:
        return _cost_clustering(row, after, need, s)
    if policy == FGD:
        # The published scheduler cuts its score to an integer, and ties go to the first node: without that it loses 1.1 points.
        return -int(100.0 / (1.0 + np.exp(-(stranded(row, s) - stranded(after, s)) / 1000.0)))
    return 0


def _cost_ours(row: Ints, after: Ints, need: Ints, s: Scores, pick: int) -> int:
    cost = left(after)  # without the look ahead, the fullest node
    if s.weight[0] > 0:
        cost = (unsold_kept(after, s) - unsold_kept(row, s)) // s.sequence.shape[0]
    if need[NEED_COUNT] == 0:
        return cost
    if need[NEED_EACH] < MILLI:
        cost += s.weight[1] * (s.value[row[pick]] - s.value[row[pick] - need[NEED_EACH]])
        if row[pick] == MILLI:
            cost += s.weight[3]
    before, now = whole(row), whole(after)
    if before != now:
        for b in range(s.block_size.shape[0]):
            cost += s.block_price[b] * (before // s.block_size[b] - now // s.block_size[b])
    return cost


def _cost_packing(row: Ints, need: Ints) -> int:
    """Nodes with a card in use that has room, the fullest first; then nodes in use, the first; then empty nodes, the smallest."""
    if need[NEED_COUNT] == 0:
        return 0
    free = left(row)
    if need[NEED_EACH] < MILLI:
        for p in range(GPUS, row.shape[0]):
            if need[NEED_EACH] <= row[p] < MILLI:
                return free
    return NOTCH if free < MILLI * cards(row) else 2 * NOTCH + free


def cards(row: Ints) -> int:
    """Cards that the node has, free or not."""
    count = 0
    for p in range(GPUS, row.shape[0]):
        if row[p] >= 0:
            count += 1
    return count


def _cost_clustering(row: Ints, after: Ints, need: Ints, s: Scores) -> int:
    """Nodes that run only the same kind of request, nodes that run some, empty ones, the rest; the fullest first in each, as far as a
    whole number out of a hundred tells.
    """
    tag = need[NEED_TAG]
    if need[NEED_COUNT] == 0 or tag < 0:
        return 0
    alike = row[TAGS] & (((1 << TAG_BITS) - 1) << (TAG_BITS * tag))
    band = (3 if row[TAGS] == alike else 2) if alike != 0 else (1 if row[TAGS] == 0 else 0)
    return -int(25.0 * band + 25.0 * (1 - left(after) / s.policy[2]))
