"""Idle memory of the server (goal < 200 MB) and its start time (goal < 2 s), beside an empty interpreter's."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import psutil
from support import Server


def main():
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "pass"])
    empty = time.monotonic() - began
    with tempfile.TemporaryDirectory() as root:
        server = Server(Path(root)).start()
        server.kill()
        began = time.monotonic()
        server.start()
        start = time.monotonic() - began
        time.sleep(5)
        process = psutil.Process(server.process.pid)
        rss = process.memory_info().rss / 2**20
        process.cpu_percent()
        time.sleep(5)
        cpu = process.cpu_percent()
        server.kill()
    print(
        f"server: start to serving {start:.2f} s (goal 2, empty interpreter {empty:.2f} s), idle {rss:.0f} MiB (goal 200): ratio {rss / 200:.2f}, idle CPU {cpu:.1f} % of a core"
    )


main()
