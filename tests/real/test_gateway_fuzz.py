"""Everything that has been used to smuggle one request inside another, put together at random, through the gateway and beside it through nginx: what reaches the server
behind is what the client is answered, is one request each to a strict reader (h11), and is never more than what nginx lets through or something else.

A seed says which cases: HEADFRAME_FUZZ_CASES=20000 for many, HEADFRAME_FUZZ_SEED=7 for others.
"""

import os
import random
import re
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import h11
import pytest

import components
from gateways import Gate, free_port
from support import wait_for

CASES, SEED = int(os.environ.get("HEADFRAME_FUZZ_CASES", "600")), int(os.environ.get("HEADFRAME_FUZZ_SEED", "1"))
QUIET_S = 0.4
NGINX = components.find("nginx")


class Behind:
    """A server that takes nothing but what h11 does, and says what it was asked for. `seen` is what came, by case."""

    def __init__(self):
        self.seen, self.wrong = {}, []
        self._door = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._door.getsockname()[1]
        self.ready = self.asked = True
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            threading.Thread(target=self._client, args=(client,), daemon=True).start()

    def _client(self, client):
        reader, raw = h11.Connection(h11.SERVER), b""
        try:
            while True:
                event = reader.next_event()
                if event is h11.NEED_DATA:
                    data = client.recv(65536)
                    raw += data
                    reader.receive_data(data)
                elif isinstance(event, h11.Request):
                    request, body = event, b""
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    said = self._asked(request, body)
                    client.sendall(reader.send(h11.Response(status_code=200, headers=[("content-length", str(len(said)))])))
                    if request.method != b"HEAD":
                        client.sendall(reader.send(h11.Data(data=said)))
                    reader.send(h11.EndOfMessage())
                    reader.start_next_cycle()
                    raw = b""
                else:
                    break
        except (h11.ProtocolError, OSError) as error:
            if isinstance(error, h11.RemoteProtocolError):
                self.wrong.append((str(error), raw))
        client.close()

    def _asked(self, request, body):
        target = request.target.decode("latin-1").removeprefix("/endpoints/mine")
        said = f"{request.method.decode()} {target} {body.decode('latin-1')}"
        if found := re.search(r"/c(\d+)/", target):
            self.seen.setdefault(int(found[1]), []).append(said)
        return said.encode("latin-1")

    def stop(self):
        self._door.close()


@pytest.fixture(scope="module")
def proxies(tmp_path_factory):
    if NGINX is None:
        pytest.skip("nginx is not installed (CI=true installs it)")
    root = tmp_path_factory.mktemp("fuzz")
    ours, theirs = Behind(), Behind()
    gate = Gate(root / "ours", [ours])
    gate.serving = type(gate.serving)(probe="/ready", start_s=5)
    gate.start()
    port = free_port()
    places = " ".join(f"{kind}_temp_path {root}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (root / "nginx.conf").write_text(
        f"worker_processes 1; daemon off; pid {root}/pid; error_log /dev/null; events {{ worker_connections 1024; }} http {{ access_log off; {places}\n"
        f"upstream behind {{ server 127.0.0.1:{theirs.port}; keepalive 32; }} server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://behind; proxy_http_version 1.1;\n"
        f"proxy_set_header Connection ''; }} }} }}\n"
    )
    process = subprocess.Popen([NGINX, "-c", root / "nginx.conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: answers(port), 10)
    yield (gate, ours, gate.port), (None, theirs, port)
    process.terminate()
    process.wait(10)
    gate.stop()
    theirs.stop()


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


LENGTHS = [b"%d", b"0%d", b"+%d", b"-%d", b"\t%d", b"%d ", b"%d, %d", b"%d,0", b"0x%x", b"%d\x0b", b"%d\x00", b"1%d", b"%d0000000000000000000", b""]
CODINGS = [b"chunked", b"Chunked", b"xchunked", b"identity", b"gzip, chunked", b"chunked, identity", b"chunked, chunked", b"\tchunked", b"chunked\x0b", b"chunked\x00", b'"chunked"', b"chunked;q=1",
           b"\r\n chunked", b"chun\r\nked", b"x\nTransfer-Encoding: chunked"]  # fmt: skip
NAMES = [
    b"%s: %s",
    b"%s : %s",
    b"%s\t: %s",
    b" %s: %s",
    b"%s:%s",
    b"\x00%s: %s",
    b"%s\x00: %s",
    b"X-A: b\r\n\t%s: %s",
    b"X-A: b\n%s: %s",
    b"X-A: b\r%s: %s",
    b"%s\xa0: %s",
]
CHUNKS = [b"%x\r\n%s\r\n", b"0%x\r\n%s\r\n", b"%x;a=b\r\n%s\r\n", b'%x;a="\r\n"\r\n%s\r\n', b"%x\n%s\n", b"%x\r\n%s", b"0x%x\r\n%s\r\n", b"%x \r\n%s\r\n", b"-%x\r\n%s\r\n", b"1%x\r\n%s\r\n",
          b"%x\r%s\r\n", b"\r\n%x\r\n%s\r\n", b"%x;\n%s\r\n", b"%x\r\n%s\n\n", b"10000000000000000%x\r\n%s\r\n"]  # fmt: skip
LASTS = [
    b"0\r\n\r\n",
    b"0\r\nx-late: 1\r\n\r\n",
    b"0\r\ncontent-length: 9\r\n\r\n",
    b"00\r\n\r\n",
    b"0\n\n",
    b"0\r\n",
    b"",
    b"0;a\r\n\r\n",
    b"0\r\n\n",
    b"\r\n0\r\n\r\n",
]
LINES = [b"%s %s HTTP/1.1\r\n", b"%s %s HTTP/1.0\r\n", b"%s  %s HTTP/1.1\r\n", b"%s\t%s HTTP/1.1\r\n", b"%s %s HTTP/1.1 \r\n", b"%s %s HTTP/1.2\r\n", b"%s %s HTTP/2.0\r\n", b"%s %s http/1.1\r\n", b"%s %s\r\n",
         b"%s %s HTTP/1.1\n", b"\r\n%s %s HTTP/1.1\r\n", b"\n%s %s HTTP/1.1\r\n", b"%s http://x%s HTTP/1.1\r\n", b"%s HTTPS://x:1%s HTTP/1.1\r\n", b"%s %s#f HTTP/1.1\r\n", b"%s %s\x00 HTTP/1.1\r\n",
         b"%s %s\x80 HTTP/1.1\r\n"]  # fmt: skip
METHODS = [b"POST", b"GET", b"PUT", b"HEAD", b"DELETE", b"get", b"G\xc3", b"PURGE"]
TARGETS = [b"", b"?a=b", b"/../x", b"/%2e%2e/x", b"//x", b"?\r\nx: y", b"/a b", b"/%0d%0a"]
HEADS = [b"", b"Host: y", b"Connection: close", b"Connection: content-length", b"Connection: keep-alive, transfer-encoding", b"Expect: 100-continue", b"Expect: x", b"Upgrade: h2c", b"Content-Length: 0", b"no colon",
         b": no name", b"X-\xe9: \xe9", b"Authorization: Bearer x", b"Trailer: content-length"]  # fmt: skip
ENDS = [b"\r\n", b"\n", b"\r", b"\r\r\n", b"\r\n\r\n"]


class Odd:
    """Chooses: mostly what is right, the first; else anything."""

    def __init__(self, case):
        self.rng = random.Random(f"{SEED} {case}")
        self.often = self.rng.choice([0.03, 0.06, 0.12, 0.4])

    def of(self, choices):
        return self.rng.choice(choices) if self.happens() else choices[0]

    def happens(self):
        return self.rng.random() < self.often


def request(odd, case, n, key, inner=True):
    """One request, or something that somebody may take for one."""
    rng = odd.rng
    raw = odd.of(LINES) % (
        rng.choice(METHODS[:3]) if not odd.happens() else rng.choice(METHODS),
        b"/endpoints/mine/c%d/%d" % (case, n) + odd.of(TARGETS),
    )
    body = request(odd, case, 100 + n, key, inner=False) if inner and rng.random() < 0.6 else rng.choice([b"hello", b""])
    headers = [b"Host: x", b"Authorization: Bearer " + key, odd.of(HEADS)]
    chunked = rng.random() < 0.5
    if not chunked or odd.happens():
        form = odd.of(LENGTHS)
        headers += [odd.of(NAMES) % (b"Content-Length", form % ((len(body),) * form.count(b"%")))] * (1 + odd.happens())
    if chunked:
        headers += [odd.of(NAMES) % (b"Transfer-Encoding", odd.of(CODINGS))] * (1 + odd.happens())
        body = b"".join(odd.of(CHUNKS) % (len(part), part) for part in (body[:7], body[7:]) if part) + odd.of(LASTS)
    rng.shuffle(headers)
    end = odd.of(ENDS)
    return raw + end.join(filter(None, headers)) + end + odd.of(ENDS) + body


def one(case, key):
    """The bytes of a case; the last request asks for the connection to be closed."""
    odd = Odd(case)
    raw = b"".join(request(odd, case, n, key) for n in range(odd.rng.choice([1, 1, 2])))
    return raw + b"GET /endpoints/mine/c%d/last HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n" % (case, key)


def asked(port, raw, case):
    """Everything that comes back: in one piece, or in two."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=QUIET_S) as client:
        cut = random.Random(case).choice([len(raw), random.Random(case).randrange(len(raw))])
        try:
            for part in (raw[:cut], raw[cut:]):
                client.sendall(part)
            while data := client.recv(65536):
                got += data
        except OSError:
            pass
    return got


STRICTER = re.compile(rb":\s*\t|^[A-Z]+  /", re.MULTILINE)
"""Where nginx refuses what is allowed: a tab before a value (RFC 9110, 5.5), two spaces in a request's first line (RFC 9112, 3)."""


@pytest.mark.timeout(120 + CASES // 10)
def test_nothing_is_smuggled_and_nothing_goes_through_that_nginx_refuses_or_takes_for_something_else(proxies):
    (gate, ours, port), (_, theirs, other) = proxies
    key, passed = gate.key.encode(), 0

    def play(case):
        raw = one(case, key)
        return case, raw, asked(port, raw, case), asked(other, raw, case)

    with ThreadPoolExecutor(24) as pool:
        played = list(pool.map(play, range(CASES)))
    assert not ours.wrong, "what comes from the gateway is always a request"
    for case, raw, got, _ in played:
        mine, reference = ours.seen.get(case, []), theirs.seen.get(case, [])
        told = f"case {case}", raw, got, mine, reference
        read = [each for each in mine if not each.startswith("HEAD")]
        assert len(re.findall(rb"HTTP/1\.1 \d+", got)) >= len(read), ("each has an answer", told)
        for each in read:
            assert each.split("\n")[0].split("\r")[0].encode("latin-1") in got, ("the client sees whatever was asked in its name", told)
        allowed = reference == mine[: len(reference)] and STRICTER.search(raw)
        assert mine == reference[: len(mine)] or allowed, told
        passed += len(mine)
    print(f"\n{CASES} cases, {passed} requests passed on by the gateway, {sum(map(len, theirs.seen.values()))} by nginx")
    assert passed > CASES // 2, "enough of it goes through to mean something"


def test_a_client_that_closes_its_side_leaves_nothing_behind(proxies):
    """As at nginx: who has closed waits for nothing. Wherever in a request it happens, the gateway goes on serving."""
    (gate, ours, port), _ = proxies
    raw = one(1_000_000, gate.key.encode())
    for cut in range(0, len(raw), 7):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(raw[:cut])
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    assert not ours.wrong
    wait_for(lambda: gate.ask(path="/endpoints/mine/well", body=b"{}").status_code == 200, 5)
