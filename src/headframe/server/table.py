"""What gateways are told: keys, projects, endpoints and where their replicas answer, each with the number of its last change, so that telling costs what changed."""

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from itertools import takewhile

from headframe.model.endpoint import Endpoint, EndpointEntry, KeyEntry, ProjectEntry, ReplicaEntry, Table
from headframe.model.event import Event
from headframe.model.ids import WorkloadId, allocation_id
from headframe.model.people import ALLOWS, Key, Project, Scope
from headframe.model.states import AllocationState
from headframe.model.work import Allocation, Workload
from headframe.model.world import World

Entry = KeyEntry | ProjectEntry | EndpointEntry
Numbered = dict[tuple[type, str], tuple[int, Entry]]
"""By kind and id, each with the number of its last change, the newest last."""
SHOWN = frozenset({AllocationState.STARTING, AllocationState.RUNNING, AllocationState.STOPPING})
GONE_MAX = 10_000
"""So many that are gone are remembered; who has not asked since then is told everything."""


class GatewayTable:
    """Follows the world by its events. `run` changes with every start, so numbers of another life are not taken for ours."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.run = secrets.token_hex(8)
        self._seq = 0
        self._entries: Numbered = {}
        self._gone: Numbered = {}
        self._forgot = 0
        self._changed = asyncio.Event()
        self._closed = False
        for key in world.keys.values():
            self._key(key)
        for project in world.projects.values():
            self._project(project)
        for endpoint in world.endpoints:
            self._endpoint(endpoint)

    def heard(self, events: Sequence[Event]) -> None:
        """Take in what was committed."""
        before, touched = self._seq, dict[WorkloadId, None]()
        for row in (row for event in events for row in event.rows):
            if isinstance(row, Key):
                self._key(row)
            elif isinstance(row, Project):
                self._project(row)
            elif isinstance(row, Endpoint):
                touched[row.id] = None
            elif isinstance(row, Workload) and row.endpoint_id:
                touched[row.endpoint_id] = None
            elif isinstance(row, Allocation) and (replica := self._world.workloads.get(row.workload_id)) and replica.endpoint_id:
                touched[replica.endpoint_id] = None
        for key in touched:
            self._endpoint(key)
        if self._seq != before:
            self._changed.set()
            self._changed = asyncio.Event()

    def since(self, run: str, seq: int) -> Table:
        """What changed since then, or everything."""
        full = run != self.run or seq < self._forgot or seq > self._seq
        rows = [entry for _, entry in self._entries.values()] if full else [*_newer(self._entries, seq), *_newer(self._gone, seq)]
        return Table(
            run=self.run, seq=self._seq, full=full, keys=tuple(row for row in rows if isinstance(row, KeyEntry)),
            projects=tuple(row for row in rows if isinstance(row, ProjectEntry)), endpoints=tuple(row for row in rows if isinstance(row, EndpointEntry)),
        )  # fmt: skip

    async def after(self, run: str, seq: int, limit_s: float) -> Table:
        """The same, once there is something, or after a time."""
        if run == self.run and seq == self._seq and not self._closed:
            try:
                await asyncio.wait_for(self._changed.wait(), limit_s)
            except TimeoutError:
                pass
        return self.since(run, seq)

    def close(self) -> None:
        """Answer those that wait, and all others at once from now on: the server ends."""
        self._closed = True
        self._changed.set()

    def _put(self, kind: type, key: str, entry: Entry, *, gone: bool = False) -> None:
        known = self._entries.get((kind, key))
        if (known is not None and known[1] == entry) or (known is None and gone):
            return
        self._seq += 1
        if not gone:
            self._gone.pop((kind, key), None)
            self._entries.pop((kind, key), None)  # the newest last
            self._entries[kind, key] = (self._seq, entry)
            return
        self._entries.pop((kind, key), None)
        self._gone[kind, key] = (self._seq, entry)
        while len(self._gone) > GONE_MAX:
            oldest = next(iter(self._gone))
            self._forgot = self._gone.pop(oldest)[0]

    def _key(self, key: Key) -> None:
        if Scope.INFER in ALLOWS[key.scope]:
            entry = KeyEntry(id=key.id, mac=key.mac, scope=key.scope, project_id=key.project_id, expires_ms=key.expires_ms, rpm=key.rpm, tpm=key.tpm,
                             budget_nano=key.budget_nano)  # fmt: skip
            gone = bool(key.revoked_ms)
            self._put(Key, key.id, KeyEntry(id=key.id, gone=True) if gone else entry, gone=gone)

    def _project(self, project: Project) -> None:
        self._put(Project, project.id, ProjectEntry(id=project.id, name=project.name, rpm=project.rpm, tpm=project.tpm))

    def _endpoint(self, key: WorkloadId) -> None:
        endpoint = self._world.endpoints.get(key)
        if endpoint is None:
            entries = self._entries.get((Endpoint, key))
            if entries is not None and isinstance(entries[1], EndpointEntry):
                last = entries[1]
                self._put(
                    Endpoint, key, EndpointEntry(id=key, project_id=last.project_id, name=last.name, serving=last.serving, gone=True), gone=True
                )
            return
        entry = EndpointEntry(
            id=key,
            project_id=endpoint.project_id,
            name=endpoint.name,
            serving=endpoint.serving,
            replicas=tuple(self._replicas(key)),
            created_ms=endpoint.created_ms,
        )
        self._put(Endpoint, key, entry)

    def _replicas(self, key: WorkloadId) -> list[ReplicaEntry]:
        found: list[ReplicaEntry] = []
        for replica in sorted(self._world.replicas.get(key, {}).values(), key=lambda each: each.id):
            held = self._world.held.get(allocation_id(replica.id, 1))
            if held is not None and held.state in SHOWN:
                part = held.parts[0]
                draining = bool(replica.drain_ms) or held.state is AllocationState.STOPPING
                found.append(ReplicaEntry(id=held.id, host=part.host, port=part.port, draining=draining))
        return found


def _newer(entries: Numbered, seq: int) -> Iterator[Entry]:
    """Those of a later number: only they are looked at, and one more."""
    return (entry for _, entry in takewhile(lambda each: each[0] > seq, reversed(entries.values())))
