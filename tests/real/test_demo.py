"""The demonstration: the real server over machines that exist only as values, marked as such, gone when it ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from headframe import Client
from support import free_port, wait_for


@pytest.mark.slow
def test_the_demo_fills_a_simulated_fleet_says_so_on_every_page_and_leaves_nothing_behind(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "headframe", "demo", "--gpus", "48", "--speed", "600", "--port", str(port)]
    told = tmp_path / "told"
    with told.open("w") as out:
        demo = subprocess.Popen(command, stderr=out, env={**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "400"})
    try:
        wait_for(lambda: "sign in with" in told.read_text())
        assert "Simulated: 48 GPUs" in told.read_text()
        key = re.search(r"hf_op_\w+", told.read_text())[0]
        with Client(f"http://127.0.0.1:{port}", key) as cloud:
            wait_for(lambda: sum(item.workload.state == "running" for item in cloud.workloads()) > 5)
            assert len(list(cloud.nodes())) == 6
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", follow_redirects=True) as browser:
            browser.post("/console/sign-in", data={"key": key}, headers={"Origin": f"http://127.0.0.1:{port}"})
            for path in ("/", "/workloads", "/nodes", "/events"):
                assert "48 GPUs that exist only as values" in browser.get(path).text
    finally:
        demo.send_signal(signal.SIGINT)
        assert demo.wait(20) in {0, 130, -signal.SIGINT}
    assert not list(Path(tmp_path).glob("headframe-demo-*"))
