"""What a store promises. Three keep the promise (memory, SQLite, PostgreSQL) and are held to it by the same random operations.

A commit carries events; each row of each event replaces the row of that id. It succeeds only if nobody committed since
`expect`, if `epoch` (given by a leader) still leads, if no GPU would be held beyond the whole of it, if no balance would go
below zero and if every entry is new. It succeeds whole or changes nothing.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Protocol, TypeVar

import msgspec

from headframe.model.event import Event, Row
from headframe.model.health import NodeHour

PAGE_MAX = 1000
R = TypeVar("R", bound=Row)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The rows that a world needs, parents first, as of `version`."""

    version: int
    rows: tuple[Row, ...]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to an idempotent request, kept with the commit that made it true."""

    key: str
    request_hash: str
    status: int
    body: bytes
    at_ms: int


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Who leads. `beat` rises with each renewal: a follower that sees it stand still, by its own clock, may take over."""

    holder: str
    epoch: int
    beat: int


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows of one kind, newest first: `parent_id` is what a row belongs to, `before` is the last page's last row."""

    project_id: str | None = None
    parent_id: str | None = None
    states: tuple[str, ...] = ()
    name: str | None = None
    since_ms: int = 0
    until_ms: int = 0
    before: tuple[int, str] | None = None
    limit: int = 100


class Store(Protocol):
    """All calls block, are safe from any thread, and raise `Unavailable` when the store can't be used now."""

    def load(self) -> Snapshot:
        """Everything a world needs."""
        ...

    def commit(self, events: Sequence[Event], expect: int, epoch: int | None = None, replies: Sequence[Reply] = ()) -> None:
        """Append; raises VersionConflict, Fenced, Conflicting (a guard of the data itself) or Unavailable."""
        ...

    def events(self, after: int, limit: int, project_id: str | None = None, subject: str | None = None) -> list[Event]:
        """Events with `seq > after`, oldest first."""
        ...

    def version(self) -> int:
        """The last event's seq."""
        ...

    def get(self, kind: type[R], key: str) -> R | None:
        """One row, live or past."""
        ...

    def page(self, kind: type[R], query: Query) -> list[R]:
        """Rows, newest first."""
        ...

    def keep_hours(self, hours: Sequence[NodeHour], forget_before_ms: int) -> None:
        """Keep what cards said, an hour again in place of what was kept of it, and forget what is older. No part of the world, and no event."""
        ...

    def hours(self, node_id: str, since_ms: int, limit: int) -> list[NodeHour]:
        """A machine's last hours from `since_ms` on, at most `limit`, oldest first."""
        ...

    def reply(self, key: str) -> Reply | None:
        """The stored answer to an idempotent request."""
        ...

    def forget_replies(self, before_ms: int) -> None:
        """Forget stored answers of before then; others' writes may come between."""
        ...

    def lease(self) -> Lease:
        """Who leads now; epoch 0 when nobody ever did."""
        ...

    def lead(self, holder: str, seen: Lease) -> Lease | None:
        """Take or renew leadership if the lease is still as `seen`; a new holder gets a new epoch. None if it is not."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def every(store: Store, kind: type[R], query: Query) -> Iterator[R]:
    """All rows of a query, newest first, page by page."""
    while True:
        page = store.page(kind, msgspec.structs.replace(query, limit=PAGE_MAX))
        yield from page
        if len(page) < PAGE_MAX:
            return
        query = msgspec.structs.replace(query, before=(columns(page[-1])[4], page[-1].id))


def columns(row: Row) -> tuple[str, str, str, str, int]:
    """What rows are found by: (project, parent, state, name, at_ms)."""
    project, parent, state, name, at = _columns(type(row))
    return project(row), parent(row), str(state(row)), name(row), at(row)


@cache
def _columns(kind: type[Row]) -> tuple[Callable[[Row], Any], ...]:
    """How to read those of a kind of row; empty for what it has not."""

    def first(*names: str) -> Callable[[Row], Any]:
        found = next((name for name in names if name in kind.__struct_fields__), "")
        return attrgetter(found) if found else lambda _: ""

    at = first("submitted_ms", "granted_ms", "start_ms", "at_ms", "created_ms", "joined_ms", "effective_ms", "since_ms", "changed_ms")
    return first("project_id"), first("endpoint_id", "workload_id", "node_id", "rack_id", "site_id"), first("state"), first("name", "account"), at


def latest_rows(events: Sequence[Event]) -> dict[type[Row], dict[str, Row]]:
    """The last version of each row in a batch, by kind and id, in order of first appearance."""
    latest: dict[type[Row], dict[str, Row]] = defaultdict(dict)
    for event in events:
        for row in event.rows:
            latest[type(row)][row.id] = row
    return latest
