"""Checks of cards as allocations: only free cards, never two checks at once, never billed; and what their findings do to a card."""

import msgspec
import pytest

from headframe.health.rules import limited
from headframe.model.command import Enrol, Qualify, SetGpu
from headframe.model.errors import BadFile, Conflicting
from headframe.model.fleet import Grade
from headframe.model.health import CardFacts, Depth, Host, HostFacts, Inventory, Measured
from headframe.model.ids import AllocationId
from headframe.model.states import AllocationState, GpuState, NodeState, Reason
from headframe.model.work import Facts, Observation, Tier
from headframe.placement import plan
from headframe.server.decide import decide
from headframe.server.qualify import said
from headframe.server.tick import decisions
from headframe.server.workload_file import parse
from support import NOW_MS, commit, fleet, gpu, job, node, put, running

WELL = Measured(h2d_gb_s=12.0, d2h_gb_s=12.0, memory_gb_s=830.0, pattern_errors=0, tflops={"bfloat16": 60.0}, repeat_errors=0, golden_errors=0,
                readback_errors=0, soak_loss=0.0, link_gen=4, link_width=16)  # fmt: skip
HOST = HostFacts(depth=Depth.QUICK, took_s=80.0, torch="2.13", host=Host(memory_mib=65_536, threads=16))
CHECK_ID = AllocationId("wl-check.1")


def qualify(world, **more):
    return commit(world, decide(world, Qualify(**{"node_id": "node-0", "depth": Depth.QUICK, "id": "wl-check", "by": "op", **more}), NOW_MS))


def found(card, measured=WELL, **more):
    return CardFacts(
        gpu_id=card, index=0, card=Inventory(model="NVIDIA GeForce RTX 3090", memory_mib=24_576, power_limit_w=350, **more), measured=measured
    )


def ended(world, facts, now_ms=NOW_MS + 90_000):
    start = Observation(allocation_id=CHECK_ID, state=AllocationState.RUNNING, started_ms=NOW_MS + 1000, seen_ms=NOW_MS + 1000)
    over = msgspec.structs.replace(start, state=AllocationState.ENDED, ended_ms=now_ms, reason=Reason.FINISHED, seen_ms=now_ms)
    events = commit(world, decisions(world, Facts(nodes={"node-0": now_ms}, observations=(start,)), NOW_MS + 1000))
    return events + commit(world, decisions(world, Facts(nodes={"node-0": now_ms}, observations=(over,), checked={CHECK_ID: facts}), now_ms))


def states(world):
    return [gpu.state for _, gpu in sorted(world.gpus.items())]


def test_a_check_takes_the_free_cards_at_once_and_leaves_work_and_its_cards_alone():
    world = put(fleet(nodes=1, gpus_each=4), running(1, [0], 2))
    text = qualify(world)[0].text
    assert text == "rig-0: quick check of 2 cards, 2 cards with work left out (by op)"
    assert states(world) == [GpuState.READY] * 2 + [GpuState.TESTING] * 2
    assert [share.gpu_id for share in world.allocations[CHECK_ID].parts[0].shares] == ["GPU-0-2", "GPU-0-3"]
    world.put(job(2, gpus=1))
    assert plan(world, NOW_MS).grants == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda world: qualify(world, id="wl-first"), "rig-0 is being checked"),
        (lambda world: put(world, running(1, [0], 4)), "no card of rig-0 is free"),
        (lambda world: world.put(node(0, state=NodeState.MAINTENANCE)), "rig-0 is maintenance: only a ready node"),
    ],
)
def test_a_check_that_can_not_be_says_why_and_changes_nothing(change, reason):
    world = fleet(nodes=1, gpus_each=4)
    change(world)
    before = dict(world.gpus)
    with pytest.raises(Conflicting, match=reason):
        qualify(world)
    assert world.gpus == before


def test_a_check_grades_its_cards_in_the_commit_that_ends_it_and_costs_nothing():
    world = fleet(nodes=1, gpus_each=2)
    qualify(world)
    riser = msgspec.structs.replace(WELL, h2d_gb_s=0.21, link_gen=1, link_width=1)
    ended(world, (found("GPU-0-0"), found("GPU-0-1", riser, link_gen_max=4, link_width_max=16), HOST))
    first, second = world.gpus["GPU-0-0"], world.gpus["GPU-0-1"]
    assert (first.state, first.grade, second.state, second.grade) == (GpuState.READY, Grade.TRAIN, GpuState.READY, Grade.BATCH)
    assert second.graded.reasons[0].startswith("0.21 GB/s from the host (needs ≥ 2.5 GB/s)")
    assert second.graded.raises[0] == "on a gen4 x4 slot this card grades `inference`"
    assert (first.graded.model, first.graded.memory_known_gb_s, first.graded.at_ms) == ("GeForce RTX 3090", 936.2, NOW_MS + 90_000)
    house = world.projects["pr-house"]
    assert (house.credit_nano, house.held_nano) == (0, 0)
    assert CHECK_ID not in world.held


def test_a_card_that_computes_wrong_is_suspect_and_its_neighbour_is_not():
    world = fleet(nodes=1, gpus_each=2)
    qualify(world)
    ended(world, (found("GPU-0-0", msgspec.structs.replace(WELL, repeat_errors=1)), found("GPU-0-1"), HOST))
    assert states(world) == [GpuState.SUSPECT, GpuState.READY]
    assert world.gpus["GPU-0-0"].why == "1 products differed when repeated: no workload tolerates wrong results"


@pytest.mark.parametrize("facts", [(), (HOST,), (found("GPU-0-0", Measured()), HOST)], ids=["nothing", "no card", "no result"])
def test_a_check_without_a_result_passes_nothing_and_condemns_nothing(facts):
    for why, expected in (("", GpuState.READY), ("disabled", GpuState.SUSPECT)):
        world = fleet(nodes=1, gpus_each=1)
        state = GpuState.SUSPECT if why else GpuState.READY
        world.put(msgspec.structs.replace(world.gpus["GPU-0-0"], state=state, why=why))
        qualify(world)
        ended(world, facts)
        card = world.gpus["GPU-0-0"]
        assert (card.state, card.why, card.grade) == (expected, why, Grade.UNMEASURED)


def test_a_suspect_card_that_passes_is_well_again():
    world = fleet(nodes=1, gpus_each=1)
    world.put(msgspec.structs.replace(world.gpus["GPU-0-0"], state=GpuState.SUSPECT, why="fell off", concern="fell off", concern_rule="missing"))
    qualify(world)
    ended(world, (found("GPU-0-0"), HOST))
    card = world.gpus["GPU-0-0"]
    assert (card.state, card.why, card.concern, card.concern_rule, card.grade) == (GpuState.READY, "", "", "", Grade.TRAIN)


def test_hearing_of_a_checks_end_twice_changes_nothing_the_second_time():
    world = fleet(nodes=1, gpus_each=1)
    qualify(world)
    facts = (found("GPU-0-0"), HOST)
    ended(world, facts)
    before = dict(world.gpus)
    assert ended(world, facts) == []
    assert world.gpus == before


def test_eight_equal_cards_are_the_measure_of_the_ninth():
    world = fleet(nodes=1, gpus_each=9, model="NVIDIA GeForce RTX 3090")
    qualify(world)
    ended(world, (*(found(f"GPU-0-{n}") for n in range(8)), HOST))
    qualify(world, id="wl-check")
    slow = msgspec.structs.replace(WELL, tflops={"bfloat16": 52.0})
    ended(world, (found("GPU-0-8", slow), *(found(f"GPU-0-{n}") for n in range(8)), HOST))
    assert "87% of the rate of its equals" in "\n".join(world.gpus["GPU-0-8"].graded.reasons)


def test_no_file_can_ask_for_the_operators_tier_or_for_a_check():
    with pytest.raises(BadFile, match="on-demand, spot or reserved"):
        parse("name: x\nrun: x\ntier: house")
    with pytest.raises(BadFile):
        parse("name: x\nrun: x\ntype: check")
    assert Tier.HOUSE == "house"


def test_what_else_a_check_prints_is_no_fact():
    lines = [
        "warning: something",
        '{"type": "card"}',
        "[]",
        "",
        msgspec.json.encode(HOST).decode(),
        msgspec.json.encode(found("g")).decode(),
        '{"type":',
    ]
    assert said(lines) == (HOST, found("g"))


def test_a_grade_that_no_longer_holds_is_gone_with_the_next_sweep_and_the_card_works_on():
    world = fleet(nodes=1, gpus_each=1)
    world.put(msgspec.structs.replace(world.gpus["GPU-0-0"], max_w=350))
    qualify(world)
    ended(world, (found("GPU-0-0"), HOST))

    def sweep(days):
        now_ms = NOW_MS + days * 86_400_000
        return [event.text for event in commit(world, decisions(world, Facts(nodes={"node-0": now_ms}, sweep=True), now_ms))]

    assert sweep(29) == []
    assert sweep(31) == ["rig-0 GPU 0: no longer train, its check is older than 30 days"]
    assert sweep(32) == []
    card = world.gpus["GPU-0-0"]
    assert (card.state, card.grade) == (GpuState.READY, Grade.UNMEASURED)
    assert card.graded.raises == ("it has to be measured again: `headframe node qualify rig-0`",)


def test_a_persons_grade_takes_the_place_of_a_measured_one_and_does_not_expire():
    world = fleet(nodes=1, gpus_each=1)
    qualify(world)
    ended(world, (found("GPU-0-0"), HOST))
    commit(world, decide(world, SetGpu(gpu_id="GPU-0-0", grade=Grade.INFERENCE), NOW_MS))
    assert (world.gpus["GPU-0-0"].grade, world.gpus["GPU-0-0"].graded) == (Grade.INFERENCE, None)


def test_a_machine_without_cards_is_checked_too_and_one_that_computes_wrong_is_quarantined():
    world = fleet(nodes=1, gpus_each=0)
    assert qualify(world)[0].text == "rig-0: quick check of the machine (by op)"
    good = msgspec.structs.replace(HOST, host=msgspec.structs.replace(HOST.host, memory_copy_gb_s=12.5, disk_mb_s=90.0))
    ended(world, (good,))
    kept = world.nodes["node-0"].graded
    assert (kept.grade, kept.threads, kept.memory_copy_gb_s) == (None, 16, 12.5)
    assert kept.reasons == ("a disk of 90 MB/s (needs ≥ 200 MB/s): a 20 GB model takes minutes to load",)
    assert world.nodes["node-0"].state is NodeState.READY
    qualify(world, id="wl-again")
    wrong = msgspec.structs.replace(HOST, host=msgspec.structs.replace(HOST.host, cpu_errors=3))
    again = AllocationId("wl-again.1")
    over = Observation(
        allocation_id=again, state=AllocationState.ENDED, started_ms=NOW_MS, ended_ms=NOW_MS + 1, reason=Reason.FINISHED, seen_ms=NOW_MS + 1
    )
    commit(world, decisions(world, Facts(nodes={"node-0": NOW_MS}, observations=(over,), checked={again: (wrong,)}), NOW_MS + 2))
    bad = world.nodes["node-0"]
    assert (bad.state, bad.why) == (NodeState.QUARANTINED, "3 products of the processor differed when repeated: no workload tolerates wrong results")


def test_what_a_machines_cards_are_good_for_together_is_kept_and_said():
    world = fleet(nodes=1, gpus_each=2)
    qualify(world)
    events = ended(world, (HOST, found("GPU-0-0"), found("GPU-0-1")))
    kept = world.nodes["node-0"].graded
    assert kept.grade is not None
    assert any(event.text == f"rig-0: checked, its cards together: {kept.grade}" for event in events)


def test_an_operators_limits_are_those_that_count():
    world = fleet(nodes=1, gpus_each=0)
    qualify(world)
    good = msgspec.structs.replace(HOST, host=msgspec.structs.replace(HOST.host, disk_mb_s=90.0))
    over = Observation(
        allocation_id=CHECK_ID, state=AllocationState.ENDED, started_ms=NOW_MS, ended_ms=NOW_MS + 1, reason=Reason.FINISHED, seen_ms=NOW_MS + 1
    )
    facts = Facts(nodes={"node-0": NOW_MS}, observations=(over,), checked={CHECK_ID: (good,)})
    commit(world, decisions(world, facts, NOW_MS + 2, limited("disk = 80")))
    assert world.nodes["node-0"].graded.reasons == ()


def test_new_cards_are_checked_before_their_first_work_where_the_site_says_so():
    world = fleet(nodes=0)
    site = next(iter(world.sites.values()))
    world.put(msgspec.structs.replace(site, check_new=True))
    cards = tuple(msgspec.structs.replace(gpu(0, k), state=GpuState.NEW) for k in range(2))
    commit(world, decide(world, Enrol(node=node(0, state=NodeState.NEW), gpus=cards), NOW_MS))
    assert states(world) == [GpuState.TESTING] * 2
    assert next(iter(world.allocations.values())).tier is Tier.HOUSE
    world.put(job(1, gpus=1))
    assert plan(world, NOW_MS).grants == ()
    # A card that comes later finds the machine under check already: its own first check follows by the hour.
    again = Enrol(node=node(0, state=NodeState.NEW), gpus=(*cards, msgspec.structs.replace(gpu(0, 2), state=GpuState.NEW)))
    commit(world, decide(world, again, NOW_MS + 1000))
    assert states(world)[2] is GpuState.NEW
    first = next(iter(world.allocations.values())).id
    over = Observation(
        allocation_id=first, state=AllocationState.ENDED, started_ms=NOW_MS, ended_ms=NOW_MS + 1, reason=Reason.FINISHED, seen_ms=NOW_MS + 1
    )
    facts = Facts(nodes={"node-0": NOW_MS}, observations=(over,), checked={first: (HOST, found("GPU-0-0"), found("GPU-0-1"))})
    commit(world, decisions(world, facts, NOW_MS + 2000))
    commit(world, decisions(world, Facts(nodes={"node-0": NOW_MS}, sweep=True), NOW_MS + 3000))
    assert states(world)[2] is GpuState.TESTING


def test_how_a_card_was_set_by_whoever_had_it_before_is_told_and_is_no_fault():
    world = fleet(nodes=1, gpus_each=1)
    qualify(world)
    card = found("GPU-0-0", power_default_w=370, memory_offset_mhz=-200, core_offset_mhz=150, persistence=False)
    ended(world, (card, HOST))
    graded = world.gpus["GPU-0-0"]
    assert graded.grade is Grade.TRAIN
    assert graded.graded.reasons[-4:] == (
        "its power limit is 350 W, its maker's 370 W: it is compared with cards at an equal limit",
        "its core clock is set +150 MHz off its maker's: that is undone before work starts",
        "its memory clock is set -200 MHz off its maker's: that is undone before work starts",
        "its driver is unloaded while nobody uses it, so work starts seconds later: `nvidia-smi -pm 1`",
    )
