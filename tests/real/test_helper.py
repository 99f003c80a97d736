"""What only root may do to cards is done by a helper, within bounds, for one user. A real process on a real socket; NVML is a stand-in."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from headframe.agent.helper import ClockLimit, PowerLimit, StockClocks, ask
from headframe.model.api import SiteBody
from headframe.model.power_api import CoinBody
from support import Server, fake_nvml, wait_for

CARD = """
-1.count 1
0.uuid GPU-helped-1
0.name NVIDIA GeForce RTX 3090
0.memory_mib 24576
0.bus 00000000:01:00.0
0.may_set 1
0.limit_mw 350000
0.default_mw 350000
0.least_mw 100000
0.most_mw 400000
0.max_mhz 2100
0.core_offset 0
0.mem_offset 1100
"""


class HelperProcess:
    def __init__(self, root):
        self.root = root
        self.state = root / "state"
        self.path = root / "helper.sock"
        self.state.write_text(CARD)
        self.env = {**os.environ, "LD_LIBRARY_PATH": str(fake_nvml(root).parent), "FAKE_NVML_STATE": str(self.state)}

    def start(self):
        user = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
        command = [sys.executable, "-m", "headframe", "agent", "helper", "--user", user, "--socket", str(self.path)]
        self.process = subprocess.Popen(command, env=self.env, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr.readline().startswith("asked at")
        return self

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(timeout=20)

    def says(self, key):
        return [line.split(" ", 1)[1] for line in self.state.read_text().splitlines() if line.startswith(f"0.{key} ")][-1]


@pytest.fixture
def helper(tmp_path, monkeypatch):
    started = HelperProcess(tmp_path).start()
    monkeypatch.setenv("HEADFRAME_HELPER", str(started.path))
    yield started
    if started.process.poll() is None:
        started.end()


def test_a_power_limit_is_set_read_back_and_set_back_at_the_end(helper):
    done = ask(PowerLimit(gpu_id="GPU-helped-1", watts=220))
    assert (done.power_limit_w, done.error) == (220, "")
    helper.end()
    assert helper.says("limit_mw") == "350000"
    assert not (helper.root / "limits-found.json").exists()


def test_a_limit_that_is_lent_goes_back_by_itself_to_what_was_there_before(helper):
    ask(PowerLimit(gpu_id="GPU-helped-1", watts=300))
    assert ask(PowerLimit(gpu_id="GPU-helped-1", watts=250, for_s=2)).power_limit_w == 250
    assert ask(PowerLimit(gpu_id="GPU-helped-1", watts=200, for_s=1)).power_limit_w == 200
    wait_for(lambda: helper.says("limit_mw") == "300000", limit_s=10)
    ask(PowerLimit(gpu_id="GPU-helped-1", watts=200, for_s=1))
    ask(PowerLimit(gpu_id="GPU-helped-1", watts=280))
    wait_for(lambda: helper.says("limit_mw") == "280000", limit_s=10)


def test_what_a_killed_helper_set_is_set_back_by_the_next(helper):
    ask(PowerLimit(gpu_id="GPU-helped-1", watts=220))
    helper.end(signal.SIGKILL)
    assert helper.says("limit_mw") == "220000"
    helper.start()
    ask(PowerLimit(gpu_id="GPU-helped-1", watts=200))
    helper.end()
    assert helper.says("limit_mw") == "350000"


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        (PowerLimit(gpu_id="GPU-helped-1", watts=99), "power of 99 W is outside 100 to 350 W"),
        (PowerLimit(gpu_id="GPU-helped-1", watts=400), "power of 400 W is outside 100 to 350 W"),
        (PowerLimit(gpu_id="GPU-helped-1", watts=-(2**40)), "power of -1099511627776 W is outside 100 to 350 W"),
        (ClockLimit(gpu_id="GPU-helped-1", mhz=2101), "clocks of 2101 MHz is outside 200 to 2100 MHz"),
        (ClockLimit(gpu_id="GPU-helped-1", mhz=0), "clocks of 0 MHz is outside 200 to 2100 MHz"),
    ],
)
def test_nothing_beyond_the_cards_own_bounds_is_set(helper, wish, why):
    before = helper.state.read_text()
    assert ask(wish).error == why
    assert helper.state.read_text() == before


def test_clocks_are_limited_and_go_back_to_the_makers(helper):
    assert ask(ClockLimit(gpu_id="GPU-helped-1", mhz=1400)).error == ""
    assert helper.says("locked") == "1400"
    assert ask(StockClocks(gpu_id="GPU-helped-1")).error == ""
    assert (helper.says("locked"), helper.says("mem_offset")) == ("0", "0")


def test_a_limit_that_the_driver_does_not_keep_is_told(helper):
    with helper.state.open("a") as state:
        state.write("0.stuck 1\n")
    assert ask(PowerLimit(gpu_id="GPU-helped-1", watts=200)).error == "the driver was told 200 W and says 350 W"


@pytest.mark.parametrize(
    "said", [b"\n", b"{}\n", b'{"type":"run","argv":["id"]}\n', b"\xff\xfe\n", b'{"type":"power-limit","gpu_id":1}\n', b"x" * 9000]
)
def test_what_is_no_wish_is_refused_and_the_helper_goes_on(helper, said):
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(helper.path))
        line.sendall(said)
        line.shutdown(socket.SHUT_WR)
        line.recv(4096)
    assert ask(StockClocks(gpu_id="GPU-helped-1")).error == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused(helper):
    helper.path.chmod(0o666)
    for folder in (helper.root, *list(helper.root.parents)[:4]):
        folder.chmod(folder.stat().st_mode | 0o011)
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(helper.path)!r}); s.sendall(b'x\\n'); print(s.recv(999).decode())"
    said = subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", code], capture_output=True, text=True, cwd="/")
    assert '"user 65534 may not ask this"' in said.stdout, said.stderr


def test_a_card_is_handed_over_with_the_helpers_help(helper, monkeypatch):
    """The hand-over itself may set nothing: its driver says no, the helper's says yes."""
    from headframe.agent import handover

    other = helper.root / "unprivileged"
    other.write_text(CARD.replace("0.may_set 1", "0.may_set 0") + "0.memory_mib 1000\n0.bus 0000:01:00.0\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", helper.env["LD_LIBRARY_PATH"])
    monkeypatch.setenv("FAKE_NVML_STATE", str(other))
    import asyncio

    found = asyncio.run(handover.clean(["GPU-helped-1"]))
    assert found["GPU-helped-1"].startswith("its memory clock is +1100 MHz off")  # this stand-in keeps two worlds apart: the wish itself was granted
    wait_for(lambda: helper.says("mem_offset") == "0")


def test_without_a_driver_it_says_so_and_ends(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "headframe", "agent", "helper", "--user", "root", "--socket", str(tmp_path / "s")], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "NVML finds no driver" in done.stderr


FILLER = """
name: kawpow
coin: RVN
run: exec sleep 1000
models: {any: {hashrate: 50MH, watts: 280}}
"""


def test_dispatch_caps_a_filler_through_the_helper_and_leaves_off_when_told(helper, tmp_path):
    server = Server(tmp_path).start(
        "--no-check-new", HEADFRAME_HELPER=str(helper.path), **{key: helper.env[key] for key in ("LD_LIBRARY_PATH", "FAKE_NVML_STATE")}
    )
    try:
        with server.operator() as cloud:
            site = cloud.sites().items[0].name
            cloud.set_site(site, SiteBody(caps=True, contract_w=5000, tariff="name: flat\nenergy: [{price: 0.07}]\n"))
            cloud.tell_coin("RVN", CoinBody(price_usd=0.02, network_hs=5e12, block_s=60, reward=2500))
            cloud.set_filler(FILLER)
            wait_for(lambda: helper.says("limit_mw") == "210000", limit_s=60)
            assert cloud.power().postures[0].caps == {"filler": 0.75}
            cloud.set_site(site, SiteBody(caps=False))
            wait_for(lambda: helper.says("limit_mw") == "350000", limit_s=30)
    finally:
        server.kill()
