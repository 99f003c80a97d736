"""Placement as the server meets it, at 100,000 GPUs: a queue planned whole, why not, preemption, and submitted to durable to granted.

`python benchmarks/bench_placement_path.py [--nodes 12500]`
"""

import argparse
import asyncio
import gc
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from headframe.engines.base import Sight
from headframe.model.command import CreateProject, Found, GrantCredit, Submit
from headframe.model.ids import WORKLOAD_ENTROPY_BYTES, AllocationId, workload_id
from headframe.model.states import AllocationState, WorkloadState
from headframe.model.work import Allocation, Part, Share, Tier
from headframe.placement import explain, plan
from headframe.placement.compiled import compiled
from headframe.placement.fleet import Fleet
from headframe.placement.preempt import Lending, make_room
from headframe.server.decide import decide
from headframe.server.desk import Desk
from headframe.server.tick import Tick
from headframe.simulate.replay import Fast
from headframe.simulate.world import at_once
from headframe.store.open import open_store
from support import NOW_MS, PROJECT, fleet, gpu, job, key, node, spec

HOUR = 3_600_000
SIZES = [(0.5, 1), (1, 1), (1, 1), (1, 1), (2, 1), (4, 1), (8, 1), (8, 4)]


def machine(n):
    return node(n, cpu_milli=128_000, memory_mib=1_048_576)


def big_world(nodes):
    world = fleet(nodes=0)
    for n in range(nodes):
        world.put(machine(n))
        for k in range(8):
            world.put(gpu(n, k))
    return world


def asked(n, **more):
    gpus, nodes = SIZES[n % len(SIZES)]
    return job(n, gpus=gpus, nodes=nodes, cpu=max(1, gpus), **more)


def running(world, count):
    """`count` spot jobs of one card each, started at different times."""
    for n in range(count):
        k, i = divmod(n, 8)
        workload = msgspec.structs.replace(job(10**6 + n, gpus=1, tier=Tier.SPOT), state=WorkloadState.RUNNING, attempt=1)
        started = NOW_MS - HOUR - (n * 7919) % (10 * HOUR)
        part = Part(
            rank=0,
            node_id=f"node-{k}",
            cpu_milli=1000,
            memory_mib=1024,
            disk_mib=1024,
            shares=(Share(gpu_id=f"GPU-{k}-{i}", index=i, model="RTX 3090", milli=1000),),
        )
        world.put(workload)
        world.put(Allocation(id=AllocationId(f"wl-{10**6 + n}.1"), workload_id=workload.id, project_id=PROJECT, attempt=1, tier=Tier.SPOT, parts=(part,),
                             state=AllocationState.RUNNING, granted_ms=started, started_ms=started))  # fmt: skip


def timed(call, rounds=1):
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        answer = call()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times), max(times), answer


def calm():
    """As the server does once it has loaded its world."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


class Reticent(Fast):
    """Says what it started only when it is asked to, so that what follows a grant is not timed."""

    asked = False

    async def observe(self):
        return await super().observe() if self.asked else Sight(nodes=self._nodes, observations=(), complete=False)


class Stopwatch:
    """A call that adds up what it takes, while it is on."""

    def __init__(self, call):
        self.call, self.on, self.seconds = call, True, 0.0

    def __call__(self, *given, **named):
        began = time.perf_counter()
        try:
            return self.call(*given, **named)
        finally:
            self.seconds += (time.perf_counter() - began) * self.on


async def path(nodes, count, batch, part):
    """Submit `count` jobs in batches and grant them, every commit fsynced to SQLite before it is answered. Yields for each `part` of them jobs a second: submitted and
    granted, submitted alone, and what the store alone would take.
    """
    with tempfile.TemporaryDirectory() as root:
        store = open_store(f"sqlite:///{root}/store.db")
        desk = Desk(store, lambda: NOW_MS, at_once)
        for command in (
            Found(site_name="x", key=key()),
            CreateProject(id=PROJECT, name="a"),
            GrantCredit(project_id=PROJECT, amount_nano=10**17, memo="", id="1"),
        ):
            await desk.write(lambda world, now, command=command: decide(world, command, now))
        from headframe.model.event import Draft, Kind

        rows = tuple(row for n in range(nodes) for row in (machine(n), *(gpu(n, k) for k in range(8))))
        await desk.write(lambda world, now: [Draft(kind=Kind.NODE_JOINED, subject="all", text="", rows=rows)])
        Fleet.of(desk.world).use(compiled())
        engine = Reticent(tuple(desk.world.nodes), lambda: NOW_MS, lambda _: 10**9)
        tick = Tick(desk, engine, lambda: NOW_MS)
        epoch = store.lead("bench", store.lease()).epoch
        await tick.run(epoch)
        done, submit_s, took, chance = 0, 0.0, 0.0, random.Random(1)
        calm()
        stored = Stopwatch(store.commit)
        store.commit = stored
        while done < count:
            numbers = range(done, min(count, done + batch))
            ids = [workload_id(NOW_MS + n // 5, chance.randbytes(WORKLOAD_ENTROPY_BYTES)) for n in numbers]
            commands = [Submit(id=key, project_id=PROJECT, key_id="op", spec=spec(gpus=1, name=f"j{n}")) for n, key in zip(numbers, ids, strict=True)]
            done += len(commands)
            start = time.perf_counter()
            await desk.write(lambda world, now, commands=commands: (draft for command in commands for draft in decide(world, command, now)))
            submit_s += time.perf_counter() - start
            await tick.run(epoch)
            took += time.perf_counter() - start
            engine.asked, stored.on = True, False
            await tick.run(epoch)
            engine.asked, stored.on = False, True
            if done % part == 0:
                yield part / took, part / submit_s, part / stored.seconds
                submit_s, took, stored.seconds = 0.0, 0.0, 0.0
        assert not desk.world.queued
        store.close()


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--nodes", type=int, default=12_500)
    nodes = arguments.parse_args().nodes
    _, loaded, _ = timed(lambda: Fleet(big_world(1), compiled()))
    world = big_world(nodes)
    _, built, world.views[Fleet] = timed(lambda: Fleet(world, compiled()))
    print(f"{nodes * 8:,} GPUs: machine code loaded in {loaded / 1000:.2f} s, index built from the world in {built / 1000:.2f} s (goal < 1 s)")
    queue = [asked(n) for n in range(10_000)]
    for workload in queue:
        world.put(workload)
    calm()
    plan(world, NOW_MS + 10**6, reasons=False)
    whole, _, made = timed(lambda: plan(world, NOW_MS + 10**6, reasons=False))
    print(
        f"a queue of 10,000 planned whole: {whole:.0f} ms, {len(made.grants):,} granted, {len(made.grants) / whole * 1000:,.0f} grants/s with their cards named"
    )
    few, _, made = timed(lambda: plan(world, NOW_MS + 10**6, reasons=False, until=iter([False] * 100 + [True]).__next__), 5)
    print(f"the same plan stopped after 100: {few:.1f} ms, {len(made.grants)} granted")
    for workload in queue:
        world.put(msgspec.structs.replace(workload, state=WorkloadState.CANCELLED, closed=True))
    running(world, nodes * 8 * 4 // 5)
    rest = nodes - nodes * 4 // 5
    for n in range(nodes - rest, nodes):
        world.put(machine(n).__class__(**{**{f: getattr(machine(n), f) for f in machine(n).__struct_fields__}, "state": "draining"}))
    used = Fleet.of(world)
    used.sync()
    for gpus, count in ((1, 1), (8, 1), (8, 64)):
        ask = job(5, gpus=gpus, nodes=count)
        median, worst, soon = timed(lambda ask=ask: make_room(used, ask, NOW_MS + 10**6, Lending(used.world)), 20)
        print(
            f"preemption search over {len(world.held):,} running jobs for {count} x {gpus} GPUs: {median:.2f} ms, worst {worst:.2f} ms, {len(soon.evictions)} give way (goal < 1 ms for one)"
        )
    impossible = job(6, gpus=8, cpu=129)
    median, worst, why = timed(lambda: explain(world, impossible, NOW_MS + 10**6), 20)
    print(f"why not, over the whole fleet: {median:.1f} ms, worst {worst:.1f} ms (goal < 50 ms): {why[0]}")
    asyncio.run(submitted(nodes))
    print(f"memory at the end: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


async def submitted(nodes):
    print("submitted, durable (SQLite, synchronous=FULL) and granted, in batches of 2,000 (goal 5,000/s):")
    done, count = 0, min(100_000, 8 * nodes)
    part = min(20_000, count)
    async for rate, submits, store in path(nodes, count, 2_000, part):
        print(
            f"{rate:10,.0f}/s after {done:,} jobs; submitting alone {submits:,.0f}/s; the store alone would take {store:,.0f}/s of those here and now: {rate / store:.2f} of it"
        )
        done += part


if __name__ == "__main__":
    main()
