"""A process of its own that reads the cards and the kernel's log, and writes one line of JSON for each round.

A wedged driver holds whoever asks it: so the asking is done in a child, and the parent owns the clock. A child that has been silent
for too long is killed and started again; what its cards get for it is a reading that took as long as the silence.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from headframe.agent.cards import identified, opened
from headframe.health.xid import read
from headframe.model.health import Report, Sample, Xid

INTERVAL_S = 10.0
SLOW_EVERY = 6
"""Every so many rounds also what changes seldom."""
SILENT_S = 35.0
"""A child silent for so long (beyond its interval) is taken for wedged; the rule is 30 s."""
AGAIN_S = 60.0
KERNEL_LOG = Path("/dev/kmsg")
CHUNK_BYTES = 8192
LINE_BYTES_MAX = 1 << 20


async def reports(interval_s: float = INTERVAL_S, kernel_log: Path = KERNEL_LOG) -> AsyncIterator[Report]:
    """What this machine tells, for ever; ends at once where no driver lists a card."""
    known: tuple[str, ...] = ()
    while True:
        command = [sys.executable, "-m", "headframe.agent.watch", str(interval_s), str(kernel_log)]
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL, limit=LINE_BYTES_MAX)
        assert child.stdout is not None
        try:
            while True:
                line = await line_within(child.stdout, SILENT_S + interval_s)
                if line is None:  # wedged: said of all cards, for it is not known which
                    yield Report(samples=tuple(Sample(gpu_id=key, at_ms=0, answer_ms=int(SILENT_S * 1000)) for key in known))
                    break
                if not line:
                    break
                report = msgspec.json.decode(line, type=Report)
                known = tuple(each.gpu_id for each in report.samples) or known
                yield report
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        if not known:
            return
        await asyncio.sleep(AGAIN_S)


async def line_within(stream: asyncio.StreamReader, limit_s: float) -> bytes | None:
    """The next line, empty at the end; None where it takes longer than `limit_s`."""
    try:
        return await asyncio.wait_for(stream.readline(), limit_s)
    except TimeoutError:
        return None


class KernelLog:
    """New lines of the kernel's log. What may not be read is as good as empty: Xids are then not seen."""

    def __init__(self, path: Path) -> None:
        self._rest = b""
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            self._file = -1
            return
        with contextlib.suppress(OSError):
            os.lseek(self._file, 0, os.SEEK_END)  # what was before is not ours to judge; a pipe has no end

    def xids(self, at_ms: int) -> list[Xid]:
        """The Xids since last asked."""
        lines = list(self._lines())
        return [xid for line in lines if (xid := read(line.decode("utf-8", "replace"), at_ms))]

    def _lines(self) -> list[bytes]:
        found: list[bytes] = []
        while self._file >= 0:
            try:
                chunk = os.read(self._file, CHUNK_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # the kernel wrote over what was not yet read: go on with what there is
            except OSError:
                break
            if not chunk:
                break
            *whole, rest = (self._rest + chunk).split(b"\n")
            self._rest = rest[-CHUNK_BYTES:]
            found += whole
        return found


def _die_with_parent() -> None:
    """A child that hangs in the driver would outlive a killed server; the kernel ends it (prctl(2), PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def watch(interval_s: float, kernel_log: Path) -> None:
    """Read and write until nobody listens."""
    log = KernelLog(kernel_log)
    with opened() as there:
        cards = identified(there)
        encoder, number = msgspec.json.Encoder(), 0
        while cards:
            began = time.monotonic()
            at_ms = time.time_ns() // 1_000_000
            samples = tuple(card.vendor.sample(card.number, uuid, at_ms, slow=number % SLOW_EVERY == 0) for card, uuid in cards)
            line = encoder.encode(Report(samples=samples, xids=tuple(log.xids(at_ms)))) + b"\n"
            try:
                os.write(sys.stdout.fileno(), line)
            except BrokenPipeError:
                return
            number += 1
            time.sleep(max(0.0, interval_s - (time.monotonic() - began)))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _die_with_parent()
        watch(float(sys.argv[1]), Path(sys.argv[2]))
