"""Projects, what they may spend and ask, keys and prices, decided."""

from collections.abc import Iterator

import msgspec

from headframe.billing.ledger import Memo, grant_credit
from headframe.model.command import CreateKey, CreateProject, GrantCredit, RevokeKey, SetBudget, SetLimits, SetPrices
from headframe.model.errors import NameTaken, NoCredit, NotFound
from headframe.model.event import Draft, Kind
from headframe.model.ids import ProjectId
from headframe.model.money import EntryKind, PriceList
from headframe.model.people import Project
from headframe.model.units import money, usd
from headframe.model.world import World

Command = CreateProject | SetBudget | SetLimits | GrantCredit | CreateKey | RevokeKey | SetPrices


def people(world: World, command: Command, now_ms: int) -> Iterator[Draft]:
    """Each draft is to be applied before the next is asked for."""
    match command:
        case CreateProject():
            yield _create_project(world, command, now_ms)
        case SetBudget():
            yield _set_budget(world, command)
        case SetLimits():
            yield _set_limits(world, command)
        case GrantCredit():
            yield _grant_credit(world, command, now_ms)
        case CreateKey():
            yield _create_key(world, command)
        case RevokeKey():
            yield from _revoke_key(world, command, now_ms)
        case SetPrices():
            yield _set_prices(world, command, now_ms)


def project_of(world: World, project_id: ProjectId) -> Project:
    """The project, or NotFound."""
    project = world.projects.get(project_id)
    if project is None:
        raise NotFound(f"no project {project_id}", "list them: `headframe project ls`")
    return project


def _create_project(world: World, command: CreateProject, now_ms: int) -> Draft:
    if any(project.name == command.name for project in world.projects.values()):
        raise NameTaken(f"there is a project named {command.name!r}", "choose another name")
    project = Project(id=command.id, name=command.name, created_ms=now_ms, quota_gpus_milli=command.quota_gpus_milli)
    return Draft(kind=Kind.PROJECT_CREATED, subject=project.id, project_id=project.id,
                 text=f"project {project.name} created", rows=(project,))  # fmt: skip


def _set_budget(world: World, command: SetBudget) -> Draft:
    project = project_of(world, command.project_id)
    after = msgspec.structs.replace(project, budget_hour_nano=command.hour_nano, budget_month_nano=command.month_nano)
    text = f"budget of {project.name}: {usd(command.hour_nano, 2)}/h, {usd(command.month_nano, 2)}/month (0 is no limit)"
    return Draft(kind=Kind.PROJECT_CHANGED, subject=project.id, project_id=project.id, text=text, rows=(after,))


def _set_limits(world: World, command: SetLimits) -> Draft:
    project = project_of(world, command.project_id)
    after = msgspec.structs.replace(project, rpm=command.rpm, tpm=command.tpm)
    text = f"{project.name} may ask endpoints {command.rpm or 'any number of'} requests and {command.tpm or 'any number of'} tokens per minute"
    return Draft(kind=Kind.PROJECT_CHANGED, subject=project.id, project_id=project.id, text=text, rows=(after,))


def _grant_credit(world: World, command: GrantCredit, now_ms: int) -> Draft:
    project = project_of(world, command.project_id)
    if project.credit_nano + command.amount_nano < 0:
        raise NoCredit(f"only {money(project.credit_nano)} of {project.name}'s credit is unspent", "take back at most that")
    memo = Memo(posting=f"credit/{command.id}", kind=EntryKind.CREDIT, at_ms=now_ms, text=command.memo or "credit granted")
    moved = grant_credit(project, command.amount_nano, memo)
    return Draft(kind=Kind.CREDIT_GRANTED, subject=project.id, project_id=project.id,
                 text=f"{usd(command.amount_nano, 2)} of credit for {project.name}", rows=(*moved.entries, moved.project))  # fmt: skip


def _create_key(world: World, command: CreateKey) -> Draft:
    key = command.key
    if key.project_id:
        project_of(world, key.project_id)
    return Draft(kind=Kind.KEY_CREATED, subject=key.id, project_id=key.project_id,
                 text=f"key {key.name} ({key.scope}) created", rows=(key,))  # fmt: skip


def _revoke_key(world: World, command: RevokeKey, now_ms: int) -> Iterator[Draft]:
    key = world.keys.get(command.key_id)
    if key is None:
        raise NotFound(f"no key {command.key_id}", "list them: `headframe key ls`")
    if not key.revoked_ms:
        after = msgspec.structs.replace(key, revoked_ms=now_ms)
        yield Draft(kind=Kind.KEY_REVOKED, subject=key.id, project_id=key.project_id, text=f"key {key.name} revoked", rows=(after,))


def _set_prices(world: World, command: SetPrices, now_ms: int) -> Draft:
    current = world.prices()[-1]
    named = {price.model: price for price in (*current.gpus, *command.gpus)}
    version = current.version + 1

    def kept(new: int | None, old: int) -> int:
        return old if new is None else new

    prices = PriceList(
        id=f"prices-{version}", version=version, effective_ms=max(now_ms, current.effective_ms + 1),
        gpus=tuple(named[model] for model in sorted(named)),
        cpu_core_hour_nano=kept(command.cpu_core_hour_nano, current.cpu_core_hour_nano),
        memory_gib_hour_nano=kept(command.memory_gib_hour_nano, current.memory_gib_hour_nano),
        disk_gib_hour_nano=kept(command.disk_gib_hour_nano, current.disk_gib_hour_nano),
    )  # fmt: skip
    return Draft(kind=Kind.PRICES_SET, subject="prices", text=f"price list {version} in force", rows=(prices,))
