"""Slurm in our words: names, types, states and answers of both dialects; its machines as nodes of ours; the ledger beside its accounts."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.data import text
from headframe.engines.slurm.checks import told
from headframe.engines.slurm.engine import AWAY_MS, pause_s, reason_of
from headframe.engines.slurm.machines import kind_of, machine, sold_as
from headframe.engines.slurm.topology import leaves
from headframe.engines.slurm.words import (
    OLD,
    Accounted,
    JobRequest,
    SlurmNode,
    SlurmRefused,
    body,
    gpus,
    hosts,
    read_accounted,
    read_jobs,
    read_nodes,
    refused,
    states,
)
from headframe.health.catalogue import catalogue
from headframe.model.command import AddEngine, RemoveEngine
from headframe.model.engine import EngineSetup
from headframe.model.errors import Conflicting, NotFound
from headframe.model.fleet import SLURM, Down
from headframe.model.states import AllocationState, GpuState, NodeState, Reason
from headframe.model.work import Facts
from headframe.placement import plan
from headframe.reconcile.nodes import nodes
from headframe.server.decide import decide
from headframe.server.machines import machines
from headframe.server.reconcile import differences
from support import NOW_MS, commit, fleet, job, node, put, running

MODELS = catalogue(text("gpus.csv"))
SETUP = EngineSetup(id="slurm", url="unix:/x", key_file="/k", user="hf", shared="/s")
REQUEST = JobRequest(
    name="hf-wl-1.1",
    comment="wl-1.1",
    script="#!/bin/sh\n",
    nodes=("n1", "n2"),
    cpus=2,
    memory_mib=100,
    gpus=(("rtx3090", 2),),
    minutes=5,
    output="/o",
    cwd="/",
)


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("gpu[008-010]", ["gpu008", "gpu009", "gpu010"]),
        ("n[1-2],m3,k[9]", ["n1", "n2", "m3", "k9"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("", []),
    ],
)
def test_slurms_short_lists_of_names_are_spelled_out(short, names):
    assert hosts(short) == names


@given(st.text(alphabet="n0123[]-,x ", max_size=30))
def test_whatever_stands_for_a_list_of_names_is_read_or_left_out(short):
    assert all(isinstance(name, str) for name in hosts(short))


@pytest.mark.parametrize(
    ("gres", "found"),
    [
        ("gpu:rtx3090:4", [("rtx3090", 4)]),
        ("gpu:rtx3090:4(S:0-1)", [("rtx3090", 4)]),
        ("gpu:a100:2(S:0),gpu:rtx3090:1(S:1)", [("a100", 2), ("rtx3090", 1)]),
        ("gpu:8", [("", 8)]),
        ("shard:12,gpu:h100_sxm:8", [("h100_sxm", 8)]),
        ("", []),
        ("(null)", []),
    ],
)
def test_typed_cards_are_read_from_gres(gres, found):
    assert gpus(gres) == found


@pytest.mark.parametrize(
    ("kind", "model"), [("rtx3090", "GeForce RTX 3090"), ("RTX_3090", "GeForce RTX 3090"), ("a100", "A100"), ("h100_sxm", "H100"), ("unheard", None)]
)
def test_a_type_of_slurms_is_sold_under_the_catalogues_name(kind, model):
    found = sold_as(MODELS, kind)
    assert (found is None) if model is None else found.name.startswith(model)


def test_the_same_is_asked_in_both_dialects_and_nothing_of_a_tenants_is_in_it():
    old, new = body(REQUEST, OLD), body(REQUEST, "v0.0.45")["job"]
    assert (old["script"], old["job"]["nodelist"], old["job"]["gres"], old["job"]["time_limit"]) == ("#!/bin/sh\n", "n1,n2", "gpu:rtx3090:2", 5)
    assert (new["script"], new["required_nodes"], new["tres_per_node"], new["time_limit"]) == (
        "#!/bin/sh\n",
        ["n1", "n2"],
        "gres/gpu:rtx3090:2",
        {"set": True, "number": 5},
    )
    assert old["job"]["environment"]["PATH"] in new["environment"][0]
    assert old["job"]["requeue"] is new["requeue"] is False


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (200, {"errors": []}, None),
        (200, {}, None),
        (500, {"errors": [{"error": "Invalid node name", "error_number": 2068}]}, "Invalid node name"),
        (200, {"errors": [{"error_code": 2042, "error": "held"}]}, None),
        (200, {"warnings": [{"description": "Ignoring unknown field tres"}]}, "Ignoring unknown field tres"),
        (200, {"warnings": [{"description": "something else"}]}, None),
        (404, {}, "HTTP 404"),
    ],
)
def test_a_refusal_is_heard_in_every_form_and_an_ignored_field_is_one(status, answer, said):
    no = refused(status, json.dumps(answer).encode())
    assert (no is None) if said is None else said in str(no)


def test_answers_of_both_dialects_mean_the_same():
    old = {
        "nodes": [
            {
                "name": "n1",
                "state": "mixed",
                "state_flags": ["DRAIN"],
                "cpus": 8,
                "real_memory": 100,
                "gres": "gpu:a100:2",
                "boot_time": 5,
                "features": "rack=B2",
            }
        ]
    }
    new = {
        "nodes": [
            {
                "name": "n1",
                "state": ["MIXED", "DRAIN"],
                "cpus": 8,
                "real_memory": 100,
                "gres": "gpu:a100:2",
                "boot_time": {"set": True, "number": 5},
                "features": ["rack=B2"],
            }
        ]
    }
    one, other = (read_nodes(json.dumps(each).encode())[0] for each in (old, new))
    assert one.states == other.states == {"MIXED", "DRAIN"}
    assert one.drained
    assert not one.lost
    assert one.rack == other.rack == "B2"
    jobs = [read_jobs(json.dumps({"jobs": [{"job_id": 3, "job_state": state}]}).encode())[0] for state in ("RUNNING", ["RUNNING"])]
    assert [each.over for each in jobs] == [False, False]
    assert states("IDLE*") == {"IDLE", "NO_RESPOND"}


@given(st.recursive(st.one_of(st.none(), st.integers(), st.text(max_size=5)), lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(
    st.sampled_from(["nodes", "jobs", "errors", "warnings", "name", "state", "job_id", "job_state", "time", "tres"]), inner, max_size=4)), max_leaves=15))  # fmt: skip
def test_whatever_slurm_answers_is_understood_or_refused_as_not_understood(told):
    raw = json.dumps(told).encode()
    for read in (read_nodes, read_jobs, read_accounted):
        try:
            read(raw)
        except msgspec.DecodeError:
            continue
    refused(500, raw)


SLURM_NODE = SlurmNode(name="n1", state="IDLE", cpus=16, threads=2, real_memory=64_000, gres="gpu:rtx3090:2,gpu:odd:1", features="rack=B2")


def test_machines_hang_on_the_lowest_switch_or_the_block_that_slurms_topology_names():
    tree = (
        "SwitchName=leaf1 Level=0 LinkSpeed=1 Nodes=n[1-2],gpu7 \nSwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=n3\n"
        "SwitchName=spine Level=1 LinkSpeed=1 Nodes=n[1-3],gpu7 Switches=leaf[1-2]\n"
    )
    assert leaves(tree) == {"n1": "leaf1", "n2": "leaf1", "gpu7": "leaf1", "n3": "leaf2"}
    blocks = "BlockName=b1 BlockIndex=0 Nodes=n[1-2] BlockSize=2\nBlockName=b2 BlockIndex=1 Nodes=n[3-4] BlockSize=2\n"
    assert leaves(blocks) == {"n1": "b1", "n2": "b1", "n3": "b2", "n4": "b2"}
    assert leaves("slurm_load_topo: No topology information available\n") == {}


def test_what_its_features_say_of_a_rack_goes_before_its_switch():
    plain = msgspec.structs.replace(SLURM_NODE, features="")
    assert [machine(row, SETUP, MODELS, NOW_MS, "leaf1").rack for row in (SLURM_NODE, plain)] == ["B2", "leaf1"]


def test_a_machine_is_enrolled_with_its_cores_its_cards_and_its_rack():
    made = machine(SLURM_NODE, SETUP, MODELS, NOW_MS)
    assert (made.node.engine, made.node.cpu_milli, made.node.memory_mib, made.rack) == (SLURM, 8000, 64_000, "B2")
    assert [(gpu.model, gpu.index) for gpu in made.gpus] == [("GeForce RTX 3090", 0), ("GeForce RTX 3090", 1), ("odd", 2)]
    assert [kind_of(SLURM_NODE, model, MODELS) for model in ("GeForce RTX 3090", "odd", "A100")] == ["rtx3090", "odd", ""]


def brought(world, *rows, now_ms=NOW_MS, down=None):
    found = tuple(machine(row, SETUP, MODELS, now_ms) for row in rows)
    events = commit(world, machines(world, Facts(machines=found), now_ms))
    heard = {each.node.id: now_ms for each in found}
    return events + commit(world, nodes(world, Facts(nodes=heard, down={found[0].node.id: down} if down else {}), now_ms))


def test_its_machines_are_ready_at_once_told_twice_are_told_once_and_cards_that_are_gone_get_no_work():
    world = fleet(nodes=0)
    brought(world, SLURM_NODE)
    (row,) = [each for each in world.nodes.values() if each.engine == SLURM]
    assert (row.name, row.state, world.racks[row.rack_id].name) == ("n1", NodeState.READY, "B2")
    assert brought(world, SLURM_NODE) == []
    brought(world, msgspec.structs.replace(SLURM_NODE, gres="gpu:rtx3090:1"))
    assert sorted(gpu.state for gpu in world.gpus.values()) == [GpuState.READY, GpuState.SUSPECT, GpuState.SUSPECT]
    brought(world, SLURM_NODE)
    assert {gpu.state for gpu in world.gpus.values()} == {GpuState.READY}


def test_what_slurm_says_of_a_machine_counts_at_once_and_ends_by_itself():
    world = fleet(nodes=0)
    brought(world, SLURM_NODE)
    key = next(iter(world.nodes))
    brought(world, SLURM_NODE, down=Down(lost=True, why="Slurm: down, no fan"))
    assert (world.nodes[key].state, world.nodes[key].why) == (NodeState.UNKNOWN, "Slurm: down, no fan")
    brought(world, SLURM_NODE)
    assert (world.nodes[key].state, world.nodes[key].why) == (NodeState.READY, "")
    brought(world, SLURM_NODE, down=Down(lost=False, why="Slurm: new fan"))
    brought(world, SLURM_NODE, down=Down(lost=False, why="Slurm: new fan"))
    assert world.nodes[key].state is NodeState.MAINTENANCE
    brought(world, SLURM_NODE)
    assert (world.nodes[key].state, world.nodes[key].why) == (NodeState.READY, "")


def test_gangs_go_where_machines_are_started_as_one_and_half_cores_where_they_can_be_had():
    world = fleet(nodes=2, gpus_each=4)
    for n in range(2):
        world.put(node(n, engine=SLURM))
    for n in (2, 3):
        world.put(node(n, engine="joined"))
    put(world, [job(1, gpus=1, nodes=2, gang=True)], [job(2, gpus=1, cpu=0.5)])
    made = plan(world, NOW_MS)
    assert [{part.node_id for part in grant.parts} for grant in made.grants] == [{"node-0", "node-1"}]
    assert "ask for cpu: 1" in " ".join(map(str, made.refusals["wl-2"]))


def test_an_engine_is_added_once_changed_in_place_and_not_removed_under_work():
    world = fleet(nodes=1)
    assert len(commit(world, decide(world, AddEngine(setup=SETUP, by="op"), NOW_MS))) == 1
    assert commit(world, decide(world, AddEngine(setup=SETUP, by="op"), NOW_MS)) == []
    other = msgspec.structs.replace(SETUP, id="second")
    with pytest.raises(Conflicting, match="one Slurm cluster"):
        commit(world, decide(world, AddEngine(setup=other, by="op"), NOW_MS))
    world.put(node(0, engine=SLURM))
    put(world, running(1, [0], 1))
    with pytest.raises(Conflicting, match="1 allocation there"):
        commit(world, decide(world, RemoveEngine(engine_id="slurm", by="op"), NOW_MS))
    with pytest.raises(Conflicting, match="shared path"):
        commit(world, decide(world, AddEngine(setup=msgspec.structs.replace(SETUP, shared="/other"), by="op"), NOW_MS))
    with pytest.raises(NotFound):
        commit(world, decide(world, RemoveEngine(engine_id="none", by="op"), NOW_MS))


def ledger(n, seconds, gpus_held=2):
    _, held = running(n, [0], gpus_held)
    return msgspec.structs.replace(held, state=AllocationState.ENDED, ended_ms=NOW_MS + int(seconds * 1000))


def account(n, seconds, gpus_held=2, start_s=NOW_MS // 1000):
    return Accounted(job_id=n, name=f"hf-wl-{n}.1", start_s=start_s, end_s=NOW_MS // 1000 + seconds, gpus=gpus_held, state="COMPLETED")


NO_VAL = 0xFFFFFFFE
"""What Slurm's C has for a number that it does not know; 26.05 has written it for the start of a job whose controller was killed."""


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        ([ledger(1, 100.4)], [account(1, 101)], None),
        ([ledger(1, 100)], [account(1, 130)], "longer in Slurm"),
        ([ledger(1, 100)], [account(1, 90)], "longer in the ledger"),
        ([ledger(1, 100)], [account(1, 100, 1)], "not as many GPUs"),
        ([ledger(1, 100)], [], "it was billed, and Slurm has no job of it in this time"),
        ([], [account(1, 100)], "Slurm ran it, and the ledger has no such attempt in this time"),
        ([ledger(1, 100)], [account(1, 101), account(1, 0)], None),
        ([], [account(1, 1)], None),
        ([ledger(1, 100)], [account(1, 101, start_s=NO_VAL)], "Slurm has the job, but not when it ran"),
        ([ledger(1, 100)], [account(1, 101, start_s=NO_VAL), account(1, 101)], None),
        ([], [account(1, 101, start_s=NO_VAL)], None),
    ],
)
def test_the_ledger_and_slurms_accounts_differ_where_they_do(ours, theirs, why):
    found = differences(ours, theirs, NOW_MS - 1000, NOW_MS + 10**9)
    assert [each.why for each in found.differences] == ([why] if why else [])
    assert found.theirs_s >= 0


def test_a_type_that_names_its_form_is_sold_as_that_one():
    names = {kind: sold_as(MODELS, kind).name for kind in ("a100_sxm4_80gb", "a100sxm480gb", "a100_pcie_80gb")}
    assert "SXM" in names["a100_sxm4_80gb"]
    assert names["a100sxm480gb"] == names["a100_sxm4_80gb"]
    assert "PCIe" in names["a100_pcie_80gb"]


def test_a_machine_that_slurm_has_lost_sight_of_costs_work_no_attempt_and_any_other_refusal_does():
    assert reason_of(SlurmRefused("Required node not available (down, drained or reserved)")) is Reason.PREEMPTED
    assert reason_of(SlurmRefused("Requested node configuration is not available")) is Reason.NODE_FAULT
    assert reason_of(SlurmRefused("Invalid account or account/partition combination specified")) is Reason.NODE_FAULT


@pytest.mark.parametrize(
    ("epilog", "namespace"),
    [
        (["Epilog                  = /etc/slurm/epilog.sh"], ["JobContainerType        = job_container/tmpfs"]),  # 22.05
        (["Epilog[0]               = /etc/slurm/epilog.sh"], ["JobContainerType        = job_container/tmpfs"]),  # 24.11
        (["Epilog[0]               = /etc/slurm/epilog.sh"], ["NamespaceType           = namespace/tmpfs"]),  # 26.05
    ],
)
def test_how_a_cluster_is_set_up_is_read_in_each_versions_words(epilog, namespace):
    found = {each.what: each.verdict for each in told(["mark", *(f"conf {line}" for line in epilog + namespace)], "mark", SETUP, "n1")}
    assert (found["hand-over"], found["private /tmp"]) == ("good", "good")
    found = {each.what: each.verdict for each in told(["mark", "conf SelectType = select/cons_tres", "conf Epilog = (null)"], "mark", SETUP, "n1")}
    assert (found["hand-over"], found["private /tmp"]) == ("limited", "limited")


def test_looks_that_take_long_or_fail_are_more_seldom_but_a_controller_is_never_thought_away_for_that():
    assert [pause_s(took, 0) for took in (0.01, 0.1, 0.2)] == [2.0, 2.0, 4.0]
    assert pause_s(0.01, 2) == 4.0
    assert pause_s(3600, 0) == pause_s(0, 9) <= AWAY_MS / 2000
