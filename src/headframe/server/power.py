"""What people and markets say of power, to drafts: prices, signals, coins, fillers, mining machines. Pure; everything is kept before anything acts on it."""

import math
from collections.abc import Iterator

import msgspec

from headframe.dispatch.mining import why_not_believed
from headframe.dispatch.tariff import LIKE_DAYS, trusted
from headframe.model.command import LimitAsic, RemoveAsic, RemoveFiller, SetFiller, TakeEvent, TakeSignal, TellAsics, TellCoin, TellMarket
from headframe.model.errors import BadRequest, Conflicting, NotFound, Unbelievable
from headframe.model.event import Draft, Kind
from headframe.model.power import MARKET_LEAST_USD_MWH, MARKET_MOST_USD_MWH, Asic, Filler, MarketDay, Signal, SignalKind, filler_id
from headframe.model.units import MS_PER_DAY, counted, duration
from headframe.model.world import World

Power = TellMarket | TakeSignal | TakeEvent | TellCoin | SetFiller | RemoveFiller | TellAsics | RemoveAsic | LimitAsic
DAYS_KEPT = LIKE_DAYS
"""Days of prices that are over and still of use; the store keeps all."""
SPAN_MOST_MS = 31 * MS_PER_DAY
LIMIT_MOST_W, LEVEL_MOST = 1e9, 3
ASICS_MOST = 20_000
LIMIT_LEAST_W, LIMIT_MOST_ASIC_W = 300.0, 20_000.0


def power(world: World, command: Power, now_ms: int) -> Iterator[Draft]:
    """What `command` does to `world`."""
    match command:
        case TellMarket():
            yield from _market(world, command.days, now_ms)
        case TakeSignal():
            yield from _signal(world, command.signal, now_ms)
        case TakeEvent():
            yield from _event(world, command, now_ms)
        case TellCoin():
            before = world.coins.get(command.coin.id)
            why = why_not_believed(None if command.sure else before, command.coin)
            if why:
                raise Unbelievable(why, "if it is so, say so: --sure")
            told = f"{command.coin.id}: US$ {command.coin.price_usd:g}, {command.coin.network_hs:g} H/s, {command.coin.reward:g} a block"
            yield Draft(kind=Kind.COIN_TOLD, subject=command.coin.id, text=told, rows=(command.coin,))
        case SetFiller():
            yield from _filler(world, command.filler, now_ms)
        case RemoveFiller():
            row = world.fillers.get(filler_id(command.name))
            if row is None:
                raise NotFound(f"no filler {command.name[:80]!r}", "list them: `headframe mining ls`")
            yield Draft(kind=Kind.FILLER_CHANGED, subject=row.id, text=f"{row.name}: removed", rows=(msgspec.structs.replace(row, removed=True),))
        case TellAsics():
            yield from _asics(world, command.asics, now_ms)
        case LimitAsic():
            yield from _limit(world, command)
        case RemoveAsic():
            row = _asic(world, command.id)
            yield Draft(
                kind=Kind.ASIC_CHANGED, subject=row.id, text=f"{row.name}: no longer looked after", rows=(msgspec.structs.replace(row, removed=True),)
            )


def _market(world: World, days: tuple[MarketDay, ...], now_ms: int) -> Iterator[Draft]:
    for day in days:
        wrong = next((price for price in day.usd_mwh if price is not None and not trusted(price)), None)
        if wrong is not None:
            raise Unbelievable(
                f"{day.market}: {wrong:g} US$/MWh is no market's price", f"it lies outside {MARKET_LEAST_USD_MWH:g} to {MARKET_MOST_USD_MWH:g}"
            )
    fresh = tuple(day for day in days if world.market_days.get(day.id) != day and day.start_ms + DAYS_KEPT * MS_PER_DAY > now_ms)
    if fresh:
        markets = ", ".join(dict.fromkeys(day.market for day in fresh))
        yield Draft(kind=Kind.MARKET_TOLD, subject=fresh[0].market, text=f"{markets}: prices of {counted(len(fresh), 'day')}", rows=fresh)


def _signal(world: World, signal: Signal, now_ms: int) -> Iterator[Draft]:
    known = world.signals.get(signal.id)
    if known is not None and known.version >= signal.version and not (signal.cancelled and not known.cancelled):
        return  # heard before
    why = out_of_range(signal, now_ms)
    if why and not signal.cancelled:
        raise Unbelievable(
            why, "a limit is in watts at the meter, a price in US$/MWh, a level 0 to 3; a signal lasts at most 31 days and is not over yet"
        )
    site = world.sites[signal.site_id]
    asks = {
        SignalKind.LIMIT: f"at most {signal.value / 1000:g} kW",
        SignalKind.PRICE: f"US$ {signal.value:g}/MWh",
        SignalKind.LEVEL: f"level {signal.value:g}",
    }
    when = f"for {duration(signal.end_ms - signal.start_ms)}" + (f", in {duration(signal.start_ms - now_ms)}" if signal.start_ms > now_ms else "")
    text = (
        f"{site.name}: {signal.source} cancels {signal.event}"
        if signal.cancelled
        else f"{site.name}: {signal.source} asks for {asks[signal.kind]} {when}"
    )
    row = (
        msgspec.structs.replace(known or signal, cancelled=True, version=max(signal.version, known.version if known else 0))
        if signal.cancelled
        else signal
    )
    yield Draft(kind=Kind.SIGNAL_TAKEN, subject=signal.id, text=text + (f": {signal.why}" if signal.why else ""), rows=(row,))


def _event(world: World, told: TakeEvent, now_ms: int) -> Iterator[Draft]:
    names = {signal.id for signal in told.signals}
    before = [
        row
        for _, row in sorted(world.signals.items())
        if row.site_id == told.site_id and row.source == told.source and row.event.startswith(f"{told.event}/")
    ]
    for signal in told.signals:
        yield from _signal(world, signal, now_ms)
    for row in before:
        if row.id not in names and not row.cancelled and row.version <= told.version:
            yield from _signal(world, msgspec.structs.replace(row, cancelled=True, version=told.version), now_ms)


def out_of_range(signal: Signal, now_ms: int) -> str:
    """Why a signal can't be meant, "" where it can."""
    if not math.isfinite(signal.value):
        return f"{signal.value:g} is no number"
    if not signal.start_ms < signal.end_ms <= signal.start_ms + SPAN_MOST_MS or signal.end_ms <= now_ms or signal.start_ms > now_ms + SPAN_MOST_MS:
        return "its time is over, too long or too far away"
    good = {
        SignalKind.LIMIT: 0 <= signal.value <= LIMIT_MOST_W, SignalKind.PRICE: trusted(signal.value),
        SignalKind.LEVEL: 0 <= signal.value <= LEVEL_MOST and signal.value == int(signal.value),
    }  # fmt: skip
    return "" if good[signal.kind] else f"a {signal.kind} of {signal.value:g} is out of range"


def _filler(world: World, filler: Filler, now_ms: int) -> Iterator[Draft]:
    known = world.fillers.get(filler.id)
    row = msgspec.structs.replace(filler, created_ms=known.created_ms if known else now_ms)
    if known is not None and row == msgspec.structs.replace(known, failures=0, not_before_ms=0, why="") and not known.failures:
        return
    if row.coin and row.coin not in world.coins:
        raise Conflicting(
            f"nothing is known of the coin {row.coin}",
            f"say what it pays first: `headframe mining coin {row.coin} --price … --network … --block … --reward …`",
        )
    what = f"mines {row.coin}" if row.coin else f"is worth US$ {row.usd_gpu_h:g} per card-hour"
    yield Draft(kind=Kind.FILLER_CHANGED, subject=row.id, text=f"{row.name}: {what}, on {', '.join(row.models)}", rows=(row,))


def _asic(world: World, name: str) -> Asic:
    row = world.asics.get(name) or next((row for row in world.asics.values() if row.name == name), None)
    if row is None:
        raise NotFound(f"no mining machine {name[:80]!r}", "list them: `headframe mining asics`")
    return row


def _limit(world: World, command: LimitAsic) -> Iterator[Draft]:
    row = _asic(world, command.id)
    if not row.can_limit:
        raise Conflicting(
            f"{row.name}: its firmware sets no power limit",
            "it can only be stopped and resumed" if row.can_stop else "nor can it be stopped from here",
        )
    if command.watts and not LIMIT_LEAST_W <= command.watts <= LIMIT_MOST_ASIC_W:
        raise BadRequest(f"a limit of {command.watts:g} W for a mining machine", f"{LIMIT_LEAST_W:g} W to {LIMIT_MOST_ASIC_W:g} W; 0 as it was")
    if not command.watts and not row.wanted_w:
        return
    usual_w = row.usual_w or row.limit_w
    if not command.watts and not usual_w:
        raise Conflicting(f"{row.name}: what it drew before is not known", "give the watts that it may draw")
    told = f"at most {command.watts:g} W" if command.watts else "as it was"
    yield Draft(
        kind=Kind.ASIC_CHANGED,
        subject=row.id,
        text=f"{row.name}: {told}",
        rows=(msgspec.structs.replace(row, wanted_w=command.watts or usual_w, usual_w=usual_w),),
    )


def _asics(world: World, asics: tuple[Asic, ...], now_ms: int) -> Iterator[Draft]:
    if len(world.asics.keys() | {asic.id for asic in asics}) > ASICS_MOST:
        raise Conflicting(f"more than {ASICS_MOST} mining machines", "a site of that size needs several servers")
    for asic in asics:
        known = world.asics.get(asic.id)
        row = asic if known is None else msgspec.structs.replace(
            asic, wanted=known.wanted, wanted_w=known.wanted_w, usual_w=known.usual_w, limit_w=asic.limit_w or known.limit_w, name=asic.name or known.name, rack_id=asic.rack_id or known.rack_id, changed_ms=known.changed_ms,
            hashes_s=asic.hashes_s or known.hashes_s, watts=asic.watts or known.watts,
        )  # fmt: skip
        if known is None or msgspec.structs.replace(row, seen_ms=known.seen_ms) != known:
            yield Draft(kind=Kind.ASIC_CHANGED, subject=row.id, rows=(msgspec.structs.replace(row, seen_ms=now_ms),),
                        text=f"{row.name}: {row.model}, {row.state}" + (f": {row.why}" if row.why else ""))  # fmt: skip
