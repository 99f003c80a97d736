"""Ids: what they are made of, and in which order they are."""

from hypothesis import given
from hypothesis import strategies as st

from headframe.model.ids import WORKLOAD_ENTROPY_BYTES, allocation_id, is_allocation_id, workload_id

TIMES = st.integers(0, 1000 * (1 << 40) - 1)
CHANCE = st.binary(min_size=WORKLOAD_ENTROPY_BYTES, max_size=WORKLOAD_ENTROPY_BYTES)


@given(at_ms=TIMES, later_ms=TIMES, one=CHANCE, other=CHANCE)
def test_a_workload_of_a_later_second_is_later_in_order_and_two_of_one_second_differ(at_ms, later_ms, one, other):
    first, second = workload_id(at_ms, one), workload_id(later_ms, other)
    assert len(first) == len(second) == len("wl-") + 20
    assert is_allocation_id(allocation_id(first, 1))
    if at_ms // 1000 == later_ms // 1000:
        assert (first == second) == (one == other)
    else:
        assert (first < second) == (at_ms < later_ms)
