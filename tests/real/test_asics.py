"""Mining machines: the unmodified pyasic against a stand-in that speaks LuxOS' cgminer API over TCP as its documentation shows it."""

import asyncio
import json
import socketserver
import threading

import pytest

from headframe.agent import asics
from headframe.client import ApiError
from headframe.model.errors import BadRequest
from headframe.model.api import SiteBody
from headframe.model.power import Asic, AsicState, SignalKind
from headframe.model.power_api import CoinBody, SignalBody
from support import Server, wait_for

pytestmark = pytest.mark.slow
ADDRESS = "127.0.77.1"
"""pyasic knows one port only (4028), so the stand-in has an address of its own."""


PROFILES = {"default": (3250, 95.0), "-2": (2750, 84.0), "-4": (2200, 70.0)}


class Machine:
    """An S19 with LuxOS: mines until it is told to sleep. `ends` is what stands after each reply."""

    def __init__(self):
        self.asleep, self.heard, self.ends, self.profile = False, [], b"\0", "default"

    def answer(self, command, parameter):
        self.heard.append((command, parameter))
        head = {"STATUS": [{"STATUS": "S", "When": 1, "Code": 1, "Msg": command, "Description": "LUXminer 2025.1"}], "id": 1}
        rate = 0.0 if self.asleep else 95_200.0
        told = {
            "version": {"VERSION": [{"API": "3.7", "LUXminer": "2025.1", "Type": "Antminer S19", "CompileTime": "x"}]},
            "devdetails": {"DEVDETAILS": [{"DEVDETAILS": 0, "ID": 0, "Name": "BTM", "Model": "Antminer S19"}]},
            "summary": {"SUMMARY": [{"GHS 5s": rate, "Accepted": 3}]},
            "config": {"CONFIG": [{"MACAddr": "02:aa:bb:cc:dd:ee", "Hostname": "s19-07", "Profile": self.profile}]},
            "profiles": {
                "PROFILES": [
                    {"Profile Name": name, "Watts": watts, "Hashrate": rate, "IsTuned": True, "Frequency": 500, "Voltage": 13}
                    for name, (watts, rate) in PROFILES.items()
                ]
            },
            "atm": {"ATM": [{"Enabled": False}]},
            "tempctrl": {"TEMPCTRL": [{"Mode": "Automatic", "Target": 55, "Hot": 75, "Dangerous": 80}]},
            "fans": {"FANS": []},
            "pools": {"POOLS": []},
            "groups": {"GROUPS": []},
            "power": {"POWER": [{"PSU": True, "Watts": 60 if self.asleep else PROFILES[self.profile][0]}]},
            "stats": {"STATS": [{"BMMiner": "x"}, {"total_rateideal": 95_000.0, "rate_unit": "GH"}]},
            "session": {"SESSION": [{"SessionID": ""}]},
            "logon": {"SESSION": [{"SessionID": "abc123"}]},
        }
        if command == "curtail":
            self.asleep = "sleep" in parameter
            return {**head, "CURTAIL": [{"Mode": "Sleep" if self.asleep else "Wakeup"}]}
        if command == "profileset":
            self.profile = next(name for name in PROFILES if name in parameter)
            return {**head, "PROFILE": [{"Profile": self.profile}]}
        if "+" in command:
            return {each: [{**head, **told.get(each, {})}] for each in command.split("+")}
        return {**head, **told.get(command, {})}


@pytest.fixture
def machine():
    standing = Machine()

    class Talk(socketserver.BaseRequestHandler):
        def handle(self):
            asked = json.loads(self.request.recv(65536))
            self.request.sendall(json.dumps(standing.answer(asked["command"], str(asked.get("parameter", "")))).encode() + standing.ends)

    class Listening(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Listening((ADDRESS, 4028), Talk) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield standing
        server.shutdown()


def test_a_machine_is_found_read_stopped_and_resumed(machine):
    found = asics.scanned(f"{ADDRESS}/32")
    assert [(row.ip, row.model, row.state, row.can_stop) for row in found] == [(ADDRESS, "S19 (LuxOS)", AsicState.MINING, True)]
    assert found[0].hashes_s == pytest.approx(95e12, rel=0.01)
    assert found[0].watts == 3250

    async def scene():
        stop = Asic(id=found[0].id, name="x", ip=ADDRESS, model="S19", wanted=AsicState.STOPPED)
        assert await asics.told(stop) == ""
        assert machine.asleep
        assert (await asics.seen([ADDRESS]))[0].state is AsicState.STOPPED
        assert await asics.told(Asic(id=stop.id, name="x", ip=ADDRESS, model="S19", wanted=AsicState.MINING)) == ""
        assert not machine.asleep

    asyncio.run(scene())


def test_where_nothing_answers_and_where_nonsense_does_there_is_no_machine(machine):
    assert asics.scanned("127.0.77.9/32") == []
    machine.ends = b"}}}garbage\0"
    machine.answer = lambda *_: {"VERSION": "no"}
    assert asics.scanned(f"{ADDRESS}/32") == []
    assert "answer" in asyncio.run(asics.told(Asic(id="a", name="a", ip="127.0.77.9", model="S19", wanted=AsicState.STOPPED)))


@pytest.mark.parametrize("network", ["10.0.0.0/8", "here", ""])
def test_what_is_no_network_is_refused(network):
    with pytest.raises(BadRequest):
        asics.scanned(network)


@pytest.fixture
def cloud(machine, tmp_path):
    """A server that knows the machine, and what mining and power are worth."""
    server = Server(tmp_path).start("--no-check-new")
    try:
        with server.operator() as cloud:
            cloud.tell_asics(asics.scanned(f"{ADDRESS}/32"))
            cloud.tell_coin("BTC", CoinBody(price_usd=100_000, network_hs=1e21, block_s=600, reward=3.15))
            cloud.set_site(cloud.sites().items[0].name, SiteBody(tariff="name: t\nenergy: [{price: 0.05}]\n"))
            yield cloud
    finally:
        server.kill()


def test_a_level_stops_a_machine_through_the_server(machine, cloud):
    assert cloud.asics().items[0].state is AsicState.MINING
    cloud.signal(SignalBody(source="grid", event="e1", kind=SignalKind.LEVEL, value=1, length_s=600))
    wait_for(lambda: machine.asleep)
    wait_for(lambda: cloud.asics().items[0].state is AsicState.STOPPED)
    assert cloud.asics().items[0].why in {"", "shed", "a signal sheds mining"}


def test_a_machine_whose_firmware_can_draws_less_and_later_as_before_through_the_server(machine, cloud):
    found = cloud.asics().items[0]
    assert (found.can_limit, found.limit_w) == (True, 3250)
    cloud.limit_asic(found.name, 2800)
    wait_for(lambda: machine.profile == "-2")
    wait_for(lambda: cloud.asics().items[0].limit_w == 2800)
    with pytest.raises(ApiError, match="20 W"):
        cloud.limit_asic(found.name, 20)
    cloud.limit_asic(found.name, 500)
    wait_for(lambda: "no limit of 500 W" in cloud.asics().items[0].why)
    cloud.limit_asic(found.name, 0)
    wait_for(lambda: machine.profile == "default")
    cloud.tell_asics([Asic(id="asic-dumb", name="dumb", ip="127.0.77.8", model="S9")])
    with pytest.raises(ApiError, match="sets no power limit"):
        cloud.limit_asic("dumb", 2000)
