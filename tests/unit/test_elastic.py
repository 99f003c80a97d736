"""Elastic gangs: what makes room for them, and when one that runs starts again on more nodes."""

import msgspec
import pytest

from headframe.model.states import AllocationState, Reason, WorkloadState
from headframe.model.work import Facts, Observation, Refusal, Retry, Tier
from headframe.model.world import World
from headframe.placement import plan
from headframe.placement.elastic import grows
from headframe.server.tick import decisions
from support import HOUR, NOW_MS, PROJECT, commit, elastic, fleet, job, node, put, running

LATER_MS = NOW_MS + 20 * 60_000


def smaller(pair, least, most, **more):
    """A gang that runs, as one that might be larger."""
    workload, allocation = pair
    spec = msgspec.structs.replace(workload.spec, nodes=most, nodes_min=least, checkpoint="/checkpoint", **more)
    return msgspec.structs.replace(workload, spec=spec), allocation


def filler(n, nodes, **changes):
    workload, allocation = running(n, nodes, 2, tier=Tier.FILLER)
    return workload, msgspec.structs.replace(allocation, **changes)


def grown(world, now_ms=LATER_MS, admit=None):
    found = grows(world, now_ms, lambda _: admit)
    return found.id if found else None


def test_fillers_make_room_for_more_nodes_than_an_elastic_gang_needs_and_it_waits_until_they_are_gone():
    world = fleet(nodes=4, gpus_each=2, queue=[elastic(1, 2, 8)])
    put(world, filler(8, [2]), filler(9, [3]))
    made = plan(world, NOW_MS + 100)
    assert (made.grants, {each.allocation_id for each in made.evictions}) == ((), {"wl-8.1", "wl-9.1"})
    assert "starts by itself within seconds" in str(made.refusals["wl-1"][0])
    put(world, *(filler(n, [n - 6], state=AllocationState.STOPPING, stop_ms=NOW_MS + 100) for n in (8, 9)))
    made = plan(world, NOW_MS + 5000)
    assert (made.grants, made.evictions) == ((), ())
    for n in (8, 9):
        world.put(msgspec.structs.replace(world.allocations[f"wl-{n}.1"], state=AllocationState.ENDED))
    assert len(plan(world, NOW_MS + 6000).grants[0].parts) == 4


def test_a_node_that_lacks_something_else_than_cards_costs_an_elastic_gang_no_other():
    world = fleet(nodes=6, gpus_each=2, queue=[elastic(1, 2, 8)])
    put(world, filler(9, [4]))
    world.put(node(5, cpu_milli=500))
    made = plan(world, NOW_MS + 100)
    assert ([each.allocation_id for each in made.evictions], len(made.kept[0].nodes)) == (["wl-9.1"], 5)
    world.put(msgspec.structs.replace(world.allocations["wl-9.1"], state=AllocationState.ENDED))
    assert len(plan(world, NOW_MS + 6000).grants[0].parts) == 5


def test_a_filler_that_does_not_end_keeps_an_elastic_gang_from_nothing_that_it_needs():
    world = fleet(nodes=4, gpus_each=2, queue=[elastic(1, 2, 8)])
    put(world, filler(9, [3], state=AllocationState.STOPPING, stop_ms=NOW_MS - HOUR))
    assert len(plan(world, NOW_MS).grants[0].parts) in {2, 3}


def test_a_gang_on_fewer_nodes_than_it_would_take_starts_again_once_more_are_free():
    world = fleet(nodes=6, gpus_each=2)
    put(world, smaller(running(1, [0, 1], 2), 2, 8))
    assert grown(world) == "wl-1.1"
    events = commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, LATER_MS)), LATER_MS))
    assert "job-1: stopping, resized" in [event.text for event in events]


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("that keeps no checkpoint", dict(checkpoint="")),
        ("that is as large as it may be", dict(nodes=2)),
        ("of one size", dict(nodes_min=0, nodes=2)),
    ],
)
def test_no_gang_starts_again(what, changes):
    world = fleet(nodes=6, gpus_each=2)
    workload, allocation = smaller(running(1, [0, 1], 2), 2, 8)
    put(world, (msgspec.structs.replace(workload, spec=msgspec.structs.replace(workload.spec, **changes)), allocation))
    assert grown(world) is None, what


def test_a_gang_is_left_alone_for_ten_minutes_and_for_an_hour_once_it_has_grown_or_given_way():
    world = fleet(nodes=6, gpus_each=2)
    workload, allocation = smaller(running(1, [0, 1], 2), 2, 8)
    put(world, (workload, allocation))
    assert grown(world, NOW_MS + 9 * 60_000) is None
    put(world, (msgspec.structs.replace(workload, reason=Reason.RESIZED), allocation))
    assert [grown(world, NOW_MS + minutes * 60_000) for minutes in (50, 61)] == [None, "wl-1.1"]


def test_a_gang_does_not_lose_more_by_starting_again_than_it_gains():
    world = fleet(nodes=8, gpus_each=2)
    put(world, smaller(running(1, range(7), 2), 2, 8))
    assert grown(world, NOW_MS + HOUR) is None, "one more node for half an hour of seven"
    put(world, smaller(running(1, range(7), 2), 2, 8, max_duration_s=900))
    assert grown(world, LATER_MS) is None, "over soon anyway"


def test_nobody_grows_while_others_wait():
    world = fleet(nodes=6, gpus_each=2, queue=[job(5, gpus=2, nodes=5)])
    put(world, smaller(running(1, [0, 1], 2), 2, 8))
    assert grown(world) is None


def test_nobody_grows_while_others_have_just_been_granted_what_the_power_that_is_left_is_not_told_of():
    world = fleet(nodes=6, gpus_each=2)
    put(world, smaller(running(1, [0, 1], 2), 2, 8), running(2, [5], 2))
    world.put(msgspec.structs.replace(world.allocations["wl-2.1"], state=AllocationState.GRANTED))
    assert grown(world) is None
    world.put(msgspec.structs.replace(world.allocations["wl-2.1"], state=AllocationState.RUNNING))
    assert grown(world) == "wl-1.1"


def test_a_gang_grows_as_far_as_its_price_and_its_quota_allow_and_its_own_place_counts_as_free():
    world = fleet(nodes=6, gpus_each=2)
    put(world, smaller(running(1, [0, 1], 2), 2, 8))
    asked = []

    def dear(_workload, parts, _granted):
        asked.append(len(parts))
        return Refusal(rule="max-price", need="less", have="more", nodes=0, change="")

    assert grown(world, admit=dear) is None
    assert asked[0] == 6, "its own nodes too"
    world.put(msgspec.structs.replace(world.projects[PROJECT], quota_gpus_milli=5000))
    assert grown(world) is None
    world.put(msgspec.structs.replace(world.projects[PROJECT], quota_gpus_milli=8000))
    assert grown(world) == "wl-1.1"


def test_asking_changes_nothing():
    world = fleet(nodes=6, gpus_each=2)
    put(world, smaller(running(1, [0, 1], 2), 2, 8))
    assert [grown(world), grown(world)] == ["wl-1.1", "wl-1.1"]
    world.put(job(7, gpus=2, nodes=5))
    assert plan(world, LATER_MS).grants == (), "its nodes are still its own"


def test_a_gang_that_grew_is_queued_again_whatever_its_policy_and_no_attempt_is_counted():
    world = fleet(nodes=6, gpus_each=2)
    workload, allocation = smaller(running(1, [0, 1], 2), 2, 8, retry=Retry(on=(), attempts=1))
    put(world, (msgspec.structs.replace(workload, held_nano=0), allocation))
    commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, LATER_MS)), LATER_MS))
    over = Observation(allocation_id="wl-1.1", state=AllocationState.ENDED, started_ms=NOW_MS, ended_ms=LATER_MS, reason=Reason.RESIZED)
    facts = Facts(nodes=dict.fromkeys(world.nodes, LATER_MS), observations=(over,))
    events = [event.text for event in commit(world, decisions(world, facts, LATER_MS + 100))]
    assert "job-1: attempt 1 ended, resized after 20 min 00 s, queued again (attempt 2)" in events
    again = world.workloads["wl-1"]
    assert (again.state, again.preempted, len(world.allocations["wl-1.2"].parts)) == (WorkloadState.STARTING, 1, 6)


def test_a_server_that_starts_anew_knows_which_gangs_could_be_larger_and_what_is_stopped_when_idle():
    world = fleet(nodes=6, gpus_each=2)
    put(world, smaller(running(1, [0, 1], 2), 2, 8), smaller(running(2, [2, 3], 2), 2, 2), running(3, [4], 2, idle_s=600))
    anew = World()
    anew.load([row for table in world._tables.values() for row in table.values()], 7)
    assert (list(anew.small), list(anew.watched)) == (list(world.small), list(world.watched)) == (["wl-1.1"], ["wl-3.1"])
    put(world, (world.workloads["wl-1"], msgspec.structs.replace(world.allocations["wl-1.1"], state=AllocationState.STOPPING)))
    assert not world.small
