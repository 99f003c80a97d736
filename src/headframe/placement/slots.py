"""Nodes in the same state share a slot; each shape keeps a book of what it would cost in each slot, in pages of 64.

A placement moves one node from one slot to another and logs both; a shape's next request looks again at the slots logged
since its last one, and then at the pages' best. Compiled with `kernels.py`, and like it free of allocation.
"""

# An element of an array is a number here, which NumPy's types do not say.
# pyright: reportArgumentType=false, reportReturnType=false, reportIncompatibleMethodOverride=false

from headframe.placement.kernels import (
    CLASS,
    GPUS,
    HELD,
    LIVE,
    LOG_END,
    MILLI,
    NEED_COUNT,
    NEED_EACH,
    NEVER,
    OURS,
    PAGE,
    PLACED,
    SURCHARGE,
    USED_PAGES,
    Arrays,
    Ints,
    Members,
    Scores,
    Shapes,
    Slots,
    cost_of,
    fits,
    hashed,
    next_pick,
    taken,
    tried,
    whole,
)  # fmt: skip

GONE = -2
"""A place in the hash table whose slot was given up: searching goes on past it."""
PRICE_STEPS = 8
"""Block prices move in steps of one part in this many, so that books are made anew seldom."""


def meld(a: int, b: int, m: Members) -> int:
    """Two heaps become one; the lower rank is its root."""
    if a < 0:
        return b
    if b < 0:
        return a
    if b < a:
        a, b = b, a
    first = m.child[a]
    m.right[b] = first
    if first >= 0:
        m.left[first] = b
    m.left[b] = a
    m.child[a] = b
    return a


def melded_children(node: int, m: Members) -> int:
    """The heap of a node's children, by the two passes of a pairing heap."""
    todo, pairs = m.child[node], -1
    m.child[node] = -1
    while todo >= 0:
        a, b = todo, m.right[todo]
        todo = m.right[b] if b >= 0 else -1
        m.right[a] = m.left[a] = -1
        if b >= 0:
            m.right[b] = m.left[b] = -1
        a = meld(a, b, m)
        m.right[a] = pairs
        pairs = a
    heap = -1
    while pairs >= 0:
        a, pairs = pairs, m.right[pairs]
        m.right[a] = -1
        heap = meld(heap, a, m)
    return heap


def unlink(node: int, slot: int, s: Slots, m: Members) -> None:
    """Take a node out of its slot's heap."""
    below = melded_children(node, m)
    if s.root[slot] == node:
        s.root[slot] = below
        return
    before, after = m.left[node], m.right[node]
    if m.child[before] == node:
        m.child[before] = after
    else:
        m.right[before] = after
    if after >= 0:
        m.left[after] = before
    m.left[node] = m.right[node] = -1
    s.root[slot] = meld(s.root[slot], below, m)


def same(a: Ints, b: Ints) -> bool:
    """Whether two states are equal."""
    for i in range(a.shape[0]):  # noqa: SIM110 - Numba has no generators
        if a[i] != b[i]:
            return False
    return True


def intern(row: Ints, s: Slots) -> int:
    """The slot of a state, made where there is none."""
    size = s.table.shape[0] - 1
    i, gap = hashed(row) & size, -1
    while s.table[i] != -1:
        slot = s.table[i]
        if slot == GONE:
            gap = i if gap < 0 else gap
        elif same(s.row[slot], row):
            return slot
        i = (i + 1) & size
    slot = _fresh(row[CLASS], s)
    s.table[i if gap < 0 else gap] = slot
    for k in range(row.shape[0]):
        s.row[slot, k] = row[k]
    s.stamp[slot] += 1
    s.size[LIVE] += 1
    return slot


def _fresh(of_class: int, s: Slots) -> int:
    if s.class_spare[of_class] < 0:
        page = s.size[USED_PAGES]
        s.size[USED_PAGES] += 1
        s.page_class[page] = of_class
        for slot in range(page * PAGE + PAGE - 1, page * PAGE - 1, -1):
            s.spare[slot] = s.class_spare[of_class]
            s.class_spare[of_class] = slot
    slot = s.class_spare[of_class]
    s.class_spare[of_class] = s.spare[slot]
    return slot


def _drop(slot: int, s: Slots) -> None:
    size = s.table.shape[0] - 1
    i = hashed(s.row[slot]) & size
    while s.table[i] != slot:
        i = (i + 1) & size
    # The end of a run needs no marker: without this the table would fill with them.
    if s.table[(i + 1) & size] == -1:
        s.table[i] = -1
        i = (i - 1) & size
        while s.table[i] == GONE:
            s.table[i] = -1
            i = (i - 1) & size
    else:
        s.table[i] = GONE
    of_class = s.row[slot, CLASS]
    s.spare[slot] = s.class_spare[of_class]
    s.class_spare[of_class] = slot
    s.size[LIVE] -= 1


def _log(slot: int, s: Slots) -> None:
    s.log[s.size[LOG_END] & (s.log.shape[0] - 1)] = slot
    s.size[LOG_END] += 1


def move(node: int, row: Ints, a: Arrays) -> None:
    """Put a node into the slot of its new state. `row` must not be a view of the slots."""
    s, m, p = a.slots, a.members, a.scores
    old = m.slot[node]
    if old >= 0:
        if same(s.row[old], row):
            return
        account(s.row[old], -1, p)
        unlink(node, old, s, m)
        s.count[old] -= 1
        if s.count[old] == 0:
            _drop(old, s)
        _log(old, s)
    slot = intern(row, s)
    m.slot[node] = slot
    if s.count[slot] == 0:
        s.root[slot] = node
    else:
        s.root[slot] = meld(s.root[slot], node, m)
    s.count[slot] += 1
    account(row, 1, p)
    _log(slot, s)


def account(row: Ints, sign: int, p: Scores) -> None:
    """Keep what is free of each class, by what it can be used for, and the blocks of whole cards that are left; `sign` nodes."""
    if p.policy[0] != OURS or row[HELD]:
        return
    total = 0
    for i in range(GPUS, row.shape[0]):
        if row[i] > 0:
            total += p.value[row[i]]
    p.free[row[CLASS]] += sign * total
    free = whole(row)
    for b in range(p.block_size.shape[0]):
        p.block_left[b] += sign * (free // p.block_size[b])


def reprice(p: Scores) -> None:
    """Prices of classes and of blocks from what is left; a new epoch, which makes the books anew, only where a block's moved."""
    everything = 0
    for c in range(p.free.shape[0]):
        everything += p.free[c]
        p.price[c] = 0
    for k in range(p.scope.shape[0]):
        there = 1
        for c in range(p.free.shape[0]):
            if p.scope[k, c]:
                there += p.free[c]
        worth = p.scope_share[k] * (everything // 1024) // (there // 1024 + 1)
        for c in range(p.free.shape[0]):
            if p.scope[k, c]:
                p.price[c] += worth
    moved = False
    for b in range(p.block_size.shape[0]):
        price = p.block_share[b] * (everything // 1024) // max(1, p.block_left[b]) // 1024
        if abs(price - p.block_price[b]) * PRICE_STEPS > p.block_price[b]:
            p.block_price[b] = price
            moved = True
    if moved:
        p.epoch[0] += 1


def look_again(shape: int, slot: int, s: Slots, h: Shapes, p: Scores) -> None:
    """Bring one slot's cost in a shape's book up to date."""
    h.stamp[shape, slot] = s.stamp[slot]
    row, need = s.row[slot], h.need[shape]
    c = row[CLASS]
    mask, watts = h.mask[shape, c], h.watts[shape, c]
    h.cost[shape, slot] = NEVER
    if not fits(row, need, mask, watts):
        return
    after, each, last = p.scratch[0], need[NEED_EACH], -1
    fraction = need[NEED_COUNT] > 0 and each < MILLI
    while True:
        pick = next_pick(row, p.kind[c], each, mask, last) if fraction else 0
        if pick < 0:
            return
        taken(row, p.kind[c], need, mask, watts, pick, after)
        cost = cost_of(row, after, need, p, pick)
        if p.policy[0] == OURS:
            cost += row[SURCHARGE] * need[NEED_COUNT] * each
        if cost < h.cost[shape, slot]:
            h.cost[shape, slot] = cost
            h.pick[shape, slot] = pick
        if not fraction:
            return
        last = tried(row, pick)


def refresh(shape: int, s: Slots, h: Shapes, p: Scores) -> None:
    """Bring a shape's book up to date with what changed since its last request."""
    end, size = s.size[LOG_END], s.log.shape[0]
    begin = h.cursor[shape]
    h.cursor[shape] = end
    if h.epoch[shape] != p.epoch[0] or end - begin > size:
        fresh = h.epoch[shape] == p.epoch[0]
        h.epoch[shape] = p.epoch[0]
        for page in range(s.size[USED_PAGES]):
            for slot in range(page * PAGE, page * PAGE + PAGE):
                if s.count[slot] > 0 and not (fresh and h.stamp[shape, slot] == s.stamp[slot]):
                    look_again(shape, slot, s, h, p)
            best_of_page(shape, page, s, h)
        return
    for i in range(begin, end):
        slot = s.log[i & (size - 1)]
        if s.count[slot] > 0 and h.stamp[shape, slot] != s.stamp[slot]:
            look_again(shape, slot, s, h, p)
    last = -1
    for i in range(begin, end):
        page = s.log[i & (size - 1)] // PAGE
        if page != last:
            best_of_page(shape, page, s, h)
        last = page


def best_of_page(shape: int, page: int, s: Slots, h: Shapes) -> None:
    """The cheapest slot of a page; ties go to the lowest rank."""
    best, cost = -1, NEVER
    for slot in range(page * PAGE, page * PAGE + PAGE):
        if s.count[slot] == 0 or h.cost[shape, slot] > cost or h.cost[shape, slot] == NEVER:
            continue
        if h.cost[shape, slot] < cost or s.root[slot] < s.root[best]:
            best, cost = slot, h.cost[shape, slot]
    h.page_cost[shape, page] = cost
    h.page_slot[shape, page] = best


def cheapest(shape: int, s: Slots, h: Shapes, p: Scores) -> int:
    """The cheapest slot of all, with the price of its class; -1 where the shape fits nowhere."""
    milli = h.need[shape, NEED_COUNT] * h.need[shape, NEED_EACH]
    best, lowest = -1, NEVER
    for page in range(s.size[USED_PAGES]):
        if h.page_cost[shape, page] == NEVER:
            continue
        cost = h.page_cost[shape, page] + p.price[s.page_class[page]] * milli
        slot = h.page_slot[shape, page]
        if cost < lowest or (cost == lowest and s.root[slot] < s.root[best]):
            best, lowest = slot, cost
    return best


def place(shape: int, a: Arrays) -> int:
    """Place one rank where it costs least: returns the node's rank or -1; `out` gets the column of the card that a fraction
    went to, what was free on it, and the slot the node came from.
    """
    s, h, p = a.slots, a.shapes, a.scores
    if p.policy[0] == OURS and s.size[PLACED] & 7 == 0:
        reprice(p)
    refresh(shape, s, h, p)
    slot = cheapest(shape, s, h, p)
    if slot < 0:
        return -1
    node = s.root[slot]
    put(node, shape, a)
    return node


def put(node: int, shape: int, a: Arrays) -> None:
    """Place one rank on a given node, whose slot the shape's book is up to date with."""
    s, h, p, out = a.slots, a.shapes, a.scores, a.out
    slot = a.members.slot[node]
    c, pick = s.row[slot, CLASS], h.pick[shape, slot]
    out[0], out[1], out[2] = pick, s.row[slot, pick], slot
    taken(s.row[slot], p.kind[c], h.need[shape], h.mask[shape, c], h.watts[shape, c], pick, p.scratch[0])
    s.size[PLACED] += 1
    move(node, p.scratch[0], a)
