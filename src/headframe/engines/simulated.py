"""An engine over machines that exist only as values: for finding bugs, sizing fleets and demonstrations.

Machines outlive the server: `Machines` is the world outside, `SimulatedEngine` a server's hands in it. Times are virtual. A
machine that has lost its link kills its own work after `FENCE_MS`; the engine vouches for that only `VOUCH_MS` after the loss.
"""

from collections.abc import Callable, Sequence

from headframe.engines.base import NoShells, Sight
from headframe.model.fleet import Volume
from headframe.model.ids import AllocationId, NodeId
from headframe.model.states import AllocationState, Reason
from headframe.model.work import Allocation, LogLine, Observation, Workload

FENCE_MS = 45_000
VOUCH_MS = 60_000
START_MS = 300


class Machine:
    """One node: whether it is powered and linked, since when not, and how wrong its clock is."""

    def __init__(self, node_id: NodeId, skew_ms: int) -> None:
        self.node_id = node_id
        self.skew_ms = skew_ms
        self.down_ms: int | None = None
        self.unlinked_ms: int | None = None

    def silent_ms(self) -> int | None:
        """Since when it has not answered."""
        times = [at for at in (self.down_ms, self.unlinked_ms) if at is not None]
        return min(times) if times else None


class Run:
    """What one allocation really does out there."""

    def __init__(self, allocation: Allocation, machines: Sequence[Machine], start_ms: int, end_ms: int, exit_code: int) -> None:
        self.allocation = allocation
        self.machines = tuple(machines)
        self.start_ms = start_ms
        self.end_ms = end_ms
        self.exit_code = exit_code
        self.reason = Reason.FINISHED if exit_code == 0 else Reason.FAILED
        self.over_ms: int | None = None

    def advance(self, now_ms: int) -> None:
        """Let time pass: the earliest of its own end, a machine's death and a machine's self-fencing ends it."""
        if self.over_ms is not None:
            return
        ends = [(self.end_ms, self.reason)]
        for machine in self.machines:
            if machine.down_ms is not None:
                ends.append((machine.down_ms, Reason.NODE_LOST))
            if machine.unlinked_ms is not None:
                ends.append((machine.unlinked_ms + FENCE_MS, Reason.NODE_LOST))
        at_ms, reason = min(ends)
        if at_ms <= now_ms:
            self.over_ms, self.reason = max(at_ms, self.start_ms), reason

    def observation(self, now_ms: int) -> Observation:
        """The truth about it now, in its first node's time."""
        skew = self.machines[0].skew_ms
        if self.over_ms is None:
            state = AllocationState.RUNNING if now_ms >= self.start_ms else AllocationState.STARTING
            started = self.start_ms + skew if state is AllocationState.RUNNING else 0
            return Observation(allocation_id=self.allocation.id, state=state, started_ms=started, seen_ms=now_ms + skew)
        code = self.exit_code if self.reason in {Reason.FINISHED, Reason.FAILED} else None
        ran = self.over_ms >= self.start_ms
        return Observation(
            allocation_id=self.allocation.id, state=AllocationState.ENDED, started_ms=self.start_ms + skew if ran else 0,
            ended_ms=self.over_ms + skew, reason=self.reason, exit_code=code, seen_ms=now_ms + skew,
        )  # fmt: skip


NOTHING = ("simulated work: nothing is really computed",)


class Machines:
    """The world outside. `fate` says how long a workload's attempt would run and how it would exit, `tells` what it prints."""

    def __init__(
        self,
        clock_ms: Callable[[], int],
        fate: Callable[[Allocation, Workload], tuple[int, int]],
        tells: Callable[[Allocation], Sequence[str]] = lambda _: NOTHING,
    ) -> None:
        self.tells = tells
        self.machines: dict[NodeId, Machine] = {}
        self.runs: dict[AllocationId, Run] = {}
        self.never: dict[AllocationId, Observation] = {}
        self.refused: set[AllocationId] = set()
        self._clock_ms = clock_ms
        self._fate = fate

    def start(self, allocation: Allocation, workload: Workload) -> None:
        """Idempotent; a tombstone refuses."""
        machines = [self.machines[part.node_id] for part in allocation.parts]
        if allocation.id in self.runs or allocation.id in self.refused:
            return
        if any(machine.silent_ms() is not None for machine in machines):
            return  # nobody there to hear it
        run_ms, exit_code = self._fate(allocation, workload)
        start_ms = self._clock_ms() + START_MS
        self.runs[allocation.id] = Run(allocation, machines, start_ms, start_ms + run_ms, exit_code)

    def stop(self, allocation_id: AllocationId, because: Reason) -> None:
        """Reaches it only if all its machines hear; it takes a second to die."""
        self.refused.add(allocation_id)
        run = self.runs.get(allocation_id)
        if run is None or run.over_ms is not None or any(machine.silent_ms() is not None for machine in run.machines):
            return
        at_ms = self._clock_ms() + 1000
        if at_ms < run.end_ms:
            run.end_ms, run.reason = at_ms, because

    def look(self) -> tuple[list[NodeId], list[Observation]]:
        """What answers, and the truth about what can be known."""
        now_ms = self._clock_ms()
        nodes = [key for key, machine in self.machines.items() if machine.down_ms is None and machine.unlinked_ms is None]
        seen: list[Observation] = []
        for run in self.runs.values():
            run.advance(now_ms)
            silent = [at for machine in run.machines if (at := machine.silent_ms()) is not None]
            if not silent:
                seen.append(run.observation(now_ms))
            elif now_ms - min(silent) >= VOUCH_MS:
                run.reason = Reason.NODE_LOST
                run.over_ms = min(silent) + FENCE_MS if run.over_ms is None else run.over_ms
                seen.append(run.observation(now_ms))
        return nodes, seen

    def active(self) -> list[Run]:
        """What truly runs now."""
        now_ms = self._clock_ms()
        for run in self.runs.values():
            run.advance(now_ms)
        return [run for run in self.runs.values() if run.over_ms is None]

    def next_end_ms(self) -> int | None:
        """When the next run ends by itself."""
        ends = [run.end_ms for run in self.runs.values() if run.over_ms is None]
        return min(ends) if ends else None


class SimulatedEngine(NoShells):
    """See `Engine`. `distort` may lose, repeat, delay or reorder what is seen."""

    def __init__(self, machines: Machines, distort: Callable[[list[Observation]], list[Observation]] = lambda seen: seen) -> None:
        self._machines = machines
        self._distort = distort

    async def start(self, allocation: Allocation, workload: Workload) -> None:
        self._machines.start(allocation, workload)

    async def stop(self, allocation: AllocationId, because: Reason, grace_s: int) -> None:
        del grace_s
        self._machines.stop(allocation, because)
        if allocation not in self._machines.runs:
            ended = AllocationState.ENDED
            self._machines.never[allocation] = Observation(allocation_id=allocation, state=ended, reason=because)

    async def observe(self) -> Sight:
        nodes, seen = self._machines.look()
        return Sight(nodes=tuple(nodes), observations=tuple(self._distort([*seen, *self._machines.never.values()])))

    async def forget(self, allocation: AllocationId) -> None:
        self._machines.runs.pop(allocation, None)
        self._machines.never.pop(allocation, None)
        self._machines.refused.add(allocation)

    async def logs(self, allocation: Allocation, after: int, limit: int) -> Sequence[LogLine]:
        run = self._machines.runs.get(allocation.id)
        texts = self._machines.tells(run.allocation)[after : after + limit] if run else []
        return [LogLine(at_ms=run.start_ms, rank=0, stream="out", text=text, next=after + n + 1) for n, text in enumerate(texts)] if run else []

    async def erase(self, volume: Volume) -> None:
        """There is nothing to delete."""

    async def discard(self, allocation: Allocation) -> None:
        """There is nothing to delete."""
