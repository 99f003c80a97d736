"""From no replica to one, to four and back to none, with real processes: what waking adds to a cold start, and whether a request is lost. Run: python benchmarks/bench_scaling.py

A server with its gateway, the local engine, and llama.cpp's server on a tiny model behind five seconds of sleep in the place of loading. Each round: three requests at once find
nothing and are held; then twelve clients replay requests of ShareGPT's mean length for half a minute; then nobody asks. Beside it the bare cold start: the same command begun by
hand and asked until it answers. The same hours in virtual time, at any size: headframe simulate --endpoint FILE --requests CSV.
"""

import concurrent.futures
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent / "tests/real")]

import httpx  # noqa: E402

import tiny_model  # noqa: E402
from gateways import free_port  # noqa: E402
from support import wait_for  # noqa: E402
from test_endpoints import Cloud, say  # noqa: E402

ROUNDS, LOADING_S, BUSY_S, CLIENTS = 4, 5, 30, 12
RUN = f"sleep {LOADING_S}; exec {sys.executable} {HERE.parent}/tests/tiny_model.py serve"


def bare(model):
    """Seconds from the command to its first token, asked every 20 ms."""
    port, began = free_port(), time.monotonic()
    process = subprocess.Popen(["sh", "-c", f"{RUN} {model}"], env={**os.environ, "HEADFRAME_HOST": "127.0.0.1", "HEADFRAME_PORT": str(port)}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    try:
        while True:
            try:
                if httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=5).status_code == 200:
                    return time.monotonic() - began
            except httpx.HTTPError:
                pass
            time.sleep(0.02)
    finally:
        process.kill()


def asked(client, n, tokens):
    began = time.monotonic()
    assert say(client, f"tell me {n}", max_tokens=tokens).usage.completion_tokens
    return time.monotonic() - began


def busy(client, n, until):
    took = []
    while time.monotonic() < until:
        took.append(asked(client, f"{n} {len(took)}", 338))
    return took


def main():
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as root:
        model = Path(root) / "tiny.gguf"
        tiny_model.make(model)
        cold = [bare(model) for _ in range(3)]
        (Path(root) / "cloud").mkdir()
        cloud = Cloud(Path(root) / "cloud")
        try:
            held, warm, most = [], [], 0
            scaled = {"replicas": "0..4", "scaling": {"metric": "concurrency", "target": 2}, "idle_timeout": "8s"}
            cloud.apply(model, wait=False, run=f"{RUN} {model}", resources={"gpu": 0, "cpu": 0.45, "memory": "200MB", "disk": "1MB"}, **scaled)
            client = cloud.client(timeout=120)
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                for _ in range(ROUNDS):
                    wait_for(lambda: cloud.ready() == 0 and not cloud.show().endpoint.wanted and not cloud.show().replicas, 120)
                    held += pool.map(lambda n: asked(client, n, 1), range(3))
                    until = time.monotonic() + BUSY_S
                    running = [pool.submit(busy, client, n, until) for n in range(CLIENTS)]
                    while time.monotonic() < until:
                        most = max(most, cloud.ready())
                        time.sleep(0.5)
                    warm += [took for each in running for took in each.result()]
            wait_for(lambda: cloud.ready() == 0 and not cloud.show().replicas, 120)
            shown(cold, held, sorted(warm), most, cloud.show().total)
        finally:
            cloud.stop()


def shown(cold, held, warm, most, total):
    base = statistics.median(cold)
    added = sorted(each - base for each in held)
    print(f"bare cold start: {base:.2f} s (of {len(cold)}); through Headframe, from a request that finds nothing to its answer: p50 {statistics.median(held):.2f} s, most {max(held):.2f} s "
          f"(of {len(held)}): waking adds p50 {statistics.median(added):.2f} s, p99 {added[-1]:.2f} s")  # fmt: skip
    print(f"{ROUNDS} times 0 → 1 → {most} → 0: {total.requests} requests, {total.failed} failed; while replicas came, answers took p50 {statistics.median(warm) * 1000:.0f} ms, "
          f"p99 {warm[len(warm) * 99 // 100] * 1000:.0f} ms with {CLIENTS} clients")  # fmt: skip
    assert total.failed == 0
    assert most == 4


if __name__ == "__main__":
    main()
