"""Opening a store: connect, refuse what is newer, back up and migrate what is older."""

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from headframe.model.errors import DiskFull, StoreMismatch, Unavailable
from headframe.store.sql import BUSY_TIMEOUT_MS, STATEMENT_TIMEOUT_MS, SqlStore

MIGRATIONS = Path(__file__).parent / "migrations"
CONNECT_TIMEOUT_S = 5
POOL_SIZE = 8
PAGE_BYTES = 8192
"""Events are of one to two thousand bytes, of which SQLite's usual 4,096 waste much. A store keeps what it was made with."""
CACHE_KIB = 8_000
"""Of each connection: most of what a commit of a thousand jobs changes, so that few pages of it are written twice."""
WAL_PAGES = 15_000
"""Pages go to a log first, and into their places beside what goes on (`store/log.py`). Only where that can't keep up, and the log has grown to 120 MB, does a commit wait for it."""


def open_store(url: str) -> SqlStore:
    """A store at `sqlite:////path/file.db` or `postgresql+psycopg://…`, at this version's schema."""
    engine = _sqlite(url) if url.startswith("sqlite") else _postgresql(url)
    try:
        _migrate(engine)
    except DBAPIError as error:
        engine.dispose()
        full = "full" in str(error.orig) or "I/O" in str(error.orig)
        raise (DiskFull if full else Unavailable)(f"the store can't be opened: {error.orig}") from error
    return SqlStore(engine)


def _sqlite(url: str) -> sa.Engine:
    engine = sa.create_engine(url, pool_size=POOL_SIZE, connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000})
    durably = (f"page_size={PAGE_BYTES}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
    quickly = (f"wal_autocheckpoint={WAL_PAGES}", f"cache_size=-{CACHE_KIB}", "temp_store=MEMORY")

    @event.listens_for(engine, "connect")
    def durable(connection: Any, _record: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.isolation_level = None  # we say BEGIN IMMEDIATE ourselves: a read lock is never upgraded
        for pragma in (*durably, *quickly):
            connection.execute(f"PRAGMA {pragma}").close()

    return engine


def _postgresql(url: str) -> sa.Engine:
    options = f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={BUSY_TIMEOUT_MS} -c synchronous_commit=on"
    args = {"connect_timeout": CONNECT_TIMEOUT_S, "options": options}
    return sa.create_engine(url, pool_size=POOL_SIZE, pool_pre_ping=True, pool_timeout=BUSY_TIMEOUT_MS / 1000, connect_args=args)


def _migrate(engine: sa.Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    with engine.connect() as db:
        current = MigrationContext.configure(db).get_current_revision()
    head = script.get_current_head()
    if current == head:
        return
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise StoreMismatch(f"this store is at schema {current}, which is newer than this Headframe's {head}")
    if current is not None:
        _back_up(engine, current)
    with engine.connect() as db:
        config.attributes["connection"] = db
        command.upgrade(config, "head")
        db.commit()


def _back_up(engine: sa.Engine, revision: str) -> None:
    """A copy before anything changes: a file beside an embedded store, a schema beside PostgreSQL's tables."""
    if engine.dialect.name == "sqlite":
        source = Path(engine.url.database or "")
        target = source.with_name(f"{source.name}.before-{revision}.bak")
        with sqlite3.connect(source) as old, sqlite3.connect(target) as copy:
            old.backup(copy)
        return
    schema = f"headframe_before_{revision}"
    with engine.begin() as db:
        db.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
        for table in sa.inspect(db).get_table_names():
            db.exec_driver_sql(f'CREATE TABLE IF NOT EXISTS "{schema}"."{table}" AS TABLE "{table}"')
