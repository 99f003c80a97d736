"""The console's routes: sign-in, pages, and the two forms that write. Reads the world, renders, decides nothing."""

from importlib.resources import files
from typing import Annotated, Any
from urllib.parse import quote as url_quote

import msgspec
from litestar import MediaType, Request, Response, Router, get, post
from litestar.enums import RequestEncodingType
from litestar.params import Body, Parameter

from headframe.console import views
from headframe.console.floor import COLOURS, floor
from headframe.model.api import Bill
from headframe.model.command import StopWorkload, Submit
from headframe.model.errors import BadRequest, Forbidden, HeadframeError, Unauthenticated
from headframe.model.ids import GpuId
from headframe.model.money import Entry, Quote, Usage
from headframe.model.people import ALLOWS, Project, Scope
from headframe.model.states import WorkloadState
from headframe.model.units import MS_PER_HOUR
from headframe.model.work import Allocation, Workload
from headframe.server.api.events import event_view
from headframe.server.api.fleet import node_named, node_view, offers
from headframe.server.api.money import month_invoice
from headframe.server.api.workloads import find, log_page, view, visible_project
from headframe.server.auth import SESSION_COOKIE, SESSION_MS, Principal, may_see, project_for
from headframe.server.context import PUBLIC, Context, cursor_of, found, read_cursor
from headframe.server.decide import decide, live_rate_nano, quote_for
from headframe.server.workload_file import parse
from headframe.store.base import PAGE_MAX, Query

DAYS_SHOWN = 30
PAGE, RECENT, LOG_LINES = 50, 12, 1000
EXAMPLE = """type: job
name: hello
run: |
  for i in 1 2 3 4 5; do echo "step $i"; sleep 1; done
resources: {gpu: 0, cpu: 1, memory: 1GB}
max_duration: 10m
"""
_STATIC = {
    "style.css": "text/css; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "talk.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HTML = MediaType.HTML
Form = Annotated[dict[str, str], Body(media_type=RequestEncodingType.URL_ENCODED)]
Req = Request[Principal, Any, Any]


@get("/static/{name:str}", opt={"scope": PUBLIC}, include_in_schema=False)
async def static(name: str) -> Response[bytes]:
    """Style, script, icon: a closed list."""
    kind = found(_STATIC.get(name), f"file {name[:40]!r}")
    data = files("headframe.console").joinpath("static", name).read_bytes()
    return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})


@get("/sign-in", opt={"scope": PUBLIC}, include_in_schema=False, media_type=_HTML)
async def sign_in_page(path: Annotated[str, Parameter(max_length=500)] = "/") -> str:
    """The door."""
    return views.sign_in("", _local(path))


@post("/console/sign-in", opt={"scope": PUBLIC}, include_in_schema=False, status_code=200)
async def sign_in(context: Context, request: Request[Any, Any, Any], data: Form) -> Response[str]:
    """A key for a session cookie."""
    _same_origin(request)
    path = _local(data.get("path", "/"))
    try:
        key = context.auth.check(context.world, data.get("key", "").strip(), context.clock_ms())
        if Scope.READ not in ALLOWS[key.scope]:
            raise Forbidden("a node's key opens no console")
    except HeadframeError as error:
        return Response(views.sign_in(f"{error.detail}. {error.next_step}.", path), status_code=error.status, media_type=_HTML)
    answer = redirect(path)
    answer.set_cookie(
        SESSION_COOKIE, context.auth.sign_in(key, context.clock_ms()), httponly=True, samesite="strict", secure=context.secure,
        max_age=SESSION_MS // 1000, path="/",
    )  # fmt: skip
    return answer


@post("/console/sign-out", opt={"scope": Scope.READ}, include_in_schema=False, status_code=200)
async def sign_out(context: Context, request: Req, data: Form) -> Response[str]:
    """End this browser's session."""
    own_form(context, request, data)
    answer = redirect("/sign-in")
    answer.delete_cookie(SESSION_COOKIE, path="/")
    return answer


@get("/", opt={"scope": Scope.READ}, include_in_schema=False, media_type=_HTML)
async def overview(context: Context, request: Req) -> str:
    """GPUs, queue, money per hour."""
    world, project = context.world, request.user.key.project_id
    projects = _projects(context, request.user)
    rate = live_rate_nano(world, {row.id for row in projects}, context.clock_ms())
    live = sorted((w for w in world.workloads.values() if may_see(request.user, w.project_id) and not w.ended_ms), key=lambda w: -w.submitted_ms)
    recent = await context.read(lambda store: store.events(max(0, store.version() - 10 * RECENT), PAGE_MAX, project or None))
    counts = views.count(world, rate, project)
    return views.overview(frame_of(context, request), counts, [view(context, w) for w in live[:PAGE]],
                          [event_view(event) for event in reversed(recent[-RECENT:])], projects)  # fmt: skip


@get("/workloads", opt={"scope": Scope.READ}, include_in_schema=False, media_type=_HTML)
async def workloads(
    context: Context, request: Req, in_state: Annotated[WorkloadState | None, Parameter(query="state")] = None, before: str | None = None
) -> str:
    """The list."""
    query = Query(
        project_id=visible_project(context, request.user, None), states=(in_state,) if in_state else (), before=read_cursor(before), limit=PAGE
    )
    rows = await context.read(lambda store: store.page(Workload, query))
    following = cursor_of(rows[-1].submitted_ms, rows[-1].id) if len(rows) == PAGE else ""
    return views.workloads(frame_of(context, request), [view(context, row) for row in rows], following, in_state or "")


@get("/workloads/{workload:str}", opt={"scope": Scope.READ}, include_in_schema=False, media_type=_HTML)
async def workload(context: Context, request: Req, workload: str) -> str:
    """One workload."""
    row = await find(context, request.user, workload)
    attempts = await context.read(lambda store: store.page(Allocation, Query(parent_id=row.id)))
    usage = await context.read(lambda store: store.page(Usage, Query(parent_id=row.id, limit=PAGE)))
    events = await context.read(lambda store: store.events(0, PAGE_MAX, row.project_id, row.id))
    log = await log_page(context, row, max(1, row.attempt), 0, LOG_LINES)
    item = msgspec.structs.replace(view(context, row), allocations=tuple(attempts))
    return views.workload(frame_of(context, request), item, log, [event_view(event) for event in reversed(events)], usage)


@post("/console/workloads/{workload:str}/stop", opt={"scope": Scope.MEMBER}, include_in_schema=False, status_code=200)
async def stop(context: Context, request: Req, workload: str, data: Form) -> Response[str]:
    """The Stop button."""
    own_form(context, request, data)
    row = await find(context, request.user, workload)
    await context.desk.write(lambda world, now_ms: decide(world, StopWorkload(id=row.id), now_ms))
    return redirect(f"/workloads/{row.id}")


@get("/new", opt={"scope": Scope.MEMBER}, include_in_schema=False, media_type=_HTML)
async def new_page(context: Context, request: Req) -> str:
    """An example to change."""
    projects = _projects(context, request.user)
    return views.new(frame_of(context, request), EXAMPLE, None, None, projects, projects[0].id if projects else "", offers(context.world))


@post("/new", opt={"scope": Scope.MEMBER}, include_in_schema=False, status_code=200)
async def new(context: Context, request: Req, data: Form) -> Response[str]:
    """Quote or submit the form; mistakes come back beside what was written."""
    own_form(context, request, data)
    text, wanted = data.get("file", "").replace("\r\n", "\n"), data.get("project", "")
    quote: Quote | None = None
    error: HeadframeError | None = None
    try:
        project = project_for(context.world, request.user, wanted)
        parsed = parse(text)
        quote = quote_for(context.world, parsed.spec, project, context.clock_ms())
        if data.get("do") == "submit":
            return redirect(f"/workloads/{await _submit(context, request, project, text)}")
    except HeadframeError as refused:
        error = refused
    page = views.new(frame_of(context, request), text, quote, error, _projects(context, request.user), wanted, offers(context.world))
    return Response(page, status_code=error.status if error else 200, media_type=_HTML)


async def _submit(context: Context, request: Req, project: Project, text: str) -> str:
    key = context.new_workload()
    spec = parse(text).spec
    named = spec if spec.name else msgspec.structs.replace(spec, name=f"job-{key[-6:]}")
    command = Submit(id=key, project_id=project.id, key_id=request.user.key.id, spec=named)
    await context.desk.write(lambda world, now_ms: decide(world, command, now_ms))
    return key


@get("/floor", opt={"scope": Scope.OPERATOR}, include_in_schema=False, media_type=_HTML)
async def floor_page(context: Context, request: Req, by: str = "state") -> str:
    """Every card as one cell."""
    if by not in COLOURS:
        raise BadRequest(f"the floor is coloured by {', '.join(COLOURS)}")
    return views.floor(frame_of(context, request), floor(context.world, context.watch.latest, by))


@get("/nodes", opt={"scope": Scope.OPERATOR}, include_in_schema=False, media_type=_HTML)
async def nodes(context: Context, request: Req) -> str:
    """All nodes."""
    world = context.world
    return views.nodes(frame_of(context, request), [node_view(world, world.nodes[key]) for key in sorted(world.nodes)])


@get("/nodes/{node:str}", opt={"scope": Scope.OPERATOR}, include_in_schema=False, media_type=_HTML)
async def node(context: Context, request: Req, node: str) -> str:
    """One node."""
    world = context.world
    item = node_view(world, node_named(world, node), with_work=True)
    subjects = [item.node.id, *(gpu.id for gpu in item.gpus)]
    each = await context.read(lambda store: [event for subject in subjects for event in store.events(0, PAGE_MAX, None, subject)])
    events = sorted(each, key=lambda event: event.seq)[-PAGE_MAX:]
    names: dict[str, str] = {a.id: world.workloads[a.workload_id].name for a in item.allocations if a.workload_id in world.workloads}
    said = {gpu.id: context.watch.reading(gpu.id) for gpu in item.gpus}
    return views.node(frame_of(context, request), item, said, names, [event_view(event) for event in reversed(events)])


@get("/gpus/{gpu:str}", opt={"scope": Scope.OPERATOR}, include_in_schema=False, media_type=_HTML)
async def gpu(context: Context, request: Req, gpu: str) -> str:
    """One card."""
    world = context.world
    card = found(world.gpus.get(GpuId(gpu)), f"GPU {gpu[:80]!r}", "node ls")
    events = await context.read(lambda store: store.events(0, PAGE_MAX, None, card.id))
    since_ms = context.clock_ms() - DAYS_SHOWN * 24 * MS_PER_HOUR
    kept = await context.read(lambda store: store.hours(card.node_id, since_ms, PAGE_MAX))
    hours = [(hour.hour_ms, said) for hour in kept for said in hour.cards if said.gpu_id == card.id]
    node, reading, told = world.nodes[card.node_id], context.watch.reading(card.id), [event_view(e) for e in reversed(events)]
    return views.gpu(frame_of(context, request), node, card, reading, hours, told)


@get("/billing", opt={"scope": Scope.READ}, include_in_schema=False, media_type=_HTML)
async def billing(context: Context, request: Req, project: str | None = None) -> str:
    """A project's month."""
    projects = _projects(context, request.user)
    bill, days, now_ms = None, [], context.clock_ms()
    if projects:
        row = project_for(context.world, request.user, project) if project or request.user.key.project_id else projects[0]
        usage = await context.read(lambda store: store.page(Usage, Query(project_id=row.id, limit=PAGE_MAX)))
        entries = await context.read(lambda store: store.page(Entry, Query(project_id=row.id, limit=PAGE)))
        days = views.per_day(usage, now_ms)
        made = await month_invoice(context, row.id, days[-1][0][:7])
        bill = Bill(project=row, invoice=made, usage=tuple(usage[:PAGE]), entries=tuple(entries))
    return views.billing(frame_of(context, request), bill, projects, days)


@get("/events", opt={"scope": Scope.READ}, include_in_schema=False, media_type=_HTML)
async def events(context: Context, request: Req, before: Annotated[int, Parameter(ge=0, le=2**62)] = 0) -> str:
    """What happened, newest first."""
    top = before - 1 if before else context.world.version
    start = max(0, top - 2 * PAGE)
    rows = await context.read(lambda store: store.events(start, top - start, request.user.key.project_id or None)) if top > start else []
    rows = [row for row in rows if row.seq <= top]
    return views.events(frame_of(context, request), [event_view(row) for row in reversed(rows)], start + 1)


def on_page_error(context: Context, request: Request[Any, Any, Any], error: HeadframeError) -> Response[str]:
    """A refusal where a person looks: to the door, or a page that says what to do."""
    if isinstance(error, Unauthenticated):
        return redirect("/sign-in?path=" + url_quote(_local(request.url.path)))
    user = request.scope.get("user")
    frame = frame_of(context, request) if isinstance(user, Principal) else None
    if frame is None:
        return Response(f"{error.detail}\n{error.next_step}\n", status_code=error.status, media_type=MediaType.TEXT)
    return Response(views.failure(frame, error), status_code=error.status, media_type=_HTML)


def frame_of(context: Context, request: Request[Any, Any, Any]) -> views.Frame:
    """What every page shows around it."""
    principal: Principal = request.user
    project = context.world.projects.get(principal.key.project_id)
    return views.Frame(
        who=principal.key.name, scope=principal.key.scope, project=project.name if project else "", csrf=context.auth.csrf(principal.session),
        path=request.url.path, now_ms=context.clock_ms(), leader=context.leadership.epoch is not None, operator=principal.key.scope is Scope.OPERATOR,
        note=context.note,
    )  # fmt: skip


def _projects(context: Context, principal: Principal) -> list[Project]:
    return sorted((p for p in context.world.projects.values() if may_see(principal, p.id)), key=lambda p: (p.created_ms, p.id))


def own_form(context: Context, request: Req, data: dict[str, str]) -> None:
    """A form counts only if it was served to this very session."""
    _same_origin(request)
    if not request.user.session or not context.auth.csrf_good(request.user.session, data.get("csrf", "")):
        raise Forbidden("this form is out of date", "reload the page and try again")


def _same_origin(request: Request[Any, Any, Any]) -> None:
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
        raise Forbidden("this form came from another site")


def _local(path: str) -> str:
    """A path of this console, never another site."""
    good = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if good else "/"


def redirect(path: str) -> Response[str]:
    """To another page."""
    return Response("", status_code=303, headers={"Location": path}, media_type=_HTML)


ROUTER = Router(
    "/",
    route_handlers=[
        static, sign_in_page, sign_in, sign_out, overview, workloads, workload, stop, new_page, new, floor_page, nodes, node, gpu, billing, events,
    ],
)  # fmt: skip
