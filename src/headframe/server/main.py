"""Wiring: everything is opened, made and started here, once, and closed in the other order."""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
import uvicorn
import uvloop

from headframe.engines.base import Engine
from headframe.engines.joined import JoinedEngine
from headframe.engines.local import Clean, LocalEngine
from headframe.engines.several import Several
from headframe.engines.slurm.engine import SlurmEngine
from headframe.files import alone
from headframe.health.rules import Rules, limited
from headframe.listening import bound, check_exposure, url_at
from headframe.model.command import Enrol, Found
from headframe.model.errors import Conflicting, Fenced, HeadframeError
from headframe.model.fleet import JOINED, LOCAL, SLURM, Node
from headframe.model.health import Report
from headframe.model.ids import AllocationId, GpuId, NodeId, ProjectId, RackId, SiteId
from headframe.model.people import Scope
from headframe.placement.fleet import LOOK_AHEAD_FROM, Fleet
from headframe.placement.warm import warmed
from headframe.server.app import app, secured
from headframe.server.asics import Machines, Seen, Told
from headframe.server.auth import Auth, load_pepper
from headframe.server.context import Context
from headframe.server.decide import RACK, SITE, decide
from headframe.server.demand import Demand
from headframe.server.desk import Desk
from headframe.server.dispatcher import Dispatcher, Limits
from headframe.server.feeds import Feeds
from headframe.server.feeds_file import Feed, feeds
from headframe.server.gateway import GatewaySetup, keep_gateway
from headframe.server.history import keep_hours
from headframe.server.lead import RENEW_MS, Leadership
from headframe.server.miners import Miners, Read
from headframe.server.profits import keep_yields
from headframe.server.sessions import Sessions
from headframe.server.tick import Tick
from headframe.server.tls import pinned, self_signed
from headframe.server.watch import Watch
from headframe.store.base import Store
from headframe.store.open import open_store

T = TypeVar("T")
TICK_LIMIT_S = 1.0
"""The tick runs at least this often; writes and facts wake it at once."""
FOLLOW_S = 0.5
SHUTDOWN_S = 3
LATE_S = 0.05
CONNECTIONS_MAX = 20_000
"""Each machine that joined holds one or two."""
WARM_WAIT_S, WARM_LOOK_S = 1.5, 5.0
_log = logging.getLogger("headframe")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator chooses."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 7070
    database: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_self_signed: bool = False
    pepper: Path | None = None
    check_new: bool = True
    limits: Path | None = None
    feeds: Path | None = None
    gateway_port: int = 7071
    gateway_url: str = ""
    gateway: bool = True

    @property
    def url(self) -> str:
        """Where people reach it."""
        return url_at(self.host, self.port, secure=self.secure)

    @property
    def secure(self) -> bool:
        """Whether it speaks TLS."""
        return bool(self.tls_cert or self.tls_self_signed)


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """What `headframe up` tells: where, and on the very first start the operator's key."""

    url: str
    operator_key: str
    node: str


class Running(Engine, Protocol):
    """An engine that wakes the server when something happens."""

    def listen(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Call `wake` from now on."""
        ...


def wall_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What a demonstration puts in place of the machine: a clock, an engine, something to do beside, and a note on every page."""

    clock_ms: Callable[[], int]
    engine: Running
    beside: Callable[[Desk], Coroutine[Any, Any, None]]
    note: str


class Hooks(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller brings: what this machine has, where the first key is kept, whom to tell when it serves,
    what its cards say from then on, how they are handed from one holder to the next, how mining machines are read and told, how power limits of this machine are set, how its miners are read.
    """

    probe: Callable[[SiteId, RackId, Path, int], Enrol]
    keep_key: Callable[[str], None]
    started: Callable[[Started], None]
    stage: Stage | None = None
    reports: Callable[[], AsyncIterator[Report]] | None = None
    clean: Clean | None = None
    asics: tuple[Seen, Told, Told] | None = None
    limit: Callable[[Mapping[GpuId, int]], None] | None = None
    miner: Read | None = None


def run(config: Config, hooks: Hooks) -> None:
    """Serve until a signal; raises HeadframeError for what an operator can mend."""
    assert sys.flags.optimize == 0, "Headframe's invariants are assertions: do not run it with -O"
    check_exposure(config.host, secure=config.secure, otherwise="give --tls-cert and --tls-key, or --tls-self-signed, or bind to 127.0.0.1")
    config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(config), bound(config.host, config.port) as listening:
        uvloop.run(_serve(config, hooks, listening))


async def _serve(config: Config, hooks: Hooks, listening: socket.socket) -> None:
    rules, found = _rules(config), _feeds(config)
    url, stage = config.database or f"sqlite:///{config.data / 'headframe.db'}", hooks.stage
    clock_ms = stage.clock_ms if stage else wall_ms
    store = await asyncio.to_thread(open_store, url)
    auth = Auth(load_pepper(config.pepper or config.data / "pepper"))
    desk = Desk(store, clock_ms, asyncio.to_thread)
    desk.open()
    _spare_collections()
    key = await _found(desk, auth, hooks.keep_key, check_new=config.check_new and not stage)
    machine = await asyncio.to_thread(hooks.probe, SITE, RACK, config.data, clock_ms())
    leadership, workdirs = _leadership(config, store), config.data / "workdirs"
    workdirs.mkdir(exist_ok=True, mode=0o700)
    node = machine.node
    joined = _joined(desk)
    slurm = SlurmEngine(
        lambda: next(iter(desk.world.engines.values()), None), config.data / "workdirs", clock_ms, lambda: leadership.epoch is not None
    )
    engine: Running = stage.engine if stage else _engines(config, desk, node, joined, slurm, hooks.clean)
    watch, demand, wake = Watch(rules.watch), Demand(), asyncio.Event()
    sessions = Sessions(clock_ms, lambda card: sample.use if (sample := watch.latest(card)) else None)
    beside = _gateway(config) if config.gateway and not stage else None
    dispatcher = Dispatcher(desk, leadership, watch, wake.set, limit=_limits(desk, node, joined, hooks))
    miners = Miners(desk.world, hooks.miner, joined.ask) if hooks.miner else None
    context = Context(desk=desk, dispatcher=dispatcher, miners=miners, auth=auth, engine=engine, leadership=leadership, workdirs=workdirs, clock_ms=clock_ms, watch=watch,
                      joined=None if stage else joined, pin=_pin(config), demand=demand, sessions=sessions, wake=wake.set,
                      gateway_url=config.gateway_url or (beside.url if beside else ""), gateway_ca=beside.ca if beside else "",
                      secure=config.secure, note=stage.note if stage else "")  # fmt: skip
    server = _Server(_uvicorn(config, context), (context.table.close, joined.close))
    engine.listen(asyncio.get_running_loop(), wake.set)
    desk.listeners.append(lambda _events: wake.set())
    warm = asyncio.create_task(_warm(desk), name="warm")
    if len(desk.world.nodes) >= LOOK_AHEAD_FROM:  # from the cache it is ready at once, and the first decisions are the better for it
        await asyncio.wait([warm], timeout=WARM_WAIT_S)
    tasks = [
        warm,
        asyncio.create_task(_lead(leadership, wake), name="lead"),
        asyncio.create_task(
            _tick(
                Tick(desk, engine, clock_ms, watch, rules, demand, sessions, auth.for_replica, dispatcher.budgets), leadership, wake, desk, machine
            ),
            name="tick",
        ),
        asyncio.create_task(_announce(server, lambda: hooks.started(Started(url=config.url, operator_key=key, node=node.name))), name="announce"),
        *([] if stage else [asyncio.create_task(slurm.run(), name="slurm")]),
        *_watts(context, leadership, hooks, found),
        asyncio.create_task(keep_hours(desk, watch, clock_ms), name="hours"),
        *([asyncio.create_task(_listen(hooks.reports(), watch, node.id, clock_ms, wake), name="reports")] if hooks.reports else []),
        *([asyncio.create_task(stage.beside(desk), name="stage")] if stage else []),
        *([asyncio.create_task(_beside(server, beside, desk, auth), name="gateway")] if beside else []),
    ]
    try:
        await server.serve(sockets=[listening])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(HeadframeError):
            await leadership.resign()
        store.close()


def _limits(desk: Desk, here: Node, joined: JoinedEngine, hooks: Hooks) -> Limits:
    """Power limits of this machine's cards are set here, those of machines that joined by their agents; other engines have their own ways."""

    async def limit(node: NodeId, watts: Mapping[GpuId, int]) -> None:
        if node == here.id and hooks.limit:
            await asyncio.to_thread(hooks.limit, watts)
        elif node in desk.world.nodes and desk.world.nodes[node].engine == JOINED:
            joined.limit(node, watts)

    return limit


def _watts(context: Context, leadership: Leadership, hooks: Hooks, told: Sequence[Feed]) -> list[asyncio.Task[None]]:
    """What keeps watts at their best use, adds up what they brought, and looks after miners and mining machines."""
    desk = context.desk
    if told:
        context.feeds = Feeds(desk, leadership, told, context.refuse_signal)
    loops = {"dispatch": context.dispatcher.run(), "yields": keep_yields(desk, leadership)}
    if context.feeds:
        loops["feeds"] = context.feeds.run()
    if hooks.asics:
        loops["asics"] = Machines(desk, leadership, *hooks.asics).run()
    if hooks.miner:
        loops["miners"] = context.miners.run()
    return [asyncio.create_task(loop, name=name) for name, loop in loops.items()]


def _engines(config: Config, desk: Desk, node: Node, joined: JoinedEngine, slurm: SlurmEngine, clean: Clean | None) -> Several:
    """This machine's own engine, the machines that joined, and Slurm."""
    world = desk.world
    local = LocalEngine(config.data / "allocations", node.id, config.data / "workdirs", wall_ms, node.boot_id, clean=clean)

    def home(allocation: AllocationId) -> NodeId | None:
        known = world.allocations.get(allocation)
        return known.parts[0].node_id if known else None

    return Several({LOCAL: local, JOINED: joined, SLURM: slurm}, lambda key: world.nodes[key].engine if key in world.nodes else LOCAL, home)


def _joined(desk: Desk) -> JoinedEngine:
    world = desk.world
    engine = JoinedEngine(desk.clock_ms, lambda node: world.on_node.get(node, {}).values(), world.allocations.get)
    engine.expect(node.id for node in world.nodes.values() if node.engine == JOINED)
    return engine


def _leadership(config: Config, store: Store) -> Leadership:
    holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return Leadership(store, holder, monotonic_ms, asyncio.to_thread, alone=not config.database)


async def _found(desk: Desk, auth: Auth, keep_key: Callable[[str], None], *, check_new: bool) -> str:
    """On a new store: the first site, prices and the operator's key, whose text is returned this once.

    The key is kept before it is committed: a crash between the two leaves a key that is not known, never a store without one.
    """
    await desk.catch_up()
    if desk.world.sites:
        return ""
    key, text = auth.new_key("operator", Scope.OPERATOR, ProjectId(""), desk.clock_ms())
    keep_key(text)
    command = Found(site_name=socket.gethostname(), key=key, check_new=check_new)
    events = await desk.write(lambda world, now_ms: decide(world, command, now_ms))
    return text if events else ""


async def _lead(leadership: Leadership, wake: asyncio.Event) -> None:
    """Renew or seek leadership, for ever."""
    while True:
        before = leadership.epoch
        if await leadership.poll() != before:
            _log.info("leading with epoch %s", leadership.epoch) if leadership.epoch is not None else _log.info("following")
            wake.set()
        await asyncio.sleep(RENEW_MS / 1000)


async def _tick(tick: Tick, leadership: Leadership, wake: asyncio.Event, desk: Desk, machine: Enrol) -> None:
    """Tick while leading, follow while not; an error is logged and the next wake does what is left."""
    enrolled, told = False, ""
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), TICK_LIMIT_S if leadership.epoch is not None else FOLLOW_S)
        wake.clear()
        try:
            if not enrolled:
                await desk.write(lambda world, now_ms: decide(world, machine, now_ms))
                enrolled = True
            if leadership.epoch is None:
                await desk.catch_up()
            else:
                await tick.run(leadership.epoch)
            told = ""
        except Fenced:
            leadership.lose()
        except HeadframeError as error:
            if error.detail != told:
                told = error.detail
                _log.warning("the tick could not finish: %s; it goes on by itself", error.detail)
        except Exception:
            _log.exception("the tick failed; this is a bug in Headframe, it goes on by itself")
            await asyncio.sleep(TICK_LIMIT_S)


async def _listen(reports: AsyncIterator[Report], watch: Watch, node: NodeId, clock_ms: Callable[[], int], wake: asyncio.Event) -> None:
    """What this machine's cards say, as it comes."""
    async for report in reports:
        if watch.hear(report, node, clock_ms()):
            wake.set()


async def _warm(desk: Desk) -> None:
    """Machine code for placement, once the fleet is large enough to gain by it; until it is ready NumPy gives the same answers, slower."""
    while len(desk.world.nodes) < LOOK_AHEAD_FROM:  # noqa: ASYNC110 - a fleet grows by the hour; nothing waits for this
        await asyncio.sleep(WARM_LOOK_S)
    code = await asyncio.to_thread(warmed)
    Fleet.of(desk.world).use(code)
    _log.info("placement runs as machine code")


class _Server(uvicorn.Server):
    """Before it ends it answers those that wait for news, so that it need not cut them off."""

    def __init__(self, config: uvicorn.Config, answer: Sequence[Callable[[], None]]) -> None:
        super().__init__(config)
        self._answer = answer

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does."""
        for each in self._answer:
            each()
        late = asyncio.create_task(self._close_late(set(self.server_state.connections)))
        try:
            await super().shutdown(sockets)
        finally:
            late.cancel()

    async def _close_late(self, told: set[Any]) -> None:
        """End connections that were accepted before and come about only now: uvicorn asks those that it has once, and then waits for all."""
        while True:
            await asyncio.sleep(LATE_S)
            for connection in self.server_state.connections - told:
                told.add(connection)
                connection.shutdown()


async def _announce(server: uvicorn.Server, started: Callable[[], None]) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0.01)
    started()


def _uvicorn(config: Config, context: Context) -> uvicorn.Config:
    cert, key = config.tls_cert, config.tls_key
    if config.tls_self_signed:
        cert, key = self_signed(config.data, config.host)
    tls: dict[str, Any] = {"ssl_certfile": cert, "ssl_keyfile": key, "ssl_version": ssl.PROTOCOL_TLS_SERVER} if cert else {}
    return uvicorn.Config(
        secured(app(context), tls=context.secure), host=config.host, port=config.port, http="h11", log_config=None, access_log=False, server_header=False, lifespan="on",
        timeout_graceful_shutdown=SHUTDOWN_S, limit_concurrency=CONNECTIONS_MAX, timeout_keep_alive=30, h11_max_incomplete_event_size=64 * 1024, **tls,
    )  # fmt: skip


def _spare_collections() -> None:
    """What was loaded lives as long as the server: the collector, which holds everything up while it looks, passes it over, and looks seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def _rules(config: Config) -> Rules:
    """The rules with the operator's limits, where there is a file of them."""
    return limited(_text(config.limits)) if config.limits else Rules()


def _feeds(config: Config) -> tuple[Feed, ...]:
    """The feeds of the operator's file."""
    return feeds(_text(config.feeds)) if config.feeds else ()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Conflicting(f"{path} can't be read: {error}", "give another file, or none") from None


def _gateway(config: Config) -> GatewaySetup:
    """The gateway beside this server: on the same address, with the same certificate."""
    cert, key = self_signed(config.data, config.host) if config.tls_self_signed else (config.tls_cert, config.tls_key)
    local = msgspec.structs.replace(config, host="127.0.0.1") if config.host in {"0.0.0.0", "::"} else config  # noqa: S104 - compared, not bound
    return GatewaySetup(data=config.data / "gateway", host=config.host, port=config.gateway_port, server=local.url, pepper=config.pepper or config.data / "pepper",
                        ca=str(cert) if config.tls_self_signed else "", tls_cert=cert, tls_key=key)  # fmt: skip


async def _beside(server: uvicorn.Server, setup: GatewaySetup, desk: Desk, auth: Auth) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn offers no event
        await asyncio.sleep(0.01)
    await keep_gateway(setup, desk, auth)


def _pin(config: Config) -> str:
    return pinned(self_signed(config.data, config.host)[0]) if config.tls_self_signed else ""


@contextlib.contextmanager
def _alone(config: Config) -> Generator[None]:
    """An embedded store has one server: the lock proves that the last one is gone. A shared database needs none."""
    if config.database:
        yield
        return
    with alone(config.data / "server.lock", f"another Headframe already serves {config.data}", "stop it, or give this one its own --data"):
        yield


def monotonic_ms() -> int:
    """A clock that never steps."""
    return time.monotonic_ns() // 1_000_000
