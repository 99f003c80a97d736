"""The floor's cells: every card once, coloured by what is asked, in an order that stays."""

import msgspec
import pytest

from headframe.console.floor import COLOURS, UNKNOWN, floor
from headframe.model.fleet import Grade
from headframe.model.health import Sample
from headframe.model.states import GpuState, NodeState
from support import fleet, node, put, racked, running


def colours(world, by, samples=None):
    shown = floor(world, (samples or {}).get, by)
    return [rig.cells for block in shown.blocks for rig in block.rigs]


@pytest.mark.parametrize("by", COLOURS)
def test_every_card_is_one_cell_and_the_legend_counts_them_all(by):
    shown = floor(fleet(nodes=3, gpus_each=8), lambda _: None, by)
    assert shown.total == sum(key.count for key in shown.legend) == sum(len(rig.cells) for block in shown.blocks for rig in block.rigs) == 24


def test_work_tests_faults_and_silent_machines_are_told_apart():
    world = put(fleet(nodes=2, gpus_each=4), running(1, [0], 1))
    for card, state in (("GPU-0-1", GpuState.TESTING), ("GPU-0-2", GpuState.SUSPECT)):
        world.put(msgspec.structs.replace(world.gpus[card], state=state, why="fell off"))
    world.put(node(1, state=NodeState.UNKNOWN))
    assert colours(world, "state") == [("used", "testing", "bad", "free"), ("away",) * 4]
    assert "GPU 2: fell off" in floor(world, lambda _: None, "state").blocks[0].rigs[0].title


def test_what_was_not_measured_has_no_colour_and_edges_belong_to_the_band_above():
    world = fleet(nodes=1, gpus_each=6)
    heat = {
        f"GPU-0-{n}": Sample(gpu_id="g", at_ms=0, temperature_c=c, power_w=w, power_limit_w=300.0)
        for n, (c, w) in enumerate([(20, 20.0), (50, 30.0), (74, 210.0), (85, 300.0)])
    }
    heat["GPU-0-4"] = Sample(gpu_id="g", at_ms=0, present=False, temperature_c=90)
    assert colours(world, "temperature", heat) == [("0", "1", "2", "4", UNKNOWN, UNKNOWN)]
    assert colours(world, "power", heat) == [("0", "1", "3", "4", UNKNOWN, UNKNOWN)]
    world.put(msgspec.structs.replace(world.gpus["GPU-0-0"], grade=Grade.REJECT))
    assert colours(world, "grade")[0][:2] == ("5", UNKNOWN)


def test_racks_and_machines_come_in_the_order_of_their_numbers():
    shown = floor(racked(nodes=12, per_rack=6, queue=[]), lambda _: None, "state")
    assert [(block.rack, [rig.name for rig in block.rigs][:3]) for block in shown.blocks if block.rack.startswith("rack-")] == [
        ("rack-0", ["rig-0", "rig-1", "rig-2"]),
        ("rack-1", ["rig-6", "rig-7", "rig-8"]),
    ]
