"""Engines that an operator adds: looked at before they are used, listed, compared with the ledger, removed."""

import getpass
from pathlib import Path
from typing import Annotated, Any

from litestar import Request, Router, delete, get, post
from litestar.params import Parameter

from headframe.engines.slurm.checks import examine
from headframe.listening import is_web_address
from headframe.model.api import EngineBody, EngineFinding, EngineList, EngineView, Reconciliation
from headframe.model.command import AddEngine, RemoveEngine
from headframe.model.engine import EngineSetup
from headframe.model.errors import BadRequest, Conflicting
from headframe.model.fleet import SLURM
from headframe.model.ids import EngineId
from headframe.model.people import Scope
from headframe.model.states import NodeState
from headframe.model.units import MS_PER_HOUR
from headframe.model.work import Allocation
from headframe.model.world import World
from headframe.server.api.problems import answers
from headframe.server.auth import Principal
from headframe.server.context import Context, found
from headframe.server.reconcile import compared
from headframe.store.base import Query, every

PATH_MAX, HOURS_MAX = 200, 24 * 90
SLURM_ID = EngineId(SLURM)


@post("/v1/engines", opt={"scope": Scope.OPERATOR}, responses=answers(409, 422, 503))
async def add_engine(context: Context, request: Request[Principal, Any, Any], data: EngineBody) -> EngineView:
    """Look at a Slurm cluster, and use it unless something about it is bad or only a look is wanted."""
    setup = _setup(data, context.clock_ms())
    findings = tuple(await examine(setup, context.clock_ms))
    bad = [each for each in findings if each.verdict == "bad"]
    if data.check_only:
        return _view(context.world, setup, findings)
    if bad:
        raise Conflicting(f"{bad[0].what}: {bad[0].finding}", bad[0].mend or "mend it, then add it again")

    def answer(world: World) -> EngineView:
        return _view(world, world.engines[SLURM_ID], findings)

    return await context.write(request, AddEngine(setup=setup, by=request.user.key.id), answer)


@get("/v1/engines", opt={"scope": Scope.OPERATOR}, responses=answers())
async def list_engines(context: Context) -> EngineList:
    """Engines that were added."""
    return EngineList(items=tuple(_view(context.world, row, ()) for _, row in sorted(context.world.engines.items())))


@post("/v1/engines/{engine:str}/check", opt={"scope": Scope.OPERATOR}, responses=answers(404))
async def check_engine(context: Context, engine: str) -> EngineView:
    """Look at an engine again."""
    row = _named(context, engine)
    return _view(context.world, row, tuple(await examine(row, context.clock_ms)))


@delete("/v1/engines/{engine:str}", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409), status_code=200)
async def remove_engine(context: Context, request: Request[Principal, Any, Any], engine: str) -> EngineList:
    """Use it no more."""
    row = _named(context, engine)

    def answer(world: World) -> EngineList:
        return EngineList(items=tuple(_view(world, each, ()) for _, each in sorted(world.engines.items())))

    return await context.write(request, RemoveEngine(engine_id=row.id, by=request.user.key.id), answer)


@get("/v1/engines/{engine:str}/reconciliation", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 503))
async def reconcile_engine(context: Context, engine: str, hours: Annotated[int, Parameter(ge=1, le=HOURS_MAX)] = 24) -> Reconciliation:
    """The ledger beside Slurm's own accounting, of what ended in the last hours."""
    row, since_ms = _named(context, engine), context.clock_ms() - hours * MS_PER_HOUR
    begun = await context.read(lambda store: list(every(store, Allocation, Query(since_ms=since_ms))))
    nodes = context.world.nodes
    ours = [each for each in begun if all(nodes[part.node_id].engine == SLURM for part in each.parts if part.node_id in nodes)]
    return await compared(row, ours, since_ms, context.clock_ms)


def _setup(data: EngineBody, now_ms: int) -> EngineSetup:
    for what, path in (("shared", data.shared), ("key_file", data.key_file), ("python", data.python)):
        if not path.startswith("/") or len(path) > PATH_MAX or not path.isprintable() or ".." in Path(path).parts:
            raise BadRequest(f"{what} is an absolute path of at most {PATH_MAX} printable characters")
    if not _is_address(data.url):
        raise BadRequest("url is slurmrestd's: http://…, https://… or unix:/path/to/its.sock")
    if data.accounts and "{project}" not in data.accounts:
        raise BadRequest("accounts names each project's own, such as hf-{project}")
    for what, name in (("user", data.user), ("partition", data.partition), ("accounts", data.accounts.replace("{project}", ""))):
        if name and not all(each.isascii() and (each.isalnum() or each in "-_.") for each in name):
            raise BadRequest(f"{what} has letters, digits, dots, dashes and underscores")
    user = data.user or getpass.getuser()
    return EngineSetup(id=SLURM_ID, url=data.url, key_file=data.key_file, user=user, shared=data.shared, partition=data.partition, python=data.python,
                       accounts=data.accounts, created_ms=now_ms)  # fmt: skip


def _is_address(url: str) -> bool:
    """Whether it has the form of slurmrestd's address."""
    return len(url) <= PATH_MAX and (is_web_address(url) or (url.startswith("unix:/") and url.isprintable()))


def _named(context: Context, engine: str) -> EngineSetup:
    return found(context.world.engines.get(EngineId(engine)), f"engine {engine[:80]!r}", "engine ls")


def _view(world: World, setup: EngineSetup, findings: tuple[EngineFinding, ...]) -> EngineView:
    there = [node for node in world.nodes.values() if node.engine == SLURM and node.state is not NodeState.RETIRED]
    ready = sum(node.state is NodeState.READY for node in there)
    return EngineView(
        setup=setup, answers=any(node.state is not NodeState.UNKNOWN for node in there), nodes=len(there), ready=ready, findings=findings
    )


ROUTER = Router("/", route_handlers=[add_engine, list_engines, check_engine, remove_engine, reconcile_engine])
