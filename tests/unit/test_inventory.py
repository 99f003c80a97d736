"""Inventories that owners have, HiveOS' and spreadsheets: what is understood, what is refused, and that no secret goes further."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.client.inventory import COLUMNS, merged, parse, read
from headframe.model.command import Join, ListRigs
from headframe.model.errors import BadRequest
from headframe.model.fleet import JOINED, Rig, RigCard
from headframe.model.ids import ProjectId, rig_id
from headframe.model.people import Scope
from headframe.server.auth import Auth
from headframe.server.decide import decide
from headframe.server.enrol import welcome
from headframe.server.rigs import RIGS_MAX
from support import NOW_MS, commit, fleet, gpu, hello

DATA = Path(__file__).parent.parent / "data"
SHEET = """Site;Rack;Rig;MAC;GPU_Index;Bus;Model;VRAM;Serial;Wallet;Colour
north;A1;rig-1;AA-BB-CC-DD-EE-01;0;01:00.0;RTX 3090;24GB;S1;0xdeadbeef;red
north;A1;rig-1;AA-BB-CC-DD-EE-01;1;02:00.0;RTX 3090;24;S2;0xdeadbeef;red
north;A2;rig-2;AA-BB-CC-DD-EE-02;0;01:00.0;P106-100;6 GB;S3;;
"""


def test_workers2_of_hiveos_is_understood_and_its_secrets_stay_here():
    found = read(DATA / "workers2.json")
    assert found.kind == "HiveOS workers2"
    assert not found.bad
    first, second = found.rigs
    assert (first.name, first.ip, first.mac, first.memory_mib) == ("rig-07-shed", "192.168.1.17", "aa:bb:cc:00:11:22", 7831)
    assert [(card.bus, card.model, card.memory_mib, card.vbios, card.power_limit_w) for card in first.cards] == [
        ("01:00.0", "GeForce RTX 3060 Ti", 8192, "94.04.25.00.91", 200),
        ("02:00.0", "P104-100", 4032, "86.04.7A.00.1D", 180),
        ("05:00.0", "Radeon RX 570", 4096, "", 0),
    ]
    assert second.cards[0].memory_mib == 12 * 1024
    assert found.unknown == ("Weird Card 9000",)
    assert found.missing[0].startswith("PCIe link and width")
    assert "host memory of 1 of 2 machines" in found.missing
    assert set(found.dropped) == {"farm_hash (secret)", "pass (secret)", "wallet (secret)"}
    assert b"do-not-keep" not in msgspec.json.encode(found)


def test_a_rigs_own_tools_tell_its_cards_and_its_name_and_never_its_password():
    conf = 'HIVE_HOST_URL="http://api.hiveos.farm"\nRIG_ID="77"\nRIG_PASSWD="hunter2"\nFARM_HASH="abc"\nWORKER_NAME="north-3"\nMINER=t-rex\n'
    named = parse(conf, "rig.conf", "rig")
    assert named.rigs[0].name == "north-3"
    assert set(named.dropped) == {"RIG_PASSWD (secret)", "FARM_HASH (secret)"}
    cards = read(DATA / "listjson.json", "north-3")
    assert [card.model for card in cards.rigs[0].cards] == ["GeForce RTX 3090", "GeForce GTX 1080 Ti"]
    both = merged([named, cards])
    assert len(both.rigs) == 1
    assert len(both.rigs[0].cards) == 2
    assert b"hunter2" not in msgspec.json.encode(both)


def test_a_spreadsheet_is_understood_whatever_parts_its_columns():
    found = parse(SHEET, "fleet.csv", "")
    assert [(rig.name, rig.rack, rig.mac, len(rig.cards)) for rig in found.rigs] == [
        ("rig-1", "A1", "aa:bb:cc:dd:ee:01", 2),
        ("rig-2", "A2", "aa:bb:cc:dd:ee:02", 1),
    ]
    assert [card.memory_mib for card in found.rigs[0].cards] == [24 * 1024] * 2
    assert found.dropped == ("wallet (secret)", "colour")
    assert found == parse(SHEET.replace(";", "\t"), "fleet.csv", "")
    assert b"deadbeef" not in msgspec.json.encode(found)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("north;A1;;AA-BB-CC-DD-EE-05;0;01:00.0;RTX 3090;24GB;S9;;", "no rig is named"),
        ("north;A1;rig 9;AA-BB-CC-DD-EE-05;0;01:00.0;RTX 3090;24GB;S9;;", "is no machine's name"),
        ("north;A9;rig-1;AA-BB-CC-DD-EE-01;2;03:00.0;RTX 3090;24GB;S9;;", "rack 'A9' here and 'A1' before"),
        ("north;A1;rig-1;AA-BB-CC-DD-EE-01;1;04:00.0;RTX 3090;24GB;S9;;", "has a card at 04:00.0 already"),
        ("north;A1;rig-1;AA-BB-CC-DD-EE-01;2;01:00.0;RTX 3090;24GB;S9;;", "has a card at 01:00.0 already"),
        ("north;A1;rig-3;nonsense;0;01:00.0;RTX 3090;24GB;S9;;", "is no MAC address"),
        ("north;A1;rig-3;;0;slot one;RTX 3090;24GB;S9;;", "is no place on the bus"),
        ("north;A1;rig-3;;0;01:00.0;;24GB;S9;;", "has no model"),
        ("north;A1;rig-3;;0;01:00.0;RTX 3090;lots;S9;;", "is no size"),
        ("north;A1;rig-3;;first;01:00.0;RTX 3090;24GB;S9;;", "is no number"),
        ("north;A1;rig-3;;0;01:00.0;RTX 3090;24GB;S1;;", "serial S1 is that of rig-1, GPU 0 too"),
        ("north;A1;rig-3;AA-BB-CC-DD-EE-01;0;01:00.0;RTX 3090;24GB;S9;;", "MAC aa:bb:cc:dd:ee:01 is that of rig-1 too"),
        ("north;A1;rig-3", "has 3 fields, the header has 11"),
    ],
)
def test_every_bad_row_is_refused_with_its_reason(line, why):
    found = parse(SHEET + line + "\n", "fleet.csv", "")
    assert any(why in row.why for row in found.bad), found.bad


@pytest.mark.parametrize("text", ["", "hello", "{}", "[]", "[1, 2]", "a,b\n1,2", '{"data": 3}', "\0\0", "[" * 100_000])
def test_what_is_no_inventory_is_said_to_be_none(text):
    with pytest.raises(ValueError, match="no inventory that is known"):
        parse(text, "x", "x")


@given(st.text())
def test_no_text_breaks_the_reader(text):
    for made in (text, "rig,model,vram,mac,bus\n" + text, "RIG_ID=1\n" + text):
        try:
            found = parse(made, "x", "x")
        except ValueError:
            continue
        assert all(row.why for row in found.bad)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(["name", "gpu_info", "details", "mem", "brand"]), inner),
    max_leaves=12,
)


@given(
    st.lists(st.dictionaries(st.sampled_from(["name", "gpu_info", "units_count", "busid", "hardware_info", "ip_addresses", "mem", "details"]), JSON))
)
def test_no_json_of_the_right_names_breaks_the_reader(workers):
    for body in ({"data": workers}, workers):
        try:
            found = parse(msgspec.json.encode(body).decode(), "x", "x")
        except ValueError:
            continue
        for rig in found.rigs:
            assert rig.id == rig_id(rig.name)


def test_all_columns_are_those_that_people_keep():
    assert COLUMNS[:5] == ("site", "container", "rack", "shelf", "rig")


def rig(name="joined-1", **said):
    return Rig(id=rig_id(name), name=name, **said)


def joining(world, number=1, macs=(), cards=()):
    auth = Auth(b"x" * 32)
    token, _ = auth.new_key("t", Scope.JOIN, ProjectId(""), NOW_MS)
    own, _ = auth.new_key("n", Scope.NODE, ProjectId(""), NOW_MS, node_id=hello(number).node.id)
    world.put(token)
    told = msgspec.structs.replace(hello(number), gpus=tuple(cards))
    node, gpus = welcome(told, NOW_MS)
    return commit(world, decide(world, Join(node=node, gpus=gpus, token=token.id, key=own, macs=tuple(macs), rack_id="rack-new"), NOW_MS))


def test_a_machine_that_joins_takes_the_place_that_was_listed_for_it_and_what_differs_is_told():
    world = fleet(nodes=0)
    cards = (
        RigCard(index=0, model="GeForce RTX 3090", memory_mib=24 * 1024, bus="01:00.0", vbios="94.02.42.00.18"),
        RigCard(index=1, model="GeForce RTX 3090", memory_mib=24 * 1024, bus="02:00.0"),
    )
    commit(world, decide(world, ListRigs(rigs=(rig("north-3", rack="A1", mac="aa:bb:cc:dd:ee:01", cards=cards),)), NOW_MS))
    here = [
        gpu(1, 0, "NVIDIA GeForce RTX 3090", pci_bus="00000000:01:00.0", vbios="94.02.42.00.99"),
        gpu(1, 1, "NVIDIA GeForce GTX 1660", 6144, pci_bus="00000000:05:00.0"),
    ]
    events = joining(world, macs=["aa:bb:cc:dd:ee:01"], cards=here)
    node = next(iter(world.nodes.values()))
    assert (node.name, world.racks[node.rack_id].name, node.engine) == ("north-3", "A1", JOINED)
    assert events[-1].text == (
        "north-3: otherwise than listed: VBIOS 94.02.42.00.99 at 0000:01:00, not 94.02.42.00.18; no GeForce RTX 3090 at 0000:02:00; "
        "a NVIDIA GeForce GTX 1660 at 0000:05:00 that was not listed"
    )
    assert world.rigs[rig_id("north-3")].node_id == node.id


def test_importing_twice_changes_nothing_and_bad_rigs_leave_nothing_behind():
    world = fleet(nodes=0)
    command = ListRigs(rigs=(rig("a", rack="A1"), rig("b")))
    assert len(commit(world, decide(world, command, NOW_MS))) == 2
    assert commit(world, decide(world, command, NOW_MS + 1000)) == []
    for bad in (rig("x" * 64), rig("a", ip="\n"), Rig(id="rig.other", name="a"), rig("c", node_id="node-0")):
        with pytest.raises(BadRequest):
            list(decide(world, ListRigs(rigs=(rig("d"), bad)), NOW_MS))
    with pytest.raises(BadRequest):
        list(decide(world, ListRigs(rigs=(rig("e"),) * 2), NOW_MS))
    assert sorted(world.rigs) == ["rig.a", "rig.b"]
    assert RIGS_MAX >= 10_000
