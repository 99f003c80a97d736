"""Money: every second once, every posting zero, whatever the order in which facts arrive."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.billing.invoice import invoice
from headframe.billing.ledger import Memo, charge, grant_credit, hold, refund, void
from headframe.billing.meter import WINDOW_MS, intervals, meter, usages
from headframe.model.command import SetPrices, Submit
from headframe.model.errors import HeadframeError, Infeasible, NoCredit, OverBudget, TooExpensive
from headframe.model.ids import WorkloadId
from headframe.model.money import Entry, EntryKind, GpuPrice, PriceList, Usage
from headframe.model.people import Project
from headframe.model.states import AllocationState, Reason
from headframe.model.units import NANO_PER_USD, cost_nano
from headframe.model.work import Facts, Observation
from headframe.server.decide import decide
from headframe.server.tick import decisions
from support import NOW_MS, PROJECT, commit, fleet, project, spec

START = NOW_MS
instants = st.integers(START, START + 30 * WINDOW_MS)


def prices(*effective_ms):
    gpu = GpuPrice(model="*", on_demand_nano=10**9, spot_nano=10**8, reserved_nano=10**8)
    return [
        PriceList(id=f"p{n}", version=n, effective_ms=at, gpus=(gpu,), cpu_core_hour_nano=n, memory_gib_hour_nano=0, disk_gib_hour_nano=0)
        for n, at in enumerate(sorted({0, *effective_ms}), 1)
    ]


@given(instants, instants, st.lists(instants, max_size=4))
def test_intervals_cover_every_millisecond_once(start, end, changes):
    cut = intervals(start, end, prices(*changes))
    assert sum(b - a for a, b in cut) == max(0, end - start)
    assert all(left[1] == right[0] for left, right in zip(cut, cut[1:], strict=False))
    assert all(b - a <= WINDOW_MS and a // WINDOW_MS == (b - 1) // WINDOW_MS for a, b in cut)


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=20), st.integers(0, 10**12))
def test_rounding_never_drifts_by_more_than_half_a_nano_per_interval(durations, rate):
    total = sum(cost_nano(ms, rate) for ms in durations)
    assert abs(total - sum(durations) * rate / 3_600_000) <= len(durations) / 2 + 1e-3


def memo(kind=EntryKind.USAGE, name="x"):
    return Memo(posting=name, kind=kind, at_ms=START, text="t", workload_id=WorkloadId("wl-1"))


@given(st.integers(0, 10**12), st.lists(st.tuples(st.sampled_from(["hold", "void", "charge", "refund"]), st.integers(0, 10**11)), max_size=30))
def test_the_ledger_sums_to_zero_and_no_balance_goes_below_it(credit, moves):
    row = Project(id=PROJECT, name="a", created_ms=0)
    entries, moved = [], grant_credit(row, credit, memo(EntryKind.CREDIT))
    row, entries = moved.project, list(moved.entries)
    for kind, amount in moves:
        if kind == "hold":
            moved = hold(row, min(amount, row.credit_nano), memo())
        elif kind == "void":
            moved = void(row, min(amount, row.held_nano), memo())
        elif kind == "charge":
            moved = charge(row, amount, min(amount, row.held_nano), memo())
        else:
            moved = refund(row, amount, memo())
        row = moved.project
        entries += moved.entries
        assert sum(entry.amount_nano for entry in moved.entries) == 0
        assert row.credit_nano >= 0 <= row.held_nano
    accounts = {}
    for entry in entries:
        accounts[entry.account] = accounts.get(entry.account, 0) + entry.amount_nano
    assert accounts.get(f"credit/{PROJECT}", 0) == row.credit_nano
    assert accounts.get(f"held/{PROJECT}", 0) == row.held_nano


def run_job(world, observations, name="job", seconds=()):
    """Submit a job and tick once per batch of observations; every event that followed."""
    events = commit(world, decide(world, Submit(id=WorkloadId("wl-1"), project_id=PROJECT, key_id="op", spec=spec(gpus=2, name=name)), START))
    for at_ms, seen in observations:
        events += commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, at_ms), observations=tuple(seen)), at_ms))
    return events


def running(at_ms):
    return Observation(allocation_id="wl-1.1", state=AllocationState.RUNNING, started_ms=START + 1000, seen_ms=at_ms)


def ended(at_ms, reason=Reason.FINISHED):
    return Observation(
        allocation_id="wl-1.1", state=AllocationState.ENDED, started_ms=START + 1000, ended_ms=at_ms, reason=reason, exit_code=0, seen_ms=at_ms
    )


@given(st.lists(st.integers(1, 9 * WINDOW_MS // 1000), max_size=12), st.booleans(), st.randoms(use_true_random=False))
def test_the_bill_is_unchanged_by_duplicates_reordering_and_how_often_one_looks(looks, repeat, rng):
    end_ms = START + 10 * WINDOW_MS
    facts = [(START + 1000 * look, [running(START + 1000 * look)]) for look in sorted(looks)]
    if repeat:
        facts = [(at, rng.sample(seen * 3 + [running(START + 2000)], len(seen) * 3 + 1)) for at, seen in facts]
    world = fleet()
    events = run_job(world, [(START, []), *facts, (end_ms, [ended(end_ms)] * 2), (end_ms + 1, [running(end_ms), ended(end_ms + 5)])])
    used = [row for event in events for row in event.rows if isinstance(row, Usage)]
    assert sum(row.end_ms - row.start_ms for row in used) == end_ms - START - 1000
    assert len({row.id for row in used}) == len(used)
    rate = used[0].rate_nano
    assert abs(sum(row.amount_nano for row in used) - cost_nano(end_ms - START - 1000, rate)) <= len(used)
    assert project(world).held_nano == 0


def test_what_the_hold_did_not_use_is_given_back():
    world = fleet()
    before = project(world).credit_nano
    events = run_job(world, [(START, []), (START + 5000, [ended(START + 4600)])])
    used = sum(row.amount_nano for event in events for row in event.rows if isinstance(row, Usage))
    assert project(world).credit_nano == before - used
    assert used == cost_nano(3600, next(row.rate_nano for event in events for row in event.rows if isinstance(row, Usage)))


def test_a_fault_of_the_nodes_is_credited_back_and_tried_again():
    world = fleet()
    before = project(world).credit_nano
    run_job(world, [(START, []), (START + 9000, [ended(START + 8000, Reason.NODE_LOST)])])
    workload = world.workloads["wl-1"]
    assert workload.attempt == 2
    assert workload.credited_nano == workload.cost_nano > 0
    assert project(world).credit_nano + project(world).held_nano == before


def test_a_price_change_counts_from_its_own_instant():
    world = fleet()
    run_job(world, [(START, []), (START + 1500, [running(START + 1500)])])
    commit(world, decide(world, SetPrices(gpus=(GpuPrice(model="*", on_demand_nano=10**10, spot_nano=1, reserved_nano=1),)), START + 11_000))
    events = commit(world, decisions(world, Facts(observations=(ended(START + 21_000),)), START + 21_000))
    used = sorted((row for event in events for row in event.rows if isinstance(row, Usage)), key=lambda row: row.start_ms)
    assert [(row.start_ms - START, row.end_ms - START, row.price_version) for row in used] == [(1000, 11_000, 1), (11_000, 21_000, 2)]


def test_work_stops_when_credit_does_not_cover_another_hour():
    world = fleet(credit_usd=1)
    events = run_job(world, [(START, [])] + [(START + n * WINDOW_MS, [running(START + n * WINDOW_MS)]) for n in range(1, 4)])
    assert any("does not cover another hour" in event.text for event in events)
    assert world.allocations["wl-1.1"].stop_because is Reason.CREDIT_EXHAUSTED


def test_an_invoice_is_a_fold_and_its_total_the_sum_of_its_lines():
    world = fleet()
    events = run_job(world, [(START, []), (START + 9000, [ended(START + 8000, Reason.NODE_LOST)])])
    entries = [row for event in events for row in event.rows if isinstance(row, Entry)]
    made = invoice(entries, PROJECT, "2025-06")
    assert made == invoice(list(reversed(entries)), PROJECT, "2025-06")
    assert made.total_nano == sum(line.amount_nano for line in made.lines) == 0
    assert made.usage_nano == -made.refund_nano > 0


@pytest.mark.parametrize(
    ("changes", "asked", "error"),
    [
        ({}, {"gpus": 1, "model": "H100"}, Infeasible),
        ({}, {"gpus": 9}, Infeasible),
        ({}, {"gpus": 1, "max_price_nano": 1}, TooExpensive),
        ({"budget_hour_nano": NANO_PER_USD // 10}, {"gpus": 1}, OverBudget),
        ({"budget_month_nano": NANO_PER_USD // 10}, {"gpus": 1}, OverBudget),
        ({"credit_nano": 1000}, {"gpus": 1}, NoCredit),
    ],
)
def test_a_submission_that_can_not_be_paid_or_placed_is_refused_with_its_numbers(changes, asked, error):
    world = fleet()
    world.put(msgspec.structs.replace(project(world), **changes))
    with pytest.raises(error) as refused:
        list(decide(world, Submit(id=WorkloadId("wl-1"), project_id=PROJECT, key_id="op", spec=spec(**asked)), START))
    assert any(char.isdigit() for char in refused.value.detail)
    assert refused.value.next_step


@given(st.integers(1, 64))
def test_a_crowd_of_submissions_never_holds_more_than_the_credit(crowd):
    world = fleet(nodes=8, credit_usd=5)
    admitted = 0
    for n in range(crowd):
        command = Submit(id=WorkloadId(f"wl-{n}"), project_id=PROJECT, key_id="op", spec=spec(gpus=1, name=f"j{n}"))
        try:
            commit(world, decide(world, command, START))
            admitted += 1
        except HeadframeError as refused:
            assert refused.code == "no_credit"
    assert project(world).credit_nano >= 0
    assert project(world).held_nano + project(world).credit_nano == 5 * NANO_PER_USD
    assert admitted == min(crowd, 5 * NANO_PER_USD // (project(world).held_nano // admitted))


def test_metering_again_finds_nothing_new():
    world = fleet()
    run_job(world, [(START, []), (START + 2 * WINDOW_MS, [running(START + 2 * WINDOW_MS)])])
    assert list(meter(world, {"wl-1.1": START + 2 * WINDOW_MS}, START + 2 * WINDOW_MS)) == []
    assert usages(world.allocations["wl-1.1"], world.allocations["wl-1.1"].metered_ms, world.prices()) == ()
