"""The index against brute force: machine code, NumPy alone and a look at every node choose the same node and card."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headframe.placement import kernels
from headframe.placement.compiled import compiled, plain
from headframe.placement.fleet import cheapest
from headframe.placement.index import Index
from headframe.placement.kernels import GPUS, MILLI, NEVER
from headframe.model.report import Policy
from headframe.placement.score import Demand, Wanted, Weights, knapsack, remnant_values

CARDS = 4
CLASSES = ((0, 0, 0, 0), (0, 0, 2, 2), (0, -1, -1, -1))
ASKS = [(1000, 0, 0), (1000, 250, 1), (2000, 500, 1), (500, 700, 1), (4000, 1000, 1), (4000, 1000, 2), (8000, 1000, 4)]


def need(ask):
    cpu, each, count = ask
    return (cpu, cpu, 0, each, count, 0 if 0 < each < 1000 else count)


def mask(ask, c):
    """Half of the shapes accept only the second kind of card."""
    kinds = CLASSES[c]
    return sum(1 << p for p, kind in enumerate(kinds) if kind >= 0 and (ask[0] != 2000 or kind == 0))


DEMAND = Demand.of(Wanted(need=need(a), mask=tuple(mask(a, c) for c in range(3)), scope=str(a[0] == 2000), often=n + 1) for n, a in enumerate(ASKS))


def rows(classes):
    made = np.zeros((len(classes), GPUS + CARDS), dtype=np.int64)
    for row, c in zip(made, classes, strict=True):
        row[:GPUS] = (c, 0, 8000, 8000, 1 << 40, 1 << 40, 0, 0)
        row[GPUS:] = [MILLI if kind >= 0 else -1 for kind in CLASSES[c]]
        row[GPUS:] = sorted(row[GPUS:]) if c == 2 else row[GPUS:]
    return made


def index(classes, policy, code, weights=None, demand=DEMAND):
    kinds = np.array([(0, 0, 0, 0), (0, 0, 2, 2), (0, 0, 0, 0)], dtype=np.int64)
    return Index(rows(classes), kinds, demand, policy, weights or Weights(rollout=0), code, memo=1 << 12)


def brute(ix, ask):
    """The node and column that a look at every node gives, with nothing remembered."""
    best = (NEVER, -1, -1)
    forgetful = ix.scores._replace(memo_key=np.zeros_like(ix.scores.memo_key), memo_value=np.zeros_like(ix.scores.memo_value))
    for node, row in enumerate(ix.rows()):
        c, n = int(row[0]), np.array(need(ask), dtype=np.int64)
        if not kernels.fits(row, n, mask(ask, c), 0):
            continue
        fraction = 0 < ask[1] < MILLI
        picks = [p for p in range(GPUS, len(row)) if mask(ask, c) >> (p - GPUS) & 1 and row[p] >= ask[1]] if fraction else [0]
        picks.sort(key=lambda p: (row[p], p))
        for pick in picks:
            after = np.zeros_like(row)
            kernels.taken(row, ix.scores.kind[c], n, mask(ask, c), 0, pick, after)
            cost = kernels.cost_of(row, after, n, forgetful, pick) + int(ix.scores.price[c]) * ask[1] * ask[2]
            best = min(best, (cost, node, picks.index(pick), pick))
    return best[1], (best[3] if best[1] >= 0 and 0 < ask[1] < MILLI else 0)


BUSY = Demand.of(DEMAND.wanted, turnover=0.7)
steps = st.lists(st.one_of(st.sampled_from(range(len(ASKS))), st.just(-1)), min_size=1, max_size=40)
POLICIES = [policy for policy in Policy if policy is not Policy.RANDOM]


def walked(ix, walk, check):
    """Place by the steps of a walk; a negative one undoes the last placement."""
    before = []
    for step in walk:
        if step < 0:
            if before:
                node, row = before.pop()
                ix.set(node, row)
                before.clear()
            continue
        ask, old = ASKS[step], ix.rows()
        shape = ix.shape(ask, need(ask), [mask(ask, c) for c in range(3)], [0, 0, 0])
        if ix.policy is Policy.HEADFRAME and ix.slots.size[kernels.PLACED] & 7 == 0:
            ix.code.reprice(ix.scores)
        expected = check(ix, ask)
        placed = ix.place(shape)
        assert (placed.node if placed else -1) == expected[0]
        if placed:
            before.append((placed.node, old[placed.node].copy()))
            if 0 < ask[1] < MILLI:
                assert placed.column == expected[1]


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), steps)
def test_index_and_brute_force_choose_the_same_node_and_card(policy, classes, walk):
    walked(index(classes, policy, plain()), walk, brute)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=3), st.lists(st.sampled_from(range(len(ASKS))), min_size=1, max_size=6))
def test_looking_ahead_gives_what_a_look_at_every_node_with_nothing_remembered_gives(classes, walk):
    walked(index(classes, Policy.HEADFRAME, plain(), Weights(), BUSY), walk, brute)


@pytest.mark.parametrize("policy", list(Policy))
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), steps, st.booleans())
def test_machine_code_and_numpy_give_the_same_answers(policy, classes, walk, busy):
    pair = [index(classes, policy, code, Weights(), BUSY if busy else DEMAND) for code in (plain(), compiled())]
    for step in walk:
        ask, answers = ASKS[step], []
        for ix in pair:
            if step < 0:
                ix.set(0, rows(classes)[0])
            else:
                answers.append(ix.place(ix.shape(ask, need(ask), [mask(ask, c) for c in range(3)], [0, 0, 0])))
        assert answers[:1] == answers[1:]
    assert (pair[0].rows() == pair[1].rows()).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(range(len(ASKS))), max_size=60), st.randoms(use_true_random=False))
def test_states_are_counted_and_every_node_is_in_its_own(walk, rng):
    """Moving nodes about, to and fro: slots' counts, heaps and hash table stay what a rebuild would give."""
    ix = index([0, 0, 1, 1, 2, 2, 0], Policy.HEADFRAME, plain())
    past = {node: [ix.row(node)] for node in range(7)}
    for step in walk:
        ask = ASKS[step]
        if rng.random() < 0.5:
            node = rng.randrange(7)
            ix.set(node, rng.choice(past[node]))
        else:
            placed = ix.place(ix.shape(ask, need(ask), [mask(ask, c) for c in range(3)], [0, 0, 0]))
            if placed:
                past[placed.node].append(ix.row(placed.node))
    live = np.nonzero(ix.slots.count)[0]
    assert ix.slots.count[live].sum() == 7
    assert ix.states == len(live) == len({tuple(row) for row in ix.rows()})
    for slot in live:
        members = np.nonzero(ix.members.slot == slot)[0]
        assert len(members) == ix.slots.count[slot]
        assert ix.slots.root[slot] == members.min()
    fresh = index([0] * 7, Policy.HEADFRAME, plain())
    for node in range(7):
        fresh.set(node, ix.row(node))
    assert fresh.scores.block_left.tolist() == ix.scores.block_left.tolist()
    assert fresh.scores.free.tolist() == ix.scores.free.tolist()


@given(st.lists(st.one_of(st.integers(0, 5), st.just(NEVER)), min_size=1, max_size=30), st.integers(1, 8))
def test_the_cheapest_nodes_are_those_of_a_full_sort(costs, count):
    able = sorted((cost, node) for node, cost in enumerate(costs) if cost < NEVER)
    expected = [node for _, node in able[:count]] if len(able) >= count else []
    assert list(cheapest(np.array(costs, dtype=np.int64), count)) == expected


def test_remnants_are_worth_what_the_mix_of_requests_can_make_of_them():
    worth = remnant_values({810: 10.0, 190: 1.0})
    assert worth[189] == 0
    assert worth[1000] == pytest.approx(1.0)
    assert worth[810] > 0.9, "an 810 blocks the card, and few 190s are there to fill what it leaves"
    assert worth[190] < 0.1
    half = remnant_values({500: 1.0})
    assert half[499] == 0
    assert half[500] == pytest.approx(0.5)


@pytest.mark.parametrize("code", [plain, compiled])
@pytest.mark.parametrize(("opening", "node"), [(0.0, 0), (4.0, 1)])
def test_part_of_a_card_begins_one_only_where_that_gains_more_than_it_costs(code, opening, node):
    ix = index([0, 0], Policy.HEADFRAME, code(), Weights(rollout=0, remnant=0, block=0, scarcity=0, opening=opening))
    whole, part = (ix.shape(ask, need(ask), [mask(ask, c) for c in range(3)], [0, 0, 0]) for ask in ((4000, 1000, 1), (1000, 250, 1)))
    ix.put(whole, 0)  # the fuller node, whose other cards are whole
    ix.put(part, 1)
    assert ix.place(part).node == node


@given(st.lists(st.integers(50, 1000), min_size=1, max_size=4, unique=True), st.integers(0, 1000))
def test_the_knapsack_never_makes_more_than_whole_requests_allow(sizes, room):
    sizes = sorted(sizes)
    worth, pattern = knapsack(sizes, np.array([size / 1000 for size in sizes]))
    assert worth[room] <= room / 1000 + 1e-9
    assert sum(size * n for size, n in zip(sizes, pattern, strict=True)) <= 1000


def test_learning_another_demand_gives_what_a_new_index_would():
    other = Demand.of(Wanted(need=need(a), mask=tuple(mask(a, c) for c in range(3)), scope="", often=1 + n % 2) for n, a in enumerate(ASKS))
    learned = index([0, 1, 2, 0], Policy.HEADFRAME, plain())
    for ask in ASKS[1:5]:
        learned.place(learned.shape(ask, need(ask), [mask(ask, c) for c in range(3)], [0, 0, 0]))
    learned.learn(other, Weights(rollout=0))
    kinds = np.array([(0, 0, 0, 0), (0, 0, 2, 2), (0, 0, 0, 0)], dtype=np.int64)
    fresh = Index(learned.rows().copy(), kinds, other, Policy.HEADFRAME, Weights(rollout=0), plain(), memo=1 << 12)
    assert fresh.scores.free.tolist() == learned.scores.free.tolist()
    assert fresh.scores.block_left.tolist() == learned.scores.block_left.tolist()
    for ask in ASKS[1:]:
        for ix in (fresh, learned):
            ix.slots.size[kernels.PLACED] = 0
        shapes = [ix.shape(ask, need(ask), [mask(ask, c) for c in range(3)], [0, 0, 0]) for ix in (fresh, learned)]
        assert fresh.place(shapes[0]) == learned.place(shapes[1])
