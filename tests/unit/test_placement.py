"""Who runs where: properties over random fleets and queues, and the sentences people read."""

from hypothesis import given
from hypothesis import strategies as st

from headframe.model.states import NodeState
from headframe.model.work import Tier
from headframe.placement import are_parts, feasible, plan
from support import NOW_MS, fleet, gpu, job, node, spec

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
    """Brute force: after the grants, no refused single-node job fits on any node's remaining GPUs, CPU and memory."""
    world = worlds(requests)
    made = plan(world, NOW_MS + 100)
    left = {key: (dict(free.gpu_milli), free.cpu_milli, free.memory_mib) for key, free in world.free.items()}
    for part in (part for grant in made.grants for part in grant.parts):
        cards, cpu, memory = left[part.node_id]
        for share in part.shares:
            cards[share.gpu_id] -= share.milli
        left[part.node_id] = (cards, cpu - part.cpu_milli, memory - part.memory_mib)
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
            for cards, cpu, memory in left.values()
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
