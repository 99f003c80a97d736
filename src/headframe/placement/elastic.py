"""Elastic gangs that run on fewer nodes than they would take: one starts again, on more, where clearly more is gained by that than is lost.

Only what keeps checkpoints does, and only while nobody waits and nothing has just been granted. What is lost and gained is reckoned as in `preempt.py`.
"""

from collections.abc import Callable

from headframe.model.states import MADE_WAY, AllocationState
from headframe.model.work import Allocation, Tier, Workload
from headframe.model.world import World
from headframe.placement.plan import Admit, anew
from headframe.placement.preempt import CALM_MS, GAIN_OVER_LOSS, MIN_RUN_MS, WORTH, gain, lost_milli_ms

TURN_MS = 1000
"""One is looked at so often, and they take turns: a tick costs the same whatever their number."""


def grows(world: World, now_ms: int, admit: Callable[[Allocation], Admit]) -> Allocation | None:
    """The one whose turn it is, if it is to be stopped and start again. `admit` has the last word on what would then be held instead of it."""
    if not world.small or any(alike.tier is not Tier.HOUSE for alike in world.waiting):
        return None
    if any(allocation.state is AllocationState.GRANTED for allocation in world.unsteady.values()):
        return None
    allocation = world.small[sorted(world.small)[now_ms // TURN_MS % len(world.small)]]
    workload = world.workloads[allocation.workload_id]
    if not _may(allocation, workload, now_ms):
        return None
    more = anew(world, allocation, now_ms, admit(allocation)) - len(allocation.parts)
    if more <= 0:
        return None
    lost = WORTH[allocation.tier] * lost_milli_ms(allocation, workload, now_ms)
    return allocation if gain(workload.spec.sized(more)) > GAIN_OVER_LOSS * lost else None


def _may(allocation: Allocation, workload: Workload, now_ms: int) -> bool:
    """Whether it loses little, and has run for long enough to be interrupted for more."""
    lasted_ms = now_ms - allocation.started_ms
    return bool(workload.spec.checkpoint) and lasted_ms >= (CALM_MS if workload.reason in MADE_WAY else MIN_RUN_MS)
