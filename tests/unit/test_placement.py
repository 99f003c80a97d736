"""Who runs where: properties over random fleets and queues, and the sentences people read."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.model.states import AllocationState, NodeState
from headframe.model.work import Network, Tier
from headframe.placement import are_parts, feasible, plan
from support import HOUR, NOW_MS, fleet, gpu, job, node, put, racked, running, spec

jobs = st.lists(
    st.builds(
        dict,
        gpus=st.sampled_from([0, 0.25, 0.5, 1, 2, 4, 8, 9]),
        nodes=st.integers(1, 4),
        cpu=st.sampled_from([1, 4, 16]),
        priority=st.integers(-1, 1),
    ),
    max_size=12,
)


def worlds(requests, nodes=3):
    return fleet(nodes=nodes, gpus_each=8, queue=[job(n, **request) for n, request in enumerate(requests)])


@given(jobs)
def test_no_gpu_is_held_beyond_the_whole_of_it(requests):
    taken = {}
    for grant in plan(worlds(requests), NOW_MS + 100).grants:
        for share in (share for part in grant.parts for share in part.shares):
            taken[share.gpu_id] = taken.get(share.gpu_id, 0) + share.milli
    assert all(milli <= 1000 for milli in taken.values())


@given(jobs)
def test_a_gang_is_granted_whole_on_distinct_nodes_or_not_at_all(requests):
    world = worlds(requests)
    for grant in plan(world, NOW_MS + 100).grants:
        workload = world.workloads[grant.workload_id]
        assert len(grant.parts) == workload.spec.nodes == len({part.node_id for part in grant.parts})
        assert [part.rank for part in grant.parts] == list(range(workload.spec.nodes))


@given(jobs, st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_of_its_input(requests, rng):
    queue = [job(n, **request) for n, request in enumerate(requests)]
    shuffled = list(queue)
    rng.shuffle(shuffled)
    assert plan(fleet(nodes=3, queue=queue), NOW_MS + 100) == plan(fleet(nodes=3, queue=shuffled), NOW_MS + 100)


@given(jobs)
def test_every_workload_is_granted_or_refused_with_a_reason(requests):
    world = worlds(requests)
    made = plan(world, NOW_MS + 100)
    granted = {grant.workload_id for grant in made.grants}
    assert granted | set(made.refusals) == set(world.queued)
    assert not granted & set(made.refusals)
    assert all(refusals for refusals in made.refusals.values())


@given(jobs)
def test_every_refusal_is_true(requests):
    """Brute force: after the grants, no refused job fits on what is left of the nodes that are not kept for one ahead of it."""
    world = worlds(requests)
    made = plan(world, NOW_MS + 100)
    left = {key: (dict(free.gpu_milli), free.cpu_milli, free.memory_mib) for key, free in world.free.items()}
    for part in (part for grant in made.grants for part in grant.parts):
        cards, cpu, memory = left[part.node_id]
        for share in part.shares:
            cards[share.gpu_id] -= share.milli
        left[part.node_id] = (cards, cpu - part.cpu_milli, memory - part.memory_mib)
    kept = {node_id for reservation in made.kept for node_id in reservation.nodes}
    for key in made.refusals:
        need = world.workloads[key].spec.resources
        fits = sum(
            cpu >= need.cpu_milli
            and memory >= need.memory_mib
            and (
                need.gpu.milli == 0
                or (
                    any(m >= need.gpu.milli for m in cards.values())
                    if need.gpu.milli < 1000
                    else sum(m == 1000 for m in cards.values()) >= need.gpu.milli // 1000
                )
            )
            for node_id, (cards, cpu, memory) in left.items()
            if node_id not in kept
        )
        assert fits < world.workloads[key].spec.nodes


def test_a_gang_that_does_not_fit_says_how_many_nodes_do():
    world = fleet(nodes=2, gpus_each=8, queue=[job(gpus=8, nodes=3)])
    refusals = plan(world, NOW_MS + 100).refusals["wl-1"]
    assert str(refusals[0]) == "gang: the fleet refused: needs 3 nodes at once, best has 2 that fit; ask for nodes ≤ 2"


def test_an_impossible_model_names_what_the_fleet_has():
    refusals = feasible(fleet(), spec(gpus=1, model="H100"))
    assert (
        str(refusals[0])
        == "gpu-model: 2 nodes refused: needs 1 GPU (H100), best has RTX 3090; ask for a model that the fleet has: `headframe offers`"
    )


def test_models_are_matched_however_they_are_spelt():
    for name in ("RTX3090", "rtx 3090", "NVIDIA GeForce RTX 3090"):
        assert are_parts(feasible(fleet(), spec(gpus=1, model=name)))


def test_reserved_goes_before_on_demand_before_spot_then_priority_then_age():
    queue = [job(1, tier=Tier.SPOT, gpus=8, priority=9), job(2, gpus=8), job(3, gpus=8, priority=5), job(4, tier=Tier.RESERVED, gpus=8)]
    assert [grant.workload_id for grant in plan(fleet(nodes=4, queue=queue), NOW_MS + 100).grants] == ["wl-4", "wl-3", "wl-2", "wl-1"]


def test_small_work_goes_to_the_fullest_node_that_fits():
    world = fleet(nodes=2, gpus_each=2, queue=[job(1, gpus=1)])
    world.put(gpu(0, 7))
    world.put(gpu(0, 8))
    assert plan(world, NOW_MS + 100).grants[0].parts[0].node_id == "node-1"


def test_work_without_gpus_keeps_off_nodes_with_them():
    world = fleet(nodes=1, gpus_each=8, queue=[job(1)])
    world.put(node(5, name="cpu-only"))
    assert plan(world, NOW_MS + 100).grants[0].parts[0].node_id == "node-5"


def test_nothing_is_placed_on_a_node_that_is_not_ready():
    world = fleet(nodes=1, queue=[job(1, gpus=1)])
    world.put(node(0, state=NodeState.UNKNOWN))
    assert "ready node" in str(plan(world, NOW_MS + 100).refusals["wl-1"][0])


def test_a_quota_holds_back_what_exceeds_it():
    import msgspec

    world = fleet(queue=[job(1, gpus=4), job(2, gpus=4)])
    world.put(msgspec.structs.replace(world.projects["pr-test"], quota_gpus_milli=6000))
    made = plan(world, NOW_MS + 100)
    assert [grant.workload_id for grant in made.grants] == ["wl-1"]
    assert "2 of 6 left" in str(made.refusals["wl-2"][0])


def test_a_big_gang_is_not_passed_over_and_short_work_fills_the_time_before_it():
    long, short = job(12, gpus=8, max_duration_s=5 * 3600), job(13, gpus=8, max_duration_s=1800)
    world = fleet(nodes=2, queue=[job(11, gpus=8, nodes=2), long, short])
    put(world, running(1, [0], 8, max_duration_s=3600))
    made = plan(world, NOW_MS + 100)
    assert [grant.workload_id for grant in made.grants] == ["wl-13"]
    assert made.kept[0].workload_id == "wl-11"
    assert made.kept[0].start_ms == NOW_MS + HOUR
    assert "kept for a workload ahead" in str(made.refusals["wl-12"])
    assert "max_duration 5 h" in str(made.refusals["wl-12"])


def test_the_spot_work_that_loses_least_gives_way_and_no_more_of_it_than_needed():
    world = fleet(nodes=2, queue=[job(11, gpus=4)])
    put(
        world,
        running(1, [0], 4, NOW_MS - 3 * HOUR, Tier.SPOT),
        running(2, [0], 4, NOW_MS - HOUR, Tier.SPOT, first=4),
        running(3, [1], 8, NOW_MS - 2 * HOUR, Tier.SPOT),
    )
    made = plan(world, NOW_MS + 100)
    assert [eviction.allocation_id for eviction in made.evictions] == ["wl-2.1"]
    assert not made.grants


def test_work_does_not_give_way_to_spot_nor_when_more_is_lost_than_gained_nor_soon_after_it_began():
    old = running(1, [0], 8, NOW_MS - 40 * HOUR, Tier.SPOT)
    young = running(1, [0], 8, NOW_MS - 60_000, Tier.SPOT)
    fair = running(1, [0], 8, NOW_MS - HOUR, Tier.SPOT)
    firm = running(1, [0], 8, NOW_MS - HOUR, Tier.ON_DEMAND)
    asks = {"on-demand": job(11, gpus=8), "spot": job(11, gpus=8, tier=Tier.SPOT)}
    for holder, ask, gives_way in ((old, "on-demand", 0), (young, "on-demand", 0), (fair, "on-demand", 1), (fair, "spot", 0), (firm, "on-demand", 0)):
        world = put(fleet(nodes=1, queue=[asks[ask]]), holder)
        assert len(plan(world, NOW_MS + 100).evictions) == gives_way


def test_whoever_gave_way_within_the_last_hour_is_left_alone():
    import msgspec

    from headframe.model.states import Reason

    workload, allocation = running(1, [0], 8, NOW_MS - HOUR // 2, Tier.SPOT)
    world = put(fleet(nodes=1, queue=[job(11, gpus=8)]), (msgspec.structs.replace(workload, reason=Reason.PREEMPTED), allocation))
    assert not plan(world, NOW_MS + 100).evictions


def test_a_project_that_used_much_lets_another_go_first():
    import msgspec

    from headframe.model.ids import ProjectId
    from headframe.model.people import Project

    other = msgspec.structs.replace(job(12, gpus=8), project_id=ProjectId("pr-other"))
    world = fleet(nodes=1, queue=[job(11, gpus=8), other])
    world.put(Project(id=ProjectId("pr-other"), name="other", created_ms=0))
    world.put(msgspec.structs.replace(world.projects["pr-test"], used_milli_h=5000.0, used_ms=NOW_MS))
    assert [grant.workload_id for grant in plan(world, NOW_MS + 100).grants] == ["wl-12"]
    late = plan(world, NOW_MS + 25 * HOUR).grants
    assert [grant.workload_id for grant in late] == ["wl-11"], "whoever waited a day goes first"


def test_a_plan_stops_when_its_time_is_up():
    turns = iter([False, True])
    made = plan(fleet(nodes=2, queue=[job(1, gpus=1), job(2, gpus=1)]), NOW_MS + 100, until=lambda: next(turns))
    assert [grant.workload_id for grant in made.grants] == ["wl-1"]


def racks_of(world, grant):
    return {world.nodes[part.node_id].rack_id for part in grant.parts}


def test_a_gang_goes_to_the_rack_that_it_fills_best():
    world = racked(8, 4, [job(1, gpus=1, nodes=3)])
    put(world, running(9, [0], 1))
    assert racks_of(world, plan(world, NOW_MS + 100).grants[0]) == {"rack-0"}, "three are free there, four in the other"


def test_a_gang_that_is_too_big_for_a_rack_takes_as_few_racks_as_can_be_or_waits_where_one_is_required():
    world = racked(9, 3, [job(1, gpus=1, nodes=4)])
    assert len(racks_of(world, plan(world, NOW_MS + 100).grants[0])) == 2
    world = racked(9, 3, [job(1, gpus=1, nodes=4, network=Network.REQUIRED)])
    made = plan(world, NOW_MS + 100)
    assert not made.grants
    assert str(made.refusals["wl-1"][0]).startswith("network: 9 nodes refused: needs 4 nodes of one rack at once, best has 3 that fit")


def test_nodes_that_are_kept_stay_kept_though_others_look_better_later_but_not_for_work_without_an_end():
    """Nobody says how long the work takes, so it is expected to go on for as long as it has lasted: what has just begun always looks better."""
    world = fleet(nodes=2, gpus_each=2, queue=[job(11, gpus=2)])
    put(world, running(1, [0], 1, started_ms=NOW_MS - HOUR), running(2, [1], 1, started_ms=NOW_MS - 2 * HOUR))
    assert plan(world, NOW_MS).kept[0].nodes == ("node-0",)
    ended = world.allocations["wl-2.1"]
    world.put(msgspec.structs.replace(ended, state=AllocationState.ENDED))
    put(world, running(3, [1], 1, started_ms=NOW_MS + HOUR))
    assert plan(world, NOW_MS + HOUR).kept[0].nodes == ("node-0",)
    assert plan(world, NOW_MS + 15 * HOUR).kept[0].nodes == ("node-0",)
    assert plan(world, NOW_MS + 18 * HOUR).kept[0].nodes == ("node-1",), "what would keep it for 19 hours more"


def test_a_gang_that_needs_one_rack_has_it_kept():

    world = racked(4, 2, [job(11, gpus=1, nodes=2, network=Network.REQUIRED), job(12, gpus=1), job(13, gpus=1)])
    put(world, running(1, [0], 1, max_duration_s=3600), running(2, [2], 1, max_duration_s=7200))
    made = plan(world, NOW_MS + 100)
    assert made.kept[0].nodes == ("node-0", "node-1") or set(made.kept[0].nodes) == {"node-0", "node-1"}
    assert [grant.parts[0].node_id for grant in made.grants] == ["node-3"]


def test_scores_follow_what_was_asked_for():
    from headframe.placement.fleet import LEARN_FIRST, Fleet

    world = fleet(nodes=2)
    learned = Fleet.of(world)
    before = learned.index.scores
    for _ in range(LEARN_FIRST):
        learned.ran(spec(gpus=0.25), ())
    learned.sync()
    assert learned.index.scores is not before
    assert learned.index.scores.value[249] == 0
    assert learned.index.scores.value[250] > 0


def test_how_much_comes_back_of_what_is_handed_out_is_learned_and_holes_count_by_it():
    from headframe.placement.fleet import LEARN_FIRST, Fleet

    world = fleet(nodes=64, gpus_each=8)
    learned = Fleet.of(world)
    learned.sync()
    assert learned.index.scores.weight[2] == 0, "a fleet that only fills has no turnover"
    for n in range(LEARN_FIRST):
        workload, allocation = running(n, nodes=[n % 64], gpus=1, first=n // 64)
        world.put(workload)
        world.put(allocation)
        learned.sync()
        learned.ran(workload.spec, allocation.parts)
        if n % 2:
            world.put(msgspec.structs.replace(allocation, state=AllocationState.ENDED, ended_ms=NOW_MS))
            learned.sync()
    learned.sync()
    assert learned.index.scores.weight[2] == pytest.approx(2 * 0.5 * 1024, rel=0.01)


def test_small_work_keeps_off_the_only_machines_that_large_work_could_ever_use():
    from headframe.placement.fleet import Fleet

    world = fleet(nodes=70, gpus_each=8)
    big = max(world.nodes)
    world.put(msgspec.structs.replace(world.nodes[big], memory_mib=4 * world.nodes[big].memory_mib))
    seen = Fleet.of(world)
    vast = msgspec.structs.replace(spec(gpus=8).resources, memory_mib=3 * world.nodes[min(world.nodes)].memory_mib)
    for resources in (vast, spec(gpus=1).resources):
        for _ in range(300):
            seen.ran(msgspec.structs.replace(spec(), resources=resources), ())
    seen.sync()
    where = {seen.place(spec(gpus=1))[0].node_id for _ in range(69 * 8)}
    assert big not in where
    assert len(where) == 69
    assert seen.place(msgspec.structs.replace(spec(), resources=vast))[0].node_id == big


def test_what_can_not_be_done_for_one_is_not_tried_again_for_all_that_wait_with_it(monkeypatch):
    from headframe.placement.fleet import Fleet

    looks = []
    losses = Fleet.losses
    monkeypatch.setattr(Fleet, "losses", lambda *given: looks.append(given) or losses(*given))
    world = put(fleet(nodes=1, queue=[job(n, gpus=1) for n in range(50)]), running(99, [0], 8))
    assert len(plan(world, NOW_MS + 100).refusals) == 50
    assert len(looks) == 1


def test_asking_why_teaches_nothing_about_the_demand():
    from headframe.placement import explain
    from headframe.placement.fleet import Fleet

    world = fleet(nodes=2, queue=[job(1, gpus=1)])
    assert explain(world, world.workloads["wl-1"], NOW_MS + 100) == ()
    assert Fleet.of(world)._since_learned == 0
    plan(world, NOW_MS + 100)
    assert Fleet.of(world)._since_learned == 1
