"""Memory and CPU limits for processes, where this machine lets us: cgroup v2, else v1, else none (and `doctor` says so)."""

import contextlib
import time
from pathlib import Path

from headframe.model.work import Part

ROOT = Path("/sys/fs/cgroup")
NAME = "headframe"
CPU_PERIOD_US = 100_000


def limits_kind() -> str:
    """`v2`, `v1` or `none`: tried by making a group, since permission is only known by asking."""
    if (ROOT / "cgroup.controllers").exists():
        return "v2" if _can_make(ROOT / NAME) and _delegated() else "none"
    return "v1" if _can_make(ROOT / "memory" / NAME) and _can_make(ROOT / "cpu" / NAME) else "none"


def make_cgroups(allocation: str, part: Part) -> list[str]:
    """Groups that limit what `part` holds; the work's first process joins them before it runs anything."""
    memory, quota = part.memory_mib * 1024 * 1024, max(1000, part.cpu_milli * CPU_PERIOD_US // 1000)
    kind = limits_kind()
    if kind == "v2":
        group = _make(ROOT / NAME / allocation)
        _set(group / "memory.max", str(memory))
        _set(group / "memory.swap.max", "0")
        _set(group / "cpu.max", f"{quota} {CPU_PERIOD_US}")
        return [str(group)]
    if kind == "v1":
        in_memory, in_cpu = _make(ROOT / "memory" / NAME / allocation), _make(ROOT / "cpu" / NAME / allocation)
        _set(in_memory / "memory.limit_in_bytes", str(memory))
        _set(in_cpu / "cpu.cfs_period_us", str(CPU_PERIOD_US))
        _set(in_cpu / "cpu.cfs_quota_us", str(quota))
        return [str(in_memory), str(in_cpu)]
    return []


def remove_cgroups(allocation: str) -> None:
    """The groups are empty once the work is over; the kernel may need a moment to agree."""
    for parent in (ROOT / NAME, ROOT / "memory" / NAME, ROOT / "cpu" / NAME):
        for _ in range(5):
            with contextlib.suppress(OSError):
                if (parent / allocation).is_dir():
                    (parent / allocation).rmdir()
                break
            time.sleep(0.02)


def _delegated() -> bool:
    with contextlib.suppress(OSError):
        for path in (ROOT, ROOT / NAME):
            (path / "cgroup.subtree_control").write_text("+memory +cpu")
        return True
    return False


def _can_make(path: Path) -> bool:
    try:
        _make(path)
    except OSError:
        return False
    return True


def _make(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def _set(path: Path, value: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting has no such file
        path.write_text(value)
