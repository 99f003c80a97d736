"""A real gateway process whose control plane is away, before replicas that a test scripts: for what real model servers do not do on cue."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import msgspec

from headframe.gateway.records import Kept
from headframe.model.endpoint import EndpointEntry, KeyEntry, ProjectEntry, ReplicaEntry, Table
from headframe.model.ids import KeyId
from headframe.model.keys import key_mac, write_key
from headframe.model.people import Scope
from headframe.model.serving import Serving

ROOT = Path(__file__).parent.parent
PEPPER = bytes(range(64))


def make_key(n, project="pr-a", scope=Scope.INFER, **more):
    """A key's entry and its text."""
    key_id = KeyId(f"{n:016d}")
    text, secret = write_key(scope, key_id, bytes([n]) * 32)
    return KeyEntry(id=key_id, mac=key_mac(PEPPER, key_id, secret), scope=scope, project_id=project, **more), text


class Script:
    """A replica that does what `play(request, reply)` does: an asyncio server on a thread. `seen` are its requests, `closed` the times at which a client left one unanswered."""

    def __init__(self, play, ready=True):
        self.play, self.ready = play, ready
        self.seen, self.closed, self.asked = [], [], False
        self._writers = set()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    def _run(self):
        asyncio.set_event_loop(self._loop)

        async def serve():
            self._server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=2**26)
            self.port = self._server.sockets[0].getsockname()[1]
            self._started.set()

        self._loop.run_until_complete(serve())
        self._loop.run_forever()

    async def _client(self, reader, writer):
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await self._request(reader)
                if request is None:
                    break
                reply = Reply(writer)
                if request.path == "/health":
                    reply.json({"status": "ok"} if self.ready else {}, 200 if self.ready else 503)
                    continue
                if request.path == "/ready" or b'"content":"hi"' in request.body:  # our own question, and the gateway's first one
                    self.asked = request.path == "/ready"
                    reply.json({})
                    continue
                self.seen.append(request)
                playing = asyncio.ensure_future(self.play(request, reply))
                gone = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({playing, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not playing.done() and gone.done():
                    self.closed.append(time.monotonic())
                    playing.cancel()
                    break
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await gone
                playing.result()
                if reply.over:
                    break
        writer.close()

    async def _request(self, reader):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Asked(method, path, headers, body)

    def stop(self):
        """The replica dies: every connection of it breaks."""

        def end():
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.call_later(0.05, self._loop.stop)

        self._loop.call_soon_threadsafe(end)
        self._thread.join(5)


class Asked:
    def __init__(self, method, path, headers, body):
        self.method, self.path, self.headers, self.body = method, path, headers, body

    @property
    def json(self):
        return json.loads(self.body)


class Reply:
    """What a script answers with."""

    def __init__(self, writer):
        self.writer, self.over = writer, False

    def json(self, value, status=200):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\nserver: engine\r\ncontent-length: %d\r\n\r\n" % (status, len(body)) + body
        )

    def stream(self):
        self.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def send(self, data):
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.writer.drain()

    async def event(self, value):
        await self.send(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")

    def end(self):
        self.writer.write(b"0\r\n\r\n")

    def cut(self):
        """Break the connection."""
        self.writer.transport.abort()
        self.over = True


def delta(text, finish=None, model="m"):
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": model,
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
    }


def usage(prompt=5, completion=3):
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Gate:
    """The gateway before `scripts`, each a replica of the endpoint `m`; more endpoints by `endpoints`."""

    def __init__(self, root, scripts=(), keys=None, serving=None, projects=None, granted=None, endpoints=()):
        self.root, self.scripts = root, list(scripts)
        root.mkdir(parents=True, exist_ok=True)
        entry, self.key = make_key(1)
        door, self.door = make_key(99)
        self.keys = [entry, door, *(keys or [])]
        self.projects = projects or [ProjectEntry(id="pr-a", name="acme")]
        self.serving = Serving(**{"model": "m", "replicas_max": 4, "start_s": 5, **(serving or {})})
        self.granted, self.endpoints, self.options = granted or {}, list(endpoints), []
        self.process = None

    def table(self):
        replicas = tuple(ReplicaEntry(id=f"wl-aaaaaaaaaaaaaaaa-{n}.1", host="127.0.0.1", port=script.port) for n, script in enumerate(self.scripts))
        own = EndpointEntry(
            id="wl-aaaaaaaaaaaaaaaa", project_id="pr-a", name="mine", serving=self.serving, replicas=replicas, created_ms=1_700_000_000_000
        )
        return Table(run="", seq=0, full=True, keys=tuple(self.keys), projects=tuple(self.projects), endpoints=(own, *self.endpoints))

    def start(self, wait=True, port=None):
        (self.root / "pepper").write_bytes(PEPPER)
        (self.root / "data").mkdir(exist_ok=True)
        if not (self.root / "data/table.json").exists():
            (self.root / "data/table.json").write_bytes(msgspec.json.encode(Kept(table=self.table(), granted=self.granted)))
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        argv = [sys.executable, "-m", "headframe", "gateway", "--server", getattr(self, "server", "http://127.0.0.1:9"), "--data", self.root / "data", "--pepper", self.root / "pepper",
                "--port", self.port]  # fmt: skip
        if getattr(self, "key_file", None):
            argv += ["--key-file", self.key_file]
        argv += self.options
        self.log = (self.root / "gateway.log").open("ab")
        self.process = subprocess.Popen(
            [*map(str, argv)], stdout=self.log, stderr=self.log, env={**os.environ, **getattr(self, "env", {}), "HEADFRAME_KEY": "none"}
        )
        if wait:
            limit = time.monotonic() + 15
            while time.monotonic() < limit:
                with contextlib.suppress(httpx.HTTPError):
                    httpx.get(f"{self.url}/health")
                    if any(script.ready for script in self.scripts):
                        httpx.get(f"{self.url}/endpoints/mine/ready", headers=self.auth(self.door), timeout=10)
                    if all(script.asked for script in self.scripts if script.ready):
                        return self
                assert self.process.poll() is None, (self.root / "gateway.log").read_text()
                time.sleep(0.02)
            raise AssertionError("the gateway did not come up")
        return self

    def auth(self, key=None):
        return {"authorization": f"Bearer {key or self.key}"}

    def ask(self, body=None, path="/v1/chat/completions", key=None, **more):
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **(body or {})} if not isinstance(body, bytes) else body
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            self.url + path,
            content=content,
            headers={"content-type": "application/json", **self.auth(key), **more.pop("headers", {})},
            timeout=20,
            **more,
        )

    def served(self):
        """What it wrote down, open lines left out."""
        lines = []
        for path in sorted((self.root / "data/spool").glob("*.log")):
            lines += [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]
        return [line for line in lines if not line.get("open") and line["key"] != f"{99:016d}"]

    def settled(self, count, limit_s=5):
        """Wait until that many requests are written down."""
        limit = time.monotonic() + limit_s
        while len(found := self.served()) < count:
            assert time.monotonic() < limit, found
            time.sleep(0.01)
        return found

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(40)
        for script in self.scripts:
            script.stop()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def events(text):
    """The data of a stream's events."""
    return [line[5:].strip() for line in re.split(r"\r?\n", text) if line.startswith("data:")]


def compiled(target):
    """The gateway compiled as the documentation says (with what is installed here, so that nothing is fetched) and installed there; the environment in which it is found before the sources."""
    copy = target / "source"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-build-isolation", "--no-deps", "--target", target / "installed", copy],
                          env={**os.environ, "HEADFRAME_COMPILE": "1", "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {**os.environ, "PYTHONPATH": str(target / "installed")}
