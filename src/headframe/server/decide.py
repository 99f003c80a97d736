"""Commands to drafts: the admitting decisions, pure, made on the world that the commit will be checked against.

A refusal is raised with its reason; nothing is half decided, since drafts count only when all of a command's are made.
"""

from collections.abc import Container, Iterator

import msgspec

from headframe.billing.ledger import Memo, hold, month_spent_nano
from headframe.billing.price import price_at, quote, rate_nano
from headframe.model.command import (
    AddEngine,
    ApplyEndpoint,
    Command,
    CreateKey,
    CreateProject,
    Enrol,
    Found,
    GrantCredit,
    Join,
    LimitAsic,
    ListRigs,
    RemoveAsic,
    RemoveEngine,
    RemoveFiller,
    RevokeKey,
    SetBudget,
    SetFiller,
    SetLimits,
    SetPrices,
    StopEndpoint,
    StopWorkload,
    Submit,
    TakeEvent,
    TakeReport,
    TakeSignal,
    TellAsics,
    TellCoin,
    TellMarket,
)
from headframe.model.errors import Conflicting, Infeasible, NameTaken, NoCredit, OverBudget, TooExpensive
from headframe.model.event import Draft, Kind
from headframe.model.fleet import Rack, Site
from headframe.model.ids import KeyId, ProjectId, RackId, SiteId, WorkloadId, allocation_id
from headframe.model.money import ANY_MODEL, EntryKind, GpuPrice, PriceList, Quote
from headframe.model.people import Project
from headframe.model.states import AllocationState, Reason, WorkloadState
from headframe.model.units import money, parse_usd
from headframe.model.work import Spec, Workload
from headframe.model.world import World
from headframe.placement import are_parts, at_most, explain, feasible, models
from headframe.reconcile.jobs import stop
from headframe.server.enrol import enrol
from headframe.server.machines import engines
from headframe.server.operate import operate
from headframe.server.people import people, project_of
from headframe.server.power import power
from headframe.server.serving import applied, served

SITE = SiteId("site-1")
RACK = RackId("rack-1")


def decide(world: World, command: Command, now_ms: int) -> Iterator[Draft]:
    """What `command` does to `world`; each draft is to be applied before the next is asked for."""
    match command:
        case Found():
            yield from _found(world, command, now_ms)
        case Enrol() | Join() | ListRigs():
            yield from enrol(world, command, now_ms)
        case CreateProject() | SetBudget() | SetLimits() | GrantCredit() | CreateKey() | RevokeKey() | SetPrices():
            yield from people(world, command, now_ms)
        case Submit():
            yield _submit(world, command, now_ms)
        case StopWorkload():
            yield from _stop(world, command, now_ms)
        case ApplyEndpoint():
            yield from applied(world, command, _priced(world, command.spec, project_of(world, command.project_id), now_ms), now_ms)
        case StopEndpoint() | TakeReport():
            yield from served(world, command, now_ms)
        case AddEngine() | RemoveEngine():
            yield from engines(world, command)
        case TellMarket() | TakeSignal() | TakeEvent() | TellCoin() | SetFiller() | RemoveFiller() | TellAsics() | RemoveAsic() | LimitAsic():
            yield from power(world, command, now_ms)
        case _:
            yield from operate(world, command, now_ms)


def quote_for(world: World, spec: Spec, project: Project, now_ms: int) -> Quote:
    """What `spec` would cost and what it would wait for now, or the refusal that submitting it would get."""
    waits = explain(world, _workload(spec, project, now_ms), now_ms)
    return msgspec.structs.replace(_priced(world, spec, project, now_ms, lines=True), waits=tuple(map(str, waits)))


def _priced(world: World, spec: Spec, project: Project, now_ms: int, *, lines: bool = False) -> Quote:
    if project.whole_machines and not spec.resources.exclusive:
        raise Conflicting(
            f"work of {project.name} may not share a machine with others', as the operator says",
            "say `exclusive: node` under `resources`, with as many GPUs as a machine has",
        )
    fewest = spec.sized(spec.least)
    answer = feasible(world, fewest)
    if not are_parts(answer):
        raise Infeasible("; ".join(map(str, answer)))
    needed = models(world, spec.resources.gpu) if spec.resources.gpu.milli else ()
    prices = price_at(world.prices(), now_ms)
    if spec.max_price_nano:
        cheapest = quote(prices, at_most(world, fewest), needed, project).rate_min_nano
        if cheapest > spec.max_price_nano:
            raise TooExpensive(f"max_price is {money(spec.max_price_nano)}/h, the cheapest that fits is {money(cheapest)}/h")
    return quote(prices, at_most(world, spec), needed, project, lines=lines)


def live_rate_nano(world: World, projects: Container[ProjectId], now_ms: int) -> int:
    """US$ per hour (nano) of what projects hold now. It looks at everything that runs."""
    prices = price_at(world.prices(), now_ms)
    return sum(rate_nano(prices, a.parts, a.tier) for a in world.held.values() if a.project_id in projects)


def _found(world: World, command: Found, now_ms: int) -> Iterator[Draft]:
    if world.sites:
        return
    site = Site(id=SITE, name=command.site_name, created_ms=now_ms, check_new=command.check_new)
    rack = Rack(id=RACK, site_id=SITE, name="rack 1", created_ms=now_ms)
    yield Draft(kind=Kind.SITE_CREATED, subject=SITE, text=f"site {site.name} founded", rows=(site, rack))
    yield Draft(kind=Kind.PRICES_SET, subject="prices", text="first price list", rows=(_first_prices(now_ms),))
    yield Draft(kind=Kind.KEY_CREATED, subject=command.key.id, text="operator key created", rows=(command.key,))


def _first_prices(now_ms: int) -> PriceList:
    """Where an operator has set nothing: below any listed cloud, above the power that a card draws. `headframe price` changes it."""
    any_gpu = GpuPrice(model=ANY_MODEL, on_demand_nano=parse_usd("0.30"), spot_nano=parse_usd("0.15"), reserved_nano=parse_usd("0.24"))
    return PriceList(
        id="prices-1", version=1, effective_ms=now_ms, gpus=(any_gpu,), cpu_core_hour_nano=parse_usd("0.01"),
        memory_gib_hour_nano=parse_usd("0.002"), disk_gib_hour_nano=parse_usd("0.0001"),
    )  # fmt: skip


def _submit(world: World, command: Submit, now_ms: int) -> Draft:
    spec, project = command.spec, project_of(world, command.project_id)
    if (project.id, spec.name) in world.names:
        raise NameTaken(f"{spec.name!r} is the name of a live workload of this project")
    offered = _priced(world, spec, project, now_ms)
    _within_budget(project, offered, now_ms)
    if offered.hold_nano > project.credit_nano:
        raise NoCredit(f"this needs {money(offered.hold_nano)} held, {money(project.credit_nano)} of credit is left")
    workload = msgspec.structs.replace(
        _workload(spec, project, now_ms), id=command.id, key_id=command.key_id, workdir_digest=command.workdir_digest,
        held_nano=offered.hold_nano,
    )  # fmt: skip
    memo = Memo(posting=f"hold/{workload.id}", kind=EntryKind.HOLD, at_ms=now_ms, workload_id=workload.id, text=f"{spec.name}: held at submit")
    moved = hold(project, offered.hold_nano, memo)
    text = f"{spec.name}: queued at {money(offered.rate_max_nano)}/h or less, {money(offered.hold_nano)} held"
    return Draft(kind=Kind.WORKLOAD_QUEUED, subject=workload.id, project_id=project.id, text=text,
                 rows=(*moved.entries, moved.project, workload))  # fmt: skip


def _within_budget(project: Project, offered: Quote, now_ms: int) -> None:
    hour, month = project.budget_hour_nano, project.budget_month_nano
    if hour and offered.rate_max_nano > hour:
        raise OverBudget(f"this costs {money(offered.rate_max_nano)}/h, the project's budget is {money(hour)}/h")
    spent = month_spent_nano(project, now_ms) + project.held_nano
    if month and spent + offered.hold_nano > month:
        raise OverBudget(f"this needs {money(offered.hold_nano)} held; {money(spent)} of the month's {money(month)} is spent or held already")


def _workload(spec: Spec, project: Project, now_ms: int) -> Workload:
    return Workload(
        id=WorkloadId("wl-quote"), project_id=project.id, key_id=KeyId(""), name=spec.name, spec=spec,
        state=WorkloadState.QUEUED, submitted_ms=now_ms, queued_ms=now_ms,
    )  # fmt: skip


def _stop(world: World, command: StopWorkload, now_ms: int) -> Iterator[Draft]:
    workload = world.workloads.get(command.id)
    if workload is None or workload.ended_ms:
        return  # it has ended already, which is what was asked for
    if workload.state is WorkloadState.QUEUED:
        after = msgspec.structs.replace(workload, state=WorkloadState.CANCELLED, ended_ms=now_ms, reason=Reason.CANCELLED)
        yield Draft(kind=Kind.WORKLOAD_ENDED, subject=workload.id, project_id=workload.project_id,
                    text=f"{workload.name}: cancelled while queued", rows=(after,))  # fmt: skip
        return
    allocation = world.held.get(allocation_id(workload.id, workload.attempt))
    if allocation is not None and allocation.state is not AllocationState.STOPPING:
        yield stop(world, allocation, Reason.CANCELLED, now_ms)
