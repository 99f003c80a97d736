"""SQLite's write-ahead log, put into its place beside what goes on. SQLite by itself does that within a commit: one in seven of a thousand events each took 100 ms instead of 50."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

PAGES = 4_000
"""32 MB. SQLite tells nobody how long its log is, so it is reckoned:"""
COMMIT_PAGES, EVENT_PAGES = 18.0, 0.7
"""what commits of 1 to 1,000 events were seen to write (benchmarks/results.md)."""


class Log:
    """Nothing on PostgreSQL, which has a checkpointer of its own."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, "checkpoint") if engine.dialect.name == "sqlite" else None
        self._pages = 0.0
        self._last: Future[None] | None = None

    def grew(self, events: int) -> None:
        """So many were committed together; returns at once."""
        self._pages += COMMIT_PAGES + EVENT_PAGES * events
        if self._thread and self._pages >= PAGES and (self._last is None or self._last.done()):
            self._pages = 0.0
            with suppress(RuntimeError):  # closed meanwhile: what was committed stays so
                self._last = self._thread.submit(self._checkpoint)

    def close(self) -> None:
        """Let what runs end."""
        if self._thread:
            self._thread.shutdown()

    def _checkpoint(self) -> None:
        """Waits for nobody and keeps nobody waiting. Where it fails, a commit has to do it, whose error is told."""
        with suppress(DBAPIError), self._engine.connect() as db:
            db.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").close()
