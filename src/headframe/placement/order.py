"""Who comes first: tier, then those that waited too long, then projects below their guarantee, then fair shares, then age.

A project's share is what it used lately (halved every week), plus an hour of what it holds and of what this plan gives it.
So a project that floods the queue does not push others back, and one that was idle catches up, but not for ever. Priority
orders the work of one project: nobody gets ahead of others by asking for it.
"""

import bisect
import heapq
from collections.abc import Iterator, Sequence

import msgspec

from headframe.model.ids import ProjectId, WorkloadId
from headframe.model.people import recent_use_milli_h
from headframe.model.units import MS_PER_HOUR
from headframe.model.work import Alike, Allocation, Tier, Workload
from headframe.model.world import World

TIER_ORDER = {Tier.RESERVED: 0, Tier.ON_DEMAND: 1, Tier.SERVED: 1, Tier.SPOT: 2, Tier.HOUSE: 3, Tier.FILLER: 4}
WAIT_LIMIT_MS = 24 * MS_PER_HOUR
"""Whoever has waited this long goes first in its tier: the bound on starvation by priority and by shares."""


class Order:
    """An iterator over the queue that listens: `granted` moves a project back, `pass_over` leaves out what is alike. It costs what it yields, not what waits."""

    def __init__(self, world: World, now_ms: int) -> None:
        self._world = world
        self._now_ms = now_ms
        self._share: dict[ProjectId, float] = {}
        self._given = dict[ProjectId, int]()
        self._passed = set[Alike]()

    def __iter__(self) -> Iterator[Workload]:
        tiers: dict[int, list[Alike]] = {}
        for alike in self._world.waiting:
            tiers.setdefault(TIER_ORDER[alike.tier], []).append(alike)
        for _, there in sorted(tiers.items()):
            lines = [(alike, self._world.waiting[alike]) for alike in there]
            late = {alike: bisect.bisect_left(line, (self._now_ms - WAIT_LIMIT_MS + 1,)) for alike, line in lines}
            yield from self._all_of(_Queue([_Line(alike, line, 0, late[alike], 0) for alike, line in lines], self._passed))
            yield from self._fairly([_Line(alike, line, late[alike], len(line), alike.priority) for alike, line in lines])

    def pass_over(self, workload: Workload) -> None:
        """Yield no other that is alike."""
        self._passed.add(workload.alike)

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

    def _fairly(self, lines: "Sequence[_Line]") -> Iterator[Workload]:
        projects: dict[ProjectId, list[_Line]] = {}
        for line in lines:
            projects.setdefault(line.alike.project_id, []).append(line)
        queues = {project: _Queue(there, self._passed) for project, there in projects.items()}
        if len(queues) == 1:
            yield from self._all_of(*queues.values())
            return
        heap = [(self._of(project), *head, project) for project, queue in queues.items() if (head := queue.head())]
        heapq.heapify(heap)
        while heap:
            share, _, _, project = heapq.heappop(heap)
            queue = queues[project]
            if share == self._of(project) and (key := next(queue, None)):  # else it was given something since: look again
                yield self._world.queued[key]
            if head := queue.head():
                heapq.heappush(heap, (self._of(project), *head, project))

    def _all_of(self, queue: "_Queue") -> Iterator[Workload]:
        return map(self._world.queued.__getitem__, queue)

    def _of(self, project_id: ProjectId) -> tuple[bool, float]:
        """Whether a project has its guarantee already, and its share."""
        project = self._world.projects[project_id]
        if project_id not in self._share:
            self._share[project_id] = recent_use_milli_h(project, self._now_ms) + self._world.gpu_use_milli.get(project_id, 0)
        return self.held(project_id) >= project.guaranteed_gpus_milli, self._share[project_id]


class _Line(msgspec.Struct):
    """Workloads that are alike, oldest first: those from `at` to before `end`."""

    alike: Alike
    there: Sequence[tuple[int, WorkloadId]]
    at: int
    end: int
    priority: int


class _Queue:
    """An iterator over several lines as one, highest priority first, then oldest; without those that are `passed` over, now or later."""

    def __init__(self, lines: Sequence[_Line], passed: set[Alike]) -> None:
        self._lines = [line for line in lines if line.at < line.end]
        self._passed = passed
        self._heap = [(-line.priority, *line.there[line.at], number) for number, line in enumerate(self._lines)]
        heapq.heapify(self._heap)

    def head(self) -> tuple[int, WorkloadId] | None:
        """Since when the next one waits, and its id; None where there is none."""
        while self._heap and self._lines[self._heap[0][3]].alike in self._passed:
            heapq.heappop(self._heap)
        return self._heap[0][1:3] if self._heap else None

    def __iter__(self) -> Iterator[WorkloadId]:
        return self

    def __next__(self) -> WorkloadId:
        if self.head() is None:
            raise StopIteration
        priority, _, key, number = self._heap[0]
        line = self._lines[number]
        line.at += 1
        if line.at < line.end:
            heapq.heapreplace(self._heap, (priority, *line.there[line.at], number))
        else:
            heapq.heappop(self._heap)
        return key
