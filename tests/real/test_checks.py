"""The checks, whole: real parent, real child with PyTorch on a processor in each card's place, and NVML's stand-in for telemetry.

No rate here is a card's. What is shown is that every step is made, that wrong results are seen, and that what breaks costs only itself.
"""

import asyncio
import json
import os
import subprocess
import sys

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headframe.agent import dcgm, host, steps
from headframe.agent.checks import merged
from headframe.model.fleet import Grade
from headframe.model.health import Depth, Measured, NodeCheck
from support import fake_nvml

TWO_CARDS = """
-1.count 2
*.name NVIDIA GeForce RTX 3090
0.uuid GPU-a
1.uuid GPU-b
*.memory_mib 24576
*.capability 8.6
0.bus 00000000:01:00.0
1.bus 00000000:02:00.0
*.gen_max 4
*.width_max 16
*.width 1
*.gen 1
*.temp 71
*.use 99
*.reasons 32
*.replays 7
"""
PARENT = """
import asyncio, contextlib, os, signal, sys
from pathlib import Path
import msgspec, psutil
from headframe.agent import checks
from headframe.model.health import Depth
def signalled(number):
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
            if "headframe.agent.steps" in child.cmdline():
                child.send_signal(number)
checks.SAMPLE_S, checks.SILENT_S[Depth.QUICK] = 0.1, float(os.environ.get("SILENT_S", "90"))
done = asyncio.run(checks.check(Depth.QUICK, Path(sys.argv[1]), lambda step: told(step), ("--device", "cpu", "--hurry", "40"), Path(sys.argv[1]) / "kmsg"))
from headframe.data import text
from headframe.health.catalogue import catalogue
from headframe.health.grade import examined
host, cards = done
sys.stdout.buffer.write(msgspec.json.encode(examined(catalogue(text('gpus.csv')), host, cards, lambda each: None)))
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return fake_nvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def checked(tmp_path, library):
    """Check a machine of two cards, with `told` as its listener."""

    def run(told, **more):
        (tmp_path / "state").write_text(TWO_CARDS)
        (tmp_path / "kmsg").write_text("")
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_STATE": str(tmp_path / "state"), **more}
        done = subprocess.run([sys.executable, "-c", told + PARENT, str(tmp_path)], capture_output=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        return msgspec.json.decode(done.stdout, type=NodeCheck)

    return run


def test_every_step_has_its_result_and_telemetry_tells_of_the_link_and_the_heat(checked):
    done = checked("told = lambda step: None\n")
    assert [(each.facts.gpu_id, each.model, each.facts.notes) for each in done.cards] == [
        ("GPU-a", "GeForce RTX 3090", ()),
        ("GPU-b", "GeForce RTX 3090", ()),
    ]
    for each in done.cards:
        found = each.facts.measured
        assert {"float32", "bfloat16", "int8"} <= set(found.tflops)
        assert min(found.h2d_gb_s, found.d2h_gb_s, found.memory_gb_s, *found.tflops.values()) > 0
        assert (found.pattern_errors, found.golden_errors, found.repeat_errors, found.readback_errors) == (0, 0, 0, 0)
        assert (found.link_gen, found.link_width, found.temperature_c, found.software_thermal, found.replays, found.lost) == (1, 1, 71, 1.0, 0, False)
        assert "a link of 1 lanes under load" in "\n".join(map(str, each.grading.findings))
    assert done.facts.host.threads == len(os.sched_getaffinity(0))
    assert done.facts.host.cpu_errors == 0
    assert done.facts.torch


def test_a_card_that_is_lost_meanwhile_is_rejected_and_the_other_is_not(checked):
    done = checked("""
def told(step):
    if step.card == 1 and step.name == "soak" and step.begins:
        open(os.environ["FAKE_NVML_STATE"], "a").write("1.lost 1\\n")
        import time; time.sleep(1)
""")
    first, second = done.cards
    assert not first.facts.measured.lost
    assert second.grading.grade is Grade.REJECT
    assert "fell off the bus under test" in str(second.grading.findings[0])


def test_a_child_that_is_killed_leaves_what_it_had_told_and_passes_nothing(checked):
    done = checked("""
def told(step):
    if step.name == "memory patterns" and step.begins:
        signalled(signal.SIGKILL)
""")
    assert all(each.facts.measured.h2d_gb_s and each.facts.measured.soak_loss is None for each in done.cards)
    assert any("the test ended in the middle" in note for each in done.cards for note in each.facts.notes)
    assert {each.grading.grade for each in done.cards} == {Grade.UNMEASURED}


def test_a_child_that_hangs_is_ended_and_says_where(checked):
    done = checked(
        """
def told(step):
    if step.name == "copies" and step.begins:
        signalled(signal.SIGSTOP)
""",
        SILENT_S="8",
    )
    assert "copies: did not end in time" in done.cards[0].facts.notes
    assert done.cards[0].grading.grade is Grade.UNMEASURED
    assert done.facts.took_s < 60


def bench():
    return steps.Bench(0, torch.device("cpu"), {"product": 0.01, "pattern": 0.01, "soak": 0.01})


def test_one_flipped_bit_in_memory_is_seen(monkeypatch):
    real = torch.bitwise_xor

    def flipping(a, b, out):
        real(a, b, out=out)
        out[12345] ^= 1 << 17

    monkeypatch.setattr(torch, "bitwise_xor", flipping)
    assert steps.pattern(bench()).pattern_errors > 0


@pytest.mark.parametrize("wrong", [float("nan"), 1e9])
def test_a_product_that_is_wrong_is_seen_also_where_it_is_no_number(monkeypatch, wrong):
    real = torch.Tensor.__matmul__

    def lying(a, b):
        out = real(a, b)
        if out.dtype is torch.bfloat16:
            out[3, 5] = wrong
        return out

    monkeypatch.setattr(torch.Tensor, "__matmul__", lying)
    assert steps.golden(bench()).golden_errors == 1


def test_a_product_that_differs_when_repeated_is_seen_in_a_single_bit(monkeypatch):
    real, count = torch.Tensor.__matmul__, iter(range(1 << 30))

    def flipping(a, b):
        out = real(a, b)
        if out.dtype is torch.float32 and next(count) == 3:
            out.view(torch.int32)[0, 0] ^= 1
        return out

    monkeypatch.setattr(torch.Tensor, "__matmul__", flipping)
    found = steps.golden(bench())
    assert (found.golden_errors, found.repeat_errors) == (0, 1)


def test_a_card_without_eight_bit_products_is_measured_without_them_and_one_that_breaks_in_them_is_not_passed(monkeypatch):
    def lacks(*_, **__):
        raise RuntimeError("torch._int_mm is not available on this card")

    def breaks(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "_int_mm", lacks)
    assert set(steps.products(bench()).tflops) >= {"float32", "bfloat16"}
    assert "int8" not in steps.products(bench()).tflops
    monkeypatch.setattr(torch, "_int_mm", breaks)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        steps.products(bench())


DCGM_3 = """{"DCGM GPU Diagnostic": {"test_categories": [
 {"category": "Deployment", "tests": [{"name": "Denylist", "results": [{"status": "Pass"}]}]},
 {"category": "Integration", "tests": [{"name": "PCIe", "results": [{"gpu_ids": "0,1", "status": "Pass"}, {"gpu_ids": "2", "status": "Fail",
   "warnings": "Detected 96 PCIe replays per minute"}]}]}]}}"""
DCGM_4 = """some words before it
{"DCGM Diagnostic": {"test_categories": [{"category": "Hardware", "tests": [{"name": "memory", "results": [
 {"entity_group": "GPU", "entity_group_id": 1, "entity_id": 1, "status": "Fail", "warnings": [{"warning": "Memory mismatch", "error_id": 41}]},
 {"entity_group": "GPU", "entity_group_id": 1, "entity_id": 0, "status": "Pass", "warnings": []}], "test_summary": {"status": "Fail"}}]}]}}"""


def test_what_nvidias_own_diagnostic_says_is_understood_in_both_of_its_forms():
    assert [str(each) for each in dcgm.read(DCGM_3)] == [
        "Denylist: pass", "PCIe on GPU 0: pass", "PCIe on GPU 1: pass", "PCIe on GPU 2: fail, Detected 96 PCIe replays per minute",
    ]  # fmt: skip
    assert [str(each) for each in dcgm.read(DCGM_4)] == ["memory on GPU 1: fail, Memory mismatch", "memory on GPU 0: pass"]


@given(
    st.one_of(
        st.text(),
        st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.text()), lambda inner: st.one_of(st.lists(inner), st.dictionaries(
            st.sampled_from(["DCGM Diagnostic", "test_categories", "tests", "results", "entity_group", "entity_id", "gpu_ids", "warnings", "name", "status"]), inner,
        )), max_leaves=20).map(json.dumps),
    )
)  # fmt: skip
def test_whatever_a_vendors_tool_prints_is_read_or_left_out(text):
    assert all(each.status is not None for each in dcgm.read(text))


def stub(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('echo "$*" >>"$0.asked"; cat "$0.json"', ["memory on GPU 1: fail, Memory mismatch", "memory on GPU 0: pass"]),
        ("echo nonsense; exit 3", ["diag -r 3 -j: not understood, it ended with 3"]),
        ("exec sleep 60", ["diag -r 3 -j: not ended, it did not end in 0.5 s"]),
    ],
)
def test_the_diagnostic_is_run_where_it_is_installed_and_never_waited_for_without_end(tmp_path, monkeypatch, script, expected):
    stub(tmp_path, "dcgmi", script)
    (tmp_path / "dcgmi.json").write_text(DCGM_4)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setitem(dcgm.LIMIT_S, Depth.FULL, 0.5)
    assert [str(each) for each in asyncio.run(dcgm.diagnosed(Depth.FULL))] == expected


def test_a_drive_that_says_that_it_fails_is_counted_and_one_that_can_not_be_asked_is_not_known(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for said, verdict in (
        ('{"smart_status":{"passed":false}}', False),
        ('{"smart_status":{"passed":true}}', True),
        ("{}", None),
        ("Permission denied", None),
    ):
        stub(tmp_path, "smartctl", f"/bin/echo '{said}'")
        assert host._passed(str(tmp_path / "smartctl"), "/dev/sda") is verdict


def test_results_add_up_step_by_step_and_what_has_none_stays_unknown():
    first = merged(Measured(), Measured(repeat_errors=1, golden_errors=0))
    both = merged(first, Measured(repeat_errors=2, soak_loss=0.0, lost=True))
    assert (both.repeat_errors, both.golden_errors, both.soak_loss, both.lost, both.h2d_gb_s) == (3, 0, 0.0, True, None)
    assert merged(both, Measured()).lost
