"""Endpoints: apply, list, show, stop; and what gateways say and hear."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Router, get, post
from litestar.params import Parameter

from headframe.billing.meter import accrued_nano
from headframe.billing.price import price_at, rate_nano
from headframe.model.api import SubmitBody
from headframe.model.command import ApplyEndpoint, StopEndpoint, TakeReport
from headframe.model.endpoint import Endpoint, EndpointState, GatewayAnswer, GatewayReport, Granted, Served, Table
from headframe.model.errors import BadRequest, Forbidden, NotFound, Unavailable
from headframe.model.ids import GatewayId, KeyId, allocation_id, allowance_id
from headframe.model.people import Scope
from headframe.model.serving import Pricing
from headframe.model.serving_api import EndpointList, EndpointView, ReplicaView
from headframe.model.states import WORKLOAD_ENDS
from headframe.model.work import ENDPOINT, Workload
from headframe.model.world import World
from headframe.placement import explain
from headframe.server.api.problems import answers
from headframe.server.api.workloads import workdir_known
from headframe.server.auth import Principal, may_see, project_for
from headframe.server.context import Context
from headframe.server.decide import decide
from headframe.server.serving import request_name, short
from headframe.server.tick import admitter
from headframe.server.workload_file import parse
from headframe.store.base import Query, Store

HOLD_S = 20.0
REPORT_BYTES_MAX = 32 * 1024 * 1024
NAMED_MAX = 20_000
"""Requests that a batch may tell of one by one."""


@post("/v1/endpoints", opt={"scope": Scope.MEMBER}, responses=answers(402, 404, 409, 413, 422))
async def apply(context: Context, request: Request[Principal, Any, Any], data: SubmitBody) -> EndpointView:
    """Serve a model, or change the endpoint of that name: its replicas are replaced one by one where they would differ."""
    parsed = parse(data.file)
    if parsed.spec.type != ENDPOINT or parsed.spec.serve is None:
        raise BadRequest("this file is a job's", "submit it: `headframe run`, POST /v1/workloads")
    if parsed.spec.serve.pricing is Pricing.PER_TOKEN and request.user.key.scope is not Scope.OPERATOR:
        raise Forbidden("tokens are sold by the operator: all projects can ask such an endpoint, and its machines' time is nobody's bill")
    workdir_known(context, data.workdir)
    project = project_for(context.world, request.user, data.project)
    fresh = context.new_workload()
    command = ApplyEndpoint(id=fresh, project_id=project.id, key_id=request.user.key.id, spec=parsed.spec, workdir_digest=data.workdir)

    def answer(world: World) -> EndpointView:
        key = world.names[project.id, parsed.spec.name]
        return msgspec.structs.replace(view(context, world.endpoints[key]), warnings=parsed.warnings)

    return await context.write(request, command, answer)


@get("/v1/endpoints", opt={"scope": Scope.READ}, responses=answers(404))
async def list_endpoints(context: Context, request: Request[Principal, Any, Any], project: str | None = None) -> EndpointList:
    """What is served now, by name."""
    wanted = project_for(context.world, request.user, project).id if project else ""
    rows = [row for row in context.world.endpoints.values() if may_see(request.user, row.project_id) and wanted in {"", row.project_id}]
    return EndpointList(items=tuple(view(context, row) for row in sorted(rows, key=lambda row: (row.name, row.id))))


@get("/v1/endpoints/{endpoint:str}", opt={"scope": Scope.READ}, responses=answers(404))
async def show(context: Context, request: Request[Principal, Any, Any], endpoint: str) -> EndpointView:
    """One endpoint by id or name: its replicas, load and money."""
    return view(context, await find(context, request.user, endpoint))


@post("/v1/endpoints/{endpoint:str}/stop", opt={"scope": Scope.MEMBER}, status_code=202, responses=answers(404, 409, 422))
async def stop(context: Context, request: Request[Principal, Any, Any], endpoint: str) -> EndpointView:
    """End it and its replicas."""
    row = await find(context, request.user, endpoint)

    def answer(world: World) -> EndpointView:
        return view(context, world.endpoints.get(row.id, row))

    return await context.write(request, StopEndpoint(id=row.id), answer)


@get("/v1/gateway/table", opt={"scope": Scope.GATEWAY}, responses=answers())
async def table(context: Context, run: Annotated[str, Parameter(max_length=64)] = "", after: Annotated[int, Parameter(ge=0)] = 0) -> Table:
    """What changed since then: answered when something did, or after some seconds."""
    if context.leadership.epoch is None:
        raise Unavailable("another server leads now", "ask that one")
    return await context.table.after(run, after, HOLD_S)


@post(
    "/v1/gateway/report", opt={"scope": Scope.GATEWAY}, status_code=200, request_max_body_size=REPORT_BYTES_MAX, responses=answers(409, 413, 422, 503)
)
async def report(context: Context, data: GatewayReport) -> GatewayAnswer:
    """How loaded an endpoint is, what was served, what may be spent. Repeating it changes nothing."""
    if context.leadership.epoch is None:
        raise Unavailable("another server leads now", "ask that one")
    _sane(data)
    if context.demand.hear(data, context.clock_ms()):
        context.wake()
    if data.batch is not None or data.wishes or data.gateway not in context.world.gateways:
        earlier = await _earlier(context, data)
        await context.desk.write(lambda world, now_ms: decide(world, TakeReport(report=data, earlier=earlier), now_ms))
    return _answer(context, data)


async def _earlier(context: Context, data: GatewayReport) -> dict[str, Served]:
    """The last try of each request that the batch names."""
    names = dict.fromkeys(request_name(item) for item in data.batch.items if item.request_id) if data.batch else {}

    def last(store: Store) -> dict[str, Served]:
        rows = ((name, store.page(Served, Query(name=name, limit=1))) for name in names)
        return {name: row[0] for name, row in rows if row}

    return await context.read(last) if names else {}


def _sane(data: GatewayReport) -> None:
    """A gateway is trusted with money, but not to send nonsense."""
    items = data.batch.items if data.batch else ()
    if sum(bool(item.request_id) for item in items) > NAMED_MAX:
        raise BadRequest(f"a batch names at most {NAMED_MAX} requests")
    if not (8 < len(data.gateway) <= 40 and data.gateway.startswith("gw-") and data.gateway.isascii() and "." not in data.gateway):
        raise BadRequest("a gateway's id is gw- and its own letters")
    if any(min(item.amount_nano, item.prompt, item.completion, item.cached, item.requests) < 0 or item.gateway_id != data.gateway for item in items):
        raise BadRequest("what was served is a gateway's own, and nothing of it is below zero")
    if any(min(wish.honoured_nano, wish.wanted_nano) < 0 for wish in data.wishes):
        raise BadRequest("what may be spent is not below zero")


def _answer(context: Context, data: GatewayReport) -> GatewayAnswer:
    world, gateway = context.world, context.world.gateways.get(data.gateway)
    wishes = {(wish.project_id, wish.key_id): wish for wish in data.wishes}
    items, none = data.batch.items if data.batch else (), KeyId("")
    touched = dict.fromkeys([*wishes, *((item.project_id, none) for item in items), *((item.project_id, item.key_id) for item in items)])
    granted: list[Granted] = []
    for project, key in touched:
        row = world.allowances.get(allowance_id(GatewayId(data.gateway), key or project))
        wish = wishes.get((project, key))
        if row is None and wish is None and key:
            continue  # without a budget
        payer = world.keys.get(key) if key else world.projects.get(project)
        why = short(payer, wish, row) if wish is not None and payer is not None else ""
        sums = (row.granted_nano, row.spent_nano) if row else (0, 0)
        granted.append(Granted(project_id=project, key_id=key, granted_nano=sums[0], spent_nano=sums[1], why=why))
    count = len(context.demand.gateways(context.clock_ms()))
    return GatewayAnswer(batch=gateway.batch if gateway else 0, granted=tuple(granted), gateways=max(1, count))


async def find(context: Context, principal: Principal, wanted: str) -> Endpoint:
    """By id or name, the living one first; NotFound tells nothing about others."""
    if "\0" in wanted or len(wanted) > 200:
        raise BadRequest("a name has at most 200 characters and no NUL")
    rows = [row for row in context.world.endpoints.values() if wanted in {row.id, row.name} and may_see(principal, row.project_id)]
    if rows:
        return min(rows, key=lambda row: (row.created_ms, row.id))
    row = await context.read(lambda store: store.get(Endpoint, wanted))
    if row is None:
        named = Query(project_id=principal.key.project_id or None, name=wanted, limit=1)
        row = next(iter(await context.read(lambda store: store.page(Endpoint, named))), None)
    if row is None or not may_see(principal, row.project_id):
        raise NotFound(f"no endpoint {wanted[:80]!r}", "list them: `headframe endpoint ls`")
    return row


def view(context: Context, row: Endpoint) -> EndpointView:
    """An endpoint with its replicas, its load and what it costs now."""
    world, now_ms, demand = context.world, context.clock_ms(), context.demand
    replicas = tuple(
        _replica(context, world, each, now_ms) for each in sorted(world.replicas.get(row.id, {}).values(), key=lambda each: each.submitted_ms)
    )
    cost = row.billed_nano + sum(each.accrued_nano for each in replicas)
    return EndpointView(
        endpoint=row, base_url=context.gateway_url and f"{context.gateway_url}/v1", replicas=replicas, rate_nano=sum(each.rate_nano for each in replicas), cost_nano=cost,
        total=demand.total(row.id), moments=tuple(demand.moments(row.id)) if row.state is not EndpointState.STOPPED else (),
        gateways=len(demand.gateways(now_ms)),
    )  # fmt: skip


def _replica(context: Context, world: World, row: Workload, now_ms: int) -> ReplicaView:
    key = allocation_id(row.id, 1)
    told = context.demand.replica(row.endpoint_id, key)
    held = world.allocations.get(key)
    waits = explain(world, row, now_ms, admitter(world, now_ms, context.dispatcher.budgets)) if row.id in world.queued else ()
    rate = rate_nano(price_at(world.prices(), now_ms), held.parts, held.tier) if held and row.state not in WORKLOAD_ENDS else 0
    accrued = accrued_nano(held, now_ms, world.prices()) if held else row.cost_nano
    where = world.nodes[held.parts[0].node_id].name if held and held.parts[0].node_id in world.nodes else ""
    return ReplicaView(
        workload=row, ready=told.ready, node=where, in_flight=told.in_flight, rate_nano=rate, accrued_nano=accrued - row.credited_nano,
        waits=waits, why=told.why,
    )  # fmt: skip


ROUTER = Router("/", route_handlers=[apply, list_endpoints, show, stop, table, report])
