"""The gateway's process: its door, and what goes on beside requests: hearing what changed, telling what was served, probing, and having it on disk."""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import httptools
import msgspec

from headframe.client.gateway import GatewayClient
from headframe.client.http import ApiError, Unreachable
from headframe.files import alone, write_private
from headframe.gateway.book import Book, Caller
from headframe.gateway.exchange import Exchange, Going
from headframe.gateway.passage import Passage, passage
from headframe.gateway.probe import probe
from headframe.gateway.refusals import Refused, no_key, no_model
from headframe.gateway.replicas import Replica, Served
from headframe.gateway.spool import Spool
from headframe.gateway.tab import Tab
from headframe.gateway.wire import ClientConnection, Request, head
from headframe.listening import bound, check_exposure
from headframe.model.endpoint import GatewayReport, ServedBatch, Wish
from headframe.model.errors import Conflicting
from headframe.model.ids import ENTROPY_BYTES, GatewayId, base32

TELL_S, PROBE_S, LOOK_S, SYNC_S, SEAL_S = 1.0, 0.25, 1.0, 0.05, 5.0
"""How often it tells, tries a replica that is not ready, looks at what waits, has what was served on disk, and begins a new batch of it."""
SEAL_LINES = 10_000
"""A batch has no more requests than about so many."""
AGAIN_S = 2.0
LEAVE_S = 30.0
"""A gateway that is told to end gives what is under way so long."""
BACKLOG = 4096
_log = logging.getLogger("headframe.gateway")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator chooses. `servers` are the control planes; `pepper` the file with their secret."""

    data: Path
    servers: tuple[str, ...]
    key: str
    pepper: Path
    host: str = "127.0.0.1"
    port: int = 7071
    ca: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    shared_port: bool = False


class Gateway:
    """See `House`: what requests need of it."""

    def __init__(self, config: Config, book: Book, spool: Spool, key: GatewayId) -> None:
        self.book, self.spool = book, spool
        self.exchanges: dict[Going, None] = {}
        self.poor: dict[Exchange, None] = {}
        self._config, self._id = config, key
        self._clients: set[ClientConnection] = set()
        self._group: asyncio.TaskGroup | None = None
        self._told = asyncio.Event()
        self._due = False
        self._heard = False
        self._refusal = ""
        self._probing: set[Replica] = set()
        self._loop = asyncio.get_running_loop()
        self.now_s = self._loop.time
        self._last_id = 0
        self._prefix = b"req-" + secrets.token_hex(8).encode() + b"-"

    def now_ms(self) -> int:
        """The wall clock."""
        return time.time_ns() // 1_000_000

    def nudge(self) -> None:
        """Tell the control plane now."""
        self._told.set()

    def written(self) -> None:
        """Something is to be written: once for all that ends in this turn of the loop."""
        if not self._due:
            self._due = True
            self._loop.call_soon(self._flush)

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        """Do this beside."""
        assert self._group is not None
        self._group.create_task(_guarded(task))

    def answer(self, client: ClientConnection, request: Request) -> Any:
        """Who answers a request; True or False where it is answered already (and whether the connection is kept)."""
        given, keep = request.head.fields.get(b"x-request-id", b""), request.head.keep
        named = given.decode("ascii", "replace") if len(given) <= 128 and given.isascii() else ""
        if named and named.isprintable():
            request_id = given
        else:
            named, self._last_id = "", self._last_id + 1
            request_id = self._prefix + b"%d" % self._last_id
        try:
            return self._answer(client, request, request_id, named)
        except Refused as refused:
            client.write(refused.answer(request_id, keep=keep))
        except Exception:
            _log.exception("a request broke the gateway; this is a bug in Headframe, it goes on")
            client.write(Refused(500, "internal_error", "The gateway failed; this is a bug in Headframe.").answer(request_id, keep=keep))
        return keep

    def _answer(self, client: ClientConnection, request: Request, request_id: bytes, named: str) -> Any:
        path, method = request.head.path, request.head.method
        if path == b"/health":
            return self._say(client, request, request_id, {"status": "ok", "endpoints": len(self.book.endpoints)})
        caller = self._caller(request)
        passed = passage(request.head.target) if path.startswith(b"/endpoints/") else None
        if passed is not None:
            served = self.book.endpoint(caller, passed[0])
            if served.sold and caller.key.project_id not in {"", served.entry.project_id}:
                raise Refused(403, "sold_by_token", "This endpoint sells tokens: ask it through /v1.")
            through = Passage(self, client, request, passed[1], request_id, served, Tab(self, served, caller, (0, 0), named))
            through.begin()
            return through
        if path == b"/v1/models" or path.startswith(b"/v1/models/"):
            if method not in {b"GET", b"HEAD"}:
                raise Refused(405, "method_not_allowed", f"{path.decode('latin-1')} is read with GET.")
            return self._say(client, request, request_id, self._models(caller, path[len(b"/v1/models/") :].decode("latin-1")))
        if not path.startswith(b"/v1/"):
            raise Refused(
                404, "not_found", f"There is nothing at {path.decode('latin-1')[:200]}: models are asked at /v1/chat/completions and the like."
            )
        if method != b"POST":
            raise Refused(405, "method_not_allowed", "Models are asked with POST.")
        exchange = Exchange(self, client, request, request_id)
        exchange.begin(caller, named)
        return exchange

    def _caller(self, request: Request) -> Caller:
        """By `Authorization: Bearer`, as OpenAI's clients send it, or `x-api-key`, as Anthropic's do."""
        head = request.head
        token = head.token
        if token is None:
            header = head.fields.get(b"authorization", b"")
            token = head.token = header[7:].strip() if header[:7].lower() == b"bearer " else head.fields.get(b"x-api-key", b"")
        if not token:
            raise no_key()
        return self.book.caller(token, self.now_ms())

    def _models(self, caller: Caller, wanted: str) -> dict[str, Any]:
        found = [
            {
                "id": served.entry.serving.model or served.entry.name,
                "object": "model",
                "created": served.entry.created_ms // 1000,
                "owned_by": self._owner(served),
            }
            for served in self.book.visible(caller)
        ]
        if not wanted:
            return {"object": "list", "data": found}
        one = next((model for model in found if model["id"] == wanted), None)
        if one is None:
            raise no_model(wanted)
        return one

    def _owner(self, served: Served) -> str:
        tenant = self.book.tenants.get(served.entry.project_id)
        return tenant.entry.name if tenant else "headframe"

    def _say(self, client: ClientConnection, request: Request, request_id: bytes, said: dict[str, Any]) -> bool:
        body = msgspec.json.encode(said)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id)]
        keep, bodiless = request.head.keep, request.head.method == b"HEAD"
        client.write(head(200, headers if keep else [*headers, (b"connection", b"close")]) + (b"" if bodiless else body))
        return keep

    def _flush(self) -> None:
        self._due = False
        self.spool.flush()

    async def serve(self, client: GatewayClient, opened: Callable[[], None]) -> None:
        """Until a signal."""
        leave = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, leave.set)
        door = await self._loop.create_server(
            lambda: ClientConnection(self.answer, self.now_s, self._clients),
            sock=bound(self._config.host, self._config.port, shared=self._config.shared_port),
            ssl=_tls(self._config),
            backlog=BACKLOG,
        )
        async with asyncio.TaskGroup() as group:
            self._group = group
            beside = [self._hearing(client), self._telling(client), self._probing_all(), self._looking(), self._keeping()]
            tasks = [group.create_task(_forever(each)) for each in beside]
            _spare_collections()
            opened()
            await leave.wait()
            door.close()
            await self._emptied()
            for task in tasks:
                task.cancel()
        self.spool.seal()
        with contextlib.suppress(Unreachable, ApiError):
            self.spool.taken((await client.report(self._report(self.spool.oldest()))).batch)
        self.spool.close()

    async def _emptied(self) -> None:
        """What is under way ends, or is ended."""
        until_s = self.now_s() + LEAVE_S
        while self.exchanges and self.now_s() < until_s:  # noqa: ASYNC110 - looked at now and then, once in a gateway's life
            await asyncio.sleep(0.05)
        for exchange in list(self.exchanges):
            exchange.cut()

    async def _hearing(self, client: GatewayClient) -> None:
        """What changed, as it does."""
        while True:
            try:
                table = await client.table(self.book.run, self.book.seq)
            except (Unreachable, ApiError) as error:
                _log.warning("the control plane does not answer: %s; what is known goes on being served", error)
                await asyncio.sleep(AGAIN_S)
                continue
            self.book.take(table)
            await self.book.keep()
            self.nudge()

    async def _telling(self, client: GatewayClient) -> None:
        """Once a second, and when something can't wait."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), TELL_S)
            self._told.clear()
            try:
                more = await self._tell_now(client)
            except (Unreachable, ApiError) as error:
                if isinstance(error, ApiError) and str(error) != self._refusal:
                    _log.warning("the control plane does not take what was served: %s; it is kept and told again", error)
                self._refusal = str(error)
                self._heard = False
                await asyncio.sleep(AGAIN_S / 2)
                continue
            self._heard = True
            if more:
                self._told.set()

    async def _tell_now(self, client: GatewayClient) -> bool:
        """One report; whether there is another batch to tell at once."""
        report = self._report(await asyncio.to_thread(self.spool.oldest))  # after an outage there is much to read
        if any(wish.wanted_nano == 0 for wish in report.wishes):
            await self.book.keep()  # what is given back must not be counted on after a crash
        answer = await client.report(report)
        self.spool.taken(answer.batch)
        self.spool.skip_to(answer.batch)
        self.book.hear(answer, self.spool.unsent())
        for exchange in list(self.poor):
            exchange.paid()
        if answer.granted:
            await self.book.keep()
        return bool(self.spool.sealed)

    def _report(self, batch: ServedBatch | None) -> GatewayReport:
        now_s, wishes = self.now_s(), list[Wish]()
        for project, tenant in self.book.tenants.items():
            wanted = tenant.wanted(now_s)
            back = not wanted and tenant.purse.left > 0 and self._heard
            if back:
                tenant.purse.granted -= tenant.purse.left
            if back or wanted > tenant.purse.left:
                wishes.append(Wish(project_id=project, honoured_nano=tenant.purse.granted, wanted_nano=wanted))
        endpoints = tuple(served.report() for served in self.book.endpoints.values())
        return GatewayReport(gateway=self._id, endpoints=endpoints, wishes=tuple(wishes), batch=batch)

    async def _probing_all(self) -> None:
        while True:
            for served in list(self.book.endpoints.values()):
                for replica in served.replicas.values():
                    if not replica.ready and replica not in self._probing:
                        self._probing.add(replica)
                        self.spawn(partial(self._probe, served, replica))
            await asyncio.sleep(PROBE_S)

    async def _probe(self, served: Served, replica: Replica) -> None:
        try:
            replica.why = await probe(replica, self.now_s)
            if not replica.why and served.replicas.get(replica.entry.id) is replica:
                replica.ready, replica.failures = True, 0
                served.sort()
                self.nudge()
        finally:
            self._probing.discard(replica)

    async def _looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = self.now_s()
            for exchange in list(self.exchanges):
                exchange.looked_at(now_s)
            for client in list(self._clients):
                client.overdue(now_s)
            self._flush()

    async def _keeping(self) -> None:
        sealed_s = self.now_s()
        while True:
            await asyncio.sleep(SYNC_S)
            if self.spool.dirty:
                await asyncio.to_thread(self.spool.sync)
            if self.now_s() - sealed_s >= SEAL_S or self.spool.lines >= SEAL_LINES:
                sealed_s = self.now_s()
                self.spool.seal()


def run(config: Config, opened: Callable[[], None]) -> None:
    """Carry requests until a signal; raises HeadframeError for what an operator can mend."""
    check_exposure(config.host, secure=config.tls_cert is not None, otherwise="give --tls-cert and --tls-key, or bind to 127.0.0.1")
    config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with alone(config.data / "gateway.lock", f"another gateway works in {config.data}", "stop it, or give this one its own --data"):
        try:
            import uvloop
        except ImportError:
            asyncio.run(_run(config, opened))
        else:
            uvloop.run(_run(config, opened))


async def _run(config: Config, opened: Callable[[], None]) -> None:
    key = _identity(config.data / "id")
    write_private(config.data / "pid", str(os.getpid()).encode(), durable=False)
    spool = Spool(config.data / "spool", key)
    try:
        pepper = config.pepper.read_bytes()
    except OSError as error:
        raise Conflicting(
            f"{config.pepper} can't be read: {error.strerror}", "give --pepper the control plane's secret: keys are checked with it"
        ) from None
    book = Book(config.data / "table.json", pepper, asyncio.get_running_loop().time, httptools.parse_url(config.servers[0].encode()).host.decode())
    book.load(spool)
    client = GatewayClient(config.servers, config.key, verify=config.ca or True)
    try:
        await Gateway(config, book, spool, key).serve(client, opened)
    finally:
        await client.close()


def _spare_collections() -> None:
    """What was loaded lives as long as the process, and a request leaves no cycles: the collector looks seldom, and passes over the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def _identity(path: Path) -> GatewayId:
    """This gateway's own, for as long as its directory."""
    if not path.exists():
        write_private(path, f"gw-{base32(secrets.token_bytes(ENTROPY_BYTES))}".encode())
    return GatewayId(path.read_text())


async def _guarded(task: Callable[[], Awaitable[None]]) -> None:
    """A bug in one request's is not the end of all."""
    try:
        await task()
    except Exception:
        _log.exception("something beside a request broke; this is a bug in Headframe, it goes on")


async def _forever(task: Coroutine[Any, Any, None]) -> None:
    try:
        await task
    except Exception:
        _log.exception("the gateway can't go on; this is a bug in Headframe")
        raise


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(config.tls_cert, config.tls_key)
    return context
