"""AMD's cards, as the real amdsmi tells of them over a stand-in for its library, compiled here: read, watched, checked over and handed on."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from headframe.data import text
from headframe.health.catalogue import catalogue, claim
from headframe.model.fleet import Gpu
from headframe.model.health import Inventory, Sample
from support import compiler, fake_nvml

HERE = Path(__file__).parent.parent
CARDS = """
-1.count 2
*.name AMD Radeon VII
*.gfx 0x906
0.serial 0x4f3a21bc9d8e7700
1.uuid 00ff66af-0000-1000-8000-000000000001
0.bdf 0x0300
1.bdf 0x0800
*.vram_mib 16368
*.vbios 113-D3600200-106
*.driver 6.12.12
*.cap_uw 250000000
*.cap_default_uw 300000000
*.width_max 16
*.speed_max 8000
*.width 1
*.speed 2500
*.replays 4
*.power_w 231
*.gfx_mhz 1801
*.mem_mhz 1000
*.use 99
*.used_mib 200
*.hotspot_c 88
*.vram_c 84
*.critical_c 110
*.energy 1000000
*.fan 127
*.fan_max 255
0.ecc_unc 1
0.ecc_cor 7
0.bad_pages 2
"""
READ = """
import json, sys
import msgspec
from headframe.agent.cards import opened
from headframe.agent.probe import gpus
found = gpus("node-1", 5)
with opened() as cards:
    said = [(card.vendor.inventory(card.number), card.vendor.sample(card.number, "x", 9, slow=True)) for card in cards]
sys.stdout.buffer.write(msgspec.json.encode((found, said)))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """libamd_smi.so: the calls of fake_amdsmi.c, and of all other names that amdsmi looks for, that they are not supported."""
    root = tmp_path_factory.mktemp("amd") / "lib"
    root.mkdir()
    source = (HERE / "fake_amdsmi.c").read_text()
    names = set(re.findall(r"_libraries\['libamd_smi.so'\]\.(\w+)", Path(find_spec("amdsmi").origin).with_name("amdsmi_wrapper.py").read_text()))
    made = set(re.findall(r"^int (amdsmi_\w+)\(", source, re.MULTILINE))
    (root / "all.c").write_text(source + "\n".join(f"int {name}(void) {{ return 2; }}" for name in sorted(names - made)))
    for target, flags in (("libamd_smi.so", [root / "all.c"]), ("libamdhip64.so", ["-DHIP", HERE / "fake_cuda.c"])):
        subprocess.run([compiler(), "-shared", "-fPIC", "-w", "-o", root / target, *flags], check=True)
    return root


@pytest.fixture
def world(library, tmp_path, monkeypatch):
    state = tmp_path / "amd-state"
    state.write_text(CARDS)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    monkeypatch.setenv("FAKE_AMDSMI_STATE", str(state))
    monkeypatch.setenv("FAKE_CUDA_LOG", str(tmp_path / "hip.log"))
    monkeypatch.setenv("FAKE_CUDA_MIB", "48")
    return state


def read():
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return msgspec.json.decode(done.stdout, type=tuple[list[Gpu], list[tuple[Inventory, Sample]]])


def say(state, line):
    with state.open("a") as file:
        file.write(line + "\n")


def test_a_card_says_what_it_is_in_the_words_of_all_cards(world):
    (first, second), ((said, now), (other, _)) = read()
    assert (first.id, first.index, first.model, first.memory_mib, first.compute_capability) == (
        "GPU-4f3a21bc9d8e7700",
        0,
        "AMD Radeon VII",
        16_368,
        "gfx906",
    )
    assert (first.pci_bus, first.pcie_width, first.pcie_gen, first.max_w, first.driver) == ("0000:03:00.0", 1, 3, 250, "6.12.12")
    assert (second.id, second.index, second.pci_bus) == ("AMD-00ff66af-0000-1000-8000-000000000001", 1, "0000:08:00.0")
    assert (said.vendor, said.power_default_w, said.link_width_max, said.ecc, said.ecc_uncorrected, said.retired_pages) == (
        "amd",
        300,
        16,
        True,
        1,
        2,
    )
    assert (other.ecc, other.ecc_uncorrected, other.serial) == (False, None, "")
    claimed = claim(catalogue(text("gpus.csv")), said)
    assert (claimed.model.name, claimed.wrong_chip) == ("Radeon VII", "")
    other_chip = claim(catalogue(text("gpus.csv")), msgspec.structs.replace(said, compute_capability="gfx803"))
    assert other_chip.wrong_chip == "calls itself Radeon VII but its chip is gfx803, not gfx906"
    assert (now.temperature_c, now.memory_temperature_c, now.slowdown_c, now.power_w, now.power_limit_w) == (88, 84, 110, 231, 250)
    assert (now.sm_mhz, now.memory_mhz, now.use, now.memory_used_mib, now.link_gen, now.link_width, now.replays) == (1801, 1000, 0.99, 200, 1, 1, 4)
    assert (now.energy_mj, round(now.fan, 2), now.ecc_corrected) == (15_300, 0.5, 7)


def test_what_a_card_does_not_tell_stays_unknown_and_never_becomes_nought(world):
    world.write_text("-1.count 1\n0.name AMD Radeon RX 580\n0.bdf 0x0300\n0.serial 0x1\n0.width 16\n0.average_w 90\n")
    _, ((said, now),) = read()
    assert (said.memory_mib, said.power_limit_w, said.link_gen_max, said.link_width_max, said.ecc) == (0, None, None, None, False)
    assert (now.present, now.power_w, now.temperature_c, now.sm_mhz, now.replays, now.link_gen, now.energy_mj) == (
        True,
        90,
        None,
        None,
        None,
        None,
        None,
    )


def test_a_card_that_is_lost_is_not_present_and_the_other_is(world):
    say(world, "1.lost 1")
    done = subprocess.run([sys.executable, "-c", READ.replace("card.vendor.inventory(card.number)", "0")], capture_output=True)
    (only,), said = msgspec.json.decode(done.stdout, type=tuple[list[Gpu], list[tuple[int, Sample]]])
    assert only.index == 0
    assert [sample.present for _, sample in said] == [True, False]


def test_cards_of_two_makers_are_counted_on_in_one_machine(world, tmp_path, monkeypatch, library):
    nvml = fake_nvml(tmp_path).parent
    (tmp_path / "nvml-state").write_text("-1.count 1\n0.uuid GPU-green\n0.name NVIDIA GeForce RTX 3090\n0.memory_mib 24576\n0.bus 00000000:01:00.0\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{nvml}:{library}")
    monkeypatch.setenv("FAKE_NVML_STATE", str(tmp_path / "nvml-state"))
    found, _ = read()
    assert [(gpu.index, gpu.id) for gpu in found] == [(0, "GPU-green"), (1, "GPU-4f3a21bc9d8e7700"), (2, "AMD-00ff66af-0000-1000-8000-000000000001")]


@pytest.mark.parametrize("line", ["-1.init 51", "-1.count 0"])
def test_a_machine_whose_driver_has_no_card_has_none_and_says_nothing_else(world, line):
    say(world, line)
    found, said = read()
    assert (found, said) == ([], [])


def test_without_the_library_nothing_is_imported_and_nothing_printed(monkeypatch):
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    code = "import sys\nfrom headframe.agent.cards import opened\nwith opened() as cards: print(len(cards), 'amdsmi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "0 False\n"


def handed():
    done = subprocess.run([sys.executable, "-m", "headframe.agent.handover", "GPU-4f3a21bc9d8e7700"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout).get("GPU-4f3a21bc9d8e7700", "")


def test_it_is_handed_on_with_its_memory_overwritten_through_hip(world, tmp_path):
    assert handed() == ""
    calls = [line.split() for line in (tmp_path / "hip.log").read_text().splitlines()]
    assert calls[0][0] == "0000:03:00.0"
    assert sum(int(size) for name, size in calls if name == "zeroed") == 48 << 20


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0.pid 1", "process 1 ("),
        ("0.used_mib 9000", "9000 MiB of its memory are in use by nobody that is known"),
        ("0.refuses 1", "its driver says:"),
        ("0.lost 1", "no driver answers for it"),
    ],
)
def test_one_that_others_are_on_or_that_can_not_be_asked_is_fenced(world, monkeypatch, line, why):
    say(world, line)
    code = "import sys; from headframe.agent import handover as h; h.WAIT_S = 0.1; print(h.handed(['GPU-4f3a21bc9d8e7700'])['GPU-4f3a21bc9d8e7700'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith(why), done.stderr


def test_its_readings_come_through_the_watchs_child_as_all_others(world, tmp_path):
    watch = [sys.executable, "-m", "headframe.agent.watch", "0.05", str(tmp_path / "none")]
    with subprocess.Popen(watch, stdout=subprocess.PIPE) as child:
        first = json.loads(child.stdout.readline())
        say(world, "0.lost 1")
        while json.loads(child.stdout.readline())["samples"][0].get("present", True):
            pass
        child.kill()
    assert [sample["gpu_id"] for sample in first["samples"]] == ["GPU-4f3a21bc9d8e7700", "AMD-00ff66af-0000-1000-8000-000000000001"]
