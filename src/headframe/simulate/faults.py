"""Faults, all drawn from one seeded generator; each seed uses its own mix (swarm testing), so that rare pairs meet."""

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

import msgspec

from headframe.engines.base import Engine, NoShells, Sight
from headframe.model.errors import DiskFull, Unavailable
from headframe.model.event import Event
from headframe.model.fleet import Volume
from headframe.model.ids import AllocationId
from headframe.model.states import Reason
from headframe.model.work import Allocation, LogLine, Observation, Workload
from headframe.store.base import Lease, Reply
from headframe.store.memory import MemoryStore

T = TypeVar("T")
LATE_MAX = 50


class Crash(BaseException):
    """The server process is gone, between one step and the next."""


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Chances of each fault per occasion; all zero once the faults stop."""

    crash: float = 0
    store_error: float = 0
    engine_error: float = 0
    lose_fact: float = 0
    repeat_fact: float = 0
    late_fact: float = 0
    node: float = 0
    skew_ms: int = 0
    slow_disk_ms: int = 0
    disk_full: float = 0
    pause: float = 0
    price_change: float = 0
    card: float = 0
    alarm: float = 0


CALM = Mix()


def draw_mix(rng: Random) -> Mix:
    """A random subset of faults at random strength."""

    def some(most: float) -> float:
        return rng.random() * most if rng.random() < 0.6 else 0.0

    return Mix(
        crash=some(0.02), store_error=some(0.03), engine_error=some(0.05), lose_fact=some(0.2), repeat_fact=some(0.2),
        late_fact=some(0.2), node=some(0.5), skew_ms=int(some(3000)), slow_disk_ms=int(some(2000)), disk_full=some(0.1),
        pause=some(0.1), price_change=some(0.3), card=some(0.8), alarm=some(0.05),
    )  # fmt: skip


class Weather:
    """The faults in force; `calm` ends them all."""

    def __init__(self, rng: Random, mix: Mix) -> None:
        self.rng = rng
        self.mix = mix
        self.full_until_ms = 0
        self._old: list[Observation] = []

    def calm(self) -> None:
        """Faults stop: what follows must finish."""
        self.mix, self.full_until_ms = CALM, 0

    def happens(self, chance: float) -> bool:
        """Draw only where there is a chance, so that a mix without a fault draws nothing for it."""
        return chance > 0 and self.rng.random() < chance

    def crash(self) -> None:
        """Maybe the process dies here."""
        if self.happens(self.mix.crash):
            raise Crash

    def distort(self, seen: list[Observation]) -> list[Observation]:
        """Facts lost, repeated, late and out of order."""
        kept = [fact for fact in seen if not self.happens(self.mix.lose_fact)]
        kept += [fact for fact in seen if self.happens(self.mix.repeat_fact)]
        kept += [fact for fact in self._old if self.happens(self.mix.late_fact)]
        self._old = (self._old + seen)[-LATE_MAX:]
        if self.mix.repeat_fact or self.mix.late_fact:
            self.rng.shuffle(kept)
        return kept


class FaultyStore(MemoryStore):
    """The oracle behind a failing disk and network; `committed` hears of every commit that took effect."""

    def __init__(self, weather: Weather, clock_ms: Callable[[], int], sleep_ms: Callable[[int], None]) -> None:
        super().__init__()
        self.weather = weather
        self.committed: list[Callable[[Sequence[Event]], None]] = []
        self._clock_ms = clock_ms
        self._sleep_ms = sleep_ms

    def commit(self, events: Sequence[Event], expect: int, epoch: int | None = None, replies: Sequence[Reply] = ()) -> None:
        self.weather.crash()
        mix = self.weather.mix
        if self._clock_ms() < self.weather.full_until_ms:
            raise DiskFull("the simulated disk is full")
        if self.weather.happens(mix.store_error):
            raise Unavailable("the simulated store is away")
        if mix.slow_disk_ms:
            self._sleep_ms(self.weather.rng.randrange(mix.slow_disk_ms))
        super().commit(events, expect, epoch, replies)
        for listener in self.committed:
            listener(events)
        self.weather.crash()
        if self.weather.happens(mix.store_error):
            raise Unavailable("the simulated store answered too late: committed, but the server does not know")

    def lead(self, holder: str, seen: Lease) -> Lease | None:
        self.weather.crash()
        return super().lead(holder, seen)


class FaultyEngine(NoShells):
    """An engine whose every call may crash the server before or after, or fail after having succeeded."""

    def __init__(self, engine: Engine, weather: Weather) -> None:
        self._engine = engine
        self._weather = weather

    async def start(self, allocation: Allocation, workload: Workload) -> None:
        self._before()
        await self._engine.start(allocation, workload)
        self._after()

    async def stop(self, allocation: AllocationId, because: Reason, grace_s: int) -> None:
        self._before()
        await self._engine.stop(allocation, because, grace_s)
        self._after()

    async def forget(self, allocation: AllocationId) -> None:
        self._before()
        await self._engine.forget(allocation)
        self._after()

    async def observe(self) -> Sight:
        self._before()
        return await self._engine.observe()

    async def logs(self, allocation: Allocation, after: int, limit: int) -> Sequence[LogLine]:
        self._before()
        return await self._engine.logs(allocation, after, limit)

    async def erase(self, volume: Volume) -> None:
        await self._engine.erase(volume)

    async def discard(self, allocation: Allocation) -> None:
        await self._engine.discard(allocation)

    def _before(self) -> None:
        self._weather.crash()
        if self._weather.happens(self._weather.mix.engine_error):
            raise Unavailable("the simulated engine is away")

    def _after(self) -> None:
        self._weather.crash()
        if self._weather.happens(self._weather.mix.engine_error):
            raise Unavailable("the simulated engine erred after succeeding")
