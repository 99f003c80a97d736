"""A later Slurm than this machine's own: the tests of Slurm that are quick, in a tree of files of Debian 13. All of them, and the Slurm of the Debian after that: `make slurm`."""

import os
import subprocess
import sys
import tempfile

import pytest

import later

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SLOW = ("train_together", "gives_to_others", "a_lost_machine", "elastic", "controller_is_away")
"""Parts of the names of tests that wait for what takes its time on any Slurm."""
FILES = ("tests/real/test_slurm.py", "tests/real/test_slurm_isolation.py", "tests/real/test_cluster.py")


def test_debian_13s_slurm_runs_work_confines_it_and_makes_a_cluster_as_the_one_here_does():
    if later.missing() or not (later.TREES / later.STABLE).exists():
        assert os.environ.get("CI") != "true", f"not here: {later.missing()}"
        pytest.skip("its tree was not made: `make slurm` makes it, as root, and so does `CI=true make test`")
    with tempfile.TemporaryDirectory(prefix="hf-later-") as base:
        how = f"-n 0 -v -p no:cacheprovider --basetemp={base}/t -k".split()
        command = [sys.executable, "-m", "pytest", *FILES, *how, " and ".join(f"not {name}" for name in SLOW)]
        done = later.inside(later.STABLE, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout.splitlines()[-1], done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout
