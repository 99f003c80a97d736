"""The fleet as sold: nodes, offers, prices."""

import re
from typing import Annotated, Any

from litestar import Request, Router, get, post, put
from litestar.params import Parameter

from headframe.model.api import CheckBody, NodeBody, NodeHours, NodePage, NodeReadings, NodeView, Offer, Offers, PricesBody, ServiceBody
from headframe.model.command import MoveNode, Qualify, SetNode, SetPrices
from headframe.model.errors import BadRequest
from headframe.model.fleet import Gpu, Node
from headframe.model.ids import NodeId, RackId
from headframe.model.money import PriceList
from headframe.model.people import Scope
from headframe.model.states import GpuState, NodeState, Service
from headframe.model.units import MILLI, MS_PER_HOUR, NANO_PER_USD
from headframe.model.world import World
from headframe.server.api.problems import answers
from headframe.server.auth import Principal
from headframe.server.context import Context, drawn, found, named
from headframe.store.base import PAGE_MAX

WHY_MAX = 200
DEADLINE_MAX_S = 30 * 86_400
DAYS_MAX = 41
"""A page of hours; a thousand of them."""
WATTS_MAX = 10_000_000
TAINTS_MAX = 20
_TAINT = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
PRICE_MAX_NANO = 10_000 * NANO_PER_USD

_ADDRESS = re.compile(r"[A-Za-z0-9._:-]{0,253}")


@get("/v1/nodes", opt={"scope": Scope.OPERATOR}, responses=answers())
async def list_nodes(
    context: Context, after: Annotated[str, Parameter(max_length=200)] = "", limit: Annotated[int, Parameter(ge=1, le=500)] = 100
) -> NodePage:
    """Nodes by id, with what is free on each."""
    keys = [key for key in sorted(context.world.nodes) if key > after][:limit]
    items = tuple(node_view(context.world, context.world.nodes[key]) for key in keys)
    return NodePage(items=items, next=keys[-1] if len(keys) == limit else "")


@get("/v1/nodes/{node:str}", opt={"scope": Scope.OPERATOR}, responses=answers(404))
async def show_node(context: Context, node: str) -> NodeView:
    """One node by id or name, with what runs on it."""
    world = context.world
    return node_view(world, node_named(world, node), with_work=True)


@put("/v1/nodes/{node:str}", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 422))
async def set_node(context: Context, request: Request[Principal, Any, Any], node: str, data: NodeBody) -> NodeView:
    """Which rack a node is in, which taints it has, what it draws when idle."""
    for name in filter(None, (data.rack, data.owner)):
        named(name)
    if len(data.taints or ()) > TAINTS_MAX or not all(_TAINT.fullmatch(taint) for taint in data.taints or ()):
        raise BadRequest(f"a taint is lower-case letters, digits and dashes, and there are at most {TAINTS_MAX}")
    watts_good(data.idle_w)
    row = node_named(context.world, node)

    def answer(world: World) -> NodeView:
        return node_view(world, world.nodes[row.id])

    if data.address is not None and not _ADDRESS.fullmatch(data.address):
        raise BadRequest("an address is a name or a number of a machine, such as 10.0.0.7 or gpu-7.example", "leave out the port and the protocol")
    command = SetNode(
        node_id=row.id, rack_id=RackId(drawn("rack")), rack=data.rack, taints=data.taints, idle_w=data.idle_w, address=data.address, owner=data.owner
    )
    return await context.write(request, command, answer)


@put("/v1/nodes/{node:str}/service", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 422))
async def move_node(context: Context, request: Request[Principal, Any, Any], node: str, data: ServiceBody) -> NodeView:
    """Drain a node, put it back into service, or retire it."""
    said(data.why)
    if data.deadline_s is not None and (data.to is not Service.DRAIN or not 0 <= data.deadline_s <= DEADLINE_MAX_S):
        raise BadRequest("a deadline is for draining, and at most 30 days away")
    row = node_named(context.world, node)

    def answer(world: World) -> NodeView:
        return node_view(world, world.nodes[row.id])

    until_ms = 0 if data.deadline_s is None else context.clock_ms() + data.deadline_s * 1000
    return await context.write(request, MoveNode(node_id=row.id, to=data.to, by=request.user.key.id, why=data.why, until_ms=until_ms), answer)


@get("/v1/offers", opt={"scope": Scope.READ}, responses=answers())
async def list_offers(context: Context) -> Offers:
    """What can be had and what it costs."""
    return offers(context.world)


@get("/v1/prices", opt={"scope": Scope.READ}, responses=answers())
async def show_prices(context: Context) -> PriceList:
    """The price list in force."""
    return context.world.prices()[-1]


@post("/v1/prices", opt={"scope": Scope.OPERATOR}, responses=answers(409, 422))
async def set_prices(context: Context, request: Request[Principal, Any, Any], data: PricesBody) -> PriceList:
    """A new price list from now on; running work pays it from now on too, never for what it already used."""
    amounts = [data.cpu_core_hour_nano, data.memory_gib_hour_nano, data.disk_gib_hour_nano]
    amounts += [nano for price in data.gpus for nano in (price.on_demand_nano, price.spot_nano, price.reserved_nano)]
    if any(nano is not None and not 0 <= nano <= PRICE_MAX_NANO for nano in amounts):
        raise BadRequest("a price is between 0 and 10,000 US$ per hour, in nano-dollars")
    if any(not price.model or len(price.model) > 80 or not price.model.isprintable() for price in data.gpus) or len(data.gpus) > 500:
        raise BadRequest("a GPU model is 1 to 80 printable characters, and there are at most 500")

    def answer(world: World) -> PriceList:
        return world.prices()[-1]

    command = SetPrices(gpus=data.gpus, cpu_core_hour_nano=data.cpu_core_hour_nano, memory_gib_hour_nano=data.memory_gib_hour_nano,
                        disk_gib_hour_nano=data.disk_gib_hour_nano)  # fmt: skip
    return await context.write(request, command, answer)


@post("/v1/nodes/{node:str}/check", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 422))
async def check_node(context: Context, request: Request[Principal, Any, Any], node: str, data: CheckBody) -> NodeView:
    """Check a node's cards that hold no work, and grade them anew. Its cards are `testing` until the check has ended."""
    key = node_named(context.world, node).id

    def answer(world: World) -> NodeView:
        return node_view(world, world.nodes[key], with_work=True)

    command = Qualify(node_id=key, depth=data.depth, id=context.new_workload(), by=request.user.key.id)
    return await context.write(request, command, answer)


@get("/v1/nodes/{node:str}/readings", opt={"scope": Scope.OPERATOR}, responses=answers(404))
async def node_readings(context: Context, node: str) -> NodeReadings:
    """What a node's cards say of themselves now, and said in the last hours."""
    world = context.world
    cards = sorted(world.node_gpus[node_named(world, node).id].values(), key=lambda gpu: gpu.index)
    return NodeReadings(items=tuple(context.watch.reading(gpu.id) for gpu in cards))


@get("/v1/nodes/{node:str}/hours", opt={"scope": Scope.OPERATOR}, responses=answers(404))
async def node_hours(context: Context, node: str, days: Annotated[int, Parameter(ge=1, le=DAYS_MAX)] = 7) -> NodeHours:
    """What a node's cards said hour by hour, as kept in the store for a year and a month."""
    key, since_ms = node_named(context.world, node).id, context.clock_ms() - days * 24 * MS_PER_HOUR
    return NodeHours(items=tuple(await context.read(lambda store: store.hours(key, since_ms, PAGE_MAX))))


def said(why: str) -> None:
    """BadRequest where that is no reason that can be shown."""
    if len(why) > WHY_MAX or not why.isprintable():
        raise BadRequest(f"a reason is at most {WHY_MAX} printable characters")


def watts_good(watts: int | None) -> None:
    """BadRequest where that is no power."""
    if watts is not None and not 0 <= watts <= WATTS_MAX:
        raise BadRequest("power is between 0 and 10 MW, in watts")


def node_named(world: World, name: str) -> Node:
    """The node of that id or name, or NotFound."""
    named = next((row for row in world.nodes.values() if row.name == name), None)
    return found(world.nodes.get(NodeId(name)) or named, f"node {name[:80]!r}", "node ls")


def node_view(world: World, node: Node, *, with_work: bool = False) -> NodeView:
    """A node with its cards, what is free, and on request what holds the rest."""
    free = world.free[node.id]
    work = [allocation for _, allocation in sorted(world.on_node.get(node.id, {}).items())] if with_work else []
    cards = sorted(world.node_gpus[node.id].values(), key=lambda gpu: gpu.index)
    return NodeView(
        node=node, gpus=tuple(cards), cpu_free_milli=free.cpu_milli, memory_free_mib=free.memory_mib,
        disk_free_mib=free.disk_mib, gpu_free_milli=sum(free.gpu_milli.values()), allocations=tuple(work),
    )  # fmt: skip


def offers(world: World) -> Offers:
    """GPU models in the fleet by name, with counts and prices per hour."""
    prices = world.prices()[-1]
    models: dict[str, list[Gpu]] = {}
    for gpu in world.gpus.values():
        if gpu.state is GpuState.READY and world.nodes[gpu.node_id].state is not NodeState.RETIRED:
            models.setdefault(gpu.model, []).append(gpu)
    items: list[Offer] = []
    for model in sorted(models):
        price, cards = prices.of(model), models[model]
        free = sum(
            world.free[card.node_id].gpu_milli.get(card.id, 0) == MILLI for card in cards if world.nodes[card.node_id].state is NodeState.READY
        )
        items.append(Offer(model=model, memory_mib=max(card.memory_mib for card in cards), total=len(cards), free=free,
                           on_demand_nano=price.on_demand_nano, spot_nano=price.spot_nano, reserved_nano=price.reserved_nano))  # fmt: skip
    return Offers(items=tuple(items), cpu_core_hour_nano=prices.cpu_core_hour_nano, memory_gib_hour_nano=prices.memory_gib_hour_nano,
                  disk_gib_hour_nano=prices.disk_gib_hour_nano, price_version=prices.version)  # fmt: skip


ROUTER = Router(
    "/", route_handlers=[list_nodes, show_node, check_node, node_readings, node_hours, set_node, move_node, list_offers, show_prices, set_prices]
)
