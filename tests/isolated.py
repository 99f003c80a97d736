"""A real Slurm machine that confines its jobs: cgroups for devices and memory, a UNIX account for each project, a /proc that shows nobody others' processes. As root, and with cgroup v1's
controllers, which are what Debian 12's Slurm knows.

Accounts and /proc are those of a mount namespace in which all of it runs, so nothing of the machine itself is changed. A card is a device file of NVIDIA's number with no driver behind it: who may
open it is told that there is no device, who may not is told that.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from slurm import Slurm

CONTROLLERS = ("devices", "memory", "freezer", "cpuset", "cpuacct")
NVIDIA_MAJOR = 195
UIDS, UIDS_EACH = range(70_000, 74_000), 10
"""Of which each cluster takes some of its own, as it does a name for its machine: several may be up on this one at once. Debian gives 60,000 to 64,999 to its packages (Slurm has 64,030)."""


def confines():
    """Whether this machine can."""
    return os.geteuid() == 0 and all((Path("/sys/fs/cgroup") / name).is_dir() for name in CONTROLLERS)


class Isolated(Slurm):
    """`accounts` are made by `account`, after it is up: Headframe names them after its projects."""

    def __init__(self, root, **conf):
        super().__init__(root, nodes=1, gpus="rtx3090:4", memory_mb=4_000, ProctrackType="proctrack/cgroup", TaskPlugin="task/cgroup", **conf)
        self.names = [f"n{os.getpid()}"]
        self.inside = []
        self.accounts = 0

    def _up(self):
        for name in ("passwd", "group", "subuid", "subgid"):
            there = Path("/etc") / name
            there.touch()  # the last two come with no package
            (self.root / name).write_text(there.read_text())
        ready = self.root / "inside"
        self._spawn("inside", ["unshare", "--mount", "--propagation", "private", "sh", "-ec",
            f"for name in passwd group subuid subgid; do mount --bind {self.root}/$name /etc/$name; done; mount -t proc -o hidepid=2 proc /proc; echo >{ready}; exec sleep infinity",
        ])  # fmt: skip
        self._until("a namespace", ready.exists)
        self.inside = ["nsenter", "-t", str(self.processes["inside"].pid), "-m", f"--wd={self.root}", "--"]
        super()._up()

    def _spawn(self, name, command, env=None):
        super()._spawn(name, [*self.inside, *command], env)

    def _configure(self):
        super()._configure()
        (self.root / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nConstrainDevices=yes\nConstrainRAMSpace=yes\nConstrainSwapSpace=no\nConstrainCores=no\nAllowedRAMSpace=100\n"
        )

    def _cards(self, name):
        said = super()._cards(name)
        for path in (self.root / "dev" / name).iterdir():
            path.unlink()
            os.mknod(path, 0o020666, os.makedev(NVIDIA_MAJOR, 200 + int(path.name.removeprefix("nvidia"))))
            path.chmod(0o666)
        return said

    def account(self, name):
        """A UNIX account, as an administrator makes one for a project: with numbers of its own for what runs in containers."""
        uid, home = UIDS[os.getpid() * UIDS_EACH % len(UIDS) + self.accounts], self.root / "home" / name
        self.accounts += 1
        home.mkdir(parents=True, mode=0o755)
        os.chown(home, uid, uid)
        home.chmod(0o700)
        numbers = f"{name}:{200_000 + 65_536 * (uid - UIDS[0])}:65536\n"
        for kind, line in (
            ("passwd", f"{name}:x:{uid}:{uid}::{home}:/bin/sh\n"),
            ("group", f"{name}:x:{uid}:\n"),
            ("subuid", numbers),
            ("subgid", numbers),
        ):
            with (self.root / kind).open("a") as file:
                file.write(line)
        return uid

    def runs_as(self, uid, *command):
        """A command there, as one of the accounts."""
        home = next(line.split(":")[5] for line in (self.root / "passwd").read_text().splitlines() if line.split(":")[2] == str(uid))
        enter = [word if not word.startswith("--wd=") else f"--wd={home}" for word in self.inside]
        done = subprocess.run(
            [
                *enter,
                "setpriv",
                f"--reuid={uid}",
                f"--regid={uid}",
                "--clear-groups",
                "env",
                "-i",
                f"PATH={os.environ['PATH']}",
                f"HOME={home}",
                *command,
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def __exit__(self, *_):
        super().__exit__()
        until = time.monotonic() + 10
        while groups := [
            path for name in CONTROLLERS for path in sorted(Path("/sys/fs/cgroup", name).glob(f"slurm_{self.names[0]}/**/"), reverse=True)
        ]:
            for path in groups:  # what its jobs left, then the groups themselves
                with contextlib.suppress(OSError):
                    for pid in (path / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                    path.rmdir()
            assert time.monotonic() < until, groups
            time.sleep(0.05)


def opened(path):
    """A line of Python that says what opening it is answered with."""
    return f"import os\ntry:\n    os.open('{path}', os.O_RDWR)\nexcept OSError as error:\n    print(error.strerror)"
