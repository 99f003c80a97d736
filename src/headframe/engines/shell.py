"""A command beside running work, with a terminal or without: in the work's own environment, directory and limits. It ends with the work, and with whoever asked for it."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

from headframe.engines import supervisor
from headframe.model.shell import Control, ShellAsk

CHUNK = 64 * 1024
TERMINAL = str(Path(__file__).with_name("terminal.py"))
"""A program of its own: to import it is to run it."""
OUT, ERR = 1, 2
GENTLY_S = 3.0


class ChildShell:
    """One that runs here, as a child. See `Shell`."""

    def __init__(self, process: subprocess.Popen[bytes], outputs: dict[int, int], into: int, *, terminal: bool, gently: bool) -> None:
        self._process, self._outputs, self._into, self._terminal, self._gently = process, outputs, into, terminal, gently
        self._queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(64)
        self._open = set(outputs)
        self._loop = asyncio.get_running_loop()
        self._paused = False
        for handle in outputs:
            os.set_blocking(handle, False)
            self._loop.add_reader(handle, self._readable, handle)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._process.pid

    async def output(self) -> tuple[int, bytes] | None:
        """What it says next, None at the end."""
        said = await self._queue.get()
        if self._paused and self._queue.qsize() < 32:
            self._paused = False
            for handle in self._open:
                self._loop.add_reader(handle, self._readable, handle)
        return said

    async def code(self) -> int:
        """How it ended."""
        code = await asyncio.to_thread(self._process.wait)
        return code if code >= 0 else 128 - code

    async def write(self, data: bytes) -> None:
        """To its standard input."""
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_write_all, self._into, data)

    async def control(self, told: Control) -> None:
        """What runs in a terminal is told of its size by the kernel."""
        if told.resize and self._terminal:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._into, termios.TIOCSWINSZ, struct.pack("HHHH", *told.resize, 0, 0))
        if told.signal:
            self._signal(told.signal)
        if told.shut:
            self._shut()

    def _signal(self, number: int) -> None:
        if number == signal.SIGKILL:  # can't be passed on
            self._kill()
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._process.pid, number)

    def _shut(self) -> None:
        if self._terminal:
            with contextlib.suppress(OSError):
                os.write(self._into, b"\x04")
        elif self._into >= 0:
            os.close(self._into)
            self._into = -1

    def close(self) -> None:
        """End it and everything that it started; what has to tell others is given a moment to."""
        if self._gently and not self.over:
            self._signal(signal.SIGTERM)
            self._loop.call_later(GENTLY_S, self._kill)
        else:
            self._kill()
        for handle in list(self._open):
            self._ended(handle)

    def _kill(self) -> None:
        if self.over:
            return
        for pid in [*supervisor.descendants(self._process.pid), self._process.pid]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def _readable(self, handle: int) -> None:
        try:
            data = os.read(handle, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # a terminal whose last user is gone
            data = b""
        if not data:
            self._ended(handle)
            return
        self._queue.put_nowait((self._outputs[handle], data))
        if self._queue.qsize() >= 60:
            self._paused = True
            for each in self._open:
                self._loop.remove_reader(each)

    def _ended(self, handle: int) -> None:
        self._loop.remove_reader(handle)
        self._open.discard(handle)
        if not self._terminal or handle != self._into:
            os.close(handle)
        if not self._open:
            if self._terminal:
                os.close(self._into)
            with contextlib.suppress(asyncio.QueueFull):
                self._queue.put_nowait(None)


def open_shell(ask: ShellAsk, argv: Sequence[str], env: dict[str, str], cwd: str, cgroups: Sequence[str], *, gently: bool = False) -> ChildShell:
    """Start it. Raises OSError."""
    told, telling = os.pipe()
    os.write(
        telling,
        json.dumps({"parent": os.getpid(), "argv": list(argv), "env": {**env, "TERM": ask.term}, "cwd": cwd, "cgroups": list(cgroups)}).encode(),
    )
    os.close(telling)
    kind = "terminal" if ask.rows else "plain"
    command = [sys.executable, "-I", "-S", TERMINAL, kind]
    try:
        return _with_terminal(ask, command, told, gently=gently) if ask.rows else _plain(command, told, gently=gently)
    finally:
        os.close(told)


def _with_terminal(ask: ShellAsk, command: Sequence[str], told: int, *, gently: bool) -> ChildShell:
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", ask.rows, ask.columns, 0, 0))
    try:
        process = _started(command, told, stdin=theirs, stdout=theirs, stderr=theirs)
    finally:
        os.close(theirs)
    return ChildShell(process, {ours: OUT}, ours, terminal=True, gently=gently)


def _plain(command: Sequence[str], told: int, *, gently: bool) -> ChildShell:
    process = _started(command, told, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    handles = [os.dup(each.fileno()) for each in (process.stdin, process.stdout, process.stderr)]
    for each in (process.stdin, process.stdout, process.stderr):
        each.close()
    return ChildShell(process, {handles[1]: OUT, handles[2]: ERR}, handles[0], terminal=False, gently=gently)


def _started(command: Sequence[str], told: int, *, stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(
        [*command, str(told)], bufsize=0, pass_fds=[told], close_fds=True, cwd="/", env=env, stdin=stdin, stdout=stdout, stderr=stderr
    )


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def listens(roots: Sequence[int], port: int) -> bool:
    """Whether something at or below these processes listens at a TCP port: the only ports of a machine that its work's owner may reach."""
    inodes = {
        fields[9] for name in ("tcp", "tcp6") for fields in _sockets(name) if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
    }
    if not inodes:
        return False
    return any(f"socket:[{inode}]" in _handles(each) for root in roots for each in (root, *supervisor.descendants(root)) for inode in inodes)


def _sockets(name: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()[1:]]
    except OSError:
        return []


def _handles(pid: int) -> set[str]:
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(each.readlink()))
    return found
