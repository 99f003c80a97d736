"""The gateway's process: its door, and what goes on beside requests: hearing what changed, telling what was served, probing, and having it on disk."""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import httptools
import uvloop

from headframe.client.gateway import GatewayClient
from headframe.client.http import ApiError, Unreachable
from headframe.files import alone, write_private
from headframe.gateway.book import Book
from headframe.gateway.door import Door
from headframe.gateway.house import House
from headframe.gateway.keeping import Keeper
from headframe.gateway.probe import probe
from headframe.gateway.records import Config
from headframe.gateway.replicas import Replica, Served
from headframe.gateway.spool import Spool
from headframe.gateway.wire import ClientConnection
from headframe.listening import bound, check_exposure
from headframe.model.endpoint import GatewayReport, ServedBatch
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


class Gateway:
    """The process, around its door."""

    def __init__(self, config: Config, book: Book, spool: Spool, key: GatewayId) -> None:
        self.book, self.spool = book, spool
        self._config, self._id = config, key
        self._clients: set[ClientConnection] = set()
        self._group: asyncio.TaskGroup | None = None
        self._told, self._wrote = asyncio.Event(), asyncio.Event()
        spool.wrote = self._wrote.set
        self._wrote.set()  # for what a crash left
        self._heard = False
        self._refusal = ""
        self._probing: set[Replica] = set()
        self._keeper = Keeper(book)
        self._loop = asyncio.get_running_loop()
        self.now_s = self._loop.time
        self._house = House(book, spool, self.now_s, self._loop.call_soon, self.spawn, self.nudge)
        self._door = Door(self._house)

    def nudge(self) -> None:
        """Tell the control plane now."""
        self._told.set()

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        """Do this beside."""
        assert self._group is not None
        self._group.create_task(_guarded(task))

    async def serve(self, client: GatewayClient, opened: Callable[[], None]) -> None:
        """Until a signal."""
        leave = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, leave.set)
        door = await self._loop.create_server(
            lambda: ClientConnection(self._door.answer, self.now_s, self._clients),
            sock=bound(self._config.host, self._config.port, shared=self._config.shared_port),
            ssl=_tls(self._config),
            backlog=BACKLOG,
        )
        async with asyncio.TaskGroup() as group:
            self._group = group
            beside = [self._hearing(client), self._telling(client), self._probing_all(), self._looking(), self._writing()]
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
        while self._house.exchanges and self.now_s() < until_s:  # noqa: ASYNC110 - looked at now and then, once in a gateway's life
            await asyncio.sleep(0.05)
        for exchange in list(self._house.exchanges):
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
            await self._keeper.keep()
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
            await self._keeper.keep()  # what is given back must not be counted on after a crash
        answer = await client.report(report)
        self.spool.taken(answer.batch)
        self.spool.skip_to(answer.batch)
        self.book.hear(answer, self.spool.unsent())
        for exchange in list(self._house.poor):
            exchange.paid()
        if answer.granted:
            await self._keeper.keep()
        return bool(self.spool.sealed)

    def _report(self, batch: ServedBatch | None) -> GatewayReport:
        now_s, wishes = self.now_s(), self.book.wishes(heard=self._heard)
        endpoints = tuple(served.report(now_s) for served in self.book.endpoints.values())
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
            for exchange in list(self._house.exchanges):
                exchange.looked_at(now_s)
            for client in list(self._clients):
                client.overdue(now_s)
            self.spool.flush()

    async def _writing(self) -> None:
        sealed_s = self.now_s()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, sealed_s + SEAL_S - self.now_s()) if self.spool.lines else None):
                    await self._wrote.wait()
            self._wrote.clear()
            await asyncio.sleep(SYNC_S)  # what is written meanwhile is had on disk with it
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
