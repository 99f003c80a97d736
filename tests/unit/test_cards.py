"""Cards that rules find bad: taken out with their work, never too many at once, and only watched where that is wanted."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.model.command import Enrol, MoveGpu
from headframe.model.fleet import Gpu, Graded
from headframe.model.health import Cause, Finding, Level, Report, Sample, Xid
from headframe.model.states import AllocationState, GpuState, Reason, WorkloadState
from headframe.model.work import Facts, Observation
from headframe.placement import plan
from headframe.reconcile.cards import cards
from headframe.reconcile.jobs import jobs
from headframe.server.decide import SITE, decide
from headframe.server.watch import CLEAR_MS, MINUTES_MAX, Watch
from support import HOUR, NOW_MS, commit, fleet, job, put, running

BAD = Finding(rule="lost", cause=Cause.SUPPLY, have="is gone", need="", why="work is lost", source="ours", level=Level.BAD, mend="reseat it")
WARN = Finding(rule="hot", cause=Cause.HEAT, have="is hot", need="", why="it may throttle", source="ours", level=Level.WARN)

NODE = "node-0"


def judged(world, findings):
    return commit(world, cards(world, Facts(findings=findings), NOW_MS))


def suspects(world):
    return sorted(key for key, gpu in world.gpus.items() if gpu.state is GpuState.SUSPECT)


def test_a_bad_card_is_suspect_and_the_work_on_it_stops_as_the_nodes_fault_and_no_other_does():
    (_, hit), (_, other) = pairs = running(1, [0], 2), running(2, [0], 2, first=2)
    world = put(fleet(nodes=1, gpus_each=8), *pairs)
    sick = hit.parts[0].shares[0].gpu_id
    judged(world, {sick: (BAD,)})
    assert suspects(world) == [sick]
    assert world.gpus[sick].why == "is gone: work is lost; reseat it"
    assert (world.allocations[hit.id].state, world.allocations[hit.id].stop_because) == (AllocationState.STOPPING, Reason.NODE_FAULT)
    assert world.allocations[other.id].state is AllocationState.RUNNING


@given(st.integers(1, 6), st.sets(st.integers(0, 47)))
def test_of_all_cards_never_more_than_a_tenth_and_one_are_taken_without_a_person(nodes, sick):
    world = fleet(nodes=nodes, gpus_each=8)
    keys = sorted(world.gpus)
    findings = {keys[n]: (BAD,) for n in sick if n < len(keys)}
    for _ in range(3):  # however often it is said
        judged(world, findings)
    assert len(suspects(world)) == min(len(findings), max(1, len(keys) // 10))
    for key in set(findings) - set(suspects(world)):
        assert "a person has to look" in world.gpus[key].concern


def test_cards_that_a_person_disabled_do_not_use_up_what_may_be_taken():
    world = fleet(nodes=1, gpus_each=8)
    keys = sorted(world.gpus)
    for key in keys[:3]:
        world.put(msgspec.structs.replace(world.gpus[key], state=GpuState.SUSPECT, why="by a person"))
    judged(world, {keys[5]: (BAD,)})
    assert world.gpus[keys[5]].state is GpuState.SUSPECT


def test_a_site_that_only_watches_tells_and_does_nothing():
    world = fleet(nodes=1, gpus_each=8)
    world.put(msgspec.structs.replace(world.sites[SITE], shadow=True))
    key = sorted(world.gpus)[0]
    told = judged(world, {key: (BAD,)})
    assert suspects(world) == []
    assert [draft.text for draft in told] == ["rig-0 GPU 0: is gone: work is lost (left in service: the site only watches)"]
    assert judged(world, {key: (BAD,)}) == []
    world.put(msgspec.structs.replace(world.sites[SITE], shadow=False))
    judged(world, {key: (BAD,)})
    assert suspects(world) == [key]


def test_a_concern_is_told_when_it_begins_when_it_changes_and_when_it_is_over():
    world = fleet(nodes=1, gpus_each=1)
    key = sorted(world.gpus)[0]
    hotter = msgspec.structs.replace(WARN, have="is hotter")
    slow = msgspec.structs.replace(WARN, rule="slow", have="is slow")
    said = [[draft.text for draft in judged(world, {key: found})] for found in ((WARN,), (hotter,), (slow,), (slow, WARN), (), ())]
    assert said == [
        ["rig-0 GPU 0: is hot: it may throttle"], [], ["rig-0 GPU 0: is slow: it may throttle"], [], ["rig-0 GPU 0: well again"], [],
    ]  # fmt: skip


@pytest.fixture
def watched():
    world = fleet(nodes=1, gpus_each=1)
    key = sorted(world.gpus)[0]
    world.put(msgspec.structs.replace(world.gpus[key], pci_bus="00000000:01:00.0"))
    return world, key, Watch()


def test_a_finding_lasts_ten_minutes_beyond_its_last_sign_so_that_a_card_on_the_edge_does_not_flap(watched):
    world, key, watch = watched

    def rules(minute, memory_c):
        now_ms = NOW_MS + minute * 60_000
        watch.hear(Report(samples=(Sample(gpu_id=key, at_ms=0, memory_temperature_c=memory_c),)), NODE, now_ms)
        return [finding.rule for finding in watch.findings(world, now_ms)[key]]

    edge = [rules(minute, 96 if minute % 3 == 0 else 90) for minute in range(9)]
    assert edge == [["junction"]] * 9
    later = 6 + CLEAR_MS // 60_000  # the last sign was in minute 6
    assert rules(later - 1, 90) == ["junction"]
    assert rules(later, 90) == []


def test_an_xid_is_the_card_in_its_slots_and_is_forgotten_once_a_person_has_put_the_card_back(watched):
    world, key, watch = watched
    sample = Sample(gpu_id=key, at_ms=0)
    watch.hear(Report(samples=(sample,), xids=(Xid(at_ms=0, code=79, slot="0000:01:00"), Xid(at_ms=0, code=79, slot="0000:77:00"))), NODE, NOW_MS)
    assert [finding.rule for finding in watch.findings(world, NOW_MS)[key]] == ["xid-79"]
    assert watch.findings(world, NOW_MS) == {}  # nothing new was heard
    world.put(msgspec.structs.replace(world.gpus[key], state=GpuState.SUSPECT))
    commit(world, decide(world, MoveGpu(gpu_id=key, enable=True, by="op"), NOW_MS))
    watch.hear(Report(samples=(sample,)), NODE, NOW_MS + 1000)
    assert watch.findings(world, NOW_MS + 1000) == {key: ()}


def test_the_charts_keep_six_hours_by_the_minute_with_gaps_where_nothing_was_said(watched):
    _, key, watch = watched
    for minute in (0, 1, 4, MINUTES_MAX + 50):
        watch.hear(Report(samples=(Sample(gpu_id=key, at_ms=0, temperature_c=60 + minute % 10),)), NODE, NOW_MS + minute * 60_000)
        told = watch.reading(key).minutes["temperature_c"]
        if minute == 4:
            assert told == (60.0, 61.0, None, None, 64.0)
    assert len(told) == MINUTES_MAX
    assert told[-1] == 60.0
    assert set(told[:-1]) == {None}


@given(
    st.lists(
        st.builds(
            Sample,
            gpu_id=st.sampled_from(["a", "b"]),
            at_ms=st.integers(-(2**60), 2**60),
            use=st.none() | st.floats(-1e9, 1e9),
            present=st.booleans(),
            reasons=st.none() | st.integers(0, 2**63),
            replays=st.none() | st.integers(-5, 2**40),
        ),
        max_size=30,
    ),
    st.lists(st.integers(0, 2**45), max_size=30),
)
def test_whatever_cards_say_and_whatever_the_clock_does_the_watch_goes_on(samples, times):
    world, watch = fleet(nodes=1, gpus_each=1), Watch()
    gpu = next(iter(world.gpus.values()))
    for name in ("a", "b"):
        world.put(Gpu(**{**msgspec.structs.asdict(gpu), "id": name}))
    for sample, now_ms in zip(samples, times, strict=False):
        watch.hear(Report(samples=(sample,)), NODE, now_ms)
        assert all(finding.level for found in watch.findings(world, now_ms).values() for finding in found)
        watch.reading(sample.gpu_id)


def test_cards_that_broke_lately_are_chosen_last_among_equals_and_say_so():
    (workload, held) = running(1, [0], 2)
    world = put(fleet(nodes=1, gpus_each=4), (workload, held))
    over = Observation(allocation_id=held.id, state=AllocationState.ENDED, ended_ms=NOW_MS, reason=Reason.NODE_FAULT, seen_ms=NOW_MS)
    commit(world, jobs(world, Facts(observations=(over,)), NOW_MS))
    assert [world.gpus[key].faults for key in sorted(world.gpus)] == [0.5, 0.5, 0, 0]
    assert world.nodes["node-0"].faults == 1
    world.put(msgspec.structs.replace(world.workloads[workload.id], state=WorkloadState.CANCELLED))
    world.put(job(2, gpus=2))
    (grant,) = plan(world, NOW_MS).grants
    assert [share.gpu_id for share in grant.parts[0].shares] == ["GPU-0-2", "GPU-0-3"]


def test_a_card_that_breaks_again_and_again_is_a_concern_until_it_has_not_for_weeks(watched):
    world, key, watch = watched

    def rules(now_ms):
        watch.hear(Report(samples=(Sample(gpu_id=key, at_ms=0),)), NODE, now_ms)
        return [finding.rule for finding in watch.findings(world, now_ms)[key]]

    for number in range(3):
        judged(world, {key: (BAD,)})
        assert world.gpus[key].faults == number + 1
        commit(world, decide(world, MoveGpu(gpu_id=key, enable=True, by="op"), NOW_MS))
    assert rules(NOW_MS + 1) == ["lemon"]
    assert rules(NOW_MS + 21 * 24 * HOUR) == []


def test_an_hour_of_a_card_is_the_means_of_its_minutes_however_late_it_is_asked_for():
    world, watch = fleet(nodes=1, gpus_each=2), Watch()
    key = min(world.gpus)
    first = NOW_MS // HOUR + 1
    for minute in range(-7, 140):
        if minute % 60 not in {10, 11}:
            temperature = 50 + minute % 60 if 0 <= minute < 60 else 20
            watch.hear(Report(samples=(Sample(gpu_id=key, at_ms=0, temperature_c=temperature, power_w=200.0),)), NODE, first * HOUR + minute * 60_000)
    (made,) = watch.hours(world, first)
    (card,) = made.cards
    assert (made.hour_ms, card.gpu_id, card.minutes) == (first * HOUR, key, 58)
    assert card.temperature_c == pytest.approx(sum(50 + minute for minute in range(60) if minute not in {10, 11}) / 58, abs=0.01)
    assert (card.temperature_max_c, card.power_w, card.use) == (109, 200, None)
    assert [hour.cards[0].minutes for hour in watch.hours(world, first - 1)] == [7]
    assert [hour.cards[0].minutes for hour in watch.hours(world, first + 2)] == [18]
    assert list(watch.hours(world, first + 3)) == []
    assert list(watch.hours(world, first - 9)) == []


def test_hours_are_kept_once_they_are_over_and_again_where_the_store_did_not_answer(monkeypatch):
    """The loop itself, on a clock of the test's: nothing is lost while the minutes are in memory."""
    from headframe.model.errors import Unavailable
    from headframe.server import history
    from headframe.store.memory import MemoryStore

    world, watch, now = fleet(nodes=1, gpus_each=1), Watch(), [NOW_MS // HOUR * HOUR]
    key = min(world.gpus)

    class Shaky(MemoryStore):
        down = True

        def keep_hours(self, hours, forget_before_ms):
            if self.down:
                raise Unavailable("not now")
            super().keep_hours(hours, forget_before_ms)

    class Desk:
        store = Shaky()

    async def minutes(_):
        now[0] += 60_000
        Desk.store.down = now[0] < NOW_MS // HOUR * HOUR + 2.5 * HOUR
        watch.hear(Report(samples=(Sample(gpu_id=key, at_ms=0, power_w=100.0),)), NODE, now[0])
        if now[0] > NOW_MS // HOUR * HOUR + 4 * HOUR:
            raise asyncio.CancelledError

    Desk.world = world
    monkeypatch.setattr(history.asyncio, "sleep", minutes)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(history.keep_hours(Desk, watch, lambda: now[0]))
    assert [hour.cards[0].minutes for hour in Desk.store.hours("node-0", 0, 99)] == [59, 60, 60, 60]


def test_a_machine_that_enrols_again_keeps_what_is_known_of_its_cards():
    world = fleet(nodes=1, gpus_each=2)
    first, second = sorted(world.gpus)
    judged(world, {first: (BAD,), second: (WARN,)})
    before = dict(world.gpus)
    fresh = [msgspec.structs.replace(card, state=GpuState.NEW, why="", concern="", concern_rule="") for card in before.values()]
    assert commit(world, decide(world, Enrol(node=world.nodes["node-0"], gpus=tuple(fresh)), NOW_MS)) == []
    assert world.gpus == before


def test_a_card_that_clocks_far_below_its_equals_is_a_concern_once_there_are_enough_to_compare():
    def said(equals):
        world, watch = fleet(nodes=1, gpus_each=equals + 1), Watch()
        keys = sorted(world.gpus)
        watch.hear(Report(samples=tuple(Sample(gpu_id=key, at_ms=0, use=1.0, sm_mhz=1500 if key == keys[0] else 1700) for key in keys)), NODE, NOW_MS)
        return {key: [str(finding) for finding in found] for key, found in watch.findings(world, NOW_MS).items() if found}

    assert said(6) == {}
    assert said(7) == {"GPU-0-0": ["clocks at 88% of its equals' (needs ≥ 95%): jobs go at the pace of their slowest card"]}


def test_a_link_that_is_slower_under_load_than_when_it_was_graded_is_found_once_it_has_lasted(watched):
    world, key, watch = watched
    graded = Graded(at_ms=NOW_MS, depth="quick", link_gen=4, link_width=16)
    world.put(msgspec.structs.replace(world.gpus[key], graded=graded))

    def rules(minute, gen):
        now_ms = NOW_MS + minute * 60_000
        watch.hear(Report(samples=(Sample(gpu_id=key, at_ms=0, use=1.0, link_gen=gen, link_width=16),)), NODE, now_ms)
        return [finding.rule for finding in watch.findings(world, now_ms)[key]]

    assert [rules(minute, 1) for minute in range(11)] == [[]] * 10 + [["gen-short"]]
