"""Shells and ports on machines that joined: the machine opens a line to the server for each, and carries it to the work there."""

import asyncio
import contextlib
import socket

import msgspec

from headframe.engines.carry import Frames, Gone, bridge
from headframe.model.errors import Unavailable
from headframe.model.shell import Control, Outcome

_LOST = ("the connection to the machine that this is on broke", "try again; `headframe nodes` says whether it is there")


class Line:
    """The server's end of a line. Once it is `over`, whoever holds its socket lets go of that."""

    def __init__(self, frames: Frames, over: asyncio.Event) -> None:
        self.hear, self.say, self.close = frames.hear, frames.say, over.set
        self.carrier: asyncio.Future[None] | None = None

    async def outcome(self) -> Outcome:
        """What the machine says first: whether there is something at its end. Raises Unavailable where it says nothing."""
        return _outcome(await self.hear())


class FarShell:
    """A shell at the other end of a line. See `Shell`."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._code: int | None = None

    async def output(self) -> tuple[int, bytes] | None:
        """What it says next, None at the end."""
        said = await self._line.hear()
        if isinstance(said, bytes) and said:
            return said[0], said[1:]
        with contextlib.suppress(Unavailable):
            self._code = _outcome(said).code
        return None

    async def code(self) -> int:
        """How it ended; Unavailable where the line broke before."""
        if self._code is None:
            raise Unavailable(*_LOST)
        return self._code

    async def write(self, data: bytes) -> None:
        """To its standard input."""
        with contextlib.suppress(Gone):
            await self._line.say(data)

    async def control(self, told: Control) -> None:
        """As it was said here."""
        with contextlib.suppress(Gone):
            await self._line.say(msgspec.json.encode(told).decode())

    def close(self) -> None:
        """The machine sees the line's end, and ends it."""
        self._line.close()


async def connection(line: Line) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """What comes and goes over the line, as a stream; the line is closed with it."""
    ours, theirs = socket.socketpair()
    far = await asyncio.open_connection(sock=theirs)

    async def carried() -> None:
        try:
            with contextlib.suppress(Gone):
                await bridge(line, *far)
        finally:
            line.close()

    line.carrier = asyncio.ensure_future(carried())  # held by the line, which is held by what it carries
    return await asyncio.open_connection(sock=ours)


def _outcome(said: bytes | str | None) -> Outcome:
    try:
        return msgspec.json.decode(said if isinstance(said, str) else "", type=Outcome)
    except msgspec.DecodeError:
        raise Unavailable(*_LOST) from None
