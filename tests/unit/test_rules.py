"""What is asked of machines and cards, one rule at a time: who refuses, in which words, and what is held where none does."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.billing.price import price_at, rate_nano
from headframe.model.fleet import Grade, Sharing, Volume
from headframe.model.states import AllocationState, GpuState
from headframe.model.work import Mount, Refusal, Tier
from headframe.placement import are_parts, explain, feasible, plan
from headframe.placement.fit import capability
from headframe.placement.fleet import Fleet
from headframe.placement.network import all_reduce_s, crossing_share
from headframe.placement.power import drawn_w
from headframe.placement.racks import lemon
from headframe.server.decide import quote_for
from support import HOUR, NOW_MS, PROJECT, elastic, fleet, gpu, job, node, put, racked, running


def world_of(queue, cards, **machine):
    """One node with these cards (as changes to a plain one)."""
    world = fleet(nodes=0, queue=queue)
    world.put(node(0, **machine))
    for k, changes in enumerate(cards):
        world.put(gpu(0, k, **changes))
    return world


def only_refusal(world):
    (refusals,) = plan(world, NOW_MS + 100).refusals.values()
    return str(refusals[0])


CARD = dict(compute_capability="8.6", pcie_width=1, grade=Grade.BATCH, sharing=Sharing.EXCLUSIVE)


@pytest.mark.parametrize(
    ("asked", "rule", "words"),
    [
        (dict(gpus=1, model="H100"), "gpu-model", "needs 1 GPU (H100), best has RTX 3090"),
        (dict(gpus=1, compute_capability="8.9"), "compute-capability", "needs 8.9, best has 8.6"),
        (dict(gpus=1, compute_capability="10.0"), "compute-capability", "needs 10.0, best has 8.6"),
        (dict(gpus=1, grade=Grade.INFERENCE), "grade", "needs inference, best has batch"),
        (dict(gpus=1, pcie_width=8), "pcie", "needs x8 or wider, best has x1"),
        (dict(gpus=0.5), "sharing", "needs a card that may be shared, best has exclusive"),
        (dict(gpus=1, mig="1g.10gb"), "mig", "needs MIG 1g.10gb, best has a card that is not divided"),
        (dict(gpus=2, p2p=True), "p2p", "needs 2 GPU that reach each other's memory, best has 0 that do"),
        (dict(gpus=1, arch="aarch64"), "arch", "needs aarch64, best has x86_64"),
        (dict(gpus=1, exclusive=True), "exclusive", "needs a machine of just 1 GPU for itself, best has 2 GPU"),
    ],
)
def test_each_rule_refuses_with_what_is_needed_and_what_there_is(asked, rule, words):
    refusal = only_refusal(world_of([job(1, **asked)], [CARD, CARD], arch="x86_64"))
    assert refusal.startswith(f"{rule}: 1 node refused: {words}"), refusal


@pytest.mark.parametrize(
    "asked",
    [
        dict(gpus=1, compute_capability="8.6"),
        dict(gpus=1, grade=Grade.BATCH),
        dict(gpus=1, grade=Grade.MINING_ONLY),
        dict(gpus=1, pcie_width=1),
        dict(gpus=2, exclusive=True),
        dict(gpus=1, arch="x86_64"),
        dict(gpus=2, model="rtx3090"),
    ],
)
def test_what_a_machine_has_is_granted(asked):
    assert plan(world_of([job(1, **asked)], [CARD, CARD], arch="x86_64"), NOW_MS + 100).grants


def test_a_taint_keeps_away_work_that_does_not_tolerate_it():
    world = world_of([job(1, gpus=1), job(2, gpus=1, tolerations=("lab",))], [{}, {}], taints=("lab",))
    made = plan(world, NOW_MS + 100)
    assert [grant.workload_id for grant in made.grants] == ["wl-2"]
    assert str(made.refusals["wl-1"][0]).endswith("best has lab; add `tolerations: [lab]`")


def test_a_machine_for_itself_is_idle_before_and_nobody_comes_after():
    world = fleet(nodes=2, gpus_each=2, queue=[job(2, gpus=2, exclusive=True), job(3, cpu=1)])
    put(world, running(1, [0], 1))
    made = {grant.workload_id: grant.parts[0] for grant in plan(world, NOW_MS + 100).grants}
    assert (made["wl-2"].node_id, made["wl-3"].node_id) == ("node-1", "node-0")
    assert (made["wl-2"].cpu_milli, made["wl-2"].memory_mib) == (32_000, 65_536)


def test_a_machine_for_itself_is_quoted_as_it_will_be_billed():
    world = fleet(nodes=1, gpus_each=2, queue=[job(1, gpus=2, exclusive=True)])
    (grant,) = plan(world, NOW_MS + 100).grants
    prices = price_at(world.prices(), NOW_MS)
    quoted = quote_for(world, world.workloads["wl-1"].spec, world.projects[PROJECT], NOW_MS)
    assert quoted.rate_max_nano == rate_nano(prices, grant.parts, Tier.ON_DEMAND)


def test_cards_that_reach_each_other_are_taken_from_one_group():
    pairs = [dict(p2p="0"), dict(p2p="1"), dict(p2p="0"), dict(p2p="1")]
    world = world_of([job(1, gpus=1), job(2, gpus=2, p2p=True), job(3, gpus=2, p2p=True)], pairs)
    made = plan(world, NOW_MS + 100)
    granted = {grant.workload_id: {world.gpus[share.gpu_id].p2p for share in grant.parts[0].shares} for grant in made.grants}
    assert len(granted["wl-2"]) == 1
    assert granted["wl-1"] != granted["wl-2"]
    assert "reach each other" not in str(made.refusals["wl-3"][0])


def test_a_fraction_says_how_it_is_kept_apart_and_a_whole_card_is_exclusive():
    world = world_of([job(1, gpus=0.5), job(2, gpus=1), job(3, gpus=0.5, sharing=Sharing.MPS)], [dict(sharing=Sharing.MPS), {}])
    shares = {grant.workload_id: grant.parts[0].shares[0] for grant in plan(world, NOW_MS + 100).grants}
    assert shares["wl-3"].sharing is Sharing.MPS
    assert shares["wl-1"].sharing is Sharing.MPS
    assert (shares["wl-2"].sharing, shares["wl-2"].index) == (Sharing.EXCLUSIVE, 1)


def test_a_mig_instance_is_a_card_of_its_own_and_not_taken_for_a_whole_one():
    world = world_of([job(1, gpus=1), job(2, gpus=1, mig="1g.10gb")], [dict(mig="1g.10gb"), {}])
    assert {g.workload_id: g.parts[0].shares[0].index for g in plan(world, NOW_MS + 100).grants} == {"wl-1": 1, "wl-2": 0}


def powered(limit_w, **more):
    """Three nodes of one 300 W card each in one rack, 50 W each when idle."""
    world = racked(3, 3, **more)
    world.put(msgspec.structs.replace(world.racks["rack-0"], power_limit_w=limit_w))
    for n in range(3):
        world.put(node(n, rack_id="rack-0", idle_w=50))
        world.put(gpu(n, 0, max_w=300))
    return world


def test_a_rack_is_never_asked_for_more_than_it_carries_and_says_so():
    made = plan(powered(800, queue=[job(n, gpus=1) for n in range(3)]), NOW_MS + 100)
    assert len(made.grants) == 2
    why = " / ".join(map(str, made.refusals["wl-2"]))
    assert "power: 1 node refused: needs 300 W, best has 50 W left in the rack; waits until power in the rack is released" in why


def test_a_gang_counts_the_power_of_all_its_nodes():
    assert len(plan(powered(1050, queue=[job(1, gpus=1, nodes=3)]), NOW_MS + 100).grants) == 1
    assert not plan(powered(1049, queue=[job(1, gpus=1, nodes=3)]), NOW_MS + 100).grants


def test_power_comes_back_when_work_ends_or_the_limit_is_raised():
    world = powered(500, queue=[job(1, gpus=1)])
    workload, allocation = running(9, [0], 1)
    put(world, (workload, allocation))
    assert not plan(world, NOW_MS + 100).grants
    world.put(msgspec.structs.replace(world.racks["rack-0"], power_limit_w=1000))
    assert plan(world, NOW_MS + 100).grants
    world.put(msgspec.structs.replace(world.racks["rack-0"], power_limit_w=500))
    assert not plan(world, NOW_MS + 100).grants
    world.put(msgspec.structs.replace(allocation, state=AllocationState.ENDED))
    assert plan(world, NOW_MS + 100).grants


@given(st.lists(st.tuples(st.sampled_from([0.25, 0.5, 1]), st.integers(1, 3)), max_size=8), st.integers(100, 1500))
def test_no_plan_draws_more_than_a_rack_carries(asks, limit_w):
    world = powered(limit_w, queue=[job(n, gpus=gpus, nodes=nodes) for n, (gpus, nodes) in enumerate(asks)])
    parts = [part for grant in plan(world, NOW_MS + 100).grants for part in grant.parts]
    assert not parts or drawn_w(world, parts, set(world.nodes)) + 150 <= limit_w


def test_a_node_that_broke_lately_is_taken_last():
    world = fleet(nodes=2, gpus_each=1, queue=[job(1, gpus=1)])
    world.put(node(0, faults=1.0, faults_ms=0, seen_ms=0))
    assert plan(world, NOW_MS + 100).grants[0].parts[0].node_id == "node-1"
    assert lemon(0.0) == 0 < lemon(1.0) <= lemon(4.0)


def test_a_warm_rack_is_taken_last():
    world = racked(4, 2, [job(1, gpus=1)])
    world.put(msgspec.structs.replace(world.racks["rack-0"], cooling_limit_w=660))
    world.put(gpu(0, 0, max_w=300))
    put(world, running(9, [0], 1))
    for n in (0, 1):
        world.put(node(n, rack_id="rack-0", idle_w=20))
    assert plan(world, NOW_MS + 100).grants[0].parts[0].node_id in {"node-1", "node-2"}
    world.put(msgspec.structs.replace(world.racks["rack-0"], cooling_limit_w=640))
    racks = Fleet.of(world).racks
    assert racks.stale(range(racks.count))


def test_an_image_is_run_where_it_has_run_before():
    world = fleet(nodes=3, gpus_each=1, queue=[job(1, gpus=1, image="org/a:1")])
    Fleet.of(world).ran(world.workloads["wl-1"].spec, plan(world, NOW_MS + 100).grants[0].parts[:0])
    Fleet.of(world)._images["org/a:1"] = {"node-2": None}
    assert plan(world, NOW_MS + 100).grants[0].parts[0].node_id == "node-2"


def test_an_elastic_gang_starts_on_as_many_nodes_as_are_free_and_waits_for_the_fewest_only():
    world = fleet(nodes=4, gpus_each=2, queue=[elastic(1, 2, 8)])
    assert len(plan(world, NOW_MS + 100).grants[0].parts) == 4
    put(world, running(8, [0], 1), running(9, [1], 1))
    assert [part.node_id for part in plan(world, NOW_MS + 100).grants[0].parts] == ["node-2", "node-3"]
    put(world, running(7, [2], 1))
    made = plan(world, NOW_MS + 100)
    assert made.grants == ()
    assert "needs 2 nodes at once" in only_refusal(world)
    assert len(made.kept[0].nodes) == 2, "for the fewest, no more"


def test_nobody_gives_way_to_what_an_elastic_gang_would_only_like_to_have():
    world = fleet(nodes=4, gpus_each=2, queue=[elastic(1, 2, 4)])
    put(world, running(8, [0, 1], 2, tier=Tier.SPOT, started_ms=NOW_MS - 10 * HOUR))
    made = plan(world, NOW_MS + 100)
    assert len(made.grants[0].parts) == 2
    assert made.evictions == ()


def test_an_elastic_gang_is_as_large_as_its_price_and_its_quota_allow():
    world = fleet(nodes=8, gpus_each=2, queue=[elastic(1, 2, 8)])

    def dear(_workload, parts, _granted):
        return Refusal(rule="max-price", need="less", have="more", nodes=0, change="") if len(parts) > 5 else None

    assert len(plan(world, NOW_MS + 100, dear).grants[0].parts) == 5
    world.put(msgspec.structs.replace(world.projects[PROJECT], quota_gpus_milli=8000))
    assert len(plan(world, NOW_MS + 100).grants[0].parts) in {2, 3}
    world.put(msgspec.structs.replace(world.projects[PROJECT], quota_gpus_milli=3000))
    assert [each.rule for each in explain(world, world.workloads["wl-1"], NOW_MS + 100)] == ["quota"]


def test_work_prefers_machines_that_have_its_caches_and_waits_for_none():
    mounts = (Mount(volume="models", path="/m", cache=True),)
    world = fleet(nodes=4, gpus_each=1, queue=[job(n, gpus=1, volumes=mounts) for n in (1, 2)] + [job(3, gpus=1, nodes=2, volumes=mounts)])
    world.put(Volume(id=f"{PROJECT}.models@node-2", project_id=PROJECT, name="models", node_id="node-2", created_ms=0, cache=True))
    world.put(Volume(id="pr-other.models@node-3", project_id="pr-other", name="models", node_id="node-3", created_ms=0, cache=True))
    made = {grant.workload_id: [part.node_id for part in grant.parts] for grant in plan(world, NOW_MS + 100).grants}
    assert made == {"wl-1": ["node-2"], "wl-2": ["node-0"], "wl-3": ["node-1", "node-3"]}, "another project's cache is none"


def test_work_goes_where_its_volume_lies_and_says_why_it_waits_there():
    mounts = (Mount(volume="data", path="/data"),)
    world = fleet(nodes=3, gpus_each=1, queue=[job(1, gpus=1, volumes=mounts), job(2, gpus=1)])
    world.put(Volume(id=f"{PROJECT}.data", project_id=PROJECT, name="data", node_id="node-2", created_ms=0))
    made = {grant.workload_id: grant.parts[0].node_id for grant in plan(world, NOW_MS + 100).grants}
    assert made["wl-1"] == "node-2"
    put(world, running(9, [2], 1))
    why = str(explain(world, world.workloads["wl-1"], NOW_MS + 100)[0])
    assert why == "volume: 1 node refused: needs rig-2, where its volumes lie, best has gpu: 0 of 1 free; waits until gpu is released"


def test_volumes_on_two_nodes_can_not_be_mounted_together():
    mounts = (Mount(volume="a", path="/a"), Mount(volume="b", path="/b"))
    world = fleet(nodes=2, gpus_each=1, queue=[job(1, gpus=1, volumes=mounts)])
    for n, name in enumerate("ab"):
        world.put(Volume(id=f"{PROJECT}.{name}", project_id=PROJECT, name=name, node_id=f"node-{n}", created_ms=0))
    assert "volumes on rig-0, rig-1" in only_refusal(world)


def test_an_all_reduce_takes_what_was_calculated_from_measured_links():
    """Four nodes of eight over 100 GbE: 2.3 s for 14 GB in the published table; the spine is four times slower."""
    assert all_reduce_s(8, 4, crosses=False) == pytest.approx(2.3, rel=0.1)
    assert all_reduce_s(8, 4, crosses=True) == pytest.approx(9.2, rel=0.1)
    assert all_reduce_s(8, 1, crosses=False) == pytest.approx(2.5, rel=0.1)
    assert crossing_share(8, 1) == 0 < crossing_share(8, 4) < 1


def test_another_rack_is_worth_it_only_where_it_saves_more_than_the_way_costs():
    world = racked(6, 3, [job(1, gpus=1, nodes=2)])
    put(world, running(9, [0], 1, max_duration_s=HOUR // 1000))
    racks = {world.nodes[part.node_id].rack_id for part in plan(world, NOW_MS + 100).grants[0].parts}
    assert racks == {"rack-0"}


def test_what_can_be_had_at_all_follows_the_cards_that_are_left():
    world = fleet(nodes=1, gpus_each=2)
    assert are_parts(feasible(world, job(1, gpus=2).spec))
    world.put(gpu(0, 1, state=GpuState.RETIRED))
    assert not are_parts(feasible(world, job(1, gpus=2).spec))


@pytest.mark.parametrize(("text", "numbers"), [("8.6", (8, 6)), ("", ()), ("gfx906", ()), ("8.x", ()), ("²", ()), ("-1.0", ())])
def test_a_compute_capability_that_is_no_version_compares_as_not_known(text, numbers):
    assert capability(text) == numbers
