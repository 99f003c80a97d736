"""Machines that joined, as an engine: what they last told, and what they are to be told when they next ask.

Nothing here is kept over a restart. What runs is told again by the machines, what is wanted is asked again by the tick: a wish is
repeated until it is seen to be fulfilled, at most every `AGAIN_MS`. A machine that has been silent for VOUCH_MS has ended its own work.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from headframe.engines.base import Sight
from headframe.engines.carry import Frames, Shell
from headframe.engines.far import FarShell, Line, connection
from headframe.model.agent import ORDERS_MAX, VOUCH_MS, Account, Ask, Attach, Discard, Erase, Forget, Limit, Lines, Miner, Order, Read, Start, Stop
from headframe.model.errors import Conflicting, Unavailable
from headframe.model.fleet import Volume
from headframe.model.ids import AllocationId, GpuId, NodeId
from headframe.model.shell import ShellAsk
from headframe.model.states import AllocationState, Reason
from headframe.model.work import Allocation, LogLine, Observation, Workload

AGAIN_MS = 5_000
WHOLE_MS = 10_000
"""So often everything is told to the tick; in between only what is new."""
FRESH_MS = 30_000
"""What a machine told longer ago is not taken for all that it runs."""
SKEW_MS = 2_000
ANSWER_S = 10.0
"""A machine that was asked for something answers within that, or not at all."""
NUMBER_BITS = 48
"""Of what an order and its answer have in common: by chance, so that an answer to a server that is no more is nobody's."""
WAITING_MAX = 1024
"""Orders that wait for one machine."""


class Link:
    """One machine, as far as this server has heard of it since it started."""

    def __init__(self, now_ms: int) -> None:
        self.heard_ms = now_ms
        self.spoke = False
        self.asking = 0
        self.seen: dict[AllocationId, Observation] = {}
        self.waiting: dict[str, Order] = {}
        self.sent_ms: dict[str, int] = {}
        self.wake = asyncio.Event()

    def want(self, name: str, order: Order, now_ms: int) -> None:
        """Say it when the machine next asks, unless it was said just now."""
        if now_ms - self.sent_ms.get(name, -AGAIN_MS) < AGAIN_MS or len(self.waiting) >= WAITING_MAX:
            return
        self.waiting[name] = order
        self.wake.set()


class JoinedEngine:
    """See `Engine`. `held` names what a machine was granted and holds, `granted` is an allocation that is known to the server."""

    def __init__(
        self, clock_ms: Callable[[], int], held: Callable[[NodeId], Iterable[Allocation]], granted: Callable[[AllocationId], Allocation | None]
    ) -> None:
        self._clock_ms = clock_ms
        self._held = held
        self._granted = granted
        self._home: dict[AllocationId, NodeId] = {}
        self._links: dict[NodeId, Link] = {}
        self._news: dict[NodeId, None] = {}
        self._told: dict[AllocationId, tuple[str, ...]] = {}
        self._asked: dict[int, tuple[NodeId, asyncio.Future[Any], asyncio.Event]] = {}
        self._whole_ms = 0
        self._wake: Callable[[], None] = lambda: None
        self._closed = False

    def close(self) -> None:
        """Answer the machines that wait for orders, and all others at once from now on: the server ends."""
        self._closed = True
        for link in self._links.values():
            link.wake.set()

    def listen(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Call `wake` when a machine has news."""
        del loop
        self._wake = wake

    def expect(self, nodes: Iterable[NodeId]) -> None:
        """These are known to have joined: their silence counts from now on."""
        for node in nodes:
            self._link(node)

    def heard_ms(self, node: NodeId) -> int | None:
        """When a machine last spoke to this server, None where it has not since this server started."""
        link = self._links.get(node)
        return link.heard_ms if link and link.spoke else None

    def hear(self, node: NodeId, account: Account, foreign: Callable[[AllocationId], bool], *, news: bool = False) -> None:
        """A machine's account of itself; `news` says that there is some beside. What belongs to others is not its to tell, and times are
        never later than now.
        """
        now_ms = self._clock_ms()
        link = self._link(node)
        first = not link.spoke
        link.heard_ms, link.spoke = now_ms, True
        skew_ms = now_ms - account.clock_ms
        seen = {each.allocation_id: _timed(each, skew_ms, now_ms) for each in account.observations if not foreign(each.allocation_id)}
        for told in account.told:
            if told.allocation_id in seen:
                self._told[told.allocation_id] = told.lines
        news = news or first or {key: _what(each) for key, each in seen.items()} != {key: _what(each) for key, each in link.seen.items()}
        for key in link.seen.keys() - seen.keys():
            self._home.pop(key, None)
        self._home.update(dict.fromkeys(seen, node))
        link.seen = seen
        self._news[node] = None
        if news:
            self._wake()

    async def orders(self, node: NodeId, limit_s: float) -> list[Order]:
        """What this machine is to do now; waits for something, at most `limit_s`. Only the latest asker is answered."""
        link = self._link(node)
        link.asking += 1
        mine = link.asking
        link.wake.set()
        await asyncio.sleep(0)
        if not link.waiting and not self._closed:
            link.wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.wake.wait(), limit_s)
        if link.asking != mine:
            return []
        now_ms, names = self._clock_ms(), list(link.waiting)[:ORDERS_MAX]
        link.sent_ms = {name: at for name, at in link.sent_ms.items() if now_ms - at < AGAIN_MS} | dict.fromkeys(names, now_ms)
        return [link.waiting.pop(name) for name in names]

    def answer(self, node: NodeId, lines: Lines) -> None:
        """Log lines that this machine was asked for."""
        self._answered(node, lines.number, lines.lines)

    def expects(self, node: NodeId, number: int) -> bool:
        """Whether somebody waits for that line, of this machine."""
        asked, waits, _ = self._asked.get(number, (None, None, None))
        return waits is not None and asked == node and not waits.done()

    async def attached(self, node: NodeId, number: int, frames: Frames) -> None:
        """A line that this machine was asked for; returns when it is not needed any more."""
        if (over := self._answered(node, number, frames)) is not None:
            await over.wait()

    async def start(self, allocation: Allocation, workload: Workload) -> None:
        for part in allocation.parts:
            link = self._link(part.node_id)
            if allocation.id not in link.seen:
                link.want(f"start {allocation.id}", Start(allocation=allocation, workload=workload), self._clock_ms())

    async def stop(self, allocation: AllocationId, because: Reason, grace_s: int) -> None:
        for link in self._with(allocation):
            seen = link.seen.get(allocation)
            if seen is None or seen.state is not AllocationState.ENDED:
                link.waiting.pop(f"start {allocation}", None)
                link.want(f"stop {allocation}", Stop(allocation_id=allocation, because=because, grace_s=grace_s), self._clock_ms())

    async def observe(self) -> Sight:
        now_ms = self._clock_ms()
        whole = now_ms - self._whole_ms >= WHOLE_MS
        if whole:
            self._whole_ms = now_ms
            heard = [node for node, link in self._links.items() if link.spoke and now_ms - link.heard_ms < FRESH_MS]
        else:
            heard = [node for node in self._news if self._links[node].spoke]
        self._news = {}
        seen = [each for node in heard for each in self._links[node].seen.values()]
        lost = [each for node, link in self._links.items() if now_ms - link.heard_ms >= VOUCH_MS for each in self._lost(node, link)] if whole else []
        return Sight(nodes=tuple(heard), observations=(*seen, *lost), complete=whole)

    async def forget(self, allocation: AllocationId) -> None:
        self._told.pop(allocation, None)
        for link in self._with(allocation):
            link.want(f"forget {allocation}", Forget(allocation_id=allocation), self._clock_ms())

    async def logs(self, allocation: Allocation, after: int, limit: int) -> Sequence[LogLine]:
        """Asked of the machine, unless it told them with the end."""
        told = self._told.get(allocation.id)
        if told is not None and after == 0:
            return [LogLine(at_ms=0, rank=0, stream="out", text=line, next=n + 1) for n, line in enumerate(told[:limit])]
        return await self._answer(
            allocation.parts[0].node_id, lambda number: Read(number=number, allocation=allocation, after=after, limit=limit), asyncio.Event()
        )

    async def shell(self, allocation: Allocation, workload: Workload, ask: ShellAsk) -> Shell:
        return FarShell(await self._attach(allocation, lambda number: Attach(number=number, allocation=allocation, workload=workload, ask=ask)))

    async def reach(self, allocation: Allocation, workload: Workload, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        line = await self._attach(allocation, lambda number: Attach(number=number, allocation=allocation, workload=workload, port=port))
        return await connection(line)

    async def erase(self, volume: Volume) -> None:
        self._link(volume.node_id).want(f"erase {volume.id}", Erase(volume=volume), self._clock_ms())

    async def discard(self, allocation: Allocation) -> None:
        for part in allocation.parts:
            self._link(part.node_id).want(f"discard {allocation.id}", Discard(allocation=allocation), self._clock_ms())

    def limit(self, node: NodeId, watts: Mapping[GpuId, int]) -> None:
        """A machine's cards are to draw at most so much."""
        self._link(node).want("limit", Limit(watts=dict(watts)), self._clock_ms())

    def ask(self, node: NodeId, miners: Mapping[AllocationId, Miner]) -> None:
        """What a machine's miners are to be asked, all of them at once."""
        self._link(node).want("ask", Ask(miners=dict(miners)), self._clock_ms())

    def knows(self, allocation: AllocationId) -> bool:
        """Whether a machine tells of it."""
        return allocation in self._home

    async def _answer(self, node: NodeId, order: Callable[[int], Order], over: asyncio.Event) -> Any:
        """What a machine says to an order with this number; once what it opened is not needed any more, it is `over`. Raises Unavailable where it says nothing."""
        link = self._links.get(node)
        if link is None or not link.spoke or self._clock_ms() - link.heard_ms >= FRESH_MS:
            raise Unavailable(
                "the machine that this is on has not been heard of", "`headframe nodes` shows when it is back; its work and its log stay there"
            )
        number, waits = secrets.randbits(NUMBER_BITS), asyncio.get_running_loop().create_future()
        self._asked[number] = (node, waits, over)
        link.want(f"answer {number}", order(number), self._clock_ms())
        try:
            async with asyncio.timeout(ANSWER_S):  # `wait_for` may swallow that whoever asked has left
                return await waits
        except TimeoutError:
            raise Unavailable("the machine that this is on did not answer in time", "try again") from None
        finally:
            del self._asked[number]
            link.waiting.pop(f"answer {number}", None)

    def _answered(self, node: NodeId, number: int, said: object) -> asyncio.Event | None:
        """Tell whoever waits for that, of this machine; None where nobody does."""
        if not self.expects(node, number):
            return None
        _, waits, over = self._asked[number]
        waits.set_result(said)
        return over

    async def _attach(self, allocation: Allocation, order: Callable[[int], Order]) -> Line:
        """A line to where this runs. Raises Conflicting where the machine has nothing at its other end, with the reason."""
        over = asyncio.Event()
        try:
            line = Line(await self._answer(allocation.parts[0].node_id, order, over), over)
            said = await line.outcome()
            if said.error:
                raise Conflicting(said.error, said.next)
        except BaseException:
            over.set()
            raise
        return line

    def _link(self, node: NodeId) -> Link:
        return self._links.setdefault(node, Link(self._clock_ms()))

    def _with(self, allocation: AllocationId) -> list[Link]:
        """The machines that were granted it, or tell of it."""
        granted = self._granted(allocation)
        nodes = [part.node_id for part in granted.parts] if granted else [self._home[allocation]] if allocation in self._home else []
        return [self._link(node) for node in nodes]

    def _lost(self, node: NodeId, link: Link) -> Iterable[Observation]:
        """The ends of what a machine held that has ended it by itself, as of when it was last heard of."""
        for allocation in self._held(node):
            seen = link.seen.get(allocation.id)
            yield Observation(
                allocation_id=allocation.id, state=AllocationState.ENDED, started_ms=seen.started_ms if seen else 0, ended_ms=link.heard_ms,
                reason=Reason.NODE_LOST, detail="its machine was not heard of any more", seen_ms=link.heard_ms,
            )  # fmt: skip


def _what(seen: Observation) -> tuple[AllocationState, Reason | None]:
    return seen.state, seen.reason


def _timed(seen: Observation, skew_ms: int, now_ms: int) -> Observation:
    """By the server's clock: a machine's own is put right where it is wrong by more than a message takes."""
    off = skew_ms if abs(skew_ms) > SKEW_MS else 0
    started_ms = min(seen.started_ms + off, now_ms) if seen.started_ms else 0
    ended_ms = min(seen.ended_ms + off, now_ms) if seen.ended_ms else 0
    return msgspec.structs.replace(seen, started_ms=started_ms, ended_ms=ended_ms, seen_ms=ended_ms or now_ms)
