"""HTTP/1.1 with replicas, framed by llhttp: one connection, one request at a time, and nothing about models."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

import httptools

from headframe.gateway.known import Known, known
from headframe.gateway.wire import HEADERS_MAX, Headers

_log = logging.getLogger("headframe.gateway")


class AnswerHead:
    """What an answer says before its body, which is `whole` unless it ends where the connection does; but its length, which each that begins so has its own. `passed` is what is
    made of it, the lines that a client gets, once for all.
    """

    __slots__ = ("headers", "passed", "status", "streamed", "whole")

    def __init__(self, status: int, headers: Headers, *, whole: bool, streamed: bool = False) -> None:
        self.status, self.headers, self.whole, self.streamed = status, headers, whole, streamed
        self.passed: bytes | None = None


class Asking(Protocol):
    """What waits for an answer of a replica."""

    def answered(self, head: AnswerHead, length: int | None) -> None:
        """The head came, and said that its body has so many bytes."""
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
    """One connection to a replica; at most one request at a time is on it, and it is `idle_s` since the last."""

    __slots__ = (
        "_asking",
        "_began",
        "_between",
        "_bodiless",
        "_ended",
        "_head",
        "_headers",
        "_informed",
        "_keep",
        "_known",
        "_midst",
        "_now_s",
        "_parser",
        "_piece",
        "_release",
        "fresh",
        "idle_s",
        "straight",
        "transport",
        "tunnelled",
    )

    def __init__(self, release: Callable[["ReplicaConnection", bool], None], now_s: Callable[[], float]) -> None:
        self._release, self._now_s = release, now_s
        self._parser: Any = httptools.HttpResponseParser(self)
        self._asking: Asking | None = None
        self.transport: Any = None
        self.tunnelled: Callable[[bytes], None] | None = None
        self.fresh = True
        self.idle_s = 0.0
        self._headers: Headers = []
        self._began = self._between = self._bodiless = self._informed = self._ended = self._keep = self._midst = False
        self._head: AnswerHead | None = None
        self._known: Known[AnswerHead] | None = None
        self._piece = b""
        self.straight: Callable[[bytes], bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

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
        before, midst, asking = self._known, self._midst, self._asking
        if before is not None and not midst and asking is not None and not self._bodiless and (body := before.body(data)) is not None:
            asking.answered(before.meaning, len(body))
            asking.piece(body)
            self._finish()
            return
        if self.tunnelled is not None:
            self.tunnelled(data)
        else:
            self._parse(data, midst)

    def _parse(self, data: bytes, midst: bool) -> None:  # noqa: FBT001
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
            self._known = known(data, self._piece, self._head) if self._keep and not midst and self._head is not None else None
            self._piece = b""
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.transport = self._parser = None
        self._release(self, False)
        asking, self._asking = self._asking, None
        if asking is None:
            return
        if self._began and self._head is not None and not self._head.whole:
            asking.ended()
        else:
            asking.lost(began=self._began, fresh=self.fresh)

    def on_message_begin(self) -> None:
        self._headers, self._midst = [], True

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
        length = int(fields[b"content-length"]) if b"content-length" in fields else None
        whole = length is not None or b"transfer-encoding" in fields or status in {101, 204, 304}
        if length is not None:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        self._head = AnswerHead(status, headers, whole=whole, streamed=fields.get(b"content-type", b"").startswith(b"text/event-stream"))
        self._asking.answered(self._head, length)
        if self._bodiless:  # llhttp can't be told, and waits for a body: the connection is not used again
            self._ended, self._keep = True, False

    def on_chunk_header(self) -> None:
        self._between = False

    def on_chunk_complete(self) -> None:
        self._between = True

    def on_body(self, body: bytes) -> None:
        self._piece = body
        if self._asking is not None:
            self._asking.piece(body)

    def on_message_complete(self) -> None:
        self._ended, self._midst = not self._informed, False

    def _finish(self) -> None:
        """Give the connection back first: whoever is told may ask again on it."""
        asking, self._asking = self._asking, None
        keep = self._keep and self.transport is not None and asking is not None
        self.fresh = self._ended = False
        self.idle_s = self._now_s()
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
