"""What all that is under way shares: what is known, what is written down, the clock, and the ways to do something later."""

import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from headframe.gateway.book import Book
from headframe.gateway.spool import Spool

Task = Callable[[], Awaitable[None]]


class Going(Protocol):
    """A request that is under way."""

    def looked_at(self, now_s: float) -> None:
        """Once a second."""
        ...

    def cut(self) -> None:
        """This gateway ends."""
        ...


class Poor(Going, Protocol):
    """A request that waits for money."""

    def paid(self) -> None:
        """The control plane has answered."""
        ...


class House:
    """One gateway's. `now_s` is a clock that never steps; `soon` does something at the end of this turn of the loop, `spawn` does it beside, `nudge` tells the control plane now."""

    def __init__(
        self,
        book: Book,
        spool: Spool,
        now_s: Callable[[], float],
        soon: Callable[[Callable[[], None]], object],
        spawn: Callable[[Task], None],
        nudge: Callable[[], None],
    ) -> None:
        self.book, self.spool, self.now_s, self.spawn, self.nudge = book, spool, now_s, spawn, nudge
        self.exchanges: dict[Going, None] = {}
        self.poor: dict[Poor, None] = {}
        self._soon = soon
        self._due = False

    def now_ms(self) -> int:
        """The wall clock."""
        return time.time_ns() // 1_000_000

    def written(self) -> None:
        """Something is to be written to the spool: once for all that ends in this turn of the loop."""
        if not self._due:
            self._due = True
            self._soon(self._flush)

    def _flush(self) -> None:
        self._due = False
        self.spool.flush()
