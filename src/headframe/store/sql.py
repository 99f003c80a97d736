"""The store on SQLite and PostgreSQL: one set of queries. Writers are serialised by the control row, whose version is the guard."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, IntegrityError

from headframe.model.errors import Conflicting, DiskFull, Fenced, HeadframeError, Unavailable, VersionConflict
from headframe.model.event import HISTORY, ROW_TYPES, Event, Row
from headframe.model.health import NodeHour
from headframe.model.people import Project
from headframe.model.states import AllocationState
from headframe.model.work import Allocation
from headframe.model.world import over
from headframe.store.base import PAGE_MAX, Lease, Query, R, Reply, Snapshot, columns, latest_rows
from headframe.store.log import Log
from headframe.store.memory import holds
from headframe.store.tables import APPEND_ONLY, NOUNS, OWNED, control, event, gpu_held, hour, reply

BUSY_TIMEOUT_MS = 5_000
STATEMENT_TIMEOUT_MS = 15_000
FORGOTTEN_AT_ONCE = 1_000
"""Stored answers, in one transaction: some milliseconds, in which nobody else writes."""
KEYS = ("project_id", "parent_id", "at_ms")
"""What rows are in order by."""
TOGETHER = 64
"""Rows that one statement inserts in SQLite, where there are so many: it opens a table and all its indexes anew for each statement, which takes about as long as a row."""
_encode = msgspec.json.Encoder().encode
_hour = msgspec.json.Decoder(NodeHour)
_event = msgspec.json.Decoder(Event)
_decoders: dict[type, msgspec.json.Decoder[Any]] = {kind: msgspec.json.Decoder(kind) for kind in ROW_TYPES}


class SqlStore:
    """See `Store`. Open it with `headframe.store.open.open_store`, which also migrates."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
        self._puts = {kind: [_Many(put, engine, NOUNS[kind].c.keys()) for put in self._replacing(NOUNS[kind])] for kind in ROW_TYPES}
        self._tell = _Many(sa.insert(event), engine, event.c.keys())
        taken = self._insert(gpu_held)
        taken = taken.on_conflict_do_update(index_elements=["gpu_id"], set_={"milli": gpu_held.c.milli + taken.excluded.milli})
        self._take = _Many(taken, engine, gpu_held.c.keys())
        listed = "SELECT json_array_elements_text(CAST(:ids AS json))" if engine.dialect.name == "postgresql" else "SELECT value FROM json_each(:ids)"
        holding = NOUNS[Allocation].c
        self._holding = sa.select(holding.id).where(holding.state != AllocationState.ENDED, holding.id.in_(sa.text(listed)))
        given = sa.update(gpu_held).where(gpu_held.c.gpu_id == sa.bindparam("of"))
        self._give_back = _Many(given.values(milli=gpu_held.c.milli + sa.bindparam("more")), engine, ("more", "of"))
        kept = self._insert(hour)
        kept = kept.on_conflict_do_update(index_elements=["node_id", "hour_ms"], set_={"body": kept.excluded.body})
        self._keep = _Many(kept, engine, hour.c.keys())
        self._reply = _Many(sa.insert(reply), engine, reply.c.keys())
        self._log = Log(engine)

    def load(self) -> Snapshot:
        with self._read() as db:
            version = db.scalar(sa.select(control.c.version)) or 0
            rows: list[Row] = []
            for kind in ROW_TYPES:
                if kind not in HISTORY:
                    table = NOUNS[kind]
                    found = db.scalars(sa.select(table.c.body).where(table.c.live).order_by(table.c.id))
                    rows.extend(_decoders[kind].decode(body) for body in found)
            return Snapshot(version=version, rows=tuple(rows))

    def commit(self, events: Sequence[Event], expect: int, epoch: int | None = None, replies: Sequence[Reply] = ()) -> None:
        with self._write() as db:
            self._guard(db, expect, expect + len(events), epoch)
            self._put(db, latest_rows(events))
            self._tell(db, [(e.seq, e.at_ms, e.project_id, e.subject, _encode(e)) for e in events])
            self._reply(db, [msgspec.structs.astuple(r) for r in replies])
        self._log.grew(len(events))

    def events(self, after: int, limit: int, project_id: str | None = None, subject: str | None = None) -> list[Event]:
        query = sa.select(event.c.body).where(event.c.seq > after).order_by(event.c.seq).limit(min(limit, PAGE_MAX))
        if project_id is not None:
            query = query.where(event.c.project_id == project_id)
        if subject is not None:
            query = query.where(event.c.subject == subject)
        with self._read() as db:
            return [_event.decode(body) for body in db.scalars(query)]

    def version(self) -> int:
        with self._read() as db:
            return db.scalar(sa.select(control.c.version)) or 0

    def get(self, kind: type[R], key: str) -> R | None:
        table = NOUNS[kind]
        with self._read() as db:
            body = db.scalar(sa.select(table.c.body).where(table.c.id == key))
        return None if body is None else _decoders[kind].decode(body)

    def page(self, kind: type[R], query: Query) -> list[R]:
        table = NOUNS[kind]
        wanted = sa.select(table.c.body).where(*_where(table, query))
        newest = wanted.order_by(table.c.at_ms.desc(), table.c.id.desc()).limit(min(query.limit, PAGE_MAX))
        with self._read() as db:
            return [_decoders[kind].decode(body) for body in db.scalars(newest)]

    def keep_hours(self, hours: Sequence[NodeHour], forget_before_ms: int) -> None:
        with self._write() as db:
            self._keep(db, [(each.node_id, each.hour_ms, _encode(each)) for each in hours])
            db.execute(sa.delete(hour).where(hour.c.hour_ms < forget_before_ms))

    def hours(self, node_id: str, since_ms: int, limit: int) -> list[NodeHour]:
        wanted = sa.select(hour.c.body).where(hour.c.node_id == node_id, hour.c.hour_ms >= since_ms)
        with self._read() as db:
            found = db.scalars(wanted.order_by(hour.c.hour_ms.desc()).limit(min(limit, PAGE_MAX))).all()
        return [_hour.decode(body) for body in reversed(found)]

    def reply(self, key: str) -> Reply | None:
        with self._read() as db:
            row = db.execute(sa.select(reply).where(reply.c.key == key)).mappings().first()
        return Reply(**row) if row else None

    def forget_replies(self, before_ms: int) -> None:
        oldest = sa.select(reply.c.key).where(reply.c.at_ms < before_ms).order_by(reply.c.at_ms).limit(FORGOTTEN_AT_ONCE)
        gone = FORGOTTEN_AT_ONCE
        while gone == FORGOTTEN_AT_ONCE:
            with self._write() as db:
                gone = db.execute(sa.delete(reply).where(reply.c.key.in_(oldest))).rowcount

    def lease(self) -> Lease:
        with self._read() as db:
            row = db.execute(sa.select(control.c.holder, control.c.epoch, control.c.beat)).mappings().one()
        return Lease(**row)

    def lead(self, holder: str, seen: Lease) -> Lease | None:
        mine = Lease(holder=holder, epoch=seen.epoch + (holder != seen.holder), beat=seen.beat + 1)
        still = (control.c.holder == seen.holder, control.c.epoch == seen.epoch, control.c.beat == seen.beat)
        with self._write() as db:
            done = db.execute(sa.update(control).where(*still).values(**msgspec.structs.asdict(mine)))
            return mine if done.rowcount else None

    def close(self) -> None:
        self._log.close()
        self._engine.dispose()

    def dump(self) -> dict[str, object]:
        """Everything, for comparison with the oracle."""
        with self._read() as db:
            rows = {
                kind.__name__: {
                    key: msgspec.to_builtins(_decoders[kind].decode(body))
                    for key, body in sorted(db.execute(sa.select(NOUNS[kind].c.id, NOUNS[kind].c.body)).tuples())
                }
                for kind in ROW_TYPES
            }
            held = dict(sorted(db.execute(sa.select(gpu_held).where(gpu_held.c.milli > 0)).tuples()))
            bodies = db.scalars(sa.select(event.c.body).order_by(event.c.seq)).all()
        events = [msgspec.to_builtins(_event.decode(body)) for body in bodies]
        return {"rows": rows, "held": held, "events": events, "lease": msgspec.to_builtins(self.lease())}

    def _guard(self, db: sa.Connection, expect: int, version: int, epoch: int | None) -> None:
        """The one row that all writers must change: whoever planned on an older version, or no longer leads, changes none."""
        guarded = sa.update(control).where(control.c.version == expect)
        if epoch is not None:
            guarded = guarded.where(control.c.epoch == epoch)
        if db.execute(guarded.values(version=version)).rowcount:
            return
        if epoch is not None and db.scalar(sa.select(control.c.epoch)) != epoch:
            raise Fenced("another server leads")
        raise VersionConflict("somebody committed first")

    def _put(self, db: sa.Connection, rows: Mapping[type[Row], Mapping[str, Row]]) -> None:
        self._hold(db, [row for row in rows.get(Allocation, {}).values() if isinstance(row, Allocation)])
        for kind, of_kind in rows.items():
            values = [_values(row) for row in of_kind.values()]
            for put in self._puts[kind]:
                if put(db, values) == len(values):
                    break

    def _hold(self, db: sa.Connection, allocations: Sequence[Allocation]) -> None:
        """GPUs taken and given back by these rows; the table's own check refuses a GPU held beyond the whole of it."""
        if not allocations:
            return
        held_before = set(db.scalars(self._holding, {"ids": _encode([a.id for a in allocations]).decode()}))
        changes = [
            (share.gpu_id, sign * share.milli)
            for allocation in allocations
            for sign in (int(holds(allocation)) - int(allocation.id in held_before),)
            if sign
            for part in allocation.parts
            for share in part.shares
        ]
        # Give back before taking. PostgreSQL checks the row proposed for insertion even when it conflicts, so giving back is an update.
        self._give_back(db, [(milli, gpu) for gpu, milli in changes if milli < 0])
        self._take(db, [(gpu, milli) for gpu, milli in changes if milli >= 0])

    def _replacing(self, table: sa.Table) -> Sequence[Any]:
        """What puts rows into a table, each in place of the one of its id. The first does it where none moves to other keys, and leaves out those that do: SQLite takes a row out of an index and
        puts it back for each column that a statement sets, be it to what it was.
        """
        statement = self._insert(table)
        if table in APPEND_ONLY:
            return [statement]
        new = statement.excluded
        whole = {column.name: new[column.name] for column in table.c if column.name != "id"}
        beside = {name: value for name, value in whole.items() if name not in KEYS}
        stays = sa.and_(*(table.c[name] == new[name] for name in KEYS))
        return [
            statement.on_conflict_do_update(index_elements=["id"], set_=beside, where=stays),
            statement.on_conflict_do_update(index_elements=["id"], set_=whole),
        ]

    @contextmanager
    def _read(self) -> Generator[sa.Connection]:
        with _speaking(), self._engine.connect() as db:
            yield db

    @contextmanager
    def _write(self) -> Generator[sa.Connection]:
        with _speaking(), self._engine.connect() as db:
            if self._engine.dialect.name == "sqlite":
                db.exec_driver_sql("BEGIN IMMEDIATE")
            with db.begin() if not db.in_transaction() else _committing(db):
                yield db


class _Many:
    """A statement for many rows at a time, compiled once: SQLAlchemy works each row's parameters out anew, which took longer than SQLite itself."""

    def __init__(self, statement: Any, engine: sa.Engine, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=engine.dialect)
        assert compiled.positiontup in (None, list(names)), "rows are handed over as they are"
        self._text = str(compiled)
        self._named = () if compiled.positiontup else tuple(names)
        self._together = _together(self._text, len(names)) if compiled.isinsert and not self._named else ""

    def __call__(self, db: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> int:
        """Rows, of which there may be none, with the values of `names`, by which some drivers want them. Returns how many were written."""
        done, written = 0, 0
        while self._together and len(rows) - done >= TOGETHER:
            values = tuple(chain.from_iterable(rows[done : done + TOGETHER]))
            written += db.exec_driver_sql(self._together, values).rowcount
            done += TOGETHER
        if left := rows[done:]:
            each = [dict(zip(self._named, row, strict=True)) for row in left] if self._named else list(left)
            written += db.exec_driver_sql(self._text, each).rowcount
        return written


def _together(text: str, columns: int) -> str:
    """An insertion of one row, for as many as go together. One that fails leaves what it has done to the transaction, which is rolled back in any case; SQLite would else
    copy each page aside to undo it.
    """
    row = f"({', '.join('?' * columns)})"
    return text.replace("INSERT INTO", "INSERT OR FAIL INTO").replace(f"VALUES {row}", f"VALUES {', '.join([row] * TOGETHER)}")


@contextmanager
def _committing(db: sa.Connection) -> Generator[None]:
    try:
        yield
    except BaseException:
        db.rollback()
        raise
    db.commit()


@contextmanager
def _speaking() -> Generator[None]:
    """Database errors in our own words: what the data forbids is a conflict, everything else is unavailability."""
    try:
        yield
    except IntegrityError as error:
        raise Conflicting(f"the store refused: {error.orig}") from error
    except DBAPIError as error:
        raise _unavailable(error) from error


def _unavailable(error: DBAPIError) -> HeadframeError:
    text = str(error.orig)
    full = any(sign in text for sign in ("disk is full", "No space left", "could not extend file", "disk I/O error"))
    return DiskFull(f"the store's disk is full: {text}") if full else Unavailable(f"the store does not answer: {text}")


def _values(row: Row) -> tuple[Any, ...]:
    """A row's columns, in the order of its table's."""
    more = (row.credit_nano, row.held_nano) if isinstance(row, Project) else ()
    return (row.id, *columns(row), not over(row), _encode(row), *more)


def _where(table: sa.Table, query: Query) -> list[sa.ColumnElement[bool]]:
    equal = (("project_id", query.project_id), ("parent_id", query.parent_id), ("name", query.name))
    found: list[sa.ColumnElement[bool]] = [table.c[name] == value for name, value in equal if value is not None]
    if query.parent_id:
        found.append(OWNED)
    if query.states:
        found.append(table.c.state.in_(query.states))
    if query.since_ms:
        found.append(table.c.at_ms >= query.since_ms)
    if query.until_ms:
        found.append(table.c.at_ms < query.until_ms)
    if query.before is not None:
        found.append(sa.tuple_(table.c.at_ms, table.c.id) < sa.tuple_(*map(sa.literal, query.before)))
    return found
