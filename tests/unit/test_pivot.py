"""The pivot planner: what it says follows from what it was told, in the direction that anybody would expect, and what it does not know it says."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from headframe.cli.main import app
from headframe.data import text
from headframe.dispatch.pivot import ADDED, BATCH, INFERENCE, KEEP, NETWORK, RESALE, TRAINING, Draw, facts, month, plan
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
    assert month(KEEP, [CARD], BASE, Draw()) == pytest.approx(mined - host)
    rented = 0.4 * (CARD.rent_usd_h * 730 - 0.8 * 350 / 0.92 * 1.06 / 1000 * 730 * 0.07) + 0.6 * mined - host
    assert month(INFERENCE, [CARD], BASE, Draw()) == pytest.approx(rented)


@given(st.floats(0, 0.5), st.floats(0, 0.5), st.sampled_from([KEEP, BATCH, INFERENCE, TRAINING, NETWORK, ADDED]), st.integers(1, 12))
def test_dearer_power_never_earns_more_and_better_rents_sales_and_coins_never_less(power, more, way, count):
    cards = [CARD] * count
    cheap, dear = (Assumptions(power_usd_kwh=each, coins={"etchash": 0.02}, resale={CARD.name: 500}) for each in (power, power + more))
    assert month(way, cards, dear, Draw()) <= month(way, cards, cheap, Draw()) + 1e-6
    for better in (Draw(rent=1 + more), Draw(coin=1 + more)):
        assert month(way, cards, cheap, better) >= month(way, cards, cheap, Draw()) - 1e-6


@given(st.floats(0.1, 10))
def test_scaling_every_price_alike_changes_no_choice(scale):
    found = rigs(6, 1, 3)
    scaled = Assumptions(
        power_usd_kwh=0.07 * scale,
        coins={"etchash": 0.02 * scale},
        rents={CARD.name: CARD.rent_usd_h * scale},
        host_usd=140 * scale,
        slots_usd=420 * scale,
        network_usd=180 * scale,
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
    assert dear.rigs[0].options[0].kind == KEEP.kind
    assert "switch it off" in dear.rigs[0].why


def test_each_kind_of_work_names_its_upgrades_and_what_they_cost():
    priced = Assumptions(power_usd_kwh=0.07, coins={"etchash": 0.02}, resale={CARD.name: 500})
    options = {option.kind: option for option in planned(rigs(6), priced).rigs[0].options}
    assert {kind: option.capex_usd for kind, option in options.items()} == {
        KEEP.kind: 0,
        BATCH.kind: 0,
        INFERENCE.kind: 140,
        TRAINING.kind: 140 + 2 * 420,
        NETWORK.kind: 140 + 2 * (420 + 180),
        ADDED.kind: pytest.approx(140 + 2 * (420 + 180) + 2 * 550),
        RESALE.kind: -3000,
    }
    assert options[ADDED.kind].what.startswith("2 hosts with 4 real slots, 16 to 32 GB of memory, an SSD, 25 GbE, 2 × GeForce RTX 3090: ")
    assert {option.sells for option in options.values()} == {"", "batch", "inference", "training"}
    two = {option.kind: option for option in planned(rigs(2), priced).rigs[0].options}
    assert two[TRAINING.kind].capex_usd == 140, "two cards have real slots already"
    assert two[ADDED.kind].capex_usd == pytest.approx(140 + 180 + 2 * 550)


def test_small_cards_are_sold_only_as_what_fits_them_and_cards_are_added_only_at_a_known_price():
    small = planned(rigs(4, model="GeForce RTX 3070"))
    assert {option.sells for option in small.rigs[0].options} == {"", "batch", "inference"}, "8 GB are too little to train in"
    kinds = {option.kind for option in planned(rigs(6)).rigs[0].options}
    assert not kinds & {ADDED.kind, RESALE.kind}
    assert any("--resale" in each for each in planned(rigs(6)).unknown)


def test_hardware_that_sells_well_is_sold():
    made = planned(rigs(1), Assumptions(power_usd_kwh=0.07, resale={CARD.name: 50_000}))
    assert made.rigs[0].options[0].kind == RESALE.kind
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
