"""What miners say of themselves, in the shapes of their own documentation and of HiveOS' scripts; and what no answer may do."""

import asyncio
import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_filling import KAWPOW, Site

from headframe.agent.miners import ADAPTERS, Unread, read, reading
from headframe.model.agent import Miner
from headframe.model.command import SetFiller
from headframe.model.errors import BadRequest
from headframe.model.fleet import JOINED
from headframe.model.power import Reading
from headframe.server.miners import Miners
from headframe.server.power_file import filler as filler_file

XMRIG = {"hashrate": {"total": [9123.5, 9100.0, None]}, "results": {"shares_good": 41, "shares_total": 42}, "uptime": 3600, "algo": "rx/0"}
T_REX = {"hashrate": 104_000_000, "accepted_count": 100, "rejected_count": 1, "uptime": 900, "algorithm": "kawpow",
         "gpus": [{"gpu_id": 0, "hashrate": 52_000_000, "power": 221, "temperature": 60}, {"gpu_id": 1, "hashrate": 52_000_000, "power": 219}]}  # fmt: skip
LOL_NEW = {"Session": {"Uptime": 120}, "Algorithms": [{"Algorithm": "Autolykos2", "Total_Performance": 250.5, "Performance_Unit": "Mh/s", "Performance_Factor": 1e6, "Total_Accepted": 7,
           "Total_Rejected": 1}], "Workers": [{"Power": 130.5}, {"Power": 129.5}]}  # fmt: skip
LOL_OLD = {
    "Mining": {"Algorithm": "Ethash"},
    "Session": {"Uptime": 60, "Performance_Summary": 61.2, "Performance_Unit": "mh/s", "Accepted": 9, "Submitted": 10, "TotalPower": 118.0},
}
TEAMRED = {"STATUS": [{"STATUS": "S"}], "DEVS": [{"GPU": 0, "MHS av": 31.2, "Accepted": 4, "Rejected": 0, "GPU Power": 95.0, "Device Elapsed": 300}, {"GPU": 1, "MHS av": 30.8, "Accepted": 5,
           "Rejected": 1, "GPU Power": 96.0, "Device Elapsed": 301}], "id": 1}  # fmt: skip
GMINER = {
    "uptime": 50,
    "algorithm": "Etchash",
    "total_accepted_shares": 3,
    "total_rejected_shares": 0,
    "devices": [{"speed": 60_500_000, "power_usage": 121}, {"speed": 60_000_000, "power_usage": 119}],
}
BZMINER = {
    "pools": [{"algorithm": "kaspa", "hashrate": 1.2e9, "valid_solutions": 11, "rejected_solutions": 2, "uptime_s": 77}],
    "devices": [{"power": 100.0}],
}
RIGEL = {"algorithm": "nexapow", "uptime": 12, "devices": [{"hashrate": {"nexapow": 1.5e8}, "monitoring_info": {"power_usage": 200}}, {"hashrate": {}, "monitoring_info": None}],
         "solution_stat": {"nexapow": {"accepted": 5, "rejected": 0, "invalid": 0}}}  # fmt: skip
SRB = {
    "algorithms": [{"name": "pearlhash", "hashrate": {"gpu": {"total": 4.1e13}}, "shares": {"accepted": 8, "rejected": 0}}],
    "gpu_devices": [{"asic_power": 320}],
    "mining_time": 99,
}
HIVE = {"khs": 93_000, "stats": {"hs": [46.5, 46.5], "hs_units": "mhs", "ar": [12, 1], "uptime": 10, "algo": "ethash", "bus_numbers": [1, 2]}}
PROMETHEUS = """# HELP krig_hashrate hashes per second
krig_hashrate{gpu="0"} 1.1e13
krig_hashrate{gpu="1"} 1.2e13
krig_power_watts{gpu="0"} 300
krig_shares_accepted 4
"""
ANSWERS = [
    ("xmrig", XMRIG, 9123.5, None, 41, 1), ("t-rex", T_REX, 104e6, 440, 100, 1), ("lolminer", LOL_NEW, 250.5e6, 260, 7, 1), ("lolminer", LOL_OLD, 61.2e6, 118, 9, 1),
    ("teamredminer", TEAMRED, 62e6, 191, 9, 1), ("gminer", GMINER, 120.5e6, 240, 3, 0), ("bzminer", BZMINER, 1.2e9, 100, 11, 2), ("rigel", RIGEL, 1.5e8, 200, 5, 0),
    ("srbminer", SRB, 4.1e13, 320, 8, 0), ("hiveos", HIVE, 93e6, None, 12, 1), ("prometheus", PROMETHEUS, 2.3e13, 300, 4, 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "rate", "watts", "accepted", "rejected"), ANSWERS)
def test_each_miner_is_read_in_its_own_units(name, answer, rate, watts, accepted, rejected):
    found = read(name, answer.encode() if isinstance(answer, str) else json.dumps(answer).encode())
    assert found.hashes_s == pytest.approx(rate)
    assert (found.watts, found.accepted, found.rejected) == (watts, accepted, rejected)


def test_a_reply_that_ends_in_nul_and_one_with_commas_too_many_are_read():
    whole = json.dumps(TEAMRED).encode()
    assert read("teamredminer", whole + b"\0").hashes_s == pytest.approx(62e6)
    assert read("teamredminer", whole.replace(b"}]", b"},]").replace(b"}, {", b"} {") + b"\0\n").hashes_s == pytest.approx(62e6)


@pytest.mark.parametrize("name", sorted(ADAPTERS))
@given(
    answer=st.binary(max_size=200)
    | st.recursive(st.none() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["hashrate", "total", "gpus", "power", "DEVS", "devices", "pools", "algorithms", "Session", "stats", "hs", "khs", "MHS av", "speed"]), inner, max_size=4), max_leaves=8).map(
            lambda told: json.dumps(told).encode())
)  # fmt: skip
def test_no_answer_gives_more_than_a_figure_or_a_reason(name, answer):
    try:
        found = read(name, answer)
    except Unread:
        return
    assert math.isfinite(found.hashes_s)
    assert 0 <= found.hashes_s <= 1e18
    assert found.watts is None or 0 < found.watts < 20_000


def test_a_hiveos_script_is_run_as_hiveos_runs_it(tmp_path):
    script = tmp_path / "h-stats.sh"
    script.write_text(
        'khs=93000\n[ "$HEADFRAME_STATS_PORT" = 4101 ] || exit 1\nstats=\'{"hs": [46.5, 46.5], "hs_units": "mhs", "ar": [12, 1], "uptime": 10}\'\necho noise\n'
    )
    assert reading(Miner("hiveos", 4101, str(script))).hashes_s == pytest.approx(93e6)
    script.write_text("exit 3\n")
    for miner in (Miner("hiveos", 4101, str(script)), Miner("hiveos", 4101, "/nowhere/h-stats.sh"), Miner("hiveos", 4101)):
        with pytest.raises(Unread):
            reading(miner)


def test_a_filler_that_hiveos_reads_names_its_script():
    text = "name: m\nrun: mine\nvalue: 0.1\nmodels: {any: {watts: 200}}\n"
    assert filler_file(text + "stats: hiveos\nscript: /hive/miners/t-rex/h-stats.sh\n").script == "/hive/miners/t-rex/h-stats.sh"
    for wrong in ("stats: hiveos\n", "script: /hive/h-stats.sh\n", "stats: hiveos\nscript: h-stats.sh\n", "stats: hiveos\nscript: '/a; reboot'\n"):
        with pytest.raises(BadRequest, match="script"):
            filler_file(text + wrong)


def test_a_machine_tells_of_the_miners_it_was_asked_about_and_of_no_others():
    """And of what can't be, nothing counts."""
    site = Site(nodes=1, gpus_each=2)
    site.do(SetFiller(filler=msgspec.structs.replace(KAWPOW, stats="t-rex")))
    node = next(iter(site.world.nodes.values()))
    site.world.put(msgspec.structs.replace(node, engine=JOINED))
    site.plan()
    site.step(8)
    asked = []
    miners = Miners(site.world, lambda *_: pytest.fail("nobody is asked here"), lambda node, told: asked.append((node, dict(told))))
    asyncio.run(miners.once())
    asyncio.run(miners.once())
    assert len(asked) == 1, "told once, as nothing changed"
    keys = sorted(asked[0][1])
    assert len(keys) == 2
    miners.heard(node.id, {keys[0]: Reading(hashes_s=5e7), keys[1]: Reading(hashes_s=math.inf), "wl-x.1": Reading(hashes_s=1.0)})
    assert miners.readings == {keys[0]: Reading(hashes_s=5e7)}
    miners.heard("node-other", {keys[1]: Reading(hashes_s=1.0)})
    miners.heard(node.id, {})
    assert miners.readings == {}
