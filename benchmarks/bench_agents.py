"""Thousands of machines on one server: simulated agents over real HTTP, each with a report of eight cards every 10 s and a question for orders
held open. The server is a real `headframe up`; the agents are coroutines of this process, which shares the machine's cores with it.

    python benchmarks/bench_agents.py [machines] [seconds]
"""

import asyncio
import os
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support import Server, join  # noqa: E402

from headframe.model.agent import Account, Batch  # noqa: E402
from headframe.model.health import Report, Sample  # noqa: E402

CARDS, EVERY_S, JOINING = 8, 10.0, 16


class Machine:
    """One simulated agent: two connections, spoken by hand so that the client costs little."""

    def __init__(self, number: int, port: int, key: str) -> None:
        self.number, self.port, self.key = number, port, key
        self.took_s: list[float] = []
        self.errors = 0

    async def call(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str, body: bytes) -> float:
        reader, writer = streams
        began = time.perf_counter()
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(length)
        self.errors += not head.startswith(b"HTTP/1.1 200")
        return time.perf_counter() - began

    async def tell(self, until: float) -> None:
        streams = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.sleep(random.uniform(0, EVERY_S))
        while time.perf_counter() < until:
            due = time.perf_counter() + EVERY_S
            samples = tuple(
                Sample(gpu_id=f"GPU-{self.number}-{k}", at_ms=0, temperature_c=61, power_w=301.5, sm_mhz=1695, memory_mhz=9501, reasons=4, use=0.97,
                       memory_used_mib=20_000, fan=0.6, energy_mj=123_456_789, link_gen=4, link_width=16, replays=3, answer_ms=9)
                for k in range(CARDS)
            )  # fmt: skip
            account = Account(clock_ms=time.time_ns() // 1_000_000, batches=(Batch(age_ms=0, report=Report(samples=samples)),))
            self.took_s.append(await self.call(streams, "/v1/agent/report", msgspec.json.encode(account)))
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        streams[1].close()

    async def ask(self, until: float) -> None:
        streams = await asyncio.open_connection("127.0.0.1", self.port)
        while time.perf_counter() < until:
            await self.call(streams, "/v1/agent/orders", b"")


async def load(machines: list[Machine], seconds: float) -> None:
    until = time.perf_counter() + seconds
    asking = [asyncio.create_task(machine.ask(until)) for machine in machines]
    await asyncio.gather(*(machine.tell(until) for machine in machines))
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


def main() -> None:
    count, seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 5000, float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    with tempfile.TemporaryDirectory() as root:
        server = Server(Path(root)).start("--no-check-new")
        try:
            with server.operator() as operator, ThreadPoolExecutor(JOINING) as pool:
                began = time.monotonic()
                keys = list(pool.map(lambda n: join(server, operator, n, gpus=CARDS)[1].key, range(1, count + 1)))
                print(f"joining: {count / (time.monotonic() - began):,.0f} machines a second")
            machines = [Machine(n + 1, server.port, key) for n, key in enumerate(keys)]
            process = psutil.Process(server.process.pid)
            idle = cpu_s(process)
            time.sleep(10)
            still = (cpu_s(process) - idle) / 10
            before, own, began = cpu_s(process), time.process_time(), time.monotonic()
            asyncio.run(load(machines, seconds))
            took = time.monotonic() - began
            told = sorted(each for machine in machines for each in machine.took_s[1:])  # the first meets the rush of all connections at once
            print(f"{count} machines of {CARDS} cards, a report every {EVERY_S:g} s, a question held open by each:")
            print(
                f"  {len(told) / seconds:,.0f} reports/s over HTTP, p50 {told[len(told) // 2] * 1000:.1f} ms, p99 {told[len(told) * 99 // 100] * 1000:.1f} ms"
            )
            print(
                f"  server: {(cpu_s(process) - before) / took:.2f} cores ({still:.2f} when nobody speaks), {process.memory_info().rss / 2**20:,.0f} MiB"
            )
            print(f"  generator: {(time.process_time() - own) / took:.2f} cores; refused or failed: {sum(machine.errors for machine in machines)}")
        finally:
            server.kill()
    print(f"load: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def cpu_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system


if __name__ == "__main__":
    main()
