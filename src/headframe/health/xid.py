"""NVIDIA's driver in the kernel's log: lines to Xids, and which of them to blame."""

import csv
import re
from collections.abc import Iterable, Iterator

import msgspec

from headframe.model.health import Xid

BURST_MS = 180_000
"""Xids of one card this close together are one fault, and the first is to blame (3 min: NVSentinel; arXiv 2503.11901 uses 5 s)."""
FOLLOWERS = frozenset({45, 154})
"""They report what another one did."""
OFF_THE_BUS = 79
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]{4,20})\)[^:]{0,40}: (\d{1,5})")
_FALLEN = re.compile(r"NVRM: GPU (?:at PCI:)?([0-9a-fA-F:.]{4,20})[^\n]{0,80} has fallen off the bus")
_SLOT = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-9a-fA-F])?")


class Code(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `xid.csv`."""

    code: int
    name: str
    meaning: str
    severity: str
    action: str
    escalation: str


def codes(text: str) -> dict[int, Code]:
    """The table of `xid.csv`, by code."""
    return {int(row["code"]): msgspec.convert({**row, "code": int(row["code"])}, Code) for row in csv.DictReader(text.splitlines())}


def read(line: str, at_ms: int) -> Xid | None:
    """The Xid that a line of the kernel's log tells of; "fallen off the bus" may come without a number."""
    if found := _XID.search(line):
        return Xid(at_ms=at_ms, code=int(found[2]), slot=slot(found[1]))
    if found := _FALLEN.search(line):
        return Xid(at_ms=at_ms, code=OFF_THE_BUS, slot=slot(found[1]))
    return None


def slot(text: str) -> str:
    """One spelling of a place on the bus: NVML says 00000000:01:00.0, the kernel 0000:01:00."""
    found = _SLOT.fullmatch(text.strip())
    if found is None:
        return text.strip().lower()
    return f"{int(found[1] or '0', 16):04x}:{found[2].lower()}:{found[3].lower()}"


def blamed(xids: Iterable[Xid]) -> Iterator[Xid]:
    """The first of each burst of one card, in order of time; what only follows another is left out, unless it stands alone."""
    ordered, last_ms = sorted(xids), dict[str, int]()
    for xid in ordered:
        before_ms = last_ms.get(xid.slot)
        if xid.code not in FOLLOWERS:
            last_ms[xid.slot] = xid.at_ms
        if xid.code not in FOLLOWERS and (before_ms is None or xid.at_ms - before_ms > BURST_MS):
            yield xid
