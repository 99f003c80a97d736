"""A shell beside running work, and its ports, over authenticated WebSockets. No server of ours is in anybody's image.

What goes over them: `engines/carry.py`. A machine that joined opens one of its own for each, under the number that it was told.
"""

import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from litestar import Router, WebSocket, websocket
from litestar.exceptions import WebSocketDisconnect
from litestar.params import Parameter

from headframe.engines.carry import SIZE_MAX, Gone, bridge, carry, outcome
from headframe.model.errors import BadRequest, Conflicting, HeadframeError
from headframe.model.ids import WorkloadId, allocation_id
from headframe.model.people import Scope
from headframe.model.shell import Outcome, ShellAsk
from headframe.model.states import WorkloadState
from headframe.model.work import Allocation, Workload
from headframe.server.api.agent import caller, joined_engine
from headframe.server.api.workloads import find
from headframe.server.auth import Principal
from headframe.server.context import Context

ARGUMENTS_MAX, ARGUMENT_MAX = 200, 8192
REFUSED = 4409
"""The WebSocket's code where a refusal is told before."""
Socket = WebSocket[Principal, Any, Any]


class _Frames:
    """See `Frames`: a WebSocket."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    async def hear(self) -> bytes | str | None:
        """The next frame, None once the client is gone."""
        try:
            frame: Any = await self._socket.receive()
        except (WebSocketDisconnect, RuntimeError):  # it was known to be gone
            return None
        if frame["type"] == "websocket.disconnect":
            return None
        data = frame.get("bytes")
        return data if data is not None else str(frame.get("text") or "")

    async def say(self, said: bytes | str) -> None:
        """Raises Gone."""
        try:
            await (self._socket.send_bytes(said) if isinstance(said, bytes) else self._socket.send_text(said))
        except (WebSocketDisconnect, RuntimeError, OSError) as error:
            raise Gone from error


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
            await carry(_Frames(socket), opened)


@websocket("/v1/workloads/{workload:str}/forward", opt={"scope": Scope.MEMBER})
async def forward(context: Context, socket: Socket, workload: str, port: Annotated[int, Parameter(ge=1, le=65_535)]) -> None:
    """A connection to a port at which this very work listens."""
    async with _opened(socket):
        row, allocation = await _running(context, socket, workload)
        reader, writer = await context.engine.reach(allocation, row, port)
        with context.sessions.open(row.id):
            await bridge(_Frames(socket), reader, writer)


@websocket("/v1/agent/attach/{number:int}", opt={"scope": Scope.NODE})
async def attach(context: Context, socket: Socket, number: int) -> None:
    """A machine's end of a shell or a port that it was asked for."""
    engine, node = joined_engine(context), caller(context, socket.user)
    if not engine.expects(node, number):
        await socket.close(REFUSED)
        return
    async with _opened(socket):
        await engine.attached(node, number, _Frames(socket))


@contextlib.asynccontextmanager
async def _opened(socket: Socket) -> AsyncGenerator[None]:
    """Accepted; what is refused then is told in words."""
    await socket.accept()
    try:
        yield
    except HeadframeError as error:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await socket.send_text(outcome(Outcome(error=error.detail, next=error.next_step)))
            await socket.close(REFUSED)
        return
    except Gone:
        return
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.close()


async def _running(context: Context, socket: Socket, wanted: str) -> tuple[Workload, Allocation]:
    row = await find(context, socket.user, wanted)
    held = context.world.held.get(allocation_id(WorkloadId(row.id), row.attempt)) if row.attempt else None
    if held is None or row.state is not WorkloadState.RUNNING:
        raise Conflicting(f"{row.name} is {row.state}", "wait until it runs: `headframe ps`")
    return row, held


ROUTER = Router("/", route_handlers=[shell, forward, attach])
