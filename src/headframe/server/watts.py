"""What sites' limits leave: whether a placement is let in at all, and when what was let in may start. Pure; it decides on what dispatch last counted.

Paid work is let in against what fillers would leave, and starts once they have left it: a site's limit holds at each second, not only after the ladder has acted.
"""

from collections.abc import Mapping, Sequence

import msgspec

from headframe.model.ids import SiteId
from headframe.model.money import PriceList
from headframe.model.power import Budget
from headframe.model.states import AllocationState
from headframe.model.units import MILLI, NANO_PER_USD, clock
from headframe.model.work import Allocation, Part, Refusal, Tier, Workload
from headframe.model.world import World
from headframe.placement.power import drawn_w

FLOOR_SLACK = 0.98
"""Spot work that is worth just what its cards are is let in: what the programme finds is no more exact."""
WAITS_MS = 60_000
"""What was granted starts after so long whatever the meter says: a machine that ignores its stop must not hold up paid work for ever."""


class Watts:
    """What sites' limits leave for work at the meter."""

    def __init__(self, world: World, budgets: Mapping[SiteId, Budget], prices: PriceList) -> None:
        self._world, self._budgets, self._prices = world, budgets, prices
        self._left = {key: budget.left_w for key, budget in budgets.items()}

    def take(self, workload: Workload, parts: Sequence[Part]) -> Refusal | None:
        """Count a placement, or say how many watts are missing, and until when."""
        for key, budget in self._budgets.items():
            if budget.no_spot and workload.spec.tier is Tier.SPOT and any(_at(self._world, part, key) for part in parts):
                until = clock(budget.until_ms) if budget.until_ms else "it is over"
                return Refusal(
                    rule="power",
                    need="a grid as usual",
                    have=f"{self._world.sites[key].name}: {budget.why}",
                    nodes=0,
                    change=f"spot work waits until {until}",
                )
            if workload.spec.tier is Tier.SPOT and (refusal := self._below_floor(key, budget, parts)) is not None:
                return refusal
        needs = {key: needed_w(self._world, key, budget, parts) for key, budget in self._budgets.items()}
        for key, need in needs.items():
            if need > self._left[key]:
                budget, site = self._budgets[key], self._world.sites[key]
                until = f" until {clock(budget.until_ms)}" if budget.until_ms else ""
                return Refusal(rule="power", need=f"{need / 1000:.2f} kW at the meter", nodes=0, change=f"waits until {max(0.0, need - self._left[key]) / 1000:.2f} kW more are free{until}",
                               have=f"{max(0.0, self._left[key]) / 1000:.2f} kW left of {site.name}'s {budget.limit_w / 1000:g} kW ({budget.why})")  # fmt: skip
        for key, need in needs.items():
            self._left[key] -= need
        return None

    def _below_floor(self, key: SiteId, budget: Budget, parts: Sequence[Part]) -> Refusal | None:
        """Why spot work would bring less than its cards and their power are worth otherwise. A model without a price is not sold, so its work is let be."""
        cards = [share for part in parts if _at(self._world, part, key) for share in part.shares if self._prices.of(share.model).spot_nano]
        brings = sum(share.milli * self._prices.of(share.model).spot_nano for share in cards) / MILLI / NANO_PER_USD
        floor = sum(share.milli * budget.floor_usd_h.get(share.model, 0.0) for share in cards) / MILLI
        if brings >= floor * FLOOR_SLACK:
            return None
        return Refusal(rule="spot-floor", need=f"US$ {floor:.4f}/h or more, which its cards and their power are worth now", have=f"US$ {brings:.4f}/h, its price", nodes=0,
                       change="waits for cheaper power or a higher spot price; on-demand work does not wait for it")  # fmt: skip


class Starts:
    """Which of the allocations that are granted may start now: those for which every site's meter has room, with all that runs or is still going on it."""

    def __init__(self, world: World, budgets: Mapping[SiteId, Budget], now_ms: int) -> None:
        self._world, self._budgets, self._now_ms = world, budgets, now_ms
        self._waiting = {key for key, row in world.unsteady.items() if row.state is AllocationState.GRANTED}
        self._free = {
            key: budget.free_w + sum(watts for held, watts in budget.waiting.items() if held in self._waiting) for key, budget in budgets.items()
        }

    def ordered(self) -> list[Allocation]:
        """What is on its way up or down, paid work first."""
        return sorted(self._world.unsteady.values(), key=lambda row: (row.tier is Tier.FILLER, row.id))

    def fits(self, allocation: Allocation) -> bool:
        """Whether it may start; if so, it is counted."""
        needs = {key: budget.waiting[allocation.id] for key, budget in self._budgets.items() if allocation.id in budget.waiting}
        if any(need > self._free[key] for key, need in needs.items()) and self._now_ms - allocation.granted_ms < WAITS_MS:
            return False
        for key, need in needs.items():
            self._free[key] -= need
        return True


def granted(world: World, key: SiteId, budget: Budget, allocation: Allocation) -> Budget:
    """The budget with one more allocation granted since it was counted."""
    need = needed_w(world, key, budget, allocation.parts)
    if not need or allocation.id in budget.waiting:
        return budget
    left_w = budget.left_w - (need if allocation.tier is not Tier.FILLER else 0.0)
    return msgspec.structs.replace(budget, left_w=left_w, free_w=budget.free_w - need, waiting={**budget.waiting, allocation.id: need})


def needed_w(world: World, key: SiteId, budget: Budget, parts: Sequence[Part]) -> float:
    """What parts of an allocation may draw at most at a site's meter."""
    return budget.pue * drawn_w(world, parts, {part.node_id for part in parts if _at(world, part, key)})


def _at(world: World, part: Part, key: SiteId) -> bool:
    node = world.nodes.get(part.node_id)
    return node is not None and node.site_id == key
