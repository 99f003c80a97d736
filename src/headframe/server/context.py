"""What every route needs: the desk, the keys, the engine, the clock; who is calling; writes that happen once per Idempotency-Key."""

import asyncio
import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from headframe.engines.base import Engine
from headframe.engines.joined import JoinedEngine
from headframe.model.agent import Miner
from headframe.model.command import Command
from headframe.model.errors import BadRequest, HeadframeError, IdempotencyMismatch, InFlight, NotFound, Unauthenticated
from headframe.model.event import Event
from headframe.model.ids import ENTROPY_BYTES, WORKLOAD_ENTROPY_BYTES, WorkloadId, base32, workload_id
from headframe.model.people import Scope
from headframe.model.power import Reading
from headframe.model.world import World
from headframe.server.auth import SESSION_COOKIE, Auth, Principal
from headframe.server.decide import decide
from headframe.server.demand import Demand
from headframe.server.desk import Desk
from headframe.server.dispatcher import Dispatcher
from headframe.server.feeds import Feeds
from headframe.server.lead import Leadership
from headframe.server.miners import Miners
from headframe.server.sessions import Sessions
from headframe.server.table import GatewayTable
from headframe.server.watch import Watch
from headframe.store.base import Reply, Store

T = TypeVar("T")
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$")
KEY_CHARS_MAX = 200
CURSOR_CHARS_MAX = 200
PUBLIC = "public"
"""The mark of a route that needs no key; a test holds the list of them."""


class Context:
    """The server's parts, as the routes see them."""

    def __init__(
        self,
        *,
        desk: Desk,
        auth: Auth,
        engine: Engine,
        leadership: Leadership,
        workdirs: Path,
        clock_ms: Callable[[], int],
        secure: bool,
        watch: Watch | None = None,
        joined: JoinedEngine | None = None,
        pin: str = "",
        note: str = "",
        demand: Demand | None = None,
        sessions: Sessions | None = None,
        gateway_url: str = "",
        gateway_ca: str = "",
        wake: Callable[[], None] = lambda: None,
        dispatcher: Dispatcher | None = None,
        miners: Miners | None = None,
    ) -> None:
        self.desk = desk
        self.auth = auth
        self.engine = engine
        self.leadership = leadership
        self.workdirs = workdirs
        self.clock_ms = clock_ms
        self.secure = secure
        self.watch = watch or Watch()
        self.joined = joined
        self.pin = pin
        self.note = note
        self.demand = demand or Demand()
        self.sessions = sessions or Sessions(clock_ms)
        self.gateway_url = gateway_url
        self.gateway_ca = gateway_ca
        self.wake = wake
        self.dispatcher = dispatcher or Dispatcher(desk, leadership, self.watch, wake)
        self.miners = miners or Miners(desk.world, _nobody, lambda _node, _miners: None)
        self.refused_signals = 0
        self.feeds: Feeds | None = None
        self.table = GatewayTable(desk.world)
        desk.listeners.append(self.table.heard)
        self._in_flight: set[str] = set()
        self._changed = asyncio.Event()
        desk.listeners.append(self._heard)

    @property
    def world(self) -> World:
        """The world as this server knows it."""
        return self.desk.world

    @property
    def store(self) -> Store:
        """The store."""
        return self.desk.store

    async def read(self, call: Callable[[Store], T]) -> T:
        """A blocking read of the store, off the loop."""
        return await asyncio.to_thread(call, self.store)

    async def changed(self, limit_s: float) -> None:
        """Wait for the next commit, at most `limit_s`."""
        try:
            await asyncio.wait_for(self._changed.wait(), limit_s)
        except TimeoutError:
            return

    def _heard(self, _events: Sequence[Event]) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def new_workload(self) -> WorkloadId:
        """A new id that nobody can guess, later in order than those of the seconds before."""
        return workload_id(self.clock_ms(), secrets.token_bytes(WORKLOAD_ENTROPY_BYTES))

    def refuse_signal(self) -> None:
        """Count a signal that was not taken: an alarm rises with it."""
        self.refused_signals += 1

    async def write(self, request: Request[Any, Any, Any], command: Command, answer: Callable[[World], T], kept: Callable[[T], T] | None = None) -> T:
        """Commit `command` once per Idempotency-Key; the stored answer for a repeated request. `kept` edits what is stored."""
        now_ms = self.clock_ms()
        name, request_hash = await _idempotency(request)
        known = await self.read(lambda store: store.reply(name)) if name else None
        if known is not None:
            return _replay(known, request_hash, answer)
        if name in self._in_flight:
            raise InFlight("a request with this Idempotency-Key is being answered")
        made: list[T] = []

        def reply() -> Reply | None:
            made.append(answer(self.world))
            body = msgspec.json.encode(kept(made[-1]) if kept else made[-1])
            return Reply(key=name, request_hash=request_hash, status=201, body=body, at_ms=now_ms) if name else None

        self._in_flight.update([name] if name else [])
        try:
            await self.desk.write(lambda world, at_ms: decide(world, command, at_ms), reply=reply)
        finally:
            self._in_flight.discard(name)
        return made[-1]


def _nobody(_miner: Miner) -> Reading:
    raise NotFound("nobody reads miners here")


def _replay(known: Reply, request_hash: str, answer: Callable[..., T]) -> T:
    if known.request_hash != request_hash:
        raise IdempotencyMismatch("this Idempotency-Key was used for another request")
    return msgspec.json.decode(known.body, type=answer.__annotations__["return"])


async def _idempotency(request: Request[Any, Any, Any]) -> tuple[str, str]:
    """The stored answer's name (caller, route, key) and the request's hash; an empty name when no key was sent."""
    key = request.headers.get("Idempotency-Key", "")
    if not key:
        return "", ""
    if len(key) > KEY_CHARS_MAX or not key.isprintable():
        raise BadRequest(f"Idempotency-Key has at most {KEY_CHARS_MAX} printable characters")
    principal: Principal = request.user
    name = f"{principal.key.id} {request.method} {request.url.path} {key}"
    body = await request.body()
    return name, hashlib.sha256(body + request.url.query.encode()).hexdigest()


async def authorise(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Every route's guard: a key or session of the declared scope. A route that declares none is refused to all."""
    scope = handler.opt.get("scope")
    if scope == PUBLIC:
        return
    context: Context = connection.app.state.context
    try:
        principal = authenticate(context, connection)
        if not isinstance(scope, Scope):
            raise Unauthenticated("this route declares no scope")
        principal.require(scope)
    except HeadframeError:
        if scope is Scope.SIGNAL:
            context.refuse_signal()
        raise
    connection.scope["user"] = principal


def authenticate(context: Context, connection: ASGIConnection[Any, Any, Any, Any]) -> Principal:
    """Who is calling, by `Authorization: Bearer` or by the console's cookie (which only reads, except through forms)."""
    now_ms = context.clock_ms()
    header = connection.headers.get("Authorization", "")
    if header:
        kind, _, text = header.partition(" ")
        if kind.lower() != "bearer":
            raise Unauthenticated("Authorization must be `Bearer hf_…`")
        return Principal(key=context.auth.check(context.world, text.strip(), now_ms))
    cookie = connection.cookies.get(SESSION_COOKIE)
    if not cookie:
        raise Unauthenticated("this needs a key")
    principal = context.auth.session(context.world, cookie, now_ms)
    if connection.scope.get("method") not in {"GET", "HEAD"} and str(connection.url.path).startswith("/v1/"):
        raise Unauthenticated("a console session does not write through the API: use a key")
    return principal


def cursor_of(at_ms: int, key: str) -> str:
    """Where a page ended."""
    return f"{at_ms}:{key}"


def read_cursor(cursor: str | None) -> tuple[int, str] | None:
    """The other way; BadRequest for what this API never gave out."""
    if not cursor:
        return None
    at_ms, _, key = cursor.partition(":")
    if not at_ms.isdigit() or len(at_ms) > 16 or not key or len(cursor) > CURSOR_CHARS_MAX or "\0" in key:
        raise BadRequest("this cursor was not given out by this API", "start again without `before`")
    return int(at_ms), key


def named(name: str) -> None:
    """BadRequest where that is no name."""
    if not _NAME.fullmatch(name):
        raise BadRequest("a name is 1 to 63 letters, digits, spaces, dots, dashes or underscores")


def drawn(prefix: str) -> str:
    """A new id that nobody can guess."""
    return f"{prefix}-{base32(secrets.token_bytes(ENTROPY_BYTES))}"


def found(row: T | None, what: str, listed: str = "") -> T:
    """The row, or NotFound; `listed` is the command that shows what there is."""
    if row is None:
        raise NotFound(f"no {what}", f"list them: `headframe {listed}`" if listed else "")
    return row
