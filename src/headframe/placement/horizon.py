"""What comes free when, and at what loss: one time per card, kept beside the fleet's rows.

`until` is when a card is expected to be free: 0 for now, from `max_duration` where one was given, and `OPEN - start` where not
(work of unknown length is expected to go on for as long as it has lasted). `lost` is where the work of a card's preemptible
holder would be lost from, the latest loses least: FREE for a free card or one whose holder is stopping already, KEPT where nobody may be preempted.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from headframe.model.fleet import Gpu
from headframe.model.ids import AllocationId, GpuId
from headframe.model.states import AllocationState
from headframe.model.work import Allocation, Tier, Workload
from headframe.placement.kernels import Ints

NEVER_MS = 1 << 52
OPEN = 1 << 51
FREE, KEPT = 1 << 52, -1
"""After and before any time, so that the latest of a node's cards is the one that loses least."""
STOP_MS = 30_000
"""How long work that is being stopped is expected to hold its cards still."""


class Horizon:
    """Arrays by rank and by column of the node's class: `until` [nodes, cards] and, as most looks want each node's latest, `lost` [cards, nodes]."""

    def __init__(self, nodes: int, cards: int) -> None:
        self.until: Ints = np.full((nodes, cards), NEVER_MS, dtype=np.int64)
        self.lost: Ints = np.full((cards, nodes), KEPT, dtype=np.int64)

    def set(self, rank: int, cards: Sequence[Gpu], there: Container[GpuId], holders: Iterable[tuple[Allocation, Workload | None]]) -> None:
        """Look at one node again; cards that are not `there` are never free."""
        until, lost = outlook(cards, there, holders)
        beyond = self.until.shape[1] - len(cards)
        self.until[rank] = until + [NEVER_MS] * beyond
        self.lost[:, rank] = lost + [KEPT] * beyond

    def ready(self, mask: Ints, count: int, now_ms: int) -> Ints:
        """When `count` of the usable cards (bits, by node) of each node are expected to be free together; NEVER_MS for never."""
        if not len(self.until) or count > self.until.shape[1]:
            return np.full(len(self.until), NEVER_MS, dtype=np.int64)
        expected = np.where(self.until < OPEN // 2, self.until, 2 * now_ms - (OPEN - self.until))
        expected = np.where(self.until >= NEVER_MS, NEVER_MS, np.maximum(expected, now_ms))
        expected = np.where(bits(mask, self.until.shape[1]), expected, NEVER_MS)
        return np.partition(expected, count - 1, axis=1)[:, count - 1] if count else np.full(len(expected), now_ms)

    def losses(
        self, mask: Ints, count: int, now_ms: int, instead: Mapping[int, Sequence[int]] = MappingProxyType({}), *, for_spot: bool = False
    ) -> Ints:
        """What freeing `count` usable cards of each node would lose, in card-milliseconds of work; NEVER_MS where it can't be.
        `instead` has other times for some nodes, by rank. For spot work only what loses nothing is freed.
        """
        cards, lost = len(self.lost), self.lost.copy() if instead else self.lost
        for rank, times in instead.items():
            lost[: len(times), rank] = times
        if count > cards:
            return np.full(len(mask), NEVER_MS, dtype=np.int64)
        if for_spot:
            lost = np.where(lost == FREE, lost, KEPT)
        if (mask != (1 << cards) - 1).any():
            lost = np.where(bits(mask, cards).T, lost, KEPT)
        latest = _latest(lost, count)
        each = np.where(latest == FREE, 0, np.maximum(now_ms - latest, 1))
        return np.minimum(np.where(latest == KEPT, NEVER_MS, each).sum(axis=0), NEVER_MS)


def _latest(lost: Ints, count: int) -> Ints:
    """The `count` cards of each node that lose least [count, nodes]."""
    cards = len(lost)
    if count == cards:
        return lost
    return lost.max(axis=0, keepdims=True) if count == 1 else np.partition(lost, cards - count, axis=0)[cards - count :]


def bits(mask: Ints, cards: int) -> "np.typing.NDArray[np.bool_]":
    """[nodes, cards]: which cards a mask of bits names; none for a negative one."""
    return ((mask[:, None] >> np.arange(cards)) & 1).astype(bool) & (mask[:, None] >= 0)


def outlook(cards: Sequence[Gpu], usable: Container[GpuId], holders: Iterable[tuple[Allocation, Workload | None]],
            borrowed: Container[AllocationId] = ()) -> tuple[list[int], list[int]]:  # fmt: skip
    """When each card is expected to be free, and from when on work would be lost by taking it from its holders; see `lost_since_ms`."""
    column = {gpu.id: number for number, gpu in enumerate(cards)}
    until = [0 if gpu.id in usable else NEVER_MS for gpu in cards]
    since = [FREE if gpu.id in usable else KEPT for gpu in cards]
    for allocation, workload in holders:
        end, loss = _end(allocation, workload), lost_since_ms(allocation, workload)
        if loss == KEPT and allocation.id in borrowed:
            loss = allocation.started_ms or allocation.granted_ms
        for part in allocation.parts:
            for share in part.shares:
                if share.gpu_id in column:
                    number = column[share.gpu_id]
                    until[number] = max(until[number], end)
                    since[number] = _of_both(since[number], loss)
    return until, since


def _of_both(one: int, other: int) -> int:
    """A card that two hold."""
    if one == FREE:
        return other
    if other == FREE:
        return one
    return KEPT if KEPT in (one, other) else max(one, other)


def lost_since_ms(allocation: Allocation, workload: Workload | None) -> int:
    """From when on the work of a preemptible allocation would be lost, FREE where it is stopping or only fills the card; KEPT where it is not to be
    preempted.
    """
    if allocation.state is AllocationState.STOPPING or allocation.tier is Tier.FILLER:
        return FREE
    if allocation.tier is not Tier.SPOT or workload is None:
        return KEPT
    return allocation.started_ms or allocation.granted_ms


def _end(allocation: Allocation, workload: Workload | None) -> int:
    if allocation.state is AllocationState.STOPPING:
        return allocation.stop_ms + STOP_MS
    if allocation.tier is Tier.FILLER:
        return 0
    start = allocation.started_ms or allocation.granted_ms
    limit_s = workload.spec.max_duration_s if workload else 0
    return start + limit_s * 1000 if limit_s else OPEN - start
