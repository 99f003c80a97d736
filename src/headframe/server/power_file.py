"""Tariff and filler files (YAML) to values: a mistake names where it is and what was expected. msgspec reads and checks them; what people write as text is read here."""

import re
from collections.abc import Callable
from typing import TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from headframe.dispatch.tariff import minute
from headframe.model.errors import BadRequest
from headframe.model.power import ADAPTERS, MINUTES_A_DAY, DemandCharge, EnergyCharge, Filler, Mines, Tariff, Window, filler_id
from headframe.model.units import MILLI, parse_duration_s, parse_hashes, parse_mib

T = TypeVar("T")
FILE_BYTES_MAX = 64 * 1024
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_PATH = re.compile(r"^/[A-Za-z0-9._+/-]{1,200}$")
_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$")


class _When(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    months: list[int] = []
    days: str = ""
    hours: str = ""


class _Energy(_When):
    price: float


class _Demand(_When):
    name: str
    price: float
    interval: str = "15m"


class _Tariff(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    zone: str = "UTC"
    market: str = ""
    adder: float = 0.0
    energy: list[_Energy] = []
    demand: list[_Demand] = []


class _Mines(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    watts: float
    hashrate: str | float = 0.0


class _Filler(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    run: str
    image: str = ""
    env: dict[str, str] = {}
    coin: str = ""
    value: float | None = None
    pool_fee: float = 0.01
    program_fee: float = 0.0
    models: dict[str, _Mines]
    program: str = ""
    sha256: str = ""
    stats: str = ""
    script: str = ""
    port: int = 0
    cpu: float = 0.1
    memory: str = "1GiB"
    enabled: bool = True


def tariff(text: str) -> Tariff:
    """The tariff that `text` is; BadRequest with the first mistake."""
    read = _read(text, _Tariff, "tariff")
    try:
        ZoneInfo(read.zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise BadRequest(f"tariff: zone: no time zone {read.zone!r}", "an IANA name, such as America/Chicago") from error
    _need(bool(read.market or read.energy), "tariff: neither a market nor an energy charge says what a kWh costs", "give `market:` or `energy:`")
    energy = tuple(
        EnergyCharge(usd_kwh=_within(each.price, -1, 10, f"energy[{n}].price", "US$ per kWh"), when=_windows(each, f"energy[{n}]"))
        for n, each in enumerate(read.energy)
    )
    demand = tuple(
        DemandCharge(name=each.name, usd_kw=_within(each.price, 0, 1000, f"demand[{n}].price", "US$ per kW"), when=_windows(each, f"demand[{n}]"),
                     interval_min=int(_within(_said(lambda each=each: parse_duration_s(each.interval), f"demand[{n}].interval", "a duration such as 15m") // 60, 1, MINUTES_A_DAY, f"demand[{n}].interval", "minutes")))
        for n, each in enumerate(read.demand)
    )  # fmt: skip
    return Tariff(
        name=read.name[:80],
        zone=read.zone,
        market=read.market[:40],
        adder_usd_kwh=_within(read.adder, -1, 10, "adder", "US$ per kWh"),
        energy=energy,
        demand=demand,
    )


def filler(text: str) -> Filler:
    """The filler that `text` is; BadRequest with the first mistake."""
    read = _read(text, _Filler, "filler")
    _need(bool(_NAME.fullmatch(read.name)), f"filler: name: {read.name!r}", "lower-case letters, digits and dashes, at most 42")
    _need(bool(read.run.strip()), "filler: run: empty", "the command that is started on each card")
    _need(
        (read.value is None) == bool(read.coin),
        "filler: it mines a coin or has a value of its own",
        "give either `coin:` or `value:` (US$ per card-hour)",
    )
    _need(bool(read.models), "filler: models: none", "say what it does on a model: `models: {RTX 3090: {hashrate: 52MH, watts: 280}}`")
    _need(bool(read.program) == bool(read.sha256), "filler: a program is allowed by its SHA-256", "give both `program:` and `sha256:`, or neither")
    _need(
        not read.program or bool(_PATH.fullmatch(read.program)),
        f"filler: program: {read.program!r}",
        "an absolute path of letters, digits, dots, dashes and underscores",
    )
    _need(read.program in read.run, "filler: run: does not start the program that is allowed", f"write {read.program} in it")
    _need(
        not read.sha256 or bool(re.fullmatch(r"[0-9a-f]{64}", read.sha256)),
        "filler: sha256: no hash",
        "64 lower-case hex digits, as sha256sum prints them",
    )
    _need(read.stats in ADAPTERS, f"filler: stats: no adapter {read.stats!r}", f"one of {', '.join(ADAPTERS[1:])}")
    _need(
        (read.stats == "hiveos") == bool(read.script) and (not read.script or bool(_PATH.fullmatch(read.script))),
        "filler: script: HiveOS' scripts, and they alone, read by `stats: hiveos`",
        "give both `stats: hiveos` and `script:`, the absolute path of the miner's h-stats.sh on its machine, or neither",
    )
    _need(0 <= read.port <= 65_000, f"filler: port: {read.port}", "1 to 65000")
    models = {
        name: Mines(
            hashes_s=_said(lambda each=each: parse_hashes(str(each.hashrate)), f"models.{name}.hashrate", "such as 52MH, 110TH or 3.1kH"),
            watts=_within(each.watts, 1, 5000, f"models.{name}.watts", "W"),
        )
        for name, each in read.models.items()
    }
    _need(not read.coin or all(each.hashes_s > 0 for each in models.values()), "filler: models: a coin needs a hashrate for each", "such as 52MH")
    return Filler(
        id=filler_id(read.name), name=read.name, run=read.run, image=read.image, env=read.env, coin=read.coin, models=models, program=read.program, sha256=read.sha256,
        usd_gpu_h=_within(read.value or 0.0, 0, 1000, "value", "US$ per card-hour"), pool_fee=_within(read.pool_fee, 0, 0.5, "pool_fee", "a share"),
        program_fee=_within(read.program_fee, 0, 0.5, "program_fee", "a share"), stats=read.stats, port=read.port, script=read.script, enabled=read.enabled,
        cpu_milli=round(_within(read.cpu, 0.01, 64, "cpu", "cores") * MILLI), memory_mib=_said(lambda: parse_mib(read.memory), "memory", "a size such as 1GiB"),
    )  # fmt: skip


def _read(text: str, kind: type[T], what: str) -> T:
    _need(len(text.encode("utf-8", "surrogatepass")) <= FILE_BYTES_MAX, f"{what}: the file is too long", f"at most {FILE_BYTES_MAX // 1024} KiB")
    try:
        return msgspec.yaml.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest(
            f"{what}: {str(error).replace('`$.', '`').replace(' - at `$`', '')}", f"see docs/howto/power.md for what a {what} file has"
        ) from error
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError, ValueError) as error:
        raise BadRequest(f"{what}: no YAML: {str(error).splitlines()[0]}", f"see docs/howto/power.md for what a {what} file has") from error


def _windows(when: _When, key: str) -> tuple[Window, ...]:
    _need(all(1 <= month <= 12 for month in when.months), f"tariff: {key}.months: {when.months}", "1 to 12")
    if not (when.months or when.days or when.hours):
        return ()
    days = _days(when.days, key)
    spans = [span.strip() for span in when.hours.split(",")] if when.hours else ["0-24"]
    found: list[Window] = []
    for span in spans:
        start, dash, end = span.partition("-")
        _need(bool(dash), f"tariff: {key}.hours: {span!r}", "spans such as 14-20 or 22:30-6")
        first, last = (_said(lambda part=part: minute(part), f"{key}.hours", "times of day such as 14 or 22:30") for part in (start, end))
        found.append(Window(months=tuple(when.months), days=days, from_min=first, to_min=last))
    return tuple(found)


def _days(text: str, key: str) -> tuple[int, ...]:
    found: list[int] = []
    for piece in filter(None, (each.strip().lower() for each in text.split(","))):
        first, _, last = piece.partition("-")
        _need(first in DAYS and (not last or last in DAYS), f"tariff: {key}.days: {piece!r}", "days such as mon-fri or sat,sun")
        start, end = DAYS.index(first), DAYS.index(last or first)
        found.extend(range(start, end + 1) if end >= start else (*range(start, 7), *range(end + 1)))
    return tuple(sorted(set(found)))


def _within(value: float, least: float, most: float, key: str, unit: str) -> float:
    _need(least <= value <= most, f"{key}: {value:g} is out of range", f"{least:g} to {most:g} {unit}")
    return value


def _said(read: Callable[[], T], key: str, expected: str) -> T:
    try:
        return read()
    except ValueError as error:
        raise BadRequest(f"{key}: {error}", expected) from error


def _need(good: bool, detail: str, next_step: str) -> None:  # noqa: FBT001 - an assertion for people
    if not good:
        raise BadRequest(detail, next_step)
