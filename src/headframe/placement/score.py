"""What a placement costs, and how the terms are learned from what tenants ask for.

One sum, lowest is best, counted in thousandths of a GPU (times the fleet's price of a GPU-hour: US$ per hour):

- **rollout** (weight 1): how many more thousandths of the node stay idle, on average, when what is left of it is then filled
  with fixed random sequences of likely requests. It replaces FGD's look one request ahead by a look 64 ahead.
- **stranded** (2 × turnover): where work comes and goes, what the next request cannot use now (FGD's measure), by the share of what was
  handed out that came back: a hole that lasts an hour costs little, one that is there each time costs its size.
- **remnant** (2): what the card's free part is worth before and after, by the duals of the cutting-stock linear program over
  the request sizes: a hole that no mix of requests fills is worth nothing, so making one costs.
- **opening** (0.02): part of a card costs that much of one more where it begins a card: of patterns that are worth the same, those that leave fewer begun.
- **scarcity** (1): GPUs on machines that much of the demand insists on (by model, and by what the machine has) cost more, by the share of
  demand over what is left for it.
- **block** (0.3, and up to four times that with turnover): breaking up k wholly free cards on a node costs what demand for k at once is
  worth, over the blocks left. Where work comes and goes a whole machine seldom comes free again.

Beside it, per card and in the same unit: a node's record of faults and its rack's warmth (`racks.py`), an image or volume at hand
(`fleet.py`), and for a gang the way between racks (`network.py`).

The weights are those that a search on other traces of the same kind gave; within a factor of two they matter little. Which sequences are drawn
matters more (`DRAW`).
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from headframe.placement.kernels import BLOCKS, FGD, FX, GPUS, MILLI, NEED_COUNT, NEED_EACH, NEED_MEMORY, SHAPE_WIDTH, Ints, Scores

if TYPE_CHECKING:
    import highspy

ROLLOUTS = 32
DEPTH = 64
DRAW = 1
"""Seed of the sequences. It and COVERED were chosen on two of the openb traces (default, gpuspec33) and looked at on the four others: benchmarks/results.md."""
COVERED, FGD_COVERED = 0.98, 0.95
"""Share of requests that the typical ones stand for, ours and FGD's as published; the rest is a long tail of odd sizes."""
BLOCK_TURNOVER = 3.0
MEMO = 1 << 20
PATTERNS_MAX = 500


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """The terms against one another; see the module."""

    rollout: float = 1.0
    stranded: float = 2.0
    remnant: float = 2.0
    scarcity: float = 1.0
    block: float = 0.3
    opening: float = 0.02


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of request and how often it is made. `need` has the columns of a shape; `mask` the usable cards by class, as bits;
    `scope` names the set of GPU models that it accepts.
    """

    need: tuple[int, ...]
    mask: tuple[int, ...]
    scope: str
    often: float


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """All kinds of requests, most frequent first, and the share of what was handed out lately that came back meanwhile: 0 while a fleet
    fills, 1 where as much ends as begins.
    """

    wanted: tuple[Wanted, ...]
    turnover: float = 0.0

    @classmethod
    def of(cls, wanted: Iterable[Wanted], turnover: float = 0.0) -> "Demand":
        """Sorted, so that equal demand in another order gives equal scores."""
        return cls(wanted=tuple(sorted(wanted, key=lambda w: (-w.often, w.need, w.scope, w.mask))), turnover=turnover)

    def without_memory(self) -> "Demand":
        """Kinds that differ in memory only, as one: FGD as published does not look at memory."""
        merged: dict[tuple[tuple[int, ...], tuple[int, ...], str], float] = {}
        for w in self.wanted:
            need = tuple(0 if column == NEED_MEMORY else amount for column, amount in enumerate(w.need))
            merged[need, w.mask, w.scope] = merged.get((need, w.mask, w.scope), 0.0) + w.often
        return Demand.of(Wanted(need=need, mask=mask, scope=scope, often=often) for (need, mask, scope), often in merged.items())

    def typical(self, covered: float = COVERED) -> tuple[Wanted, ...]:
        """The most frequent kinds that make up so much of all requests."""
        total, so_far = sum(w.often for w in self.wanted), 0.0
        for count, w in enumerate(self.wanted, 1):
            so_far += w.often
            if so_far >= covered * total:
                return self.wanted[:count]
        return self.wanted


def tables(demand: Demand, kinds: Ints, policy: tuple[int, int, int], weights: Weights, memo: int = MEMO) -> Scores:
    """Everything that scoring reads, from the demand and the classes' kinds of cards [classes, columns]."""
    typical = demand.without_memory().typical(FGD_COVERED) if policy[0] == FGD else demand.typical()
    often = np.array([w.often for w in typical], dtype=np.float64)
    share = often / often.sum()
    classes, width = kinds.shape[0], kinds.shape[1] + GPUS
    sizes, blocks, scopes = _sums(demand)
    names = sorted(scopes)
    total = sum(scopes.values()) or 1.0
    accepts = {w.scope: w.mask for w in demand.wanted if w.need[NEED_COUNT] > 0}
    largest = sorted(blocks, key=lambda b: (-blocks[b], b))[:BLOCKS]
    block = weights.block * (1 + BLOCK_TURNOVER * demand.turnover)
    rng = np.random.default_rng(DRAW)
    memo = memo if weights.rollout else 1
    return Scores(
        policy=np.array(policy, dtype=np.int64),
        weight=np.array(
            [
                round(weights.rollout * FX),
                round(weights.remnant),
                round(weights.stranded * demand.turnover * FX),
                round(weights.opening * MILLI * FX),
            ],
            dtype=np.int64,
        ),
        kind=kinds.astype(np.int64),
        mix=np.array([w.need for w in typical], dtype=np.int64).reshape(len(typical), SHAPE_WIDTH),
        mix_mask=np.array([w.mask for w in typical], dtype=np.int64).reshape(len(typical), classes),
        mix_share=share,
        sequence=rng.choice(len(typical), size=(ROLLOUTS, DEPTH), p=share).astype(np.int64),
        value=np.round(remnant_values(sizes) * MILLI * FX).astype(np.int64),
        block_size=np.array(sorted(largest), dtype=np.int64),
        block_share=np.array([round(block * blocks[b] / total * FX * 1024) for b in sorted(largest)], dtype=np.int64),
        block_price=np.zeros(len(largest), dtype=np.int64),
        block_left=np.zeros(len(largest), dtype=np.int64),
        scope=np.array([[accepts[name][c] > 0 for c in range(classes)] for name in names], dtype=np.bool_).reshape(len(names), classes),
        scope_share=np.array([round(weights.scarcity * FX * scopes[name] / total) for name in names], dtype=np.int64),
        free=np.zeros(classes, dtype=np.int64),
        price=np.zeros(classes, dtype=np.int64),
        memo_key=np.zeros(memo, dtype=np.int64),
        memo_value=np.zeros(memo, dtype=np.int64),
        epoch=np.zeros(1, dtype=np.int64),
        scratch=np.zeros((2, width), dtype=np.int64),
    )


def _sums(demand: Demand) -> tuple[dict[int, float], dict[int, float], dict[str, float]]:
    """Cards wanted by size, and GPUs wanted by count per node (from two) and by the models accepted."""
    sizes: dict[int, float] = {}
    blocks: dict[int, float] = {}
    scopes: dict[str, float] = {}
    for w in demand.wanted:
        each, count = w.need[NEED_EACH], w.need[NEED_COUNT]
        if count == 0:
            continue
        sizes[each] = sizes.get(each, 0.0) + w.often * count
        scopes[w.scope] = scopes.get(w.scope, 0.0) + w.often * count * each
        if count > 1:
            blocks[count] = blocks.get(count, 0.0) + w.often * count * each
    return sizes, blocks, scopes


def remnant_values(sizes: dict[int, float]) -> "np.typing.NDArray[np.float64]":
    """What 0..1000 free thousandths of one card are worth, in cards: the knapsack value under the duals of the cutting-stock
    linear program (Gilmore and Gomory, 1961) over the sizes wanted, solved by column generation.
    """
    worth = np.arange(MILLI + 1) / MILLI
    if not sizes or set(sizes) == {MILLI}:
        return np.where(np.arange(MILLI + 1) >= MILLI, 1.0, 0.0) if sizes else worth
    length = sorted(sizes)
    share = np.array([sizes[s] for s in length])
    patterns = [tuple(MILLI // s if i == k else 0 for i in range(len(length))) for k, s in enumerate(length)]
    for _ in range(PATTERNS_MAX):
        price = _dual(patterns, share)
        worth, pattern = knapsack(length, price)
        if worth[MILLI] <= 1 + 1e-9 or pattern in patterns:
            break
        patterns.append(pattern)
    return worth / max(worth[MILLI], 1.0)


def quiet_solver() -> "highspy.Highs":
    """HiGHS, one thread, without a word: it greets on standard output when its callbacks are enabled, unless silenced before."""
    import highspy

    class Quiet(highspy.Highs):
        def enableCallbacks(self) -> None:  # noqa: N802 - HiGHS's own name
            self.silent()
            super().enableCallbacks()

    solver = Quiet()
    solver.setOptionValue("threads", 1)
    solver.changeObjectiveSense(highspy.ObjSense.kMaximize)
    return solver


def _dual(patterns: Sequence[tuple[int, ...]], share: "np.typing.NDArray[np.float64]") -> "np.typing.NDArray[np.float64]":
    """Prices of the sizes: maximise what the demand is worth while no pattern of one card is worth more than one."""
    solver, count = quiet_solver(), len(share)
    solver.addVars(count, np.zeros(count), np.full(count, 2.0))
    for i in range(count):
        solver.changeColCost(i, share[i])
    for pattern in patterns:
        at = np.nonzero(np.array(pattern))[0].astype(np.int32)
        solver.addRow(-np.inf, 1.0, len(at), at, np.array(pattern, dtype=np.float64)[at])
    solver.run()
    return np.maximum(np.array(solver.getSolution().col_value), 0.0)


def knapsack(length: Sequence[int], price: "np.typing.NDArray[np.float64]") -> tuple["np.typing.NDArray[np.float64]", tuple[int, ...]]:
    """The most that can be made of 0..1000 thousandths with any number of each size, and how for 1000."""
    worth, last = np.zeros(MILLI + 1), np.full(MILLI + 1, -1)
    for room in range(1, MILLI + 1):
        worth[room] = worth[room - 1]
        for i, size in enumerate(length):
            if size <= room and worth[room - size] + price[i] > worth[room] + 1e-12:
                worth[room], last[room] = worth[room - size] + price[i], i
    pattern, room = [0] * len(length), MILLI
    while room > 0:
        if last[room] < 0:
            room -= 1
        else:
            pattern[last[room]] += 1
            room -= length[last[room]]
    return worth, tuple(pattern)
