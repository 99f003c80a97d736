"""Any other path of a served endpoint, as plain HTTP or WebSocket: `/endpoints/NAME/…` is passed to a replica's `/…`, with nothing understood of it."""

import re

from headframe.gateway.exchange import BETWEEN_S, FIRST_S
from headframe.gateway.house import House
from headframe.gateway.refusals import Refused
from headframe.gateway.replicas import Replica, Served
from headframe.gateway.sending import NOT_PASSED, Sending
from headframe.gateway.tab import Tab
from headframe.gateway.upstream import AnswerHead, ReplicaConnection
from headframe.gateway.wire import HOP_BY_HOP, LAST_CHUNK, ClientConnection, Request, chunk
from headframe.gateway.wire import head as written
from headframe.model.ids import ProjectId

PATH = re.compile(rb"/endpoints/([a-z0-9][a-z0-9.-]{0,62})(/[^ ]*)?", re.ASCII)
SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class Passage(Sending):
    """One request that is passed through. It is held while no replica is ready, and counted, but what it used is not known: it is not sold by the token."""

    def __init__(self, house: House, client: ClientConnection, request: Request, target: bytes, request_id: bytes, served: Served, tab: Tab) -> None:
        super().__init__(house, served)
        self._client, self._head, self._body = client, request.head, request.body
        self._target, self._id, self._tab = target, request_id, tab
        self.size, self.due_s, self._started_s = len(request.body), 0.0, house.now_s()
        self._held = self._head_sent = self._over = self._chunked = self._tunnelled = self._open = False
        self._tries = 0

    @property
    def project(self) -> ProjectId:
        """Whose turn it is when several wait."""
        return self._tab.project

    def begin(self) -> None:
        """Send it off or hold it. Raises Refused."""
        self._tab.admit()
        self._tab.open()
        self._house.exchanges[self] = None
        self._served.requests += 1
        if self._served.open:
            self._send()
            return
        self._held, self.due_s = True, self._started_s + self._served.entry.serving.start_s
        if not self._served.held.put(self):
            self._end(failed=True)
            raise Refused(503, "overloaded", "Too many requests wait for this endpoint.", again_s=10)
        self._house.nudge()

    def woken(self) -> None:
        """A replica is ready."""
        self._held = False
        self._send()

    def gone(self) -> None:
        """The client went away."""
        if self._held:
            self._served.held.leave(self)
        self._drop()
        self._end(failed=not self._head_sent)

    def looked_at(self, now_s: float) -> None:
        """Nobody waits for ever; a WebSocket may be silent for as long as it likes."""
        if now_s < self.due_s or self._tunnelled:
            return
        if self._held:
            self._served.held.leave(self)
        self._drop()
        self._break(Refused(504 if not self._held else 503, "timeout", "The endpoint took too long to answer."))

    def cut(self) -> None:
        """This gateway ends."""
        self._drop()
        self._break(Refused(503, "shutting_down", "This gateway is shutting down: try again.", again_s=1))

    def answered(self, head: AnswerHead, length: int | None) -> None:
        """The replica's head goes on as it is."""
        status, headers = head.status, head.headers
        passed = [pair for pair in headers if pair[0] not in HOP_BY_HOP and pair[0] != b"x-request-id"]
        passed.append((b"x-request-id", self._id))
        self._head_sent = True
        if status == 101:
            passed += [pair for pair in headers if pair[0] in {b"upgrade", b"connection"}]
            self._client.write(written(status, passed))
            self._tunnel()
            return
        bodiless = status in {204, 304} or self._head.method == b"HEAD"
        self._chunked = length is None and not bodiless and self._head.chunks
        self._open = self._head.keep and (length is not None or self._chunked or bodiless)
        passed += [(b"content-length", b"%d" % length)] if length is not None else []
        passed += [(b"transfer-encoding", b"chunked")] if self._chunked else []
        passed += [] if self._open else [(b"connection", b"close")]
        self._client.write(written(status, passed))

    def piece(self, data: bytes) -> None:
        """Some of the body."""
        self.due_s = self._house.now_s() + BETWEEN_S
        self._client.write(chunk(data) if self._chunked else data)

    def ended(self) -> None:
        """The answer is whole."""
        self._detach()
        self._end(failed=False)
        if self._chunked:
            self._client.write(LAST_CHUNK)
        self._client.finished(keep=self._open)

    def lost(self, *, began: bool, fresh: bool) -> None:
        """The connection broke; only what changes nothing is asked again."""
        self._detach()
        if self._tunnelled:
            self._end(failed=False)
            self._client.close()
        elif not began and self._tries < 2 and (not fresh or self._head.method in SAFE) and self._served.open:
            self._send()
        else:
            self._break(Refused(502, "bad_upstream", "The endpoint's server ended the connection before its answer was whole."))

    def _send(self) -> None:
        replica = self._served.choose([])
        assert replica is not None
        self.due_s = self._house.now_s() + FIRST_S
        self._tries += 1
        self._give(replica, pooled=not self._head.upgrade)

    def _unreached(self, refused: Refused) -> None:
        self._break(refused)

    def _ask_on(self, connection: ReplicaConnection, replica: Replica) -> None:
        asked, body = self._head, self._body
        lines = [b"%s %s HTTP/1.1\r\n%s" % (asked.method, self._target, replica.lines)]
        lines += [b"%s: %s\r\n" % pair for pair in asked.headers if pair[0] not in NOT_PASSED]
        if asked.upgrade:
            lines.append(b"connection: upgrade\r\nupgrade: %s\r\n" % asked.fields.get(b"upgrade", b""))
        lines.append(b"x-request-id: %s\r\n" % self._id)
        if body or asked.method not in SAFE:
            lines.append(b"content-length: %d\r\n" % len(body))
        connection.ask(self, b"".join(lines) + b"\r\n" + body, bodiless=asked.method == b"HEAD")

    def _tunnel(self) -> None:
        """Both sides speak as they like from here on."""
        connection = self._connection
        assert connection is not None
        self._tunnelled = True
        connection.tunnelled = self._client.write

        def received(data: bytes) -> None:
            if connection.transport is not None:
                connection.transport.write(data)

        self._client.tunnel(received)

    def _break(self, refused: Refused) -> None:
        self._end(failed=True)
        if self._head_sent:
            self._client.abort()
        else:
            self._client.write(refused.answer(self._id, keep=self._head.keep))
            self._client.finished(keep=self._head.keep)

    def _end(self, *, failed: bool) -> None:
        if not self._over:
            self._over = True
            self._served.busy_s = self._house.now_s()
            self._house.exchanges.pop(self, None)
            self._tab.settle(0, 0, 0, failed=failed)


def passage(target: bytes) -> tuple[str, bytes] | None:
    """The endpoint's name and what to ask its replica for."""
    path, mark, query = target.partition(b"?")
    found = PATH.fullmatch(path)
    return (found[1].decode(), (found[2] or b"/") + mark + query) if found else None
