"""What was served, on this machine's disk until the control plane has taken it: lines in numbered files, each of which becomes one batch of that number.

A request is a line when it ends; one that lasts is a line every second before that, so that after a crash of ours what it had delivered is billed. Lines are written as the
request ends and on disk 50 ms later. A file is never changed once it is sealed, so a batch that is sent again is the same batch.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from headframe.files import write_private
from headframe.gateway.records import Line
from headframe.model.endpoint import Served, ServedBatch
from headframe.model.errors import Conflicting
from headframe.model.ids import GatewayId, KeyId, ProjectId, WorkloadId

BYTES_MAX = 256 * 1024 * 1024
"""As much may wait to be taken; then new requests are refused: nothing that was served is lost."""


def _nobody() -> None:
    """Nobody is told."""


_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(Line).decode


class Spool:
    """One gateway's. Opening it ends what a crash left open; raises Conflicting where its files can't be read. `wrote` is called when there is something to sync."""

    def __init__(self, root: Path, gateway: GatewayId) -> None:
        self._root, self._gateway = root, gateway
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lines: list[Line] = []
        self._sums: dict[int, dict[str, int]] = {}
        self._tally = Tally()
        self._next: ServedBatch | None = None
        self.dirty = False
        self.wrote: Callable[[], None] = _nobody
        self.lines = 0
        self._sizes = {int(path.stem): path.stat().st_size for path in root.glob("*.log")}
        self._total = sum(self._sizes.values())
        counter = root / "next"
        self.number = max([int(counter.read_text()) if counter.exists() else 1, *(n + 1 for n in self._sizes)])
        last: dict[int, Line] = {}
        for n in sorted(self._sizes):
            for line in self.read(n):
                last[line.serial] = line
                self._count(n, line)
        self.serial = max(last, default=0) + 1
        self._file = self._open()
        for line in last.values():
            if line.open:
                self.put(msgspec.structs.replace(line, open=False, cut=True, estimated=True))
        self.flush()

    @property
    def full(self) -> bool:
        """Whether nothing more may be served for now."""
        return self._total >= BYTES_MAX

    def next_serial(self) -> int:
        """A number for a new request, never given before by this gateway while it may matter."""
        self.serial += 1
        return self.serial

    def put(self, line: Line) -> None:
        """Take it in; `flush` writes it."""
        self.lines += 1
        self._lines.append(line)
        self._tally.add(line)
        if line.amount:
            self._count(self.number, line)

    def flush(self) -> None:
        """Write what was put; `dirty` until it is synced."""
        if self._lines:
            data = b"".join(_encode(line) + b"\n" for line in self._lines)
            self._lines.clear()
            os.write(self._file, data)
            self._sizes[self.number] += len(data)
            self._total += len(data)
            if not self.dirty:
                self.dirty = True
                self.wrote()

    def sync(self) -> None:
        """Have what was written on disk; blocks."""
        self.dirty = False
        os.fsync(self._file)

    def seal(self) -> None:
        """Begin a new file, if this one has anything to tell."""
        self.flush()
        if not self._sizes[self.number]:
            return
        os.fsync(self._file)
        os.close(self._file)
        if not self.sealed:  # it is the next to be told, and need not be read again
            self._next = self._tally.batch(self.number, self._gateway)
        self.number += 1
        self.lines = 0
        self._tally = Tally()
        self._file = self._open()

    @property
    def sealed(self) -> list[int]:
        """The files that are to be sent."""
        return sorted(n for n in list(self._sizes) if n < self.number)  # also asked from a thread

    def oldest(self) -> ServedBatch | None:
        """What is to be sent next; None where nothing is sealed. Reads its file, where that was not the next one as it was sealed: may be called on a thread."""
        sealed = self.sealed
        if sealed and (self._next is None or self._next.number != sealed[0]):
            self._next = batch(sealed[0], self._gateway, self.read(sealed[0]))
        return self._next if sealed else None

    def taken(self, number: int) -> None:
        """The control plane has everything up to that batch."""
        for n in [n for n in self._sizes if n <= number and n < self.number]:
            self._path(n).unlink(missing_ok=True)
            self._total -= self._sizes.pop(n)
            self._sums.pop(n, None)

    def skip_to(self, taken: int) -> None:
        """Number the batches from where the control plane is: it has heard of more of them than we remember (our disk was set back)."""
        if self.number <= taken and not any(self._sizes.values()):
            self.close()
            self._path(self.number).unlink(missing_ok=True)
            self._sizes.clear()
            self.number = taken + 1
            self._file = self._open()

    def unsent(self) -> dict[str, int]:
        """What is not yet taken, in money, by project and by key."""
        found: dict[str, int] = {}
        for sums in self._sums.values():
            for payer, amount in sums.items():
                found[payer] = found.get(payer, 0) + amount
        return found

    def close(self) -> None:
        """Write, sync, and let go."""
        self.flush()
        os.fsync(self._file)
        os.close(self._file)

    def read(self, number: int) -> list[Line]:
        """A file's lines; the last one may be torn by a crash, and was then never acknowledged."""
        raw = self._path(number).read_bytes().split(b"\n")
        lines = [line for line in raw[:-1] if line]
        try:
            return [_decode(line) for line in lines]
        except msgspec.DecodeError as error:
            raise Conflicting(f"{self._path(number)} is damaged: {error}", "move it away; what it says was served is then not billed") from None

    def _count(self, number: int, line: Line) -> None:
        if not line.open and line.amount:
            sums = self._sums.setdefault(number, {})
            sums[line.project] = sums.get(line.project, 0) + line.amount
            sums[line.key] = sums.get(line.key, 0) + line.amount

    def _path(self, number: int) -> Path:
        return self._root / f"{number:08d}.log"

    def _open(self) -> int:
        """The file of this number. That it was begun is kept apart: a number is not used again when its file is gone."""
        write_private(self._root / "next", str(self.number + 1).encode())
        self._sizes.setdefault(self.number, 0)
        made = os.open(self._path(self.number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with contextlib.suppress(OSError):
            folder = os.open(self._root, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        return made


def batch(number: int, gateway: GatewayId, lines: Iterable[Line]) -> ServedBatch:
    """What a file says."""
    tally = Tally()
    for line in lines:
        tally.add(line)
    return tally.batch(number, gateway)


class Tally:
    """What lines say together: for each key and endpoint the sum of its requests, and each request by itself that its client named."""

    def __init__(self) -> None:
        self._sums: dict[tuple[ProjectId, KeyId, WorkloadId], _Sum] = {}
        self._named: list[Line] = []

    def add(self, line: Line) -> None:
        """One more; what is still open does not count."""
        if line.open:
            return
        if line.request_id:
            self._named.append(line)
            return
        key = (line.project, line.key, line.endpoint)
        known = self._sums.get(key)
        if known is None:
            known = self._sums[key] = _Sum(line.at_ms)
        known.requests += 1
        known.prompt += line.prompt
        known.completion += line.completion
        known.cached += line.cached
        known.failed += line.failed
        known.estimated += line.estimated
        known.amount += line.amount

    def batch(self, number: int, gateway: GatewayId) -> ServedBatch:
        """In an order that the lines alone decide: a batch that is made again is the same."""
        items: list[Served] = []
        for (project, key, endpoint), each in sorted(self._sums.items()):
            items.append(Served(id=f"{gateway}/{number}/{len(items)}", gateway_id=gateway, endpoint_id=endpoint, project_id=project, key_id=key, at_ms=each.at_ms,
                                requests=each.requests, prompt=each.prompt, completion=each.completion, cached=each.cached, failed=each.failed, estimated=each.estimated,
                                amount_nano=each.amount))  # fmt: skip
        for line in self._named:
            items.append(Served(id=f"{gateway}/{number}/{len(items)}", gateway_id=gateway, endpoint_id=line.endpoint, project_id=line.project, key_id=line.key, at_ms=line.at_ms,
                                requests=1, prompt=line.prompt, completion=line.completion, cached=line.cached, failed=int(line.failed), estimated=int(line.estimated),
                                request_id=line.request_id, cut=line.cut, amount_nano=line.amount))  # fmt: skip
        return ServedBatch(number=number, items=tuple(items))


class _Sum:
    """Of one key's requests to one endpoint; `at_ms` is the first one's."""

    __slots__ = ("amount", "at_ms", "cached", "completion", "estimated", "failed", "prompt", "requests")

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms
        self.requests = self.prompt = self.completion = self.cached = self.failed = self.estimated = self.amount = 0
