"""Machines and cards leave service and come back only by a move of the table, by a named person, and without losing work."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headframe.model.command import Enrol, MoveGpu, MoveNode
from headframe.model.errors import Conflicting
from headframe.model.states import AllocationState, GPU_MOVES, GpuState, NODE_MOVES, NodeState, Reason, Service, WorkloadState
from headframe.model.units import MILLI
from headframe.model.work import Facts, Observation, Workload
from headframe.placement import plan
from headframe.reconcile.jobs import jobs
from headframe.reconcile.nodes import nodes
from headframe.server.decide import decide
from headframe.server.tick import decisions
from support import HOUR, NOW_MS, commit, fleet, gpu, job, node, put, running


def move(world, to, n=0, until_ms=0, why="", now_ms=NOW_MS):
    return commit(world, decide(world, MoveNode(node_id=f"node-{n}", to=to, by="k-ana", why=why, until_ms=until_ms), now_ms))


def fence(world, card="GPU-0-0", enable=False, evict=False):
    return commit(world, decide(world, MoveGpu(gpu_id=card, enable=enable, by="k-ana", why="artefacts", evict=evict), NOW_MS))


def tick(world, now_ms=NOW_MS, heard_ms=None):
    return commit(world, nodes(world, Facts(nodes=dict.fromkeys(world.nodes, now_ms if heard_ms is None else heard_ms)), now_ms))


def over(world, reason=Reason.PREEMPTED, key="wl-1.1"):
    seen = Observation(allocation_id=key, state=AllocationState.ENDED, ended_ms=NOW_MS, reason=reason, seen_ms=NOW_MS)
    commit(world, jobs(world, Facts(nodes={}, observations=(seen,)), NOW_MS))


def granted(world):
    return [part.node_id for grant in plan(world, NOW_MS).grants for part in grant.parts]


def test_a_draining_node_keeps_its_work_gets_none_and_is_in_maintenance_once_empty():
    world = put(fleet(nodes=2, queue=[job(2, gpus=8), job(3, gpus=8)]), running(1, [0], 1))
    move(world, Service.DRAIN, why="new fan")
    assert (world.nodes["node-0"].state, world.nodes["node-0"].why) == (NodeState.DRAINING, "new fan")
    assert granted(world) == ["node-1"]
    tick(world, NOW_MS + 100 * HOUR)
    assert world.allocations["wl-1.1"].state is AllocationState.RUNNING
    over(world, Reason.FINISHED)
    tick(world)
    assert (world.nodes["node-0"].state, world.nodes["node-0"].why) == (NodeState.MAINTENANCE, "new fan")
    assert granted(world) == ["node-1"]


def test_at_the_deadline_what_is_left_gives_way_and_is_queued_again():
    world = put(fleet(nodes=2), running(1, [0], 1))
    move(world, Service.DRAIN, until_ms=NOW_MS + HOUR)
    tick(world, NOW_MS + HOUR - 1)
    assert world.allocations["wl-1.1"].state is AllocationState.RUNNING
    tick(world, NOW_MS + HOUR)
    tick(world, NOW_MS + HOUR)
    assert (world.allocations["wl-1.1"].state, world.allocations["wl-1.1"].stop_because) == (AllocationState.STOPPING, Reason.PREEMPTED)
    over(world)
    assert world.workloads["wl-1"].state == "queued"
    later = commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, NOW_MS + 2 * HOUR)), NOW_MS + 2 * HOUR))
    assert [part.node_id for part in world.allocations["wl-1.2"].parts] == ["node-1"], [event.text for event in later]


def test_a_gang_on_two_draining_nodes_is_stopped_once():
    world = put(fleet(nodes=3), running(1, [0, 1], 1))
    for n in (0, 1):
        move(world, Service.DRAIN, n, until_ms=NOW_MS)
    assert [event.kind for event in tick(world, NOW_MS)].count("workload.stopping") == 1


def test_a_lost_link_does_not_put_a_drained_node_back_to_work():
    world = put(fleet(nodes=1), running(1, [0], 1))
    move(world, Service.DRAIN)
    tick(world, NOW_MS + HOUR, heard_ms=NOW_MS)
    tick(world, NOW_MS + 2 * HOUR)
    assert world.nodes["node-0"].state is NodeState.DRAINING


@pytest.mark.parametrize("state", [NodeState.MAINTENANCE, NodeState.QUARANTINED])
def test_what_is_out_of_service_stays_out_when_its_machine_enrols_again(state):
    world = fleet(nodes=1)
    world.put(node(0, state=state, why="burnt smell"))
    world.put(gpu(0, 1, state=GpuState.SUSPECT, why="artefacts"))
    fresh = node(0, state=NodeState.NEW, os="newer")
    commit(world, decide(world, Enrol(node=fresh, gpus=(gpu(0, 1, driver="newer", state=GpuState.NEW),)), NOW_MS))
    tick(world)
    assert (world.nodes["node-0"].state, world.nodes["node-0"].why, world.nodes["node-0"].os) == (state, "burnt smell", "newer")
    assert (world.gpus["GPU-0-1"].state, world.gpus["GPU-0-1"].why) == (GpuState.SUSPECT, "artefacts")


def test_a_node_with_work_or_in_service_is_not_retired_and_a_retired_one_never_comes_back():
    world = put(fleet(nodes=1), running(1, [0], 1))
    with pytest.raises(Conflicting, match="still holds 1 allocation"):
        move(world, Service.RETIRE)
    over(world, Reason.FINISHED)
    with pytest.raises(Conflicting, match="in service"):
        move(world, Service.RETIRE)
    move(world, Service.DRAIN)
    move(world, Service.RETIRE)
    assert world.nodes["node-0"].state is NodeState.RETIRED
    for to in (Service.RESUME, Service.DRAIN):
        with pytest.raises(Conflicting, match="is retired"):
            move(world, to)


def test_a_node_that_is_not_heard_of_is_not_resumed_by_hand():
    world = fleet(nodes=1)
    world.put(node(0, state=NodeState.UNKNOWN))
    with pytest.raises(Conflicting, match="not been heard of"):
        move(world, Service.RESUME)


def test_a_disabled_card_gets_nothing_its_neighbours_do_and_what_runs_on_it_goes_on():
    world = put(fleet(nodes=1, gpus_each=2, queue=[job(2, gpus=1), job(3, gpus=1)]), running(1, [0], 1))
    fence(world)
    assert world.allocations["wl-1.1"].state is AllocationState.RUNNING
    assert [share.gpu_id for grant in plan(world, NOW_MS).grants for part in grant.parts for share in part.shares] == ["GPU-0-1"]
    over(world, Reason.FINISHED)
    assert world.free["node-0"].gpu_milli == {"GPU-0-1": MILLI}
    fence(world, enable=True)
    assert world.free["node-0"].gpu_milli == {"GPU-0-0": MILLI, "GPU-0-1": MILLI}
    assert world.gpus["GPU-0-0"].why == ""


def test_evicting_a_card_stops_what_runs_on_it_alone():
    world = put(fleet(nodes=1, gpus_each=2), running(1, [0], 1), running(2, [0], 1, first=1))
    events = fence(world, evict=True)
    assert world.allocations["wl-1.1"].state is AllocationState.STOPPING
    assert world.allocations["wl-2.1"].state is AllocationState.RUNNING
    assert "(by k-ana: artefacts)" in events[0].text
    assert fence(world, evict=True) == []


STEPS = st.lists(st.tuples(st.sampled_from(["drain", "resume", "retire", "silent", "heard", "off", "on", "end"]), st.booleans()), max_size=25)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_every_move_is_one_of_the_tables_and_nothing_starts_on_what_is_out(steps):
    world = put(fleet(nodes=1, gpus_each=2), running(1, [0], 1))
    now_ms = NOW_MS
    for step, flag in steps:
        now_ms += HOUR
        before, card = world.nodes["node-0"].state, world.gpus["GPU-0-0"].state
        events = []
        try:
            if step in {"drain", "resume", "retire"}:
                events = move(world, Service(step), until_ms=now_ms if flag and step == "drain" else 0, now_ms=now_ms)
            elif step in {"silent", "heard"}:
                events = tick(world, now_ms, heard_ms=now_ms if step == "heard" else now_ms - HOUR)
            elif step in {"off", "on"}:
                events = fence(world, enable=step == "on", evict=flag)
            elif world.held:
                over(world)
        except Conflicting:
            assert (world.nodes["node-0"].state, world.gpus["GPU-0-0"].state) == (before, card)
        for row in (row for event in events for row in event.rows):
            if row.id == "node-0":
                assert row.state == before or row.state in NODE_MOVES[before], (before, row.state)
                before = row.state
            elif row.id == "GPU-0-0":
                assert row.state == card or row.state in GPU_MOVES[card]
                card = row.state
        world.put(msgspec.structs.replace(job(9, gpus=2)))
        if world.nodes["node-0"].state is not NodeState.READY or world.gpus["GPU-0-0"].state is not GpuState.READY:
            assert granted(world) == []


def test_work_that_was_over_before_it_was_seen_to_run_has_its_beginning_all_the_same():
    workload, allocation = running(1, [0], 1)
    starting = msgspec.structs.replace(allocation, state=AllocationState.GRANTED, started_ms=0)
    world = put(fleet(nodes=1), (msgspec.structs.replace(workload, state=WorkloadState.STARTING), starting))
    over = Observation(
        allocation_id=allocation.id, state=AllocationState.ENDED, started_ms=NOW_MS + 10, ended_ms=NOW_MS + 400, reason=Reason.FINISHED, exit_code=0
    )
    events = commit(world, jobs(world, Facts(observations=(over,)), NOW_MS + 500))
    ended = next(row for row in events[0].rows if isinstance(row, Workload))
    assert (ended.state, ended.started_ms) == (WorkloadState.SUCCEEDED, NOW_MS + 10)
