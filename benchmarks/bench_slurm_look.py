"""What looking at a large Slurm costs: 5,000 machines and 20,000 running jobs of ours, emulated by their answers; all else is the engine as it runs.

`python benchmarks/bench_slurm_look.py [NODES] [JOBS]`. Needs Slurm's packages: one machine and one job of a real one (22.05) are asked for, and their answers repeated under other names by a bare
server, so that sizes are real. Each job has its directory on the shared path, as a running one has. Beside it, in the same run, what its parts cost alone: the transfer, and msgspec's decoding.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests"), str(Path(__file__).parent.parent / "tests" / "real")]

import httpx
import psutil
from test_slurm import Cloud

from headframe.engines.slurm.engine import Line
from headframe.engines.slurm.rest import SlurmRest, token
from headframe.engines.slurm.words import read_jobs, read_nodes
from headframe.model.engine import EngineSetup
from headframe.server.main import wall_ms

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
    await line.close()
    return first, later, seeing, process.memory_info().rss - before


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
            (first_s, first_cpu, first_held), (later_s, cpu, held), seeing, grown = asyncio.run(looked(setup, shared))
            print(
                f"first look {first_s:.2f} s ({first_cpu:.2f} s of CPU, the loop held for {first_held * 1000:.0f} ms at most), each later one {later_s:.2f} s ({cpu:.2f} s of CPU, {held * 1000:.0f} ms)"
            )
            print(f"what is seen as values {seeing * 1000:.0f} ms; memory grew by {grown / 2**20:.0f} MiB")
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
