"""What looking at a large Slurm costs: 5,000 machines and 20,000 running jobs of ours, emulated by their answers; all else is the engine as it runs.

`python benchmarks/bench_slurm_look.py [NODES] [JOBS]`. Needs Slurm's packages: one machine and one job of a real one (22.05) are asked for, and their answers repeated under other names by a bare
server, so that sizes are real. Each job has its directory on the shared path, as a running one has. Beside it, in the same run, what its parts cost alone: the transfer, and msgspec's decoding.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent / "tests" / "real")]

import httpx
import msgspec
import psutil
from support import PROJECT, key, running
from test_slurm import Cloud

from headframe.engines.slurm.engine import Line
from headframe.engines.slurm.rest import SlurmRest, token
from headframe.engines.slurm.words import read_jobs, read_nodes
from headframe.model.command import CreateProject, Found, GrantCredit
from headframe.model.engine import EngineSetup
from headframe.model.event import Draft, Kind
from headframe.model.work import Facts, Share
from headframe.server.decide import decide
from headframe.server.desk import Desk
from headframe.server.machines import machines
from headframe.server.main import wall_ms
from headframe.server.tick import Tick
from headframe.simulate.world import at_once
from headframe.store.memory import MemoryStore

NODES, JOBS = (int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else (5000, 20_000)
LOOKS = 5


def recorded():
    """A machine and a running job as a real Slurm tells of them."""
    with Cloud(nodes=1, gpus="rtx3090:8") as cloud:
        cloud.run("sample", "sleep 60", gpu=1)
        while cloud.state("sample") != "running":
            time.sleep(0.1)
        said = token(cloud.slurm.key.read_bytes(), "root", int(time.time()))
        with httpx.Client(transport=httpx.HTTPTransport(uds=cloud.slurm.url.removeprefix("unix:")), base_url="http://x", timeout=30,
                          headers={"X-SLURM-USER-NAME": "root", "X-SLURM-USER-TOKEN": said}) as http:  # fmt: skip
            node, job = http.get("/slurm/v0.0.38/nodes").json()["nodes"][0], http.get("/slurm/v0.0.38/jobs").json()["jobs"][0]
    return node, job


def answers(node, job, shared):
    """What the emulated one says, and the directories of its jobs."""
    nodes = [{**node, "name": f"n{k}", "hostname": f"n{k}", "address": f"n{k}"} for k in range(NODES)]
    jobs = []
    for k in range(JOBS):
        key = f"wl-{k:016x}.1"
        held = shared / "allocations" / key
        jobs.append(
            {
                **job,
                "job_id": k + 1,
                "name": f"hf-{key}",
                "comment": key,
                "nodes": f"n{k % NODES}",
                "standard_output": f"{held}/slurm.out",
                "job_state": "RUNNING",
            }
        )
        (held / "by-node").mkdir(parents=True)
        (held / "claim").symlink_to(f"job-{k + 1}")
        (held / "sent.json").write_text(json.dumps({"at_ms": 1, "job_id": k + 1}))
        (held / "0").mkdir()
        (held / "0" / "journal").write_text(
            "".join(json.dumps({"event": event, "at_ms": wall_ms(), "pid": 1, "boot_id": ""}) + "\n" for event in ("starting", "running"))
        )
        (held / "by-node" / f"n{k % NODES}").symlink_to("../0")
    return {
        "/openapi/v3": b"/slurm/v0.0.38/",
        "/slurm/v0.0.38/nodes": json.dumps({"nodes": nodes, "errors": []}).encode(),
        "/slurm/v0.0.38/jobs": json.dumps({"jobs": jobs, "errors": []}).encode(),
    }


async def served(said, sock):
    """A bare server of these answers."""

    async def answer(reader, writer):
        try:
            while line := await reader.readline():
                path = line.split()[1].decode()
                while await reader.readline() != b"\r\n":
                    pass
                body = said[path]
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        finally:
            writer.close()

    return await asyncio.start_unix_server(answer, sock)


async def looked(setup, shared):
    line = Line(setup, shared, wall_ms, lambda: None, lambda: True)
    line.shared.make()
    process = psutil.Process()

    async def timed(act):
        began, cpu, worst, beat = time.perf_counter(), sum(process.cpu_times()[:2]), 0.0, asyncio.get_running_loop().time()
        task = asyncio.ensure_future(act())
        while not task.done():  # how long the server's other work would have waited at most
            await asyncio.sleep(0.005)
            worst, beat = max(worst, asyncio.get_running_loop().time() - beat - 0.005), asyncio.get_running_loop().time()
        task.result()
        return time.perf_counter() - began, sum(process.cpu_times()[:2]) - cpu, worst

    before = process.memory_info().rss
    first = await timed(line._look)
    later = sorted([await timed(line._look) for _ in range(LOOKS)])[LOOKS // 2]
    began = time.perf_counter()
    sight = line.sight()
    seeing = time.perf_counter() - began
    assert (len(sight.nodes), len(sight.observations), sight.complete) == (NODES, JOBS, True)
    grown = process.memory_info().rss - before
    ticks = await ticked(line, sight)
    await line.close()
    return first, later, seeing, grown, ticks


async def ticked(line, sight):
    """What a tick of the server takes that has all of this: one with every machine new; and where nothing is new, one that is told of everything, and those in between."""
    engine = SimpleNamespace(observe=lambda: asyncio.sleep(0, line.sight()))
    desk = Desk(MemoryStore(), wall_ms, at_once)
    for command in (
        Found(site_name="x", key=key()),
        CreateProject(id=PROJECT, name="a"),
        GrantCredit(project_id=PROJECT, amount_nano=10**17, memo="", id="1"),
    ):
        await desk.write(lambda world, now, command=command: decide(world, command, now))
    began = time.perf_counter()
    await desk.write(lambda world, now: machines(world, Facts(machines=sight.machines), now))
    first = time.perf_counter() - began
    rows = tuple(row for n, seen in enumerate(sight.observations) for row in at_work(seen, sight.machines[n % NODES], n // NODES))
    await desk.write(lambda world, now: [Draft(kind=Kind.NODE_CHANGED, subject="all", text="", rows=rows)])
    tick, epoch, took = Tick(desk, engine, wall_ms), desk.store.lead("bench", desk.store.lease()).epoch, {True: [], False: []}
    for n in range(4 * LOOKS):
        line._whole_ms = wall_ms() if n % 2 else 0
        began = time.perf_counter()
        await tick.run(epoch)
        took[not n % 2].append(time.perf_counter() - began)
    assert len(desk.world.held) == JOBS
    return first, *(statistics.median(took[whole][1:]) for whole in (True, False))


def at_work(seen, machine, k):
    """A workload of one card, and the attempt of it that is seen."""
    workload, allocation = running(0, [k], 1)
    ident, card = seen.allocation_id.partition(".")[0], machine.gpus[k]
    share = Share(gpu_id=card.id, index=card.index, model=card.model, milli=1000)
    part = msgspec.structs.replace(allocation.parts[0], node_id=machine.node.id, shares=(share,))
    return (
        msgspec.structs.replace(workload, id=ident, name=ident, started_ms=seen.started_ms),
        msgspec.structs.replace(
            allocation, id=seen.allocation_id, workload_id=ident, parts=(part,), granted_ms=seen.started_ms, started_ms=seen.started_ms
        ),
    )


def main():
    node, job = recorded()
    with tempfile.TemporaryDirectory(prefix="hf-look-") as root:
        shared = Path(root) / "shared"
        said = answers(node, job, shared)
        (Path(root) / "key").write_bytes(os.urandom(32))
        setup = EngineSetup(id="en-1", url=f"unix:{root}/sock", key_file=f"{root}/key", user="root", shared=str(shared))
        pid = os.fork()
        if not pid:
            asyncio.run(forever(said, f"{root}/sock"))
        try:
            while not Path(root, "sock").exists():
                time.sleep(0.05)
            print(
                f"{NODES} machines and {JOBS} jobs: {len(said['/slurm/v0.0.38/nodes']) / 1e6:.1f} and {len(said['/slurm/v0.0.38/jobs']) / 1e6:.1f} MB of answers"
            )
            asyncio.run(alone(setup, said))
            (first_s, first_cpu, first_held), (later_s, cpu, held), seeing, grown, (enrolled, whole, between) = asyncio.run(looked(setup, shared))
            print(
                f"first look {first_s:.2f} s ({first_cpu:.2f} s of CPU, the loop held for {first_held * 1000:.0f} ms at most), each later one {later_s:.2f} s ({cpu:.2f} s of CPU, {held * 1000:.0f} ms)"
            )
            print(f"what is seen as values {seeing * 1000:.0f} ms; memory grew by {grown / 2**20:.0f} MiB")
            print(
                f"a tick: {enrolled:.2f} s for all machines as new ones, {whole * 1000:.0f} ms where nothing is new and everything is told, {between * 1000:.0f} ms in between"
            )
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


async def forever(said, sock):
    async with await served(said, sock) as server:
        await server.serve_forever()


async def alone(setup, said):
    """The parts by themselves."""
    rest = SlurmRest(setup, wall_ms)
    await rest.negotiated()
    began = time.perf_counter()
    await rest._slurm("GET", "jobs")
    await rest._slurm("GET", "nodes")
    moved = time.perf_counter() - began
    began = time.perf_counter()
    read_jobs(said["/slurm/v0.0.38/jobs"]), read_nodes(said["/slurm/v0.0.38/nodes"])
    print(f"alone: transfer {moved:.2f} s, decoding {time.perf_counter() - began:.2f} s")
    await rest.close()


if __name__ == "__main__":
    main()
