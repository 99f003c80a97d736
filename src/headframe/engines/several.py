"""Several engines as one: each allocation goes to the engine of the machine that placement chose."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from headframe.engines.base import Engine, Sight
from headframe.engines.carry import Shell
from headframe.model.fleet import Volume
from headframe.model.ids import AllocationId, NodeId
from headframe.model.shell import ShellAsk
from headframe.model.states import Reason
from headframe.model.work import Allocation, LogLine, Workload


class Knowing(Engine, Protocol):
    """An engine that can be asked what it runs, and wakes the server when something happens."""

    def knows(self, allocation: AllocationId) -> bool:
        """Whether it tells of this."""
        ...

    def listen(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Call `wake` from now on."""
        ...


class Several:
    """See `Engine`. `kind` is the engine that a machine is run by, `home` the machine that an allocation was placed on."""

    def __init__(self, engines: Mapping[str, Knowing], kind: Callable[[NodeId], str], home: Callable[[AllocationId], NodeId | None]) -> None:
        self._engines = engines
        self._kind = kind
        self._home = home

    def listen(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Call `wake` when any of them has news."""
        for engine in self._engines.values():
            engine.listen(loop, wake)

    async def start(self, allocation: Allocation, workload: Workload) -> None:
        await self._at(allocation.parts[0].node_id).start(allocation, workload)

    async def stop(self, allocation: AllocationId, because: Reason, grace_s: int) -> None:
        for engine in self._of(allocation):
            await engine.stop(allocation, because, grace_s)

    async def observe(self) -> Sight:
        sights = [await engine.observe() for engine in self._engines.values()]
        return Sight(
            nodes=tuple(node for sight in sights for node in sight.nodes), observations=tuple(each for sight in sights for each in sight.observations),
            complete=all(sight.complete for sight in sights), machines=tuple(each for sight in sights for each in sight.machines),
            down={key: told for sight in sights for key, told in sight.down.items()},
        )  # fmt: skip

    async def forget(self, allocation: AllocationId) -> None:
        for engine in self._of(allocation):
            await engine.forget(allocation)

    async def logs(self, allocation: Allocation, after: int, limit: int) -> Sequence[LogLine]:
        return await self._at(allocation.parts[0].node_id).logs(allocation, after, limit)

    async def erase(self, volume: Volume) -> None:
        await self._at(volume.node_id).erase(volume)

    async def shell(self, allocation: Allocation, workload: Workload, ask: ShellAsk) -> Shell:
        return await self._at(allocation.parts[0].node_id).shell(allocation, workload, ask)

    async def reach(self, allocation: Allocation, workload: Workload, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self._at(allocation.parts[0].node_id).reach(allocation, workload, port)

    async def discard(self, allocation: Allocation) -> None:
        await self._at(allocation.parts[0].node_id).discard(allocation)

    def _at(self, node: NodeId) -> Knowing:
        return self._engines[self._kind(node)]

    def _of(self, allocation: AllocationId) -> list[Knowing]:
        """The engine of the machine it was placed on; of what nobody placed, those that tell of it."""
        home = self._home(allocation)
        return [self._at(home)] if home else [engine for engine in self._engines.values() if engine.knows(allocation)]
