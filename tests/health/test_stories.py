"""Stories of machines: what NVML says (its stand-in, read by the real probe) and what the checks measured, to grade, reason and advice.

No figure here was measured on a card: rates are the catalogue's, scaled as a healthy card's would be, then broken as the story says.
"""

import os
import subprocess
import sys

import msgspec
import pytest

from headframe.data import text
from headframe.health.catalogue import catalogue, claim
from headframe.health.grade import LANE_GB_S, LINK_SHARE, Case, grade
from headframe.model.fleet import Grade
from headframe.model.health import Host, Inventory, Measured
from support import fake_nvml

MODELS = catalogue(text("gpus.csv"))
GOOD_HOST = Host(memory_mib=1 << 20, threads=64, fabric_gbit_s=400, pair_passed=True)
CHILD = """
import json, os, sys
import msgspec, pynvml
from headframe.agent.nvml import opened
out = []
for state in json.load(sys.stdin):
    open(os.environ["FAKE_NVML_STATE"], "w").write(state)
    with opened() as vendor:
        out.append(vendor.inventory(0))
assert pynvml.nvmlSystemGetDriverVersion.__module__ == "pynvml"
sys.stdout.buffer.write(msgspec.json.encode(out))
"""


class Story(msgspec.Struct, kw_only=True):
    """`card` is what NVML answers, `link` what it trains at under load, `broken` what the checks found otherwise than well."""

    name: str
    model: str
    memory_gib: float
    capability: str
    link: tuple[int, int] = (4, 16)
    slot: tuple[int, int] = (0, 0)
    card: dict[str, str] = {}
    broken: dict[str, object] = {}
    host: Host = Host(memory_mib=65_536, threads=16)
    peers: float | None = None
    old_driver: bool = False
    grade: Grade
    reasons: tuple[str, ...] = ()
    advice: str = ""


ECC = {"ecc": "1", "ecc_unc": "0", "ecc_cor": "0", "remap_pending": "0", "retired": "0", "retired_pending": "0", "sram": "0"}
G = Grade
R3090 = dict(model="NVIDIA GeForce RTX 3090", memory_gib=24, capability="8.6")
H100 = dict(model="NVIDIA H100 80GB HBM3", memory_gib=79.6, capability="9.0", link=(5, 16), card=ECC, host=GOOD_HOST)
A100 = dict(model="NVIDIA A100-SXM4-80GB", memory_gib=79.2, capability="8.0", link=(4, 16), card=ECC, host=GOOD_HOST)
X1 = (1, 1)

STORIES = [
    Story(name="a 12-card rig of 3060 Ti on x1 risers", model="NVIDIA GeForce RTX 3060 Ti", memory_gib=8, capability="8.6", link=X1,
          grade=G.BATCH, reasons=("0.21 GB/s from the host (needs ≥ 2.5 GB/s)",), advice="on a gen4 x4 slot this card grades `inference`"),
    Story(name="the same behind a gen3 x1 slot", model="NVIDIA GeForce RTX 3060 Ti", memory_gib=8, capability="8.6", link=(3, 1),
          grade=G.BATCH, reasons=("0.84 GB/s",), advice="x4 slot"),
    Story(name="a 3090 on a proper slot", **R3090, grade=G.TRAIN, reasons=("no ECC",)),
    Story(name="a 3090 on a gen3 x8 slot", **R3090, link=(3, 8), slot=(3, 16), grade=G.TRAIN, reasons=("no ECC", "6.70 GB/s from the host (needs ≥ 10 GB/s)")),
    Story(name="a 3090 on a gen3 x4 slot", **R3090, link=(3, 4), slot=(3, 4), grade=G.INFERENCE, reasons=("3.35 GB/s",), advice="in a wider or faster slot"),
    Story(name="a 3090 on a riser", **R3090, link=X1, grade=G.BATCH, advice="on a gen4 x8 slot this card grades `train`"),
    Story(name="a hot 3090: cool core, slow memory", **R3090, broken={"software_thermal": 0.6, "temperature_c": 62, "memory_gb_s": 600.0},
          grade=G.INFERENCE, reasons=("held back by heat in 60% of samples", "64% of the model's memory bandwidth"), advice="cooled"),
    Story(name="a 3090 whose pads are gone", **R3090, broken={"memory_temperature_c": 108, "hardware_thermal": 0.3}, grade=G.BATCH,
          reasons=("memory at 108 °C", "throttled by heat in 30%"), advice="cooled (dust, paste, memory pads, fans) this card grades `train`"),
    Story(name="a 3090 on a weak supply", **R3090, broken={"power_brake": 0.05}, grade=G.BATCH, reasons=("braked by its power supply",), advice="supply and cables"),
    Story(name="a 3090 that falls off the bus in the soak", **R3090, broken={"lost": True, "soak_loss": None, "xids": (79,)}, grade=G.REJECT,
          reasons=("fell off the bus under test",)),
    Story(name="a 3090 that a miner left overclocked", **R3090, card={"mem_offset": "1200"}, grade=G.INFERENCE,
          reasons=("memory runs 1200 MHz over its clock",), advice="stock clocks"),
    Story(name="a 3090 with a power cap runs slower, and is compared with its equals at the same cap", **R3090,
          broken={"tflops": {"bfloat16": 52.0}}, peers=53.0, grade=G.TRAIN, reasons=("no ECC",)),
    Story(name="a 3090 with one bad memory cell", **R3090, broken={"pattern_errors": 1}, grade=G.MINING_ONLY, reasons=("1 memory cells read back wrong",)),
    Story(name="a 3090 whose products differ", **R3090, broken={"repeat_errors": 2}, grade=G.REJECT, reasons=("2 products differed when repeated",)),
    Story(name="a 3090 whose soak never ended", **R3090, broken={"soak_loss": None}, grade=G.UNMEASURED, reasons=("no result of the soak",), advice="has to be measured"),
    Story(name="a 3090 whose test wedged", **R3090, broken={"hung": True, "tflops": None}, grade=G.REJECT, reasons=("could not be ended",)),
    Story(name="a CMP 170HX", model="NVIDIA CMP 170HX", memory_gib=8, capability="8.0", link=(1, 4), slot=(1, 4),
          broken={"tflops": {"float32": 0.39, "float16": 42.0}}, grade=G.BATCH, reasons=("0.85 GB/s from the host",)),
    Story(name="a CMP 90HX", model="NVIDIA CMP 90HX", memory_gib=10, capability="8.6", link=(1, 4), slot=(1, 4),
          broken={"tflops": {"float32": 2.7, "float16": 2.9}}, grade=G.BATCH, reasons=("2.90 TFLOP/s at best",)),
    Story(name="a CMP 100-210", model="NVIDIA CMP 100-210", memory_gib=16, capability="7.0", link=(1, 1), slot=(1, 1),
          broken={"tflops": {"float32": 0.6, "float16": 0.4}}, grade=G.MINING_ONLY, reasons=("0.60 TFLOP/s at best",)),
    Story(name="a P104-100", model="P104-100", memory_gib=4, capability="6.1", link=(1, 4), slot=(1, 4), grade=G.MINING_ONLY, reasons=("4.0 GiB of memory",)),
    Story(name="a P104-100 with a VBIOS that unlocks 8 GiB", model="P104-100", memory_gib=8, capability="6.1", link=(1, 4), slot=(1, 4),
          grade=G.BATCH, reasons=("calls itself P104-100 but has 8.0 GiB, not 4 GiB",)),
    Story(name="a counterfeit 1060 sold as 1660", model="NVIDIA GeForce GTX 1660", memory_gib=6, capability="6.1", link=(3, 16),
          grade=G.MINING_ONLY, reasons=("calls itself GeForce GTX 1660 but its chip has compute capability 6.1, not 7.5",)),
    Story(name="a 1060 3GB that claims to hold 6", model="NVIDIA GeForce GTX 1060 3GB", memory_gib=6, capability="6.1", link=(3, 16),
          grade=G.BATCH, reasons=("has 6.0 GiB, not 3 GiB",)),
    Story(name="a 1060 6GB, old and honest", model="NVIDIA GeForce GTX 1060 6GB", memory_gib=6, capability="6.1", link=(3, 16),
          broken={"tflops": {"float32": 3.9}}, grade=G.BATCH, reasons=("3.90 TFLOP/s at best",)),
    Story(name="a 1080 Ti", model="NVIDIA GeForce GTX 1080 Ti", memory_gib=11, capability="6.1", link=(3, 16), grade=G.INFERENCE, reasons=("11.0 GiB",)),
    Story(name="an LHR card is like any other", model="NVIDIA GeForce RTX 3060", memory_gib=12, capability="8.6", grade=G.INFERENCE, reasons=("12.0 GiB",)),
    Story(name="a 4 GB RX 570", model="Radeon RX 570 Series", memory_gib=4, capability="", link=(3, 1), card={"vendor": "amd"},
          broken={"arch_supported": False, "tflops": None, "memory_gb_s": None}, grade=G.MINING_ONLY, reasons=("4.0 GiB", "PyTorch has no code")),
    Story(name="an MI300X is measured by what AMD's libraries reach", model="AMD Instinct MI300X", memory_gib=192, capability="", link=(5, 16),
          card={"vendor": "amd", **ECC}, broken={"tflops": {"bfloat16": 670.0}}, host=GOOD_HOST, grade=G.TRAIN_MULTI),
    Story(name="a Tesla T4", model="Tesla T4", memory_gib=15.0, capability="7.5", link=(3, 16), card=ECC, grade=G.INFERENCE, reasons=("15.0 GiB",)),
    Story(name="an H100 in a good machine", **H100, grade=G.TRAIN_MULTI),
    Story(name="an H100 with a remap failure", **{**H100, "card": {**ECC, "remap_failed": "1"}}, grade=G.REJECT, reasons=("a failed row could not be remapped",)),
    Story(name="an H100 whose SRAM is over the threshold", **{**H100, "card": {**ECC, "sram": "1"}}, grade=G.REJECT, reasons=("SRAM",)),
    Story(name="an H100 with a row that waits for a reset", **{**H100, "card": {**ECC, "remap_pending": "1"}}, grade=G.INFERENCE,
          reasons=("waits for a reset to be remapped",), advice="after a reset"),
    Story(name="an H100 on Ethernet", **{**H100, "host": Host(memory_mib=1 << 20, threads=64, fabric_gbit_s=25)}, grade=G.TRAIN,
          reasons=("25 Gb/s between machines",), advice="on a network of 100 Gb/s"),
    Story(name="an H100 that is 7 % slower than its equals", **H100, broken={"tflops": {"bfloat16": 700.0}}, peers=753.0, grade=G.TRAIN, reasons=("93% of the rate",)),
    Story(name="an H100 that is 12 % slower than its equals", **H100, broken={"tflops": {"bfloat16": 660.0}}, peers=753.0, grade=G.INFERENCE, reasons=("88% of the rate",)),
    Story(name="an H100 at half its rate, with no equals to compare", **H100, broken={"tflops": {"bfloat16": 480.0}}, grade=G.INFERENCE, reasons=("49% of the model's nominal rate",)),
    Story(name="an H100 with an uncorrected error in the soak", **H100, broken={"ecc_new_uncorrected": 1}, grade=G.REJECT, reasons=("1 uncorrected ECC",)),
    Story(name="an H100 with wrong cells in spite of ECC", **H100, broken={"pattern_errors": 3}, grade=G.REJECT, reasons=("in spite of ECC",)),
    Story(name="an H100 whose peer copies differ", **H100, broken={"peer_errors": 5}, grade=G.REJECT, reasons=("copy between cards",)),
    Story(name="an H100 that met Xid 95 under test", **H100, broken={"xids": (95,)}, grade=G.REJECT, reasons=("1 fatal Xids",)),
    Story(name="an H100 that met a program's Xid 13 under test is not condemned", **H100, broken={"xids": (13,)}, grade=G.TRAIN_MULTI),
    Story(name="an A100 that lost a fifth in the soak", **A100, broken={"soak_loss": 0.2}, grade=G.INFERENCE, reasons=("lost 20% of its speed",)),
    Story(name="an A100 with 12 retired pages", **{**A100, "card": {**ECC, "retired": "12"}}, grade=G.INFERENCE, reasons=("12 memory pages retired",)),
    Story(name="a V100 with a page that waits for retirement", model="Tesla V100-SXM2-32GB", memory_gib=32, capability="7.0", link=(3, 16),
          card={**ECC, "retired_pending": "1", "remap_pending": "-1003"}, host=GOOD_HOST, grade=G.INFERENCE, reasons=("waits for a reset to be retired",), advice="after a reset"),
    Story(name="a V100 whose table of retired pages is full", model="Tesla V100-SXM2-32GB", memory_gib=32, capability="7.0", link=(3, 16),
          card={**ECC, "retired": "64"}, host=GOOD_HOST, grade=G.REJECT, reasons=("64 memory pages retired (needs < 63)",)),
    Story(name="a driver without the newer calls", **R3090, old_driver=True, grade=G.TRAIN, reasons=("no ECC",)),
    Story(name="a model that nobody has heard of", model="NVIDIA RTX 7090 Super", memory_gib=48, capability="13.0", broken={"tflops": {"bfloat16": 300.0}, "memory_gb_s": 2000.0},
          grade=G.TRAIN, reasons=("no ECC",)),
    Story(name="a link that sends again and again", **R3090, broken={"replays": 4000}, grade=G.INFERENCE, reasons=("4000 PCIe replays",)),
    Story(name="a card on a riser that is hot as well", **R3090, link=X1, broken={"hardware_thermal": 0.2}, grade=G.BATCH,
          reasons=("0.21 GB/s", "throttled by heat in 20%"), advice="cooled (dust, paste, memory pads, fans) and on a gen4 x4 slot this card grades `inference`"),
]  # fmt: skip


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """Every story's card, as the real probe reads it from the stand-in; one process per kind of driver, for one holds one NVML."""
    root, cards = tmp_path_factory.mktemp("nvml"), {}
    for old in (False, True):
        stories = [story for story in STORIES if story.old_driver is old]
        library = fake_nvml(root, *(["-DOLD_DRIVER"] if old else []))
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_STATE": str(root / "state")}
        told = subprocess.run(
            [sys.executable, "-c", CHILD], input=msgspec.json.encode([state(story) for story in stories]), capture_output=True, env=environment
        )
        assert told.returncode == 0, told.stderr.decode()
        cards |= dict(zip((story.name for story in stories), msgspec.json.decode(told.stdout, type=list[Inventory]), strict=True))
    return cards


def state(story):
    """What NVML's stand-in answers."""
    gen, width = story.slot if any(story.slot) else (4 if story.link[0] < 5 else 5, 16)
    lines = {
        "name": story.model, "memory_mib": int(story.memory_gib * 1024), "capability": story.capability or "-1003", "bus": "00000000:03:00.0",
        "gen_max": gen, "width_max": width, "limit_mw": 300_000, "vbios": "94.02.42.80.5A", **story.card,
    }  # fmt: skip
    return "-1.count 1\n" + "".join(f"0.{name} {value}\n" for name, value in lines.items() if name != "vendor")


def measured(story, model):
    """A healthy card's results on the story's link, then what is broken."""
    gen, lanes = story.link
    rate = (model and (model.half_tflops or model.fp32_tflops)) or 10.0
    well = Measured(
        h2d_gb_s=gen_rate(gen, lanes), d2h_gb_s=gen_rate(gen, lanes), memory_gb_s=0.88 * ((model and model.memory_gb_s) or 500),
        pattern_errors=0, tflops={"bfloat16": rate * 0.8}, repeat_errors=0, golden_errors=0, readback_errors=0, peer_errors=0, soak_loss=0.01,
        link_gen=gen, link_width=lanes, replays=0, temperature_c=70, software_thermal=0.0, hardware_thermal=0.0, hardware_slowdown=0.0,
        power_brake=0.0, ecc_new_uncorrected=0, arch_supported=True,
    )  # fmt: skip
    return msgspec.structs.replace(well, **story.broken)


def gen_rate(gen, lanes):
    return lanes * LANE_GB_S[gen] * LINK_SHARE


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_each_card_gets_its_grade_its_reasons_and_advice(story, probed):
    card = msgspec.structs.replace(probed[story.name], vendor=story.card.get("vendor", "nvidia"))
    claimed = claim(MODELS, card)
    told = grade(Case(card=card, measured=measured(story, claimed.model), claim=claimed, peers_tflops=story.peers, host=story.host))
    said, raises = "\n".join(map(str, told.findings)), "\n".join(told.raises)
    assert told.grade is story.grade, f"{told.grade}: {said}"
    for reason in story.reasons:
        assert reason in said
    assert story.advice in raises
