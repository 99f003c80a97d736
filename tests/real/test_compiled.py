"""The gateway as a C compiler makes it, by the command in the documentation: it passes the tests that the plain one passes."""

import os
import shutil
import subprocess
import sys

import pytest

from gateways import ROOT, compiled

TESTS = [
    "tests/unit/test_wire.py",
    "tests/unit/test_book.py",
    "tests/unit/test_routing.py",
    "tests/real/test_gateway.py",
    "tests/real/test_gateway_fuzz.py",
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("cc") is None and os.environ.get("CI") != "true", reason="needs a C compiler")
def test_the_compiled_gateway_passes_the_same_tests(tmp_path):
    env = compiled(tmp_path)
    where = subprocess.run(
        [sys.executable, "-c", "import headframe.gateway.wire as wire; print(wire.__file__)"], env=env, capture_output=True, text=True
    ).stdout.strip()
    assert where.startswith(str(tmp_path)) and where.endswith(".so")
    # in its own directory: a second pytest would close the first one's to the accounts that some components run as
    argv = [sys.executable, "-m", "pytest", "-n", "0", "--basetemp", tmp_path / "inner", *TESTS]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
