"""The oracle: the store's promise in plain dictionaries. Simulation runs on it and the SQL stores are compared with it."""

from collections.abc import Sequence
from threading import Lock

import msgspec

from headframe.model.errors import Conflicting, Fenced, VersionConflict
from headframe.model.event import HISTORY, ROW_TYPES, Event, Row
from headframe.model.health import NodeHour
from headframe.model.people import Project
from headframe.model.states import AllocationState
from headframe.model.units import MILLI
from headframe.model.work import Allocation
from headframe.model.world import over
from headframe.store.base import PAGE_MAX, Lease, Query, R, Reply, Snapshot, columns, latest_rows


class MemoryStore:
    """See `Store`. Nothing survives the process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._rows: dict[type, dict[str, Row]] = {kind: {} for kind in ROW_TYPES}
        self._live: dict[type, dict[str, Row]] = {kind: {} for kind in ROW_TYPES}
        self._held: dict[str, int] = {}
        self._events: list[Event] = []
        self._replies: dict[str, Reply] = {}
        self._hours: dict[tuple[str, int], NodeHour] = {}
        self._lease = Lease(holder="", epoch=0, beat=0)

    def load(self) -> Snapshot:
        with self._lock:
            kinds = [kind for kind in ROW_TYPES if kind not in HISTORY]
            rows = [self._live[kind][key] for kind in kinds for key in sorted(self._live[kind])]
            return Snapshot(version=len(self._events), rows=tuple(rows))

    def commit(self, events: Sequence[Event], expect: int, epoch: int | None = None, replies: Sequence[Reply] = ()) -> None:
        with self._lock:
            if epoch is not None and epoch != self._lease.epoch:
                raise Fenced("another server leads")
            if expect != len(self._events):
                raise VersionConflict("somebody committed first")
            rows = [row for of_kind in latest_rows(events).values() for row in of_kind.values()]
            self._check(events, rows, replies)
            for row in rows:
                self._hold(row)
                self._rows[type(row)][row.id] = row
                if over(row):
                    self._live[type(row)].pop(row.id, None)
                else:
                    self._live[type(row)][row.id] = row
            self._events.extend(events)
            self._replies.update({reply.key: reply for reply in replies})

    def _check(self, events: Sequence[Event], rows: Sequence[Row], replies: Sequence[Reply]) -> None:
        assert [event.seq for event in events] == [len(self._events) + 1 + n for n in range(len(events))]
        held: dict[str, int] = {}
        for row in rows:
            if isinstance(row, HISTORY) and row.id in self._rows[type(row)]:
                raise Conflicting(f"{row.id} is recorded already")
            if isinstance(row, Project) and min(row.credit_nano, row.held_nano) < 0:
                raise Conflicting(f"{row.id} would go below zero")
            for gpu, milli in self._change(row):
                held[gpu] = held.get(gpu, self._held.get(gpu, 0)) + milli
        for gpu, milli in held.items():
            if not 0 <= milli <= MILLI:
                raise Conflicting(f"{gpu} would be held twice")
        if any(reply.key in self._replies for reply in replies):
            raise Conflicting("this request is answered already")

    def _change(self, row: Row) -> list[tuple[str, int]]:
        if not isinstance(row, Allocation):
            return []
        old = self._rows[Allocation].get(row.id)
        assert old is None or isinstance(old, Allocation)
        was, is_now = holds(old), holds(row)
        sign = int(is_now) - int(was)
        return [(share.gpu_id, sign * share.milli) for part in row.parts for share in part.shares] if sign else []

    def _hold(self, row: Row) -> None:
        for gpu, milli in self._change(row):
            self._held[gpu] = self._held.get(gpu, 0) + milli

    def events(self, after: int, limit: int, project_id: str | None = None, subject: str | None = None) -> list[Event]:
        with self._lock:
            found: list[Event] = []
            for event in self._events[max(after, 0) :]:
                if len(found) == min(limit, PAGE_MAX):
                    break
                if project_id in {None, event.project_id} and subject in {None, event.subject}:
                    found.append(event)
            return found

    def version(self) -> int:
        return len(self._events)

    def get(self, kind: type[R], key: str) -> R | None:
        with self._lock:
            row = self._rows[kind].get(key)
        assert row is None or isinstance(row, kind)
        return row

    def page(self, kind: type[R], query: Query) -> list[R]:
        with self._lock:
            rows = [row for row in self._rows[kind].values() if isinstance(row, kind) and _matches(row, query)]
        rows.sort(key=lambda row: (columns(row)[4], row.id), reverse=True)
        return rows[: min(query.limit, PAGE_MAX)]

    def keep_hours(self, hours: Sequence[NodeHour], forget_before_ms: int) -> None:
        with self._lock:
            self._hours |= {(hour.node_id, hour.hour_ms): hour for hour in hours}
            self._hours = {key: hour for key, hour in self._hours.items() if hour.hour_ms >= forget_before_ms}

    def hours(self, node_id: str, since_ms: int, limit: int) -> list[NodeHour]:
        with self._lock:
            found = [hour for hour in self._hours.values() if hour.node_id == node_id and hour.hour_ms >= since_ms]
        return sorted(found, key=lambda hour: hour.hour_ms)[-min(limit, PAGE_MAX) :]

    def reply(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def forget_replies(self, before_ms: int) -> None:
        with self._lock:
            self._replies = {key: reply for key, reply in self._replies.items() if reply.at_ms >= before_ms}

    def lease(self) -> Lease:
        return self._lease

    def lead(self, holder: str, seen: Lease) -> Lease | None:
        with self._lock:
            if self._lease != seen:
                return None
            epoch = seen.epoch + (holder != seen.holder)
            self._lease = Lease(holder=holder, epoch=epoch, beat=seen.beat + 1)
            return self._lease

    def close(self) -> None:
        """Nothing to let go of."""

    def dump(self) -> dict[str, object]:
        """Everything, for comparison with another store."""
        rows = {kind.__name__: {k: msgspec.to_builtins(table[k]) for k in sorted(table)} for kind, table in self._rows.items()}
        held = {gpu: milli for gpu, milli in sorted(self._held.items()) if milli}
        return {"rows": rows, "held": held, "events": msgspec.to_builtins(self._events), "lease": msgspec.to_builtins(self._lease)}


def holds(allocation: Allocation | None) -> bool:
    """Whether an allocation holds its GPUs."""
    return allocation is not None and allocation.state is not AllocationState.ENDED


def _matches(row: Row, query: Query) -> bool:
    project, parent, state, name, at_ms = columns(row)
    return (
        query.project_id in {None, project}
        and query.parent_id in {None, parent}
        and (not query.states or state in query.states)
        and query.name in {None, name}
        and at_ms >= query.since_ms
        and (not query.until_ms or at_ms < query.until_ms)
        and (query.before is None or (at_ms, row.id) < query.before)
    )
