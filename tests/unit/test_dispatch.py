"""What each watt does: tariffs, mining, caps, the programme, the ladder and its calm. No schedule exceeds a limit; more power never earns less; scaling prices changes no choice."""

import math
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headframe.dispatch.heat import after_c, carried_w, reaches_s, settled_c
from headframe.dispatch.meter import Means
from headframe.dispatch.mining import (
    break_even_usd_kwh,
    usd_h,
    usd_per_hash_day,
    why_not_believed,
)
from headframe.dispatch.plan import Asics, Pool, Schedule, Site, Work, solved, whole
from headframe.dispatch.power import CURVES, hull, modes, speed_at
from headframe.dispatch.settle import (
    DWELL_MS,
    GAIN,
    SLEEP,
    Room,
    chosen,
    starts_at_once,
)
from headframe.dispatch.shed import Load, Rung, ladder, shed
from headframe.dispatch.tariff import Peak, holds, minute, peaks, series, usd_kwh
from headframe.model.power import (
    Coin,
    DemandCharge,
    EnergyCharge,
    Filler,
    LoadClass,
    Mines,
    Tariff,
    Window,
)

HOUR_MS = 3_600_000
BTC = Coin(id="BTC", algorithm="sha256", price_usd=104_000, network_hs=1.1e21, block_s=600, reward=3.15)


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def none(_at_ms):
    return None


# Tariffs


def test_a_time_of_use_tariff_follows_the_sites_own_clock_through_a_change_of_the_hour():
    evening = (Window(days=(0, 1, 2, 3, 4), from_min=16 * 60, to_min=21 * 60, months=(6, 7, 8, 9)),)
    tariff = Tariff(
        name="tou", zone="America/Los_Angeles", energy=(EnergyCharge(usd_kwh=0.31, when=evening), EnergyCharge(usd_kwh=0.11)), adder_usd_kwh=0.01
    )
    assert usd_kwh(tariff, none, at("2026-07-01T23:30")) == pytest.approx(0.32)  # 16:30 there
    assert usd_kwh(tariff, none, at("2026-07-01T22:30")) == pytest.approx(0.12)
    assert usd_kwh(tariff, none, at("2026-07-05T23:30")) == pytest.approx(0.12)  # a Sunday
    assert usd_kwh(tariff, none, at("2026-12-01T23:30")) == pytest.approx(0.12)


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_began():
    night = Window(days=(4,), from_min=22 * 60, to_min=6 * 60)
    friday, saturday, sunday = (datetime(2026, 7, day, tzinfo=UTC) for day in (3, 4, 5))
    assert holds(night, friday.replace(hour=23))
    assert holds(night, saturday.replace(hour=5))
    assert not holds(night, friday.replace(hour=5))
    assert not holds(night, sunday.replace(hour=5))


def test_the_market_comes_first_and_what_cannot_be_a_price_is_no_price():
    tariff = Tariff(name="da", market="hub", adder_usd_kwh=0.01, energy=(EnergyCharge(usd_kwh=0.05),))
    told = {at("2026-01-01T00:00"): 80.0, at("2026-01-01T01:00"): math.nan, at("2026-01-01T02:00"): 80_000.0, at("2026-01-01T03:00"): -20.0}
    assert [usd_kwh(tariff, told.get, key) for key in told] == pytest.approx([0.09, 0.06, 0.06, -0.01])


def test_hours_without_a_price_cost_the_mean_of_the_others():
    tariff = Tariff(name="da", market="hub")
    assert series(tariff, {0: 40.0, 2: 60.0}.get, [0, 1, 2]) == pytest.approx([0.04, 0.05, 0.06])
    assert series(tariff, none, [0, 1]) == [0.0, 0.0]


def test_a_peak_is_only_looked_at_where_its_window_is_near():
    charge = DemandCharge(name="4cp", usd_kw=6, when=(Window(from_min=16 * 60, to_min=20 * 60),))
    tariff = Tariff(name="t", energy=(EnergyCharge(usd_kwh=0.05),), demand=(charge,))
    day = [at("2026-07-01T12:00") + n * HOUR_MS for n in range(6)]
    assert peaks(tariff, none, day, lambda _: 1e6)[0].within == (False, False, False, False, True, True)
    assert peaks(tariff, none, day[:2], lambda _: 0.0) == ()


def test_what_a_months_later_hours_will_cost_is_taken_from_hours_like_them():
    charge = DemandCharge(name="4cp", usd_kw=6, when=(Window(from_min=16 * 60, to_min=20 * 60),))
    tariff = Tariff(name="t", market="hub", demand=(charge,))
    known = {at("2026-07-29T17:00"): 90.0, at("2026-07-29T12:00"): 10.0, at("2026-07-30T16:00"): 50.0}
    (peak,) = peaks(tariff, known.get, [at("2026-07-30T14:00") + n * HOUR_MS for n in range(24)], lambda _: 0.0)
    assert (peak.later_h, sorted(peak.like_usd_kwh)) == (4, [0.05, 0.09])  # the 31st from 16 to 20 o'clock
    (last,) = peaks(tariff, known.get, [at("2026-07-31T14:00") + n * HOUR_MS for n in range(24)], lambda _: 0.0)
    assert last.later_h == 0


@pytest.mark.parametrize(("later_usd_kwh", "mines"), [((0.02, 0.03), 10), ((0.02, 0.30), 10), ((0.30, 0.40), 0), ((), 0)])
def test_a_new_peak_is_begun_where_the_months_later_hours_are_expected_to_pay_for_it(later_usd_kwh, mines):
    pool = Pool(id="p", rack="r", cards=10, idle_w=0)
    mine = Work(id="mine", kind=LoadClass.FILLER, usd_h=0.03, draw_w={"p": 300}, cards=(10.0, 10.0), curve=((1.0, 1.0),))
    peak = Peak(name="p", usd_kw=2.0, within=(True, False), later_h=80, like_usd_kwh=later_usd_kwh)
    schedule = found(Site(hours=1, usd_kwh=(0.02, 0.02), limit_w=(1e6,) * 2, pools=(pool,), work=(mine,), peaks=(peak,)))
    assert sum(use.cards[0] for use in schedule.uses) == pytest.approx(mines)
    assert sum(use.cards[1] for use in schedule.uses) == pytest.approx(10), "outside the window nothing is paid for"


QUARTER = 900_000


@given(st.lists(st.tuples(st.integers(1, 240_000), st.floats(0, 1e6)), min_size=2, max_size=60), st.integers(0, 10_000_000))
def test_a_meters_means_are_those_of_what_was_drawn_between_the_looks(looks, start):
    means, at, drawn, told = Means(QUARTER), start, [], []
    for after, watts in looks:
        told += means.heard(at, watts)
        drawn.append((at, at + after, watts))
        at += after
    for mean in told:
        parts = [
            (min(end, mean.start_ms + QUARTER) - max(begin, mean.start_ms), watts)
            for begin, end, watts in drawn
            if begin < mean.start_ms + QUARTER and end > mean.start_ms
        ]
        assert mean.start_ms % QUARTER == 0
        assert mean.watts == pytest.approx(sum(length * watts for length, watts in parts) / sum(length for length, _ in parts), abs=1e-3)
    assert [mean.start_ms for mean in told] == list(range(start // QUARTER * QUARTER, (drawn[-1][0] // QUARTER) * QUARTER, QUARTER))


def test_what_nobody_saw_counts_for_no_peak_and_a_moments_peak_is_not_an_intervals():
    means = Means(QUARTER)
    assert means.heard(0, 1000) == []
    assert means.heard(100_000, 9000) == []
    assert means.heard(101_000, 1000) == []
    assert means.heard(2 * QUARTER, 1000) == [], "half an hour without a look"
    assert [
        round(mean.watts)
        for mean in [
            *means.heard(2 * QUARTER + 250_000, 1000),
            *means.heard(2 * QUARTER + 500_000, 1000),
            *means.heard(2 * QUARTER + 750_000, 9000),
            *means.heard(3 * QUARTER, 0),
        ]
    ] == [2333]


@pytest.mark.parametrize(("text", "minutes"), [("7", 420), ("14:30", 870), ("24", 1440), ("0", 0)])
def test_times_of_day(text, minutes):
    assert minute(text) == minutes


@pytest.mark.parametrize("text", ["25", "7:60", "x", "-1"])
def test_what_is_no_time_of_day(text):
    with pytest.raises(ValueError, match="is no time of day"):
        minute(text)


# Mining


def test_bitcoins_hashprice_follows_from_its_terms():
    assert usd_per_hash_day(BTC) * 1e15 == pytest.approx(42.9, abs=0.5)  # US$ per PH/s and day
    s21 = usd_per_hash_day(BTC) * 200e12 / 24
    assert break_even_usd_kwh(s21, 3500) == pytest.approx(0.102, abs=0.002)


def test_fees_come_off_and_an_unknown_coin_is_no_income():
    filler = Filler(id="f", name="f", run="mine", coin="BTC", pool_fee=0.01, program_fee=0.02)
    whole_ = usd_per_hash_day(BTC) * 100e12 / 24
    assert usd_h(filler, Mines(hashes_s=100e12, watts=300), BTC) == pytest.approx(whole_ * 0.99 * 0.98)
    assert usd_h(filler, Mines(hashes_s=1, watts=1), None) is None
    assert usd_h(Filler(id="o", name="o", run="x", usd_gpu_h=0.07), Mines(watts=200), None) == 0.07


@given(
    field=st.sampled_from(["price_usd", "network_hs", "block_s", "reward"]),
    factor=st.sampled_from([math.nan, math.inf, -1.0, 0.0, 1000.0, 0.001]),
)
def test_a_poisoned_coin_is_not_believed(field, factor):
    assert why_not_believed(BTC, msgspec.structs.replace(BTC, **{field: getattr(BTC, field) * factor}))


def test_an_ordinary_day_is_believed():
    assert why_not_believed(BTC, msgspec.structs.replace(BTC, price_usd=81_000)) == ""
    assert why_not_believed(None, BTC) == ""


# Caps


@pytest.mark.parametrize("kind", list(LoadClass))
def test_curves_rise_are_concave_and_end_at_full_speed(kind):
    curve = CURVES[kind]
    assert curve == hull(curve)
    assert curve[-1] == (1.0, 1.0)
    assert [speed_at(curve, x) for x in (0.0, 2.0)] == [0.0, 1.0]
    assert all(later.x < earlier.x and later.speed < earlier.speed for earlier, later in zip(modes(kind), modes(kind)[1:], strict=False))


def test_what_is_firmly_sold_is_never_slowed():
    assert [mode.x for mode in modes(LoadClass.FIRM)] == [1.0]
    assert min(mode.x for mode in modes(LoadClass.ONLINE)) == 0.74


# The programme

FLOAT = st.floats(0.0, 1.0, allow_nan=False, width=32)


@st.composite
def sites(draw):
    steps = draw(st.integers(1, 6))
    pools = tuple(
        Pool(id=f"p{n}", rack=f"r{n % 2}", cards=draw(st.integers(0, 40)), idle_w=draw(st.sampled_from([0.0, 20.0])))
        for n in range(draw(st.integers(1, 3)))
    )
    work = tuple(
        Work(id=f"w{n}", kind=kind, usd_h=draw(FLOAT), draw_w={pool.id: 100 + 300 * draw(FLOAT) for pool in pools}, can_wait=kind is LoadClass.BATCH,
             cards=tuple(draw(st.integers(0, 40)) for _ in range(steps)))
        for n, kind in enumerate(draw(st.lists(st.sampled_from(list(LoadClass)), max_size=4)))
    )  # fmt: skip
    peak = Peak(name="p", usd_kw=draw(FLOAT) * 10, within=tuple(draw(st.booleans()) for _ in range(steps)), reached_w=1000.0 * draw(FLOAT),
                later_h=draw(st.integers(0, 80)), like_usd_kwh=tuple(draw(st.lists(FLOAT, max_size=3))))  # fmt: skip
    return Site(
        hours=draw(st.sampled_from([0.25, 1.0])), usd_kwh=tuple(draw(st.floats(-0.1, 2.0)) for _ in range(steps)), pue=draw(st.sampled_from([1.0, 1.3])),
        limit_w=tuple(draw(st.floats(0, 40_000)) for _ in range(steps)), pools=pools, work=work, static_w=draw(st.sampled_from([0.0, 500.0])),
        racks=draw(st.sampled_from([{}, {"r0": 3000.0}])), peaks=draw(st.sampled_from([(), (peak,)])),
        asics=draw(st.sampled_from([(), (Asics(id="a", count=3, watts=3500.0, usd_h=0.3),)])),
    )  # fmt: skip


def found(site) -> Schedule:
    schedule, _ = solved(site)
    assert schedule is not None
    return schedule


@settings(max_examples=60)
@given(sites())
def test_no_schedule_exceeds_cards_racks_or_the_meter(site):
    schedule = found(site)
    idle = site.pue * (site.static_w + sum(pool.cards * pool.idle_w for pool in site.pools))
    for t in range(len(site.usd_kwh)):
        assert schedule.meter_w[t] <= max(site.limit_w[t], idle) + 1e-3
        for pool in site.pools:
            assert sum(use.cards[t] for use in schedule.uses if use.pool == pool.id) <= pool.cards + 1e-6
        for rack, limit in site.racks.items():
            there = {pool.id: pool for pool in site.pools if pool.rack == rack}
            resting = sum(pool.cards * pool.idle_w for pool in there.values())
            drawn = resting + sum(use.cards[t] * (use.watts - there[use.pool].idle_w) for use in schedule.uses if use.pool in there)
            assert drawn <= max(limit, resting) + 1e-3
        rounded = [whole(use.cards[t]) for use in schedule.uses]
        assert sum(rounded) <= sum(pool.cards for pool in site.pools)


@settings(max_examples=40)
@given(sites(), st.floats(1.0, 2.0))
def test_more_power_never_earns_less(site, factor):
    more = msgspec.structs.replace(site, limit_w=tuple(watts * factor for watts in site.limit_w))
    assert found(more).net_usd >= found(site).net_usd - 1e-6


@settings(max_examples=30)
@given(sites(), st.sampled_from([0.5, 3.0]))
def test_scaling_all_prices_scales_the_earnings_and_changes_nothing_else(site, factor):
    scaled = msgspec.structs.replace(
        site, usd_kwh=tuple(price * factor for price in site.usd_kwh), work=tuple(msgspec.structs.replace(work, usd_h=work.usd_h * factor) for work in site.work),
        asics=tuple(msgspec.structs.replace(asics, usd_h=asics.usd_h * factor) for asics in site.asics),
        peaks=tuple(msgspec.structs.replace(peak, usd_kw=peak.usd_kw * factor, like_usd_kwh=tuple(each * factor for each in peak.like_usd_kwh)) for peak in site.peaks),
    )  # fmt: skip
    if any(work.kind is LoadClass.FIRM for work in site.work):
        return  # the penalty for firm work that has no room is an amount
    assert found(scaled).net_usd == pytest.approx(found(site).net_usd * factor, rel=1e-6, abs=1e-6)


def test_mining_stops_where_power_costs_more_than_it_earns_and_asics_stop_before_cards():
    pool = Pool(id="3090", rack="r", cards=10, idle_w=20)
    mine = Work(id="mine", kind=LoadClass.FILLER, usd_h=0.05, draw_w={"3090": 280.0}, cards=(99,) * 3)
    site = Site(
        hours=1,
        usd_kwh=(0.05, 0.12, 0.40),
        limit_w=(1e6,) * 3,
        pools=(pool,),
        work=(mine,),
        asics=(Asics(id="s21", count=4, watts=3500, usd_h=0.33),),
    )
    schedule = found(site)
    mining = [sum(use.cards[t] for use in schedule.uses) for t in range(3)]
    assert mining == [10, 10, 0]
    assert schedule.asics["s21"] == (4, 0, 0)


def test_work_that_can_wait_moves_to_the_cheap_hours_and_is_done():
    pool = Pool(id="p", rack="r", cards=10, idle_w=0)
    batch = Work(id="batch", kind=LoadClass.BATCH, usd_h=0.1, draw_w={"p": 300.0}, cards=(10, 0, 0, 0), can_wait=True, curve=((1.0, 1.0),))
    schedule = found(Site(hours=1, usd_kwh=(0.30, 0.30, 0.02, 0.02), limit_w=(1e6,) * 4, pools=(pool,), work=(batch,)))
    assert [sum(use.cards[t] for use in schedule.uses) for t in range(4)] == pytest.approx([0, 0, 10, 0])


def test_a_tight_limit_caps_before_it_turns_away():
    pool = Pool(id="p", rack="r", cards=10, idle_w=0)
    spot = Work(id="spot", kind=LoadClass.SPOT, usd_h=0.2, draw_w={"p": 300.0}, cards=(10,))
    schedule = found(Site(hours=1, usd_kwh=(0.05,), limit_w=(2100.0,), pools=(pool,), work=(spot,)))
    assert sum(use.cards[0] for use in schedule.uses) == pytest.approx(10)
    assert schedule.meter_w[0] == pytest.approx(2100)
    assert schedule.kwh_usd[0] > 0


def test_firm_work_beyond_the_limit_is_told_as_short():
    pool = Pool(id="p", rack="r", cards=10, idle_w=0)
    firm = Work(id="firm", kind=LoadClass.FIRM, usd_h=0.5, draw_w={"p": 300.0}, cards=(10,))
    assert found(Site(hours=1, usd_kwh=(0.05,), limit_w=(1500.0,), pools=(pool,), work=(firm,))).short == pytest.approx(5)


def test_a_peak_that_the_month_has_reached_costs_nothing_more():
    pool = Pool(id="p", rack="r", cards=10, idle_w=0)
    mine = Work(id="mine", kind=LoadClass.FILLER, usd_h=0.05, draw_w={"p": 300.0}, cards=(10,), curve=((1.0, 1.0),))
    site = Site(
        hours=1, usd_kwh=(0.05,), limit_w=(1e6,), pools=(pool,), work=(mine,), peaks=(Peak(name="p", usd_kw=8.0, within=(True,), reached_w=1500.0),)
    )
    assert sum(use.cards[0] for use in found(site).uses) == pytest.approx(5)


def test_a_basis_leads_to_the_same_answer():
    site = Site(hours=1, usd_kwh=(0.05, 0.1), limit_w=(3000.0, 2000.0), pools=(Pool(id="p", rack="r", cards=10, idle_w=10),),
                work=(Work(id="s", kind=LoadClass.SPOT, usd_h=0.2, draw_w={"p": 300.0}, cards=(10, 10)),))  # fmt: skip
    first, basis = solved(site)
    again, _ = solved(site, start=basis)
    assert first is not None
    assert again is not None
    assert again.net_usd == pytest.approx(first.net_usd)


# The ladder

LOADS = st.lists(
    st.builds(
        Load,
        id=st.uuids().map(str),
        rung=st.sampled_from(list(Rung)),
        watts=st.floats(1, 3000),
        usd_h=st.floats(0, 5),
    ),
    max_size=60,
)


@given(LOADS, st.floats(0, 60_000))
def test_the_ladder_goes_in_its_order_saves_enough_and_no_more_than_one_load_too_much(loads, need_w):
    done = shed(loads, need_w)
    assert done.watts + done.missing_w >= need_w - 1e-6
    assert done.missing_w == 0 or len(done.which) == len(loads)
    if done.which:
        assert sum(loads[n].watts for n in done.which[:-1]) < need_w
        last = loads[done.which[-1]].rung
        stays = [load for n, load in enumerate(loads) if n not in done.which]
        assert all(load.rung >= last for load in stays)


@given(LOADS, st.floats(0, 60_000), st.randoms())
def test_the_ladder_does_not_depend_on_the_order_in_which_it_is_told(loads, need_w, random):
    shuffled = list(loads)
    random.shuffle(shuffled)
    assert {shuffled[n].id for n in shed(shuffled, need_w).which} == {loads[n].id for n in shed(loads, need_w).which}


def test_a_level_sheds_its_rungs_whatever_they_save():
    loads = [Load(id=rung.name, rung=rung, watts=100, usd_h=1) for rung in Rung]
    assert [loads[n].id for n in shed(loads, 0.0, frozenset({Rung.MINING, Rung.CAPS})).which] == ["MINING", "CAPS"]
    assert [step.rung for step in ladder(loads)] == ["mining", "caps", "spot", "batch"]


# Calm


@given(
    earn=st.floats(0.001, 1.0),
    cost=st.floats(0.001, 1.0),
    factor=st.floats(0.01, 100.0),
    on=st.booleans(),
)
def test_a_choice_does_not_change_when_all_prices_are_scaled(earn, cost, factor, on):
    before, long_ago = ("coin" if on else SLEEP), -10 * DWELL_MS
    one = chosen(before, long_ago, {"coin": earn}, {"coin": cost, SLEEP: cost * 0.1}, 0)
    other = chosen(before, long_ago, {"coin": earn * factor}, {"coin": cost * factor, SLEEP: cost * 0.1 * factor}, 0)
    margin = abs(earn * (1 + GAIN if on else 1 / (1 + GAIN)) - cost * 0.9)
    assert one.filler == other.filler or margin < 1e-9


def test_a_price_that_wavers_around_break_even_switches_nothing_and_a_clear_gain_does():
    costs = {"coin": 0.050, SLEEP: 0.0}
    assert chosen("coin", 0, {"coin": 0.048}, costs, DWELL_MS * 2).filler == "coin"
    assert chosen(SLEEP, 0, {"coin": 0.052}, costs, DWELL_MS * 2).filler == SLEEP
    assert chosen("coin", 0, {"coin": 0.040}, costs, DWELL_MS * 2).filler == SLEEP
    assert chosen(SLEEP, 0, {"coin": 0.060}, costs, DWELL_MS * 2).filler == "coin"


def test_within_the_dwell_nothing_is_switched_but_a_filler_that_is_gone_is_left():
    costs = {"a": 0.01, "b": 0.01, SLEEP: 0.0}
    assert chosen("a", 0, {"a": 0.02, "b": 0.09}, costs, DWELL_MS - 1).filler == "a"
    assert chosen("a", 0, {"b": 0.09}, costs, DWELL_MS - 1).filler == "b"


@given(st.floats(100, 1e6), st.floats(0, 1e6), st.lists(st.floats(1, 500), max_size=30), st.integers(1, 10))
def test_starts_stay_below_the_limit_one_after_the_other(limit, drawn, wanted, most):
    room, count = Room(limit, drawn), 0
    for watts in wanted[:most]:
        if not room.fits(watts):
            break
        room.take(watts)
        count += 1
    assert count <= most
    assert count == 0 or drawn + sum(wanted[:count]) <= limit
    assert starts_at_once(0) == 1


# Heat


def test_air_carries_what_keeps_the_inlet_below_its_limit_and_nothing_where_the_supply_is_too_warm():
    assert carried_w(airflow_m3_s=0.055, supply_c=25.0) == pytest.approx(0.055 * 1206 * 10 / 0.1)
    assert carried_w(1.0, 30.0) == pytest.approx(carried_w(1.0, 25.0) / 2)
    assert carried_w(1.0, 40.0) == carried_w(0.0, 20.0) == 0.0


@given(st.floats(0, 40_000), st.floats(0.05, 3), st.floats(10, 30), st.floats(10, 60), st.floats(1, 3600), st.integers(1, 20))
def test_an_inlet_moves_towards_where_it_settles_whatever_the_steps(watts, airflow, supply, before, seconds, steps):
    settles = settled_c(watts, airflow, supply)
    at_once = after_c(before, settles, seconds)
    slowly = before
    for _ in range(steps):
        slowly = after_c(slowly, settles, seconds / steps)
    assert slowly == pytest.approx(at_once, abs=1e-6)
    assert min(before, settles) - 1e-9 <= at_once <= max(before, settles) + 1e-9
    until = reaches_s(before, settles)
    if 0 < until < math.inf:
        assert after_c(before, settles, until) == pytest.approx(35.0, abs=1e-6)
    assert (until == math.inf) == (before < 35.0 and settles <= 35.0)
    assert settled_c(carried_w(airflow, supply), airflow, supply) == pytest.approx(35.0)
