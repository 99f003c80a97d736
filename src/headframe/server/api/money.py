"""The bill: usage, ledger entries, invoices."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from litestar import Request, Router, get
from litestar.params import Parameter

from headframe.billing.invoice import invoice
from headframe.billing.ledger import month_of
from headframe.model.api import Bill, EntryPage, UsagePage
from headframe.model.errors import BadRequest
from headframe.model.ids import ProjectId
from headframe.model.money import REVENUE_ACCOUNT, Entry, Invoice, Usage
from headframe.model.people import Scope
from headframe.server.api.problems import answers
from headframe.server.api.workloads import find, visible_project
from headframe.server.auth import Principal, project_for
from headframe.server.context import Context, cursor_of, read_cursor
from headframe.store.base import Query, every

Limit = Annotated[int, Parameter(ge=1, le=500)]
_MONTH = re.compile(r"^(20\d\d)-(0[1-9]|1[0-2])$")


@get("/v1/bill", opt={"scope": Scope.READ}, responses=answers(404))
async def bill(context: Context, request: Request[Principal, Any, Any], project: str | None = None, month: str | None = None) -> Bill:
    """A project's month: balances, invoice, and the newest usage and entries."""
    row = project_for(context.world, request.user, project)
    usage = await context.read(lambda store: store.page(Usage, Query(project_id=row.id, limit=50)))
    entries = await context.read(lambda store: store.page(Entry, Query(project_id=row.id, limit=50)))
    made = await month_invoice(context, row.id, month or month_of(context.clock_ms()))
    return Bill(project=row, invoice=made, usage=tuple(usage), entries=tuple(entries))


@get("/v1/usage", opt={"scope": Scope.READ}, responses=answers(404))
async def list_usage(
    context: Context, request: Request[Principal, Any, Any], project: str | None = None, workload: str | None = None,
    before: str | None = None, limit: Limit = 100,
) -> UsagePage:  # fmt: skip
    """Usage intervals, newest first."""
    query = await _query(context, request, project, workload, before, limit)
    rows = await context.read(lambda store: store.page(Usage, query))
    return UsagePage(items=tuple(rows), next=cursor_of(rows[-1].start_ms, rows[-1].id) if len(rows) == limit else "")


@get("/v1/entries", opt={"scope": Scope.READ}, responses=answers(404))
async def list_entries(
    context: Context, request: Request[Principal, Any, Any], project: str | None = None, workload: str | None = None,
    before: str | None = None, limit: Limit = 100,
) -> EntryPage:  # fmt: skip
    """Ledger entries, newest first; those of a posting sum to zero."""
    query = await _query(context, request, project, workload, before, limit)
    rows = await context.read(lambda store: store.page(Entry, query))
    return EntryPage(items=tuple(rows), next=cursor_of(rows[-1].at_ms, rows[-1].id) if len(rows) == limit else "")


@get("/v1/invoices/{month:str}", opt={"scope": Scope.READ}, responses=answers(404))
async def show_invoice(context: Context, request: Request[Principal, Any, Any], month: str, project: str | None = None) -> Invoice:
    """A month's invoice ("2026-11"): a fold over the entries."""
    return await month_invoice(context, project_for(context.world, request.user, project).id, month)


async def month_invoice(context: Context, project: ProjectId, month: str) -> Invoice:
    """The invoice of a month, from every revenue entry in it."""
    since_ms, until_ms = month_span(month)
    query = Query(project_id=project, name=REVENUE_ACCOUNT, since_ms=since_ms, until_ms=until_ms)
    return invoice(await context.read(lambda store: list(every(store, Entry, query))), project, month)


def month_span(month: str) -> tuple[int, int]:
    """The first instant (ms) of a month ("2026-11", UTC) and of the next; BadRequest where it is none."""
    match = _MONTH.fullmatch(month)
    if match is None:
        raise BadRequest("a month is written like 2026-11")
    year, number = int(match[1]), int(match[2])
    since, until = datetime(year, number, 1, tzinfo=UTC), datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(since.timestamp() * 1000), int(until.timestamp() * 1000)


async def _query(
    context: Context, request: Request[Principal, Any, Any], project: str | None, workload: str | None, before: str | None, limit: int
) -> Query:
    parent = (await find(context, request.user, workload)).id if workload else None
    return Query(project_id=visible_project(context, request.user, project), parent_id=parent, before=read_cursor(before), limit=limit)


ROUTER = Router("/", route_handlers=[bill, list_usage, list_entries, show_invoice])
