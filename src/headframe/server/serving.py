"""Endpoints and gateways, decided: what is applied, what a gateway may spend, and what it says that it served."""

from collections.abc import Iterator, Mapping

import msgspec

from headframe.billing.ledger import Memo, charge, hold, month_of, month_spent_nano, void
from headframe.billing.meter import can_hold
from headframe.model.command import ApplyEndpoint, StopEndpoint, TakeReport
from headframe.model.endpoint import Allowance, Endpoint, EndpointState, Gateway, Served, Wish
from headframe.model.errors import NameTaken, NoCredit
from headframe.model.event import Draft, Kind
from headframe.model.ids import GatewayId, KeyId, ProjectId, WorkloadId, allowance_id
from headframe.model.money import EntryKind, Quote
from headframe.model.people import Key, Project
from headframe.model.serving import Serving
from headframe.model.units import counted, money
from headframe.model.work import Spec
from headframe.model.world import World

SEEN_MS = 3_600_000
"""That a gateway lives is recorded so often; more exactly it is known only while the server runs."""
SILENT_MS = 24 * 3_600_000
"""A gateway that was not heard of for so long gives up what it might spend."""
GRANT_MOST = 1_000_000_000_000


def applied(world: World, command: ApplyEndpoint, offered: Quote, now_ms: int) -> Iterator[Draft]:
    """A new endpoint, or the one of that name as it is to be from now on: with new replicas only where they would differ."""
    project, spec = world.projects[command.project_id], command.spec
    known = world.names.get((project.id, spec.name))
    old = world.endpoints.get(known) if known else None
    if known and (old is None or old.state is not EndpointState.ACTIVE):
        raise NameTaken(f"{spec.name!r} is the name of a live workload of this project")
    if old is None and offered.hold_nano > project.credit_nano:
        raise NoCredit(f"the first replica needs {money(offered.hold_nano)} held, {money(project.credit_nano)} of credit is left")
    if old is None:
        assert spec.serve is not None
        row = Endpoint(id=command.id, project_id=project.id, key_id=command.key_id, name=spec.name, spec=spec, workdir_digest=command.workdir_digest,
                       wanted=max(1, spec.serve.replicas_min), created_ms=now_ms)  # fmt: skip
        text = f"{spec.name}: {counted(row.wanted, 'replica')} to begin with, at {money(offered.rate_max_nano)}/h or less each"
        yield Draft(kind=Kind.ENDPOINT_CREATED, subject=row.id, project_id=project.id, text=text, rows=(row,))
        return
    same = _alike(old, spec) and old.workdir_digest == command.workdir_digest
    if same and old.spec == spec:
        return
    revision = old.revision + (not same)
    row = msgspec.structs.replace(old, spec=spec, workdir_digest=command.workdir_digest, revision=revision, failures=0, not_before_ms=0, why="")
    text = f"{spec.name}: changed" + ("" if same else f", revision {revision}: its replicas are replaced one by one")
    yield Draft(kind=Kind.ENDPOINT_CHANGED, subject=row.id, project_id=project.id, text=text, rows=(row,))


def _alike(old: Endpoint, spec: Spec) -> bool:
    assert spec.serve is not None
    return _scaled_alike(old.serving, spec.serve) and msgspec.structs.replace(old.spec, serve=spec.serve) == spec


def _scaled_alike(a: Serving, b: Serving) -> bool:
    """Whether the replicas of one serve as the other's: only how many there are, and what is asked for them, differs."""
    names = ("replicas_min", "replicas_max", "metric", "target", "idle_s", "start_s", "prewarm", "input_nano", "output_nano")
    return msgspec.structs.replace(a, **{name: getattr(b, name) for name in names}) == b


def served(world: World, command: StopEndpoint | TakeReport, now_ms: int) -> Iterator[Draft]:
    """Each draft is to be applied before the next is asked for."""
    match command:
        case StopEndpoint():
            yield from _stopped(world, command)
        case TakeReport():
            yield from _reported(world, command, now_ms)


def _stopped(world: World, command: StopEndpoint) -> Iterator[Draft]:
    """Its replicas end, and then it does."""
    old = world.endpoints.get(command.id)
    if old is not None and old.state is EndpointState.ACTIVE:
        row = msgspec.structs.replace(old, state=EndpointState.STOPPING)
        yield Draft(kind=Kind.ENDPOINT_CHANGED, subject=row.id, project_id=row.project_id, text=f"{row.name}: stopping", rows=(row,))


def _reported(world: World, command: TakeReport, now_ms: int) -> Iterator[Draft]:
    """What a gateway served is billed, once, and what it may spend is brought to what it asks for."""
    report, known = command.report, world.gateways.get(command.report.gateway)
    gateway = known or Gateway(id=report.gateway, created_ms=now_ms, seen_ms=now_ms)
    if known is None or now_ms - known.seen_ms > SEEN_MS:
        gateway = msgspec.structs.replace(gateway, seen_ms=now_ms)
        yield Draft(kind=Kind.GATEWAY_CHANGED, subject=gateway.id, text=f"gateway {gateway.id} is here", rows=(gateway,))
    if report.batch is not None and report.batch.number > gateway.batch:
        yield from _billed(world, gateway, command, now_ms)
    for wish in report.wishes:
        if wish.key_id and wish.key_id in world.keys:
            yield from _budgeted(world, gateway.id, wish, now_ms)
        elif not wish.key_id and wish.project_id in world.projects:
            yield from _granted(world, gateway.id, wish, now_ms)


def _billed(world: World, gateway: Gateway, command: TakeReport, now_ms: int) -> Iterator[Draft]:
    """A batch, whole: history, postings, and the number that says that it was taken."""
    batch = command.report.batch
    assert batch is not None
    rows = [row for row in _priced(batch.items, command.earlier) if row.project_id in world.projects]
    taken = msgspec.structs.replace(gateway, batch=batch.number)
    amounts: dict[tuple[ProjectId, WorkloadId], list[Served]] = {}
    for row in rows:
        amounts.setdefault((row.project_id, row.endpoint_id), []).append(row)
    text = f"{counted(sum(row.requests for row in rows), 'request')} served"
    yield Draft(kind=Kind.REQUESTS_BILLED, subject=gateway.id, text=text, rows=(taken, *rows))
    for (project, endpoint), group in sorted(amounts.items()):
        if cost := sum(row.amount_nano for row in group):
            yield _charged(world, taken, project, endpoint, cost, group, now_ms)
    spent: dict[KeyId, int] = {}
    for row in rows:
        if row.key_id in world.keys and world.keys[row.key_id].budget_nano:
            spent[row.key_id] = spent.get(row.key_id, 0) + row.amount_nano
    for key, cost in sorted(spent.items()):
        if cost:
            yield _counted(world, taken.id, world.keys[key], cost, now_ms)


def _counted(world: World, gateway: GatewayId, key: Key, cost: int, now_ms: int) -> Draft:
    """What was spent with a key that has a budget."""
    row = _allowance(world, gateway, key.project_id, key.id, now_ms)
    beyond = cost - min(cost, max(0, row.left_nano))  # it was served all the same: what is left stays what was granted
    after = msgspec.structs.replace(row, spent_nano=row.spent_nano + cost, granted_nano=row.granted_nano + beyond)
    counted = msgspec.structs.replace(key, month=month_of(now_ms), month_spent_nano=month_spent_nano(key, now_ms) + cost)
    text = f"{money(counted.month_spent_nano)} of {money(key.budget_nano)} a month spent with {key.name}"
    return Draft(kind=Kind.GATEWAY_CHANGED, subject=gateway, project_id=key.project_id, text=text, rows=(counted, after))


def _allowance(world: World, gateway: GatewayId, project: ProjectId, key: KeyId, now_ms: int) -> Allowance:
    """A gateway's for a project, or for a key of it; a new one where there is none."""
    name = allowance_id(gateway, key or project)
    return world.allowances.get(name) or Allowance(id=name, gateway_id=gateway, project_id=project, key_id=key, created_ms=now_ms)


def _given_back(row: Allowance, wish: Wish) -> int:
    """What the gateway no longer counts on."""
    return max(0, min(row.granted_nano - wish.honoured_nano, row.left_nano))


def _budgeted(world: World, gateway: GatewayId, wish: Wish, now_ms: int) -> Iterator[Draft]:
    """A key's budget is handed out as a project's credit is: what all gateways together may still spend is never more than what is left of the month's."""
    key = world.keys[wish.key_id]
    row = _allowance(world, gateway, key.project_id, key.id, now_ms)
    kept = row.granted_nano - _given_back(row, wish)
    left = kept - row.spent_nano
    others = (world.allowances.get(allowance_id(other, key.id)) for other in world.gateways if other != gateway)
    free = key.budget_nano - month_spent_nano(key, now_ms) - left - sum(other.left_nano for other in others if other is not None)
    after = msgspec.structs.replace(row, granted_nano=kept + max(0, min(wish.wanted_nano - left, free)))
    if after.granted_nano != row.granted_nano:
        text = f"{money(after.left_nano)} of the budget of {key.name} for requests"
        yield Draft(kind=Kind.GATEWAY_CHANGED, subject=gateway, project_id=key.project_id, text=text, rows=(after,))


def _charged(world: World, gateway: Gateway, project_id: ProjectId, endpoint_id: WorkloadId, cost: int, group: list[Served], now_ms: int) -> Draft:
    project, endpoint = world.projects[project_id], world.endpoints.get(endpoint_id)
    allowance = _allowance(world, gateway.id, project_id, KeyId(""), now_ms)
    name = endpoint.name if endpoint else endpoint_id
    tokens = f"{sum(row.prompt for row in group):,} tokens in, {sum(row.completion for row in group):,} out"
    memo = Memo(
        posting=f"served/{gateway.id}/{gateway.batch}/{project_id}/{endpoint_id}",
        kind=EntryKind.USAGE,
        at_ms=now_ms,
        workload_id=endpoint_id,
        text=f"{name}: {tokens}",
    )
    moved = charge(project, cost, max(0, allowance.left_nano), memo)
    # What exceeded the allowance was paid from credit or written off: both sums rise by it, so that what is left stays what is held.
    beyond = cost - moved.from_hold_nano
    after = msgspec.structs.replace(allowance, spent_nano=allowance.spent_nano + cost, granted_nano=allowance.granted_nano + beyond)
    rows = (*moved.entries, moved.project, after)
    if endpoint is not None:
        rows = (*rows, msgspec.structs.replace(endpoint, earned_nano=endpoint.earned_nano + cost))
    return Draft(kind=Kind.USAGE_METERED, subject=endpoint_id, project_id=project_id, text=f"{name}: {money(cost)} for {tokens}", rows=rows)


def _priced(items: tuple[Served, ...], earlier: Mapping[str, Served]) -> Iterator[Served]:
    """The rows as they are kept. A request that its client named and our side had cut is paid once, whatever it took."""
    last = dict(earlier)
    for item in items:
        if not item.request_id:
            yield msgspec.structs.replace(item, paid_nano=item.amount_nano)
            continue
        name = request_name(item)
        before = last.get(name)
        # The try that was cut may be heard of after the one that was whole: it is still the same request.
        same = before is not None and (before.cut or (item.cut and before.at_ms >= item.at_ms))
        already = before.paid_nano if before and same else 0
        due = max(0, item.amount_nano - already)
        row = msgspec.structs.replace(item, name=name, amount_nano=due, paid_nano=already + due)
        last[name] = row if before is None or item.at_ms >= before.at_ms else msgspec.structs.replace(before, paid_nano=already + due)
        yield row


def request_name(item: Served) -> str:
    """What a client calls a request, within its project."""
    return f"{item.project_id}/{item.request_id}"


def _granted(world: World, gateway: GatewayId, wish: Wish, now_ms: int) -> Iterator[Draft]:
    """Take back what the gateway no longer counts on, or hold more for it."""
    project = world.projects[wish.project_id]
    row = _allowance(world, gateway, project.id, KeyId(""), now_ms)
    back = _given_back(row, wish)
    if back:
        memo = Memo(posting=f"allowance/{row.id}/{row.moves + 1}", kind=EntryKind.VOID, at_ms=now_ms, text="for requests: not needed now")
        moved = void(project, back, memo)
        row, project = msgspec.structs.replace(row, granted_nano=row.granted_nano - back, moves=row.moves + 1), moved.project
        yield Draft(
            kind=Kind.GATEWAY_CHANGED,
            subject=gateway,
            project_id=project.id,
            text=f"{money(back)} back from a gateway",
            rows=(*moved.entries, project, row),
        )
    more = min(wish.wanted_nano - row.left_nano, project.credit_nano, GRANT_MOST)
    while more > 0 and not can_hold(project, more, now_ms):
        more //= 2
    if more > 0:
        memo = Memo(posting=f"allowance/{row.id}/{row.moves + 1}", kind=EntryKind.HOLD, at_ms=now_ms, text="held for requests")
        moved = hold(project, more, memo)
        row = msgspec.structs.replace(row, granted_nano=row.granted_nano + more, moves=row.moves + 1)
        yield Draft(
            kind=Kind.GATEWAY_CHANGED,
            subject=gateway,
            project_id=project.id,
            text=f"{money(more)} held for requests",
            rows=(*moved.entries, moved.project, row),
        )


def short(payer: Project | Key, wish: Wish, allowance: Allowance | None) -> str:
    """Why a gateway may spend less than it asked for; empty where it may not."""
    if (allowance.left_nano if allowance else 0) >= wish.wanted_nano:
        return ""
    if isinstance(payer, Key):
        return f"its budget of {money(payer.budget_nano)} a month leaves no more"
    if payer.credit_nano <= 0:
        return "its credit is spent; an operator can add credit"
    return "its credit or its month's budget leaves no more"


def silent(world: World, now_ms: int) -> Iterator[Draft]:
    """Gateways that are gone: what was held for them goes back."""
    for key in sorted(world.gateways):
        gateway = world.gateways[key]
        if now_ms - gateway.seen_ms < SILENT_MS:
            continue
        for each in sorted(name for name, row in world.allowances.items() if row.gateway_id == key):
            row = world.allowances[each]
            nothing = Wish(project_id=row.project_id, key_id=row.key_id, honoured_nano=row.spent_nano, wanted_nano=0)
            yield from (_budgeted if row.key_id else _granted)(world, key, nothing, now_ms)
            closed = msgspec.structs.replace(world.allowances[each], closed=True)
            yield Draft(kind=Kind.GATEWAY_CHANGED, subject=key, project_id=row.project_id, text=f"gateway {key} is gone", rows=(closed,))
        yield Draft(
            kind=Kind.GATEWAY_CHANGED,
            subject=key,
            text=f"gateway {key} was not heard of for a day",
            rows=(msgspec.structs.replace(gateway, closed=True),),
        )
