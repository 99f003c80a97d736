"""Inventories that owners of fleets have, as rigs: HiveOS (`workers2` of its API, `gpu-detect listjson`, `rig.conf`) and CSV.

Secrets among them (passwords, tokens, wallets) are dropped here, before anything leaves the machine; they are named, never shown. A row that
can't be read is refused with its reason; whoever applies an inventory does so only if no row was.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headframe.data import text as facts
from headframe.health.catalogue import catalogue, claim
from headframe.model.fleet import Rig, RigCard
from headframe.model.health import Inventory
from headframe.model.ids import is_machine_name, rig_id

BYTES_MAX = 64 * 1024 * 1024
COLUMNS = ("site", "container", "rack", "shelf", "rig", "ip", "mac", "gpu_index", "bus", "model", "vram", "serial", "psu", "breaker")
_PLACE = ("site", "container", "rack", "shelf", "ip", "mac", "psu", "breaker")
_SECRET = re.compile(r"pass|secret|token|wallet|farm_hash|api_key|private|credential", re.IGNORECASE)
_BUS = re.compile(r"^(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?$")
_MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(gib|gb|g|mib|mb|m)?$", re.IGNORECASE)
_SETTING = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$")


class BadRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that was refused: where, and why."""

    where: str
    why: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What an inventory says. `dropped` names what was left out unread (secrets, and columns that mean nothing here), `missing` is what no
    inventory tells and only the probe finds, `unknown` are models that are not in the catalogue: they will be measured.
    """

    kind: str
    rigs: tuple[Rig, ...] = ()
    bad: tuple[BadRow, ...] = ()
    dropped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class _Reading:
    """What has been read so far."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.rigs: dict[str, Rig] = {}
        self.bad: list[BadRow] = []
        self.dropped: dict[str, None] = {}

    def refuse(self, where: str, why: str) -> None:
        self.bad.append(BadRow(where=where, why=why))

    def rig(self, where: str, name: str, **said: Any) -> Rig | None:
        """The rig of that name, made or known; None where that is no name, or where it is said to be in two places."""
        if not is_machine_name(name):
            self.refuse(
                where, f"{name[:40]!r} is no machine's name: 1 to 63 letters, digits, dots, dashes or underscores" if name else "no rig is named"
            )
            return None
        known = self.rigs.get(name)
        if known is None:
            self.rigs[name] = Rig(id=rig_id(name), name=name, source=self.source, **said)
            return self.rigs[name]
        both = {key: value for key, value in said.items() if value and getattr(known, key) and getattr(known, key) != value}
        for key, value in both.items():
            self.refuse(where, f"{name} is said to have {key} {value!r} here and {getattr(known, key)!r} before")
        if not both:
            self.rigs[name] = msgspec.structs.replace(known, **{key: value for key, value in said.items() if value})
        return None if both else self.rigs[name]

    def card(self, where: str, rig: Rig, card: RigCard) -> None:
        if not card.model:
            self.refuse(where, "the card has no model")
        elif card.bus and not _BUS.fullmatch(card.bus):
            self.refuse(where, f"{card.bus[:40]!r} is no place on the bus, such as 01:00.0")
        elif any((card.bus and card.bus == other.bus) or card.index == other.index for other in rig.cards):
            self.refuse(where, f"{rig.name} has a card at {card.bus or f'index {card.index}'} already")
        else:
            self.rigs[rig.name] = msgspec.structs.replace(rig, cards=(*rig.cards, card))


def read(path: Path, rig: str = "") -> Found:
    """An inventory file; `rig` names the machine where the file does not. Raises ValueError where it is none of the known kinds."""
    data = path.read_bytes()
    if len(data) > BYTES_MAX:
        raise ValueError(f"{path.name} is larger than {BYTES_MAX // 2**20} MiB")
    return parse(data.decode("utf-8-sig", "replace"), path.name, rig or path.stem)


def parse(text: str, source: str, rig: str) -> Found:
    """An inventory's text; the kind is told by what it looks like."""
    reading = _Reading(source)
    for kind, reader in _KINDS.items():
        if reader(text, reading, rig):
            return _found(kind, reading)
    raise ValueError(f"{source} is no inventory that is known: HiveOS workers2 or `gpu-detect listjson` (JSON), rig.conf, or CSV with a column `rig`")


def _found(kind: str, reading: _Reading) -> Found:
    _unique(reading)
    rigs = tuple(reading.rigs[name] for name in sorted(reading.rigs))
    cards = [card for rig in rigs for card in rig.cards]
    models = catalogue(facts("gpus.csv"))
    unknown = {card.model for card in cards if claim(models, Inventory(model=card.model, memory_mib=card.memory_mib)).model is None}
    missing = ["PCIe link and width: only the probe knows"] if cards else ["cards: this file lists none"]
    missing += [f"{name} of {without} of {of} {what}" for name, without, of, what in (
        ("host memory", sum(not rig.memory_mib for rig in rigs), len(rigs), "machines"),
        ("rack", sum(not rig.rack for rig in rigs), len(rigs), "machines"),
        ("memory", sum(not card.memory_mib for card in cards), len(cards), "cards"),
        ("place on the bus", sum(not card.bus for card in cards), len(cards), "cards"),
        ("VBIOS", sum(not card.vbios for card in cards), len(cards), "cards"),
    ) if without]  # fmt: skip
    return Found(kind=kind, rigs=rigs, bad=tuple(reading.bad), dropped=tuple(reading.dropped), missing=tuple(missing), unknown=tuple(sorted(unknown)))


def _unique(reading: _Reading) -> None:
    """A port is in one machine, and a card too."""
    ports = [(rig.mac, rig.name) for rig in reading.rigs.values() if rig.mac]
    cards = [(card.serial, f"{rig.name}, GPU {card.index}") for rig in reading.rigs.values() for card in rig.cards if card.serial]
    for what, places in (("MAC", ports), ("serial", cards)):
        first: dict[str, str] = {}
        for value, place in places:
            if first.setdefault(value, place) != place:
                reading.refuse(place, f"{what} {value} is that of {first[value]} too")


def _json(text: str) -> Any:
    try:
        return msgspec.json.decode(text) if text.lstrip()[:1] in {"{", "["} else None
    except (msgspec.DecodeError, RecursionError):
        return None


def _workers(text: str, reading: _Reading, _rig: str) -> bool:
    """`GET /farms/{id}/workers2` of HiveOS' API, or one worker of it."""
    found = _json(text)
    data = found.get("data", [found] if "gpu_info" in found else None) if isinstance(found, dict) else found
    if not isinstance(data, list) or not any(isinstance(each, dict) and ("gpu_info" in each or "units_count" in each) for each in data):
        return False
    for number, worker in enumerate(data, 1):
        where = f"worker {number}"
        if not isinstance(worker, dict):
            reading.refuse(where, "is no worker")
            continue
        _secrets(worker, reading)
        rig = reading.rig(where, _name(_text(worker, "name")), ip=_ip(worker), mac=_worker_mac(worker), memory_mib=_host_memory(worker))
        for index, card in enumerate(_list(worker, "gpu_info")):
            if rig is not None:
                _detected(f"{where} card {index}", rig, card, index, reading)
                rig = reading.rigs[rig.name]
    return True


def _listjson(text: str, reading: _Reading, name: str) -> bool:
    """`gpu-detect listjson` on one rig."""
    found = _json(text)
    if not isinstance(found, list) or not any(isinstance(each, dict) and "busid" in each for each in found):
        return False
    rig = reading.rig("the file's name", _name(name))
    for index, card in enumerate(found):
        if rig is not None:
            _detected(f"card {index}", rig, card, index, reading)
            rig = reading.rigs[rig.name]
    return True


def _detected(where: str, rig: Rig, card: Any, index: int, reading: _Reading) -> None:
    """A card as HiveOS' tools describe one."""
    if not isinstance(card, dict):
        reading.refuse(where, "is no card")
        return
    if _text(card, "brand").lower() == "cpu":
        return
    details = card.get("details")
    inner = details if isinstance(details, dict) else card
    memory = _size(_text(inner, "mem"), 1) or _size(_text(inner, "mem_gb"), 1024)
    limits = card.get("power_limit")
    limit = _text(limits if isinstance(limits, dict) else card, "def") or _text(card, "plim_def")
    watts = re.match(r"\d+", limit)
    made = RigCard(
        index=index, model=_text(card, "model") or _text(card, "name"), memory_mib=memory or 0, bus=_text(card, "bus_id") or _text(card, "busid"),
        vendor=_text(card, "brand").lower(), vbios=_text(inner, "vbios"), power_limit_w=int(watts[0]) if watts else 0,
    )  # fmt: skip
    reading.card(where, rig, made)


def _conf(text: str, reading: _Reading, name: str) -> bool:
    """`rig.conf` of HiveOS: shell assignments, most of them of no use here, some of them secret."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    settings = [match for line in lines if (match := _SETTING.fullmatch(line))]
    if not settings or not {match[1] for match in settings} & {"RIG_ID", "WORKER_NAME", "HIVE_HOST_URL", "FARM_ID"}:
        return False
    values: dict[str, str] = {}
    for match in settings:
        secret = _SECRET.search(match[1]) or match[1] == "RIG_PASSWD"
        if secret:
            reading.dropped[f"{match[1]} (secret)"] = None
        else:
            values[match[1]] = match[2].strip().strip("\"'")
    reading.rig("rig.conf", _name(values.get("WORKER_NAME") or name))
    return True


def _csv(text: str, reading: _Reading, _rig: str) -> bool:
    """One row for each card, with a header."""
    head = text.lstrip("\ufeff").split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "rig" not in head.lower():
            return False
        reading.refuse("the file", f"is no CSV: {error}")
        return True
    columns = [column.strip().lower().replace(" ", "_") for column in rows[0]] if rows else []
    if "rig" not in columns:
        return False
    for column in columns:
        if column and column not in COLUMNS:
            reading.dropped[f"{column} (secret)" if _SECRET.search(column) else column] = None
    for number, row in enumerate(rows[1:], 2):
        if any(cell.strip() for cell in row):
            _row(f"line {number}", columns, [cell.strip() for cell in row], reading)
    return True


def _row(where: str, columns: Sequence[str], row: Sequence[str], reading: _Reading) -> None:
    if len(row) != len(columns):
        reading.refuse(where, f"has {len(row)} fields, the header has {len(columns)}")
        return
    said = {column: value for column, value in zip(columns, row, strict=True) if column in COLUMNS}
    mac = said.get("mac", "").lower().replace("-", ":")
    if mac and not _MAC.fullmatch(mac):
        reading.refuse(where, f"{mac[:40]!r} is no MAC address")
        return
    rig = reading.rig(where, said.get("rig", ""), **{key: said.get(key, "") for key in _PLACE if key != "mac"}, mac=mac)
    if rig is None or not any(said.get(key) for key in ("model", "gpu_index", "bus", "vram", "serial")):
        return
    index, memory = said.get("gpu_index") or str(len(rig.cards)), _size(said.get("vram", ""), 1024)
    if not index.isdecimal() or int(index) > 255:
        reading.refuse(where, f"gpu_index {index[:40]!r} is no number from 0 to 255")
    elif memory is None:
        reading.refuse(where, f"vram {said['vram'][:40]!r} is no size, such as 8GB")
    else:
        card = RigCard(index=int(index), model=said.get("model", ""), memory_mib=memory, bus=said.get("bus", ""), serial=said.get("serial", ""))
        reading.card(where, rig, card)


def _size(text: str, bare_mib: int) -> int | None:
    """A memory size in MiB, 0 where nothing is said, None where it is none; a bare number below 1,024 is in units of `bare_mib`."""
    if not text:
        return 0
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    unit = (match[2] or "").lower()
    factor = 1024 if unit.startswith("g") else 1 if unit else bare_mib if float(match[1]) < 1024 else 1
    return round(float(match[1]) * factor)


def _name(said: str) -> str:
    """A name as HiveOS allows it, as one that machines can have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", said.strip()).strip("-._")[:63]


def _ip(worker: dict[str, Any]) -> str:
    known = _list(worker, "ip_addresses")
    return known[0] if known and isinstance(known[0], str) else ""


def _worker_mac(worker: dict[str, Any]) -> str:
    hardware = worker.get("hardware_info")
    for port in _list(hardware, "net_interfaces") if isinstance(hardware, dict) else ():
        mac = _text(port, "mac").lower() if isinstance(port, dict) else ""
        if _MAC.fullmatch(mac):
            return mac
    return ""


def _host_memory(worker: dict[str, Any]) -> int:
    """`hardware_stats.memory` is {total, free} in MiB."""
    stats = worker.get("hardware_stats")
    memory = stats.get("memory") if isinstance(stats, dict) else None
    total = memory.get("total") if isinstance(memory, dict) else None
    return total if isinstance(total, int) and not isinstance(total, bool) and 0 < total < 1 << 30 else 0


def _secrets(worker: dict[str, Any], reading: _Reading) -> None:
    for name in _named(worker):
        if _SECRET.search(name):
            reading.dropped[f"{name} (secret)"] = None


def _named(value: Any, depth: int = 0) -> Iterator[str]:
    """All names in a JSON value, to a bounded depth."""
    if isinstance(value, dict) and depth < 8:
        for key, inner in value.items():
            yield str(key)[:40]
            yield from _named(inner, depth + 1)
    elif isinstance(value, list) and depth < 8:
        for inner in value[:1000]:
            yield from _named(inner, depth + 1)


def _text(where: dict[str, Any], key: str) -> str:
    value = where.get(key)
    return str(value).strip()[:200] if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _list(where: dict[str, Any], key: str) -> list[Any]:
    value = where.get(key)
    return value if isinstance(value, list) else []


_KINDS: dict[str, Callable[[str, _Reading, str], bool]] = {
    "HiveOS workers2": _workers,
    "HiveOS gpu-detect listjson": _listjson,
    "HiveOS rig.conf": _conf,
    "CSV": _csv,
}


def merged(found: Iterable[Found]) -> Found:
    """Several files as one inventory; a machine that is in two of them has what either says."""
    rigs: dict[str, Rig] = {}
    parts = list(found)
    for rig in (rig for part in parts for rig in part.rigs):
        known = rigs.get(rig.name)
        fresh = {name: getattr(rig, name) for name in rig.__struct_fields__ if name not in {"id", "name"} and getattr(rig, name)}
        rigs[rig.name] = msgspec.structs.replace(known, **fresh) if known else rig

    def union(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each for part in parts for each in getattr(part, name)))

    return Found(
        kind=", ".join(dict.fromkeys(part.kind for part in parts)), rigs=tuple(rigs[name] for name in sorted(rigs)),
        bad=tuple(row for part in parts for row in part.bad), dropped=union("dropped"), missing=union("missing"), unknown=union("unknown"),
    )  # fmt: skip
