"""The pivot planner: what it says follows from what it was told, in the direction that anybody would expect, and what it does not know it says."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from headframe.cli.main import app
from headframe.data import text
from headframe.dispatch.pivot import HOST, KEEP, RESALE, SELL, SLOTS, Draw, facts, month, plan
from headframe.model.fleet import Rig, RigCard
from headframe.model.pivot import Assumptions

KNOWN = facts(text("gpus.csv"), text("gpu_rents.csv"))
CARD = KNOWN["GeForce RTX 3090"]
BASE = Assumptions(power_usd_kwh=0.07, coins={"etchash": 0.02})


def rigs(*counts, model="GeForce RTX 3090"):
    return [
        Rig(id=f"rig.{n}", name=f"rig-{n}", cards=tuple(RigCard(index=k, model=model, memory_mib=24_576) for k in range(count)))
        for n, count in enumerate(counts)
    ]


def planned(found, assumed=BASE, seed=1):
    return plan(found, lambda name, _: name if name in KNOWN else None, KNOWN, assumed, np.random.default_rng(seed))


def test_the_arithmetic_is_that_of_the_formulas():
    watts = 290 / 0.92 * 1.06 / 1000 * 730
    mined = 121.2 * 0.02 * 0.98 * 365 / 12 - watts * 0.07
    host = 75 / 0.92 * 1.06 / 1000 * 730 * 0.07
    assert month(KEEP, [CARD], BASE, Draw(), risers=False) == pytest.approx(mined - host)
    rented = 0.4 * (CARD.rent_usd_h * 730 - 0.8 * 350 / 0.92 * 1.06 / 1000 * 730 * 0.07) + 0.6 * mined - host
    assert month(HOST, [CARD], BASE, Draw(), risers=False) == pytest.approx(rented)


@given(st.floats(0, 0.5), st.floats(0, 0.5), st.sampled_from([KEEP, SELL, HOST, SLOTS]), st.integers(1, 12), st.booleans())
def test_dearer_power_never_earns_more_and_better_rents_sales_and_coins_never_less(power, more, kind, count, risers):
    cards = [CARD] * count
    cheap, dear = (Assumptions(power_usd_kwh=each, coins={"etchash": 0.02}) for each in (power, power + more))
    assert month(kind, cards, dear, Draw(), risers=risers) <= month(kind, cards, cheap, Draw(), risers=risers) + 1e-6
    for better in (Draw(rent=1 + more), Draw(coin=1 + more)):
        assert month(kind, cards, cheap, better, risers=risers) >= month(kind, cards, cheap, Draw(), risers=risers) - 1e-6


@given(st.floats(0.1, 10))
def test_scaling_every_price_alike_changes_no_choice(scale):
    found = rigs(6, 1, 3)
    scaled = Assumptions(
        power_usd_kwh=0.07 * scale,
        coins={"etchash": 0.02 * scale},
        rents={CARD.name: CARD.rent_usd_h * scale},
        host_usd=140 * scale,
        slots_usd=420 * scale,
    )
    assert [row.options[0].kind for row in planned(found, scaled).rigs] == [row.options[0].kind for row in planned(found).rigs]


def test_the_whole_is_the_sum_of_its_rigs_and_never_worse_than_keeping_on():
    made = planned(rigs(6, 1, 3))
    assert made.plan_usd == pytest.approx(sum(row.options[0].month_usd for row in made.rigs))
    assert made.plan_usd - made.capex_usd / 24 >= made.keep_usd - 1e-6
    assert made.cards == 10
    first, *_ = made.sensitivity
    assert (first.keep_usd, first.plan_usd) == (pytest.approx(made.keep_usd), pytest.approx(made.plan_usd))
    assert planned(rigs(6, 1, 3)) == made, "the same seed draws the same"
    assert made.keep_band.p10 <= made.keep_band.p50 <= made.keep_band.p90
    assert made.keep_band.p90 > 8 * max(1.0, made.keep_band.p10), "a coin's thirtyfold is in the draws"


def test_what_is_not_known_is_said_and_counts_as_nothing():
    made = planned(rigs(2, model="Weird Card 9000"), Assumptions(power_usd_kwh=0.07))
    assert made.plan_usd == made.keep_usd == 0
    assert "nothing is known" in made.rigs[0].why
    assert any("Weird Card 9000" in each for each in made.unknown)
    assert any("--coin" in each for each in made.unknown)
    dear = planned(rigs(2), Assumptions(power_usd_kwh=5.0, coins={"etchash": 0.001}))
    assert dear.rigs[0].options[0].kind == KEEP
    assert "switch it off" in dear.rigs[0].why


def test_hardware_that_sells_well_is_sold():
    made = planned(rigs(1), Assumptions(power_usd_kwh=0.07, resale={CARD.name: 50_000}))
    assert made.rigs[0].options[0].kind == RESALE
    assert made.capex_usd == -50_000


def test_the_command_reads_an_inventory_and_writes_a_table_json_and_a_page(tmp_path):
    fleet = tmp_path / "fleet.csv"
    fleet.write_text("rig,model,vram\n" + "rig-1,RTX 3090,24GB\n" * 6 + "rig-2,RX 580,8GB\n")
    words = ["plan", str(fleet), "--power", "0.07", "--coin", "etchash=0.02", "--html", str(tmp_path / "plan.html")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "6 × GeForce RTX 3090" in done.output
    assert "assumed:" in done.output
    page = (tmp_path / "plan.html").read_text()
    assert "rig-1" in page
    assert "<svg" in page
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert told["cards"] == 7
    for wrong in (["--coin", "nope=1"], ["--coin", "etchash=-1"], ["--coin", "etchash=nan"], ["--rent", "RTX 3090"], ["--power", "many"]):
        refused = CliRunner().invoke(app, [*words, *wrong])
        assert refused.exit_code == 2, wrong
    fleet.write_text("rig,model,vram\nrig-1,,24GB\n")
    assert CliRunner().invoke(app, words).exit_code == 2
