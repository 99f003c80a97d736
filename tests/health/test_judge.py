"""Cards in service: a window of telemetry and a record, to a verdict. And what no log line, number or clock may do to it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headframe.data import text
from headframe.health.catalogue import catalogue, claim
from headframe.health.grade import Case, grade, grade_node, host_readings, readings, stale, typical
from headframe.health.judge import Verdict, judge
from headframe.health.rules import NODE_RULES, RULES, WATCH_RULES, with_limits
from headframe.health.watch import window
from headframe.health.xid import BURST_MS, blamed, codes, read, slot
from headframe.model.errors import BadRequest
from headframe.model.fleet import Grade, Graded
from headframe.model.health import History, Host, Inventory, Level, Measured, Sample, Watched, Xid
from headframe.model.units import MS_PER_DAY
from support import gpu

CODES = codes(text("xid.csv"))
NOW = 1_750_000_000_000
WELL = Watched(temperature_c=65, slowdown_c=95, software_thermal=0.0, hardware_thermal=0.0, hardware_slowdown=0.0, power_brake=0.0, loaded=True,
               link_gen=4, link_width=16, answer_s=0.02, power_w=300.0, power_limit_w=350.0, clock_share=0.99)  # fmt: skip
RECORD = History(link_gen=4, link_width=16)


def xids(*pairs, work=""):
    return tuple(Xid(at_ms=NOW - ago, code=code, slot="0000:01:00", work=work or f"w{n}") for n, (code, ago) in enumerate(pairs))


W, B = Level.WARN, Level.BAD
STORIES = [
    ("a card that does its work", {}, {}, None, ""),
    ("a card that is gone in the middle of a job", {"present": False}, {}, B, "is not there any more"),
    ("a card that flaps daily", {}, {"missing_ms": (NOW - MS_PER_DAY, NOW - 2 * MS_PER_DAY, NOW - 3 * MS_PER_DAY)}, B, "went missing 3 times in 7 days"),
    ("a card that was gone once", {}, {"missing_ms": (NOW - MS_PER_DAY,)}, None, ""),
    ("an uncorrected error", {"ecc_uncorrected": 1}, {}, B, "1 uncorrected"),
    ("a failed remap", {"remap_failed": True}, {}, B, "could not be remapped"),
    ("a row that waits", {"remap_pending": True}, {}, W, "waits for a reset"),
    ("corrected errors by the ten thousand", {"ecc_corrected": 15_000}, {}, W, "15000 corrected"),
    ("a link asleep at rest", {"loaded": False, "link_gen": 1}, {}, None, ""),
    ("a link that lost lanes", {"link_width": 8}, {}, W, "lacks 8 lanes"),
    ("a riser on record is no fault", {"link_width": 1, "link_gen": 1}, {"link_gen": 1, "link_width": 1}, None, ""),
    ("replays as many as a gen4 x16 link may have", {"replays_min": 16.0}, {}, None, ""),
    ("replays twice as many", {"replays_min": 32.0}, {}, W, "2.0 times the PCIe replays"),
    ("replays without end", {"replays_min": 5000.0}, {}, B, "312 times"),
    ("a power brake", {"power_brake": 0.01}, {}, B, "braked"),
    ("a sensor that lies", {"power_w": 900.0}, {}, W, "2.6 times its power limit"),
    ("a driver that is slow to answer", {"answer_s": 4.0}, {}, W, "took 4.0 s"),
    ("a driver that is wedged", {"answer_s": 45.0}, {}, B, "took 45 s"),
    ("a driver that asks for a reset", {"recovery_action": 1}, {}, B, "asks for a reset"),
    ("a driver that asks for peers to end", {"recovery_action": 2}, {}, W, "jobs over several cards"),
    ("near its slowdown", {"temperature_c": 92}, {}, W, "3 °C below its slowdown"),
    ("hot memory", {"memory_temperature_c": 98}, {}, W, "memory at 98 °C"),
    ("one hot window is no verdict yet", {"software_thermal": 0.5}, {}, W, "held back by heat"),
    ("Xid 79", {}, {"xids": xids((79, 1000))}, B, "Xid 79"),
    ("Xid 48 and what follows it", {}, {"xids": xids((48, 5000), (45, 4000), (154, 3000))}, B, "Xid 48"),
    ("a program's first Xid 13", {}, {"xids": xids((13, 1000))}, None, ""),
    ("a program's first Xid 31", {}, {"xids": xids((31, 1000))}, None, ""),
    ("one program that crashes all day", {}, {"xids": xids(*((31, n * 3_600_000) for n in range(9)), work="same")}, W, "Xid 31 9 times"),
    ("three programs that crash on one card", {}, {"xids": xids((31, 1000), (31, 4_000_000), (31, 8_000_000))}, B, "Xid 31 3 times"),
    ("yesterday's Xid 79, mended since", {}, {"xids": xids((79, MS_PER_DAY + BURST_MS))}, None, ""),
    ("a clock that was set back: the future is now", {}, {"xids": (Xid(at_ms=NOW + 10 * MS_PER_DAY, code=79, slot="0000:01:00"),)}, B, "Xid 79"),
    ("an Xid that nobody uses", {}, {"xids": xids((1, 1000))}, None, ""),
    ("an Xid that is not in the table", {}, {"xids": xids((999, 1000))}, None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "seen", "record", "level", "reason"), STORIES, ids=[story[0] for story in STORIES])
def test_each_card_in_service_gets_its_verdict(name, seen, record, level, reason):
    told = judge(msgspec.structs.replace(WELL, **seen), msgspec.structs.replace(RECORD, **record), CODES, Verdict(), NOW)
    assert told.level is level, told.findings
    assert reason in "\n".join(map(str, told.findings))


def test_heat_is_a_verdict_only_once_it_has_lasted_ten_minutes():
    hot, told = msgspec.structs.replace(WELL, software_thermal=0.5), Verdict()
    levels = []
    for minute in range(12):
        told = judge(hot, RECORD, CODES, told, NOW + minute * 60_000)
        levels.append(told.level)
    assert levels == [Level.WARN] * 10 + [Level.BAD] * 2
    assert judge(WELL, RECORD, CODES, told, NOW + 12 * 60_000) == Verdict()


def test_every_rule_has_a_reading_of_its_own_name_and_a_source():
    card = Inventory(model="x", memory_mib=1)
    known = readings(Case(card=card, measured=Measured(), claim=claim((), card))).keys()
    assert {rule.datum for rule in RULES} <= known
    assert {rule.datum for rule in NODE_RULES} <= host_readings(Host(memory_mib=1, threads=1), []).keys()
    assert all(rule.source and rule.why for rule in (*RULES, *NODE_RULES, *WATCH_RULES))
    names = [rule.name for rule in (*RULES, *NODE_RULES, *WATCH_RULES)]
    assert len(names) == len(set(names))


def test_a_window_tells_shares_of_its_samples_and_rates_of_its_counters():
    told = window([
        Sample(gpu_id="g", at_ms=NOW + n * 10_000, use=0.9, reasons=0x20 if n < 3 else 0, replays=5 * n, temperature_c=60 + n, answer_ms=10 * n, link_gen=4)
        for n in range(7)
    ])  # fmt: skip
    assert (told.software_thermal, told.replays_min, told.temperature_c, told.answer_s, told.link_gen) == (3 / 7, 30.0, 66, 0.06, 4)
    assert window([Sample(gpu_id="g", at_ms=NOW, replays=50), Sample(gpu_id="g", at_ms=NOW + 1000, replays=3)]).replays_min is None  # a new driver
    assert not window([Sample(gpu_id="g", at_ms=NOW), Sample(gpu_id="g", at_ms=NOW + 1, present=False)]).present


def test_xids_are_read_from_the_kernels_log_and_bursts_blame_the_first():
    lines = [
        "[ 123.4] NVRM: Xid (PCI:0000:03:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
        "NVRM: Xid (0000:0a:00): 31, Ch 00000001, intr 10000000. MMU Fault",
        "NVRM: GPU at PCI:0000:03:00.0 has fallen off the bus.",
        "NVRM: loading NVIDIA UNIX x86_64 Kernel Module",
    ]
    told = [read(line, NOW) for line in lines]
    assert [each and (each.slot, each.code) for each in told] == [("0000:03:00", 79), ("0000:0a:00", 31), ("0000:03:00", 79), None]
    assert slot("00000000:0A:00.0") == "0000:0a:00"
    burst = xids((48, 10_000), (63, 9_000), (45, 8_000)) + xids((79, BURST_MS * 3), (154, 2_000))
    assert [each.code for each in blamed(burst)] == [79, 48]


def test_eight_cards_with_one_reject_keep_seven():
    cards = [(Inventory(model="H100", memory_mib=81_559), Grade.TRAIN_MULTI)] * 7 + [(Inventory(model="H100", memory_mib=81_559), Grade.REJECT)]
    assert grade_node(Host(memory_mib=1 << 20, threads=128), cards).grade is Grade.TRAIN_MULTI


@pytest.mark.parametrize(
    ("host", "models", "expected", "reason"),
    [
        (Host(memory_mib=8 * 1024, threads=4), ["3060 Ti"] * 8, Grade.BATCH, "0.12 of its cards' memory as RAM"),
        (Host(memory_mib=48 * 1024, threads=16), ["3060 Ti"] * 8, Grade.INFERENCE, "0.75 of its cards' memory"),
        (Host(memory_mib=128 * 1024, threads=2), ["3060 Ti"] * 4, Grade.BATCH, "0.5 processor threads per card"),
        (Host(memory_mib=128 * 1024, threads=16), ["3060 Ti", "3070"], Grade.INFERENCE, "2 models of card"),
        (Host(memory_mib=128 * 1024, threads=16, disk_mb_s=35), ["3060 Ti"], Grade.INFERENCE, "a disk of 35 MB/s"),
        (Host(memory_mib=128 * 1024, threads=16, edac_uncorrected=2), ["3060 Ti"], Grade.INFERENCE, "2 uncorrected memory errors"),
        (Host(memory_mib=128 * 1024, threads=16, cpu_errors=1), [], Grade.REJECT, "differed when repeated"),
    ],
)
def test_a_machine_limits_what_its_cards_can_do_together(host, models, expected, reason):
    told = grade_node(host, [(Inventory(model=model, memory_mib=8192), Grade.TRAIN) for model in models])
    assert told.grade is expected
    assert reason in str(told.findings[0])


def test_a_grade_ends_with_its_month_and_with_any_change_of_the_card():
    graded = Graded(at_ms=NOW, depth="quick", vbios="1", driver="570", slot="0000:01:00", power_limit_w=300)
    card = gpu(0, 0, vbios="1", driver="570", pci_bus="00000000:01:00.0", max_w=300)
    assert stale(graded, card, NOW + MS_PER_DAY) == ""
    assert stale(graded, card, NOW + 31 * MS_PER_DAY) == "its check is older than 30 days"
    changes = {"vbios": "2", "driver": "580", "pci_bus": "00000000:02:00.0", "max_w": 350}
    said = [stale(graded, msgspec.structs.replace(card, **{name: value}), NOW) for name, value in changes.items()]
    assert said == [
        "its VBIOS changed from 1 to 2", "its driver changed from 570 to 580", "its slot changed from 0000:01:00 to 0000:02:00",
        "its power limit changed from 300 W to 350 W",
    ]  # fmt: skip


def test_eight_results_of_equal_cards_make_a_baseline():
    assert typical([70.0] * 7) is None
    assert typical([60.0, 70.0, 71.0, 72.0, 70.5, 69.0, 70.0, 73.0]) == 70.25


def test_an_operators_limits_replace_ours_and_nothing_else_does():
    changed = with_limits(RULES, "h2d-batch = 0.5\n")
    assert [rule.limit for rule in changed if rule.name == "h2d-batch"] == [0.5]
    assert [rule for rule in changed if rule.name != "h2d-batch"] == [rule for rule in RULES if rule.name != "h2d-batch"]
    for text_, said in (
        ("h2d = 1", "no rule 'h2d'"),
        ("h2d-batch = 'x'", "is a number"),
        ("h2d-batch = [", "can't be read"),
        ("h2d-batch = true", "is a number"),
    ):
        with pytest.raises(BadRequest, match=said):
            with_limits(RULES, text_)


numbers = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))


@given(st.text(max_size=400), st.integers())
def test_no_line_of_a_log_breaks_the_reader(line, at_ms):
    for text_ in (line, "NVRM: Xid (PCI:" + line, "NVRM: Xid (PCI:0000:01:00): " + line):
        assert (xid := read(text_, at_ms)) is None or xid.at_ms == at_ms


@given(
    st.fixed_dictionaries({name: numbers for name in ("h2d_gb_s", "memory_gb_s", "soak_loss", "software_thermal", "power_brake")}),
    st.integers(0, 1 << 20),
    st.text(max_size=40),
)
def test_a_card_without_a_result_is_never_passed_whatever_else_is_said(found, memory, name):
    card = Inventory(model=name, memory_mib=memory)
    told = grade(Case(card=card, measured=Measured(**found), claim=claim(catalogue(text("gpus.csv")), card)))
    assert told.grade in {Grade.UNMEASURED, Grade.MINING_ONLY, Grade.REJECT}
    assert told.findings
