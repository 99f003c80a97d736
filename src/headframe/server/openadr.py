"""OpenADR 3 events to signals: what a virtual top node says, by its own payload types (OpenADR 3.0.1, definition section "Enumerations"). Pure.

`IMPORT_CAPACITY_LIMIT` and `DISPATCH_SETPOINT` are limits at the meter (kW, kVA or per cent of the contract), `PRICE` is a price, `SIMPLE` a level, and
`ALERT_GRID_EMERGENCY` the highest one. Other types are told as not understood; an event without one that is understood is refused.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from headframe.model.command import TakeEvent
from headframe.model.errors import BadRequest
from headframe.model.fleet import Site
from headframe.model.power import Signal, SignalKind, signal_id
from headframe.model.units import MS_PER_DAY, MS_PER_HOUR

LONGEST_MS = 31 * MS_PER_DAY
"""An interval without an end (`P9999Y`) is taken for so long: it is heard again before."""
EMERGENCY_LEVEL = 3.0
LIMITS = frozenset({"IMPORT_CAPACITY_LIMIT", "DISPATCH_SETPOINT"})
UNDERSTOOD = LIMITS | {"PRICE", "SIMPLE", "ALERT_GRID_EMERGENCY"}
KILO = 1000.0
_ID = re.compile(r"^[A-Za-z0-9_-]{1,60}$")
_DURATION = re.compile(r"^P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?$")
_UNITS_MS = (365 * MS_PER_DAY, 30 * MS_PER_DAY, 7 * MS_PER_DAY, MS_PER_DAY, MS_PER_HOUR, 60_000, 1000)


class _Payload(msgspec.Struct):
    type: str
    values: list[Any]


class _Period(msgspec.Struct):
    start: str = ""
    duration: str = ""


class _Interval(msgspec.Struct):
    id: int = 0
    payloads: list[_Payload] = []
    period: _Period | None = msgspec.field(name="intervalPeriod", default=None)


class _Descriptor(msgspec.Struct):
    type: str = msgspec.field(name="payloadType")
    units: str | None = None
    currency: str | None = None


class _Event(msgspec.Struct):
    id: str
    intervals: list[_Interval] = []
    name: str | None = msgspec.field(name="eventName", default=None)
    modified: str | None = msgspec.field(name="modificationDateTime", default=None)
    created: str | None = msgspec.field(name="createdDateTime", default=None)
    period: _Period | None = msgspec.field(name="intervalPeriod", default=None)
    descriptors: list[_Descriptor] | None = msgspec.field(name="payloadDescriptors", default=None)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What an event of a source asks to be kept (no signals: it is over or deleted), and which of its payload types were not understood."""

    take: TakeEvent
    ignored: tuple[str, ...]


def told(document: Mapping[str, Any], site: Site, source: str, now_ms: int) -> Told:
    """An event, or the notification of one, as signals. BadRequest where it can't be read, or nothing in it is understood."""
    kind = document.get("objectType", "EVENT")
    deleted = "object" in document and document.get("operation") == "DELETE"
    if kind != "EVENT":
        raise BadRequest(f"objectType {str(kind)[:40]!r} is no event", "subscribe to EVENT alone")
    try:
        event = msgspec.convert(document.get("object", document), _Event)
    except msgspec.ValidationError as error:
        raise BadRequest(f"no OpenADR 3 event: {error}", "an event has an id and intervals with payloads") from error
    if not _ID.fullmatch(event.id):
        raise BadRequest("an event's id is 1 to 60 letters, digits, dashes or underscores")
    version = _instant(event.modified or event.created or "", 0) // 1000
    types = {payload.type for interval in event.intervals for payload in interval.payloads}
    if not deleted and not types & UNDERSTOOD:
        raise BadRequest(
            f"event {event.id}: none of its payloads is understood: {', '.join(sorted(types))[:120] or 'it has none'}",
            f"one of {', '.join(sorted(UNDERSTOOD))}",
        )
    signals = () if deleted else tuple(_signals(event, site, source, version, now_ms))
    take = TakeEvent(site_id=site.id, source=source, event=event.id, version=version, signals=signals)
    return Told(take=take, ignored=tuple(sorted(types - UNDERSTOOD)))


def events(document: Any) -> Iterable[Mapping[str, Any]]:
    """What a top node answers to `GET /events`: a list of events. BadRequest for anything else."""
    if not isinstance(document, list) or not all(isinstance(each, dict) for each in document):
        raise BadRequest("no list of OpenADR 3 events", "the address ends in /events")
    return document


def _signals(event: _Event, site: Site, source: str, version: int, now_ms: int) -> Iterator[Signal]:
    """Each interval begins where the one before ended, unless it says when. What is over is left out."""
    units = {each.type: each for each in event.descriptors or ()}
    at_ms = _instant(event.period.start if event.period else "", now_ms)
    for interval in event.intervals:
        if interval.period and interval.period.start:
            at_ms = _instant(interval.period.start, now_ms)
        lasts = (interval.period.duration if interval.period else "") or (event.period.duration if event.period else "")
        end_ms = at_ms + min(_duration_ms(lasts), LONGEST_MS)
        for payload in interval.payloads:
            if payload.type in UNDERSTOOD and end_ms > now_ms:
                kind, value = _value(payload, units.get(payload.type), site)
                name = f"{event.id}/{interval.id}-{kind}"
                yield Signal(id=signal_id(site.id, source, name), site_id=site.id, source=source, event=name, version=version, kind=kind, value=value,
                             start_ms=at_ms, end_ms=end_ms, why=(event.name or "")[:200], received_ms=now_ms)  # fmt: skip
        at_ms = end_ms


def _value(payload: _Payload, said: _Descriptor | None, site: Site) -> tuple[SignalKind, float]:
    if payload.type == "ALERT_GRID_EMERGENCY":
        return SignalKind.LEVEL, EMERGENCY_LEVEL
    value = payload.values[0] if payload.values else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(f"{payload.type}: {str(value)[:40]!r} is no number")
    if payload.type == "SIMPLE":
        return SignalKind.LEVEL, float(value)
    units = (said.units if said else "") or ""
    if payload.type == "PRICE":
        currency = (said.currency if said else "") or "USD"
        if currency != "USD" or units not in {"", "KWH"}:
            raise BadRequest(f"PRICE in {currency}/{units or 'KWH'}", "prices are US$ per kWh here; others come as a feed with a factor")
        return SignalKind.PRICE, value * KILO
    if units == "PERCENT":
        if not site.contract_w:
            raise BadRequest(f"{payload.type} in per cent, and {site.name} has no contract", "say what may be drawn: `headframe site set --contract`")
        return SignalKind.LIMIT, site.contract_w * value / 100
    if units not in {"", "KW", "KVA"}:
        raise BadRequest(f"{payload.type} in {units[:20]}", "KW, KVA or PERCENT")
    return SignalKind.LIMIT, value * KILO


def _instant(text: str, now_ms: int) -> int:
    """An ISO 8601 instant in ms; none, and the standard's `0000-00-00`, is now."""
    if not text or text.startswith("0000"):
        return now_ms
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRequest(f"{text[:40]!r} is no instant", "such as 2026-12-01T18:00:00Z") from error
    if found.tzinfo is None:
        raise BadRequest(f"{text[:40]!r} has no time zone", "such as 2026-12-01T18:00:00Z")
    return round(found.timestamp() * 1000)


def _duration_ms(text: str) -> int:
    """An ISO 8601 duration; none is without end."""
    match = _DURATION.fullmatch(text)
    if text and (match is None or not any(match.groups())):
        raise BadRequest(f"{text[:40]!r} is no duration", "such as PT1H")
    return round(sum(float(part or 0) * unit for part, unit in zip(match.groups(), _UNITS_MS, strict=True))) if match else LONGEST_MS
