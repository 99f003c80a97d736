"""Machines that inventories list, awaited until they join."""

from typing import Any

from litestar import Request, Router, get, post

from headframe.model.api import RigList, RigsBody
from headframe.model.command import ListRigs
from headframe.model.people import Scope
from headframe.model.world import World
from headframe.server.api.problems import answers
from headframe.server.auth import Principal
from headframe.server.context import Context
from headframe.server.rigs import good

BODY_BYTES_MAX = 32 * 1024 * 1024


@get("/v1/rigs", opt={"scope": Scope.OPERATOR}, responses=answers())
async def list_rigs(context: Context) -> RigList:
    """All of them, by name."""
    return _view(context.world)


@post("/v1/rigs", opt={"scope": Scope.OPERATOR}, request_max_body_size=BODY_BYTES_MAX, responses=answers(413, 422))
async def add_rigs(context: Context, request: Request[Principal, Any, Any], data: RigsBody) -> RigList:
    """Await these machines; those that are known are brought up to date."""
    good(data.rigs)
    return await context.write(request, ListRigs(rigs=data.rigs), _view)


def _view(world: World) -> RigList:
    return RigList(items=tuple(sorted(world.rigs.values(), key=lambda rig: rig.name)))


ROUTER = Router("/", route_handlers=[list_rigs, add_rigs])
