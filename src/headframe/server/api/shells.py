"""A shell beside running work, and its ports, over authenticated WebSockets. No server of ours is in anybody's image.

A frame of bytes is data: what is typed one way; the other way the first byte says 1 (output) or 2 (errors). A frame of text is JSON: `{"resize": [rows, columns]}`,
`{"signal": 2}`, `{"shut": true}` one way, `{"code": 0}` or `{"error": …}` at the end the other.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from litestar import Router, WebSocket, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import Parameter

from headframe.engines.shell import Shell, ShellAsk
from headframe.model.errors import BadRequest, Conflicting, HeadframeError
from headframe.model.ids import WorkloadId, allocation_id
from headframe.model.people import Scope
from headframe.model.states import WorkloadState
from headframe.model.work import Allocation, Workload
from headframe.server.api.workloads import find
from headframe.server.auth import Principal
from headframe.server.context import Context

ARGUMENTS_MAX, ARGUMENT_MAX = 200, 8192
SIZE_MAX = 1000
CHUNK = 64 * 1024
REFUSED = 4409
"""The WebSocket's code where a refusal is told before."""
Socket = WebSocket[Principal, Any, Any]


class Told(msgspec.Struct, frozen=True):
    """What a client says beside data."""

    resize: tuple[int, int] | None = None
    signal: int = 0
    shut: bool = False


@websocket("/v1/workloads/{workload:str}/exec", opt={"scope": Scope.MEMBER})
async def shell(
    context: Context, socket: Socket, workload: str, arg: list[str] | None = None, rows: Annotated[int, Parameter(ge=0, le=SIZE_MAX)] = 0,
    columns: Annotated[int, Parameter(ge=0, le=SIZE_MAX)] = 0, term: Annotated[str, Parameter(max_length=40)] = "xterm-256color",
) -> None:  # fmt: skip
    """A command beside running work; without `arg` a login shell, with `rows` a terminal."""
    async with _opened(socket):
        row, allocation = await _running(context, socket, workload)
        argv = tuple(arg or ())
        if (
            len(argv) > ARGUMENTS_MAX
            or any(len(each) > ARGUMENT_MAX or "\0" in each for each in argv)
            or not term.isascii()
            or not term.isprintable()
        ):
            raise BadRequest(f"a command has at most {ARGUMENTS_MAX} words")
        opened = await context.engine.shell(allocation, row, ShellAsk(argv=argv, rows=rows, columns=columns or 80 if rows else 0, term=term))
        with context.sessions.open(row.id):
            await _carried(socket, opened)


@websocket("/v1/workloads/{workload:str}/forward", opt={"scope": Scope.MEMBER})
async def forward(context: Context, socket: Socket, workload: str, port: Annotated[int, Parameter(ge=1, le=65_535)]) -> None:
    """A connection to a port at which this very work listens."""
    async with _opened(socket):
        row, allocation = await _running(context, socket, workload)
        reader, writer = await context.engine.reach(allocation, row, port)
        with context.sessions.open(row.id):
            await _bridged(socket, reader, writer)


@contextlib.asynccontextmanager
async def _opened(socket: Socket) -> AsyncGenerator[None]:
    """Accepted; what is refused then is told in words."""
    await socket.accept()
    try:
        yield
    except HeadframeError as error:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await socket.send_text(msgspec.json.encode({"error": error.detail, "next": error.next_step}).decode())
            await socket.close(REFUSED)
        return
    except WebSocketDisconnect:
        return
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.close()


async def _running(context: Context, socket: Socket, wanted: str) -> tuple[Workload, Allocation]:
    row = await find(context, socket.user, wanted)
    held = context.world.held.get(allocation_id(WorkloadId(row.id), row.attempt)) if row.attempt else None
    if held is None or row.state is not WorkloadState.RUNNING:
        raise Conflicting(f"{row.name} is {row.state}", "wait until it runs: `headframe ps`")
    return row, held


async def _carried(socket: Socket, opened: Shell) -> None:
    """Both ways, until the command ends or its client leaves: then it ends."""

    async def typed() -> None:
        with contextlib.suppress(WebSocketDisconnect):
            while (said := await _heard(socket)) is not None:
                if isinstance(said, bytes):
                    await opened.write(said)
                else:
                    _obey(opened, said)
        opened.close()

    typing = asyncio.ensure_future(typed())
    try:
        while (said := await opened.output()) is not None:
            await socket.send_bytes(bytes([said[0]]) + said[1])
        code = await opened.code()
        await socket.send_text(msgspec.json.encode({"code": code}).decode())
    finally:
        opened.close()
        typing.cancel()
        await asyncio.gather(typing, return_exceptions=True)


async def _heard(socket: Socket) -> bytes | str | None:
    """The next frame, None once the client is gone."""
    frame: Any = await socket.receive()
    if frame["type"] == "websocket.disconnect":
        return None
    data = frame.get("bytes")
    return data if data is not None else str(frame.get("text") or "")


def _obey(opened: Shell, text: str) -> None:
    try:
        told = msgspec.json.decode(text, type=Told)
    except msgspec.DecodeError:
        return
    if told.resize and all(0 < each <= SIZE_MAX for each in told.resize):
        opened.resize(*told.resize)
    if told.signal in {1, 2, 3, 9, 15}:
        opened.signal(told.signal)
    if told.shut:
        opened.shut()


async def _bridged(socket: Socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def inward() -> None:
        with contextlib.suppress(WebSocketDisconnect, OSError):
            while (said := await _heard(socket)) is not None:
                writer.write(said if isinstance(said, bytes) else b"")
                await writer.drain()
        writer.close()

    coming = asyncio.ensure_future(inward())
    try:
        while data := await reader.read(CHUNK):
            await socket.send_bytes(data)
    except OSError:
        pass
    finally:
        writer.close()
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


ROUTER = Router("/", route_handlers=[shell, forward])
