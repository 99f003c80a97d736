"""Who comes first: tier, then those that waited too long, then projects below their guarantee, then fair shares, then age.

A project's share is what it used lately (halved every week), plus an hour of what it holds and of what this plan gives it.
So a project that floods the queue does not push others back, and one that was idle catches up, but not for ever. Priority
orders the work of one project: nobody gets ahead of others by asking for it.
"""

import heapq
from collections.abc import Iterator

from headframe.model.ids import ProjectId, WorkloadId
from headframe.model.people import recent_use_milli_h
from headframe.model.units import MS_PER_HOUR
from headframe.model.work import Allocation, Tier, Workload
from headframe.model.world import World

TIER_ORDER = {Tier.RESERVED: 0, Tier.ON_DEMAND: 1, Tier.SERVED: 1, Tier.SPOT: 2, Tier.HOUSE: 3, Tier.FILLER: 4}
WAIT_LIMIT_MS = 24 * MS_PER_HOUR
"""Whoever has waited this long goes first in its tier: the bound on starvation by priority and by shares."""


class Order:
    """An iterator over the queue that listens: `granted` moves a project back."""

    def __init__(self, world: World, now_ms: int) -> None:
        self._world = world
        self._now_ms = now_ms
        self._share: dict[ProjectId, float] = {}
        groups: dict[tuple[int, bool], list[Workload]] = {}
        for workload in world.queued.values():
            late = now_ms - workload.queued_ms >= WAIT_LIMIT_MS
            groups.setdefault((TIER_ORDER[workload.spec.tier], not late), []).append(workload)
        self._given = dict[ProjectId, int]()
        self._groups = [(not on_time, groups[tier, on_time]) for tier, on_time in sorted(groups)]

    def __iter__(self) -> Iterator[Workload]:
        for late, group in self._groups:
            yield from sorted(group, key=lambda workload: (workload.queued_ms, workload.id)) if late else self._fairly(group)

    def granted(self, workload: Workload) -> None:
        """Count what was given."""
        project, milli = workload.project_id, workload.spec.gpu_milli
        self._share[project] = self._of(project)[1] + milli
        self._given[project] = self._given.get(project, 0) + milli

    def without(self, allocation: Allocation) -> None:
        """Count as if this had ended."""
        self._given[allocation.project_id] = self._given.get(allocation.project_id, 0) - allocation.gpu_milli

    def held(self, project_id: ProjectId) -> int:
        """Thousandths of GPUs that a project holds, with what it was given here."""
        return self._world.gpu_use_milli.get(project_id, 0) + self._given.get(project_id, 0)

    def _fairly(self, group: list[Workload]) -> Iterator[Workload]:
        queues: dict[ProjectId, list[tuple[int, int, WorkloadId, Workload]]] = {}
        for workload in group:
            queues.setdefault(workload.project_id, []).append((-workload.spec.priority, workload.queued_ms, workload.id, workload))
        for queue in queues.values():
            queue.sort(key=lambda item: item[:3], reverse=True)
        if len(queues) == 1:
            yield from (item[3] for queue in queues.values() for item in reversed(queue))
            return
        heap = [(self._of(project), *queue[-1][1:3], project) for project, queue in queues.items()]
        heapq.heapify(heap)
        while heap:
            share, _, _, project = heapq.heappop(heap)
            queue = queues[project]
            if share != self._of(project):  # it was given something since: look again
                heapq.heappush(heap, (self._of(project), *queue[-1][1:3], project))
                continue
            yield queue.pop()[3]
            if queue:
                heapq.heappush(heap, (self._of(project), *queue[-1][1:3], project))

    def _of(self, project_id: ProjectId) -> tuple[bool, float]:
        """Whether a project has its guarantee already, and its share."""
        project = self._world.projects[project_id]
        if project_id not in self._share:
            self._share[project_id] = recent_use_milli_h(project, self._now_ms) + self._world.gpu_use_milli.get(project_id, 0)
        return self.held(project_id) >= project.guaranteed_gpus_milli, self._share[project_id]
