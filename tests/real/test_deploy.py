"""What is in deploy/: alert rules that Prometheus' own checker takes and that fire when they should, a board that asks for what there is."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from headframe.model.command import SetSite
from headframe.server.api.metrics import READINGS, Fleet, Power
from headframe.server.decide import RACK, SITE, decide
from headframe.server.dispatcher import Inlet
from support import NOW_MS, commit, fleet, needs

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
NAME = re.compile(r"\b(DCGM_FI_[A-Z0-9_]+|headframe_[a-z_]+)\b")


def told():
    registry = CollectorRegistry()
    world = fleet()
    commit(world, decide(world, SetSite(site_id=SITE, contract_w=1000), NOW_MS))
    registry.register(Fleet(world, lambda _gpu: None))
    registry.register(Power(world, NOW_MS, lambda _gpu: None, 0, {RACK: Inlet(NOW_MS, 30.0, 31.0)}))
    counters = {f"{metric.name}_total" for metric in registry.collect() if metric.type == "counter"}
    return {metric.name for metric in registry.collect()} | counters | set(READINGS)


@pytest.mark.parametrize("command", ["check rules deploy/alerts.yml", "test rules tests/data/alerts_test.yml"])
def test_prometheus_own_checker_takes_the_alert_rules_and_they_fire_when_they_should(command):
    done = subprocess.run([needs("promtool"), *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration(tmp_path):
    for name in ("headframe.key", "headframe-tls-cert.pem"):
        (tmp_path / name).touch()
    text = (DEPLOY / "prometheus.yml").read_text().replace("/etc/prometheus/", f"{tmp_path}/").replace("alerts.yml", f"{DEPLOY}/alerts.yml")
    (tmp_path / "prometheus.yml").write_text(text)
    done = subprocess.run([needs("promtool"), "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_board_ask_for_nothing_that_is_not_told():
    board = json.loads((DEPLOY / "grafana-fleet.json").read_text())
    asked = {name for panel in board["panels"] for target in panel["targets"] for name in NAME.findall(target["expr"])}
    asked |= {name for line in (DEPLOY / "alerts.yml").read_text().splitlines() if "expr:" in line for name in NAME.findall(line)}
    assert asked
    assert asked <= told()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_what_is_told_is_read_by_prometheus_own_parser():
    from prometheus_client import generate_latest

    registry = CollectorRegistry()
    registry.register(Fleet(fleet(), lambda _gpu: None))
    assert {"headframe_gpus", "headframe_nodes"} <= {family.name for family in text_string_to_metric_families(generate_latest(registry).decode())}
