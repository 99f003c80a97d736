"""The tick's cost with 10,000 idle GPUs and one change (goal < 5 ms), beside a look at every node once; and with a full fleet and 10,000 jobs that wait."""

import asyncio
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from headframe.engines.simulated import Machine, Machines, SimulatedEngine
from headframe.model.command import CreateProject, Enrol, Found, GrantCredit, Submit
from headframe.server.decide import decide
from headframe.server.desk import Desk
from headframe.server.tick import Tick
from headframe.simulate.world import at_once
from headframe.store.memory import MemoryStore
from support import NOW_MS, PROJECT, gpu, key, node, spec

NODES, ROUNDS, WAITING = 1250, 60, 10_000


async def main():
    clock = [NOW_MS]
    machines = Machines(lambda: clock[0], lambda *_: (10**9, 0))
    desk = Desk(MemoryStore(), lambda: clock[0], at_once)
    await desk.write(lambda world, now: decide(world, Found(site_name="x", key=key()), now))
    for n in range(NODES):
        machines.machines[f"node-{n}"] = Machine(f"node-{n}", 0)
        await desk.write(lambda world, now, n=n: decide(world, Enrol(node=node(n), gpus=tuple(gpu(n, k) for k in range(8))), now))
    await desk.write(lambda world, now: decide(world, CreateProject(id=PROJECT, name="a"), now))
    await desk.write(lambda world, now: decide(world, GrantCredit(project_id=PROJECT, amount_nano=10**15, memo="", id="1"), now))
    tick = Tick(desk, SimulatedEngine(machines), lambda: clock[0])
    lease = desk.store.lead("bench", desk.store.lease())
    idle, changed, looks = [], [], []
    for n in range(ROUNDS):
        clock[0] += 1000
        began = time.perf_counter()
        await tick.run(lease.epoch)
        idle.append(time.perf_counter() - began)
        await desk.write(
            lambda world, now, n=n: decide(world, Submit(id=f"wl-{n}", project_id=PROJECT, key_id="op", spec=spec(gpus=1, name=f"j{n}")), now)
        )
        began = time.perf_counter()
        await tick.run(lease.epoch)
        changed.append(time.perf_counter() - began)
        began = time.perf_counter()
        sum(free.whole for free in desk.world.free.values())
        looks.append(time.perf_counter() - began)

    def full(world, now):
        for n in range(NODES + WAITING):
            yield from decide(world, Submit(id=f"wl-full-{n:05}", project_id=PROJECT, key_id="op", spec=spec(gpus=8, name=f"full-{n}")), now)

    await desk.write(full)
    await tick.run(lease.epoch)
    long = []
    for _ in range(ROUNDS):
        clock[0] += 1000
        began = time.perf_counter()
        await tick.run(lease.epoch)
        long.append(time.perf_counter() - began)
    one, nothing, look = (statistics.median(values) * 1000 for values in (changed, idle, looks))
    print(
        f"tick, 10,000 GPUs on {NODES} nodes: one change {one:.2f} ms, nothing {nothing:.2f} ms; summing every node's free GPUs once {look:.3f} ms; ratio to the goal of 5 ms {one / 5:.2f}; nothing, with {len(desk.world.queued):,} waiting, {statistics.median(long) * 1000:.2f} ms"
    )


asyncio.run(main())
