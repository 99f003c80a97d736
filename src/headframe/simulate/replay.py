"""A trace through the real tick: real submission, placement, metering and billing over machines that exist only as values.

Time is virtual and jumps from one thing that happens to the next, at most once per `step`. The store keeps nothing that the
world does not need (no crash is simulated here), so memory follows what runs, not what ever ran.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence

import msgspec

from headframe.engines.base import NoShells, Sight
from headframe.model.command import CreateProject, Enrol, Found, GrantCredit, Submit
from headframe.model.errors import HeadframeError
from headframe.model.event import Draft, Event
from headframe.model.fleet import SIMULATED, Gpu, Node, Volume
from headframe.model.health import NodeHour
from headframe.model.ids import AllocationId, GpuId, KeyId, NodeId, ProjectId, UserId, WorkloadId
from headframe.model.money import Usage
from headframe.model.people import Key, Scope
from headframe.model.report import Policy, Sample
from headframe.model.states import AllocationState, GpuState, NodeState, Reason
from headframe.model.units import MS_PER_HOUR, NANO_PER_USD
from headframe.model.work import Allocation, GpuRequest, LogLine, Observation, Resources, Spec, Tier, Workload
from headframe.model.world import World
from headframe.placement.compiled import Code
from headframe.placement.fleet import Fleet
from headframe.server.decide import RACK, SITE, decide
from headframe.server.desk import Desk
from headframe.server.tick import Tick
from headframe.simulate.traces import Job, Machine
from headframe.simulate.world import START_MS, at_once, run_now
from headframe.store.base import Lease, Query, R, Reply, Snapshot

SAMPLES = 200


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """How a trace is replayed. `limits` above zero gives every job a max_duration of so many times its run time."""

    policy: Policy = Policy.HEADFRAME
    step_s: float = 60.0
    limits: float = 0.0
    spot: float = 0.0


class Ran(msgspec.Struct, frozen=True):
    """What became of one job, in seconds of virtual time."""

    gpus: float
    submitted_s: float
    started_s: float
    ended_s: float
    run_s: float
    tenant: str


class Forgetful:
    """A store without a past: it counts versions and keeps a lease. See `Store`."""

    def __init__(self) -> None:
        self.count = 0
        self.lease_now = Lease(holder="", epoch=0, beat=0)
        self.heard: Callable[[Sequence[Event]], None] = lambda _: None

    def load(self) -> Snapshot:
        return Snapshot(version=0, rows=())

    def commit(self, events: Sequence[Event], expect: int, epoch: int | None = None, replies: Sequence[Reply] = ()) -> None:
        del expect, epoch, replies
        self.count += len(events)
        self.heard(events)

    def events(self, after: int, limit: int, project_id: str | None = None, subject: str | None = None) -> list[Event]:
        del after, limit, project_id, subject
        return []

    def version(self) -> int:
        return self.count

    def get(self, kind: type[R], key: str) -> R | None:
        del kind, key
        return None

    def page(self, kind: type[R], query: Query) -> list[R]:
        del kind, query
        return []

    def keep_hours(self, hours: Sequence[NodeHour], forget_before_ms: int) -> None:
        del hours, forget_before_ms

    def hours(self, node_id: str, since_ms: int, limit: int) -> list[NodeHour]:
        del node_id, since_ms, limit
        return []

    def reply(self, key: str) -> Reply | None:
        del key
        return None

    def forget_replies(self, before_ms: int) -> None:
        del before_ms

    def lease(self) -> Lease:
        return self.lease_now

    def lead(self, holder: str, seen: Lease) -> Lease | None:
        self.lease_now = Lease(holder=holder, epoch=seen.epoch + 1, beat=0)
        return self.lease_now

    def close(self) -> None:
        """Nothing is open."""


class Fast(NoShells):
    """An engine that says only what is new, and everything once an hour. See `Engine`."""

    def __init__(self, nodes: tuple[NodeId, ...], now: Callable[[], int], run_ms: Callable[[WorkloadId], int]) -> None:
        self.ends: list[tuple[int, AllocationId]] = []
        self._nodes, self._now, self._run_ms = nodes, now, run_ms
        self._started: dict[AllocationId, int] = {}
        self._stopped: dict[AllocationId, Reason] = {}
        self._news: list[Observation] = []
        self._whole_ms = 0

    async def start(self, allocation: Allocation, workload: Workload) -> None:
        if allocation.id in self._started:
            return
        now = self._started[allocation.id] = self._now()
        heapq.heappush(self.ends, (now + self._run_ms(workload.id), allocation.id))
        self._news.append(Observation(allocation_id=allocation.id, state=AllocationState.RUNNING, started_ms=now, seen_ms=now))

    async def stop(self, allocation: AllocationId, because: Reason, grace_s: int) -> None:
        del grace_s
        if allocation in self._started and allocation not in self._stopped:
            self._stopped[allocation] = because
            heapq.heappush(self.ends, (self._now() + 1000, allocation))
        elif allocation not in self._started:  # stopped before it was ever started: it is over, as every engine says
            self._news.append(
                Observation(allocation_id=allocation, state=AllocationState.ENDED, reason=because, ended_ms=self._now(), seen_ms=self._now())
            )

    async def observe(self) -> Sight:
        now, news = self._now(), self._news
        self._news = []
        while self.ends and self.ends[0][0] <= now:
            at, key = heapq.heappop(self.ends)
            started = self._started.pop(key, None)
            if started is not None:
                news.append(Observation(allocation_id=key, state=AllocationState.ENDED, started_ms=started, ended_ms=at, exit_code=0,
                                        reason=self._stopped.pop(key, Reason.FINISHED), seen_ms=now))  # fmt: skip
        if now - self._whole_ms >= MS_PER_HOUR:  # so that the hours of what simply runs are metered
            self._whole_ms, running = now, AllocationState.RUNNING
            news += [Observation(allocation_id=key, state=running, started_ms=at, seen_ms=now) for key, at in self._started.items()]
        return Sight(nodes=self._nodes, observations=tuple(news), complete=False)

    async def forget(self, allocation: AllocationId) -> None:
        """It has no journal."""

    async def logs(self, allocation: Allocation, after: int, limit: int) -> Sequence[LogLine]:
        del allocation, after, limit
        return []

    async def erase(self, volume: Volume) -> None:
        """There is nothing to delete."""

    async def discard(self, allocation: Allocation) -> None:
        """There is nothing to delete."""


class Replay:
    """One trace under one policy; `steps` yields as it goes, `ran` and `samples` hold what happened."""

    def __init__(self, machines: Sequence[Machine], jobs: Sequence[Job], setting: Setting, code: Code | None = None) -> None:
        self.machines, self.jobs, self.setting = machines, jobs, setting
        self.at_ms = START_MS
        self.ran: list[Ran] = []
        self.samples: list[Sample] = []
        self._sample_s = max(setting.step_s, jobs[-1].at_s / SAMPLES)
        self._gpus = sum(machine.gpus for machine in machines) or 1
        self.refused = 0
        self.preempted = 0
        self.lost_gpu_s = 0.0
        self.revenue_nano = 0
        self.ticks = 0
        self._by_id: dict[WorkloadId, Job] = {}
        self._started: dict[WorkloadId, float] = {}
        self._store = Forgetful()
        self._store.heard = self._hear
        self.desk = Desk(self._store, lambda: self.at_ms, at_once)
        self._found()
        self.desk.world.views[Fleet] = Fleet(self.desk.world, code, setting.policy)
        self.engine = Fast(tuple(self.desk.world.nodes), lambda: self.at_ms, lambda key: int(self._by_id[key].run_s * 1000))
        self.tick = Tick(self.desk, self.engine, lambda: self.at_ms)
        lease = self._store.lead("replay", self._store.lease())
        assert lease is not None
        self._epoch = lease.epoch

    @property
    def world(self) -> World:
        """The world as it is now."""
        return self.desk.world

    def steps(self) -> Iterator[int]:
        """Run to the end; yields how many jobs have ended after each tick."""
        arrivals, number, step_ms = self.jobs, 0, int(self.setting.step_s * 1000)
        while number < len(arrivals) or self.world.workloads:
            due = number
            while due < len(arrivals) and START_MS + arrivals[due].at_s * 1000 <= self.at_ms:
                due += 1
            if due > number:
                self._submit(arrivals[number:due], number)
                number = due
            run_now(self.tick.run(self._epoch))
            self.ticks += 1
            self._sample()
            yield len(self.ran) + self.refused
            if self.world.unsteady or self.world.unsettled or self.world.closing:
                self.at_ms += 1  # what has just been granted or ended needs another look at once
                continue
            coming = [START_MS + int(job.at_s * 1000) for job in arrivals[number : number + 1]] + [at for at, _ in self.engine.ends[:1]]
            if not coming:
                break  # nothing runs and nothing comes: what still waits, waits for ever
            self.at_ms = max(self.at_ms + step_ms, min(coming))

    def _found(self) -> None:
        key = Key(id=KeyId("op"), name="operator", scope=Scope.OPERATOR, project_id=ProjectId(""), user_id=UserId(""), mac="", created_ms=self.at_ms)
        self._do(Found(site_name="replayed", key=key))
        for machine in self.machines:
            self._do(enrol(machine, self.at_ms))
        for tenant in sorted({job.tenant for job in self.jobs}):
            self._do(CreateProject(id=ProjectId(f"pr-{tenant}"), name=tenant))
            self._do(GrantCredit(project_id=ProjectId(f"pr-{tenant}"), amount_nano=10**9 * NANO_PER_USD, memo="", id=tenant))

    def _do(self, command: Found | Enrol | CreateProject | GrantCredit) -> None:
        run_now(self.desk.write(lambda world, now_ms: decide(world, command, now_ms)))

    def _submit(self, jobs: Sequence[Job], number: int) -> None:
        """All arrivals of a moment in one commit; what can never run is counted, not queued."""
        refused: list[HeadframeError] = []
        run_now(self.desk.write(submitted([self._command(job, number + n) for n, job in enumerate(jobs)], refused)))
        self.refused += len(refused)

    def _command(self, job: Job, number: int) -> Submit:
        key = WorkloadId(f"wl-{number:07}")
        self._by_id[key] = job
        spot = self.setting.spot and number % 100 < self.setting.spot * 100
        spec = Spec(
            name=f"j{number}", run="replayed", nodes=job.nodes, tier=Tier.SPOT if spot else Tier.ON_DEMAND,
            max_duration_s=int(job.run_s * self.setting.limits) + 60 if self.setting.limits else 0,
            resources=Resources(gpu=GpuRequest(milli=job.milli, model=job.model), cpu_milli=job.cpu_milli, memory_mib=job.memory_mib, disk_mib=0),
        )  # fmt: skip
        return Submit(id=key, project_id=ProjectId(f"pr-{job.tenant}"), key_id=KeyId("op"), spec=spec)

    def _hear(self, events: Sequence[Event]) -> None:
        for event in events:
            for row in event.rows:
                if isinstance(row, Usage):
                    self.revenue_nano += row.amount_nano
                elif isinstance(row, Allocation) and row.state is AllocationState.ENDED and not row.settled:
                    self._ended(row)

    def _ended(self, row: Allocation) -> None:
        job = self._by_id[row.workload_id]
        start, end = (row.started_ms - START_MS) / 1000, (row.ended_ms - START_MS) / 1000
        gpus = job.milli * job.nodes / 1000
        first = self._started.setdefault(row.workload_id, start)
        if row.reason is Reason.PREEMPTED:
            self.preempted += 1
            self.lost_gpu_s += gpus * (end - start)
            return
        del self._by_id[row.workload_id], self._started[row.workload_id]
        self.ran.append(Ran(gpus, job.at_s, first, end, job.run_s, job.tenant))

    def _sample(self) -> None:
        """GPUs held and stranded and jobs waiting, a few hundred times over the trace."""
        at_s = (self.at_ms - START_MS) / 1000
        if self.samples and at_s - self.samples[-1].at_h * 3600 < self._sample_s:
            return
        held = sum(self.world.gpu_use_milli.values()) / 1000
        stranded = Fleet.of(self.world).stranded_milli() / 1000
        percent = 100 / self._gpus
        self.samples.append(Sample(at_h=at_s / 3600, held=held * percent, stranded=stranded * percent, waiting=len(self.world.queued)))


def submitted(commands: Sequence[Submit], refused: list[HeadframeError]) -> Callable[[World, int], Iterator[Draft]]:
    """Many submissions as one decision; those that are refused go to the list, the others are queued."""

    def all_of_them(world: World, now_ms: int) -> Iterator[Draft]:
        for command in commands:
            try:
                yield from decide(world, command, now_ms)
            except HeadframeError as error:
                refused.append(error)

    return all_of_them


def enrol(machine: Machine, at_ms: int) -> Enrol:
    """A machine as it would introduce itself."""
    node_id = NodeId(machine.name)
    row = Node(id=node_id, name=machine.name, site_id=SITE, rack_id=RACK, state=NodeState.NEW, engine=SIMULATED, cpu_milli=machine.cpu_milli,
               memory_mib=machine.memory_mib, disk_mib=1_000_000, joined_ms=at_ms, seen_ms=at_ms)  # fmt: skip
    cards = tuple(
        Gpu(id=GpuId(f"{machine.name}-{k}"), node_id=node_id, index=k, model=machine.model, memory_mib=24_576, state=GpuState.NEW, joined_ms=at_ms)
        for k in range(machine.gpus)
    )
    return Enrol(node=row, gpus=cards)
