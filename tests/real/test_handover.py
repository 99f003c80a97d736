"""Between two holders of a card: nobody is left on it, nothing is left in it, clocks are the maker's; else it is fenced. NVML and CUDA are stand-ins."""

import asyncio

import pytest

from headframe.agent import handover
from headframe.model.states import GpuState
from support import Server, fake_cuda, wait_for

CARD = """
-1.count 1
0.uuid GPU-handed-1
0.name NVIDIA GeForce RTX 3090
0.memory_mib 24576
0.capability 8.6
0.bus 00000000:01:00.0
0.temp 50
0.field230 0
0.used_mib 300
"""
JOB = "name: next\nrun: echo here\nresources: {gpu: 1, cpu: 0.1, memory: 10MB, disk: 1MB}"


@pytest.fixture
def card(tmp_path, monkeypatch):
    """The state file of one card, with stand-ins for both of its libraries."""
    library = fake_cuda(tmp_path).parent
    state = tmp_path / "state"
    state.write_text(CARD)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKE_NVML_STATE", str(state))
    monkeypatch.setenv("FAKE_CUDA_LOG", str(tmp_path / "cuda.log"))
    monkeypatch.setenv("FAKE_CUDA_MIB", "48")
    return state


def handed():
    return asyncio.run(handover.clean(["GPU-handed-1"]))


def say(state, line):
    with state.open("a") as file:
        file.write(line + "\n")


def test_all_memory_is_filled_read_back_and_zeroed(card, tmp_path):
    assert handed() == {}
    calls = [line.split() for line in (tmp_path / "cuda.log").read_text().splitlines()]
    assert calls[0][0] == "00000000:01:00.0"
    for what in ("filled", "zeroed"):
        assert sum(int(size) for name, size in calls if name == what) == 48 << 20
    assert calls[-1][0] == "zeroed"


def test_a_card_that_others_are_on_is_fenced_with_the_reason(card, monkeypatch):
    say(card, "0.processes 1")
    assert handed()["GPU-handed-1"].startswith("process 0 (")
    say(card, "0.processes 0")
    say(card, "0.used_mib 9000")
    assert handed() == {"GPU-handed-1": "9000 MiB of its memory are in use by nobody that is known"}


def test_what_miners_set_is_set_back_and_where_that_is_not_allowed_the_card_is_fenced(card):
    say(card, "0.mem_offset 1200")
    assert handed() == {"GPU-handed-1": "its memory clock is +1200 MHz off, and only root may set it back: run `headframe agent helper` as root"}
    say(card, "0.may_set 1")
    assert handed() == {}
    assert card.read_text().rstrip().endswith("0.mem_offset 0")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("FAKE_CUDA_BAD", "1", "its memory gives back other than was written, in 96 of 96 places"),
        ("FAKE_CUDA_FAIL", "999", "its memory could not be overwritten: cuMemAlloc_v2 gave error 999"),
    ],
)
def test_a_card_whose_memory_can_not_be_overwritten_is_fenced(card, monkeypatch, name, value, why):
    monkeypatch.setenv(name, value)
    found = handed()["GPU-handed-1"]
    assert found.split(" in ")[0] == why.split(" in ")[0]


def test_a_driver_that_hangs_fences_its_cards_in_time(card, monkeypatch):
    monkeypatch.setattr(handover, "LIMIT_S", 1.0)
    say(card, "0.sleep_ms 60000")
    assert handed() == {"GPU-handed-1": "its driver did not answer in 1 s"}


@pytest.mark.slow
def test_work_does_not_start_on_what_another_left_and_starts_once_a_person_has_cleaned_up(card, tmp_path):
    say(card, "0.used_mib 9000")
    server = Server(tmp_path).start("--no-check-new", "--watch-interval", "0.2")
    try:
        with server.operator() as operator, server.tenant() as tenant:
            tenant.submit(JOB)
            wait_for(lambda: next(operator.nodes()).gpus[0].state is GpuState.SUSPECT)
            card_now = next(operator.nodes()).gpus[0]
            assert card_now.why.startswith("could not be handed over clean")
            # what is decided is shown at once, and told once it is durable
            wait_for(lambda: any("9000 MiB" in event.text for event in operator.events(limit=500).items))
            assert tenant.workload("next").workload.state == "queued"
            assert not any("here" in line.text for line in tenant.logs("next", attempt=1).lines)
            say(card, "0.used_mib 300")
            from headframe.model.api import EnableBody

            operator.move_gpu("GPU-handed-1", EnableBody(enable=True))
            wait_for(lambda: tenant.workload("next").workload.state == "succeeded")
    finally:
        server.kill()
