"""What fillers say of themselves, now and then, beside what their files promise: this machine's are asked here, those of machines that joined by their agents."""

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping

from headframe.dispatch.survey import filler_of
from headframe.model.agent import Miner
from headframe.model.fleet import JOINED, LOCAL
from headframe.model.ids import AllocationId, NodeId
from headframe.model.power import HASHES_MOST, Reading
from headframe.model.states import AllocationState
from headframe.model.work import Tier
from headframe.model.world import World
from headframe.server.filling import STATS_PORT

LOOK_S, AT_ONCE = 10.0, 8
AGAIN_LOOKS = 30
"""After so many looks agents are told again whom to ask: one that was started anew has forgotten it."""
Read = Callable[[Miner], Reading]
"""Asks a miner of this machine; an exception where it can't be read."""
Ask = Callable[[NodeId, Mapping[AllocationId, Miner]], None]
"""Has a machine that joined ask its miners."""


class Miners:
    """The last reading of each filler's allocation; gone with it."""

    def __init__(self, world: World, read: Read, ask: Ask) -> None:
        self.readings: dict[AllocationId, Reading] = {}
        self._world, self._read, self._ask = world, read, ask
        self._told: dict[NodeId, dict[AllocationId, Miner]] = {}
        self._looks = 0

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.once()
            await asyncio.sleep(LOOK_S)

    async def once(self) -> None:
        """Ask each that can be asked."""
        by_node: dict[NodeId, dict[AllocationId, Miner]] = {}
        for node, key, miner in self._mining():
            by_node.setdefault(node, {})[key] = miner
        here = [node for node in by_node if self._world.nodes[node].engine == LOCAL]
        asked = {key: miner for node in here for key, miner in by_node.pop(node).items()}
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(key: AllocationId, miner: Miner) -> None:
            async with gate:
                try:
                    self.readings[key] = await asyncio.to_thread(self._read, miner)
                except Exception:  # a miner may say anything, or nothing: what it said before counts no more
                    self.readings.pop(key, None)

        await asyncio.gather(*(one(key, miner) for key, miner in asked.items()))
        self._have_asked(by_node)
        for gone in self.readings.keys() - asked.keys() - {key for told in by_node.values() for key in told}:
            del self.readings[gone]

    def heard(self, node: NodeId, readings: Mapping[AllocationId, Reading]) -> None:
        """What a machine's agent tells of its miners: of those that it was to ask, as far as it can be."""
        for key in self._told.get(node, ()):
            said = readings.get(key)
            if said is not None and _can_be(said):
                self.readings[key] = said
            else:
                self.readings.pop(key, None)

    def _have_asked(self, by_node: dict[NodeId, dict[AllocationId, Miner]]) -> None:
        """Tell agents whom to ask, where that changed and now and then."""
        again, self._looks = self._looks % AGAIN_LOOKS == 0, self._looks + 1
        for node in self._told.keys() | by_node.keys():
            told = by_node.get(node, {})
            if again or self._told.get(node) != told:
                self._ask(node, told)
        self._told = by_node

    def _mining(self) -> Iterator[tuple[NodeId, AllocationId, Miner]]:
        for key, held in self._world.held.items():
            filler = filler_of(self._world, self._world.workloads.get(held.workload_id)) if held.tier is Tier.FILLER else None
            part = held.parts[0]
            able = part.node_id in self._world.nodes and self._world.nodes[part.node_id].engine in {LOCAL, JOINED}
            if filler is not None and filler.stats and able and held.state is AllocationState.RUNNING:
                yield part.node_id, key, Miner(filler.stats, (filler.port or STATS_PORT) + part.shares[0].index, filler.script)


def _can_be(said: Reading) -> bool:
    watts = said.watts if said.watts is not None else 0.0
    return math.isfinite(said.hashes_s) and 0 <= said.hashes_s <= HASHES_MOST and math.isfinite(watts) and watts >= 0
