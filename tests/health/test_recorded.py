"""What real cards told, graded: facts recorded by `headframe check --facts` (`benchmarks/bench_card.py`)."""

from pathlib import Path

import msgspec

from headframe.data import text
from headframe.health.catalogue import catalogue
from headframe.health.grade import examined
from headframe.model.fleet import Grade
from headframe.model.health import CardFacts, HostFacts

RECORDED = Path(__file__).parents[1] / "data" / "h200.jsonl"


def test_a_real_h200_trains_and_is_told_what_it_lacks_to_train_with_others():
    card, host = RECORDED.read_bytes().splitlines()
    done = examined(
        catalogue(text("gpus.csv")), msgspec.json.decode(host, type=HostFacts), [msgspec.json.decode(card, type=CardFacts)], lambda _: None
    )
    found = done.cards[0]
    assert (found.model, found.grading.grade) == ("H200 SXM 141GB", Grade.TRAIN)
    assert [str(each).split(":")[0] for each in found.grading.findings] == [
        "no network for it is known (needs ≥ 100 Gb/s)",
        "not tried together with a machine known to be good",
    ]
