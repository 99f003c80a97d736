import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile("headframe", deadline=None, derandomize=True, max_examples=100, suppress_health_check=list(HealthCheck))
settings.load_profile("headframe")

from support import Postgres, Server  # noqa: E402


@pytest.fixture
def server(tmp_path: Path):
    """A real server on a store of its own."""
    made = Server(tmp_path).start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One real server for the read-mostly tests of a module."""
    made = Server(tmp_path_factory.mktemp("shared")).start()
    yield made
    made.kill()


@pytest.fixture
def postgres(tmp_path_factory):
    """A real PostgreSQL."""
    made = Postgres(tmp_path_factory.mktemp("pg")).start()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def own_config(tmp_path, monkeypatch):
    """No test reads or writes the person's own login."""
    monkeypatch.setenv("HEADFRAME_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.delenv("HEADFRAME_KEY", raising=False)
    os.environ.setdefault("PYTHONHASHSEED", "0")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB: loop-mounted, or a tmpfs where loop devices are not to be had."""
    target = tmp_path / "small"
    target.mkdir()
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, 24 * 1024 * 1024)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], capture_output=True).returncode == 0
    if not (made and subprocess.run(["mount", "-o", "loop", str(image), str(target)], capture_output=True).returncode == 0):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(target)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small file system may be mounted here: {done.stderr.strip()}")
    yield target
    subprocess.run(["umount", "-l", str(target)], check=False)
