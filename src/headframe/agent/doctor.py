"""What this machine can and can't do as a node, in plain words, each with what would mend it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec

from headframe.engines.cgroup import limits_kind
from headframe.engines.runtime import podman_path
from headframe.model.ids import NodeId

SPACE_MIN_GIB = 5


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict."""

    what: str
    verdict: Literal["good", "limited", "bad"]
    finding: str
    mend: str = ""


def examine(data: Path) -> list[Finding]:
    """All verdicts, most basic first."""
    return [_python(), _disk(data), _gpus(), _podman(), _limits(), _boundary()]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(what="Python", verdict="good", finding=f"{version} at {sys.executable}")


def _disk(data: Path) -> Finding:
    existing = next(path for path in (data, *data.parents) if path.exists())
    free_gib = shutil.disk_usage(existing).free // 2**30
    if not os.access(existing, os.W_OK):
        return Finding(what="disk", verdict="bad", finding=f"{existing} can't be written", mend="choose another --data")
    verdict = "good" if free_gib >= SPACE_MIN_GIB else "limited"
    return Finding(what="disk", verdict=verdict, finding=f"{free_gib} GiB free at {existing}", mend="" if verdict == "good" else "free some space")


def _gpus() -> Finding:
    from headframe.agent.probe import gpus

    cards = gpus(NodeId("this"), 0)
    if cards:
        return Finding(what="GPUs", verdict="good", finding=", ".join(f"{card.model} ({card.memory_mib} MiB)" for card in cards))
    return Finding(
        what="GPUs",
        verdict="limited",
        finding="no driver lists any",
        mend="install NVIDIA's driver, or ROCm with amdsmi, if there are cards; CPU work runs",
    )


def _podman() -> Finding:
    path = podman_path()
    if path is None:
        return Finding(
            what="podman", verdict="limited", finding="not installed: jobs with an `image` are refused here", mend="apt install podman crun"
        )
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=20)
    return Finding(what="podman", verdict="good", finding=version.stdout.strip() or version.stderr.strip())


def _limits() -> Finding:
    kind = limits_kind()
    if kind == "none":
        return Finding(what="limits", verdict="limited", finding="no cgroup may be made: CPU and memory of processes are not limited",
                       mend="run as root, or delegate a cgroup (systemd: Delegate=yes)")  # fmt: skip
    return Finding(what="limits", verdict="good", finding=f"CPU and memory by cgroup {kind}")


def _boundary() -> Finding:
    return Finding(
        what="isolation", verdict="limited", mend="give each hostile tenant a machine of their own",
        finding="the process runtime is no tenant boundary: jobs run as the server's user and can read each other's files",
    )  # fmt: skip
