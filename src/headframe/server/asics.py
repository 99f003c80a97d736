"""Mining machines have what is wanted of them done, and are looked at again: on a management network that only the server reaches."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from headframe.model.command import TellAsics
from headframe.model.errors import HeadframeError
from headframe.model.power import Asic, AsicState
from headframe.server.decide import decide
from headframe.server.desk import Desk
from headframe.server.lead import Leadership

LOOK_S, AGAIN_MS, READ_MS = 2.0, 30_000, 60_000
_log = logging.getLogger("headframe")
Seen = Callable[[Sequence[str]], Awaitable[list[Asic | None]]]
Told = Callable[[Asic], Awaitable[str]]
"""Has a machine do something; why it did not, "" where it did."""


class Machines:
    """What was tried and read lately; the rest is in the world."""

    def __init__(self, desk: Desk, leadership: Leadership, seen: Seen, told: Told, limited: Told) -> None:
        self._desk, self._leadership, self._seen, self._told, self._limited = desk, leadership, seen, told, limited
        self._tried: dict[str, int] = {}
        self._read_ms = 0

    async def run(self) -> None:
        """For ever, while this server leads."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._leadership.epoch is not None and self._desk.world.asics:
                try:
                    await self.once()
                except HeadframeError as error:
                    _log.warning("mining machines could not be looked after: %s", error.detail)
                    await asyncio.sleep(LOOK_S * 10)

    async def once(self) -> None:
        """Tell those that do otherwise than wanted, or draw more; read all again where it is time."""
        now_ms, rows = self._desk.clock_ms(), [self._desk.world.asics[key] for key in sorted(self._desk.world.asics)]
        done = await self._tried_on([row for row in rows if row.can_stop and row.state is not row.wanted], lambda row: row.wanted, self._told, now_ms)
        await self._tell([msgspec.structs.replace(row, state=row.state if why else row.wanted, why=why) for row, why in done])
        rows = list(self._desk.world.asics.values())
        odd = [row for row in rows if row.wanted_w and row.limit_w != row.wanted_w and row.state is AsicState.MINING]
        done = await self._tried_on(odd, lambda row: row.wanted_w, self._limited, now_ms)
        await self._tell([msgspec.structs.replace(row, limit_w=row.limit_w if why else row.wanted_w, why=why) for row, why in done])
        if now_ms - self._read_ms >= READ_MS:
            self._read_ms = now_ms
            await self._read([self._desk.world.asics[key] for key in sorted(self._desk.world.asics)])

    async def _tried_on(self, odd: Sequence[Asic], wish: Callable[[Asic], object], act: Told, now_ms: int) -> list[tuple[Asic, str]]:
        """Have machines do what is wished of them, where that was not tried lately; each with why it did not, "" where it did."""
        due = [row for row in odd if now_ms - self._tried.get(f"{row.id} {wish(row)}", -AGAIN_MS) >= AGAIN_MS]
        answers = await asyncio.gather(*map(act, due))
        self._tried.update((f"{row.id} {wish(row)}", now_ms) for row in due)
        return list(zip(due, answers, strict=True))

    async def _read(self, rows: Sequence[Asic]) -> None:
        found = await self._seen([row.ip for row in rows])
        known = (
            msgspec.structs.replace(row, state=AsicState.UNKNOWN, why="it does not answer") if new is None
            else msgspec.structs.replace(row, state=new.state if new.state is not AsicState.UNKNOWN else row.state, hashes_s=(new.hashes_s or row.hashes_s) if row.wanted_w else max(row.hashes_s, new.hashes_s), why="" if row.why == "it does not answer" else row.why,
                                         watts=new.watts if new.state is AsicState.MINING and new.watts else row.watts)
            for row, new in zip(rows, found, strict=True)
        )  # fmt: skip
        await self._tell([each for each in known if each != self._desk.world.asics.get(each.id)])

    async def _tell(self, rows: Sequence[Asic]) -> None:
        if rows:
            await self._desk.write(lambda world, now_ms: decide(world, TellAsics(asics=tuple(rows)), now_ms), self._leadership.epoch)
