"""What this machine's fillers say of themselves, now and then, beside what their files promise."""

import asyncio
from collections.abc import Callable

from headframe.dispatch.survey import filler_of
from headframe.model.fleet import LOCAL
from headframe.model.ids import AllocationId
from headframe.model.power import Reading
from headframe.model.states import AllocationState
from headframe.model.work import Tier
from headframe.model.world import World
from headframe.server.filling import STATS_PORT

LOOK_S, AT_ONCE = 10.0, 8
Read = Callable[[str, int], Reading]
"""Asks the miner at a port of this machine; an exception where it can't be read."""


class Miners:
    """The last reading of each filler's allocation on this machine; gone with it."""

    def __init__(self, world: World, read: Read) -> None:
        self.readings: dict[AllocationId, Reading] = {}
        self._world, self._read = world, read

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.once()
            await asyncio.sleep(LOOK_S)

    async def once(self) -> None:
        """Ask each that can be asked."""
        asked = dict(self._asked())
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(key: AllocationId, adapter: str, port: int) -> None:
            async with gate:
                try:
                    self.readings[key] = await asyncio.to_thread(self._read, adapter, port)
                except Exception:  # a miner may say anything, or nothing: what it said before counts no more
                    self.readings.pop(key, None)

        await asyncio.gather(*(one(key, adapter, port) for key, (adapter, port) in asked.items()))
        for gone in self.readings.keys() - asked.keys():
            del self.readings[gone]

    def _asked(self) -> list[tuple[AllocationId, tuple[str, int]]]:
        found: list[tuple[AllocationId, tuple[str, int]]] = []
        for key, held in self._world.held.items():
            filler = filler_of(self._world, self._world.workloads.get(held.workload_id)) if held.tier is Tier.FILLER else None
            part = held.parts[0]
            here = part.node_id in self._world.nodes and self._world.nodes[part.node_id].engine == LOCAL
            if filler is not None and filler.stats and here and held.state is AllocationState.RUNNING:
                found.append((key, (filler.stats, (filler.port or STATS_PORT) + part.shares[0].index)))
        return found
