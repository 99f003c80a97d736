"""Machines set aside by date, and GPUs guaranteed: nobody is late for what was promised, and nobody pays for it with more than agreed."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headframe.model.command import CancelReservation, Defragment, RemoveVolume, Reserve, SetQuota, Submit
from headframe.model.errors import Conflicting, Infeasible
from headframe.model.event import Kind
from headframe.model.fleet import SLACK_MS, Reservation, Volume
from headframe.model.ids import KeyId, ProjectId, ReservationId, WorkloadId
from headframe.model.people import Project
from headframe.model.states import AllocationState, Reason, WorkloadState
from headframe.model.work import Allocation, Facts, Mount, Observation, Tier
from headframe.placement import plan
from headframe.placement.defragment import defragment
from headframe.reconcile.jobs import jobs
from headframe.server.decide import decide
from headframe.server.operate import CACHE_S, stale
from headframe.server.tick import decisions
from support import HOUR, NOW_MS, PROJECT, commit, fleet, job, put, running, spec

DAY = 24 * HOUR


def reservation(start_ms=NOW_MS + DAY, length_ms=DAY, nodes=(), project=PROJECT, name="big-run", evict=True):
    return Reservation(
        id=ReservationId(f"rs-{name}"),
        name=name,
        project_id=ProjectId(project),
        node_ids=tuple(nodes),
        start_ms=start_ms,
        end_ms=start_ms + length_ms,
        created_ms=0,
        evict=evict,
    )


def reserve(world, row, nodes=1, gpus=1):
    commit(world, decide(world, Reserve(row=row, spec=spec(gpus=gpus, nodes=nodes)), NOW_MS))
    return world.reservations[row.id]


def test_only_nodes_that_are_sure_to_be_free_are_set_aside():
    world = fleet(nodes=4, gpus_each=1)
    put(
        world,
        running(1, [0], 1),
        running(2, [1], 1, max_duration_s=3600),
        running(3, [2], 1, tier=Tier.SPOT),
    )
    assert set(reserve(world, reservation(), nodes=3).node_ids) == {"node-1", "node-2", "node-3"}
    with pytest.raises(Infeasible, match=r"needs 1 nodes sure to be free from the start on, best has 0 \(3 set aside already, 1 with work that may"):
        reserve(world, reservation(name="second"))


def test_before_the_start_only_work_that_is_over_by_then_goes_there():
    short, long, spot = job(11, gpus=1, max_duration_s=3600), job(12, gpus=1), job(13, gpus=1, tier=Tier.SPOT)
    world = fleet(nodes=2, gpus_each=1, queue=[short, long, spot])
    reserve(world, reservation(), nodes=2)
    made = plan(world, NOW_MS + 100)
    assert {grant.workload_id for grant in made.grants} == {"wl-11", "wl-13"}
    assert "the node is set aside as 'big-run', best has no max_duration" in " / ".join(map(str, made.refusals["wl-12"]))


def test_while_it_lasts_its_project_alone_runs_there_with_reserved_work_and_then_everyone():
    other = msgspec.structs.replace(job(12, gpus=1), project_id=ProjectId("pr-other"))
    world = fleet(nodes=1, gpus_each=1, queue=[other, job(11, gpus=1, tier=Tier.RESERVED)])
    world.put(Project(id=ProjectId("pr-other"), name="other", created_ms=0))
    row = reserve(world, reservation(start_ms=NOW_MS))
    assert [grant.workload_id for grant in plan(world, NOW_MS + 100).grants] == ["wl-11"]
    world.put(msgspec.structs.replace(world.workloads["wl-11"], closed=True))
    assert not plan(world, NOW_MS + 100).grants
    assert [grant.workload_id for grant in plan(world, row.end_ms).grants] == ["wl-12"]


def test_what_is_still_there_is_stopped_before_the_start_and_the_reservation_is_forgotten_after_its_end():
    world = put(fleet(nodes=1, gpus_each=1), running(1, [0], 1, tier=Tier.SPOT))
    row = reserve(world, reservation())
    facts = Facts(nodes={"node-0": row.start_ms - SLACK_MS - 1})
    assert not commit(world, decisions(world, facts, row.start_ms - SLACK_MS - 1))
    commit(world, decisions(world, facts, row.start_ms - SLACK_MS))
    assert world.allocations["wl-1.1"].state is AllocationState.STOPPING
    assert Kind.RESERVATION_OVER in {event.kind for event in commit(world, decisions(world, Facts(), row.end_ms))}
    assert not world.reservations


def test_maintenance_lets_work_go_on_where_the_operator_says_so_but_starts_none():
    world = put(fleet(nodes=2, gpus_each=1, queue=[job(11, gpus=1)]), running(1, [0], 1))
    reserve(world, reservation(start_ms=NOW_MS, nodes=("node-0", "node-1"), project="", evict=False))
    commit(world, decisions(world, Facts(nodes={"node-0": NOW_MS, "node-1": NOW_MS}), NOW_MS))
    assert world.allocations["wl-1.1"].state is AllocationState.RUNNING
    assert world.workloads["wl-11"].state is WorkloadState.QUEUED
    commit(world, decide(world, CancelReservation(id=ReservationId("rs-big-run")), NOW_MS))
    assert plan(world, NOW_MS + 100).grants[0].parts[0].node_id == "node-1"


def test_short_work_with_a_volume_also_fills_the_time_before_a_reservation():
    mounts = (Mount(volume="data", path="/data"),)
    short, long = job(11, gpus=1, max_duration_s=3600, volumes=mounts), job(12, gpus=1, volumes=mounts)
    world = fleet(nodes=1, gpus_each=2, queue=[short, long])
    reserve(world, reservation())
    made = plan(world, NOW_MS + 100)
    assert [grant.workload_id for grant in made.grants] == ["wl-11"]
    assert "set aside as 'big-run'" in str(made.refusals["wl-12"])


works = st.lists(
    st.tuples(st.sampled_from([Tier.SPOT, Tier.ON_DEMAND]), st.sampled_from([0, 600, 3600, 7200, 20_000]), st.integers(1, 2), st.integers(0, 12)),
    max_size=14,
)


@given(works, st.integers(1, 3), st.integers(1, 18))
@settings(deadline=None)
def test_a_reserved_start_is_never_late(asked, nodes, start_steps):
    """Ten minutes at a time: work of every kind comes, runs until it must end, and the gang starts at its time on whole nodes."""
    world = fleet(nodes=4, gpus_each=2, credit_usd=100_000)
    start_ms = NOW_MS + start_steps * 600_000
    reserve(world, reservation(start_ms=start_ms), nodes=nodes, gpus=2)
    world.put(job(99, gpus=2, nodes=nodes, tier=Tier.RESERVED, max_duration_s=3600))
    world.put(msgspec.structs.replace(world.workloads["wl-99"], not_before_ms=start_ms, held_nano=0))
    for at_ms in sorted({*range(NOW_MS, start_ms, 600_000), start_ms - SLACK_MS, start_ms - 1, start_ms}):
        for n, (tier, limit_s, gpus, come) in enumerate(asked):
            if NOW_MS + come * 600_000 == at_ms:
                world.put(msgspec.structs.replace(job(n, gpus=gpus, tier=tier, max_duration_s=limit_s), held_nano=0))
        seen = tuple(observed(allocation, world, at_ms) for allocation in world.live())
        commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, at_ms), observations=seen), at_ms))
    assert world.workloads["wl-99"].state is WorkloadState.STARTING


def observed(allocation: Allocation, world, at_ms) -> Observation:
    """An engine that starts at once, stops at once, and stops what is over its time."""
    start_ms = allocation.started_ms or allocation.granted_ms
    limit_s = world.workloads[allocation.workload_id].spec.max_duration_s
    over = allocation.state is AllocationState.STOPPING or (limit_s and at_ms >= start_ms + limit_s * 1000)
    state = AllocationState.ENDED if over else AllocationState.RUNNING
    reason = (allocation.stop_because or Reason.MAX_DURATION) if over else None
    return Observation(
        allocation_id=allocation.id,
        state=state,
        started_ms=start_ms,
        seen_ms=at_ms,
        **({"ended_ms": max(start_ms, at_ms - 1), "reason": reason} if over else {}),
    )


def tenants(world, **guaranteed):
    for name, count in guaranteed.items():
        world.put(Project(id=ProjectId(f"pr-{name}"), name=name, created_ms=0, guaranteed_gpus_milli=count * 1000))
    return world


def of(project, workload, allocation=None):
    mine = msgspec.structs.replace(workload, project_id=ProjectId(f"pr-{project}"))
    return (mine, msgspec.structs.replace(allocation, project_id=mine.project_id)) if allocation else mine


def test_a_project_below_its_guarantee_goes_first():
    world = tenants(fleet(nodes=1, gpus_each=1), a=0, b=1)
    world.put(of("a", job(1, gpus=1)))
    world.put(of("b", job(2, gpus=1)))
    assert [grant.workload_id for grant in plan(world, NOW_MS + 100).grants] == ["wl-2"]


def test_what_was_borrowed_is_given_back_the_least_loss_first_and_no_more_than_the_guarantee():
    world = tenants(fleet(nodes=4, gpus_each=1), a=1, b=2)
    for n in range(1, 5):
        put(world, of("a", *running(n, [n - 1], 1, NOW_MS - (6 - n) * HOUR)))
    world.put(of("a", job(10, gpus=1)))
    for n in (11, 12, 13):
        world.put(of("b", job(n, gpus=1)))
    assert [eviction.allocation_id for eviction in plan(world, NOW_MS + 100).evictions] == ["wl-4.1", "wl-3.1"]


def test_nobody_takes_back_from_work_within_its_guarantee_or_of_tenants_without_one():
    world = tenants(fleet(nodes=1, gpus_each=2), a=1, b=1, c=0)
    put(world, of("a", *running(1, [0], 1, NOW_MS - HOUR)), of("c", *running(2, [0], 1, NOW_MS - HOUR, first=1)))
    world.put(of("b", job(11, gpus=1)))
    assert not plan(world, NOW_MS + 100).evictions


def test_more_can_not_be_guaranteed_than_there_is():
    world = fleet(nodes=1, gpus_each=2)
    with pytest.raises(Conflicting, match="3 GPUs would be guaranteed of 2"):
        list(decide(world, SetQuota(project_id=PROJECT, quota_gpus_milli=0, guaranteed_gpus_milli=3000), NOW_MS))


def test_a_project_that_may_not_share_machines_has_whole_ones_or_is_told_how_to_ask_for_them():
    world = fleet(nodes=2, gpus_each=2)
    commit(world, decide(world, SetQuota(project_id=PROJECT, quota_gpus_milli=0, guaranteed_gpus_milli=0, whole_machines=True), NOW_MS))
    world.put(msgspec.structs.replace(world.projects[PROJECT], credit_nano=10**15))
    submit = Submit(id=WorkloadId("wl-9"), project_id=PROJECT, key_id=KeyId("op"), spec=spec(gpus=1))
    with pytest.raises(Conflicting, match="may not share a machine"):
        list(decide(world, submit, NOW_MS))
    commit(world, decide(world, msgspec.structs.replace(submit, spec=spec(gpus=2, exclusive=True)), NOW_MS))
    (grant,) = plan(world, NOW_MS + 100).grants
    assert len(grant.parts[0].shares) == 2


@given(st.lists(st.tuples(st.sampled_from([0.25, 1, 2]), st.integers(1, 2)), max_size=10), st.integers(0, 6))
def test_a_quota_is_never_exceeded(asked, quota):
    world = fleet(nodes=4, gpus_each=2, queue=[job(n, gpus=gpus, nodes=nodes) for n, (gpus, nodes) in enumerate(asked)])
    world.put(msgspec.structs.replace(world.projects[PROJECT], quota_gpus_milli=quota * 1000))
    held = sum(share.milli for grant in plan(world, NOW_MS + 100).grants for part in grant.parts for share in part.shares)
    assert not quota or held <= quota * 1000


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8), st.booleans()), min_size=1, max_size=8), st.booleans(), st.integers(1, 12))
def test_giving_way_never_loses_more_than_it_gains(victims, checkpoints, hours):
    """Brute force over what gave way: its work since the start (or half an hour before) and a restart, against the time gained."""
    world = fleet(nodes=len(victims), gpus_each=8, queue=[job(99, gpus=8, max_duration_s=hours * 3600)])
    saved = {"checkpoint": "/c"} if checkpoints else {}
    for n, (age, gpus, spot) in enumerate(victims):
        put(world, running(n, [n], gpus, NOW_MS - age * HOUR // 2, Tier.SPOT if spot else Tier.ON_DEMAND, **saved))
    lost = 0.0
    for eviction in plan(world, NOW_MS + 100).evictions:
        victim = world.allocations[eviction.allocation_id]
        assert victim.tier is Tier.SPOT
        ran_h = (NOW_MS + 100 - victim.started_ms) / HOUR
        assert ran_h >= 1 / 6
        lost += ((min(ran_h, 0.5) if checkpoints else ran_h) + 120 / 3600) * len(victim.parts[0].shares)
    assert 0.5 * lost <= 1.0 * 8 * min(hours, 4)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=6))
def test_nobody_waits_longer_than_a_day_behind_those_that_came_later(priorities):
    """Whatever projects used and ask for, the oldest that waited a day gets the first GPU that is free."""
    queue = [of(str(n), job(n, gpus=1, priority=priority)) for n, priority in enumerate(priorities)]
    world = fleet(nodes=1, gpus_each=1)
    for n, workload in enumerate(queue):
        world.put(Project(id=workload.project_id, name=str(n), created_ms=0, used_milli_h=1e6 * (len(queue) - n), used_ms=NOW_MS))
        world.put(workload)
    assert plan(world, NOW_MS + 24 * HOUR + 1000).grants[0].workload_id == "wl-0"


def test_a_volume_lies_where_it_was_first_mounted_and_is_not_removed_while_it_is_used():
    world = fleet(nodes=2, gpus_each=1, queue=[job(1, gpus=1, volumes=(Mount(volume="data", path="/data"),))])
    commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, NOW_MS)), NOW_MS + 100))
    volume = world.volumes[f"{PROJECT}.data"]
    assert isinstance(volume, Volume)
    assert volume.node_id == world.allocations["wl-1.1"].parts[0].node_id
    with pytest.raises(Conflicting, match="data is used by job-1"):
        list(decide(world, RemoveVolume(project_id=PROJECT, name="data"), NOW_MS))


def test_a_cache_is_one_on_each_machine_of_a_gang_and_goes_when_nothing_has_mounted_it_for_a_month():
    world = fleet(nodes=3, gpus_each=1, queue=[job(1, gpus=1, nodes=2, volumes=(Mount(volume="models", path="/m", cache=True),))])
    commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, NOW_MS)), NOW_MS + 100))
    nodes = [part.node_id for part in world.allocations["wl-1.1"].parts]
    assert list(world.caches[PROJECT, "models"]) == nodes
    assert world.homes == {}
    month = NOW_MS + 100 + CACHE_S * 1000
    assert {event.kind for event in commit(world, stale(world, month))} == {Kind.VOLUME_USED}, "it is mounted, and noted so"
    assert list(stale(world, month + 1)) == [], "once a day"
    month += CACHE_S * 1000
    world.put(msgspec.structs.replace(world.workloads["wl-1"], state=WorkloadState.SUCCEEDED, ended_ms=NOW_MS + 200))
    assert list(stale(world, month - 1)) == []
    assert [event.text.partition(":")[0] for event in commit(world, stale(world, month))] == [
        f"cache models on {world.nodes[node].name} removed" for node in nodes
    ]
    assert world.caches[PROJECT, "models"] == {}
    assert world.volumes == {}


def test_a_workspaces_files_go_once_nothing_has_mounted_them_for_as_long_as_it_said():
    home = (Mount(volume="home", path="/home"),)
    world = fleet(nodes=1, gpus_each=1, queue=[job(1, type="workspace", volumes=home, delete_s=86_400), job(2, volumes=home)])
    commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, NOW_MS)), NOW_MS + 100))
    assert world.volumes[f"{PROJECT}.home"].delete_s == 86_400, "a job beside it does not decide"
    for row in list(world.workloads.values()):
        world.put(msgspec.structs.replace(row, state=WorkloadState.SUCCEEDED, ended_ms=NOW_MS + 200))
    assert list(stale(world, NOW_MS + 86_400_000)) == []
    assert [event.text for event in commit(world, stale(world, NOW_MS + 86_400_100))] == ["volume home removed: unused for 1 d 0 h"]
    assert world.homes == {}


def test_work_that_gave_way_is_not_failed_for_it():
    world = fleet(nodes=1, gpus_each=1)
    workload, allocation = running(1, [0], 1, tier=Tier.SPOT)
    for attempt in range(1, 9):
        put(world, (msgspec.structs.replace(world.workloads.get("wl-1", workload), state=WorkloadState.RUNNING, attempt=attempt),))
        put(world, (msgspec.structs.replace(allocation, id=f"wl-1.{attempt}", attempt=attempt),))
        seen = Observation(allocation_id=f"wl-1.{attempt}", state=AllocationState.ENDED, ended_ms=NOW_MS + 1, reason=Reason.PREEMPTED)
        commit(world, jobs(world, Facts(observations=(seen,)), NOW_MS + 1))
    after = world.workloads["wl-1"]
    assert (after.state, after.preempted) == (WorkloadState.QUEUED, 8)
    assert "a pause after giving way" in str(plan(world, NOW_MS + 1000).refusals["wl-1"][0])


def crowded(**more):
    """Two nodes with half of their cards in use each: nothing of eight cards fits, though eight are free."""
    world = fleet(nodes=2, gpus_each=8, queue=[job(99, gpus=8)])
    put(world, running(1, [0], 4, NOW_MS - HOUR, **more), running(2, [1], 4, NOW_MS - 2 * HOUR, **more))
    return world


def test_moving_work_together_is_proposed_with_what_it_gains_and_loses():
    proposal = defragment(crowded(checkpoint="/c"), NOW_MS)
    assert proposal is not None
    assert (proposal.for_id, len(proposal.moves)) == ("wl-99", 1)
    move = proposal.moves[0]
    assert move.to == (({"node-0", "node-1"} - {proposal.node_id}).pop(),)
    assert proposal.lost_milli_h == pytest.approx(4000 * (0.5 + 120 / 3600))
    assert proposal.gain_milli_h == pytest.approx(8000 * 4)


def test_nothing_is_moved_that_keeps_no_checkpoint_or_has_no_other_place_or_where_nothing_waits():
    assert defragment(crowded(), NOW_MS) is None
    full = crowded(checkpoint="/c")
    put(full, running(3, [0], 2, NOW_MS - HOUR, first=4), running(4, [1], 2, NOW_MS - HOUR, first=4))
    assert defragment(full, NOW_MS) is None
    idle = crowded(checkpoint="/c")
    idle.put(msgspec.structs.replace(idle.workloads["wl-99"], closed=True))
    assert defragment(idle, NOW_MS) is None


def test_a_proposal_leaves_the_fleet_as_it_was():
    world = crowded(checkpoint="/c")
    before = plan(world, NOW_MS)
    assert defragment(world, NOW_MS) == defragment(world, NOW_MS)
    assert plan(world, NOW_MS) == before


@pytest.mark.parametrize("automatic", [True, False])
def test_moves_are_made_only_by_the_operators_policy_and_what_waited_starts_before_what_moved_comes_back(automatic):
    world = crowded(checkpoint="/c")
    for n in (1, 2):
        world.put(msgspec.structs.replace(world.workloads[f"wl-{n}"], held_nano=0))
        world.put(msgspec.structs.replace(world.allocations[f"wl-{n}.1"], metered_ms=NOW_MS))
    world.put(msgspec.structs.replace(world.workloads["wl-99"], held_nano=0))
    commit(world, decide(world, Defragment(apply=False, automatic=automatic), NOW_MS))
    for at_ms in (NOW_MS, NOW_MS + 5_000, NOW_MS + 60_000):
        seen = tuple(observed(allocation, world, at_ms) for allocation in world.live())
        commit(world, decisions(world, Facts(nodes=dict.fromkeys(world.nodes, at_ms), observations=seen), at_ms))
    assert ("wl-99.1" in world.held) == automatic
    assert len(world.held) == (3 if automatic else 2)
