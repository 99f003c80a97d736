"""What making room on a node would lose, held to a look at each card."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from headframe.placement.horizon import FREE, KEPT, NEVER_MS, Horizon

NOW_MS = 1_000_000
TIMES = st.one_of(st.just(FREE), st.just(KEPT), st.integers(1, NOW_MS + 5))


@given(
    st.lists(st.tuples(st.lists(TIMES, min_size=4, max_size=4), st.sampled_from([-1, 0, 1, 5, 7, 15])), min_size=1, max_size=6),
    st.integers(1, 5),
    st.booleans(),
)
def test_what_room_costs_is_the_least_that_its_cards_lose(nodes: list[tuple[list[int], int]], count: int, for_spot: bool) -> None:
    horizon = Horizon(len(nodes), 4)
    for rank, (times, _) in enumerate(nodes):
        horizon.lost[:, rank] = times
    masks = np.array([mask for _, mask in nodes], dtype=np.int64)
    told = horizon.losses(masks, count, NOW_MS, for_spot=for_spot).tolist()
    assert told == [_least(times, mask, count, for_spot) for times, mask in nodes]


@given(st.lists(TIMES, min_size=4, max_size=4), st.integers(1, 4))
def test_what_may_be_borrowed_counts_for_one_look_only(times: list[int], count: int) -> None:
    horizon = Horizon(1, 4)
    every = np.array([15], dtype=np.int64)
    assert horizon.losses(every, count, NOW_MS, {0: times}).tolist() == [_least(times, 15, count, False)]
    assert horizon.losses(every, count, NOW_MS).tolist() == [NEVER_MS]


def _least(times: list[int], mask: int, count: int, for_spot: bool) -> int:
    usable = [at for card, at in enumerate(times) if mask >= 0 and mask >> card & 1 and at != KEPT and (at == FREE or not for_spot)]
    lost = sorted(0 if at == FREE else max(1, NOW_MS - at) for at in usable)
    return sum(lost[:count]) if len(lost) >= count else NEVER_MS
