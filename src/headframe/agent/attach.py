"""Shells and ports of work on this machine, for whoever asked the server for them: each over a line of its own, which this machine opens."""

import asyncio
import logging

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from headframe.client import Unreachable
from headframe.client.agent import AgentClient
from headframe.engines.carry import Gone, Shell, bridge, carry, outcome
from headframe.engines.local import LocalEngine
from headframe.model.agent import Attach
from headframe.model.errors import HeadframeError
from headframe.model.shell import Outcome

_log = logging.getLogger("headframe")


class _Frames:
    """See `Frames`: a WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def hear(self) -> bytes | str | None:
        """The next frame, None once the server is gone."""
        try:
            return await self._socket.recv()
        except ConnectionClosed:
            return None

    async def say(self, said: bytes | str) -> None:
        """Raises Gone."""
        try:
            await self._socket.send(said)
        except ConnectionClosed as error:
            raise Gone from error


async def attach(order: Attach, engine: LocalEngine, server: AgentClient) -> None:
    """Until either side ends. What goes wrong is told over the line; where there is none, nobody waits any more."""
    try:
        async with await server.attach(order.number) as socket:
            await _attached(order, engine, _Frames(socket))
    except (Unreachable, Gone) as error:
        _log.info("a line that the server asked for was not needed: %s", error)


async def _attached(order: Attach, engine: LocalEngine, frames: _Frames) -> None:
    try:
        opened = await _opened(order, engine)
    except HeadframeError as error:
        await frames.say(outcome(Outcome(error=error.detail, next=error.next_step)))
        return
    except OSError as error:
        await frames.say(outcome(Outcome(error=f"this machine could not start it: {error}", next="look at the machine")))
        return
    await frames.say(outcome(Outcome()))
    if isinstance(opened, tuple):
        await bridge(frames, *opened)
    else:
        await carry(frames, opened)


async def _opened(order: Attach, engine: LocalEngine) -> Shell | tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if order.ask is not None:
        return await engine.shell(order.allocation, order.workload, order.ask)
    return await engine.reach(order.allocation, order.workload, order.port)
