"""What this machine really has: CPU, memory, disk, GPUs through NVML, and the serials by which it is known again.

Every datum of a GPU has one row in a table that names its NVML call; a card that can't answer one is still a card.
"""

import hashlib
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from headframe.model.command import Enrol
from headframe.model.fleet import Gpu, Node, Sharing
from headframe.model.ids import GpuId, NodeId, RackId, SiteId
from headframe.model.states import GpuState, NodeState
from headframe.model.units import MILLI

MIB = 1024 * 1024
SHARING = {0: Sharing.TIME_SLICE, 2: Sharing.EXCLUSIVE, 3: Sharing.EXCLUSIVE}
"""By NVML's compute mode; in 2 (prohibited) and 3 (one process) a card takes one holder at most."""
P2P_READ, P2P_OK = 0, 0
"""NVML_P2P_CAPS_INDEX_READ and NVML_P2P_STATUS_OK of nvml.h; nvidia-ml-py has the first as a tuple, which its own call refuses."""
RESERVED_MEMORY_MIB = 512
"""Kept for the operating system and for Headframe itself."""


def probe(site: SiteId, rack: RackId, data: Path, now_ms: int) -> Enrol:
    """This machine as an enrolment; `data` is where work will lie, so its file system is the disk that is sold."""
    node_id = NodeId("node-" + _machine_serial(data)[:12])
    node = Node(
        id=node_id, name=platform.node() or node_id, site_id=site, rack_id=rack, state=NodeState.NEW, engine="local",
        cpu_milli=len(os.sched_getaffinity(0)) * MILLI, memory_mib=max(256, _memory_mib() - RESERVED_MEMORY_MIB),
        disk_mib=shutil.disk_usage(data).total // MIB, cpu_model=_cpu_model(), os=_os_name(), boot_id=boot_id(),
        joined_ms=now_ms, seen_ms=now_ms, arch=platform.machine(),
    )  # fmt: skip
    return Enrol(node=node, gpus=tuple(nvidia_gpus(node_id, now_ms)))


def boot_id() -> str:
    """Changes with every boot of the machine."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def nvidia_gpus(node: NodeId, now_ms: int) -> list[Gpu]:
    """The NVIDIA cards that NVML lists; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        cards = [_gpu(pynvml, index, node, now_ms) for index in range(pynvml.nvmlDeviceGetCount())]
        return _linked(pynvml, cards)
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int, node: NodeId, now_ms: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    read: dict[str, Callable[[], Any]] = {
        "id": lambda: GpuId(_text(nvml.nvmlDeviceGetUUID(handle))),
        "model": lambda: _text(nvml.nvmlDeviceGetName(handle)),
        "memory_mib": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total // MIB,
        "compute_capability": lambda: ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(handle))),
        "pci_bus": lambda: _text(nvml.nvmlDeviceGetPciInfo(handle).busId),
        "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        "pcie_gen": lambda: nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle),
        "pcie_width": lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
        "max_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) // 1000,
        "sharing": lambda: SHARING.get(nvml.nvmlDeviceGetComputeMode(handle), Sharing.TIME_SLICE),
    }
    known: dict[str, Any] = {"id": GpuId(f"{node}-gpu-{index}"), "model": "unknown", "memory_mib": 0}
    for name, call in read.items():
        try:
            known[name] = call()
        except nvml.NVMLError:
            continue  # the datum stays unknown
    return Gpu(node_id=node, index=index, state=GpuState.NEW, joined_ms=now_ms, **known)


def _linked(nvml: Any, cards: list[Gpu]) -> list[Gpu]:
    """The cards with their peer-to-peer domains: those that reach each other's memory, directly or through others that do."""
    domain = list(range(len(cards)))
    for a in range(len(cards)):
        for b in range(a):
            if domain[a] != domain[b] and _reach(nvml, a, b):
                domain = [domain[b] if each == domain[a] else each for each in domain]
    alone = {number for number in domain if domain.count(number) == 1}
    return [msgspec.structs.replace(gpu, p2p="" if number in alone else str(number)) for gpu, number in zip(cards, domain, strict=True)]


def _reach(nvml: Any, a: int, b: int) -> bool:
    try:
        first, second = nvml.nvmlDeviceGetHandleByIndex(a), nvml.nvmlDeviceGetHandleByIndex(b)
        return nvml.nvmlDeviceGetP2PStatus(first, second, P2P_READ) == P2P_OK
    except nvml.NVMLError:
        return False


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _machine_serial(data: Path) -> str:
    """The system's machine id, hashed so that it is not disclosed; else one drawn once and kept with the data."""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        if path.exists() and (text := path.read_text().strip()):
            return hashlib.sha256(b"headframe" + text.encode()).hexdigest()
    own = data / "machine-id"
    if not own.exists():
        own.write_text(os.urandom(16).hex())
    return hashlib.sha256(b"headframe" + own.read_bytes()).hexdigest()


def _memory_mib() -> int:
    """What may be used: the machine's memory, or the container's limit where that is lower."""
    total = psutil.virtual_memory().total
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.exists() and (text := path.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total // MIB


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()
