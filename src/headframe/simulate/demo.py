"""The real server and console over a fleet that exists only as values, with time running faster: to see what a full house looks like.

Everything but the machines and the clock is the product: API, tick, placement, metering, ledger. The store is thrown away at the end.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from headframe.engines.simulated import Machine, Machines, SimulatedEngine
from headframe.model.command import CreateProject, GrantCredit, Submit
from headframe.model.ids import KeyId, ProjectId, WorkloadId
from headframe.model.units import NANO_PER_USD
from headframe.model.work import Allocation, GpuRequest, Resources, Spec, Tier, Workload
from headframe.server.decide import decide
from headframe.server.desk import Desk
from headframe.simulate.replay import enrol, submitted
from headframe.simulate.traces import Job, generate, read_fleet

TENANTS = ("vision-lab", "speech", "genomics", "robotics", "language", "weather")
STEP_S = 0.5
BATCH = 2000
MIX = ((0.5, "H100"), (0.3, "A100"), (0.2, "RTX 3090"))


class DemoEngine(SimulatedEngine):
    """Needs no nudge: the server looks every second anyway."""

    def listen(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Nothing happens between two looks."""


class Demo:
    """A fleet of `gpus` GPUs on nodes of eight, busy with made-up jobs worth `load` of it."""

    def __init__(self, gpus: int, load: float, clock_ms: Callable[[], int], seed: int = 0) -> None:
        nodes = max(3, gpus // 8)
        self.fleet = read_fleet("+".join(f"{max(1, round(nodes * share))}x8x{model}" for share, model in MIX))
        self.engine = DemoEngine(machines := Machines(clock_ms, self._fate))
        self.first = enrol(self.fleet[0], clock_ms())
        for machine in self.fleet:
            node_id = enrol(machine, 0).node.id
            machines.machines[node_id] = Machine(node_id, 0)
        self._clock_ms, self._load, self._seed = clock_ms, load, seed
        self._runs: dict[WorkloadId, int] = {}
        self._rng = Random(seed)  # noqa: S311 - replayable chance, not secrets

    async def play(self, desk: Desk) -> None:
        """Enrol the machines, found the tenants, and submit jobs as virtual time passes, for ever."""
        for machine in self.fleet:
            await desk.write(lambda world, now_ms, machine=machine: decide(world, enrol(machine, now_ms), now_ms))
        for name in TENANTS:
            project = ProjectId(f"pr-{name}")
            await desk.write(lambda world, now_ms, name=name, project=project: decide(world, CreateProject(id=project, name=name), now_ms))
            credit = GrantCredit(project_id=project, amount_nano=10**6 * NANO_PER_USD, memo="simulated", id=name)
            await desk.write(lambda world, now_ms, credit=credit: decide(world, credit, now_ms))
        start_ms, number = self._clock_ms(), 0
        while True:
            jobs = generate(BATCH, self.fleet, self._load, self._seed + number)
            while jobs:
                due = [job for job in jobs if start_ms + job.at_s * 1000 <= self._clock_ms()]
                if due:
                    await self._submit(desk, due, number)
                    number, jobs = number + len(due), jobs[len(due) :]
                await asyncio.sleep(STEP_S)
            start_ms = self._clock_ms()

    async def _submit(self, desk: Desk, jobs: Sequence[Job], number: int) -> None:
        await desk.write(submitted([self._command(job, number + n) for n, job in enumerate(jobs)], []))

    def _command(self, job: Job, number: int) -> Submit:
        key = WorkloadId(f"wl-{number:07}")
        self._runs[key] = int(job.run_s * 1000)
        spec = Spec(
            name=f"{self._rng.choice(('train', 'tune', 'eval', 'embed', 'render'))}-{number}", run="simulated", nodes=job.nodes,
            tier=self._rng.choices((Tier.ON_DEMAND, Tier.SPOT, Tier.RESERVED), weights=(60, 30, 10))[0],
            max_duration_s=int(job.run_s * 1.5) + 60 if self._rng.random() < 0.7 else 0,
            resources=Resources(gpu=GpuRequest(milli=job.milli), cpu_milli=job.cpu_milli, memory_mib=job.memory_mib, disk_mib=0),
        )  # fmt: skip
        return Submit(id=key, project_id=ProjectId(f"pr-{self._rng.choice(TENANTS)}"), key_id=KeyId("demo"), spec=spec)

    def _fate(self, allocation: Allocation, workload: Workload) -> tuple[int, int]:
        del allocation
        return self._runs.get(workload.id, 3_600_000), int(self._rng.random() < 0.03)
