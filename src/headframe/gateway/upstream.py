"""HTTP/1.1 with replicas, framed by llhttp: one connection, one request at a time, and nothing about models."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

import httptools

from headframe.gateway.wire import HEADERS_MAX, Headers

_log = logging.getLogger("headframe.gateway")


class Asking(Protocol):
    """What waits for an answer of a replica."""

    def answered(self, status: int, headers: Headers, *, whole: bool) -> None:
        """The head came; `whole` unless the body ends where the connection does."""
        ...

    def piece(self, data: bytes) -> None:
        """Some of the body."""
        ...

    def ended(self) -> None:
        """The answer is complete."""
        ...

    def lost(self, *, began: bool, fresh: bool) -> None:
        """The connection broke: after the answer began, on a connection that was new."""
        ...


class ReplicaConnection(asyncio.Protocol):
    """One connection to a replica; at most one request at a time is on it."""

    __slots__ = (
        "_asking",
        "_began",
        "_between",
        "_bodiless",
        "_ended",
        "_headers",
        "_informed",
        "_keep",
        "_parser",
        "_release",
        "_whole",
        "fresh",
        "idle_s",
        "straight",
        "transport",
        "tunnelled",
    )

    def __init__(self, release: Callable[["ReplicaConnection", bool], None]) -> None:
        self._release = release
        self._parser: Any = httptools.HttpResponseParser(self)
        self._asking: Asking | None = None
        self.transport: asyncio.Transport | None = None
        self.tunnelled: Callable[[bytes], None] | None = None
        self.fresh = True
        self.idle_s = 0.0
        self._headers: Headers = []
        self._began = self._between = self._bodiless = self._informed = self._ended = self._keep = False
        self._whole = True
        self.straight: Callable[[bytes], bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # pyright: ignore[reportAttributeAccessIssue]

    def ask(self, asking: Asking, data: bytes, *, bodiless: bool = False) -> None:
        """Send a request. The answer to a `bodiless` one (HEAD) ends with its head, whatever length that says."""
        assert self.transport is not None
        self._asking, self._bodiless, self.straight = asking, bodiless, None
        self._began = self._ended = self._between = False
        self.transport.write(data)

    def drop(self) -> None:
        """Nobody waits for the answer any more: the replica sees it at once."""
        self._asking = None
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def hold(self, stalled: bool) -> None:  # noqa: FBT001
        """Take nothing from the replica for now, or again."""
        if self.transport is not None:
            (self.transport.pause_reading if stalled else self.transport.resume_reading)()

    def data_received(self, data: bytes) -> None:
        if self._between and self.straight is not None and self.straight(data):
            return
        if self.tunnelled is not None:
            self.tunnelled(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if rest and self.tunnelled is not None:
                self.tunnelled(rest)
            return
        except httptools.HttpParserCallbackError as error:
            if not isinstance(error.__context__, ValueError):
                _log.exception("what a replica answered broke the gateway; this is a bug in Headframe, it goes on")
            self._broken()
            return
        except httptools.HttpParserError:
            self._broken()
            return
        self._between = self._between and data[-2:] == b"\r\n"  # else the next chunk has begun
        if self._ended:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.transport = None
        self._release(self, False)
        asking, self._asking = self._asking, None
        if asking is None:
            return
        if self._began and not self._whole:
            asking.ended()
        else:
            asking.lost(began=self._began, fresh=self.fresh)

    def on_message_begin(self) -> None:
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._began:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._informed = 100 <= status < 200 and status != 101
        if self._informed or self._asking is None:
            return
        self._began, self._keep = True, self._parser.should_keep_alive()
        headers = self._headers
        if len(headers) > HEADERS_MAX:
            raise ValueError("too many headers")
        fields = dict(headers)
        self._whole = b"content-length" in fields or b"transfer-encoding" in fields or status in {101, 204, 304}
        self._asking.answered(status, headers, whole=self._whole)
        if self._bodiless:  # llhttp can't be told, and waits for a body: the connection is not used again
            self._ended, self._keep = True, False

    def on_chunk_header(self) -> None:
        self._between = False

    def on_chunk_complete(self) -> None:
        self._between = True

    def on_body(self, body: bytes) -> None:
        if self._asking is not None:
            self._asking.piece(body)

    def on_message_complete(self) -> None:
        self._ended = not self._informed

    def _finish(self) -> None:
        """Give the connection back first: whoever is told may ask again on it."""
        asking, self._asking = self._asking, None
        keep = self._keep and self.transport is not None and asking is not None
        self.fresh = self._ended = False
        if not keep and self.transport is not None:
            self.transport.close()
            self.transport = None
        self._release(self, keep)
        if asking is not None:
            asking.ended()

    def _broken(self) -> None:
        asking, self._asking = self._asking, None
        if self.transport is not None:
            self.transport.abort()
            self.transport = None
        if asking is not None:
            asking.lost(began=self._began, fresh=self.fresh)
