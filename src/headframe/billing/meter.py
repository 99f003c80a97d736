"""Allocations to usage to postings: each second of an attempt is metered once, at the price in force when it began.

Intervals are cut at whole hours and at price changes, and named by their start, so metering again, late or after a crash
finds nothing new. An interval closes only when the engine has seen the work alive past its end, or when the work has ended.
Each draft must be applied to the world before the next is asked for: the money of two attempts may be one project's.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

from headframe.billing.ledger import Memo, charge, hold, month_spent_nano, refund, void
from headframe.billing.price import price_at, rate_nano
from headframe.model.event import Draft, Kind
from headframe.model.ids import AllocationId, usage_id
from headframe.model.money import EntryKind, PriceList, Usage
from headframe.model.people import Project, used
from headframe.model.states import NODE_FAULTS, AllocationState, Reason, WorkloadState
from headframe.model.units import MS_PER_HOUR, cost_nano, money
from headframe.model.work import Allocation, Workload
from headframe.model.world import World

WINDOW_MS = MS_PER_HOUR


def meter(world: World, seen_ms: Mapping[AllocationId, int], now_ms: int) -> Iterator[Draft]:
    """Settle what has ended, bill the hours that running work has completed, hold the next one, and close what is over."""
    for key in sorted(world.unsettled):
        yield _settle(world, world.unsettled[key], now_ms)
    for key in sorted(seen_ms):
        allocation = world.allocations.get(key)
        if allocation is None or allocation.state is AllocationState.ENDED or not allocation.started_ms:
            continue
        boundary = min(seen_ms[key], now_ms) // WINDOW_MS * WINDOW_MS
        if boundary > (allocation.metered_ms or allocation.started_ms):
            yield _bill(world, allocation, boundary)
            yield from _hold_next(world, world.allocations[key], now_ms)
    for key in sorted(world.closing):
        yield _close(world, world.closing[key], now_ms)


def intervals(start_ms: int, end_ms: int, prices: Sequence[PriceList]) -> list[tuple[int, int]]:
    """[start, end) cut at whole windows and at price changes; empty when there is nothing."""
    if end_ms <= start_ms:
        return []
    first = (start_ms // WINDOW_MS + 1) * WINDOW_MS
    cuts = {*range(first, end_ms, WINDOW_MS), *(p.effective_ms for p in prices if start_ms < p.effective_ms < end_ms)}
    edges = [start_ms, *sorted(cuts), end_ms]
    return list(pairwise(edges))


def usages(allocation: Allocation, until_ms: int, prices: Sequence[PriceList]) -> tuple[Usage, ...]:
    """The intervals of `allocation` that are not metered yet, up to `until_ms`, priced."""
    start_ms = allocation.metered_ms or allocation.started_ms
    return tuple(_usage(allocation, begin, end, price_at(prices, begin)) for begin, end in intervals(start_ms, until_ms, prices))


def accrued_nano(allocation: Allocation, now_ms: int, prices: Sequence[PriceList]) -> int:
    """What a running attempt has cost so far, billed or not: for display."""
    if not allocation.started_ms or allocation.state is AllocationState.ENDED:
        return allocation.cost_nano
    return allocation.cost_nano + sum(usage.amount_nano for usage in usages(allocation, now_ms, prices))


def _usage(allocation: Allocation, start_ms: int, end_ms: int, prices: PriceList) -> Usage:
    rate = rate_nano(prices, allocation.parts, allocation.tier)
    return Usage(
        id=usage_id(allocation.id, start_ms), allocation_id=allocation.id, workload_id=allocation.workload_id,
        project_id=allocation.project_id, start_ms=start_ms, end_ms=end_ms,
        gpu_milli=allocation.gpu_milli,
        cpu_milli=sum(part.cpu_milli for part in allocation.parts),
        memory_mib=sum(part.memory_mib for part in allocation.parts),
        disk_mib=sum(part.disk_mib for part in allocation.parts),
        price_version=prices.version, rate_nano=rate, amount_nano=cost_nano(end_ms - start_ms, rate),
    )  # fmt: skip


def _bill(world: World, allocation: Allocation, until_ms: int) -> Draft:
    """Usage up to `until_ms` and its postings, as one draft."""
    project, workload = world.projects[allocation.project_id], world.workloads[allocation.workload_id]
    intervals_used = usages(allocation, until_ms, world.prices())
    entries = []
    for usage in intervals_used:
        memo = Memo(
            posting=f"usage/{usage.id}", kind=EntryKind.USAGE, at_ms=usage.start_ms, workload_id=workload.id,
            text=f"{workload.name} attempt {allocation.attempt}",
        )  # fmt: skip
        moved = charge(project, usage.amount_nano, workload.held_nano, memo)
        project = moved.project
        workload = msgspec.structs.replace(
            workload, held_nano=workload.held_nano - moved.from_hold_nano, cost_nano=workload.cost_nano + usage.amount_nano
        )
        entries.extend(moved.entries)
    cost = sum(usage.amount_nano for usage in intervals_used)
    project = used(project, sum(usage.gpu_milli * (usage.end_ms - usage.start_ms) for usage in intervals_used), until_ms)
    after = msgspec.structs.replace(allocation, metered_ms=max(until_ms, allocation.metered_ms), cost_nano=allocation.cost_nano + cost)
    text = f"{workload.name}: {money(cost)} for attempt {allocation.attempt}"
    return Draft(kind=Kind.USAGE_METERED, subject=workload.id, project_id=project.id, text=text,
                 rows=(*intervals_used, *entries, project, workload, after))  # fmt: skip


def _settle(world: World, allocation: Allocation, now_ms: int) -> Draft:
    """The last bill of an attempt; a fault of the operator's is credited back in the same breath."""
    until_ms = max(allocation.ended_ms, allocation.started_ms) if allocation.started_ms else 0
    draft = _bill(world, allocation, until_ms)
    rows = {type(row): row for row in draft.rows if isinstance(row, Project | Workload | Allocation)}
    project, workload, after = rows[Project], rows[Workload], rows[Allocation]
    assert isinstance(project, Project)
    assert isinstance(workload, Workload)
    assert isinstance(after, Allocation)
    entries: tuple[msgspec.Struct, ...] = ()
    text = draft.text
    if after.reason in NODE_FAULTS and after.cost_nano:
        memo = Memo(posting=f"refund/{after.id}", kind=EntryKind.REFUND, at_ms=now_ms, workload_id=workload.id,
                    text=f"{workload.name} attempt {after.attempt}: {after.reason}, credited back")  # fmt: skip
        moved = refund(project, after.cost_nano, memo)
        project, entries = moved.project, moved.entries
        workload = msgspec.structs.replace(workload, credited_nano=workload.credited_nano + after.cost_nano)
        text += f", credited back: {after.reason}"
    history = tuple(row for row in draft.rows if not isinstance(row, Project | Workload | Allocation))
    settled = msgspec.structs.replace(after, settled=True)
    return msgspec.structs.replace(draft, text=text, rows=(*history, *entries, project, workload, settled))


def _hold_next(world: World, allocation: Allocation, now_ms: int) -> Iterator[Draft]:
    """Before another hour begins it must be held; where it can't be, the work is stopped, with that reason."""
    if allocation.state is AllocationState.STOPPING:
        return
    project, workload = world.projects[allocation.project_id], world.workloads[allocation.workload_id]
    rate = rate_nano(price_at(world.prices(), now_ms), allocation.parts, allocation.tier)
    need = cost_nano(_next_ms(workload, allocation), rate) - workload.held_nano
    if need <= 0:
        return
    if can_hold(project, need, now_ms):
        yield extend_hold(project, workload, need, f"{allocation.id}/{allocation.metered_ms}", now_ms)
        return
    text = f"{workload.name}: stopping, {money(project.credit_nano)} of credit left does not cover another hour"
    stopping = msgspec.structs.replace(allocation, state=AllocationState.STOPPING, stop_because=Reason.CREDIT_EXHAUSTED, stop_ms=now_ms)
    rows = (stopping, msgspec.structs.replace(workload, state=WorkloadState.STOPPING))
    yield Draft(kind=Kind.WORKLOAD_STOPPING, subject=workload.id, project_id=project.id, text=text, rows=rows)


def _next_ms(workload: Workload, allocation: Allocation) -> int:
    """The next hour, or what max_duration leaves of it."""
    limit_ms = workload.spec.max_duration_s * 1000
    left_ms = allocation.started_ms + limit_ms - allocation.metered_ms if limit_ms else WINDOW_MS
    return max(0, min(WINDOW_MS, left_ms))


def can_hold(project: Project, amount_nano: int, now_ms: int) -> bool:
    """Whether credit and the month's budget allow holding this much more."""
    if amount_nano > project.credit_nano:
        return False
    budget = project.budget_month_nano
    return not budget or month_spent_nano(project, now_ms) + project.held_nano + amount_nano <= budget


def extend_hold(project: Project, workload: Workload, amount_nano: int, name: str, now_ms: int) -> Draft:
    """Hold `amount_nano` more for a workload; `name` makes the posting's id."""
    memo = Memo(posting=f"hold/{name}", kind=EntryKind.HOLD, at_ms=now_ms, workload_id=workload.id,
                text=f"{workload.name}: another hour held")  # fmt: skip
    moved = hold(project, amount_nano, memo)
    after = msgspec.structs.replace(workload, held_nano=workload.held_nano + amount_nano)
    return Draft(kind=Kind.HOLD_EXTENDED, subject=workload.id, project_id=project.id,
                 text=f"{workload.name}: {money(amount_nano)} held", rows=(*moved.entries, moved.project, after))  # fmt: skip


def _close(world: World, workload: Workload, now_ms: int) -> Draft:
    """An ended workload's account: the rest of its hold goes back."""
    closed = msgspec.structs.replace(workload, held_nano=0, closed=True)
    endpoint = world.endpoints.get(workload.endpoint_id)
    also = (msgspec.structs.replace(endpoint, billed_nano=endpoint.billed_nano + workload.cost_nano - workload.credited_nano),) if endpoint else ()
    text = f"{workload.name}: {money(workload.cost_nano - workload.credited_nano)} in all, {money(workload.held_nano)} released"
    if not workload.held_nano:
        return Draft(kind=Kind.USAGE_METERED, subject=workload.id, project_id=workload.project_id, text=text, rows=(closed, *also))
    memo = Memo(posting=f"void/{workload.id}", kind=EntryKind.VOID, at_ms=now_ms, workload_id=workload.id,
                text=f"{workload.name}: rest of the hold released")  # fmt: skip
    moved = void(world.projects[workload.project_id], workload.held_nano, memo)
    return Draft(kind=Kind.USAGE_METERED, subject=workload.id, project_id=workload.project_id, text=text,
                 rows=(*moved.entries, moved.project, closed, *also))  # fmt: skip
