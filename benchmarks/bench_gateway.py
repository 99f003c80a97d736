"""The gateway beside nginx (a bare proxy at its best), vllm-router and LiteLLM, on one core, before the same model server in the same run. Run: python benchmarks/bench_gateway.py

Ours is compiled (HEADFRAME_COMPILE=1, which takes a minute) and, beside that, plain Python. Everything of it is on: keys, limits, routing over four replicas by prefix, usage asked for and taken out, every request written to the durable spool. The gateway has core 0,
to itself, since the others are stopped meanwhile; the load (wrk) and the model server (upstream.c, which costs next to nothing) have core 1. Needs wrk, nginx and a C compiler; vllm-router and LiteLLM are measured where
VLLM_ROUTER and LITELLM name their programs. Machines are noisy: quote the ratios, which are of medians of interleaved runs.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import httpx  # noqa: E402

from gateways import Gate, compiled, free_port, make_key  # noqa: E402
from headframe.model.endpoint import EndpointEntry, ReplicaEntry  # noqa: E402
from headframe.model.serving import Serving  # noqa: E402
from headframe.server.tls import self_signed  # noqa: E402

ROUNDS, SECONDS, STREAMS = int(os.environ.get("ROUNDS", "3")), 3, 100
SHORT = {"model": "m", "messages": [{"role": "user", "content": "Tell me about " + "the fleet and its cards " * 8}]}
LONG = {"model": "m", "messages": [{"role": "user", "content": "x" * 50_000}]}
LUA = """
local file = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer {key}"
done = function(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration, summary.errors.status + summary.errors.read + summary.errors.connect,
    latency:percentile(50), latency:percentile(99)))
end
"""


def on(core, argv, **more):
    return subprocess.Popen(["taskset", "-c", str(core), *map(str, argv)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)


def answers(port, name="", limit_s=90):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.05)
    print(f"{name or port} did not start; it is left out")
    return False


def family(pid):
    """A process and its children."""
    return [pid, *map(int, subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split())]


@contextlib.contextmanager
def quiet(others):
    """These processes do nothing meanwhile: what a gateway does beside requests would be in the caches of the one that is measured."""
    pids = [each for process in others for each in family(process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def cpu_s(pid):
    """Of a process's threads and its children's, to the nanosecond: the ticks of `stat` are a tenth of what a hundred streams cost."""
    total = 0
    for each in family(pid):
        for thread in Path(f"/proc/{each}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(thread.read_text().split()[0])
    return total / 1e9


def rss_mb(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def wrk(root, port, body, key, connections=32, path="/v1/chat/completions", scheme="http"):
    (root / "body.json").write_text(json.dumps(body))
    (root / "ask.lua").write_text(LUA.replace("{body}", str(root / "body.json")).replace("{key}", key))
    done = subprocess.run(["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{SECONDS}", "--timeout", "20", "-s", str(root / "ask.lua"), f"{scheme}://127.0.0.1:{port}{path}"],
                          capture_output=True, text=True)  # fmt: skip
    words = next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).split()[1:]
    requests, micros, errors, p50, p99 = map(int, words)
    assert errors == 0, (port, done.stdout)
    return {"rate": requests / (micros / 1e6), "p50_ms": p50 / 1000, "p99_ms": p99 / 1000}


def paced(port, key, count, every_s=0.01):
    """Milliseconds of one request every 10 ms: what is added where nothing queues."""
    took = []
    with httpx.Client(headers={"authorization": f"Bearer {key}"}) as client:
        for _ in range(count):
            began = time.perf_counter()
            client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=SHORT)
            took.append((time.perf_counter() - began) * 1000)
            time.sleep(max(0, every_s - (time.perf_counter() - began)))
    return took


def streams(port, key, pid, rounds=3):
    """CPU of the gateway per event, and the time to the first one, of a hundred streams at once (10,000 events a second)."""
    body = json.dumps({**SHORT, "stream": True}, separators=(",", ":")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    program = f"""
import selectors, socket, time
ask, firsts, events = {head + body!r}, [], 0
for _ in range({rounds}):
    chooser, open_, began = selectors.DefaultSelector(), 0, {{}}
    for n in range({STREAMS}):
        s = socket.create_connection(("127.0.0.1", {port})); s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        chooser.register(s, selectors.EVENT_READ, [n, b"", False]); open_ += 1
    for key in list(chooser.get_map().values()):
        began[key.fileobj] = time.perf_counter(); key.fileobj.sendall(ask)
        time.sleep(0.0002)
    while open_:
        for key, _ in chooser.select(10):
            data = key.fileobj.recv(65536)
            if not key.data[2] and b"data:" in data:
                firsts.append((time.perf_counter() - began[key.fileobj]) * 1000); key.data[2] = True
            events += data.count(b"data:")
            key.data[1] = (key.data[1] + data)[-40:]
            if b"[DONE]" in key.data[1] or not data:
                chooser.unregister(key.fileobj); key.fileobj.close(); open_ -= 1
firsts.sort()
print(events, firsts[len(firsts) // 2], firsts[int(len(firsts) * 0.99)])
"""
    before = cpu_s(pid)
    done = subprocess.run(["taskset", "-c", "1", sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    return (cpu_s(pid) - before) / int(done[0]) * 1e6, float(done[1]), float(done[2])


def nginx(root, upstream, tls=None):
    port = free_port()
    listen = f"listen 127.0.0.1:{port}" + (f" ssl; ssl_certificate {tls[0]}; ssl_certificate_key {tls[1]};" if tls else ";")
    conf = root / f"nginx-{port}.conf"
    conf.write_text(
        f"worker_processes 1; daemon off; pid {conf}.pid; error_log /dev/null; events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; client_body_buffer_size 1m; client_max_body_size 64m; client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;\n"
        f"uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5; keepalive_requests 10000000; upstream m {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 10000000; }}\n"
        f"server {{ {listen} tcp_nodelay on; location / {{ proxy_pass http://m; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off; proxy_request_buffering on; }} }} }}\n"
    )
    return on(0, [shutil.which("nginx") or "/usr/sbin/nginx", "-c", conf]), port


def ours(root, upstream, env, replicas=4, limits=True, tls=None):
    """The real gateway process, with a table of four replicas (all of them the same server); `env` says where its modules are found."""
    entry, key = make_key(7, **({"rpm": 10**9, "tpm": 10**9} if limits else {}))

    class Bench(Gate):
        def table(self):
            made = super().table()
            places = tuple(ReplicaEntry(id=f"wl-aaaaaaaaaaaaaaaa-{n}.1", host="127.0.0.1", port=upstream) for n in range(replicas))
            own = EndpointEntry(
                id="wl-aaaaaaaaaaaaaaaa", project_id="pr-a", name="mine", serving=Serving(model="m", probe="/"), replicas=places, created_ms=1
            )
            return type(made)(run="", seq=0, full=True, keys=made.keys, projects=made.projects, endpoints=(own,))

    gate = Bench(root / f"ours-{replicas}-{bool(tls)}-{bool(env)}", [], keys=[entry])
    gate.env = env
    gate.options = ["--tls-cert", tls[0], "--tls-key", tls[1]] if tls else []
    gate.start(wait=False)
    os.sched_setaffinity(gate.process.pid, {0})
    answers(gate.port)
    url = gate.url.replace("http:", "https:") if tls else gate.url
    with httpx.Client(verify=False) as client:
        while client.post(f"{url}/v1/chat/completions", json=SHORT, headers=gate.auth(key), timeout=20).status_code != 200:
            time.sleep(0.05)
    time.sleep(0.5)
    return gate.process, gate.port, key


def others(root, upstream):
    """Those that are installed: (name, process, port, key)."""
    found = []
    if router := os.environ.get("VLLM_ROUTER") or shutil.which("vllm-router"):
        port = free_port()
        found.append(("vllm-router, 1 replica", on(0, [router, "--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin", "--host", "127.0.0.1", "--port", port],
                                                    env={**os.environ, "TOKIO_WORKER_THREADS": "1"}), port, "x"))  # fmt: skip
    if litellm := os.environ.get("LITELLM") or shutil.which("litellm"):
        port = free_port()
        (root / "litellm.yaml").write_text(
            f"model_list:\n  - model_name: m\n    litellm_params: {{model: openai/m, api_base: 'http://127.0.0.1:{upstream}/v1', api_key: x}}\n"
        )
        found.append(
            (
                "LiteLLM, 1 worker",
                on(
                    0,
                    [litellm, "--config", root / "litellm.yaml", "--port", port, "--num_workers", "1"],
                    env={**os.environ, "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"},
                ),
                port,
                "x",
            )
        )
    return found


def main():
    assert os.cpu_count() >= 2, "one core for the gateway, one for the rest"
    os.sched_setaffinity(0, {1})
    for needed in ("wrk", "cc"):
        if shutil.which(needed) is None:
            print(f"bench_gateway: skipped, {needed} is not installed")
            return
    root, running = Path(tempfile.mkdtemp(prefix="bench-gateway-")), []
    subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-o", str(root / "upstream"), str(HERE / "upstream.c")], check=True)
    upstream = free_port()
    running.append(on(1, [root / "upstream", upstream]))
    answers(upstream)
    try:
        tried = [("direct", running[0], upstream, "x")]
        tried.append(("nginx, bare proxy", *nginx(root, upstream), "x"))
        native = {"PYTHONPATH": compiled(root)["PYTHONPATH"]}
        tried.append(("Headframe, 4 replicas", *ours(root, upstream, native, 4)))
        tried.append(("Headframe, 1 replica", *ours(root, upstream, native, 1)))
        tried.append(("  not compiled, 4", *ours(root, upstream, {}, 4)))
        tried += others(root, upstream)
        running += [process for _, process, _, _ in tried[1:]]
        tried = [each for each in tried if answers(each[2], each[0])]
        measured = {name: {"rate": [], "cpu": [], "long": [], "event": [], "first": [], "first99": [], "paced": []} for name, *_ in tried}
        for _ in range(ROUNDS):
            for name, process, port, key in tried:
                with quiet([each for _, each, _, _ in tried[1:] if each is not process]):
                    measure(measured[name], root, name, process, port, key)
        shown(tried, measured)
        encrypted(root, upstream, running, native)
    finally:
        for process in running:  # nginx's workers outlive a master that is killed
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
            process.kill()
        shutil.rmtree(root, ignore_errors=True)


def measure(row, root, name, process, port, key):
    """One round of one gateway."""
    before = cpu_s(process.pid)
    told = wrk(root, port, SHORT, key)
    row["rate"].append(told["rate"])
    row["cpu"].append((cpu_s(process.pid) - before) / (told["rate"] * SECONDS) * 1e6)
    row["long"].append(wrk(root, port, LONG, key)["rate"])
    row["paced"] += paced(port, key, 150 if "LiteLLM" not in name else 30)
    if "LiteLLM" not in name:
        event, first, first99 = streams(port, key, process.pid)
        row["event"].append(event), row["first"].append(first), row["first99"].append(first99)


def encrypted(root, upstream, running, env):
    """The same over TLS 1.3, on connections that last, as clients' do."""
    tls = self_signed(root, "127.0.0.1")
    pairs = {"nginx": (*nginx(root, upstream, tls), "x"), "Headframe, 4 replicas": ours(root, upstream, env, 4, tls=tls)}
    running += [process for process, _, _ in pairs.values()]
    rates = {name: [] for name in pairs}
    for _, port, _ in pairs.values():
        answers(port)
    for _ in range(ROUNDS):
        for name, (_, port, key) in pairs.items():
            rates[name].append(wrk(root, port, SHORT, key, scheme="https")["rate"])
    middle = {name: statistics.median(found) for name, found in rates.items()}
    print(
        "over TLS, requests/s: "
        + ", ".join(f"{name} {rate:,.0f}" for name, rate in middle.items())
        + f" ({middle['Headframe, 4 replicas'] / middle['nginx']:.2f} ×)"
    )


def shown(tried, measured):
    alone = {name: (statistics.median(row["paced"]), statistics.quantiles(row["paced"], n=100)[98]) for name, row in measured.items()}
    middle = {name: {what: statistics.median(values) if values else float("nan") for what, values in row.items()} for name, row in measured.items()}
    direct = middle["direct"]
    print(
        f"{'gateway (one core)':24} {'req/s':>9} {'CPU µs/req':>11} {'50 KB req/s':>12} {'CPU µs/event':>13} {'first +p50 ms':>14} {'+p99 ms':>8} {'100/s +p50':>11} {'+p99':>7} {'RSS MB':>7}"
    )
    for name, process, _, _ in tried:
        row = middle[name]
        print(f"{name:24} {row['rate']:9,.0f} {row['cpu']:11.1f} {row['long']:12,.0f} {row['event']:13.1f} {row['first'] - direct['first']:14.2f} {row['first99'] - direct['first99']:8.2f} "
              f"{alone[name][0] - alone['direct'][0]:11.2f} {alone[name][1] - alone['direct'][1]:7.2f} {rss_mb(process.pid):7.0f}")  # fmt: skip
    four, bare = middle["Headframe, 4 replicas"], measured["nginx, bare proxy"]
    rate, event = (
        statistics.median(a / b for a, b in zip(measured["Headframe, 4 replicas"][what], bare[what], strict=True)) for what in ("rate", "event")
    )
    print(f"\nrequests/s: {rate:.2f} × nginx (goal 0.45); CPU per event {event:.2f} × nginx (goal 1.35): medians of what each round says")
    for name in middle:
        if "router" in name or "LiteLLM" in name:
            print(f"requests/s: {four['rate'] / middle[name]['rate']:.1f} × {name}" + (" (goal 150)" if "LiteLLM" in name else ""))


if __name__ == "__main__":
    main()
