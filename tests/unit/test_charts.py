"""Charts are read by people: their scales are in round numbers, and nothing is outside them."""

import re

from hypothesis import given
from hypothesis import strategies as st

from headframe.console.charts import lines, marks, stacked


@given(st.floats(1e-9, 1e12))
def test_a_scale_has_few_marks_at_round_numbers_and_the_last_is_at_or_beyond_the_highest_value(top):
    found = marks(top)
    assert 4 <= len(found) <= 6
    assert found[0] == 0
    assert top * 0.999_99 <= found[-1] <= 2 * top
    assert re.match(r"(1|2|2\.5|5)(\.?0*)e", f"{found[1]:.6e}")


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6)), max_size=20))
def test_nothing_that_is_above_zero_is_drawn_outside(points):
    drawn = str(lines([("a", points)], "what", "unit"))
    for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", drawn.partition('points="')[2].partition('"')[0]):
        assert 46 <= float(x) <= 720
        assert float(y) >= 7.9
    assert re.findall(r'anchor="end">(.*?)</text>', drawn)


def test_a_chart_of_nothing_still_has_its_scale():
    for drawn in (lines([("a", [])], "what", "unit"), stacked(["1 h"], [("a", [0.0], 0)], [None], "what", "unit")):
        assert re.findall(r'text-anchor="end">([\d.]+)</text>', str(drawn))[:6] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
