"""Who is at work in workspaces: shells and forwarded ports that are open, and cards in use. What nobody has used for its idle time is stopped. Memory of one server:
after a new start everybody has the whole time again.
"""

import contextlib
from collections.abc import Callable, Generator

from headframe.model.ids import AllocationId, GpuId, WorkloadId
from headframe.model.world import World

BUSY = 0.05
"""A card used more than this is at work."""


class Sessions:
    """`use` is how busy a card is, 0 to 1, None where that is not known."""

    def __init__(self, clock_ms: Callable[[], int], use: Callable[[GpuId], float | None] = lambda _: None) -> None:
        self._clock_ms, self._use = clock_ms, use
        self._open: dict[WorkloadId, int] = {}
        self._busy_ms: dict[WorkloadId, int] = {}

    @contextlib.contextmanager
    def open(self, workload: WorkloadId) -> Generator[None]:
        """While somebody is there."""
        self._open[workload] = self._open.get(workload, 0) + 1
        try:
            yield
        finally:
            self._open[workload] -= 1
            self._busy_ms[workload] = self._clock_ms()
            if not self._open[workload]:
                del self._open[workload]

    def idle(self, world: World, now_ms: int) -> dict[AllocationId, int]:
        """Since when nobody has used what runs and stops by itself when it is idle."""
        found: dict[AllocationId, int] = {}
        seen: set[WorkloadId] = set()
        for key, held in world.watched.items():
            workload = world.workloads[held.workload_id]
            seen.add(workload.id)
            cards = [share.gpu_id for part in held.parts for share in part.shares]
            if workload.id in self._open or any((self._use(card) or 0.0) > BUSY for card in cards):
                self._busy_ms[workload.id] = now_ms
            found[key] = self._busy_ms.setdefault(workload.id, now_ms)
        for gone in self._busy_ms.keys() - seen - self._open.keys():
            del self._busy_ms[gone]
        return found
