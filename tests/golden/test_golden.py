"""Each `*.txt` here is a script of commands and the exact text they gave; `make golden` rewrites them, reviewers read the diff."""

import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support import Server, wait_for

HERE = Path(__file__).parent
SCRIPTS = sorted(HERE.glob("*.txt"))
CHANGING = [  # what differs from run to run, and what stands for it
    (r"wl-[0-9a-z]{20}", "wl-ID"),
    (r"pr-[0-9a-z]{16}", "pr-ID"),
    (r"hf_\w+", "hf_KEY"),
    (r"\b[0-9a-z]{16}\b", "KEYID"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE TIME"),
    (r"\d{4}-\d\d\b", "MONTH"),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"\d+\.\d s\b", "N s"),
    (r"-?\$0\.00\d{4}\b", "$AMOUNT"),
    (rf"\b{re.escape(platform.node())}\b", "NODE"),
    (r"/tmp/\S+", "PATH"),
    (r"[─━]+", "─"),
]


def normal(text):
    for pattern, name in CHANGING:
        text = re.sub(pattern, name, text)
    kept = [line for line in text.splitlines() if not re.match(r"● (queued|starting|running)$", line)]  # how many are seen is chance
    return "\n".join(re.sub(r"  +", "  ", line).rstrip() for line in kept)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_command_line_says_what_it_said_before(script, tmp_path):
    server = Server(tmp_path).start()
    try:
        with server.operator() as operator:
            wait_for(lambda: any(view.node.state == "ready" for view in operator.nodes()))
        wanted = script.read_text()
        got = "".join(run(command, tmp_path, server) for command in re.findall(r"^\$ (.*)$", wanted, re.MULTILINE))
        if os.environ.get("HEADFRAME_GOLDEN") == "write":
            script.write_text(got)
        else:
            assert got == wanted
    finally:
        server.kill()


def run(command, tmp_path, server):
    """One command in a shell, with `headframe` on it; standard output, standard error, exit code."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    shim = tmp_path / "bin" / "headframe"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m headframe "$@"\n')
    shim.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "COLUMNS": "160",
        "HEADFRAME_CONFIG": str(tmp_path / "config.json"),
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60)
    told = normal(done.stdout) + ("\n" if done.stdout else "")
    errors = "".join(f"! {line}\n" for line in normal(done.stderr).splitlines())
    return f"$ {command}\n{told}{errors}" + (f"[exit {done.returncode}]\n" if done.returncode else "") + "\n"
