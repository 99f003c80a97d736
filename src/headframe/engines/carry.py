"""A shell, or a connection to a port, carried over a line of frames between whoever asked for it and where it runs.

A frame of bytes is data: what is typed one way; the other way the first byte says 1 (output) or 2 (errors). A frame of text is JSON: a `Control` one way, an `Outcome` the other.
"""

import asyncio
import contextlib
from typing import Protocol

import msgspec

from headframe.model.shell import Control, Outcome

CHUNK = 64 * 1024
SIZE_MAX = 1000
"""Rows and columns of a terminal."""
PASSED = frozenset({1, 2, 3, 9, 15})
"""The signals that are passed on."""


class Gone(Exception):
    """The other end of a line has left."""


class Frames(Protocol):
    """One end of a line."""

    async def hear(self) -> bytes | str | None:
        """The next frame, None once the other end has left."""
        ...

    async def say(self, said: bytes | str) -> None:
        """Send a frame. Raises Gone."""
        ...


class Shell(Protocol):
    """A command that runs beside work."""

    async def output(self) -> tuple[int, bytes] | None:
        """What it says next, and whether as output (1) or errors (2); None at the end."""
        ...

    async def code(self) -> int:
        """How it ended, once there is no more output: 128 and more for a signal. Raises Unavailable where that can't be known any more."""
        ...

    async def write(self, data: bytes) -> None:
        """To its standard input."""
        ...

    async def control(self, told: Control) -> None:
        """Do what is said beside data."""
        ...

    def close(self) -> None:
        """End it and everything that it started; harmless at the end."""
        ...


async def carry(frames: Frames, opened: Shell) -> None:
    """Both ways, until the command ends or whoever asked leaves: then it ends. Raises Gone."""

    async def typed() -> None:
        with contextlib.suppress(Gone):
            while (said := await frames.hear()) is not None:
                if isinstance(said, bytes):
                    await opened.write(said)
                elif (told := _control(said)) is not None:
                    await opened.control(told)
        opened.close()

    typing = asyncio.ensure_future(typed())
    try:
        while (said := await opened.output()) is not None:
            await frames.say(bytes([said[0]]) + said[1])
        await frames.say(outcome(Outcome(code=await opened.code())))
    finally:
        opened.close()
        typing.cancel()
        await asyncio.gather(typing, return_exceptions=True)


async def bridge(frames: Frames, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Both ways, until either side ends. Raises Gone."""

    async def inward() -> None:
        with contextlib.suppress(OSError):
            while (said := await frames.hear()) is not None:
                writer.write(said if isinstance(said, bytes) else b"")
                await writer.drain()
        writer.close()

    coming = asyncio.ensure_future(inward())
    try:
        while data := await reader.read(CHUNK):
            await frames.say(data)
    except OSError:
        pass
    finally:
        writer.close()
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def outcome(said: Outcome) -> str:
    """As a frame."""
    return msgspec.json.encode(said).decode()


def _control(text: str) -> Control | None:
    """What is asked for, None where it can't be."""
    try:
        told = msgspec.json.decode(text, type=Control)
    except msgspec.DecodeError:
        return None
    sized = told.resize is None or all(0 < each <= SIZE_MAX for each in told.resize)
    return told if sized and (told.signal in PASSED or not told.signal) else None
