"""Later Slurms, as later Debians have them: for each a tree of files, in which the same tests run on this machine's kernel, processes and network.

`python tests/later.py trixie python -m pytest tests/real/test_slurm.py` needs root, mmdebstrap and, the first time, a mirror of Debian's (600 MB of disk, a minute).
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import slurm

PROJECT = Path(__file__).parent.parent
TREES = Path(os.environ.get("HEADFRAME_TREES", "/var/cache/headframe-trees"))
STABLE = "trixie"
SUITES = (STABLE, "forky")
"""With Slurm 24.11 and 26.05."""
MORE = "ca-certificates crun gcc iproute2 libc6-dev netavark podman procps python3 runc slirp4netns uidmap"
SEEN = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", str(PROJECT), sys.base_prefix)
"""This machine's, under the same paths: the product as it stands here, and its Python."""
ENTER = r"""
tree=$1; shift
mount --bind "$tree" "$tree"
for path in $SEEN; do mkdir -p "$tree$path"; mount --rbind "$path" "$tree$path"; done
cp /etc/hosts "$tree/etc/hosts"
mkdir -p "$tree/.here"; cd "$tree"; pivot_root . .here; umount -l /.here
cd "$PROJECT"
exec "$@"
"""


def missing():
    """What this machine lacks."""
    gone = [name for name in ("mmdebstrap", "unshare", "pivot_root") if shutil.which(name, path=slurm.PLACES) is None]
    if sys.base_prefix == "/usr":  # which is not seen there, as the tree has its own
        gone.append("a Python that is not the system's")
    return gone if os.geteuid() == 0 else [*gone, "root"]


def fetch(suite, packages, where):
    """A minimal Debian with these packages. A mirror may lag behind, and the later suites' lists are signed for a week: this is for tests."""
    lag = '--aptopt=Acquire::Check-Valid-Until "false"'
    subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", lag, f"--include={','.join(packages)}", suite, str(where)], check=True)


def tree(suite):
    """Where it lies; made the first time, whole or not at all, by one of those who want it."""
    made = TREES / suite
    TREES.mkdir(parents=True, exist_ok=True)
    with (TREES / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            new = TREES / f"{suite}.new"
            shutil.rmtree(new, ignore_errors=True)
            fetch(suite, [*slurm.PACKAGES.values(), *slurm.PLUGINS.values(), *MORE.split()], new)
            new.rename(made)
    return made


def inside(suite, command, **how):
    """The command, there: in a mount namespace of its own, whose root is the tree."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PATH": f"{Path(sys.executable).parent}:{slurm.PLACES}", "SEEN": " ".join(SEEN), "PROJECT": str(PROJECT)}
    return subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-ec", ENTER, "sh", str(tree(suite)), *command], env=env, **how)


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in SUITES:
        return f"usage: later.py {'|'.join(SUITES)} COMMAND…"
    if missing():
        return f"not here: {', '.join(missing())}"
    return inside(sys.argv[1], sys.argv[2:]).returncode


if __name__ == "__main__":
    sys.exit(main())
