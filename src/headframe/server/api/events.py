"""Events, as pages and as a stream; and whether the server is well."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get
from litestar.params import Parameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from headframe.model.api import EventPage, EventView, Health
from headframe.model.event import Event
from headframe.model.people import Scope
from headframe.server.api.problems import answers
from headframe.server.api.workloads import visible_project
from headframe.server.auth import Principal
from headframe.server.context import PUBLIC, Context
from headframe.version import VERSION

STREAM_PAGE = 500
KEEPALIVE_S = 10.0
After = Annotated[int, Parameter(ge=0, le=2**62)]


@get("/v1/health", opt={"scope": PUBLIC})
async def health(context: Context) -> Health:
    """Answers while the server does; says nothing that a stranger should not know."""
    return Health(status="ok", version=VERSION, leader=context.leadership.epoch is not None)


@get("/v1/events", opt={"scope": Scope.READ}, responses=answers(404))
async def list_events(
    context: Context, request: Request[Principal, Any, Any], after: After = 0, project: str | None = None,
    subject: Annotated[str | None, Parameter(max_length=200)] = None, limit: Annotated[int, Parameter(ge=1, le=500)] = 100,
    latest: bool = False,  # noqa: FBT001, FBT002 - a query parameter
) -> EventPage:  # fmt: skip
    """Events after a cursor, oldest first; `latest` starts near the end instead."""
    wanted = visible_project(context, request.user, project)
    start = max(after, context.world.version - limit) if latest else after
    rows = await context.read(lambda store: store.events(start, limit, wanted, subject))
    return EventPage(items=tuple(map(event_view, rows)), next=rows[-1].seq if rows else start)


@get("/v1/events/stream", opt={"scope": Scope.READ}, responses=answers(404))
async def stream_events(context: Context, request: Request[Principal, Any, Any], after: After = 0, project: str | None = None) -> ServerSentEvent:
    """Events as they are committed; reconnecting with `Last-Event-ID` (or `after`) misses none."""
    last = request.headers.get("Last-Event-ID", "")
    start = int(last) if last.isdigit() and len(last) < 18 else after or context.world.version
    return ServerSentEvent(_stream(context, visible_project(context, request.user, project), start))


async def _stream(context: Context, project: str | None, after: int) -> AsyncIterator[ServerSentEventMessage]:
    while True:
        start = after
        rows = await context.read(lambda store, start=start: store.events(start, STREAM_PAGE, project))
        for row in rows:
            yield ServerSentEventMessage(event="event", id=str(row.seq), data=msgspec.json.encode(event_view(row)).decode())
        after = rows[-1].seq if rows else after
        if not rows:
            await context.changed(KEEPALIVE_S)
            yield ServerSentEventMessage(comment="still here")


def event_view(event: Event) -> EventView:
    """An event without the rows behind it."""
    return EventView(seq=event.seq, at_ms=event.at_ms, kind=event.kind, subject=event.subject, project_id=event.project_id, text=event.text)


ROUTER = Router("/", route_handlers=[health, list_events, stream_events])
