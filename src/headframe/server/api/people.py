"""Projects, keys, and who a key is."""

import secrets
from typing import Any

import msgspec
from litestar import Request, Router, delete, get, post, put

from headframe.billing.ledger import month_spent_nano
from headframe.model.api import BudgetBody, CreditBody, KeyBody, KeyList, KeyMade, KeyView, ProjectBody, ProjectList, QuotaBody, Whoami
from headframe.model.command import CreateKey, CreateProject, GrantCredit, RevokeKey, SetBudget, SetLimits, SetQuota
from headframe.model.errors import BadRequest, Forbidden, NotFound
from headframe.model.ids import ENTROPY_BYTES, KeyId, ProjectId, base32
from headframe.model.people import ALLOWS, Key, Project, Scope
from headframe.model.serving_api import LimitsBody
from headframe.model.units import NANO_PER_USD, money
from headframe.model.world import World
from headframe.server.api.problems import answers
from headframe.server.auth import Principal, may_see, project_for
from headframe.server.context import Context, drawn, named

AMOUNT_MAX_NANO = 1_000_000 * NANO_PER_USD
QUOTA_MAX = LIMIT_MAX = 10**9
EXPIRY_MAX_S = 10 * 366 * 86_400


@get("/v1/whoami", opt={"scope": Scope.READ}, responses=answers())
async def whoami(context: Context, request: Request[Principal, Any, Any]) -> Whoami:
    """The key that is calling."""
    key = request.user.key
    project = context.world.projects.get(key.project_id)
    return Whoami(key_id=key.id, name=key.name, scope=key.scope, project_id=key.project_id, project_name=project.name if project else "")


@get("/v1/projects", opt={"scope": Scope.READ}, responses=answers())
async def list_projects(context: Context, request: Request[Principal, Any, Any]) -> ProjectList:
    """The projects that this key may see."""
    seen = [project for project in context.world.projects.values() if may_see(request.user, project.id)]
    return ProjectList(items=tuple(sorted(seen, key=lambda project: project.name)))


@post("/v1/projects", opt={"scope": Scope.OPERATOR}, responses=answers(409, 422))
async def create_project(context: Context, request: Request[Principal, Any, Any], data: ProjectBody) -> Project:
    """A new tenant, without credit."""
    named(data.name)
    if not 0 <= data.quota_gpus_milli <= QUOTA_MAX:
        raise BadRequest("a quota is between 0 (none) and a million GPUs, in thousandths")
    key = ProjectId(drawn("pr"))

    def answer(world: World) -> Project:
        return world.projects[key]

    return await context.write(request, CreateProject(id=key, name=data.name, quota_gpus_milli=data.quota_gpus_milli), answer)


@get("/v1/projects/{project:str}", opt={"scope": Scope.READ}, responses=answers(404))
async def show_project(context: Context, request: Request[Principal, Any, Any], project: str) -> Project:
    """One project by id or name, with its balances."""
    return project_for(context.world, request.user, project)


@post("/v1/projects/{project:str}/credit", opt={"scope": Scope.OPERATOR}, responses=answers(402, 404, 409, 422))
async def grant_credit(context: Context, request: Request[Principal, Any, Any], project: str, data: CreditBody) -> Project:
    """Give credit, or take back what is unspent."""
    if not 0 < abs(data.amount_nano) <= AMOUNT_MAX_NANO:
        raise BadRequest("an amount is up to a million US$, in nano-dollars, and not zero")
    if len(data.memo) > 200 or not data.memo.isprintable():
        raise BadRequest("a memo has at most 200 printable characters")
    row = project_for(context.world, request.user, project)

    def answer(world: World) -> Project:
        return world.projects[row.id]

    command = GrantCredit(project_id=row.id, amount_nano=data.amount_nano, memo=data.memo, id=base32(secrets.token_bytes(ENTROPY_BYTES)))
    return await context.write(request, command, answer)


@put("/v1/projects/{project:str}/budget", opt={"scope": Scope.ADMIN}, responses=answers(404, 409, 422))
async def set_budget(context: Context, request: Request[Principal, Any, Any], project: str, data: BudgetBody) -> Project:
    """The project's own limits per hour and month; 0 lifts one."""
    if not 0 <= data.hour_nano <= AMOUNT_MAX_NANO or not 0 <= data.month_nano <= AMOUNT_MAX_NANO:
        raise BadRequest("a budget is between 0 (none) and a million US$, in nano-dollars")
    row = project_for(context.world, request.user, project)

    def answer(world: World) -> Project:
        return world.projects[row.id]

    return await context.write(request, SetBudget(project_id=row.id, hour_nano=data.hour_nano, month_nano=data.month_nano), answer)


@put("/v1/projects/{project:str}/quota", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 422))
async def set_quota(context: Context, request: Request[Principal, Any, Any], project: str, data: QuotaBody) -> Project:
    """The most that a project may hold (0 lifts it), what it is guaranteed, and whether its work shares no machine with others'."""
    if not 0 <= data.quota_gpus_milli <= QUOTA_MAX or not 0 <= data.guaranteed_gpus_milli <= QUOTA_MAX:
        raise BadRequest("a quota is between 0 (none) and a million GPUs, in thousandths")
    row = project_for(context.world, request.user, project)

    def answer(world: World) -> Project:
        return world.projects[row.id]

    command = SetQuota(
        project_id=row.id,
        quota_gpus_milli=data.quota_gpus_milli,
        guaranteed_gpus_milli=data.guaranteed_gpus_milli,
        whole_machines=data.whole_machines,
    )
    return await context.write(request, command, answer)


@put("/v1/projects/{project:str}/limits", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 422))
async def set_limits(context: Context, request: Request[Principal, Any, Any], project: str, data: LimitsBody) -> Project:
    """What the project's keys together may ask of endpoints per minute; 0 lifts a limit."""
    _limits_good(data.rpm, data.tpm)
    row = project_for(context.world, request.user, project)

    def answer(world: World) -> Project:
        return world.projects[row.id]

    return await context.write(request, SetLimits(project_id=row.id, rpm=data.rpm, tpm=data.tpm), answer)


@get("/v1/keys", opt={"scope": Scope.ADMIN}, responses=answers())
async def list_keys(context: Context, request: Request[Principal, Any, Any]) -> KeyList:
    """Keys without their secrets: all for an operator, the project's own for its admin."""
    seen = [key for key in context.world.keys.values() if may_see(request.user, key.project_id)]
    return KeyList(items=tuple(_key_view(key, context.clock_ms()) for key in sorted(seen, key=lambda key: (key.created_ms, key.id))))


@post("/v1/keys", opt={"scope": Scope.ADMIN}, responses=answers(404, 409, 422))
async def create_key(context: Context, request: Request[Principal, Any, Any], data: KeyBody) -> KeyMade:
    """A new key, never of more scope than the caller's; its text is in this answer alone."""
    named(data.name)
    if data.scope not in ALLOWS[request.user.key.scope] and request.user.key.scope is not Scope.OPERATOR:
        raise Forbidden(f"a key of scope {request.user.key.scope} can't create one of scope {data.scope}")
    if data.scope in {Scope.NODE, Scope.JOIN}:
        raise BadRequest("a machine's keys are made by joining", "`headframe node add` prints the command for it")
    _limits_good(data.rpm, data.tpm)
    if not 0 <= data.expires_in_s <= EXPIRY_MAX_S:
        raise BadRequest("a key expires within ten years, or never (0)")
    everywhere = data.scope in {Scope.OPERATOR, Scope.GATEWAY, Scope.SIGNAL}
    project = ProjectId("") if everywhere else project_for(context.world, request.user, data.project).id
    if not 0 <= data.budget_nano <= AMOUNT_MAX_NANO or (data.budget_nano and not project):
        raise BadRequest(f"a key's budget is between 0 (none) and {money(AMOUNT_MAX_NANO)} a month, and only a project's key spends anything")
    now_ms = context.clock_ms()
    expires_ms = now_ms + data.expires_in_s * 1000 if data.expires_in_s else 0
    key, secret = context.auth.new_key(data.name, data.scope, project, now_ms, expires_ms, rpm=data.rpm, tpm=data.tpm, budget_nano=data.budget_nano)

    def answer(world: World) -> KeyMade:
        return KeyMade(key=_key_view(world.keys[key.id], now_ms), secret=secret)

    return await context.write(request, CreateKey(key=key), answer, kept=lambda made: msgspec.structs.replace(made, secret=""))


@delete("/v1/keys/{key:str}", opt={"scope": Scope.ADMIN}, status_code=200, responses=answers(404, 409, 422))
async def revoke_key(context: Context, request: Request[Principal, Any, Any], key: str) -> KeyView:
    """The key is refused from now on."""
    row = context.world.keys.get(KeyId(key))
    if row is None or not may_see(request.user, row.project_id):
        raise NotFound(f"no key {key[:80]!r}", "list them: `headframe key ls`")

    def answer(world: World) -> KeyView:
        return _key_view(world.keys[row.id], context.clock_ms())

    return await context.write(request, RevokeKey(key_id=row.id), answer)


def _limits_good(rpm: int, tpm: int) -> None:
    if not (0 <= rpm <= LIMIT_MAX and 0 <= tpm <= LIMIT_MAX):
        raise BadRequest(f"a limit per minute is between 0 (none) and {LIMIT_MAX:,}")


def _key_view(key: Key, now_ms: int) -> KeyView:
    return KeyView(id=key.id, name=key.name, scope=key.scope, project_id=key.project_id, created_ms=key.created_ms,
                   expires_ms=key.expires_ms, revoked_ms=key.revoked_ms, budget_nano=key.budget_nano, spent_nano=month_spent_nano(key, now_ms))  # fmt: skip


ROUTER = Router(
    "/",
    route_handlers=[
        whoami,
        list_projects,
        create_project,
        show_project,
        grant_credit,
        set_budget,
        set_quota,
        set_limits,
        list_keys,
        create_key,
        revoke_key,
    ],
)
