"""Cards that go wrong under work: a server with two cards, as far as its NVML (a stand-in) and its kernel's log (a pipe) tell."""

import json
import os
import urllib.request

import pytest

from headframe.model.api import CheckBody, EnableBody
from headframe.model.fleet import Grade
from headframe.model.states import GpuState, Reason
from support import Server, fake_nvml, wait_for

TWO_CARDS = """
-1.count 2
*.name NVIDIA GeForce RTX 3090
0.uuid GPU-watched-1
1.uuid GPU-watched-2
*.memory_mib 24576
*.capability 8.6
0.bus 00000000:01:00.0
1.bus 00000000:02:00.0
*.width 16
*.limit_mw 350000
*.temp 61
*.slowdown 95
*.power_mw 301000
*.use 97
*.sm_mhz 1695
*.reasons 0
*.used_mib 400
*.field82 -1003
*.field230 0
"""
JOB = "name: long\nrun: sleep 600\nresources: {gpu: 1, cpu: 0.1, memory: 10MB, disk: 1MB}"
pytestmark = pytest.mark.slow


class Machine:
    """A server whose cards and kernel the test has in its hand."""

    def __init__(self, root, **environment):
        self.state, self.kernel = root / "state", root / "kmsg"
        self.state.write_text(TWO_CARDS)
        os.mkfifo(self.kernel)
        self.server = Server(root)
        library = fake_nvml(root)
        self.server.start(
            "--no-check-new",
            "--watch-interval",
            "0.1",
            "--kernel-log",
            str(self.kernel),
            LD_LIBRARY_PATH=str(library.parent),
            FAKE_NVML_STATE=str(self.state),
            **environment,
        )
        self.writer = os.open(self.kernel, os.O_RDWR)

    def now(self, line):
        with self.state.open("a") as file:
            file.write(line + "\n")

    def says(self, line):
        os.write(self.writer, line.encode() + b"\n")

    def card(self, number):
        with self.server.operator() as operator:
            return next(operator.nodes()).gpus[number]


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    yield made
    made.server.kill()
    os.close(made.writer)


def running_on(tenant):
    shown = tenant.workload("long")
    return max(shown.allocations, key=lambda each: each.attempt).parts[0].shares[0].gpu_id if shown.workload.state == "running" else ""


def test_a_card_that_falls_off_the_bus_loses_its_work_to_the_other_and_its_tenant_pays_nothing_for_it(machine):
    with machine.server.tenant() as tenant:
        tenant.submit(JOB)
        first = wait_for(lambda: running_on(tenant))
        number = int(first[-1]) - 1
        machine.now(f"{number}.lost 1")
        suspect = wait_for(lambda: (card := machine.card(number)).state is GpuState.SUSPECT and card)
        assert suspect.why == "is not there any more: work on it is lost; reseat it, look at riser, cable and supply"
        wait_for(lambda: running_on(tenant) not in {"", first})
        attempts = tenant.workload("long").allocations
        assert sorted((each.attempt, each.reason) for each in attempts if each.reason) == [(1, Reason.NODE_FAULT)]
        wait_for(
            lambda: (
                tenant.workload("long").workload.credited_nano
                == next(each.cost_nano for each in tenant.workload("long").allocations if each.attempt == 1)
            )
        )
        # The second card meets an Xid: with one of two taken already, a person has to look before this one goes too.
        machine.says("6,9,9,-;NVRM: Xid (PCI:0000:0%d:00): 79, pid=1, GPU has fallen off the bus." % (2 - number))
        held = wait_for(lambda: (card := machine.card(1 - number)).concern and card)
        assert held.state is GpuState.READY
        assert "Xid 79" in held.concern
        assert "left in service: 1 of 2 cards were taken already, a person has to look" in held.concern
        # What is taken out stays out until a person says otherwise, whatever the card says.
        machine.now(f"{number}.lost 0")
        with machine.server.operator() as operator:
            wait_for(lambda: next(item.sample.present for item in operator.readings(next(operator.nodes()).node.name).items if item.gpu_id == first))
            assert machine.card(number).state is GpuState.SUSPECT
            operator.move_gpu(first, EnableBody(enable=True))
        assert machine.card(number).state is GpuState.READY


def test_what_cards_say_is_shown_to_people_and_to_prometheus_under_the_names_of_dcgm(machine):
    with machine.server.operator() as operator:
        name = next(operator.nodes()).node.name
        told = wait_for(lambda: (items := operator.readings(name).items) and all(item.sample for item in items) and items)
    assert [(item.gpu_id, item.sample.temperature_c, item.sample.power_w, item.sample.use) for item in told] == [
        ("GPU-watched-1", 61, 301.0, 0.97),
        ("GPU-watched-2", 61, 301.0, 0.97),
    ]
    key = json.loads((machine.server.root / "config.json").read_text())["key"]
    request = urllib.request.Request(f"{machine.server.url}/metrics", headers={"Authorization": f"Bearer {key}"})
    text = urllib.request.urlopen(request, timeout=10).read().decode()
    labels = f'{{Hostname="{name}",UUID="GPU-watched-1",device="nvidia0",gpu="0",modelName="NVIDIA GeForce RTX 3090"}}'
    assert f"DCGM_FI_DEV_GPU_TEMP{labels} 61.0" in text
    assert f"DCGM_FI_DEV_FB_USED{labels} 400.0" in text
    assert "DCGM_FI_DEV_MEMORY_TEMP{" not in text  # GeForce does not say, and 0 would be a lie
    assert 'headframe_gpus{grade="unmeasured",model="NVIDIA GeForce RTX 3090",state="ready"} 2.0' in text


def test_hot_memory_is_a_concern_that_is_told_once_and_over_once(machine):
    machine.now("0.field82 98")
    warm = wait_for(lambda: (card := machine.card(0)).concern and card)
    assert (warm.state, warm.concern) == (GpuState.READY, "memory at 98 °C (needs < 95 °C): GDDR6X is rated to 95 °C")
    machine.now("0.field82 99")
    with machine.server.operator() as operator:
        wait_for(lambda: operator.readings(next(operator.nodes()).node.name).items[0].sample.memory_temperature_c == 99)
        told = [event for event in operator.events(limit=500).items if "memory at" in event.text]
    assert len(told) == 1


def test_a_driver_that_hangs_does_not_hold_the_server(machine):
    with machine.server.operator() as operator:
        wait_for(lambda: all(item.sample for item in operator.readings(next(operator.nodes()).node.name).items))
        machine.now("*.sleep_ms 60000")
        assert operator.health().status == "ok"
        assert next(operator.nodes()).node.state == "ready"


def test_a_nodes_cards_are_checked_as_work_is_run_and_graded_with_reasons(tmp_path):
    machine = Machine(tmp_path, CHECK_ON_CPU="1")  # a processor in each card's place: its rates are no card's
    try:
        with machine.server.operator() as operator:
            node = wait_for(lambda: next((view for view in operator.nodes() if view.node.state == "ready"), None)).node.name
            assert {card.state for card in operator.check_node(node, CheckBody()).gpus} == {GpuState.TESTING}
            wait_for(lambda: all(card.state is GpuState.READY for card in operator.node(node).gpus), limit_s=90)
            cards = operator.node(node).gpus
        for card in cards:
            assert card.grade is Grade.MINING_ONLY
            assert card.graded.model == "GeForce RTX 3090"
            assert "TFLOP/s at best" in "\n".join(card.graded.reasons)
            assert card.graded.memory_gb_s > 0
    finally:
        machine.server.kill()
        os.close(machine.writer)
