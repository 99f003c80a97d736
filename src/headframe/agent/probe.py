"""What this machine really has: CPU, memory, disk, GPUs through their drivers, and the serials by which it is known again."""

import hashlib
import os
import platform
import shutil
from pathlib import Path

import msgspec
import psutil

from headframe.agent.cards import Card, opened
from headframe.agent.vendor import Gone
from headframe.model.command import Enrol
from headframe.model.fleet import LOCAL, Gpu, Node
from headframe.model.ids import GpuId, NodeId, RackId, SiteId
from headframe.model.states import GpuState, NodeState
from headframe.model.units import MILLI

MIB = 1024 * 1024
RESERVED_MEMORY_MIB = 512
"""Kept for the operating system and for Headframe itself."""


def probe(site: SiteId, rack: RackId, data: Path, now_ms: int) -> Enrol:
    """This machine as an enrolment; `data` is where work will lie, so its file system is the disk that is sold."""
    node_id = NodeId("node-" + _machine_serial(data)[:12])
    node = Node(
        id=node_id, name=platform.node() or node_id, site_id=site, rack_id=rack, state=NodeState.NEW, engine=LOCAL,
        cpu_milli=len(os.sched_getaffinity(0)) * MILLI, memory_mib=max(256, usable_memory_mib() - RESERVED_MEMORY_MIB),
        disk_mib=shutil.disk_usage(data).total // MIB, cpu_model=_cpu_model(), os=_os_name(), boot_id=boot_id(),
        joined_ms=now_ms, seen_ms=now_ms, arch=platform.machine(),
    )  # fmt: skip
    return Enrol(node=node, gpus=tuple(gpus(node_id, now_ms)))


def boot_id() -> str:
    """Changes with every boot of the machine."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def gpus(node: NodeId, now_ms: int) -> list[Gpu]:
    """The cards that their drivers list; none where there is no driver. A card that is lost when asked is left out."""
    with opened() as cards:
        found = [(card, gpu) for card in cards if (gpu := _gpu(card, node, now_ms))]
        return _linked(found)


def _gpu(card: Card, node: NodeId, now_ms: int) -> Gpu | None:
    try:
        uuid, said, known = card.uuid(), card.vendor.inventory(card.number), card.vendor.placed(card.number)
    except Gone:
        return None
    return Gpu(
        id=GpuId(uuid), node_id=node, index=card.index, model=said.model, memory_mib=said.memory_mib, driver=said.driver, vbios=said.vbios,
        compute_capability=said.compute_capability, pcie_gen=said.link_gen_max or 0, max_w=said.power_limit_w or 0,
        state=GpuState.NEW, joined_ms=now_ms, **known,
    )  # fmt: skip


def _linked(cards: list[tuple[Card, Gpu]]) -> list[Gpu]:
    """The cards with their peer-to-peer domains: those that reach each other's memory, directly or through others that do."""
    domain = list(range(len(cards)))
    for a, (one, _) in enumerate(cards):
        for b, (other, _) in enumerate(cards[:a]):
            if domain[a] != domain[b] and one.vendor is other.vendor and one.vendor.reach(one.number, other.number):
                domain = [domain[b] if each == domain[a] else each for each in domain]
    alone = {number for number in domain if domain.count(number) == 1}
    return [msgspec.structs.replace(gpu, p2p="" if number in alone else str(number)) for (_, gpu), number in zip(cards, domain, strict=True)]


def _machine_serial(data: Path) -> str:
    """One drawn once and kept with the data, where there is one; else the system's machine id, hashed so that it is not disclosed."""
    own = data / "machine-id"
    if own.exists():
        return hashlib.sha256(b"headframe" + own.read_bytes()).hexdigest()
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        if path.exists() and (text := path.read_text().strip()):
            return hashlib.sha256(b"headframe" + text.encode()).hexdigest()
    own.write_text(os.urandom(16).hex())
    return hashlib.sha256(b"headframe" + own.read_bytes()).hexdigest()


def usable_memory_mib() -> int:
    """What may be used: the machine's memory, or the container's limit where that is lower."""
    total = psutil.virtual_memory().total
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.exists() and (text := path.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total // MIB


def macs() -> tuple[str, ...]:
    """The hardware addresses of this machine's ports."""
    ports = psutil.net_if_addrs().values()
    found = {each.address.lower() for port in ports for each in port if each.family == psutil.AF_LINK}
    return tuple(sorted(found - {"00:00:00:00:00:00", ""}))


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
