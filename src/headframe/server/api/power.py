"""Power: the site's watts and dollars, prices, signals, coins, fillers, mining machines, and why a card does what it does."""

import math
import re
from typing import Annotated, Any

from litestar import Request, Router, delete, get, post, put
from litestar.params import Parameter

from headframe.dispatch.survey import Survey, surveyed
from headframe.model.command import LimitAsic, RemoveAsic, RemoveFiller, SetFiller, TakeSignal, TellAsics, TellCoin, TellMarket
from headframe.model.errors import BadRequest, HeadframeError, NotFound
from headframe.model.fleet import Site
from headframe.model.ids import GpuId
from headframe.model.people import Scope
from headframe.model.power import Coin, Signal, filler_id, market_days, signal_id
from headframe.model.power_api import (
    AsicBody,
    AsicLimitBody,
    AsicList,
    CoinBody,
    CoinList,
    EventTaken,
    Explanation,
    FeedList,
    FillerList,
    FillerView,
    MarketBody,
    MarketTold,
    PowerView,
    ProfitList,
    SignalBody,
    SignalList,
    TextBody,
)
from headframe.model.states import GpuState
from headframe.model.units import MS_PER_DAY, MS_PER_HOUR
from headframe.model.world import World
from headframe.server import openadr, operate
from headframe.server.api.money import month_span
from headframe.server.api.problems import answers
from headframe.server.auth import Principal
from headframe.server.context import Context, found
from headframe.server.operate import rack_named
from headframe.server.power_file import filler
from headframe.server.power_view import explain_gpu, explain_many, filler_views, power_view
from headframe.server.profits import By, kept, profits

PRICES_MAX, ASICS_MAX = 24 * 400, 2000
_TOKEN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9 ._:/-]{0,79}$")
_COIN = re.compile(r"^[A-Z0-9]{2,10}$")


@get("/v1/power", opt={"scope": Scope.OPERATOR}, responses=answers(404))
async def show_power(context: Context, site: str = "") -> PowerView:
    """What the site draws, earns and pays now, the next day, what is shed next."""
    return power_view(context.world, survey_of(context, site_named(context.world, site)), context.dispatcher)


@get("/v1/profits", opt={"scope": Scope.OPERATOR}, responses=answers(422))
async def list_profits(context: Context, by: By = By.MODEL, days: Annotated[int, Parameter(ge=1, le=400)] = 7, month: str = "") -> ProfitList:
    """What cards brought and cost, hour by hour added up: by card, machine, rack, model, owner or site; of the last days, or of a month (2026-11, UTC)."""
    now_ms = context.clock_ms()
    since_ms, until_ms = month_span(month) if month else (now_ms - days * MS_PER_DAY, now_ms + 1)
    rows = await context.read(lambda store: list(kept(store, since_ms, until_ms)))
    return ProfitList(by=by, since_ms=since_ms, until_ms=until_ms, items=tuple(profits(context.world, iter(rows), by)))


@get("/v1/dispatch/{subject:str}", opt={"scope": Scope.OPERATOR}, responses=answers(404))
async def explain(context: Context, subject: str) -> Explanation:
    """Why a card (by UUID), a rack or a site does what it does now."""
    world = context.world
    gpu, rack = world.gpus.get(GpuId(subject)), rack_named(world, subject)
    node = world.nodes[gpu.node_id] if gpu else None
    home = node or rack
    site = world.sites[home.site_id] if home else site_named(world, subject)
    survey = survey_of(context, site)
    if gpu is not None:
        return explain_gpu(world, survey, gpu)
    there = [node for node in world.nodes.values() if (node.rack_id == rack.id if rack else node.site_id == site.id)]
    cards = [each for node in there for each in world.node_gpus[node.id].values() if each.state is not GpuState.RETIRED]
    return explain_many(world, survey, rack.name if rack else site.name, sorted(cards, key=lambda each: each.id))


@put("/v1/market", opt={"scope": Scope.SIGNAL}, responses=answers(409, 422))
async def tell_market(context: Context, request: Request[Principal, Any, Any], data: MarketBody) -> MarketTold:
    """Day-ahead prices of a market. Nothing is taken where one of them can't be a price."""
    _token(data.market, "market")
    if not data.prices or len(data.prices) > PRICES_MAX:
        raise BadRequest(f"1 to {PRICES_MAX} hours of prices at once")
    if any(at_ms % MS_PER_HOUR or not 0 <= at_ms < 1 << 45 for at_ms, _ in data.prices):
        raise BadRequest("a price belongs to an hour: its start in ms, UTC", "give hours")
    rows = market_days(data.market, dict(data.prices), data.source[:80])
    from_today = context.clock_ms() // MS_PER_DAY * MS_PER_DAY

    def answer(world: World) -> MarketTold:
        known = [row for row in world.market_days.values() if row.market == data.market and row.start_ms >= from_today]
        return MarketTold(market=data.market, days=len(known), until_ms=max((row.start_ms + MS_PER_DAY for row in known), default=0))

    return await context.write(request, TellMarket(days=rows), answer)


@get("/v1/signals", opt={"scope": Scope.OPERATOR}, responses=answers())
async def list_signals(context: Context) -> SignalList:
    """Signals in force or to come, next first."""
    return SignalList(items=tuple(sorted(context.world.signals.values(), key=lambda row: (row.start_ms, row.id))))


@post("/v1/signals", opt={"scope": Scope.SIGNAL}, responses=answers(404, 409, 422))
async def take_signal(context: Context, request: Request[Principal, Any, Any], data: SignalBody) -> Signal:
    """What a grid, a market, a breaker or a person asks of a site: kept, then acted on. The same event again changes nothing."""
    try:
        row = signal_of(context, data)

        def answer(world: World) -> Signal:
            return world.signals.get(row.id, row)

        return await context.write(request, TakeSignal(signal=row), answer)
    except HeadframeError:
        context.refuse_signal()
        raise


@post("/v1/openadr", opt={"scope": Scope.SIGNAL}, responses=answers(404, 409, 422))
async def take_event(
    context: Context, request: Request[Principal, Any, Any], data: dict[str, Any], site: str = "", source: str = "openadr"
) -> EventTaken:
    """An OpenADR 3 event, or a top node's notification of one: what it had before and has no more is cancelled. The same event again changes nothing."""
    try:
        _token(source, "source")
        told = openadr.told(data, site_named(context.world, site), source, context.clock_ms())

        def answer(world: World) -> EventTaken:
            return EventTaken(event=told.take.event, signals=tuple(world.signals.get(row.id, row) for row in told.take.signals), ignored=told.ignored)

        return await context.write(request, told.take, answer)
    except HeadframeError:
        context.refuse_signal()
        raise


@get("/v1/feeds", opt={"scope": Scope.OPERATOR}, responses=answers())
async def list_feeds(context: Context) -> FeedList:
    """Where prices, signals and coins' terms are fetched from, and how that fares."""
    return FeedList(items=context.feeds.views() if context.feeds else ())


def signal_of(context: Context, data: SignalBody) -> Signal:
    """The signal that a body describes."""
    _token(data.source, "source")
    _token(data.event, "event")
    site, now_ms = site_named(context.world, data.site), context.clock_ms()
    start_ms = data.start_ms or now_ms
    end_ms = data.end_ms or start_ms + data.length_s * 1000
    if not 0 <= data.version < 1 << 31 or not 0 <= start_ms < 1 << 45 or not 0 <= end_ms < 1 << 45:
        raise BadRequest("a version or a time of this signal is out of range")
    return Signal(id=signal_id(site.id, data.source, data.event), site_id=site.id, source=data.source, event=data.event, version=data.version, kind=data.kind, value=data.value,
                  start_ms=start_ms, end_ms=end_ms, why=data.why[:200], received_ms=now_ms, cancelled=data.cancelled)  # fmt: skip


@get("/v1/coins", opt={"scope": Scope.OPERATOR}, responses=answers())
async def list_coins(context: Context) -> CoinList:
    """Coins and their terms, as last told."""
    return CoinList(items=tuple(context.world.coins[key] for key in sorted(context.world.coins)))


@put("/v1/coins/{coin:str}", opt={"scope": Scope.SIGNAL}, responses=answers(409, 422))
async def tell_coin(context: Context, request: Request[Principal, Any, Any], coin: str, data: CoinBody) -> Coin:
    """What a coin pays; a figure that can't be is refused, a jump of more than ten times needs `sure`."""
    if not _COIN.fullmatch(coin):
        raise BadRequest(f"{coin[:20]!r} is no coin's short name", "such as BTC or RVN")
    if not all(math.isfinite(each) for each in (data.price_usd, data.network_hs, data.block_s, data.reward)):
        raise BadRequest("a coin's terms are numbers")
    row = Coin(id=coin, algorithm=data.algorithm[:40], price_usd=data.price_usd, network_hs=data.network_hs, block_s=data.block_s, reward=data.reward,
               at_ms=context.clock_ms(), source=data.source[:80])  # fmt: skip

    def answer(world: World) -> Coin:
        return world.coins[coin]

    return await context.write(request, TellCoin(coin=row, sure=data.sure), answer)


@get("/v1/fillers", opt={"scope": Scope.OPERATOR}, responses=answers())
async def list_fillers(context: Context) -> FillerList:
    """What idle cards may do, and what it brings now."""
    return FillerList(items=tuple(filler_views(context.world, survey_of(context, site_named(context.world, "")), context.miners.readings)))


@put("/v1/fillers", opt={"scope": Scope.OPERATOR}, responses=answers(409, 422))
async def set_filler(context: Context, request: Request[Principal, Any, Any], data: TextBody) -> FillerView:
    """A filler's file (YAML): new, or in place of the one of that name."""
    row = filler(data.file)

    def answer(world: World) -> FillerView:
        return FillerView(filler=world.fillers[row.id])

    return await context.write(request, SetFiller(filler=row), answer)


@delete("/v1/fillers/{name:str}", opt={"scope": Scope.OPERATOR}, status_code=200, responses=answers(404, 409))
async def remove_filler(context: Context, request: Request[Principal, Any, Any], name: str) -> FillerView:
    """No card does this any more; what runs of it is ended."""
    row = found(context.world.fillers.get(filler_id(name)), f"filler {name[:80]!r}", "mining ls")

    def answer(world: World) -> FillerView:
        del world
        return FillerView(filler=row)

    return await context.write(request, RemoveFiller(name=name), answer)


@get("/v1/asics", opt={"scope": Scope.OPERATOR}, responses=answers())
async def list_asics(context: Context) -> AsicList:
    """Mining machines, by name."""
    return _asics(context.world)


@put("/v1/asics", opt={"scope": Scope.OPERATOR}, responses=answers(409, 422))
async def tell_asics(context: Context, request: Request[Principal, Any, Any], data: AsicBody) -> AsicList:
    """Mining machines as they were found."""
    if len(data.asics) > ASICS_MAX:
        raise BadRequest(f"at most {ASICS_MAX} machines at once")
    for asic in data.asics:
        _token(asic.id, "id")
        if not (0 <= asic.watts <= 20_000 and 0 <= asic.hashes_s <= 1e18) or not re.fullmatch(r"[0-9a-fA-F.:]{0,45}", asic.ip):
            raise BadRequest(f"{asic.id}: its watts, hashrate or address is out of range")
    return await context.write(request, TellAsics(asics=data.asics), _asics)


@put("/v1/asics/{asic:str}/limit", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 422))
async def limit_asic(context: Context, request: Request[Principal, Any, Any], asic: str, data: AsicLimitBody) -> AsicList:
    """A mining machine is to draw less, where its firmware can."""
    if not math.isfinite(data.watts) or data.watts < 0:
        raise BadRequest("watts are a number, 0 or more")
    return await context.write(request, LimitAsic(id=asic, watts=data.watts), _asics)


@delete("/v1/asics/{asic:str}", opt={"scope": Scope.OPERATOR}, status_code=200, responses=answers(404, 409))
async def remove_asic(context: Context, request: Request[Principal, Any, Any], asic: str) -> AsicList:
    """A mining machine is no longer looked after."""
    return await context.write(request, RemoveAsic(id=asic), _asics)


def _asics(world: World) -> AsicList:
    return AsicList(items=tuple(sorted(world.asics.values(), key=lambda row: (row.name, row.id))))


def site_named(world: World, name: str) -> Site:
    """A site by name or id; the only one where nothing is said."""
    row = operate.site_named(world, name)
    if row is None:
        raise NotFound(f"no card, rack or site {name[:80]!r}", "list them: `headframe nodes`, `headframe rack ls`, `headframe site ls`")
    return row


def survey_of(context: Context, site: Site) -> Survey:
    """The site as it is now."""
    return surveyed(context.world, site, context.clock_ms(), context.dispatcher.known)


def _token(text: str, what: str) -> None:
    if not _TOKEN.fullmatch(text):
        raise BadRequest(f"{what}: 1 to 80 letters, digits, spaces, dots, colons, slashes, dashes or underscores")


ROUTER = Router(
    "/",
    route_handlers=[
        show_power, list_profits, explain, tell_market, list_signals, take_signal, take_event, list_feeds, list_coins, tell_coin, list_fillers, set_filler, remove_filler, list_asics, tell_asics, limit_asic, remove_asic,
    ],
)  # fmt: skip
"""All of this module's routes."""
