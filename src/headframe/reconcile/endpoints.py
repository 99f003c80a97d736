"""Endpoints: how many replicas are wanted, against those that are there, to workloads that are made, drained and stopped.

A replica is a workload that is never tried again: where one is missing another is made. A new revision's replicas are made one after the other, each before an old one
goes; where there is no room for both the old one goes first. Drained ones are stopped once no gateway has a request there.
"""

from collections.abc import Iterator, Sequence

import msgspec

from headframe.model.endpoint import Endpoint, EndpointState
from headframe.model.event import Draft, Kind
from headframe.model.ids import AllocationId, WorkloadId, allocation_id
from headframe.model.serving import Load
from headframe.model.states import OWN_FAULTS, WORKLOAD_ENDS, AllocationState, Reason, WorkloadState
from headframe.model.units import counted, duration
from headframe.model.work import REPLICA, Facts, Retry, Workload
from headframe.model.world import World
from headframe.reconcile.jobs import stop

DRAIN_MS = 600_000
"""A replica that is drained is stopped after so long, whatever it still does."""
ROLL_WAIT_MS = 30_000
"""A new revision's replica that waits for room so long gets an old one's."""
PAUSE_FIRST_MS, PAUSE_MAX_MS = 5_000, 300_000
UNKNOWN = Load()


def endpoints(world: World, facts: Facts, now_ms: int) -> Iterator[Draft]:
    """Each draft is to be applied before the next is asked for."""
    for key in sorted(world.endpoints):
        there = sorted(world.replicas.get(key, {}).values(), key=lambda replica: (replica.submitted_ms, replica.id))
        load = facts.loads.get(key, UNKNOWN)
        yield from _counted(world, key, there, load, now_ms)
        live = [replica for replica in there if replica.state not in WORKLOAD_ENDS]
        if world.endpoints[key].state is EndpointState.STOPPING:
            yield from _stopping(world, key, live, there, now_ms)
            continue
        yield from _resized(world, key, load)
        yield from _made(world, key, live, load, now_ms)
        yield from _drained(world, key, load, now_ms)


def attempt(replica: Workload) -> AllocationId:
    """A replica's one attempt."""
    return allocation_id(replica.id, 1)


def _counted(world: World, key: WorkloadId, there: Sequence[Workload], load: Load, now_ms: int) -> Iterator[Draft]:
    """Replicas that just ended by themselves, and the first that answers after some did."""
    endpoint = world.endpoints[key]
    for replica in there:
        if replica.state in WORKLOAD_ENDS and replica.reason in OWN_FAULTS and replica.revision == endpoint.revision:
            failures = endpoint.failures + 1
            pause_ms = min(PAUSE_FIRST_MS * 2 ** (failures - 1), PAUSE_MAX_MS)
            why = f"{replica.name} ended, {replica.reason}" + (f": {replica.detail}" if replica.detail else "")
            endpoint = msgspec.structs.replace(endpoint, failures=failures, not_before_ms=now_ms + pause_ms, why=why)
            yield _changed(endpoint, f"{endpoint.name}: {why}; the next one in {duration(pause_ms)} at the earliest")
    answers = any(attempt(replica) in load.ready and replica.revision == endpoint.revision for replica in there)
    if answers and (endpoint.failures or endpoint.why):
        yield _changed(msgspec.structs.replace(endpoint, failures=0, not_before_ms=0, why=""), f"{endpoint.name} answers again")


def _stopping(world: World, key: WorkloadId, live: Sequence[Workload], there: Sequence[Workload], now_ms: int) -> Iterator[Draft]:
    endpoint = world.endpoints[key]
    for replica in live:
        yield from _ended(world, replica, Reason.CANCELLED, now_ms)
    if not there:
        row = msgspec.structs.replace(endpoint, state=EndpointState.STOPPED, wanted=0)
        yield Draft(kind=Kind.ENDPOINT_STOPPED, subject=key, project_id=endpoint.project_id, text=f"{endpoint.name}: stopped", rows=(row,))


def _resized(world: World, key: WorkloadId, load: Load) -> Iterator[Draft]:
    endpoint, serving = world.endpoints[key], world.endpoints[key].serving
    asked = endpoint.wanted if load.wanted is None else load.wanted
    wanted = min(max(asked, serving.replicas_min), serving.replicas_max)
    if wanted != endpoint.wanted:
        text = f"{endpoint.name}: {endpoint.wanted} → {counted(wanted, 'replica')}" + (f", {load.why}" if load.why else "")
        yield _changed(msgspec.structs.replace(endpoint, wanted=wanted), text)


def _made(world: World, key: WorkloadId, live: Sequence[Workload], load: Load, now_ms: int) -> Iterator[Draft]:
    """Make what is missing, and drain what is too much or of an older revision."""
    endpoint = world.endpoints[key]
    staying = [replica for replica in live if not replica.drain_ms and replica.state is not WorkloadState.STOPPING]
    current = [replica for replica in staying if replica.revision == endpoint.revision]
    old = [replica for replica in staying if replica.revision != endpoint.revision]
    answering = [replica for replica in current if attempt(replica) in load.ready]
    missing = endpoint.wanted - len(current)
    if old:
        missing = min(missing, int(len(answering) == len(current)))  # one at a time
    if now_ms >= endpoint.not_before_ms:
        for _ in range(missing):
            yield _replica(world, key, now_ms)
    last_first = sorted(current, key=lambda replica: (attempt(replica) in load.ready, replica.state is WorkloadState.RUNNING, -replica.submitted_ms))
    for replica in last_first[: max(0, len(current) - endpoint.wanted)]:
        yield from _drain(world, replica, now_ms, "no longer needed")
    for replica in old[: max(0, len(answering) + len(old) - endpoint.wanted)]:
        yield from _drain(world, replica, now_ms, f"revision {endpoint.revision} takes over")
    draining = any(replica.drain_ms for replica in live)
    waits = [replica for replica in current if replica.state is WorkloadState.QUEUED and now_ms - replica.queued_ms > ROLL_WAIT_MS]
    if waits and old and not draining and len(answering) + len(old) <= endpoint.wanted:
        yield from _drain(world, old[0], now_ms, f"revision {endpoint.revision} finds no other room")


def _replica(world: World, key: WorkloadId, now_ms: int) -> Draft:
    """The next replica: its id follows from the endpoint's and its number, so that it is made once."""
    endpoint = world.endpoints[key]
    n = endpoint.made + 1
    name = f"{endpoint.name}.{n}"
    spec = msgspec.structs.replace(endpoint.spec, type=REPLICA, name=name, retry=Retry(on=(), attempts=1))
    row = Workload(
        id=WorkloadId(f"{key}-{n}"), project_id=endpoint.project_id, key_id=endpoint.key_id, name=name, spec=spec, endpoint_id=key, revision=endpoint.revision,
        workdir_digest=endpoint.workdir_digest, state=WorkloadState.QUEUED, submitted_ms=now_ms, queued_ms=now_ms,
    )  # fmt: skip
    return Draft(kind=Kind.WORKLOAD_QUEUED, subject=row.id, project_id=row.project_id, text=f"{name}: queued for {endpoint.name}",
                 rows=(row, msgspec.structs.replace(endpoint, made=n)))  # fmt: skip


def _drain(world: World, replica: Workload, now_ms: int, why: str) -> Iterator[Draft]:
    if replica.state is WorkloadState.QUEUED:
        yield from _ended(world, replica, Reason.CANCELLED, now_ms)
        return
    row = msgspec.structs.replace(replica, drain_ms=now_ms)
    yield Draft(
        kind=Kind.ENDPOINT_CHANGED,
        subject=replica.endpoint_id,
        project_id=row.project_id,
        text=f"{row.name}: gets no new requests, {why}",
        rows=(row,),
    )


def _drained(world: World, key: WorkloadId, load: Load, now_ms: int) -> Iterator[Draft]:
    """Stop what is drained, and what does not answer though it had its time."""
    limit_ms = world.endpoints[key].serving.start_s * 1000
    for replica in sorted(world.replicas.get(key, {}).values(), key=lambda each: each.id):
        if replica.state in WORKLOAD_ENDS or replica.state is WorkloadState.STOPPING:
            continue
        silent_ms = now_ms - load.silent.get(attempt(replica), now_ms)
        if replica.drain_ms and (attempt(replica) in load.drained or now_ms - replica.drain_ms > DRAIN_MS):
            yield from _ended(world, replica, Reason.CANCELLED, now_ms)
        elif silent_ms > limit_ms:
            yield from _ended(world, replica, Reason.START_FAILED, now_ms)


def _ended(world: World, replica: Workload, because: Reason, now_ms: int) -> Iterator[Draft]:
    if replica.state is WorkloadState.QUEUED:
        row = msgspec.structs.replace(replica, state=WorkloadState.CANCELLED, ended_ms=now_ms, reason=Reason.CANCELLED)
        yield Draft(kind=Kind.WORKLOAD_ENDED, subject=row.id, project_id=row.project_id, text=f"{row.name}: cancelled while queued", rows=(row,))
        return
    held = world.held.get(attempt(replica))
    if held is not None and held.state is not AllocationState.STOPPING:
        yield stop(world, held, because, now_ms)


def _changed(endpoint: Endpoint, text: str) -> Draft:
    return Draft(kind=Kind.ENDPOINT_CHANGED, subject=endpoint.id, project_id=endpoint.project_id, text=text, rows=(endpoint,))
