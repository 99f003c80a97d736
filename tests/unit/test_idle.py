"""Checks of idle machines: only where wanted, only what stands idle, few at once, and never in the way of work."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.model.command import SetSite
from headframe.model.fleet import Graded
from headframe.model.ids import SiteId
from headframe.model.states import AllocationState, GpuState, NodeState, Reason
from headframe.model.work import Facts, Observation
from headframe.server.decide import SITE, decide
from headframe.server.idle import AGAIN_MS, idle_checks
from headframe.server.qualify import GIVES_WAY
from headframe.server.tick import decisions
from support import HOUR, NOW_MS, commit, fleet, job, node, put, running

DAY = 24 * HOUR


def idle_fleet(nodes=4, ages_h=(), queue=None, **more):
    """Machines whose cards were checked so long ago, at a site that checks idle ones."""
    world = fleet(nodes=nodes, gpus_each=2, queue=queue)
    commit(world, decide(world, SetSite(site_id=SITE, check_idle=True), NOW_MS))
    for gpu in list(world.gpus.values()):
        number = int(gpu.node_id.removeprefix("node-"))
        age_h = ages_h[number] if number < len(ages_h) else 48
        world.put(msgspec.structs.replace(gpu, graded=Graded(at_ms=NOW_MS - age_h * HOUR, depth="quick"), **more))
    return world


def checked(world, now_ms=NOW_MS):
    commit(world, idle_checks(world, now_ms))
    return sorted(held.parts[0].node_id for held in world.held.values() if world.workloads[held.workload_id].spec.priority == GIVES_WAY)


def tick(world, now_ms, *seen, **more):
    return commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, now_ms), observations=seen, **more), now_ms))


def test_the_idle_machine_that_was_checked_longest_ago_is_checked_and_no_more_than_a_tenth_at_once():
    assert checked(idle_fleet(4, ages_h=(30, 50, 40, 20))) == ["node-1"]
    assert checked(idle_fleet(20, ages_h=(30, 50, 40, 20))) == ["node-1", "node-10"]
    world = idle_fleet(20)
    assert checked(world) == checked(world) == ["node-0", "node-1"]


@pytest.mark.parametrize(
    "change",
    [
        lambda world: commit(world, decide(world, SetSite(site_id=SITE, check_idle=False), NOW_MS)),
        lambda world: put(world, running(1, [0], 1)),
        lambda world: world.put(node(0, state=NodeState.DRAINING)),
        lambda world: world.put(msgspec.structs.replace(world.gpus["GPU-0-1"], state=GpuState.SUSPECT)),
        lambda world: world.put(msgspec.structs.replace(world.gpus["GPU-0-1"], graded=None)),
        lambda world: world.put(job(9, gpus=1)),
        lambda world: [
            world.put(msgspec.structs.replace(gpu, graded=Graded(at_ms=NOW_MS - AGAIN_MS + 1, depth="idle"))) for gpu in [*world.gpus.values()]
        ],
    ],
    ids=["not wanted", "work is there", "draining", "a suspect card", "a card never checked", "somebody waits", "checked today"],
)
def test_no_check_where_there_is_work_or_doubt_or_no_wish(change):
    world = idle_fleet(1)
    change(world)
    assert checked(world) == []


def test_work_that_could_use_the_cards_ends_the_check_and_gets_them_with_their_grades_as_they_were():
    world = idle_fleet(1)
    before = dict(world.gpus)
    checked(world)
    assert {gpu.state for gpu in world.gpus.values()} == {GpuState.TESTING}
    (check,) = world.held.values()
    world.put(job(1, gpus=2))
    tick(world, NOW_MS)
    assert (world.allocations[check.id].state, world.allocations[check.id].stop_because) == (AllocationState.STOPPING, Reason.PREEMPTED)
    over = Observation(allocation_id=check.id, state=AllocationState.ENDED, ended_ms=NOW_MS + 500, reason=Reason.PREEMPTED, seen_ms=NOW_MS + 500)
    events = tick(world, NOW_MS + 500, over)
    assert world.gpus == before
    assert "rig-0 GPU 0: ready, its check gave no result: it gave way to work" in [event.text for event in events]
    assert [world.workloads[held.workload_id].name for held in world.held.values()] == ["job-1"]


@pytest.mark.parametrize("waiting", [dict(gpus=1, model="H100"), dict(gpus=3), dict(gpus=0, cpu=64)])
def test_work_that_the_cards_would_not_help_does_not_end_the_check(waiting):
    world = idle_fleet(1)
    checked(world)
    (check,) = world.held.values()
    world.put(job(1, **waiting))
    tick(world, NOW_MS)
    assert world.allocations[check.id].state is AllocationState.GRANTED


def test_a_check_that_a_person_asked_for_does_not_give_way():
    from headframe.model.command import Qualify
    from headframe.model.health import Depth

    world = idle_fleet(1)
    commit(world, decide(world, Qualify(node_id="node-0", depth=Depth.FULL, id="wl-check", by="op"), NOW_MS))
    world.put(job(1, gpus=1))
    tick(world, NOW_MS)
    assert world.allocations["wl-check.1"].state is AllocationState.GRANTED


@given(st.integers(1, 12), st.lists(st.integers(0, 60), max_size=12), st.sets(st.integers(0, 11)))
def test_whatever_runs_where_a_check_never_touches_a_machine_with_work(nodes, ages_h, busy):
    world = idle_fleet(nodes, ages_h)
    put(world, *(running(100 + n, [n], 1) for n in sorted(busy) if n < nodes))
    for hour in range(3):
        for node_id in checked(world, NOW_MS + hour * HOUR):
            assert len(world.on_node[node_id]) == 1
            assert node_id not in {f"node-{n}" for n in busy}
    assert len(checked(world, NOW_MS)) <= max(1, nodes // 10)


def test_a_site_says_what_it_does_and_says_it_once():
    world = fleet(nodes=1)
    command = SetSite(site_id=SiteId(SITE), check_idle=True, shadow=True)
    assert len(commit(world, decide(world, command, NOW_MS))) == 2
    assert commit(world, decide(world, command, NOW_MS)) == []
