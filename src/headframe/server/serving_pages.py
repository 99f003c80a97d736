"""The console's pages of endpoints, and the playground, whose questions go to the gateway in the name of whoever is signed in."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import msgspec
from litestar import MediaType, Response, Router, get, post
from litestar.params import Parameter
from litestar.response import Stream

from headframe.console import views
from headframe.model.command import StopEndpoint
from headframe.model.endpoint import EndpointState
from headframe.model.errors import BadRequest, Conflicting, Unavailable
from headframe.model.people import Scope
from headframe.model.serving import Pricing
from headframe.server.api.endpoints import find, view
from headframe.server.api.events import event_view
from headframe.server.auth import may_see
from headframe.server.context import Context
from headframe.server.decide import decide
from headframe.server.pages import Form, Req, frame_of, own_form, redirect
from headframe.store.base import PAGE_MAX

TURNS_BYTES_MAX, TOKENS_MAX, TALK_S = 256 * 1024, 8192, 600.0
_HTML = MediaType.HTML


class Turn(msgspec.Struct, frozen=True):
    """One of a conversation."""

    role: str
    content: str


@get("/endpoints", opt={"scope": Scope.READ}, include_in_schema=False, media_type=_HTML)
async def endpoints(context: Context, request: Req) -> str:
    """What is served."""
    rows = sorted((row for row in context.world.endpoints.values() if may_see(request.user, row.project_id)), key=lambda row: (row.name, row.id))
    return views.endpoints(frame_of(context, request), [view(context, row) for row in rows])


@get("/endpoints/{endpoint:str}", opt={"scope": Scope.READ}, include_in_schema=False, media_type=_HTML)
async def endpoint(context: Context, request: Req, endpoint: str) -> str:
    """One endpoint."""
    row = await find(context, request.user, endpoint)
    events = await context.read(lambda store: store.events(0, PAGE_MAX, row.project_id, row.id))
    return views.endpoint(frame_of(context, request), view(context, row), [event_view(event) for event in reversed(events[-100:])])


@post("/console/endpoints/{endpoint:str}/stop", opt={"scope": Scope.MEMBER}, include_in_schema=False, status_code=200)
async def stop(context: Context, request: Req, endpoint: str, data: Form) -> Response[str]:
    """The Stop button."""
    own_form(context, request, data)
    row = await find(context, request.user, endpoint)
    await context.desk.write(lambda world, now_ms: decide(world, StopEndpoint(id=row.id), now_ms))
    return redirect(f"/endpoints/{row.id}")


@get("/playground", opt={"scope": Scope.READ}, include_in_schema=False, media_type=_HTML)
async def playground(context: Context, request: Req, endpoint: Annotated[str, Parameter(max_length=80)] = "") -> str:
    """A conversation."""
    sold = [row for row in context.world.endpoints.values() if may_see(request.user, row.project_id) or row.serving.pricing is Pricing.PER_TOKEN]
    rows = sorted((row for row in sold if row.state is EndpointState.ACTIVE), key=lambda row: (row.name, row.id))
    return views.playground(frame_of(context, request), [view(context, row) for row in rows], endpoint)


@post("/console/talk", opt={"scope": Scope.INFER}, include_in_schema=False, status_code=200)
async def talk(context: Context, request: Req, data: Form) -> Stream | Response[bytes]:
    """One answer, as it comes."""
    own_form(context, request, data)
    row = context.world.endpoints.get(data.get("endpoint", ""))  # pyright: ignore[reportArgumentType]
    if row is None or not (may_see(request.user, row.project_id) or row.serving.pricing is Pricing.PER_TOKEN):
        raise BadRequest("choose a model that is served", "reload the page")
    if not context.gateway_url:
        raise Conflicting("this server has no gateway", "start it without --no-gateway")
    turns, limit = _turns(data.get("turns", "")), data.get("max_tokens", "")
    if not limit.isdigit() or not 1 <= int(limit) <= TOKENS_MAX:
        raise BadRequest(f"an answer has 1 to {TOKENS_MAX} tokens")
    body: dict[str, Any] = {
        "model": row.serving.model or row.name,
        "messages": turns,
        "max_tokens": int(limit),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    http = httpx.AsyncClient(timeout=TALK_S, trust_env=False, verify=context.gateway_ca or True)
    asked = http.build_request("POST", f"{context.gateway_url}/v1/chat/completions", content=msgspec.json.encode(body),
                               headers={"Authorization": f"Bearer {context.auth.pass_for(request.user.key, context.clock_ms())}", "Content-Type": "application/json"})  # fmt: skip
    try:
        answer = await http.send(asked, stream=True)
    except httpx.TransportError as error:
        await http.aclose()
        raise Unavailable(f"the gateway does not answer: {error}", "try again; the operator's log says more") from None
    if answer.status_code != httpx.codes.OK:
        said = await answer.aread()
        await http.aclose()
        return Response(said, status_code=answer.status_code, media_type=MediaType.JSON)
    return Stream(_passed(http, answer), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _passed(http: httpx.AsyncClient, answer: httpx.Response) -> AsyncIterator[bytes]:
    """As it comes; a reader who leaves ends it."""
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()
        await http.aclose()


def _turns(text: str) -> list[Turn]:
    if len(text) > TURNS_BYTES_MAX:
        raise BadRequest("the conversation is too long", "reload the page to begin a new one")
    try:
        turns = msgspec.json.decode(text, type=list[Turn])
    except msgspec.DecodeError:
        raise BadRequest("this is no conversation", "reload the page") from None
    if not turns or any(turn.role not in {"user", "assistant", "system"} for turn in turns):
        raise BadRequest("a conversation has turns of user and assistant", "reload the page")
    return turns


ROUTER = Router("/", route_handlers=[endpoints, endpoint, stop, playground, talk])
