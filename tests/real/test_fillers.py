"""Idle cards at work for their owner: a real server, real processes, cards as NVML's stand-in tells of them."""

import hashlib

import time

import psutil
import pytest

from headframe.client import ApiError
from headframe.model.api import SiteBody
from headframe.model.power import SignalKind
from headframe.model.power_api import CoinBody, SignalBody
from support import Server, fake_nvml, free_port, wait_for
from test_gpus import TWO_3090, file

pytestmark = pytest.mark.slow
FILLER = """
name: kawpow
coin: RVN
run: |
  echo mining on $CUDA_VISIBLE_DEVICES for $HEADFRAME_FILLER
  exec sleep 1000
models: {RTX 3090: {hashrate: 50MH, watts: 280}}
"""
HELD_START_S = 10


@pytest.fixture
def site(tmp_path):
    """A server on a machine with two RTX 3090 that has told it what power and a coin are worth."""
    library = fake_nvml(tmp_path)
    (tmp_path / "state").write_text(TWO_3090 + "*.power_mw 20000\n")
    environment = {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_STATE": str(tmp_path / "state")}
    server = Server(tmp_path).start("--no-check-new", "--watch-interval", "1", **environment)
    server.again = lambda: server.start("--no-check-new", "--watch-interval", "1", **environment)
    with server.operator() as cloud:
        cloud.set_site(cloud.sites().items[0].name, SiteBody(contract_w=2000, pue=1.1, tariff="name: flat\nenergy: [{price: 0.05}]\n"))
        cloud.tell_coin("RVN", CoinBody(price_usd=0.02, network_hs=5e12, block_s=60, reward=2500))
    yield server
    server.kill()
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path) in " ".join(process.info["cmdline"] or []):
            process.kill()


def mining(cloud):
    return cloud.fillers().items[0].cards


def test_idle_cards_mine_a_tenant_gets_them_within_ten_seconds_and_afterwards_they_mine_again(site):
    with site.operator() as cloud, site.tenant() as tenant:
        cloud.set_filler(FILLER)
        wait_for(lambda: mining(cloud) == 2, limit_s=40)
        why = cloud.explain_dispatch("GPU-0000-1")
        assert (why.does, [row.what for row in why.alternatives if row.now]) == ("runs kawpow", ["kawpow"])
        began = time.monotonic()
        tenant.submit(file("paid", 2, run="echo mine now"))
        wait_for(lambda: tenant.workload("paid").workload.state == "succeeded", limit_s=HELD_START_S)
        assert time.monotonic() - began < HELD_START_S
        wait_for(lambda: mining(cloud) == 2, limit_s=100)
        entries = [entry for entry in cloud.entries().items if "filler" in entry.memo]
        assert entries == []


def test_killed_and_started_again_the_server_starts_no_miner_twice(site):
    with site.operator() as cloud:
        cloud.set_filler(FILLER)
        wait_for(lambda: mining(cloud) == 2, limit_s=40)
        wait_for(lambda: len(sleeping(site)) == 2)
        before = sleeping(site)
        site.kill()
        site.again()
        wait_for(lambda: mining(cloud) == 2, limit_s=20)
        time.sleep(6)  # a whole look of dispatch
        assert sleeping(site) == before


def sleeping(site):
    found = [process.pid for process in psutil.process_iter(["cmdline", "environ"]) if process.info["cmdline"] == ["sleep", "1000"]
             and (process.info["environ"] or {}).get("HEADFRAME_FILLER") == "kawpow" and str(site.root) in (process.info["environ"] or {}).get("HOME", "")]  # fmt: skip
    return sorted(found)


def test_a_grid_signal_ends_mining_within_seconds_and_the_same_event_again_changes_nothing(site):
    with site.operator() as cloud:
        cloud.set_filler(FILLER)
        wait_for(lambda: mining(cloud) == 2, limit_s=40)
        began = time.monotonic()
        signal = SignalBody(source="grid", event="event-7", kind=SignalKind.LEVEL, value=1, length_s=600, why="a drill")
        cloud.signal(signal)
        wait_for(lambda: mining(cloud) == 0, limit_s=10)
        assert time.monotonic() - began < 10
        cloud.signal(signal)
        assert len(cloud.signals().items) == 1
        assert [event.kind for event in cloud.events().items if event.kind == "shed"] == ["shed"]


def test_a_program_that_is_not_the_one_allowed_is_not_started_and_its_filler_pauses(site, tmp_path):
    program = tmp_path / "miner"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    good = hashlib.sha256(program.read_bytes()).hexdigest()
    text = f"name: closed\ncoin: RVN\nrun: exec {program}\nprogram: {program}\nsha256: 'SUM'\nmodels: {{RTX 3090: {{hashrate: 50MH, watts: 280}}}}\n"
    with site.operator() as cloud:
        cloud.set_filler(text.replace("SUM", "0" * 64))
        wait_for(lambda: "failed" in cloud.fillers().items[0].why, limit_s=30)
        assert cloud.fillers().items[0].cards == 0
        cloud.set_filler(text.replace("SUM", good))
        wait_for(lambda: cloud.fillers().items[0].cards == 2, limit_s=40)


STAND_IN = """
name: speaks
coin: RVN
stats: t-rex
run: |
  exec python3 -c "
  import http.server, json, os
  class Talk(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
          self.send_response(200); self.end_headers()
          self.wfile.write(json.dumps({'hashrate': 45000000, 'gpus': [{'power': 270}], 'accepted_count': 3, 'uptime': 9, 'algorithm': 'kawpow'}).encode())
      def log_message(self, *_): pass
  http.server.HTTPServer(('127.0.0.1', int(os.environ['HEADFRAME_STATS_PORT'])), Talk).serve_forever()
  "
models: {RTX 3090: {hashrate: 50MH, watts: 280}}
"""


def test_what_miners_say_is_read_beside_what_their_files_promise(site):
    with site.operator() as cloud:
        cloud.set_filler(STAND_IN.replace("stats: t-rex", f"stats: t-rex\nport: {free_port()}"))
        wait_for(lambda: cloud.fillers().items[0].read == 90e6, limit_s=60)
        assert cloud.fillers().items[0].promised == 100e6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x", "missing required field `run`"),
        ("name: x\nrun: y\ncoin: RVN\nmodels: {RTX 3090: {hashrate: fast, watts: 1}}", "'fast' is no hashrate"),
        ("name: x\nrun: y\nvalue: 1\nmodels: {any: {watts: 100}}\nprogram: /x", "allowed by its SHA-256"),
        ("name: x\nrun: y\nvalue: 1\nspeed: 3\nmodels: {any: {watts: 100}}", "unknown field `speed`"),
        ("name: x\nrun: y\ncoin: DOGE\nmodels: {any: {watts: 100, hashrate: 1MH}}", "nothing is known of the coin DOGE"),
        ("a: [", "no YAML"),
    ],
)
def test_a_filler_file_with_a_mistake_is_refused_with_the_reason(site, text, said):
    with site.operator() as cloud, pytest.raises(ApiError) as refused:
        cloud.set_filler(text)
    assert said in str(refused.value)


@pytest.mark.parametrize(("text", "said"), [("name: t", "neither a market nor an energy charge"), ("name: t\nenergy: [{price: 0.1}]\nzone: Mars", "no time zone"),
                                            ("name: t\nenergy: [{price: 0.1, days: someday}]", "someday"), ("name: t\nenergy: [{price: 99}]", "out of range")])  # fmt: skip
def test_a_tariff_file_with_a_mistake_is_refused_with_the_reason(site, text, said):
    with site.operator() as cloud, pytest.raises(ApiError) as refused:
        cloud.set_site(cloud.sites().items[0].name, SiteBody(tariff=text))
    assert said in str(refused.value)
