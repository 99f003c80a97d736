"""Racks as placement sees them: which nodes are near one another, and what power each rack can still carry."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from headframe.model.fleet import Rack
from headframe.model.ids import NodeId
from headframe.model.work import Network, Spec
from headframe.model.world import World
from headframe.placement.fit import UNLIMITED_W, cards_of
from headframe.placement.kernels import FX, NEVER, Ints
from headframe.placement.network import crossing_share
from headframe.placement.power import rack_w

HOT_FROM, HOT_SHARE = 0.8, 0.05
"""An assumption, enough to prefer the cooler of equal racks: cards lose clock with heat long before they are throttled (Bekman, ML
Engineering), from four fifths of what a rack can carry to this share of their speed at its limit."""
HOT_STEPS = 4


class Racks:
    """The racks of the nodes `ids`, numbered by id; `of` is each node's rack, `left_w` what each rack can still carry."""

    def __init__(self, world: World, ids: Sequence[NodeId]) -> None:
        self.world = world
        names = sorted({world.nodes[node_id].rack_id for node_id in ids})
        number = {rack_id: n for n, rack_id in enumerate(names)}
        self.names = names
        self.count = len(names)
        self.of: Ints = np.array([number[world.nodes[node_id].rack_id] for node_id in ids], dtype=np.int64)
        self.limited: dict[int, list[int]] = {}
        self.left_w: Ints = np.full(self.count, UNLIMITED_W, dtype=np.int64)
        self._rows: list[Rack | None] = [world.racks.get(name) for name in names]
        self._ids = ids
        limited = {n for n, rack in enumerate(self._rows) if rack is not None and rack.limit_w}
        for rank, n in enumerate(self.of.tolist()):
            if n in limited:
                self.limited.setdefault(n, []).append(rank)
        for n in self.limited:
            self.measure(n)

    def stale(self, numbers: Iterable[int]) -> bool:
        """Whether one of these racks has changed since."""
        return any(self.world.racks.get(self.names[number]) is not self._rows[number] for number in numbers)

    def measure(self, number: int) -> None:
        """Look again at what a limited rack carries."""
        rack = self._rows[number]
        assert rack is not None
        nodes = {self._ids[rank]: self.world.nodes[self._ids[rank]] for rank in self.limited[number]}
        self.left_w[number] = rack.limit_w - rack_w(self.world, nodes)

    def heat(self, number: int) -> int:
        """What a rack's warmth costs a card there, in 1/1024 of its price: in few steps, so that rows seldom change by it."""
        rack = self._rows[number]
        if rack is None or number not in self.limited:
            return 0
        used = 1 - max(0, int(self.left_w[number])) / rack.limit_w
        step = min(HOT_STEPS, max(0, int((used - HOT_FROM) / (1 - HOT_FROM) * HOT_STEPS)))
        return round(step / HOT_STEPS * HOT_SHARE * FX)

    def within_power(self, cost: Ints, watts: Callable[[int], int]) -> Ints:
        """The costs of a gang's nodes with NEVER for those that their rack can't carry with the cheaper ones beside them."""
        for number, ranks in self.limited.items():
            able = [rank for rank in ranks if cost[rank] < NEVER]
            able.sort(key=lambda rank: (cost[rank], rank))
            left = int(self.left_w[number])
            for rank in able:
                left -= watts(rank)
                if left < 0:
                    cost[rank] = NEVER
        return cost

    def near(self, spec: Spec, cost: Ints) -> Ints:
        """The costs of a gang's nodes with NEVER for those that are too far from the others: all in the rack where they cost
        least, unless the cheapest of all racks are better by more than the way between racks costs (`network.py`); where no
        rack has enough, and none is required, the racks with most room, as few as can be.
        """
        if spec.nodes == 1 or spec.network is Network.UNCONSTRAINED:
            return cost
        able = np.bincount(self.of[cost < NEVER], minlength=self.count)
        if able.max(initial=0) < spec.nodes:
            return np.full(len(cost), NEVER, dtype=np.int64) if spec.network is Network.REQUIRED else self._fewest(spec, cost, able)
        rack, total = self._cheapest(spec.nodes, cost, able)
        if spec.network is Network.PREFERRED:
            each, count = cards_of(spec.resources.gpu)
            extra = int(crossing_share(count, spec.nodes) * each * count * spec.nodes * FX)
            anywhere = int(np.partition(cost[cost < NEVER], spec.nodes - 1)[: spec.nodes].sum())
            if anywhere + extra < total:
                return cost
        return np.where(self.of == rack, cost, NEVER)

    def _cheapest(self, nodes: int, cost: Ints, able: Ints) -> tuple[int, int]:
        """The rack whose cheapest nodes cost least together, ties to the one that is filled best; and what they cost."""
        ranks = np.nonzero(cost < NEVER)[0]
        order = ranks[np.lexsort((cost[ranks], self.of[ranks]))]
        sums = np.concatenate([[0], np.cumsum(cost[order])])
        first = np.concatenate([[0], np.cumsum(able)])[:-1]
        enough = np.nonzero(able >= nodes)[0]
        totals = sums[first[enough] + nodes] - sums[first[enough]]
        best = np.lexsort((enough, able[enough], totals))[0]
        return int(enough[best]), int(totals[best])

    def _fewest(self, spec: Spec, cost: Ints, able: Ints) -> Ints:
        order = np.argsort(-able, kind="stable")
        needed = int(np.searchsorted(np.cumsum(able[order]), spec.nodes)) + 1
        return np.where(np.isin(self.of, order[:needed]), cost, NEVER)

    def soonest(self, spec: Spec, ready: Ints) -> Ints:
        """Times at which a gang's nodes are ready, with NEVER outside the rack that has enough of them first, where one rack is required."""
        if spec.nodes == 1 or spec.network is not Network.REQUIRED:
            return ready
        best, chosen = NEVER, -1
        for rack in range(self.count):
            times = np.sort(ready[self.of == rack])
            if len(times) >= spec.nodes and times[spec.nodes - 1] < best:
                best, chosen = int(times[spec.nodes - 1]), rack
        return np.where(self.of == chosen, ready, NEVER)

    def most(self, cost: Ints) -> int:
        """How many nodes of one rack can be had, at best."""
        return int(np.bincount(self.of[cost < NEVER], minlength=1).max())


def lemon(faults: float) -> int:
    """What a node's record of faults costs a card there, in 1/1024 of its price, by powers of two so that rows seldom change by it."""
    share = faults * FAULT_RATE_PER_H * FAULT_COSTS_H
    return 0 if share * FX < 1 else 1 << min(9, int(np.log2(share * FX)))


FAULT_RATE_PER_H = 0.0041
"""Faults per hour that one fault lately stands for: older ones count half after a week, so one that has just happened is worth
ln 2 / 168 h (the rate at which such a count would stay level)."""
FAULT_COSTS_H = 0.53
"""Hours lost by a fault: half an hour of work since the last checkpoint, and a restart."""
