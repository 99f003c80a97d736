"""The agent of a machine that joined: the local engine and the watch of its cards, behind a line that only the machine opens.

Two loops: one tells what runs and what the cards say, at news and every REPORT_S; one asks for orders and obeys those that are for
this machine and of no older leader. Work outlives the agent; it ends where the server has not been reached for the lease's time.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import assert_never

from headframe.agent.attach import attach
from headframe.agent.handover import clean
from headframe.agent.limits import limit
from headframe.agent.miners import Unread, reading
from headframe.agent.seat import Seat, hello, line, obeyed, renew
from headframe.client import ApiError, Unreachable
from headframe.client.agent import AgentClient
from headframe.engines.local import LocalEngine
from headframe.model.agent import (
    BATCHES_MAX,
    Account,
    Ask,
    Attach,
    Batch,
    Discard,
    Erase,
    Forget,
    Limit,
    Lines,
    Miner,
    Order,
    Orders,
    Read,
    Start,
    Stop,
    Told,
)
from headframe.model.errors import Forbidden
from headframe.model.health import Report
from headframe.model.ids import AllocationId
from headframe.model.power import Reading
from headframe.model.states import AllocationState

REPORT_S = 10.0
PAUSE_S, PAUSE_MAX_S = 1.0, 15.0
_log = logging.getLogger("headframe")


class Agent:
    """One machine's agent. `reports` are the readings of its cards."""

    def __init__(self, seat: Seat, data: Path, engine: LocalEngine, server: AgentClient) -> None:
        self._seat = seat
        self._data = data
        self._engine = engine
        self._server = server
        self._news, self._leased = asyncio.Event(), asyncio.Event()
        self._batches: deque[tuple[float, Report]] = deque(maxlen=BATCHES_MAX)
        self._dropped = 0
        self._said_hello = False
        self._beside: asyncio.TaskGroup | None = None
        self._asked: dict[AllocationId, Miner] = {}
        self._readings: dict[AllocationId, Reading] = {}

    async def run(self, reports: Callable[[], AsyncIterator[Report]]) -> None:
        """Until cancelled, or refused for good."""
        self._engine.listen(asyncio.get_running_loop(), self._news.set)
        async with asyncio.TaskGroup() as tasks:
            self._beside = tasks
            tasks.create_task(self._watching(reports))
            tasks.create_task(self._lasting(self._tell))
            tasks.create_task(self._lasting(self._obey))
            tasks.create_task(self._asking())

    async def _watching(self, reports: Callable[[], AsyncIterator[Report]]) -> None:
        async for report in reports():
            self._dropped += len(self._batches) == BATCHES_MAX
            self._batches.append((time.monotonic(), report))
            self._news.set()

    async def _asking(self) -> None:
        """What the miners that the server wants to hear of say of themselves."""
        while True:
            asked, found = dict(self._asked), dict[AllocationId, Reading]()
            for key, miner in asked.items():
                with contextlib.suppress(Unread, KeyError, OSError):  # what can't be read is not told
                    found[key] = await asyncio.to_thread(reading, miner)
            self._readings = found
            await asyncio.sleep(REPORT_S)

    async def _lasting(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do it for ever, with pauses while nobody answers; what is refused for good ends the agent."""
        failed = 0
        while True:
            try:
                await step()
                failed = 0
            except Unreachable as error:
                failed += 1
                _log.warning("%s; work goes on", error) if failed == 1 else None
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(PAUSE_MAX_S, PAUSE_S * 2**failed))  # noqa: S311 - only to spread machines out
            except ApiError as error:
                if error.problem.status in {401, 403, 404}:
                    raise Forbidden(f"{self._seat.url} does not know this machine any more: {error.problem.detail}", "join again") from None
                failed += 1
                _log.warning("the server refused: %s", error.problem.detail)
                await asyncio.sleep(min(PAUSE_MAX_S, PAUSE_S * 2**failed))

    async def _tell(self) -> None:
        sent = list(self._batches)
        self._news.clear()
        account = await self._account(sent)
        began_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        heard = await asyncio.to_thread(self._server.report, account)
        renew(self._data, began_s, heard.lease_ms)
        self._leased.set()
        self._said_hello = True
        self._dropped -= account.dropped
        for batch in sent:
            with contextlib.suppress(ValueError):  # dropped meanwhile, for newer ones
                self._batches.remove(batch)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), REPORT_S)

    async def _account(self, sent: list[tuple[float, Report]]) -> Account:
        sight = await self._engine.observe()
        now = time.monotonic()
        ended = [seen.allocation_id for seen in sight.observations if seen.state is AllocationState.ENDED]
        told = [Told(allocation_id=key, lines=lines) for key in ended if (lines := self._engine.told(key))]
        return Account(
            clock_ms=time.time_ns() // 1_000_000, observations=sight.observations, dropped=self._dropped, told=tuple(told),
            batches=tuple(Batch(age_ms=int((now - at) * 1000), report=report) for at, report in sent),
            readings=self._readings, hello=None if self._said_hello else await asyncio.to_thread(hello, self._data, self._seat.name),
        )  # fmt: skip

    async def _obey(self) -> None:
        await self._leased.wait()  # what starts under a lease that is over would end at once
        orders = await self._server.orders()
        if not mine(orders, self._seat, self._data):
            _log.warning("orders of epoch %s for %s refused: they are stale, or another machine's", orders.epoch, orders.node_id)
            await asyncio.sleep(PAUSE_MAX_S)
            return
        for order in orders.items:
            await self._do(order)
        if orders.items:
            self._news.set()

    async def _do(self, order: Order) -> None:
        match order:
            case Start():
                await self._start(order)
            case Stop():
                await self._engine.stop(order.allocation_id, order.because, order.grace_s)
            case Forget():
                await self._engine.forget(order.allocation_id)
            case Discard():
                await self._engine.discard(order.allocation)
            case Erase():
                await self._engine.erase(order.volume)
            case Read():
                lines = await self._engine.logs(order.allocation, order.after, order.limit)
                await asyncio.to_thread(self._server.lines, Lines(number=order.number, lines=tuple(lines)))
            case Attach():
                assert self._beside is not None
                self._beside.create_task(attach(order, self._engine, self._server))
            case Limit():
                await asyncio.to_thread(limit, order.watts)
            case Ask():
                self._asked = order.miners
            case _:
                assert_never(order)

    async def _start(self, order: Start) -> None:
        digest = order.workload.workdir_digest
        archive = self._data / "workdirs" / f"{digest}.tar"
        if digest and not archive.exists():
            await asyncio.to_thread(self._server.workdir, digest, archive)
        await self._engine.start(order.allocation, order.workload)


def mine(orders: Orders, seat: Seat, data: Path) -> bool:
    """Whether these are for this machine, and of no leader that was followed by another."""
    return orders.node_id == seat.node_id and obeyed(data, orders.epoch)


async def serve(seat: Seat, data: Path, boot_id: str, reports: Callable[[], AsyncIterator[Report]]) -> None:
    """Be the agent of this machine."""
    workdirs = data / "workdirs"
    workdirs.mkdir(exist_ok=True, mode=0o700)
    engine = LocalEngine(data / "allocations", seat.node_id, workdirs, lambda: time.time_ns() // 1_000_000, boot_id, data / "lease", clean)
    with line(seat, data) as server:
        await Agent(seat, data, engine, server).run(reports)
