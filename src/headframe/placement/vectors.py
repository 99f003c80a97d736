"""The kernels' answers from NumPy alone, for as long as there is no machine code: many states at a time, the same integers.

Only what looks at every state is written again here: `refresh` (what a shape costs in the slots that changed) and `cheapest`. The rest
of `kernels.py` and `slots.py` runs as it is. Tests hold the three to one another: machine code, this, and a look at every node.
"""

import itertools
from typing import TYPE_CHECKING

import numpy as np

from headframe.placement.kernels import (
    BEST_FIT,
    CLASS,
    CLUSTERING,
    CPU,
    DISK,
    DOT_PRODUCT,
    FGD,
    GPUS,
    HELD,
    LOG_END,
    MEMORY,
    MILLI,
    NEED_COUNT,
    NEED_CPU,
    NEED_DISK,
    NEED_EACH,
    NEED_MEMORY,
    NEED_TAG,
    NEVER,
    NOTCH,
    OURS,
    PACKING,
    PAGE,
    POWER,
    SURCHARGE,
    TAG_BITS,
    TAGS,
    USED_PAGES,
    Floats,
    Ints,
    Scores,
    Shapes,
    Slots,
)  # fmt: skip

if TYPE_CHECKING:
    Flags = np.typing.NDArray[np.bool_]


def refresh(shape: int, s: Slots, h: Shapes, p: Scores) -> None:
    """Bring a shape's book up to date with what changed since its last request."""
    begin, end, size = int(h.cursor[shape]), int(s.size[LOG_END]), len(s.log)
    h.cursor[shape] = end
    known = bool(h.epoch[shape] == p.epoch[0])
    h.epoch[shape] = p.epoch[0]
    if known and end - begin <= size:
        slots = np.unique(s.log[np.arange(begin, end) & (size - 1)])
        pages = np.unique(slots // PAGE)
    else:
        slots = np.arange(s.size[USED_PAGES] * PAGE)
        pages = np.arange(s.size[USED_PAGES])
    stale = slots[(s.count[slots] > 0) & ((h.stamp[shape, slots] != s.stamp[slots]) | (not known))]
    h.stamp[shape, stale] = s.stamp[stale]
    for c in np.unique(s.row[stale, CLASS]):
        there = stale[s.row[stale, CLASS] == c]
        h.cost[shape, there], h.pick[shape, there] = _looked(s.row[there], h.need[shape], int(h.mask[shape, c]), int(h.watts[shape, c]), p)
    _best_of(shape, pages, s, h)


def _best_of(shape: int, pages: Ints, s: Slots, h: Shapes) -> None:
    """The cheapest slot of each page; ties go to the lowest rank."""
    slots = pages[:, None] * PAGE + np.arange(PAGE)
    cost = np.where(s.count[slots] > 0, h.cost[shape][slots], NEVER)
    lowest = cost.min(axis=1, initial=NEVER)
    first = np.where(cost == lowest[:, None], s.root[slots], NEVER).argmin(axis=1)
    h.page_cost[shape, pages] = lowest
    h.page_slot[shape, pages] = np.where(lowest < NEVER, slots[np.arange(len(pages)), first], -1)


def cheapest(shape: int, s: Slots, h: Shapes, p: Scores) -> int:
    """The cheapest slot of all, with the price of its class; -1 where the shape fits nowhere."""
    milli = int(h.need[shape, NEED_COUNT] * h.need[shape, NEED_EACH])
    pages = np.nonzero(h.page_cost[shape, : s.size[USED_PAGES]] < NEVER)[0]
    if not len(pages):
        return -1
    cost = h.page_cost[shape, pages] + p.price[s.page_class[pages]] * milli
    slots = h.page_slot[shape, pages]
    return int(slots[np.where(cost == cost.min(), s.root[slots], NEVER).argmin()])


def _looked(rows: Ints, need: Ints, mask: int, watts: int, p: Scores) -> tuple[Ints, Ints]:
    """What the shape costs in each of these states of one class, NEVER where it does not fit, and the column of the card it takes."""
    cost, pick = np.full(len(rows), NEVER), np.zeros(len(rows), dtype=np.int64)
    usable = _bits(mask, rows.shape[1] - GPUS)
    count, each = int(need[NEED_COUNT]), int(need[NEED_EACH])
    fit = (rows[:, HELD] == 0) & (mask >= 0) & (rows[:, CPU] >= need[NEED_CPU]) & (rows[:, MEMORY] >= need[NEED_MEMORY])
    fit &= (rows[:, DISK] >= need[NEED_DISK]) & (rows[:, POWER] >= watts)
    fit &= (usable & (rows[:, GPUS:] >= each)).sum(axis=1) >= count
    at = np.nonzero(fit)[0]
    if len(at):
        some = rows[at]
        cost[at], pick[at] = _fraction(some, need, usable, watts, p) if count and each < MILLI else (_priced(some, need, usable, watts, p), 0)
    return cost, pick


def _bits(mask: int, width: int) -> "Flags":
    """The usable columns of a mask."""
    return (max(mask, 0) >> np.arange(width) & 1).astype(np.bool_)


def _fraction(rows: Ints, need: Ints, usable: "Flags", watts: int, p: Scores) -> tuple[Ints, Ints]:
    """The best card for part of one in each state: all that differ are tried, tightest first."""
    width, each = rows.shape[1], int(need[NEED_EACH])
    kind = p.kind[rows[0, CLASS]]
    costs, order = np.full((len(rows), width), NEVER), np.full((len(rows), width), NEVER)
    for column in np.nonzero(usable)[0] + GPUS:
        able = rows[:, column] >= each
        if column > GPUS and kind[column - 1 - GPUS] == kind[column - GPUS]:
            able &= rows[:, column] != rows[:, column - 1]
        at = np.nonzero(able)[0]
        if len(at):
            costs[at, column] = _priced(rows[at], need, usable, watts, p, int(column))
            order[at, column] = rows[at, column] * 64 + column
    lowest = costs.min(axis=1)
    return lowest, np.where(costs == lowest[:, None], order, NEVER).argmin(axis=1)


def _priced(rows: Ints, need: Ints, usable: "Flags", watts: int, p: Scores, column: int = -1) -> Ints:
    """What taking it costs in each state, a fraction from the card in `column`."""
    after = _taken(rows, need, usable, watts, p.kind[rows[0, CLASS]], column)
    cost = _cost(rows, after, need, p, column)
    if p.policy[0] == OURS:
        cost = cost + rows[:, SURCHARGE] * (need[NEED_COUNT] * need[NEED_EACH])
    return cost


def _taken(rows: Ints, need: Ints, usable: "Flags", watts: int, kind: Ints, column: int) -> Ints:
    """The states after the shape was placed, cards of one kind ascending."""
    after = rows.copy()
    after[:, [CPU, MEMORY, DISK]] -= need[[NEED_CPU, NEED_MEMORY, NEED_DISK]]
    after[:, POWER] -= watts
    if need[NEED_TAG] >= 0:
        after[:, TAGS] += 1 << (TAG_BITS * int(need[NEED_TAG]))
    if column >= 0:
        after[:, column] -= need[NEED_EACH]
    elif need[NEED_COUNT] > 0:
        free = usable & (rows[:, GPUS:] == MILLI)
        from_right = free[:, ::-1].cumsum(axis=1)[:, ::-1]
        after[:, GPUS:][free & (from_right <= need[NEED_COUNT])] = 0
    borders = [0, *(np.nonzero(np.diff(kind))[0] + 1), len(kind)]
    for begin, end in itertools.pairwise(borders):
        after[:, GPUS + begin : GPUS + end] = np.sort(after[:, GPUS + begin : GPUS + end], axis=1)
    return after


def _left(rows: Ints) -> Ints:
    return np.maximum(rows[:, GPUS:], 0).sum(axis=1)


def _whole(rows: Ints) -> Ints:
    return (rows[:, GPUS:] == MILLI).sum(axis=1)


def _cost(rows: Ints, after: Ints, need: Ints, p: Scores, column: int) -> Ints:
    """As `kernels.cost_of`."""
    policy, nothing = int(p.policy[0]), np.zeros(len(rows), dtype=np.int64)
    cpu, most = p.policy[1], p.policy[2]
    if policy == OURS:
        return _cost_ours(rows, after, need, p, column)
    if policy == BEST_FIT:
        return -np.trunc(100.0 * (1 - after[:, CPU] / cpu / 2 - _left(after) / most / 2)).astype(np.int64)
    if policy == DOT_PRODUCT:
        free = _whole(rows) * MILLI if need[NEED_EACH] >= MILLI else _left(rows)
        product = rows[:, CPU] * need[NEED_CPU] / cpu / cpu + free * (need[NEED_COUNT] * need[NEED_EACH]) / most / most
        return -np.trunc(100.0 * (1 - product / 2)).astype(np.int64)
    if policy == FGD:
        grown = stranded(rows, p) - stranded(after, p)
        return -np.trunc(100.0 / (1.0 + np.exp(-grown / 1000.0))).astype(np.int64)
    if policy == PACKING and need[NEED_COUNT]:
        free, each, cards = _left(rows), need[NEED_EACH], rows[:, GPUS:]
        begun = ((cards >= each) & (cards < MILLI)).any(axis=1) & (each < MILLI)
        return np.where(begun, free, np.where(free < MILLI * (cards >= 0).sum(axis=1), NOTCH, 2 * NOTCH + free))
    if policy == CLUSTERING and need[NEED_COUNT] and need[NEED_TAG] >= 0:
        alike = rows[:, TAGS] & (((1 << TAG_BITS) - 1) << (TAG_BITS * int(need[NEED_TAG])))
        band = np.where(alike != 0, np.where(rows[:, TAGS] == alike, 3, 2), np.where(rows[:, TAGS] == 0, 1, 0))
        return -np.trunc(25.0 * band + 25.0 * (1 - _left(after) / most)).astype(np.int64)
    return nothing


def _cost_ours(rows: Ints, after: Ints, need: Ints, p: Scores, column: int) -> Ints:
    cost = _left(after)
    if p.weight[0] > 0:
        cost = (_unsold_kept(after, p) - _unsold_kept(rows, p)) // p.sequence.shape[0]
    if need[NEED_COUNT] == 0:
        return cost
    if need[NEED_EACH] < MILLI:
        cost = cost + p.weight[1] * (p.value[rows[:, column]] - p.value[rows[:, column] - need[NEED_EACH]])
        cost = cost + p.weight[3] * (rows[:, column] == MILLI)
    before, now = _whole(rows), _whole(after)
    for size, price in zip(p.block_size, p.block_price, strict=True):
        cost = cost + price * (before // size - now // size)
    return cost


def hashed(rows: Ints) -> Ints:
    """As `kernels.hashed`."""
    a, b, mask = np.ones(len(rows), dtype=np.int64), np.full(len(rows), 7), (1 << 42) - 1
    for column in rows.T:
        a = (a * 1000003 + column + 17) & mask
        a = a ^ a >> 19
        b = (b * 998244 + column * 3 + 5) & mask
        b = b ^ b >> 23
    return ((a << 20) ^ b) & ((1 << 62) - 1)


def _unsold_kept(rows: Ints, p: Scores) -> Ints:
    """As `kernels.unsold_kept`: remembered by state, the unknown worked out together."""
    key = hashed(rows) + 1
    at = key & (len(p.memo_key) - 1)
    value = p.memo_value[at]
    missing = np.nonzero(p.memo_key[at] != key)[0]
    if len(missing):
        _, first, back = np.unique(key[missing], return_index=True, return_inverse=True)
        some = rows[missing[first]]
        fresh = _idle(some, p) * p.weight[0]
        if p.weight[2] > 0:
            fresh = fresh + p.sequence.shape[0] * np.trunc(p.weight[2] * stranded(some, p)).astype(np.int64)
        value[missing] = fresh[back]
        p.memo_value[at[missing]] = value[missing]
        p.memo_key[at[missing]] = key[missing]
    return value


def _idle(rows: Ints, p: Scores) -> Ints:
    """As `kernels.idle`, all sequences of all states [states, sequences] at once; the states are of one class."""
    count, width = len(p.sequence), rows.shape[1] - GPUS
    shape = (len(rows), count)
    cpu, memory = (np.broadcast_to(rows[:, column, None], shape).copy() for column in (CPU, MEMORY))
    cards = np.broadcast_to(np.maximum(rows[:, None, GPUS:], 0), (*shape, width)).copy()
    rest = cards.sum(axis=2)
    usable = np.array([_bits(int(mask), width) for mask in p.mix_mask[:, rows[0, CLASS]]])
    for turn in range(p.sequence.shape[1]):
        if not rest.any():
            break
        kind = p.sequence[:, turn]
        need = p.mix[kind]
        ok = (need[:, NEED_CPU] <= cpu) & (need[:, NEED_MEMORY] <= memory) & (rest > 0)
        wants, parts = need[:, NEED_COUNT] > 0, need[:, NEED_EACH] < MILLI
        for some, pack in ((np.nonzero(wants & parts)[0], _pack_part), (np.nonzero(wants & ~parts)[0], _pack_whole)):
            if len(some):
                here = cards[:, some]
                ok[:, some] &= pack(here, usable[kind[some]], need[some], ok[:, some])
                cards[:, some] = here
        rest = rest - ok * (need[:, NEED_COUNT] * need[:, NEED_EACH])
        cpu -= ok * need[:, NEED_CPU]
        memory -= ok * need[:, NEED_MEMORY]
    return rest.sum(axis=1)


def _pack_part(cards: Ints, usable: "Flags", need: Ints, wanted: "Flags") -> "Flags":
    """Part of a card, from the fullest that holds it: `cards` [states, sequences, cards] are changed where it fits."""
    each = need[:, NEED_EACH]
    room = np.where(usable & (cards >= each[:, None]), cards, NEVER)
    column = room.argmin(axis=2)
    found = wanted & (np.take_along_axis(room, column[:, :, None], axis=2)[:, :, 0] < NEVER)
    state, sequence = np.nonzero(found)
    cards[state, sequence, column[found]] -= each[sequence]
    return found


def _pack_whole(cards: Ints, usable: "Flags", need: Ints, wanted: "Flags") -> "Flags":
    """Whole cards, the first that are free."""
    free = usable & (cards == MILLI)
    number = free.cumsum(axis=2)
    count = need[:, NEED_COUNT]
    found = wanted & (number[:, :, -1] >= count)
    cards[free & (number <= count[:, None]) & found[:, :, None]] = 0
    return found


def stranded(rows: Ints, p: Scores) -> Floats:
    """As `kernels.stranded`, for states of one class."""
    cards, total = rows[:, GPUS:], np.zeros(len(rows))
    rest = _left(rows)
    for need, masks, share in zip(p.mix, p.mix_mask, p.mix_share, strict=True):
        mask = int(masks[rows[0, CLASS]])
        can = _bits(mask, cards.shape[1]) & (cards >= need[NEED_EACH])
        lost = np.where(~can & (cards > 0), cards, 0).sum(axis=1)
        no = (need[NEED_COUNT] == 0) | (mask <= 0) | (can.sum(axis=1) < need[NEED_COUNT])
        no |= (need[NEED_CPU] > rows[:, CPU]) | (need[NEED_MEMORY] > rows[:, MEMORY])
        total = total + share * np.where(no, rest, lost)
    return total
