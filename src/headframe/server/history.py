"""What cards said, hour by hour, from memory to the store: a chart of a year needs no minutes, and outlives a restart."""

import asyncio
import logging
from collections.abc import Callable

from headframe.model.errors import HeadframeError
from headframe.model.health import NodeHour
from headframe.model.units import MS_PER_HOUR
from headframe.server.desk import Desk
from headframe.server.watch import MINUTES_MAX, Watch

LOOK_S = 20.0
KEPT_MS = 400 * 24 * MS_PER_HOUR
"""A year and a month: the same month last year can still be seen."""
REPLIES_KEPT_MS = 7 * 24 * MS_PER_HOUR
"""How long the answer to a request with an Idempotency-Key is known: a client repeats one within minutes."""
BATCH = 200
"""So many machines are worked out before others get their turn."""
_log = logging.getLogger("headframe")


async def keep_hours(desk: Desk, watch: Watch, clock_ms: Callable[[], int]) -> None:
    """For ever: each hour once it is over, and forgets what is old, stored answers too. One that can't be written now is tried again while its minutes are in memory."""
    kept = clock_ms() // MS_PER_HOUR - 1
    while True:
        await asyncio.sleep(LOOK_S)
        last = clock_ms() // MS_PER_HOUR - 1
        for hour in range(max(kept + 1, last - MINUTES_MAX // 60 + 1), last + 1):
            try:
                await _keep(desk, watch, hour)
            except HeadframeError as error:
                _log.warning("what cards said in the last hour is not kept yet: %s", error.detail)
                break
            kept = hour


async def _keep(desk: Desk, watch: Watch, hour: int) -> None:
    batch: list[NodeHour] = []
    forget_before_ms = hour * MS_PER_HOUR - KEPT_MS
    for each in watch.hours(desk.world, hour):
        batch.append(each)
        if len(batch) == BATCH:
            await asyncio.to_thread(desk.store.keep_hours, batch, forget_before_ms)
            batch = []
    await asyncio.to_thread(desk.store.keep_hours, batch, forget_before_ms)
    await asyncio.to_thread(desk.store.forget_replies, (hour + 1) * MS_PER_HOUR - REPLIES_KEPT_MS)
