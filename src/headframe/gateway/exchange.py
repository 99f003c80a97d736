"""One request to a model: admitted, held where no replica is ready, sent to one, passed on as it comes, and settled.

It is tried again only where the client has seen nothing. A stream that breaks is never ended as if it were whole, and what was delivered of it is billed.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from headframe.gateway.book import Caller
from headframe.gateway.counting import counted
from headframe.gateway.house import House
from headframe.gateway.records import Usage
from headframe.gateway.refusals import Refused
from headframe.gateway.replicas import Replica
from headframe.gateway.sending import NOT_PASSED, Sending
from headframe.gateway.speech import (
    BYTES_PER_TOKEN,
    CHAT,
    TEXT,
    most_tokens,
    read_ask,
    read_said,
    replaced,
    text_of,
    wants_usage,
    with_usage,
)
from headframe.gateway.stream import Stream, renamed
from headframe.gateway.tab import Tab
from headframe.gateway.upstream import AnswerHead, ReplicaConnection
from headframe.gateway.wire import HOP_BY_HOP, LAST_CHUNK, ClientConnection, Request, chunk, head
from headframe.model.ids import ProjectId
from headframe.routing.choose import blocks

TRIES_MAX = 3
FIRST_S, BETWEEN_S, MONEY_S = 600.0, 120.0, 5.0
"""How long a replica may take until its answer begins, and between two pieces of it; how long to wait for the control plane's word on money."""
WHOLE_BYTES_MAX = 8 * 1024 * 1024
"""An answer that is no stream is kept until it is whole, up to this size."""
AT_ONCE_BYTES = 64 * 1024
_NONE = AnswerHead(0, [], whole=True)
_NOT_OURS = NOT_PASSED | {b"accept-encoding"}
_NOT_THEIRS = HOP_BY_HOP | {b"server", b"x-request-id", b"set-cookie", b"cache-control", b"x-accel-buffering"}


NEW: Final = 0
POOR: Final = 1
HELD: Final = 2
SENT: Final = 3
OVER: Final = 4
"""Where a request is. Plain numbers: an enumeration's members cost a fifth of a microsecond each to look up, ten times a request."""


class Exchange(Sending):
    """See above. `due_s` is when patience ends; it is looked at once a second."""

    __slots__ = ("_answer", "_ask", "_at", "_body", "_chunked", "_client", "_first", "_head", "_head_sent", "_id", "_injected", "_kept", "_kept_bytes", "_looked", "_name", "_open",
                 "_prompt", "_reply", "_request", "_said", "_settled", "_started_s", "_stream", "_tab", "_tries", "due_s", "size")  # fmt: skip

    def __init__(self, house: House, client: ClientConnection, request: Request, request_id: bytes) -> None:
        self._house, self._client, self._request, self._head, self._id = house, client, request, request.head, request_id
        self.size, self._started_s, self.due_s = len(request.body), house.now_s(), 0.0
        self._at, self._tries, self._kept_bytes, self._looked = NEW, 0, 0, 0
        self._prompt: Sequence[int] = ()
        self._reply = _NONE
        self._kept: list[bytes] = []
        self._stream: Stream | None = None
        self._said: Usage | None = None
        self._answer: bytes | None = None
        self._head_sent = self._first = self._open = self._chunked = self._settled = False

    def begin(self, caller: Caller, named: str) -> None:
        """Admit it, and send it off or hold it. Raises Refused with nothing taken."""
        self._ask = ask = read_ask(self._head.path, self._request.body)
        assert ask.model is not None
        super().__init__(self._house, self._house.book.endpoint(caller, ask.model))
        self._tab = Tab(self._house, self._served, caller, most_tokens(ask, self.size), named)
        self._prepare()
        if self._tab.admit():
            try:
                self._enter()
            except Refused:
                self._over(failed=True)
                raise
            return
        house = self._house
        self._at, self.due_s = POOR, house.now_s() + MONEY_S
        house.poor[self] = house.exchanges[self] = None
        house.nudge()

    @property
    def project(self) -> ProjectId:
        """Whose turn it is when several wait."""
        return self._tab.project

    def paid(self) -> None:
        """The control plane has answered: go on, or be refused."""
        self._guard(self._enter) if self._tab.hold() else self._refuse(self._tab.broke())

    def woken(self) -> None:
        """A replica is ready."""
        if self._at == HELD:
            self._guard(self._send)

    def gone(self) -> None:
        """The client went away: the replica is told at once."""
        self._drop()
        self._over(failed=not self._head_sent)

    def looked_at(self, now_s: float) -> None:
        """Once a second: nobody waits for ever, and what lasts is written down."""
        stream = self._stream
        size = stream.size if stream else self._kept_bytes
        if size != self._looked:
            self._looked, self.due_s = size, now_s + BETWEEN_S
        if now_s < self.due_s:
            if stream is not None and (events := stream.events()):
                self._tab.progress(events)
        elif self._at == POOR:
            self._refuse(Refused(503, "control_plane_away", "Whether this can be paid for can't be asked right now: try again.", again_s=5))
        elif self._at == HELD:
            why = next((replica.why for replica in self._served.replicas.values() if replica.why), "it waits for machines")
            self._refuse(Refused(503, "model_not_ready", f"No replica of this model is ready yet: {why}.", again_s=10))
        else:
            if self._replica is not None:
                self._replica.failed("it did not answer in time")
            self._drop()
            self._break(Refused(504, "timeout", "The model took too long to answer."))

    def cut(self) -> None:
        """This gateway ends."""
        self._drop()
        self._break(Refused(503, "shutting_down", "This gateway is shutting down: try again.", again_s=1))

    def answered(self, head: AnswerHead, length: int | None) -> None:
        """The replica's head."""
        del length
        self._reply = head
        self._stream = Stream(injected=self._injected, name=self._name, write=self._client.writer) if head.streamed and head.status == 200 else None
        if self._replica is not None and head.status < 500:
            self._replica.failures = 0

    def piece(self, data: bytes) -> None:
        """Some of the replica's answer."""
        if not self._first:
            self._began()
        stream = self._stream
        if stream is None:
            self._kept.append(data)
            self._kept_bytes += len(data)
            if self._kept_bytes > WHOLE_BYTES_MAX:
                self._pass(b"".join(self._kept))
                self._kept.clear()
            return
        try:
            ready = stream.feed(data)
        except Refused as refused:
            self._drop()
            self._break(refused)
            return
        if not ready:
            return
        if stream.failed and not self._head_sent:  # nothing was said yet: this can still be an error, or go elsewhere
            self._drop()
            if not self._again():
                self._break(Refused(502, "upstream_error", "The model failed before it said anything."))
            return
        self._pass(ready)

    def ended(self) -> None:
        """The replica's answer is whole."""
        self._detach()
        stream = self._stream
        if self._reply.status == 503 and self._again():  # it is loading, or full: another may not be
            return
        if stream is None:
            self._finish_whole()
        elif not self._reply.whole and not stream.done:
            self._break(Refused(502, "bad_upstream", "The model's stream broke."))
        else:
            self._finish_stream(stream)

    def lost(self, *, began: bool, fresh: bool) -> None:
        """The replica's connection broke. One that was used before may have been closed as we wrote: that is no fault."""
        if self._replica is not None and fresh:
            self._replica.failed("its connection broke")
        self._detach()
        if began or not self._again():
            self._break(Refused(502, "bad_upstream", "The model's server ended the connection before its answer was whole."))

    def _prepare(self) -> None:
        """What has to be changed of the body before a replica gets it."""
        ask, name = self._ask, self._served.entry.serving.model
        self._body, self._injected, self._name = self._request.body, False, ""
        if name and ask.model != name:
            self._body, self._name = replaced(self._body, "model", msgspec.json.encode(name)), ask.model or ""
        if ask.stream and self._head.path in {CHAT, TEXT} and not wants_usage(ask):
            self._body, self._injected = with_usage(ask, self._body), True

    def _enter(self) -> None:
        """Into the endpoint: to a replica, or to wait for one."""
        house, served = self._house, self._served
        if self._at == POOR:
            house.poor.pop(self, None)
        if len(served.open) > 1:
            self._prompt = blocks(self._body, served.salt)
        self._tab.open()
        house.exchanges[self] = None
        served.requests += 1
        served.waiting += 1
        if served.open:
            self._send()
        else:
            served.cold_starts += not served.replicas
            self._hold()
            house.nudge()

    def _hold(self) -> None:
        """Wait for a replica, no longer than the client itself does."""
        asked, patience_s = self._head.fields.get(b"x-stainless-read-timeout", b""), float(self._served.entry.serving.start_s)
        if re.fullmatch(rb"\d{1,6}(\.\d+)?", asked):
            patience_s = max(1.0, min(patience_s, float(asked) - 1))
        self._at, self.due_s = HELD, self._started_s + patience_s
        if not self._served.held.put(self):
            raise Refused(503, "overloaded", "Too many requests wait for this model.", again_s=10)

    def _send(self) -> None:
        """To a replica, on a connection that was used before, or on a new one."""
        replica = self._served.choose(self._prompt, self._before)
        if replica is None:
            self._hold()
            return
        self._at, self.due_s = SENT, self._house.now_s() + FIRST_S
        self._tries += 1
        self._give(replica)

    def _unreached(self, refused: Refused) -> None:
        if not self._again():
            self._break(refused)

    def _ask_on(self, connection: ReplicaConnection, replica: Replica) -> None:
        head, body = self._head, self._body
        passed = head.passed
        if passed is None:
            passed = head.passed = b"".join([b"%s: %s\r\n" % pair for pair in head.headers if pair[0] not in _NOT_OURS])
        first = b"%s %s HTTP/1.1\r\n%s%sx-request-id: %s\r\ncontent-length: %d\r\n\r\n" % (
            head.method, head.target, replica.lines, passed, self._id, len(body),
        )  # fmt: skip
        if len(body) <= AT_ONCE_BYTES:
            connection.ask(self, first + body)
            return
        connection.ask(self, first)
        if connection.transport is not None:
            connection.transport.write(body)

    def _began(self) -> None:
        self._first = True
        self._served.waiting -= 1
        self._served.first_ms += (self._house.now_s() - self._started_s) * 1000

    def _pass(self, data: bytes) -> None:
        """A piece of an answer whose length is not known."""
        sent = chunk(data) if self._head.chunks and data else data
        if not self._head_sent:
            self._send_head(None, sent)
        else:
            self._client.write(sent)

    def _send_head(self, length: int | None, body: bytes = b"") -> None:
        self._head_sent = True
        reply, asked = self._reply, self._head
        passed = reply.passed
        if passed is None:
            passed = reply.passed = head(reply.status, [pair for pair in reply.headers if pair[0] not in _NOT_THEIRS])[:-2]
        self._open = asked.keep
        if length is not None:
            more = b"content-length: %d\r\n" % length
        elif asked.chunks:
            self._chunked, more = True, b"transfer-encoding: chunked\r\n"
        else:
            self._open, more = False, b""
        if self._stream is not None:
            more += b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
            if self._chunked and self._connection is not None:
                self._connection.straight = self._stream.straight
        if not self._open:
            more += b"connection: close\r\n"
        took_ms = (self._house.now_s() - self._started_s) * 1000
        self._client.write(
            b"%sx-request-id: %s\r\nopenai-processing-ms: %d\r\n%s%s\r\n%s" % (passed, self._id, took_ms, self._tab.limits, more, body)
        )

    def _finish_stream(self, stream: Stream) -> None:
        last = stream.rest()
        if not stream.done and not stream.failed and self._head.path in {CHAT, TEXT}:
            last += b"data: [DONE]\n\n"
        if last or not self._head_sent:
            self._pass(last)
        self._finish(failed=stream.failed)

    def _finish_whole(self) -> None:
        body, good = b"".join(self._kept), self._reply.status < 400
        if self._head_sent:  # too large to be kept whole
            self._finish(failed=not good)
            return
        if good:
            said = read_said(body)
            self._said, self._answer = said.usage, body
            if self._name and said.model:
                body = renamed(body, said.model, self._name)
        elif not body.lstrip().startswith(b"{"):
            status = self._reply.status
            body = Refused(status, "upstream_error", f"The model's server answered {status}.").body()
            self._reply = AnswerHead(status, [(b"content-type", b"application/json")], whole=True)
        self._settle(failed=not good)
        self._send_head(len(body), body)
        self._finish(failed=not good)

    def _finish(self, *, failed: bool) -> None:
        self._over(failed=failed)
        if self._chunked:
            self._client.write(LAST_CHUNK)
        self._client.finished(keep=self._open)

    def _again(self) -> bool:
        """Whether it was sent once more."""
        if self._head_sent or self._tries >= TRIES_MAX or self._at != SENT:
            return False
        self._stream = None
        self._kept.clear()
        self._kept_bytes = self._looked = 0
        self._served.sort()
        self._guard(self._send)
        return True

    def _guard(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Refused as refused:
            self._drop()
            self._break(refused)

    def _break(self, refused: Refused) -> None:
        """Our side failed. A stream that has begun gets an error as its last event, and no end: no client takes it for whole."""
        if not self._head_sent:
            self._refuse(refused)
            return
        self._over(failed=True, cut=True)
        event = b"data: " + refused.body() + b"\n\n"
        self._client.write(chunk(event) if self._head.chunks else event)
        self._client.close()

    def _refuse(self, refused: Refused) -> None:
        """An error for an answer of which nothing was sent."""
        self._over(failed=True)
        self._client.write(refused.answer(self._id, self._tab.limits, keep=self._head.keep))
        self._client.finished(keep=self._head.keep)

    def _over(self, *, failed: bool, cut: bool = False) -> None:
        """The end, however it came."""
        at, self._at = self._at, OVER
        if at == OVER:
            return
        self._house.exchanges.pop(self, None)
        if at == POOR:
            self._house.poor.pop(self, None)
        if at == HELD:
            self._served.held.leave(self)
        if at >= HELD:
            self._served.waiting -= not self._first
            self._served.busy_s = now_s = self._house.now_s()
            self._served.took_ms += (now_s - self._started_s) * 1000
        self._settle(failed=failed, cut=cut)

    def _settle(self, *, failed: bool, cut: bool = False) -> None:
        """What the server said that it used; else what it said is counted; else it is estimated. Once."""
        if self._settled:
            return
        self._settled = True
        stream, said = self._stream, self._said
        if stream is not None and stream.used:
            self._tab.settle(stream.prompt, stream.completion, stream.cached, failed=failed, cut=cut)
        elif said is not None:
            self._tab.settle(said.prompt, said.completion, said.cached, failed=failed)
        elif self._reply.status != 200 or (self._answer is None and not self._head_sent):
            self._tab.settle(0, 0, 0, failed=failed)
        else:
            text = self._text()
            out_bytes = (stream.size if stream else self._kept_bytes) if text is None else len(text.encode())
            count = None
            if text is not None and self._head.path in {CHAT, TEXT} and self._served.sold:
                count = partial(counted, self._served, self._head.path, self._request.body, text)
            guess = self.size // BYTES_PER_TOKEN + 1, -(-out_bytes // BYTES_PER_TOKEN)
            self._tab.settle(*guess, 0, estimated=True, failed=failed, cut=cut, count=count)

    def _text(self) -> str | None:
        """What was delivered, as a person reads it; None where it was too large to be kept whole."""
        if self._stream is not None:
            return self._stream.text()
        return None if self._answer is None else text_of(self._answer)
