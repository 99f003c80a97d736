"""Feeds: where prices, signals and coins' terms are fetched from, and how an answer is read. A file of them belongs to who runs the server: what is fetched, with whose
token, is nobody else's to say. Pure.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from headframe.listening import is_web_address
from headframe.model.command import Command, TakeSignal, TellCoin, TellMarket
from headframe.model.errors import BadRequest
from headframe.model.fleet import Site
from headframe.model.power import Coin, Signal, SignalKind, market_days, signal_id
from headframe.model.units import MS_PER_HOUR, parse_duration_s
from headframe.model.world import World
from headframe.server import openadr
from headframe.server.operate import site_named

EVERY_LEAST_S, FEEDS_MAX = 5, 100
_EVENT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,79}$")
_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$")


class Feed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One source. `form` is how its answers are read (FORMS), `url` http(s) or file; `token_file` holds a bearer token, read at each look; prices are of `market` and times
    `factor` US$ per MWh; signals and events are for `site` (the only one where none is named); terms are of `coin`.
    """

    name: str
    form: str
    url: str
    every: str = "5m"
    token_file: str = ""
    market: str = ""
    factor: float = 1.0
    site: str = ""
    coin: str = ""

    @property
    def every_s(self) -> int:
        """Seconds between two looks."""
        return parse_duration_s(self.every)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    feeds: list[Feed]


def feeds(text: str) -> tuple[Feed, ...]:
    """The feeds of a file (YAML); BadRequest with the first mistake."""
    try:
        read = msgspec.yaml.decode(text, type=_File).feeds
        for feed in read:
            _checked(feed)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadRequest(f"feeds: {str(error).splitlines()[0]}", "see docs/howto/power.md for what a feeds file has") from error
    if len(read) > FEEDS_MAX or len({feed.name for feed in read}) != len(read):
        raise BadRequest(f"feeds: at most {FEEDS_MAX}, each with a name of its own")
    return tuple(read)


def _checked(feed: Feed) -> None:
    if not _NAME.fullmatch(feed.name):
        raise BadRequest(f"feeds: name: {feed.name[:50]!r}", "lower-case letters, digits and dashes, at most 42")
    if feed.form not in FORMS:
        raise BadRequest(f"feeds: {feed.name}: no form {feed.form[:40]!r}", f"one of {', '.join(FORMS)}")
    if not is_web_address(feed.url) and not feed.url.startswith("file:///"):
        raise BadRequest(f"feeds: {feed.name}: url: {feed.url[:80]!r}", "an address that begins with https://, http:// or file:///")
    if feed.every_s < EVERY_LEAST_S:
        raise BadRequest(f"feeds: {feed.name}: every: {feed.every}", f"{EVERY_LEAST_S} s at least")
    needs = {"market": _PRICES, "coin": ("coin",)}
    for key, forms in needs.items():
        if (feed.form in forms) != bool(getattr(feed, key)):
            raise BadRequest(
                f"feeds: {feed.name}: {key}: {'missing' if feed.form in forms else f'not of a feed of form {feed.form}'}",
                f"forms with a {key}: {', '.join(forms)}",
            )


def commands(feed: Feed, body: bytes, world: World, now_ms: int) -> list[Command]:
    """What an answer asks to be kept. BadRequest where it can't be read: nothing of it is taken."""
    try:
        document = msgspec.json.decode(body)
        return list(FORMS[feed.form](feed, document, world, now_ms))
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BadRequest(
            f"{feed.name}: no {feed.form} answer: {type(error).__name__}: {str(error)[:120]}", "look at the address in a browser"
        ) from error


def _awattar(feed: Feed, document: Any, world: World, now_ms: int) -> Iterator[Command]:
    """AWATTar's `/v1/marketdata`: `{"data": [{"start_timestamp": ms, "marketprice": 12.3, "unit": "Eur/MWh"}]}`."""
    del world, now_ms
    yield _market(feed, {int(row["start_timestamp"]): float(row["marketprice"]) for row in document["data"]})


def _energy_charts(feed: Feed, document: Any, world: World, now_ms: int) -> Iterator[Command]:
    """Energy-Charts' `/price`: `{"unix_seconds": [...], "price": [...]}` (also by the quarter of an hour: an hour's price is their mean)."""
    del world, now_ms
    yield _market(
        feed, {int(at) * 1000: float(price) for at, price in zip(document["unix_seconds"], document["price"], strict=True) if price is not None}
    )


def _plain_prices(feed: Feed, document: Any, world: World, now_ms: int) -> Iterator[Command]:
    """`{"2026-12-01T18:00Z": 41.2, …}`."""
    del world, now_ms
    yield _market(feed, {round(datetime.fromisoformat(at).timestamp() * 1000): float(price) for at, price in document.items()})


def _market(feed: Feed, prices: Mapping[int, float]) -> TellMarket:
    """Prices at instants (ms) to days of hours; several within an hour are their mean."""
    hours: dict[int, list[float]] = {}
    for at_ms, price in prices.items():
        hours.setdefault(at_ms // MS_PER_HOUR * MS_PER_HOUR, []).append(price * feed.factor)
    return TellMarket(days=market_days(feed.market, {at_ms: sum(found) / len(found) for at_ms, found in hours.items()}, feed.name))


def _events(feed: Feed, document: Any, world: World, now_ms: int) -> Iterator[Command]:
    site = _site(feed, world)
    for event in openadr.events(document):
        yield openadr.told(event, site, feed.name, now_ms).take


class _Said(msgspec.Struct, kw_only=True):
    event: str
    kind: SignalKind
    value: float
    start_ms: int = 0
    end_ms: int
    version: int = 0
    why: str = ""
    cancelled: bool = False


def _signals(feed: Feed, document: Any, world: World, now_ms: int) -> Iterator[Command]:
    """`[{"event": "e1", "kind": "limit", "value": 800000, "start_ms": …, "end_ms": …, "version": 1}]`, as `POST /v1/signals` takes them."""
    site = _site(feed, world)
    for said in msgspec.convert(document, list[_Said]):
        if not _EVENT.fullmatch(said.event):
            raise BadRequest(f"{feed.name}: an event is named by 1 to 80 letters, digits, spaces, dots, colons, slashes, dashes or underscores")
        signal = Signal(id=signal_id(site.id, feed.name, said.event), site_id=site.id, source=feed.name, event=said.event, version=said.version, kind=said.kind, value=said.value,
                        start_ms=said.start_ms or now_ms, end_ms=said.end_ms, why=said.why[:200], received_ms=now_ms, cancelled=said.cancelled)  # fmt: skip
        if signal.end_ms > now_ms:
            yield TakeSignal(signal=signal)


class _Terms(msgspec.Struct, kw_only=True):
    price_usd: float
    network_hs: float
    block_s: float
    reward: float
    algorithm: str = ""


def _coin(feed: Feed, document: Any, world: World, now_ms: int) -> Iterator[Command]:
    """`{"price_usd": …, "network_hs": …, "block_s": …, "reward": …}`."""
    del world
    terms = msgspec.convert(document, _Terms)
    yield TellCoin(coin=Coin(id=feed.coin, algorithm=terms.algorithm[:40], price_usd=terms.price_usd, network_hs=terms.network_hs, block_s=terms.block_s, reward=terms.reward,
                             at_ms=now_ms, source=feed.name), sure=False)  # fmt: skip


def _site(feed: Feed, world: World) -> Site:
    found = site_named(world, feed.site)
    if found is None:
        raise BadRequest(f"{feed.name}: no site {feed.site!r}", "list them: `headframe site ls`")
    return found


_PRICES = ("prices", "awattar", "energy-charts")
FORMS: dict[str, Callable[[Feed, Any, World, int], Iterator[Command]]] = {
    "prices": _plain_prices, "awattar": _awattar, "energy-charts": _energy_charts, "signals": _signals, "openadr": _events, "coin": _coin,
}  # fmt: skip
"""How an answer is read."""
