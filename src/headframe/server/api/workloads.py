"""Workloads: quote, submit, list, show, stop, remove, logs."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, delete, get, post
from litestar.params import Parameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from headframe.billing.meter import accrued_nano
from headframe.billing.price import price_at, rate_nano
from headframe.model.api import LogPage, QuoteView, SubmitBody, WorkloadPage, WorkloadView
from headframe.model.command import StopWorkload, Submit
from headframe.model.errors import BadRequest, Conflicting, NotFound
from headframe.model.ids import AllocationId, WorkloadId, allocation_id
from headframe.model.people import Scope
from headframe.model.states import WORKLOAD_ENDS, WorkloadState
from headframe.model.work import JOB, WORKSPACE, Allocation, Workload
from headframe.model.world import World
from headframe.placement import explain
from headframe.server.api.problems import answers
from headframe.server.auth import Principal, may_see, project_for
from headframe.server.context import Context, cursor_of, found, read_cursor
from headframe.server.decide import quote_for
from headframe.server.tick import admitter
from headframe.server.workload_file import Parsed, parse
from headframe.store.base import Query

FOLLOW_S = 0.15
STILL_HERE_S = 5.0
LOG_PAGE = 1000
Limit = Annotated[int, Parameter(ge=1, le=500)]


@post("/v1/quotes", opt={"scope": Scope.READ}, status_code=200, responses=answers(402, 404, 409, 422))
async def quote(context: Context, request: Request[Principal, Any, Any], data: SubmitBody) -> QuoteView:
    """What this workload would cost, or why it can't run; nothing is changed."""
    parsed = _parsed(data)
    project = project_for(context.world, request.user, data.project)
    offered = quote_for(context.world, parsed.spec, project, context.clock_ms())
    return QuoteView(quote=offered, warnings=parsed.warnings)


@post("/v1/workloads", opt={"scope": Scope.MEMBER}, responses=answers(402, 404, 409, 413, 422))
async def submit(context: Context, request: Request[Principal, Any, Any], data: SubmitBody) -> WorkloadView:
    """Submit a workload: quoted, its first hour held, and queued, in one commit."""
    parsed = _parsed(data)
    if parsed.spec.type not in {JOB, WORKSPACE}:
        raise BadRequest(f"this file is of type {parsed.spec.type}", "apply it: `headframe apply -f`, POST /v1/endpoints")
    workdir_known(context, data.workdir)
    project = project_for(context.world, request.user, data.project)
    key = context.new_workload()
    spec = parsed.spec if parsed.spec.name else msgspec.structs.replace(parsed.spec, name=f"job-{key[-6:]}")
    command = Submit(id=key, project_id=project.id, key_id=request.user.key.id, spec=spec, workdir_digest=data.workdir)

    def answer(world: World) -> WorkloadView:
        return msgspec.structs.replace(_view(context, world, world.workloads[key]), warnings=parsed.warnings)

    return await context.write(request, command, answer)


@get("/v1/workloads", opt={"scope": Scope.READ}, responses=answers(404))
async def list_workloads(
    context: Context, request: Request[Principal, Any, Any], project: str | None = None,
    in_state: Annotated[WorkloadState | None, Parameter(query="state")] = None,
    name: str | None = None, before: str | None = None, limit: Limit = 100,
) -> WorkloadPage:  # fmt: skip
    """Workloads, newest first, without endpoints' replicas: those are shown with their endpoint."""
    wanted = visible_project(context, request.user, project)
    query = Query(
        project_id=wanted,
        parent_id="",
        states=(in_state,) if in_state else (),
        name=_clean(name),
        before=read_cursor(before),
        limit=limit,
    )
    rows = await context.read(lambda store: store.page(Workload, query))
    following = cursor_of(rows[-1].submitted_ms, rows[-1].id) if len(rows) == limit else ""
    return WorkloadPage(items=tuple(_view(context, context.world, row) for row in rows), next=following)


@get("/v1/workloads/{workload:str}", opt={"scope": Scope.READ}, responses=answers(404))
async def show(context: Context, request: Request[Principal, Any, Any], workload: str) -> WorkloadView:
    """One workload, by id or by name (the newest of that name), with all its attempts."""
    row = await find(context, request.user, workload)
    attempts = await context.read(lambda store: store.page(Allocation, Query(parent_id=row.id)))
    return msgspec.structs.replace(_view(context, context.world, row), allocations=tuple(attempts))


@post("/v1/workloads/{workload:str}/stop", opt={"scope": Scope.MEMBER}, status_code=202, responses=answers(404, 409, 422))
async def stop(context: Context, request: Request[Principal, Any, Any], workload: str) -> WorkloadView:
    """Ask it to end; one that has ended already stays as it is."""
    row = await find(context, request.user, workload)

    def answer(world: World) -> WorkloadView:
        return _view(context, world, world.workloads.get(row.id, row))

    return await context.write(request, StopWorkload(id=row.id), answer)


@delete("/v1/workloads/{workload:str}", opt={"scope": Scope.MEMBER}, status_code=204, responses=answers(404, 409))
async def remove(context: Context, request: Request[Principal, Any, Any], workload: str) -> None:
    """Delete an ended workload's logs and files. Its history and its bill stay, since the ledger refers to them."""
    row = await find(context, request.user, workload)
    if row.state not in WORKLOAD_ENDS:
        raise Conflicting(f"{row.name} is {row.state}", "stop it first: `headframe stop`")
    for attempt in range(1, row.attempt + 1):
        gone = await _attempt(context, row, attempt)
        if gone:
            await context.engine.discard(gone)


@get("/v1/workloads/{workload:str}/logs", opt={"scope": Scope.READ}, responses=answers(404))
async def logs(
    context: Context, request: Request[Principal, Any, Any], workload: str, after: Annotated[int, Parameter(ge=0)] = 0,
    attempt: Annotated[int, Parameter(ge=0, le=1_000_000)] = 0, limit: Limit = 500,
) -> LogPage:  # fmt: skip
    """Log lines of an attempt (the latest by default) from a cursor on."""
    row = await find(context, request.user, workload)
    return await log_page(context, row, attempt or row.attempt, after, limit)


@get("/v1/workloads/{workload:str}/logs/stream", opt={"scope": Scope.READ}, responses=answers(404))
async def follow(
    context: Context, request: Request[Principal, Any, Any], workload: str, after: Annotated[int, Parameter(ge=0)] = 0,
    attempt: Annotated[int, Parameter(ge=0, le=1_000_000)] = 0,
) -> ServerSentEvent:  # fmt: skip
    """Log lines as they come, through later attempts too, until the workload ends: events `line`, `state`, `end`."""
    row = await find(context, request.user, workload)
    last = request.headers.get("Last-Event-ID", "").split(":")
    if len(last) == 2 and all(part.isdigit() and len(part) < 18 for part in last):
        attempt, after = int(last[0]), int(last[1])
    return ServerSentEvent(_follow(context, row.id, attempt or max(1, row.attempt), after))


async def _follow(context: Context, key: WorkloadId, attempt: int, after: int) -> AsyncIterator[ServerSentEventMessage]:
    told, quiet_s = "", 0.0
    while True:
        row = found(await current(context, key), "such workload")
        page = await log_page(context, row, attempt, after, LOG_PAGE)
        for line in page.lines:
            yield ServerSentEventMessage(event="line", id=f"{attempt}:{line.next}", data=_text(line))
        after = page.next
        state = f"{row.state}:{row.attempt}:{page.done}"
        if state != told:
            told = state
            yield ServerSentEventMessage(event="state", data=_text(_view(context, context.world, row)))
        if page.lines:
            quiet_s = 0.0
            continue
        if quiet_s >= STILL_HERE_S:  # a proxy or a client would take a longer silence for a lost link
            quiet_s = 0.0
            yield ServerSentEventMessage(comment="still here")
        quiet_s += FOLLOW_S
        if page.done and row.attempt > attempt:
            attempt, after = attempt + 1, 0
        elif page.done and row.state in WORKLOAD_ENDS:
            yield ServerSentEventMessage(event="end", data=_text(_view(context, context.world, row)))
            return
        elif page.state is None or page.done:
            await context.changed(1.0)
        else:
            await asyncio.sleep(FOLLOW_S)


async def log_page(context: Context, row: Workload, attempt: int, after: int, limit: int) -> LogPage:
    """One page of an attempt's log; `done` is judged before the lines are read, so that none is missed."""
    allocation = await _attempt(context, row, attempt)
    over = allocation.reason is not None if allocation else row.state in WORKLOAD_ENDS
    lines = await context.engine.logs(allocation, after, limit) if allocation else ()
    return LogPage(
        attempt=attempt, state=allocation.state if allocation else None, reason=allocation.reason if allocation else None,
        lines=tuple(lines), next=lines[-1].next if lines else after, done=over and len(lines) < limit,
    )  # fmt: skip


async def _attempt(context: Context, row: Workload, attempt: int) -> Allocation | None:
    key = allocation_id(row.id, attempt) if attempt else AllocationId("")
    return context.world.allocations.get(key) or await context.read(lambda store: store.get(Allocation, key))


async def current(context: Context, key: WorkloadId) -> Workload | None:
    """The workload now: from the world while it lives, else from the store."""
    live = context.world.workloads.get(key)
    return live or await context.read(lambda store: store.get(Workload, key))


async def find(context: Context, principal: Principal, wanted: str) -> Workload:
    """By id or name, among what this key may see; NotFound tells nothing about others."""
    row = await current(context, WorkloadId(wanted)) if _clean(wanted) else None
    if row is None and _clean(wanted):
        named = Query(project_id=principal.key.project_id or None, name=wanted, limit=1)
        rows = await context.read(lambda store: store.page(Workload, named))
        row = rows[0] if rows else None
        row = context.world.workloads.get(row.id, row) if row else None
    if row is None or not may_see(principal, row.project_id):
        raise NotFound(f"no workload {wanted[:80]!r}")
    return row


def visible_project(context: Context, principal: Principal, wanted: str | None) -> str | None:
    """Which project's rows to list: the key's own, the one named, or for operators all."""
    if principal.key.project_id or wanted:
        return project_for(context.world, principal, wanted).id
    return None


def view(context: Context, row: Workload) -> WorkloadView:
    """A workload with its present cost and reasons."""
    return _view(context, context.world, row)


def _view(context: Context, world: World, row: Workload) -> WorkloadView:
    now_ms = context.clock_ms()
    if row.state in WORKLOAD_ENDS:
        return WorkloadView(workload=row, accrued_nano=row.cost_nano - row.credited_nano)
    if row.state is WorkloadState.QUEUED:
        waits = explain(world, row, now_ms, admitter(world, now_ms, context.dispatcher.budgets)) if row.id in world.queued else ()
        return WorkloadView(workload=row, accrued_nano=row.cost_nano - row.credited_nano, waits=waits)
    allocation = world.allocations.get(allocation_id(row.id, row.attempt)) if row.attempt else None
    if allocation is None:
        return WorkloadView(workload=row, accrued_nano=row.cost_nano)
    rate = rate_nano(price_at(world.prices(), now_ms), allocation.parts, allocation.tier)
    earlier = row.cost_nano - row.credited_nano - allocation.cost_nano
    return WorkloadView(workload=row, rate_nano=rate, accrued_nano=earlier + accrued_nano(allocation, now_ms, world.prices()))


def _parsed(data: SubmitBody) -> Parsed:
    return parse(data.file)


def workdir_known(context: Context, digest: str) -> None:
    """NotFound where it was not uploaded."""
    if digest and not _is_digest(digest, context):
        raise NotFound(f"no uploaded workdir {digest[:80]!r}", "upload it first: PUT /v1/workdirs")


def _is_digest(text: str, context: Context) -> bool:
    return len(text) == 64 and all(char in "0123456789abcdef" for char in text) and (context.workdirs / f"{text}.tar").exists()


def _clean(text: str | None) -> str | None:
    if text is not None and ("\0" in text or len(text) > 200):
        raise BadRequest("a name has at most 200 characters and no NUL")
    return text or None


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


ROUTER = Router("/", route_handlers=[quote, submit, list_workloads, show, stop, remove, logs, follow])
