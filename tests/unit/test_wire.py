"""The gateway's two sides of HTTP by themselves: bytes in, bytes out, no sockets. Beside them h11 says what the bytes mean."""

import gc

import h11
from hypothesis import given
from hypothesis import strategies as st

from headframe.gateway.stream import Stream
from headframe.gateway.upstream import ReplicaConnection
from headframe.gateway.wire import BODY_S, ClientConnection, chunk

EVENTS = st.sampled_from(
    [
        b'data: {"choices":[{"delta":{"content":" token"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\xc3\xa9 data: \\n\\n"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"a"}}]}\r\n\r\n',
        b": still there\n\n",
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
        b"data: [DONE]\n\n",
    ]
)


class Transport:
    """Takes what is written."""

    def __init__(self):
        self.sent = b""

    def write(self, data):
        self.sent += data

    def abort(self):
        pass

    close = write_eof = pause_reading = resume_reading = abort

    def can_write_eof(self):
        return True


class Client:
    """Passes a stream on, as an exchange does."""

    def __init__(self, connection, straight):
        self.connection, self.straightly = connection, straight
        self.stream, self.out, self.passed, self.whole, self.broken = Stream(injected=True, name="", write=self.write), [], 0, False, False
        self.headers = None

    def answered(self, head, length):
        self.headers, self.length = head.headers, length

    def piece(self, data):
        if ready := self.stream.feed(data):
            self.out.append(chunk(ready))
            self.connection.straight = self.stream.straight if self.straightly else None

    def write(self, data):
        self.passed += 1
        self.out.append(data)

    def ended(self):
        self.whole = True

    def lost(self, *, began, fresh):
        self.broken = True


def played(raw, cuts, straight):
    connection = ReplicaConnection(lambda *_: None, lambda: 0.0)
    connection.connection_made(Transport())
    client = Client(connection, straight)
    connection.ask(client, b"")
    places = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    for start, end in zip(places, places[1:]):
        connection.data_received(raw[start:end])
    return client


def meant(head, out):
    """What a client of ours reads of it."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(head + b"".join(out) + b"0\r\n\r\n")
    body = b""
    while type(event := reader.next_event()) is not h11.EndOfMessage:
        body += bytes(event.data) if type(event) is h11.Data else b""
    return body


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@given(st.lists(st.lists(EVENTS, min_size=1, max_size=3), max_size=12), st.lists(st.integers(0, 1500), max_size=8), st.booleans(), st.integers(1, 400),
       st.sampled_from([b"%x\r\n%s\r\n", b"%X\r\n%s\r\n", b"0%x\r\n%s\r\n", b"%x;a=b\r\n%s\r\n"]))  # fmt: skip
def test_a_stream_that_goes_straight_through_is_the_one_that_was_parsed(groups, cuts, in_groups, size, form):
    """Each chunk one group of events, arriving by itself (as servers send them) or cut anywhere, framed in every legal way."""
    body = b"".join(b"".join(group) for group in groups)
    parts = [b"".join(group) for group in groups] if in_groups else [body[at : at + size] for at in range(0, len(body), size)]
    raw, arrivals = HEAD, [len(HEAD)]
    for part in parts:
        raw += form % (len(part), part)
        arrivals.append(len(raw))
    raw += b"0\r\n\r\n"
    one, other = played(raw, [*arrivals, *cuts], True), played(raw, cuts, False)
    assert one.whole and other.whole
    assert meant(HEAD, one.out) == meant(HEAD, other.out)
    for what in ("done", "used", "prompt", "completion", "failed"):
        assert getattr(one.stream, what) == getattr(other.stream, what)
    assert one.stream.events() == other.stream.events()
    assert one.stream.text() == other.stream.text()


def test_tokens_do_go_straight_through():
    event = b'data: {"choices":[{"delta":{"content":" token"}}]}\n\n'
    raw, arrivals = HEAD, [len(HEAD)]
    for _ in range(10):
        raw += chunk(event)
        arrivals.append(len(raw))
    assert played(raw, arrivals, True).passed == 9, "all but the first, with which the head goes"


def test_what_trails_a_body_is_no_header_on_either_side():
    asked = []
    client = ClientConnection(lambda _, request: asked.append(request) or True, lambda: 0.0, set())
    client.connection_made(Transport())
    client.data_received(
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nauthorization: Bearer stolen\r\nx-late: 1\r\n\r\n"
    )
    assert [name for name, _ in asked[0].head.headers] == [b"host", b"transfer-encoding"]
    assert b"authorization" not in asked[0].head.fields
    answered = played(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nset-cookie: a=b\r\n\r\n", [], False)
    assert answered.whole
    assert answered.headers == [(b"transfer-encoding", b"chunked")]


def test_the_first_of_two_headers_holds_and_both_are_passed_on():
    asked = []
    client = ClientConnection(lambda _, request: asked.append(request) or True, lambda: 0.0, set())
    client.connection_made(Transport())
    client.data_received(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: one\r\nx-a: two\r\n\r\n")
    assert asked[0].head.fields[b"x-a"] == b"one"
    assert asked[0].head.headers == [(b"host", b"x"), (b"x-a", b"one"), (b"x-a", b"two")]


LINES = st.sampled_from([b"POST /v1/x HTTP/1.1", b"POST /v1/x HTTP/1.0", b"GET /v1/x?a=b HTTP/1.1", b"POST http://x/y HTTP/1.1"])
FIELDS = st.lists(
    st.sampled_from([b"x-a: 1", b"X-A: 2", b"Connection: close", b"connection: keep-alive", b"Transfer-Encoding: chunked", b"expect: 100-continue",
                     b"x-b: content-length: 5", b"authorization: Bearer one", b"authorization: Bearer two", b"upgrade: websocket"]), max_size=3)  # fmt: skip
LENGTH = st.sampled_from(
    [b"Content-Length: %d", b"content-length:%d", b"CONTENT-LENGTH:  %d", b"content-length: 0%d", b"content-length: +%d", b"x-content-length: %d"]
)
BODIES = st.sampled_from(
    [
        b"",
        b"hi",
        b"hello",
        b"\r\n\r\n",
        b"content-length: 3\r\n\r\nabc",
        b"x" * 1000,
        b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi",
    ]
)


@st.composite
def messages(draw):
    """A few heads, each said again and again with this body or that; now and then a message that is none."""
    heads = draw(st.lists(st.tuples(LINES, FIELDS, LENGTH, st.booleans()), min_size=1, max_size=2))
    raw = []
    for _ in range(draw(st.integers(2, 7))):
        line, fields, length, last = draw(st.sampled_from(heads))
        body = draw(BODIES)
        said = length % (len(body) + draw(st.sampled_from([0, 0, 0, 0, 1, -1])))
        raw.append(b"\r\n".join([line, b"host: x", *([*fields, said] if last else [said, *fields]), b"", body]))
    return raw


def heard(pieces, *, forget):
    """What is answered, by whom it was asked, and what goes back to the client."""
    asked = []

    def answer(client, request):
        head = request.head
        asked.append((head.method, head.target, head.path, head.headers, head.fields, head.keep, head.chunks, head.upgrade, request.body))
        client.write(b"|")
        return head.keep

    client, transport = ClientConnection(answer, lambda: 0.0, set()), Transport()
    client.connection_made(transport)
    for piece in pieces:
        if forget:
            client._known = None
        client.data_received(piece)
    return asked, transport.sent


@given(messages(), st.booleans(), st.lists(st.integers(0, 3000), max_size=4))
def test_a_head_that_comes_again_means_what_the_parser_makes_of_it(raw, apart, cuts):
    """Whole messages one by one, or cut and glued anywhere: what is remembered changes nothing."""
    whole = b"".join(raw)
    places = sorted({min(cut, len(whole)) for cut in cuts} | {0, len(whole)})
    pieces = raw if apart else [whole[start:end] for start, end in zip(places, places[1:])]
    (with_it, told), (without, told_without) = heard(pieces, forget=False), heard(pieces, forget=True)
    assert with_it == without
    assert told == told_without


def answers_of(pieces, *, forget):
    """What comes of one question after the other on a connection to a replica, each answered by a piece."""
    found, kept = [], []
    connection, transport = ReplicaConnection(lambda _, keep: kept.append(keep), lambda: 0.0), Transport()
    connection.connection_made(transport)
    for piece in pieces:
        if connection.transport is None:
            break
        client = Client(connection, False)
        client.body, client.piece = b"", None

        def took(data, client=client):
            client.body += data

        client.piece = took
        if forget:
            connection._known = None
        connection.ask(client, b"")
        connection.data_received(piece)
        found.append((client.headers, client.headers and client.length, client.body, client.whole, client.broken))
        if not client.whole:
            break
    return found, kept


@given(messages())
def test_an_answers_head_that_comes_again_means_what_the_parser_makes_of_it(raw):
    pieces = [b"HTTP/1.1 200 OK" + one[one.find(b"\r\n") :] for one in raw]
    assert answers_of(pieces, forget=False) == answers_of(pieces, forget=True)


def test_heads_that_come_again_are_not_parsed_again():
    asked = []
    client = ClientConnection(lambda _, request: asked.append(request) or True, lambda: 0.0, set())
    client.connection_made(Transport())
    for body in (b"hi", b"hello", b"x" * 100):
        client.data_received(b"POST /v1/x HTTP/1.1\r\nhost: x\r\nContent-Length: %d\r\nx-a: 1\r\n\r\n%s" % (len(body), body))
    assert [request.body for request in asked] == [b"hi", b"hello", b"x" * 100]
    assert asked[0].head is asked[1].head is asked[2].head


def test_connections_that_are_lost_do_not_wait_for_the_collector():
    gc.collect()
    gc.disable()
    try:
        client = ClientConnection(lambda _, request: True, lambda: 0.0, set())
        replica = ReplicaConnection(lambda *_: None, lambda: 0.0)
        for connection, said in ((client, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"), (replica, HEAD + b"0\r\n\r\n")):
            connection.connection_made(Transport())
            connection.data_received(said)
            connection.connection_lost(None)
        del client, replica, connection
        assert not [one for one in gc.get_objects() if type(one) in {ClientConnection, ReplicaConnection}]
    finally:
        gc.enable()


def test_what_begins_to_come_while_another_is_answered_has_its_time_from_its_own_turn():
    """Found by reading: a client that sent a part of its next request lost the stream that it was getting, after half a minute."""
    now_s, ended = [0.0], []
    client, transport = ClientConnection(lambda *_: Answering(), lambda: now_s[0], set()), Transport()
    transport.abort = lambda: ended.append(now_s[0])
    client.connection_made(transport)
    client.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhiPOST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhe")
    for now_s[0] in range(1, 200):
        client.overdue(now_s[0])
    assert not ended
    client.finished(keep=True)
    client.overdue(now_s[0] + BODY_S - 1)
    assert not transport.sent
    client.overdue(now_s[0] + BODY_S)
    assert transport.sent.startswith(b"HTTP/1.1 408")


class Answering:
    """An answer that lasts."""

    def gone(self):
        pass

    def stall(self, stalled):
        pass
