"""HTTP/1.1 with clients, framed by llhttp, and nothing about models; the side of replicas is in `upstream.py`.

Requests are taken whole (bounded) and put together anew, so nothing that a client smuggles into a head reaches a replica. A client that goes away is told to whoever
answers it at once, also while nothing has been sent.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import httptools

from headframe.gateway.known import Known, known

HEAD_BYTES_MAX, HEADERS_MAX, TARGET_BYTES_MAX = 32 * 1024, 100, 8 * 1024
BODY_BYTES_MAX = 32 * 1024 * 1024
PIPELINED_MAX = 8
HEAD_S, BODY_S, KEEP_S, STUCK_S, LINGER_S = 10.0, 30.0, 75.0, 60.0, 2.0
"""How long a client may take for a head, between two pieces of a body, between two requests, and to take what was sent to it."""
HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"})  # fmt: skip
REASONS = {200: b"OK", 201: b"Created", 202: b"Accepted", 204: b"No Content", 400: b"Bad Request", 401: b"Unauthorized", 402: b"Payment Required", 403: b"Forbidden", 404: b"Not Found",
           405: b"Method Not Allowed", 408: b"Request Timeout", 413: b"Content Too Large", 417: b"Expectation Failed", 422: b"Unprocessable Content", 429: b"Too Many Requests",
           431: b"Request Header Fields Too Large", 500: b"Internal Server Error", 501: b"Not Implemented", 502: b"Bad Gateway", 503: b"Service Unavailable", 504: b"Gateway Timeout", 505: b"HTTP Version Not Supported"}  # fmt: skip
Headers = list[tuple[bytes, bytes]]
_log = logging.getLogger("headframe.gateway")


class RequestHead:
    """What a request says before its body, but the body's length, which each that begins so has its own. `fields` has the first header of each (lower-case) name; `keep` says whether the client wants to ask again on this connection;
    HTTP/1.0 knows no chunks. `token` and `passed` are what is made of it (the key, the lines that a replica gets), once for all requests that begin with it.
    """

    __slots__ = ("chunks", "fields", "headers", "keep", "method", "passed", "path", "target", "token", "upgrade")

    def __init__(
        self, method: bytes, target: bytes, headers: Headers, fields: dict[bytes, bytes], *, keep: bool, chunks: bool, upgrade: bool
    ) -> None:
        self.method, self.target, self.headers, self.fields = method, target, headers, fields
        self.path = target.partition(b"?")[0]
        self.keep, self.chunks, self.upgrade = keep, chunks, upgrade
        self.token: bytes | None = None
        self.passed: bytes | None = None


class Request:
    """One request, whole."""

    __slots__ = ("body", "head")

    def __init__(self, head: RequestHead, body: bytes) -> None:
        self.head, self.body = head, body


class Answering(Protocol):
    """What answers one request."""

    def gone(self) -> None:
        """The client went away."""
        ...

    def stall(self, stalled: bool) -> None:  # noqa: FBT001
        """The client does not take what was sent to it, or does again."""
        ...


Answer = Callable[["ClientConnection", Request], Answering | bool]
"""Who answers, or where it is answered already, whether the connection can be kept."""


class ClientConnection(asyncio.Protocol):
    """One client. Requests are answered one after the other, in the order they came."""

    __slots__ = (
        "_all",
        "_answer",
        "_answering",
        "_begun",
        "_body",
        "_deadline_s",
        "_head",
        "_head_bytes",
        "_headers",
        "_known",
        "_last",
        "_now_s",
        "_parser",
        "_refused",
        "_size",
        "_target",
        "_transport",
        "_tunnel",
        "_waiting",
    )

    def __init__(self, answer: Answer, now_s: Callable[[], float], everyone: set["ClientConnection"]) -> None:
        self._answer = answer
        self._now_s = now_s
        self._all = everyone
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: Any = None  # uvloop's is no asyncio.Transport
        self._waiting: deque[Request] = deque()
        self._answering: Answering | None = None
        self._tunnel: Callable[[bytes], None] | None = None
        self._head: RequestHead | None = None
        self._last: Request | None = None
        self._known: Known[RequestHead] | None = None
        self._refused: tuple[int, str] | None = None
        self._begun = False
        self._head_bytes = self._size = 0
        self._deadline_s = 0.0
        self._target, self._headers, self._body = b"", Headers(), list[bytes]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._transport = self._parser = None  # it knows us as we know it: together they would wait for the collector
        self._all.discard(self)
        self._waiting.clear()
        answering, self._answering = self._answering, None
        if answering is not None:
            answering.gone()

    def eof_received(self) -> bool:
        """A client that closed its side waits for nothing any more."""
        return False

    def data_received(self, data: bytes) -> None:
        known, begun = self._known, self._begun
        if known is not None and not begun and (body := known.body(data)) is not None:
            self._took(Request(known.meaning, body))
            return
        if self._tunnel is not None:
            self._tunnel(data)
        elif self._refused is None:
            self._parse(data, begun)

    def _parse(self, data: bytes, begun: bool) -> None:  # noqa: FBT001
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data[upgrade.args[0] :])
            return
        except httptools.HttpParserCallbackError:
            if self._refused is None:
                _log.exception("a request broke the gateway; this is a bug in Headframe, it goes on")
                self._refuse(500, "the gateway failed")
        except httptools.HttpParserError:
            self._refuse(400, "this is no HTTP/1.1 request")
        last, self._last = self._last, None
        if self._begun:
            self._unfinished(len(data))
        elif last is not None and not begun:
            self._remember(data, last)
        self._give_refusal()

    def _remember(self, data: bytes, last: Request) -> None:
        """What came was whole requests: where it was a single one, the next may begin with the same head."""
        head = last.head
        plain = head.keep and not head.upgrade and b"expect" not in head.fields and len(head.fields) == len(head.headers)
        self._known = known(data, last.body, head) if plain and self._refused is None and self._tunnel is None else None

    def _unfinished(self, size: int) -> None:
        """A request has begun and is not whole: it may take so long, from when it is its turn, and its head has at most so many bytes."""
        due = self._answering is None
        if self._head is not None:
            self._deadline_s = self._now_s() + BODY_S if due else self._deadline_s
            return
        self._deadline_s = self._deadline_s if self._head_bytes or not due else self._now_s() + HEAD_S
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(431, f"a head has at most {HEAD_BYTES_MAX // 1024} KiB")

    def on_message_begin(self) -> None:
        self._begun = True

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > TARGET_BYTES_MAX:
            self._refuse(431, f"an address has at most {TARGET_BYTES_MAX // 1024} KiB")
            raise ValueError

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is None:  # what trails a chunked body is no header
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser, headers, target = self._parser, self._headers, self._target
        fields = dict(reversed(headers))  # the first of a name holds
        version = parser.get_http_version()
        fault = _fault(version, target, headers, fields)
        if fault is not None:
            self._refuse(*fault)
            raise ValueError
        if fields.pop(b"content-length", None) is not None:
            headers = [pair for pair in headers if pair[0] != b"content-length"]
        self._head = RequestHead(parser.get_method(), target if target[:1] == b"/" else _ABSOLUTE.sub(b"/", target), headers, fields,
                                 keep=parser.should_keep_alive(), chunks=version == "1.1", upgrade=parser.should_upgrade())  # fmt: skip
        if b"expect" in fields:
            self._expected(fields[b"expect"])

    def _expected(self, what: bytes) -> None:
        if what.lower() != b"100-continue":
            self._refuse(417, "nothing but 100-continue can be expected")
            raise ValueError
        if self._answering is None and not self._waiting:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._size += len(body)
        if self._size > BODY_BYTES_MAX:
            self._refuse(413, f"a body has at most {BODY_BYTES_MAX // 1024 // 1024} MiB")
            raise ValueError

    def on_message_complete(self) -> None:
        head, body = self._head, self._body
        assert head is not None
        self._last = request = Request(head, body[0] if len(body) == 1 else b"".join(body))
        self._head, self._target, self._headers, self._body = None, b"", [], []
        self._size = self._head_bytes = 0
        self._begun = False
        self._took(request)

    def _took(self, request: Request) -> None:
        """A request is whole: it is its turn, or waits for it."""
        self._deadline_s = 0.0
        self._waiting.append(request)
        if len(self._waiting) > PIPELINED_MAX and self._transport is not None:
            self._transport.pause_reading()
        if self._answering is None:
            self._next()

    def write(self, data: bytes) -> None:
        """Send; nothing happens where the client is gone."""
        if self._transport is not None:
            self._transport.write(data)

    @property
    def writer(self) -> Callable[[bytes], None]:
        """What sends without a look whether the client is still there: for those that are told when it goes."""
        return self._transport.write if self._transport is not None else self.write

    def finished(self, *, keep: bool) -> None:
        """The answer is complete: on to the next request, or close."""
        self._answering = None
        if not keep or self._transport is None:
            self.close()
            return
        if self._waiting:
            if len(self._waiting) <= PIPELINED_MAX // 2:
                self._transport.resume_reading()
            self._next()
        self._turn()
        self._give_refusal()

    def _turn(self) -> None:
        """What began to come while another was answered has its time from now on."""
        if self._begun and self._answering is None:
            self._deadline_s = self._now_s() + BODY_S

    def close(self) -> None:
        """After what was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Now, so that the client can't take the answer for a whole one."""
        if self._transport is not None:
            self._transport.abort()

    def tunnel(self, received: Callable[[bytes], None]) -> None:
        """From now on bytes go through as they are (WebSocket)."""
        self._tunnel, self._deadline_s, self._known = received, 0.0, None

    def hold(self, stalled: bool) -> None:  # noqa: FBT001
        """Take nothing from the client for now, or again: where it is tunnelled."""
        if self._transport is not None:
            (self._transport.pause_reading if stalled else self._transport.resume_reading)()

    def pause_writing(self) -> None:
        self._deadline_s = self._now_s() + STUCK_S
        if self._answering is not None:
            self._answering.stall(True)

    def resume_writing(self) -> None:
        self._deadline_s = 0.0
        if self._answering is not None:
            self._answering.stall(False)

    def overdue(self, now_s: float) -> None:
        """Looked at once a second: a client that takes too long loses the connection, and one that asks nothing for long."""
        if not self._deadline_s:
            idle = self._answering is None and self._tunnel is None
            self._deadline_s = now_s + KEEP_S if idle else 0.0
            return
        if now_s < self._deadline_s:
            return
        if self._refused is not None:
            self.abort()
        elif self._answering is None and self._begun:
            self._refuse(408, "the request took too long to come")
            self._give_refusal()
        elif self._answering is not None:
            self.abort()
        else:
            self.close()

    def _next(self) -> None:
        while self._answering is None and self._waiting and self._transport is not None:
            answering = self._answer(self, self._waiting.popleft())
            if answering is False:
                self.close()
                return
            self._answering = answering if answering is not True else None

    def _upgraded(self, rest: bytes) -> None:
        """What follows a request to upgrade is no HTTP."""
        if self._answering is None:
            self._refuse(400, "this can't be upgraded")
            self._give_refusal()
        elif rest and self._tunnel is not None:
            self._tunnel(rest)

    def _refuse(self, status: int, why: str) -> None:
        self._refused, self._known = self._refused or (status, why), None

    def _give_refusal(self) -> None:
        """Once all that was asked before has its answer."""
        if self._refused is None or self._answering is not None or self._waiting:
            return
        status, why = self._refused
        kind = "invalid_request_error"
        body = ('{"error":{"message":"' + why + '","type":"' + kind + '","param":null,"code":"bad_request"}}').encode()
        self.write(
            head(status, [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]) + body
        )
        self._leave()

    def _leave(self) -> None:
        """Close our side, and take for a while what still comes: a connection closed with bytes unread is reset, and the client never sees why."""
        self._deadline_s = self._now_s() + LINGER_S
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self.close()


_ONCE = (b"host", b"authorization", b"transfer-encoding")
_ABSOLUTE = re.compile(rb"(?i)\Ahttps?://[^/?]*/?")


def _fault(version: str, target: bytes, headers: Headers, fields: dict[bytes, bytes]) -> tuple[int, str] | None:
    """What is wrong with a head that llhttp takes."""
    if version not in {"1.1", "1.0"}:
        return 505, "this is no HTTP/1.1 request"
    if len(headers) > HEADERS_MAX:
        return 431, f"a request has at most {HEADERS_MAX} headers"
    if version == "1.1" and b"host" not in fields:
        return 400, "a request names its host"
    if len(fields) < len(headers):
        names = [name for name, _ in headers]
        for name in _ONCE:
            if names.count(name) > 1:
                return 400, f"{name.decode()} is said once"
    if b"transfer-encoding" in fields and (fields[b"transfer-encoding"].lower() != b"chunked" or version == "1.0"):
        return 501, "a body may be chunked, and nothing else"
    if target.find(b"#") >= 0:
        return 400, "an address that is asked for has no fragment"
    length = fields.get(b"content-length", b"")
    if len(length) > 7 and length.isdigit() and int(length) > BODY_BYTES_MAX:
        return 413, f"a body has at most {BODY_BYTES_MAX // 1024 // 1024} MiB"
    return None


def head(status: int, headers: Headers, more: bytes = b"") -> bytes:
    """The head of an answer. `more` are lines of it, each with its end."""
    lines = [_FIRST.get(status) or b"HTTP/1.1 %d Status" % status]
    lines += [b": ".join(pair) for pair in headers]
    lines.append(more + b"\r\n")
    return b"\r\n".join(lines)


_FIRST = {status: b"HTTP/1.1 %d %s" % (status, reason) for status, reason in REASONS.items()}


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
