"""The desk: the one place where decisions become commits. It keeps the world current and answers each request exactly once.

Requests that wait together are committed together: whoever gets the lock decides for all, each on the world as the one
before left it. If the store refuses, the world is rolled back to what the store has, caught up, and they are decided again.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from headframe.model.errors import Conflicting, Fenced, HeadframeError, Unavailable, VersionConflict
from headframe.model.event import Draft, Event
from headframe.model.world import World
from headframe.store.base import PAGE_MAX, Reply, Store

TRIES_MAX = 50
T = TypeVar("T")
Decide = Callable[[World, int], Iterable[Draft]]


class Io(Protocol):
    """Runs a blocking call: in a thread for a server, at once for a simulation."""

    def __call__(self, call: Callable[[], T], /) -> Awaitable[T]:
        """The call's result."""
        ...


class Request:
    """One decision waiting to be committed, and what became of it."""

    def __init__(self, decide: Decide, epoch: int | None, reply: Callable[[], Reply | None] | None) -> None:
        self.decide = decide
        self.epoch = epoch
        self.reply = reply
        self.events: list[Event] = []
        self.answer: Reply | None = None
        self.error: Exception | None = None
        self.done = False

    def result(self) -> list[Event]:
        """The events committed, or the refusal."""
        assert self.done
        if self.error is not None:
            raise self.error
        return self.events


class Desk:
    """`io` runs a blocking store call without blocking the loop; the simulator simply calls it."""

    def __init__(self, store: Store, clock_ms: Callable[[], int], io: Io) -> None:
        self.store = store
        self.world = World()
        self.clock_ms = clock_ms
        self.listeners: list[Callable[[Sequence[Event]], None]] = []
        self._io = io
        self._lock = asyncio.Lock()
        self._waiting: deque[Request] = deque()

    def open(self) -> None:
        """Load the world; called once, before anything else."""
        snapshot = self.store.load()
        self.world.load(snapshot.rows, snapshot.version)

    async def write(self, decide: Decide, epoch: int | None = None, reply: Callable[[], Reply | None] | None = None) -> list[Event]:
        """Decide on the current world and commit; returns when it is durable, raises what was refused.

        `reply` is called on the world as just decided, and what it returns is kept in the same commit.
        """
        request = Request(decide, epoch, reply)
        self._waiting.append(request)
        async with self._lock:
            if not request.done:
                batch = list(self._waiting)
                self._waiting.clear()
                await self._settle(batch)
        return request.result()

    async def catch_up(self) -> None:
        """Apply what others have committed."""
        async with self._lock:
            await self._follow()

    async def _follow(self) -> None:
        while fresh := await self._io(lambda: self.store.events(self.world.version, PAGE_MAX)):
            for event in fresh:
                self.world.apply(event)
            self.world.begin()
            self._tell(fresh)

    async def _settle(self, batch: Sequence[Request]) -> None:
        """Every request of the batch is done when this returns, whatever happens."""
        left = list(batch)
        try:
            for _ in range(TRIES_MAX):
                left = [request for request in left if not request.done]
                if not left:
                    return
                left = await self._try(left)
            raise Unavailable("the store was too busy", "repeat the request")
        except HeadframeError as error:
            _fail(left, error)
        finally:
            _fail(left, Unavailable("the request was interrupted", "repeat it"))

    async def _try(self, batch: list[Request]) -> list[Request]:
        """One attempt at committing the batch; returns those to try again."""
        base, start = self.world.begin(), self.world.mark()
        events = self._decide(batch)
        decided = [request for request in batch if not request.error]
        replies = [request.answer for request in decided if request.answer is not None]
        epoch = next((request.epoch for request in decided if request.epoch is not None), None)
        try:
            if events or replies:
                await self._io(lambda: self.store.commit(events, base, epoch, replies))
        except BaseException as error:
            self.world.rollback(start)
            return await self._refused(decided, error)
        finally:
            _fail([request for request in batch if request.error], None)
        self.world.begin()
        _fail(decided, None)
        self._tell(events)
        return []

    def _decide(self, batch: Sequence[Request]) -> list[Event]:
        now_ms, events = self.clock_ms(), list[Event]()
        for request in batch:
            mark, request.events = self.world.mark(), []
            try:
                for draft in request.decide(self.world, now_ms):
                    event = Event(
                        seq=self.world.version + 1, at_ms=now_ms, kind=draft.kind, subject=draft.subject,
                        project_id=draft.project_id, text=draft.text, rows=draft.rows,
                    )  # fmt: skip
                    self.world.apply(event)
                    request.events.append(event)
                request.answer = request.reply() if request.reply else None
            except Exception as error:  # a refusal, or a bug of the decision's: either way its own alone, and without a trace
                self.world.rollback(mark)
                request.error, request.events = error, []
            events.extend(request.events)
        return events

    async def _refused(self, batch: list[Request], error: BaseException) -> list[Request]:
        if isinstance(error, VersionConflict):
            await self._follow()
            return batch
        if isinstance(error, Fenced):
            _fail([request for request in batch if request.epoch is not None], error)
            return [request for request in batch if request.epoch is None]
        if isinstance(error, Conflicting) and len(batch) > 1:
            for request in batch:  # one of them breaks a guard: let each stand alone
                await self._settle([request])
            return []
        if isinstance(error, HeadframeError):
            _fail(batch, error)
            return []
        raise error

    def _tell(self, events: Sequence[Event]) -> None:
        if events:  # a decision that changed nothing wakes nobody, least of all the tick that made it
            for listener in self.listeners:
                listener(events)


def _fail(requests: Iterable[Request], error: HeadframeError | None) -> None:
    """Done, with an error where one is given and none came before."""
    for request in requests:
        if not request.done:
            request.error = request.error or error
            request.done = True
