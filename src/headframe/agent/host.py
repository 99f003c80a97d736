"""What a machine itself is good for: its processor, memory, disk and network, by small measurements that need no privileges."""

import hashlib
import json
import mmap
import os
import re
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from headframe.model.health import Host

MIB = 1024 * 1024
DISK_MIB, MEMORY_MIB, HASH_MIB = 256, 256, 8
SMART_LIMIT_S = 10.0
_SPEED = re.compile(r"^(\d+)")


def host(data: Path, memory_mib: int) -> Host:
    """This machine; a measurement that can't be made leaves None. Takes some seconds, and DISK_MIB of disk at `data` for that time."""
    speed, p99 = _disk(data)
    return Host(
        memory_mib=memory_mib, threads=len(os.sched_getaffinity(0)), avx2=_avx2(), memory_copy_gb_s=_memory(), disk_mb_s=speed, disk_p99_ms=p99,
        network_gbit_s=_network(), fabric_gbit_s=_fabric(), edac_uncorrected=_edac(), disks_failing=_smart(), cpu_errors=_errors(),
    )  # fmt: skip


def _avx2() -> bool | None:
    path = Path("/proc/cpuinfo")
    flags = next((line for line in path.read_text().splitlines() if line.startswith("flags")), "") if path.exists() else ""
    return "avx2" in flags.split() if flags else None


def _memory() -> float:
    """Copies in memory, each byte read and written, the best of some: 10^9 bytes/s."""
    source = np.ones(MEMORY_MIB * MIB // 8)
    target, best = np.empty_like(source), 0.0
    for _ in range(4):
        began = time.perf_counter()
        np.copyto(target, source)
        best = max(best, 2 * source.nbytes / 1e9 / (time.perf_counter() - began))
    return best


def _errors() -> int:
    """How many threads' digests of the same bytes differ from the first: a processor or memory that lies."""
    block = np.random.default_rng(1).bytes(HASH_MIB * MIB)
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        digests = list(pool.map(lambda _: hashlib.sha256(block).digest(), range(threads * 4)))
    return sum(digest != digests[0] for digest in digests)


def _disk(data: Path) -> tuple[float | None, float | None]:
    """Sequential reads past the page cache in 10^6 bytes/s, and the 99th percentile of 4 KiB reads in milliseconds."""
    block = mmap.mmap(-1, 4 * MIB)  # page-aligned, as O_DIRECT demands
    with tempfile.NamedTemporaryFile(dir=data, prefix="check-") as file:
        try:
            for _ in range(DISK_MIB // 4):
                file.write(os.urandom(4096) * 1024)
            file.flush()
            os.fsync(file.fileno())
            reading = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
        except OSError:  # a full disk, or a file system without direct reads
            return None, None
        try:
            began = time.perf_counter()
            for number in range(DISK_MIB // 4):
                os.preadv(reading, [block], number * 4 * MIB)
            speed = DISK_MIB * MIB / 1e6 / (time.perf_counter() - began)
            return speed, _small_reads(reading)
        except OSError:
            return None, None
        finally:
            os.close(reading)


def _small_reads(reading: int) -> float:
    places, page, took = np.random.default_rng(1).integers(0, DISK_MIB * MIB // 4096, 500), mmap.mmap(-1, 4096), list[float]()
    for place in places:
        began = time.perf_counter()
        os.preadv(reading, [page], int(place) * 4096)
        took.append((time.perf_counter() - began) * 1000)
    return sorted(took)[int(len(took) * 0.99)]


def _network() -> float | None:
    """The fastest port that is up, by what it says."""
    speeds = [stats.speed for name, stats in psutil.net_if_stats().items() if stats.isup and stats.speed > 0 and name != "lo"]
    return max(speeds) / 1000 if speeds else None


def _fabric() -> float | None:
    """The fastest RDMA port, by what it says: gigabits per second."""
    rates = [path.read_text() for path in Path("/sys/class/infiniband").glob("*/ports/*/rate")]
    known = [float(found[1]) for rate in rates if (found := _SPEED.match(rate))]
    return max(known) if known else None


def _edac() -> int | None:
    counts = [path.read_text().strip() for path in Path("/sys/devices/system/edac/mc").glob("mc*/ue_count")]
    known = [int(count) for count in counts if count.isdigit()]
    return sum(known) if known else None


def _smart() -> int | None:
    """How many drives say of themselves that they fail (`smartctl -H`, which needs root); None where none can be asked."""
    program = shutil.which("smartctl")
    drives = [path.name for path in sorted(Path("/sys/block").glob("*")) if (path / "device").exists()]
    said = [verdict for drive in drives if program and (verdict := _passed(program, f"/dev/{drive}")) is not None]
    return said.count(False) if said else None


def _passed(program: str, drive: str) -> bool | None:
    try:
        done = subprocess.run([program, "--json=c", "-H", drive], capture_output=True, timeout=SMART_LIMIT_S, check=False)
        return bool(json.loads(done.stdout)["smart_status"]["passed"])
    except (OSError, ValueError, LookupError, TypeError, subprocess.TimeoutExpired):
        return None
