"""Three stores, one promise: the same random operations, the same replies, the same contents."""

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from headframe.model.errors import Conflicting, Fenced, HeadframeError, StoreMismatch, VersionConflict
from headframe.model.endpoint import Allowance, Served
from headframe.model.event import Event, Kind
from headframe.model.fleet import Node, Volume
from headframe.model.health import CardHour, NodeHour
from headframe.model.ids import AllocationId, KeyId, PostingId, ProjectId, UsageId, WorkloadId
from headframe.model.money import Entry, EntryKind, Usage
from headframe.model.people import Project
from headframe.model.states import AllocationState, WorkloadState
from headframe.model.work import Allocation, Part, Share, Spec, Tier, Workload
from headframe.store import sql
from headframe.store.base import Lease, Query, Reply
from headframe.store.memory import MemoryStore
from headframe.store.open import PAGE_BYTES, WAL_PAGES, open_store
from headframe.store.sql import _where
from headframe.store.tables import NOUNS
from support import gpu, node

ids = st.integers(0, 4)
OPERATIONS = {
    "commit",
    "conflict",
    "stale epoch",
    "epoch",
    "held twice",
    "entry twice",
    "below zero",
    "get",
    "page",
    "events",
    "lead",
    "reply",
    "forget replies",
    "hours",
    "load",
    "version",
}


def project(n, credit):
    return Project(id=ProjectId(f"pr-{n}"), name=f"p{n}", created_ms=n, credit_nano=credit)


def workload(n, state, closed):
    return Workload(
        id=WorkloadId(f"wl-{n}"),
        project_id=ProjectId(f"pr-{n % 2}"),
        key_id=KeyId("k"),
        name=f"w{n}",
        spec=Spec(run="x"),
        state=state,
        submitted_ms=n % 3,
        queued_ms=0,
        closed=closed,
    )


def allocation(n, state, gpus, milli):
    shares = tuple(Share(gpu_id=f"GPU-0-{k}", index=k, model="m", milli=milli) for k in sorted(gpus))
    part = Part(rank=0, node_id="node-0", shares=shares, cpu_milli=1, memory_mib=1, disk_mib=1)
    return Allocation(
        id=AllocationId(f"wl-{n}.1"),
        workload_id=WorkloadId(f"wl-{n}"),
        project_id=ProjectId("pr-0"),
        attempt=1,
        tier=Tier.SPOT,
        parts=(part,),
        state=state,
        granted_ms=n,
    )


def entry(n, account):
    return Entry(
        id=f"e{n}",
        posting_id=PostingId("p"),
        kind=EntryKind.HOLD,
        account=account,
        amount_nano=n,
        project_id=ProjectId("pr-0"),
        workload_id=WorkloadId("wl-1"),
        at_ms=n,
        memo="ü",
    )


def usage(n):
    return Usage(
        id=UsageId(f"u{n}"),
        allocation_id="a",
        workload_id="wl-1",
        project_id="pr-0",
        start_ms=n,
        end_ms=n + 1,
        gpu_milli=0,
        cpu_milli=0,
        memory_mib=0,
        disk_mib=0,
        price_version=1,
        rate_nano=0,
        amount_nano=0,
    )


def served(n):
    return Served(
        id=f"v{n}",
        gateway_id="gw-0",
        endpoint_id="wl-1",
        project_id=ProjectId("pr-0"),
        key_id=KeyId("k"),
        at_ms=n,
        requests=1,
        prompt=n,
        completion=1,
    )


def hour(n, at, minutes):
    return NodeHour(node_id=f"node-{n}", hour_ms=at, cards=(CardHour(gpu_id=f"GPU-{n}-0", minutes=minutes, power_w=100.5),))


rows = st.one_of(
    st.builds(project, st.integers(0, 1), st.sampled_from([-1, 0, 7, 10**15])),
    st.builds(workload, ids, st.sampled_from(WorkloadState), st.booleans()),
    st.builds(
        allocation, ids, st.sampled_from(AllocationState), st.sets(st.integers(0, 3), min_size=1, max_size=2), st.sampled_from([250, 500, 1000])
    ),
    st.builds(entry, st.integers(0, 9), st.sampled_from(["credit/pr-0", "held/pr-0"])),
    st.builds(usage, st.integers(0, 9)),
    st.builds(served, st.integers(0, 9)),
    st.builds(
        lambda n, left: Allowance(id=f"gw-0.pr-{n}", gateway_id="gw-0", project_id=f"pr-{n}", created_ms=n, granted_nano=left), ids, st.integers(0, 9)
    ),
    st.builds(node, ids, rack_id=st.sampled_from(["rack-1", "rack-2"]), joined_ms=st.integers(0, 2)),
    st.builds(gpu, ids, ids),
)
queries = st.builds(
    Query,
    project_id=st.sampled_from([None, "pr-0", "pr-1"]),
    parent_id=st.sampled_from([None, "wl-1", "rack-2"]),
    states=st.sampled_from([(), ("queued",), ("running", "ended")]),
    name=st.sampled_from([None, "w1"]),
    since_ms=st.integers(0, 2),
    until_ms=st.integers(0, 3),
    before=st.sampled_from([None, (2, "wl-2"), (1, "e1")]),
    limit=st.integers(1, 3),
)
commits = st.tuples(
    st.just("commit"), st.lists(st.lists(rows, max_size=3), min_size=1, max_size=3), st.integers(0, 9), st.integers(-1, 9), st.integers(0, 3)
)
operations = st.one_of(
    commits,
    commits.map(tuple),  # twice as often
    st.tuples(st.just("get"), st.sampled_from([Workload, Allocation, Project, Entry, Usage, Served, Allowance]), st.integers(0, 1)),
    st.builds(lambda kind: ("page", kind, Query()), st.sampled_from([Workload, Allocation, Project, Entry, Usage, Served])),
    st.tuples(st.just("page"), st.sampled_from([Workload, Allocation, Project, Entry, Usage, Served, Node]), queries),
    st.tuples(st.just("events"), st.integers(0, 5), st.integers(1, 4), st.sampled_from([None, "pr-0", ""]), st.sampled_from([None, "s1"])),
    st.tuples(st.just("lead"), st.sampled_from(["a", "b"]), st.booleans()),
    st.tuples(st.just("reply"), st.integers(0, 3)),
    st.tuples(st.just("forget replies"), st.integers(0, 2), st.integers(1, 3)),
    st.builds(
        lambda kept, *asked: ("hours", kept, *asked),
        st.lists(st.builds(hour, st.integers(0, 1), st.integers(0, 3), st.integers(1, 60)), max_size=3),
        st.integers(0, 3),
        st.integers(0, 1),
        st.integers(0, 3),
        st.integers(1, 3),
    ),
    st.tuples(st.just("load")),
    st.tuples(st.just("version")),
)


def run(store, operation):
    """One operation's answer, or the name of its refusal."""
    try:
        return answer(store, operation)
    except (VersionConflict, Fenced, Conflicting) as refused:
        return type(refused).__name__


def answer(store, operation):
    match operation:
        case ("commit", groups, stale, epoch, reply):
            base = store.version() - (stale == 0)
            events = [
                Event(
                    seq=base + 1 + n,
                    at_ms=n,
                    kind=Kind.NODE_CHANGED,
                    subject=f"s{n}",
                    project_id=ProjectId("pr-0" if n else ""),
                    text="t",
                    rows=tuple(group),
                )
                for n, group in enumerate(groups)
            ]
            replies = [Reply(key=f"k{reply}", request_hash="h", status=201, body=b"{}", at_ms=reply % 3)] if reply else []
            current = store.lease().epoch
            guard = None if epoch < 0 else current if epoch else current + 1
            return store.commit(events, base, guard, replies)
        case ("get", kind, n):
            there = [row.id for row in store.page(kind, Query())]
            return store.get(kind, there[n] if n < len(there) else "none")
        case ("page", kind, query):
            return store.page(kind, query)
        case ("events", after, limit, project_id, subject):
            return store.events(after, limit, project_id, subject)
        case ("lead", holder, fresh):
            return store.lead(holder, store.lease() if fresh else Lease(holder="x", epoch=99, beat=99))
        case ("reply", n):
            return store.reply(f"k{n}")
        case ("forget replies", before_ms, n):
            known = store.reply(f"k{n}")
            store.forget_replies(before_ms)
            return (known is not None and store.reply(f"k{n}") is None) or None
        case ("hours", kept, forget_before_ms, n, since_ms, limit):
            last = {(each.node_id, each.hour_ms): each for each in kept}  # of one call each hour is told once
            store.keep_hours(list(last.values()), forget_before_ms)
            return store.hours(f"node-{n}", since_ms, limit)
        case ("load",):
            snapshot = store.load()
            return snapshot.version, sorted(snapshot.rows, key=lambda row: (type(row).__name__, row.id))
        case ("version",):
            return store.version()


def seen(operation, result):
    """Which kinds of thing have now been seen to happen."""
    if operation[0] != "commit":
        return {operation[0]} if result not in (None, []) else set()
    _, groups, stale, epoch, _ = operation
    if result == "VersionConflict":
        return {"conflict"}
    if result == "Fenced":
        return {"stale epoch"}
    if result == "Conflicting":
        kinds = {type(row) for group in groups for row in group}
        return {name for name, kind in (("held twice", Allocation), ("entry twice", Entry), ("below zero", Project)) if kind in kinds}
    return {"commit", *(["epoch"] if epoch > 0 else [])}


def compare(reset):
    happened = set()

    @settings(max_examples=350)
    @given(st.lists(operations, max_size=25))
    def drive(steps):
        oracle, store = MemoryStore(), reset()
        for step in steps:
            want, got = run(oracle, step), run(store, step)
            assert got == want, step
            happened.update(seen(step, want))
        assert store.dump() == oracle.dump()
        store.close()

    drive()
    assert happened >= OPERATIONS, f"never happened: {OPERATIONS - happened}"


def test_sqlite_answers_as_the_oracle_does(tmp_path, monkeypatch):
    monkeypatch.setattr(sql, "TOGETHER", 2)
    blank = tmp_path / "blank.db"
    open_store(f"sqlite:///{blank}").close()
    data, count = blank.read_bytes(), iter(range(10**6))

    def reset():
        path = tmp_path / f"{next(count)}.db"
        path.write_bytes(data)
        return open_store(f"sqlite:///{path}")

    compare(reset)


@pytest.mark.slow
def test_postgresql_answers_as_the_oracle_does(postgres):
    open_store(postgres.url).close()
    engine = sa.create_engine(postgres.url)
    from headframe.store.tables import metadata

    def reset():
        with engine.begin() as db:
            db.exec_driver_sql("SET session_replication_role = replica")
            for table in metadata.sorted_tables:
                if table.name != "control":
                    db.exec_driver_sql(f'DELETE FROM "{table.name}"')
            db.exec_driver_sql("UPDATE control SET version = 0, holder = '', epoch = 0, beat = 0")
            db.exec_driver_sql("SET session_replication_role = origin")
        return open_store(postgres.url)

    compare(reset)


@pytest.mark.parametrize("table", ["entry", "usage", "event"])
def test_the_database_itself_refuses_to_change_history(tmp_path, table):
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    store.commit([Event(seq=1, at_ms=1, kind=Kind.NODE_CHANGED, subject="s", text="t", rows=(entry(1, "credit/pr-0"), usage(1)))], 0)
    for statement in (f"UPDATE {table} SET at_ms = 5", f"DELETE FROM {table}"):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), store._engine.begin() as db:
            db.exec_driver_sql(statement)


def test_stored_answers_are_forgotten_a_few_at_a_time_and_those_that_are_younger_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(sql, "FORGOTTEN_AT_ONCE", 2)
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    replies = [Reply(key=f"k{n}", request_hash="h", status=201, body=b"{}", at_ms=n) for n in range(8)]
    store.commit([Event(seq=1, at_ms=1, kind=Kind.NODE_CHANGED, subject="s", text="t")], 0, None, replies)
    store.forget_replies(5)
    assert [n for n in range(8) if store.reply(f"k{n}")] == [5, 6, 7]


def test_rows_that_move_are_found_where_they_are_now(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    before, after = [[node(n, rack_id=rack, joined_ms=n + when) for n in range(3)] for rack, when in (("rack-1", 0), ("rack-2", 5))]
    stays = msgspec.structs.replace(before[1], why="as before")
    for seq, rows in enumerate((before, [after[0], stays, after[2]]), 1):
        store.commit([Event(seq=seq, at_ms=1, kind=Kind.NODE_CHANGED, subject="s", text="t", rows=tuple(rows))], seq - 1)
    assert store.page(Node, Query(parent_id="rack-2")) == [after[2], after[0]]
    assert store.page(Node, Query(parent_id="rack-1")) == [stays]
    assert store.page(Node, Query(since_ms=5)) == [after[2], after[0]]


def test_what_belongs_to_something_is_found_by_an_index(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    for table in NOUNS.values():
        asked = sa.select(table.c.id).where(*_where(table, Query(parent_id="x"))).order_by(table.c.at_ms.desc(), table.c.id.desc())
        with store._engine.connect() as db:
            steps = [row[3] for row in db.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked.compile(compile_kwargs={'literal_binds': True})}")]
        assert len(steps) == 1 and f"{table.name}_by_parent (parent_id=?)" in steps[0], steps


def test_a_store_made_by_a_newer_version_is_refused(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    with store._engine.begin() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()
    with pytest.raises(StoreMismatch, match="newer"):
        open_store(f"sqlite:///{tmp_path / 'a.db'}")


LATER = """
from alembic import op
revision = "0010"
down_revision = "0009"


def upgrade():
    op.execute("ALTER TABLE node ADD COLUMN later TEXT")
"""


def test_an_older_store_is_backed_up_and_migrated_and_then_refused_by_the_older_version(tmp_path, monkeypatch):
    import shutil

    import headframe.store.open as opening

    path = tmp_path / "a.db"
    store = open_store(f"sqlite:///{path}")
    store.commit([Event(seq=1, at_ms=1, kind=Kind.NODE_CHANGED, subject="s", text="t", rows=(entry(1, "credit/pr-0"),))], 0)
    before = store.dump()
    store.close()
    later = tmp_path / "migrations"
    shutil.copytree(opening.MIGRATIONS, later)
    (later / "versions" / "0010_later.py").write_text(LATER)
    with monkeypatch.context() as newer:
        newer.setattr(opening, "MIGRATIONS", later)
        migrated = open_store(f"sqlite:///{path}")
        assert migrated.dump() == before
        with migrated._engine.connect() as db:
            assert "later" in {row[1] for row in db.exec_driver_sql("PRAGMA table_info(node)")}
        migrated.close()
    assert open_store(f"sqlite:///{tmp_path / 'a.db.before-0009.bak'}").dump() == before
    with pytest.raises(StoreMismatch, match="newer"):
        open_store(f"sqlite:///{path}")


def test_a_store_of_the_first_schema_gets_the_tables_that_came_later(tmp_path):
    path = tmp_path / "a.db"
    store = open_store(f"sqlite:///{path}")
    with store._engine.begin() as db:
        for table in (
            "reservation",
            "volume",
            "rig",
            "hour",
            "engine",
            "endpoint",
            "gateway",
            "allowance",
            "served",
            "market_day",
            "signal",
            "coin",
            "filler",
            "asic",
            "posture",
            "node_yield",
        ):
            db.exec_driver_sql(f"DROP TABLE {table}")
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")
    store.close()
    volume = Volume(id="vol-1", project_id="pr-0", name="data", node_id="node-1", created_ms=1)
    store = open_store(f"sqlite:///{path}")
    store.commit([Event(seq=1, at_ms=1, kind=Kind.VOLUME_CREATED, subject="s", text="t", rows=(volume,))], 0)
    assert store.load().rows == (volume,)


@pytest.mark.slow
def test_an_older_postgresql_store_is_copied_into_a_schema_of_its_own_before_it_is_migrated(postgres, tmp_path, monkeypatch):
    import shutil

    import headframe.store.open as opening

    store = open_store(postgres.url)
    store.commit([Event(seq=1, at_ms=1, kind=Kind.NODE_CHANGED, subject="s", text="t", rows=(entry(1, "credit/pr-0"),))], 0)
    before = store.dump()
    store.close()
    later = tmp_path / "migrations"
    shutil.copytree(opening.MIGRATIONS, later)
    (later / "versions" / "0010_later.py").write_text(LATER)
    monkeypatch.setattr(opening, "MIGRATIONS", later)
    migrated = open_store(postgres.url)
    assert migrated.dump() == before
    with migrated._engine.connect() as db:
        assert db.exec_driver_sql("SELECT count(*) FROM headframe_before_0009.entry").scalar() == 1
        assert db.exec_driver_sql("SELECT version_num FROM headframe_before_0009.alembic_version").scalar() == "0009"
        assert db.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "0010"
    migrated.close()


def test_an_acknowledged_commit_is_on_disk_with_full_sync(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    with store._engine.connect() as db:
        assert db.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert db.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_what_was_written_comes_into_its_place_while_the_store_is_open_and_no_commit_waits_for_it(tmp_path):
    path = tmp_path / "a.db"
    store = open_store(f"sqlite:///{path}")
    small = path.stat().st_size
    for done in range(0, 6000, 600):
        store.commit([Event(seq=done + n, at_ms=1, kind=Kind.NODE_CHANGED, subject="s", text="t" * 2000) for n in range(1, 601)], done)
    store._log._thread.submit(lambda: None).result(timeout=10)  # what was asked of it before has ended
    assert path.stat().st_size > small + 1_000_000
    assert path.with_name("a.db-wal").stat().st_size < WAL_PAGES * PAGE_BYTES
    store.close()
    store._log.grew(10_000)  # a commit that ends just after


def test_a_refusal_changes_nothing(tmp_path):
    store = open_store(f"sqlite:///{tmp_path / 'a.db'}")
    before = store.dump()
    bad = Event(seq=1, at_ms=1, kind=Kind.NODE_CHANGED, subject="s", text="t", rows=(entry(1, "credit/pr-0"), project(1, -5)))
    with pytest.raises(HeadframeError):
        store.commit([bad], 0)
    assert store.dump() == before
    assert msgspec.json.encode(store.lease())
