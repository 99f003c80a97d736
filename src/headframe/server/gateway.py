"""The gateway that `headframe up` runs beside the server: a process of its own, which goes on when this one is killed and is found again."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec

from headframe.files import write_private
from headframe.listening import url_at
from headframe.model.command import CreateKey
from headframe.model.errors import HeadframeError
from headframe.model.ids import ProjectId
from headframe.model.people import Scope
from headframe.server.auth import Auth
from headframe.server.decide import decide
from headframe.server.desk import Desk

LOOK_S, AGAIN_S, AGAIN_MAX_S, LEAVE_S = 0.5, 0.25, 10.0, 35.0
_log = logging.getLogger("headframe")


class GatewaySetup(msgspec.Struct, frozen=True, kw_only=True):
    """Where it keeps its things, what it listens on, and how it reaches this server."""

    data: Path
    host: str
    port: int
    server: str
    pepper: Path
    ca: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return url_at(self.host, self.port, secure=self.tls_cert is not None)


async def keep_gateway(setup: GatewaySetup, desk: Desk, auth: Auth) -> None:
    """Have it run, for as long as this task does."""
    setup.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    pause_s = AGAIN_S
    try:
        while True:
            if _alive(setup.data):
                await asyncio.sleep(LOOK_S)
                continue
            await _key(setup.data / "key", await asyncio.to_thread(_known, setup.data / "key"), desk, auth)
            began = asyncio.get_running_loop().time()
            process = await asyncio.create_subprocess_exec(*_command(setup), stdin=asyncio.subprocess.DEVNULL, start_new_session=True)
            code = await process.wait()
            lasted_s = asyncio.get_running_loop().time() - began
            pause_s = AGAIN_S if lasted_s > AGAIN_MAX_S else min(AGAIN_MAX_S, 2 * pause_s)
            _log.warning("the gateway ended with %s; it is started again in %.1f s", code, pause_s)
            await asyncio.sleep(pause_s)
    finally:
        await asyncio.shield(_leave(setup.data))


def _command(setup: GatewaySetup) -> list[str]:
    options = {"--data": setup.data, "--host": setup.host, "--port": setup.port, "--server": setup.server, "--pepper": setup.pepper,
               "--key-file": setup.data / "key", "--ca": setup.ca, "--tls-cert": setup.tls_cert, "--tls-key": setup.tls_key}  # fmt: skip
    return [sys.executable, "-m", "headframe", "gateway", *(str(part) for name, value in options.items() if value for part in (name, value))]


def _known(path: Path) -> str:
    """The id of the key it has."""
    return path.read_text().split("_")[2] if path.exists() else ""


async def _key(path: Path, known: str, desk: Desk, auth: Auth) -> None:
    """A key of its own, made once; kept before it is committed, so that none is lost."""
    if known and known in desk.world.keys:
        return
    key, text = auth.new_key("the gateway beside this server", Scope.GATEWAY, ProjectId(""), desk.clock_ms())
    write_private(path, text.encode())
    with contextlib.suppress(HeadframeError):
        await desk.write(lambda world, now_ms: decide(world, CreateKey(key=key), now_ms))


def _alive(data: Path) -> bool:
    """Whether one works in that directory: it holds the lock for as long as it lives."""
    try:
        with (data / "gateway.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


async def _leave(data: Path) -> None:
    """It ends what is under way, and itself."""
    pid_file = data / "pid"
    if not _alive(data) or not pid_file.exists():
        return
    with contextlib.suppress(ProcessLookupError, ValueError):
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
    until = asyncio.get_running_loop().time() + LEAVE_S
    while _alive(data) and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 - another process's end
        await asyncio.sleep(0.05)
