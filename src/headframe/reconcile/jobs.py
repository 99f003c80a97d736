"""What was seen of allocations becomes their next state and their workload's; nothing here starts or stops anything.

Facts may come twice, late or out of order: only moves that the tables allow are made, and an end is final.
"""

from collections.abc import Iterator
from typing import assert_never

import msgspec

from headframe.model.event import Draft, Kind
from headframe.model.fleet import Gpu, Node, broke
from headframe.model.states import ALLOCATION_MOVES, MADE_WAY, NODE_FAULTS, AllocationState, Reason, WorkloadState
from headframe.model.units import duration
from headframe.model.work import Allocation, Facts, Observation, Workload
from headframe.model.world import World

MISSING_LIMIT_MS = 30_000
"""A reachable engine that has not known an allocation for this long has lost it."""
PREEMPTED_PAUSE_MS = 30_000
"""Whoever gave way does not come back before those that it made room for have had it."""
BACKOFF_FIRST_MS, BACKOFF_MAX_MS = 10_000, 300_000

_WORKLOAD_WHILE = {
    AllocationState.STARTING: WorkloadState.STARTING,
    AllocationState.RUNNING: WorkloadState.RUNNING,
}


def jobs(world: World, facts: Facts, now_ms: int) -> Iterator[Draft]:
    """Each draft is to be applied to the world before the next is asked for."""
    for seen in facts.observations:
        allocation = world.allocations.get(seen.allocation_id)
        if allocation is not None and allocation.state is not AllocationState.ENDED:
            yield from _advance(world, allocation, seen, now_ms)
    for key in sorted(facts.missing_since_ms):
        allocation = world.allocations.get(key)
        if allocation is not None and allocation.state is not AllocationState.ENDED:
            yield from _missing(world, allocation, facts.missing_since_ms[key], now_ms)
    for allocation in world.overdue(now_ms):
        yield stop(world, allocation, Reason.MAX_DURATION, now_ms)
    for key in sorted(facts.idle):
        held = world.held.get(key)
        if (
            held is not None
            and held.state is AllocationState.RUNNING
            and now_ms - facts.idle[key] >= world.workloads[held.workload_id].spec.idle_s * 1000
        ):
            yield stop(world, held, Reason.IDLE, now_ms)


def end(world: World, allocation: Allocation, seen: Observation, now_ms: int) -> Draft:
    """The attempt is over: the allocation ends, its workload ends or queues again."""
    workload = world.workloads[allocation.workload_id]
    reason = seen.reason or Reason.NODE_FAULT
    started_ms = allocation.started_ms or seen.started_ms
    ended_ms = max(seen.ended_ms, started_ms, allocation.metered_ms)
    ended = msgspec.structs.replace(
        allocation, state=AllocationState.ENDED, started_ms=started_ms, ended_ms=ended_ms, reason=reason,
        exit_code=seen.exit_code, detail=seen.detail,
    )  # fmt: skip
    after = msgspec.structs.replace(
        _after(workload, ended, now_ms), started_ms=workload.started_ms or started_ms
    )  # it may never have been seen to run
    again = f", queued again (attempt {after.attempt + 1})" if after.state is WorkloadState.QUEUED else ""
    detail = f": {seen.detail}" if seen.detail else ""
    took = f" after {duration(ended_ms - started_ms)}" if started_ms else ""
    text = f"{workload.name}: attempt {allocation.attempt} ended, {reason}{took}{detail}{again}"
    kind = Kind.WORKLOAD_QUEUED if again else Kind.WORKLOAD_ENDED
    rows = (ended, after, *(_faulty(world, ended, now_ms) if reason in NODE_FAULTS else ()))
    return Draft(kind=kind, subject=workload.id, project_id=workload.project_id, text=text, rows=rows)


def _faulty(world: World, ended: Allocation, now_ms: int) -> list[Node | Gpu]:
    """The machines and cards under work that broke, with that on their record: which one it was is not known, so each has its share."""
    nodes = [world.nodes[part.node_id] for part in ended.parts if part.node_id in world.nodes]
    cards = [world.gpus[share.gpu_id] for part in ended.parts for share in part.shares if share.gpu_id in world.gpus]
    return [*(broke(node, now_ms, 1 / len(ended.parts)) for node in nodes), *(broke(card, now_ms, 1 / len(cards)) for card in cards)]


def _advance(world: World, allocation: Allocation, seen: Observation, now_ms: int) -> Iterator[Draft]:
    match seen.state:
        case AllocationState.ENDED:
            yield end(world, allocation, seen, now_ms)
        case AllocationState.STARTING | AllocationState.RUNNING:
            yield from _alive(world, allocation, seen)
        case AllocationState.GRANTED | AllocationState.STOPPING:
            return  # an engine does not say these: they are our wishes
        case _:
            assert_never(seen.state)


def _alive(world: World, allocation: Allocation, seen: Observation) -> Iterator[Draft]:
    workload = world.workloads[allocation.workload_id]
    started_ms = allocation.started_ms or seen.started_ms
    if seen.state not in ALLOCATION_MOVES[allocation.state]:
        if started_ms != allocation.started_ms:  # being stopped, and only now seen to have started: it is billed from then
            rows = (msgspec.structs.replace(allocation, started_ms=started_ms),)
            yield Draft(kind=Kind.ALLOCATION_CHANGED, subject=workload.id, project_id=workload.project_id,
                        text=f"{workload.name}: started", rows=rows)  # fmt: skip
        return
    state = _WORKLOAD_WHILE[seen.state]
    after = msgspec.structs.replace(workload, state=state, started_ms=workload.started_ms or started_ms)
    changed = msgspec.structs.replace(allocation, state=seen.state, started_ms=started_ms)
    kind = Kind.WORKLOAD_RUNNING if state is WorkloadState.RUNNING else Kind.WORKLOAD_STARTING
    text = f"{workload.name}: {state} (attempt {allocation.attempt})"
    yield Draft(kind=kind, subject=workload.id, project_id=workload.project_id, text=text, rows=(changed, after))


def _missing(world: World, allocation: Allocation, since_ms: int, now_ms: int) -> Iterator[Draft]:
    """An engine that does not show an allocation may only have been misheard, so it is not ended here: it is asked to
    stop, which forbids a late start too, and ends when the engine says that it has.
    """
    if allocation.state in {AllocationState.GRANTED, AllocationState.STOPPING} or now_ms - since_ms < MISSING_LIMIT_MS:
        return  # a granted one is simply started again: starting is idempotent
    yield stop(world, allocation, Reason.NODE_FAULT, now_ms)


def stop(world: World, allocation: Allocation, because: Reason, now_ms: int) -> Draft:
    """Ask for an end: the engine is told to, and the end itself is seen later."""
    workload = world.workloads[allocation.workload_id]
    stopping = msgspec.structs.replace(allocation, state=AllocationState.STOPPING, stop_because=because, stop_ms=now_ms)
    after = msgspec.structs.replace(workload, state=WorkloadState.STOPPING)
    return Draft(kind=Kind.WORKLOAD_STOPPING, subject=workload.id, project_id=workload.project_id,
                 text=f"{workload.name}: stopping, {because}", rows=(stopping, after))  # fmt: skip


def _after(workload: Workload, ended: Allocation, now_ms: int) -> Workload:
    """The workload once this attempt has ended: over, or queued again, with a pause where it was its own fault."""
    reason = ended.reason
    assert reason is not None
    retry = workload.spec.retry
    preempted = workload.preempted + (reason in MADE_WAY)
    tried = ended.attempt - preempted
    wanted = reason is Reason.RESIZED or (reason in retry.on and (tried < retry.attempts or reason is Reason.PREEMPTED))
    if wanted and ended.stop_because is not Reason.CANCELLED:
        own_fault = reason in {Reason.FAILED, Reason.SETUP_FAILED, Reason.START_FAILED}
        pause_ms = PREEMPTED_PAUSE_MS if reason is Reason.PREEMPTED else 0
        pause_ms = min(BACKOFF_FIRST_MS * 2 ** (tried - 1), BACKOFF_MAX_MS) if own_fault else pause_ms
        return msgspec.structs.replace(
            workload, state=WorkloadState.QUEUED, preempted=preempted, reason=reason, exit_code=ended.exit_code, detail=ended.detail,
            not_before_ms=now_ms + pause_ms if pause_ms else 0,
        )  # fmt: skip
    state = WorkloadState.FAILED
    if reason is Reason.FINISHED:
        state = WorkloadState.SUCCEEDED
    elif reason in {Reason.CANCELLED, Reason.IDLE} or ended.stop_because is Reason.CANCELLED:
        state = WorkloadState.CANCELLED
    return msgspec.structs.replace(
        workload, state=state, reason=reason, exit_code=ended.exit_code, detail=ended.detail, ended_ms=max(now_ms, ended.ended_ms)
    )
