"""Fillers, limits and the ladder through the real tick: paid work comes first and is never shed, no limit is exceeded at any step, one filler a card, a poisoned figure switches nothing."""

import math
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headframe.dispatch.heat import settled_c
from headframe.dispatch.plan import solved
from headframe.dispatch.power import idle_w
from headframe.dispatch.survey import choices, kind_of, latest, limit_w, market_of, problem, surveyed, usd_of
from headframe.model.command import RemoveFiller, SetFiller, SetPrices, SetSite, Submit, TakeSignal, TellAsics, TellCoin, TellMarket
from headframe.model.errors import HeadframeError, Unbelievable
from headframe.model.event import Kind
from headframe.model.health import Sample
from headframe.model.ids import KeyId, WorkloadId
from headframe.model.money import GpuPrice
from headframe.model.power import (
    Asic,
    AsicState,
    Budget,
    Coin,
    DemandCharge,
    EnergyCharge,
    Filler,
    LoadClass,
    MarketDay,
    Mines,
    Signal,
    SignalKind,
    Tariff,
)
from headframe.model.states import AllocationState, GpuState, NodeState
from headframe.model.units import MS_PER_DAY, NANO_PER_USD
from headframe.model.work import Allocation, Facts, Observation, Tier
from headframe.placement import explain
from headframe.server.decide import SITE, decide
from headframe.server.dispatcher import FALLS_MS, Dispatcher, Planned, _reached
from headframe.server.filling import emergency, filled, over, settled
from headframe.server.power import DAYS_KEPT
from headframe.server.power_view import explain_gpu, explain_many, models_now
from headframe.server.tick import admitter, decisions
from headframe.server.watch import Watch
from headframe.server.watts import WAITS_MS, Starts, granted
from support import NOW_MS, PROJECT, commit, fleet, gpu, put, running, spec

RVN = Coin(id="RVN", algorithm="kawpow", price_usd=0.02, network_hs=5e12, block_s=60, reward=2500)
KAWPOW = Filler(id="filler-kawpow", name="kawpow", run="mine", coin="RVN", models={"RTX 3090": Mines(hashes_s=50e6, watts=280)})
CHEAP, DEAR = Tariff(name="t", energy=(EnergyCharge(usd_kwh=0.05),)), Tariff(name="t", energy=(EnergyCharge(usd_kwh=0.25),))
STEP = 5_000


class Site:
    """A world with fillers, and the loop around it: dispatch, tick, an engine that does as it is told."""

    def __init__(self, nodes=2, gpus_each=4, contract_w=0, tariff=CHEAP, **more):
        self.world, self.now_ms = fleet(nodes=nodes, gpus_each=gpus_each, **more), NOW_MS
        for card in list(self.world.gpus.values()):
            self.world.put(msgspec.structs.replace(card, max_w=350))
        self.do(SetSite(site_id=SITE, contract_w=contract_w, pue=1.0, tariff=tariff), TellCoin(coin=RVN), SetFiller(filler=KAWPOW))
        self.events, self.peak_w, self.resting, self.started = [], 0.0, {}, set()
        desk = SimpleNamespace(world=self.world, listeners=[], clock_ms=lambda: self.now_ms)
        self.dispatcher = Dispatcher(desk, SimpleNamespace(epoch=1), Watch(), lambda: None)

    def do(self, *commands):
        for command in commands:
            commit(self.world, decide(self.world, command, self.now_ms))

    def survey(self):
        return surveyed(self.world, self.world.sites[SITE], self.now_ms, lambda _: None)

    def plan(self):
        survey = self.survey()
        picked = choices(self.world, survey)
        asked = problem(self.world, survey, picked, hours=4)
        schedule, _ = solved(asked.site)
        assert schedule is not None
        self.dispatcher.planned[SITE] = Planned(at_ms=self.now_ms, problem=asked, schedule=schedule)
        self.events += commit(self.world, settled(self.world, survey, asked, schedule, picked))

    def step(self, times=1):
        for _ in range(times):
            self.now_ms += STEP
            self.events += commit(self.world, over(self.world, self.now_ms))
            survey = self.survey()
            self.events += commit(self.world, emergency(self.world, survey))
            self.events += commit(self.world, filled(self.world, self.survey(), self.resting))
            survey = self.survey()
            self.dispatcher._count(self.world, survey)
            for _ in range(2):  # what was told, then what came of it
                facts = Facts(
                    nodes=dict.fromkeys(self.world.nodes, self.now_ms), observations=tuple(self.seen()), budgets=dict(self.dispatcher.budgets)
                )
                told = commit(self.world, decisions(self.world, facts, self.now_ms))
                self.dispatcher._heard(told)
                self.events += told
                self.start()
                self.peak_w = max(self.peak_w, self.drawn_w())
            for held in self.world.held.values():
                assert self.world.allocations[held.id].id == held.id
        return self

    def start(self):
        """As the tick does."""
        starts = Starts(self.world, self.dispatcher.budgets, self.now_ms)
        self.started |= {
            row.id for row in starts.ordered() if row.state is AllocationState.GRANTED and row.id not in self.started and starts.fits(row)
        }

    def drawn_w(self):
        """What the site really draws: what was granted and not started draws as an idle card does."""
        survey = self.survey()
        return survey.meter.total_w - sum(each.watts - idle_w(each.gpu.full_w) for each in survey.held if each.allocation.id not in self.started)

    def seen(self):
        for held in list(self.world.held.values()):
            if held.state is AllocationState.GRANTED and held.id not in self.started:
                continue
            if held.state is AllocationState.STOPPING:
                yield Observation(
                    allocation_id=held.id,
                    state=AllocationState.ENDED,
                    started_ms=held.granted_ms,
                    ended_ms=self.now_ms,
                    reason=held.stop_because,
                    seen_ms=self.now_ms,
                )
            else:
                yield Observation(allocation_id=held.id, state=AllocationState.RUNNING, started_ms=held.granted_ms, seen_ms=self.now_ms)

    def filling(self):
        return sorted(share.gpu_id for held in self.world.held.values() if held.tier is Tier.FILLER for part in held.parts for share in part.shares)

    def paid(self):
        return sorted(held.workload_id for held in self.world.held.values() if held.tier is not Tier.FILLER)

    def signal(self, kind, value, event="e", length_ms=600_000, **more):
        self.do(
            TakeSignal(
                signal=Signal(
                    id=f"{SITE}/grid/{event}",
                    site_id=SITE,
                    source="grid",
                    event=event,
                    kind=kind,
                    value=value,
                    start_ms=self.now_ms,
                    end_ms=self.now_ms + length_ms,
                    **more,
                )
            )
        )

    def submit(self, n, gpus=1, tier=Tier.ON_DEMAND, **more):
        self.do(Submit(id=WorkloadId(f"wl-{n}"), project_id=PROJECT, key_id=KeyId("op"), spec=spec(gpus=gpus, name=f"job-{n}", tier=tier, **more)))


def there(*arguments, **more):
    """Work that runs already, with nothing held for it."""
    workload, allocation = running(*arguments, **more)
    return msgspec.structs.replace(workload, held_nano=0), allocation


def test_idle_cards_begin_to_mine_one_step_after_the_other():
    site = Site()
    site.plan()
    assert len(site.step().filling()) == 1
    assert len(site.step().filling()) == 2
    assert len(site.step(10).filling()) == 8
    assert site.step(20).filling() == sorted(site.world.gpus)


def test_where_power_costs_more_than_mining_earns_cards_sleep_and_the_posture_says_why():
    site = Site(tariff=DEAR)
    site.plan()
    assert site.step(5).filling() == []
    assert all(not row.filler for row in site.world.postures.values())


def test_paid_work_gets_its_cards_at_once_and_they_are_not_filled_again_in_between():
    site = Site(nodes=1)
    site.plan()
    site.step(10)
    site.submit(1, gpus=2)
    assert site.step().paid() == ["wl-1"]
    assert len(site.filling()) == 2
    assert len(site.step(5).filling()) == 2


@pytest.mark.parametrize("tier", [Tier.SPOT, Tier.ON_DEMAND])
def test_spot_work_displaces_fillers_and_nothing_else(tier):
    site = Site(nodes=1)
    put(site.world, there(7, [0], 3, tier=Tier.SPOT, started_ms=NOW_MS - 10**9))
    site.plan()
    site.step(5)
    assert len(site.filling()) == 1
    site.submit(1, gpus=1, tier=tier)
    site.step(2)
    assert site.paid() == ["wl-1", "wl-7"]


def test_a_gang_gets_whole_machines_from_fillers():
    site = Site(nodes=3)
    for row in list(site.world.nodes.values()):
        site.world.put(msgspec.structs.replace(row, engine="simulated"))
    site.plan()
    site.step(20)
    site.submit(1, gpus=4, nodes=2)
    site.step(3)
    assert site.paid() == ["wl-1"]
    assert len(site.filling()) == 4


def test_fillers_stay_below_the_contract_and_paid_work_pushes_them_below_it():
    site = Site(nodes=1, gpus_each=8, contract_w=1500)
    site.plan()
    site.step(20)
    assert 1 <= len(site.filling()) <= 5
    assert site.peak_w <= 1500
    site.submit(1, gpus=3)
    site.step(4)
    assert site.paid() == ["wl-1"]
    assert site.survey().meter.total_w <= 1500


def test_paid_work_starts_once_fillers_have_left_it_its_watts():
    site = Site(nodes=1, gpus_each=8, contract_w=1500)
    site.plan()
    site.step(30)
    before = site.filling()
    site.submit(1, gpus=2)
    site.step()
    (row,) = [held for held in site.world.held.values() if held.tier is Tier.ON_DEMAND]
    assert row.id not in site.started, "granted, and its cards are free, but the meter is full"
    site.step(3)
    assert row.id in site.started
    assert len(site.filling()) < len(before)
    assert site.peak_w <= 1500


def test_a_filler_that_ignores_its_stop_holds_up_paid_work_for_a_minute_at_most():
    site = Site(nodes=1, gpus_each=8, contract_w=1500)
    site.plan()
    site.step(30)
    site.seen = lambda: [each for each in Site.seen(site) if each.state is not AllocationState.ENDED]
    site.submit(1, gpus=2)
    site.step(WAITS_MS // STEP - 1)
    assert not site.started & {held.id for held in site.world.held.values() if held.tier is Tier.ON_DEMAND}
    site.step(2)
    assert site.started & {held.id for held in site.world.held.values() if held.tier is Tier.ON_DEMAND}


def test_of_what_was_granted_together_as_much_starts_as_has_room():
    site = Site(nodes=1, gpus_each=8, contract_w=3000)
    site.step()
    budget = msgspec.structs.replace(site.dispatcher.budgets[SITE], free_w=500.0)
    for n in (1, 2):
        site.submit(n, gpus=1)
    for event in commit(site.world, decisions(site.world, Facts(nodes=dict.fromkeys(site.world.nodes, site.now_ms), budgets={}), site.now_ms)):
        for row in event.rows:
            budget = granted(site.world, SITE, budget, row) if isinstance(row, Allocation) else budget
    assert budget.free_w == pytest.approx(500 - 2 * 350)
    starts = Starts(site.world, {SITE: budget}, site.now_ms)
    assert [starts.fits(row) for row in starts.ordered()] == [True, False]


def test_what_fillers_are_taken_to_draw_is_their_own_whatever_idle_cards_are_to_do_next():
    site = Site(nodes=1, gpus_each=4)
    site.plan()
    site.step(30)
    before = site.survey().meter.filler_w
    assert before == pytest.approx(4 * 280)
    for row in list(site.world.postures.values()):
        site.world.put(msgspec.structs.replace(row, filler=""))
    assert site.survey().meter.filler_w == before


def test_what_a_card_drew_under_work_that_has_ended_is_not_held_against_what_comes_next():
    """Else each look would shed one more filler for the watts of the last one, until a new reading comes in."""
    site = Site(nodes=1, gpus_each=4, contract_w=3000)
    site.plan()
    site.step(30)
    card = site.filling()[0]
    told = {card: Sample(gpu_id=card, at_ms=site.now_ms, power_w=280.0)}
    site.dispatcher._watch = SimpleNamespace(latest=told.get)
    assert site.dispatcher.known(card) == 280.0
    (row,) = [held for held in site.world.held.values() if held.holds(card)]
    ended = msgspec.structs.replace(row, state=AllocationState.ENDED, ended_ms=site.now_ms)
    site.dispatcher._heard([SimpleNamespace(kind=Kind.WORKLOAD_ENDED, at_ms=site.now_ms, rows=(ended,))])
    assert site.dispatcher.known(card) is None
    told[card] = msgspec.structs.replace(told[card], at_ms=site.now_ms + FALLS_MS, power_w=25.0)
    site.now_ms += FALLS_MS
    assert site.dispatcher.known(card) == 25.0


def test_a_limit_that_is_told_ahead_is_kept_from_its_first_second():
    site = Site(nodes=1, gpus_each=8, contract_w=3000)
    site.plan()
    site.step(30)
    start = site.now_ms + 120_000
    site.do(
        TakeSignal(
            signal=Signal(
                id=f"{SITE}/grid/soon",
                site_id=SITE,
                source="grid",
                event="soon",
                kind=SignalKind.LIMIT,
                value=900,
                start_ms=start,
                end_ms=start + 600_000,
            )
        )
    )
    while site.now_ms < start - 60_000:
        assert site.step().drawn_w() > 900
    while site.now_ms < start:
        site.step()
    assert site.drawn_w() <= 900


def test_work_that_the_contract_has_no_room_for_waits_and_says_how_many_watts_are_missing():
    site = Site(nodes=1, gpus_each=8, contract_w=900)
    site.plan()
    site.submit(1, gpus=4)
    site.step(3)
    assert site.paid() == []

    budget = Budget(left_w=740, free_w=740, limit_w=900, pue=1.0, until_ms=NOW_MS + 3_600_000, why="grid asked for it")
    why = explain(site.world, site.world.workloads["wl-1"], site.now_ms, admitter(site.world, site.now_ms, {SITE: budget}))
    assert [each.rule for each in why] == ["power"]
    assert "1.40 kW" in why[0].need
    assert "0.66 kW more are free until 2025-06-15" in why[0].change


def test_a_limit_sheds_mining_then_spot_then_batch_and_never_what_is_firmly_sold():
    site = Site(nodes=2, gpus_each=4)
    put(site.world, there(1, [0], 2))
    put(site.world, there(2, [0], 2, first=2, tier=Tier.SPOT))
    put(site.world, there(3, [1], 2, tier=Tier.SPOT, checkpoint="/c"))
    site.plan()
    site.step(4)
    assert len(site.filling()) == 2
    order = []
    for limit in (2200, 1850, 1350, 100):
        site.signal(SignalKind.LIMIT, limit, event=f"e{limit}")
        site.step(2)
        order.append((len(site.filling()), [key for key in ("wl-1", "wl-2", "wl-3") if key in site.paid()]))
    assert order[0][0] < 2
    assert order[0][1] == ["wl-1", "wl-2", "wl-3"]
    assert order[1] == (0, ["wl-1", "wl-2", "wl-3"])
    assert order[2] == (0, ["wl-1", "wl-3"])
    assert order[3] == (0, ["wl-1"])
    assert "only what is firmly sold is left" in [event.text for event in site.events if event.kind is Kind.SHED][-1]


def test_what_was_shed_comes_back_when_the_signal_is_over():
    site = Site(nodes=1)
    site.plan()
    site.step(8)
    site.signal(SignalKind.LEVEL, 1, length_ms=60_000)
    assert site.step().filling() == []
    site.plan()
    assert site.step(3).filling() == []
    site.step(30)
    assert len(site.filling()) == 4
    assert not site.world.signals


def test_hearing_a_signal_again_or_an_older_version_changes_nothing():
    site = Site()
    site.signal(SignalKind.LIMIT, 5000, version=2)
    before = site.world.version
    site.signal(SignalKind.LIMIT, 5000, version=2)
    site.signal(SignalKind.LIMIT, 9000, version=1)
    assert site.world.version == before
    assert limit_w(site.world, site.world.sites[SITE], site.now_ms) == 5000
    site.signal(SignalKind.LIMIT, 7000, version=3)
    assert limit_w(site.world, site.world.sites[SITE], site.now_ms) == 7000
    site.signal(SignalKind.LIMIT, 7000, version=4, cancelled=True)
    assert limit_w(site.world, site.world.sites[SITE], site.now_ms) > 1e9


@pytest.mark.parametrize(("kind", "value"), [(SignalKind.LIMIT, -1.0), (SignalKind.LIMIT, math.nan), (SignalKind.LIMIT, 1e12), (SignalKind.PRICE, 1e6), (SignalKind.PRICE, math.inf),
                                             (SignalKind.LEVEL, 4.0), (SignalKind.LEVEL, 0.5)])  # fmt: skip
def test_a_signal_out_of_range_is_refused_and_leaves_no_trace(kind, value):
    site = Site()
    before = site.world.version
    with pytest.raises(Unbelievable):
        site.signal(kind, value)
    assert site.world.version == before


@pytest.mark.parametrize("change", [{"price_usd": math.nan}, {"price_usd": -0.02}, {"price_usd": 20.0}, {"network_hs": 5e9}, {"reward": 0.0}])
def test_a_poisoned_coin_switches_nothing(change):
    site = Site(tariff=Tariff(name="t", energy=(EnergyCharge(usd_kwh=0.12),)))  # just above its break-even: cards sleep
    site.plan()
    with pytest.raises(Unbelievable):
        site.do(TellCoin(coin=msgspec.structs.replace(RVN, **change)))
    site.plan()
    assert site.step(3).filling() == []


@pytest.mark.parametrize("price", [math.nan, 50_000.0, -5_000.0])
def test_a_poisoned_market_price_is_refused_whole(price):
    site = Site(tariff=Tariff(name="t", market="hub", energy=(EnergyCharge(usd_kwh=0.05),)))
    day = MarketDay(id="hub/0", market="hub", start_ms=NOW_MS // 86_400_000 * 86_400_000, usd_mwh=(*([40.0] * 23), price))
    with pytest.raises(Unbelievable):
        site.do(TellMarket(days=(day,)))
    assert not site.world.market_days
    assert market_of(site.world, site.world.sites[SITE])(NOW_MS) is None


def test_a_price_signal_takes_the_markets_place_while_it_lasts():
    site = Site(tariff=Tariff(name="t", market="hub", energy=(EnergyCharge(usd_kwh=0.05),)))
    site.signal(SignalKind.PRICE, 900.0, length_ms=60_000)
    assert site.survey().usd_kwh == pytest.approx(0.9)
    site.now_ms += 60_000
    assert site.survey().usd_kwh == pytest.approx(0.05)


def test_a_filler_that_is_changed_is_begun_anew_and_one_that_is_removed_ends():
    site = Site(nodes=1, gpus_each=1)
    site.plan()
    site.step(2)
    first = [held.id for held in site.world.held.values()]
    site.do(SetFiller(filler=msgspec.structs.replace(KAWPOW, run="mine --better")))
    site.step(4)
    second = [held.id for held in site.world.held.values()]
    assert second
    assert first != second
    site.do(RemoveFiller(name="kawpow"))
    assert site.step(3).filling() == []


def test_a_program_that_is_allowed_by_its_hash_is_looked_at_before_each_start():
    site = Site(nodes=1, gpus_each=1)
    site.do(SetFiller(filler=msgspec.structs.replace(KAWPOW, program="/opt/miner", sha256="ab" * 32)))
    site.plan()
    site.step()
    run = next(iter(site.world.workloads.values())).spec.run
    assert run.startswith(f"echo '{'ab' * 32}  /opt/miner' | sha256sum --check --status ||")
    assert run.endswith("\nmine")


def test_cards_that_are_suspect_or_drained_do_not_mine():
    site = Site(nodes=1, gpus_each=2)
    site.world.put(msgspec.structs.replace(site.world.gpus["GPU-0-0"], state=GpuState.SUSPECT))
    site.plan()
    assert site.step(5).filling() == ["GPU-0-1"]


def test_a_rack_limit_keeps_fillers_below_it():
    site = Site(nodes=1, gpus_each=4)
    site.world.put(msgspec.structs.replace(next(iter(site.world.racks.values())), power_limit_w=800))
    site.plan()
    assert 1 <= len(site.step(10).filling()) <= 2


def test_own_work_of_a_known_worth_is_a_filler_too():
    site = Site(nodes=1, gpus_each=2)
    site.do(SetFiller(filler=Filler(id="filler-own", name="own", run="render", usd_gpu_h=0.2, models={"any": Mines(watts=250)})))
    site.plan()
    site.step(4)
    assert {site.world.workloads[held.workload_id].spec.env["HEADFRAME_FILLER"] for held in site.world.held.values()} == {"own"}


def test_spot_with_a_checkpoint_can_wait_and_checks_are_firm():
    work, held = running(1, [0], 1, tier=Tier.SPOT, checkpoint="/c")
    assert kind_of(held, work) is LoadClass.BATCH
    assert kind_of(msgspec.structs.replace(held, tier=Tier.HOUSE), work) is LoadClass.FIRM


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(1, 3)),
        st.tuples(st.just("submit"), st.tuples(st.integers(1, 4), st.sampled_from([Tier.ON_DEMAND, Tier.SPOT]), st.booleans())),
        st.tuples(st.just("limit"), st.floats(0, 4000)),
        st.tuples(st.just("level"), st.integers(0, 3)),
        st.tuples(st.just("price"), st.floats(-50, 500)),
        st.tuples(st.just("plan"), st.none()),
        st.tuples(st.just("stop"), st.integers(0, 20)),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@example(
    acts=[("submit", (2, Tier.ON_DEMAND, False)), ("submit", (2, Tier.ON_DEMAND, False)), ("limit", 1351.0)]
)  # granted, and waiting for a filler to go
@given(acts=ACTS)
def test_whatever_happens_no_card_is_held_twice_firm_work_goes_on_and_every_limit_holds_within_two_steps(acts):
    site = Site(nodes=2, gpus_each=3, contract_w=2300)
    site.plan()
    firm = set()
    for n, (what, value) in enumerate(acts):
        try:
            match what:
                case "step":
                    site.step(value)
                case "submit":
                    gpus, tier, keeps = value
                    site.submit(n, gpus=min(gpus, 3), tier=tier, checkpoint="/c" if keeps else "")
                case "limit":
                    site.signal(SignalKind.LIMIT, value, event=f"e{n}", length_ms=30_000)
                case "level":
                    site.signal(SignalKind.LEVEL, value, event=f"e{n}", length_ms=20_000)
                case "price":
                    site.signal(SignalKind.PRICE, value, event=f"e{n}", length_ms=40_000)
                case "plan":
                    site.plan()
                case "stop":
                    pass
        except HeadframeError:
            continue
        firm |= {held.id for held in site.world.held.values() if held.tier is Tier.ON_DEMAND}
        assert firm <= set(site.world.held), "firm work was stopped"
        cards = [share.gpu_id for held in site.world.held.values() for part in held.parts for share in part.shares]
        assert len(cards) == len(set(cards))
        assert site.peak_w <= 2300 + 1e-6, "the contract holds at each step, in the middle of starts too"
    site.step(2)
    survey = site.survey()
    loose = survey.meter.filler_w + survey.meter.spot_w
    assert site.drawn_w() - survey.meter.going_w <= survey.limit_w + 1e-6 or loose <= survey.meter.going_w + 1e-6


def test_a_card_that_another_gpu_model_names_is_not_filled():
    site = Site(nodes=1, gpus_each=1)
    site.world.put(gpu(0, 1, model="A100", max_w=400))
    site.plan()
    assert site.step(4).filling() == ["GPU-0-0"]


def test_where_limits_may_be_set_caps_come_before_spot_is_stopped_and_the_ladder_goes_on_after_them():
    site = Site(nodes=1, gpus_each=4)
    site.do(SetSite(site_id=SITE, caps=True))
    put(site.world, there(2, [0], 4, tier=Tier.SPOT))
    site.plan()
    assert site.survey().meter.total_w == pytest.approx(4 * 297.5)
    site.signal(SignalKind.LIMIT, 900, event="caps")
    site.step(2)
    assert site.paid() == ["wl-2"]
    assert site.survey().meter.total_w == pytest.approx(4 * 210)
    site.signal(SignalKind.LIMIT, 400, event="more")
    site.step(2)
    assert site.paid() == []


def test_at_the_highest_level_spot_work_waits_until_it_is_over_and_does_not_flap():
    site = Site(nodes=1, gpus_each=2)
    put(site.world, there(2, [0], 1, tier=Tier.SPOT))
    site.signal(SignalKind.LEVEL, 3, length_ms=120_000)
    site.step(18)
    stops = [event for event in site.events if event.kind is Kind.WORKLOAD_STOPPING and event.subject == "wl-2"]
    assert len(stops) == 1
    site.submit(5, tier=Tier.ON_DEMAND)
    site.step(2)
    assert site.paid() == ["wl-5"]
    site.step(14)
    assert site.paid() == ["wl-2", "wl-5"]


def test_mining_machines_stay_off_while_a_level_says_so():
    site = Site(nodes=1, gpus_each=1)
    asic = Asic(id="asic-1", name="s21", ip="10.0.0.1", model="S21", coin="RVN", hashes_s=5e9, watts=3500, can_stop=True, state=AsicState.MINING)
    site.do(TellAsics(asics=(asic,)))
    site.signal(SignalKind.LEVEL, 1, length_ms=3_600_000)
    site.step(2)
    assert site.world.asics["asic-1"].wanted is AsicState.STOPPED
    site.do(TellAsics(asics=(msgspec.structs.replace(asic, state=AsicState.STOPPED),)))
    site.now_ms += 1_200_000
    site.plan()
    site.step(2)
    assert site.world.asics["asic-1"].wanted is AsicState.STOPPED
    site.now_ms += 3_600_000
    site.step()
    site.plan()
    assert site.world.asics["asic-1"].wanted is AsicState.MINING


def test_a_mining_machine_that_does_not_answer_takes_no_other_ones_place():
    site = Site(nodes=1, gpus_each=1)
    mute, well = (Asic(id=f"asic-{n}", name=f"s21-{n}", ip=f"10.0.0.{n}", model="S21", coin="RVN", hashes_s=5e9, watts=3500, can_stop=True, state=state)
                  for n, state in enumerate((AsicState.UNKNOWN, AsicState.MINING)))  # fmt: skip
    site.do(TellAsics(asics=(mute, well)))
    site.now_ms += 1_200_000
    site.plan()
    assert {key: row.wanted for key, row in site.world.asics.items()} == {mute.id: AsicState.MINING, well.id: AsicState.MINING}


def test_days_of_prices_leave_the_world_three_days_after_they_are_over():
    site = Site(nodes=1, gpus_each=1)
    start = NOW_MS // MS_PER_DAY * MS_PER_DAY
    days = tuple(MarketDay(id=f"hub/{n}", market="hub", start_ms=start + n * MS_PER_DAY, usd_mwh=(40.0,) * 24) for n in range(2))
    site.do(TellMarket(days=days))
    site.now_ms = start + (DAYS_KEPT + 1) * MS_PER_DAY - 1
    assert not list(over(site.world, site.now_ms))
    site.now_ms += 1
    commit(site.world, over(site.world, site.now_ms))
    assert set(site.world.market_days) == {"hub/1"}
    assert not list(over(site.world, site.now_ms))


def test_work_is_worth_what_its_model_is_sold_for_however_the_price_list_spells_it():
    site = Site(nodes=1, gpus_each=1)
    site.do(SetPrices(gpus=(GpuPrice(model="RTX 3090", on_demand_nano=2 * NANO_PER_USD, spot_nano=NANO_PER_USD, reserved_nano=NANO_PER_USD),)))
    assert usd_of(latest(site.world), "NVIDIA GeForce RTX 3090", LoadClass.FIRM) == 2.0
    assert usd_of(latest(site.world), "NVIDIA GeForce RTX 3090", LoadClass.BATCH) == 1.0


def test_a_machine_that_drains_and_a_card_that_is_out_of_service_are_filled_no_more():
    site = Site(nodes=2, gpus_each=2)
    site.plan()
    site.step(8)
    assert len(site.filling()) == 4
    site.world.put(msgspec.structs.replace(site.world.nodes["node-0"], state=NodeState.DRAINING))
    site.world.put(msgspec.structs.replace(site.world.gpus["GPU-1-0"], state=GpuState.SUSPECT, why="it said so"))
    site.step(3)
    assert site.filling() == ["GPU-1-1"]
    assert site.world.nodes["node-0"].state is NodeState.MAINTENANCE


def test_a_demand_charge_is_paid_for_the_highest_mean_of_its_interval_within_its_month():
    site = Site(tariff=msgspec.structs.replace(CHEAP, demand=(DemandCharge(name="peak", usd_kw=6.0, interval_min=15),)))
    for _ in range(2 * 15 * 12):
        site.now_ms += STEP
        site.events += commit(site.world, _reached(site.survey(), site.dispatcher._means))
    idle = site.survey().meter.total_w
    assert site.world.sites[SITE].reached_w == {"peak": round(idle)}
    site.submit(1, gpus=4)
    site.step()
    for _ in range(2 * 15 * 12):
        site.now_ms += STEP
        site.events += commit(site.world, _reached(site.survey(), site.dispatcher._means))
    assert site.world.sites[SITE].reached_w["peak"] == round(site.survey().meter.total_w) > idle


def test_spot_work_waits_while_its_cards_and_their_power_are_worth_more_than_its_price():
    site = Site(nodes=1)
    price = GpuPrice(model="RTX 3090", on_demand_nano=200_000_000, spot_nano=10_000_000, reserved_nano=100_000_000)
    site.do(SetPrices(gpus=(price,)))
    site.plan()
    site.step()
    site.submit(1, tier=Tier.SPOT)
    site.submit(2)
    site.step(2)
    assert site.paid() == ["wl-2"], "a US$ 0.01 card-hour does not pay for its power, mining does"
    why = explain(site.world, site.world.workloads[WorkloadId("wl-1")], site.now_ms, admitter(site.world, site.now_ms, site.dispatcher.budgets))
    assert "spot-floor: the fleet refused: needs US$ 0.0284/h" in "; ".join(map(str, why))
    site.do(SetSite(site_id=SITE, tariff=Tariff(name="t", energy=(EnergyCharge(usd_kwh=0.0),))), RemoveFiller(name="kawpow"))
    site.plan()
    site.step(3)
    assert site.paid() == ["wl-1", "wl-2"], "with free power and nothing else to do any price will do"


def test_what_cards_of_a_model_bring_now_is_told_beside_what_else_they_could_do():
    site = Site(nodes=1)
    site.plan()
    site.submit(1)
    site.step(12)
    row = models_now(site.world, site.survey())[0]
    assert (row.sold, row.filling, row.asleep, row.filler) == (1, 3, 0, "kawpow")
    assert row.filler_usd_h == pytest.approx(0.0297 - 0.014), "50 MH of RVN less one per cent, less 280 W at 5 US¢"
    assert row.asleep_usd_h == pytest.approx(-0.05 * 0.028)
    assert row.now_usd_h == pytest.approx(row.sold_usd_h + 3 * row.filler_usd_h, rel=1e-6)


def test_a_card_and_a_rack_say_what_each_alternative_would_bring_and_which_is_the_one_now():
    site = Site(nodes=1)
    site.plan()
    site.submit(1)
    site.step(12)
    cards = sorted(site.world.gpus.values(), key=lambda gpu: gpu.id)
    (sold,) = [gpu for gpu in cards if gpu.id not in site.filling()]
    alone = {row.what: row for row in explain_gpu(site.world, site.survey(), sold).alternatives}
    assert [what for what, row in alone.items() if row.now] == ["sold work"]
    assert set(alone) == {"sold work", "spot work", "kawpow", "sleep"}
    together = explain_many(site.world, site.survey(), "rack", cards).alternatives
    assert {row.what for row in together if row.now} == {"sold work on 1", "kawpow on 3"}
    if_all = {row.what: row.net_usd_h for row in together if not row.now}
    assert if_all == pytest.approx({f"{what} on 4": 4 * row.net_usd_h for what, row in alone.items()})


def test_a_racks_inlet_follows_what_its_machines_draw_and_where_nothing_is_told_of_its_air_nothing_is_said():
    site = Site(nodes=1)
    rack = next(iter(site.world.racks.values()))
    site.dispatcher._warm(site.world, site.survey())
    assert site.dispatcher.inlets == {}
    site.world.put(msgspec.structs.replace(rack, airflow_m3_s=0.1, supply_c=20.0))
    site.dispatcher._warm(site.world, site.survey())
    cool = site.dispatcher.inlets[rack.id]
    assert cool.now_c == cool.settles_c > 20.0
    site.submit(1, gpus=4)
    site.step(2)
    site.now_ms += 300_000
    site.dispatcher._warm(site.world, site.survey())
    warm = site.dispatcher.inlets[rack.id]
    assert cool.now_c < warm.now_c < warm.settles_c
    assert warm.settles_c == pytest.approx(settled_c(4 * 350 * 0.85, 0.1, 20.0))
