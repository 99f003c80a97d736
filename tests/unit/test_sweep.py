"""A card's speed under power limits: swept in steps, set back whatever happens, and believed only as far as it can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.agent.sweep import SHARES, swept
from headframe.dispatch.power import DECODING, hull, median_curve, modes, speed_at
from headframe.dispatch.survey import choices, problem
from headframe.model.command import SetSite
from headframe.model.fleet import Graded
from headframe.model.power import LoadClass
from headframe.model.work import Tier
from headframe.server.decide import SITE
from headframe.server.qualify import good_caps
from test_filling import Site
import msgspec


class Card:
    """350 W; training draws 340 and follows the cap's root, decoding draws 250."""

    def __init__(self, least=0, breaks_at=0):
        self.limit, self.least, self.breaks_at, self.told = 320, least, breaks_at, []

    def set(self, watts):
        if watts < self.least:
            return f"power of {watts} W is outside {self.least} to 350 W"
        self.limit = watts
        self.told.append(watts)
        return ""

    def restore(self):
        self.limit = 320

    def work(self, draws, speed):
        def rate():
            if self.limit <= self.breaks_at:
                raise RuntimeError("CUDA error")
            x = min(1.0, self.limit / draws)
            return 100 * speed(x), min(draws, self.limit)

        return rate

    def swept(self):
        return swept(
            350, self.set, self.restore, {"training": self.work(340, lambda x: x**0.5), "decoding": self.work(250, lambda x: speed_at(DECODING, x))}
        )


def test_a_sweep_gives_speeds_by_the_cap_over_what_would_be_drawn():
    card = Card()
    found, why = card.swept()
    assert why == ""
    assert card.told == [round(350 * share) for share in SHARES]
    assert card.limit == 320, "what was set before is set again"
    for x, speed in found["training"]:
        assert speed == pytest.approx(x**0.5, abs=0.002)
    assert [x for x, _ in found["decoding"]] == [0.7, 0.84, 0.98, 1.0], "limits above what it draws say nothing"
    assert good_caps(found) == found


def test_a_card_that_can_not_go_so_low_is_swept_as_far_as_it_can_and_one_that_breaks_is_set_back():
    found, why = Card(least=240).swept()
    assert "outside 240" in why
    assert min(x for x, _ in found["training"]) == pytest.approx(245 / 340, abs=0.001)
    assert Card(least=350).swept()[0] == {}
    broken = Card(breaks_at=250)
    with pytest.raises(RuntimeError):
        broken.swept()
    assert broken.limit == 320


curve = st.lists(st.tuples(st.floats(-1, 2), st.floats(-1, 2)), max_size=20).map(tuple)


@given(st.dictionaries(st.sampled_from(["training", "decoding", "mining"]), curve, max_size=3))
def test_whatever_a_machine_tells_what_is_kept_is_a_curve(told):
    for kept in (good_caps(told) or {}).values():
        assert kept[-1] == (1.0, 1.0)
        assert [x for x, _ in kept] == sorted({x for x, _ in kept})
        found = modes(LoadClass.BATCH, kept)
        assert found[0].speed == 1.0
        assert all(0 <= mode.speed <= 1 and 0 < mode.x <= 1 for mode in found)
        assert hull(median_curve([kept, kept])) == hull(kept)


def test_a_models_own_sweep_takes_the_published_curves_place_where_limits_may_be_set():
    site = Site(nodes=1, gpus_each=2)
    own = ((0.6, 0.95), (0.8, 0.99), (1.0, 1.0))
    for gpu in list(site.world.gpus.values()):
        site.world.put(msgspec.structs.replace(gpu, graded=Graded(at_ms=0, depth="idle", caps={"training": own})))
    site.submit(1, tier=Tier.SPOT, checkpoint="/c")
    site.step(3)

    def curves():
        survey = site.survey()
        return {work.kind: work.curve for work in problem(site.world, survey, choices(site.world, survey), hours=2).site.work}

    assert curves()[LoadClass.BATCH] == ((1.0, 1.0),), "nobody sets limits here yet"
    site.do(SetSite(site_id=SITE, caps=True))
    assert curves()[LoadClass.BATCH] == own
    assert curves()[LoadClass.FILLER] is None, "what a miner does under a cap is not swept"
