"""Machines that join, and what they say from then on. A machine's key is bound to it: it tells of nobody else, and reads nobody else's orders."""

import random
from pathlib import Path
from typing import Any

import msgspec
from litestar import Request, Router, get, post
from litestar.response import File

from headframe.engines.joined import JoinedEngine
from headframe.model.agent import (
    BATCHES_MAX,
    SEEN_MAX,
    TOLD_MAX,
    Account,
    AddBody,
    Batch,
    Heard,
    Hello,
    Invitation,
    Joined,
    Lines,
    Orders,
)
from headframe.model.command import CreateKey, Enrol, Join
from headframe.model.errors import BadRequest, Conflicting, Forbidden, NotFound, Unavailable
from headframe.model.fleet import JOINED
from headframe.model.health import Report
from headframe.model.ids import AllocationId, NodeId, ProjectId, RackId, is_allocation_id
from headframe.model.people import Scope
from headframe.model.states import NodeState
from headframe.model.world import World
from headframe.server.api.problems import answers
from headframe.server.auth import Principal
from headframe.server.context import Context, drawn, found, named
from headframe.server.decide import decide
from headframe.server.enrol import welcome

HOLD_S = (15.0, 25.0)
"""A question for orders is answered empty after a time between these: machines that came back together do not stay together."""
TWIN_MS = 60_000
"""A machine that spoke so lately is in service: another of the same identity is its twin."""
INVITED_MAX_S = 30 * 86_400
SAMPLES_MAX, XIDS_MAX = 64, 256
MACS_MAX = 32
TELLS_BYTES_MAX = 40 * 1024 * 1024
"""As many log lines as are told at once, all of the greatest length."""
AGE_MAX_MS = 3_600_000


@post("/v1/nodes/invitations", opt={"scope": Scope.OPERATOR}, responses=answers(409, 422))
async def invite(context: Context, data: AddBody) -> Invitation:
    """A token with which one machine may join, once."""
    joined_engine(context)
    if data.rack:
        named(data.rack)
    if not 60 <= data.expires_in_s <= INVITED_MAX_S:
        raise BadRequest("a token lives for a minute to 30 days")
    now_ms = context.clock_ms()
    key, text = context.auth.new_key(
        "a machine that is to join", Scope.JOIN, ProjectId(""), now_ms, now_ms + data.expires_in_s * 1000, rack=data.rack
    )
    await context.desk.write(lambda world, at_ms: decide(world, CreateKey(key=key), at_ms))
    return Invitation(key_id=key.id, token=text, pin=context.pin, expires_ms=key.expires_ms)


@post("/v1/agent/join", opt={"scope": Scope.JOIN}, responses=answers(409, 422, 503))
async def join(context: Context, request: Request[Principal, Any, Any], data: Hello) -> Joined:
    """Become one of the fleet; the token is used up by it."""
    engine, now_ms = joined_engine(context), context.clock_ms()
    node, gpus = welcome(data, now_ms)
    heard_ms, known = engine.heard_ms(node.id), context.world.nodes.get(node.id)
    if known is not None and (known.engine != JOINED or (heard_ms is not None and now_ms - heard_ms < TWIN_MS)):
        raise Conflicting(
            f"{known.name}, which is in service, has the same identity as this machine",
            "where its disk was copied: join with --new-identity; where its agent was just stopped: wait a minute",
        )
    key, text = context.auth.new_key(node.name, Scope.NODE, ProjectId(""), now_ms, node_id=node.id)
    command = Join(
        macs=tuple(mac.lower()[:17] for mac in data.macs[:MACS_MAX]),
        node=node,
        gpus=gpus,
        token=request.user.key.id,
        key=key,
        rack_id=RackId(drawn("rack")),
    )
    await context.desk.write(lambda world, at_ms: decide(world, command, at_ms))
    engine.expect([node.id])
    return Joined(node_id=node.id, name=context.world.nodes[node.id].name, key=text)


@post("/v1/agent/report", opt={"scope": Scope.NODE}, status_code=200, request_max_body_size=TELLS_BYTES_MAX, responses=answers(409, 413, 422, 503))
async def report(context: Context, request: Request[Principal, Any, Any], data: Account) -> Heard:
    """What a machine runs, and what its cards say."""
    engine, node_id = joined_engine(context), caller(context, request.user)
    if len(data.observations) > SEEN_MAX or len(data.batches) > BATCHES_MAX or sum(len(told.lines) for told in data.told) > TOLD_MAX:
        raise BadRequest(f"at most {SEEN_MAX} allocations, {BATCHES_MAX} batches and {TOLD_MAX} lines are told at once")
    named = [each.allocation_id for each in (*data.observations, *data.told)]
    if not all(map(is_allocation_id, named)):
        raise BadRequest("an allocation is named by its workload and its attempt, such as wl-0123456789abcdef.1")
    if data.hello is not None:
        await _again(context, node_id, data.hello)
    world, now_ms = context.world, context.clock_ms()
    for batch in data.batches:
        context.watch.hear(_own(world, node_id, batch), node_id, now_ms - batch.age_ms)
    context.miners.heard(node_id, data.readings)
    engine.hear(node_id, data, lambda key: _foreign(world, key, node_id), news=any(map(_urgent, data.batches)))
    return Heard()


@post("/v1/agent/orders", opt={"scope": Scope.NODE}, status_code=200, responses=answers(409, 503))
async def orders(context: Context, request: Request[Principal, Any, Any]) -> Orders:
    """What a machine is to do: answered when there is something, or empty after some seconds."""
    engine, node_id = joined_engine(context), caller(context, request.user)
    items = await engine.orders(node_id, random.uniform(*HOLD_S))  # noqa: S311 - only to spread machines out
    epoch = context.leadership.epoch
    if epoch is None:
        raise Unavailable("another server leads now", "ask again")
    return Orders(epoch=epoch, node_id=node_id, items=tuple(items))


@post("/v1/agent/lines", opt={"scope": Scope.NODE}, status_code=200, request_max_body_size=TELLS_BYTES_MAX, responses=answers(409, 413, 422, 503))
async def lines(context: Context, request: Request[Principal, Any, Any], data: Lines) -> Heard:
    """Log lines that somebody asked for."""
    joined_engine(context).answer(caller(context, request.user), data)
    return Heard()


@get("/v1/agent/workdirs/{digest:str}", opt={"scope": Scope.NODE}, responses=answers(404))
async def workdir(context: Context, request: Request[Principal, Any, Any], digest: str) -> File:
    """The archive of a workdir that work on this machine needs."""
    world, node_id = context.world, caller(context, request.user)
    needed = {world.workloads[held.workload_id].workdir_digest for held in world.on_node.get(node_id, {}).values()}
    archive = context.workdirs / f"{Path(digest).name}.tar"
    if digest not in needed or not archive.exists():
        raise NotFound("no such workdir for this machine")
    return File(path=archive, filename=archive.name, media_type="application/x-tar")


def joined_engine(context: Context) -> JoinedEngine:
    """The engine of machines that joined, where this server leads."""
    if context.joined is None:
        raise Conflicting("this is a demonstration: no machine can join it", "start a server: `headframe up`")
    if context.leadership.epoch is None:
        raise Unavailable("another server leads", "ask that one")
    return context.joined


def caller(context: Context, who: Principal) -> NodeId:
    """The machine that a key is bound to, while it is one of the fleet."""
    node = found(context.world.nodes.get(who.key.node_id), "machine for this key")
    if node.state is NodeState.RETIRED:
        raise Forbidden(f"{node.name} was retired")
    return node.id


async def _again(context: Context, node_id: NodeId, hello: Hello) -> None:
    """What a machine has may have changed: never which one it is, nor where it stands."""
    if hello.node.id != node_id:
        raise Forbidden("this key is another machine's")
    node, gpus = welcome(hello, context.clock_ms())
    known = context.world.nodes[node_id]
    command = Enrol(node=msgspec.structs.replace(node, site_id=known.site_id, rack_id=known.rack_id), gpus=gpus)
    await context.desk.write(lambda world, at_ms: decide(world, command, at_ms))


def _own(world: World, node_id: NodeId, batch: Batch) -> Report:
    """Readings of the machine's own cards."""
    told = batch.report
    if len(told.samples) > SAMPLES_MAX or len(told.xids) > XIDS_MAX or not 0 <= batch.age_ms <= AGE_MAX_MS:
        raise BadRequest(f"a batch has at most {SAMPLES_MAX} samples and {XIDS_MAX} Xids, and is at most an hour old")
    mine = world.node_gpus.get(node_id, {})
    return Report(samples=tuple(sample for sample in told.samples if sample.gpu_id in mine), xids=told.xids)


def _urgent(batch: Batch) -> bool:
    """Whether this is not to wait for the next tick's time: an Xid, or a card that is gone."""
    return bool(batch.report.xids) or not all(sample.present for sample in batch.report.samples)


def _foreign(world: World, key: AllocationId, node_id: NodeId) -> bool:
    known = world.allocations.get(key)
    return known is not None and all(part.node_id != node_id for part in known.parts)


ROUTER = Router("/", route_handlers=[invite, join, report, orders, lines, workdir])
