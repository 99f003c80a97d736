"""The whole path on a real card, as its owner meets it: what the driver answers, the quick check, the hand-over, a job through a real server, and
what it draws under each kind of load. Reads and computes only: no limit, clock or mode of the card is set, so run it as an ordinary user.

    python benchmarks/bench_card.py OUT        (takes about five minutes; needs PyTorch with CUDA and an idle card)

Names of parts after OUT run only those. OUT gets what was found as JSON, for fixtures; the figures are printed beside the card's published limits.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from headframe.agent import checks, handover, nvml
from headframe.agent.cards import opened
from headframe.client import Client
from headframe.model.api import SiteBody
from headframe.model.health import Depth

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "card").resolve()
PORT = 7390
BUSY_W = 300
JOB = """
name: heat
run: |
  python3 -c "
  import time, torch
  a = torch.randn(4096, 4096, device='cuda', dtype=torch.bfloat16)
  print('running on', torch.cuda.get_device_name(), flush=True)
  until = time.time() + 12
  while time.time() < until:
      for _ in range(50): a @ a
      torch.cuda.synchronize()
  "
resources: {gpu: 1, cpu: 1, memory: 2GB, disk: 1MB}
max_duration: 5m
"""


def keep(name: str, what: object) -> None:
    (OUT / f"{name}.json").write_text(json.dumps(what, indent=1, default=str) + "\n")


def answers() -> dict[str, str]:
    """Each datum of the tables with the driver's answer, or its error."""
    found: dict[str, str] = {}
    with nvml.driver() as module:
        card = module.nvmlDeviceGetHandleByIndex(0)
        for table in (nvml.INVENTORY, nvml.ERRORS, nvml.SAMPLE, nvml.SLOW, nvml.PLACED):
            for name, read in table.items():
                began = time.perf_counter()
                try:
                    found[name] = repr(read(module, card))
                except Exception as error:  # noqa: BLE001 - which it is, is what is asked
                    found[name] = f"{type(error).__name__}: {error}"
                found[name] += f"  ({(time.perf_counter() - began) * 1000:.2f} ms)"
    return found


def uuid() -> str:
    with opened() as cards:
        return cards[0].uuid()


def hand_over() -> dict[str, Any]:
    """A clean card, a card that somebody is on, and what that somebody leaves."""
    card, found = uuid(), {}
    for turn in ("first", "second"):
        began = time.perf_counter()
        found[f"clean, {turn}"] = asyncio.run(handover.clean([card])) or "clean"
        found[f"clean, {turn}, s"] = round(time.perf_counter() - began, 2)
    hold = "import torch,time; a = torch.full((3<<28,), 7, device='cuda', dtype=torch.int32); torch.cuda.synchronize(); print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert holder.stdout
    holder.stdout.readline()
    began = time.perf_counter()
    found["held"], found["held, pid"] = asyncio.run(handover.clean([card])), holder.pid
    found["held, s"] = round(time.perf_counter() - began, 2)
    holder.kill()
    holder.wait()
    began = time.perf_counter()
    found["after kill -9"] = asyncio.run(handover.clean([card])) or "clean"
    found["after kill -9, s"] = round(time.perf_counter() - began, 2)
    return found


def headframe(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "headframe", *words], capture_output=True, text=True, env=environment(), check=False)
    return done.stdout + done.stderr


def environment() -> dict[str, str]:
    return {**os.environ, "HEADFRAME_CONFIG": str(OUT / "state" / "config.json"), "XDG_DATA_HOME": str(OUT / "state")}


def through_a_server() -> dict[str, Any]:
    """`headframe up` checks the new card by itself, then a job runs on it."""
    found: dict[str, Any] = {}
    began = time.monotonic()
    with serving() as cloud:
        wait(lambda: all(card.state == "ready" for node in cloud.nodes() for card in node.gpus), 240)
        found["new to ready, s"] = round(time.monotonic() - began, 1)
        found["gpu show"] = headframe("gpu", "show", uuid())
        headframe("price", "*", "--on-demand", "2")
        headframe("project", "create", "bench")
        headframe("project", "credit", "bench", "5")
        (OUT / "state" / "heat.yaml").write_text(JOB)
        began = time.monotonic()
        found["run"] = headframe("run", "--project", "bench", "--yes", str(OUT / "state" / "heat.yaml"))
        found["run, s"] = round(time.monotonic() - began, 1)
        for name, words in (("ps", ("ps", "--all")), ("nodes", ("nodes",)), ("gpu json", ("gpu", "show", uuid(), "--json"))):
            found[name] = headframe(*words)
    return found


FILLER = """
name: own
value: 0.5
models: {any: {watts: 600}}
run: |
  exec python3 -c "
  import torch
  a = torch.randn(8192, 8192, device='cuda', dtype=torch.bfloat16)
  print('filling', flush=True)
  while True:
      for _ in range(50): a @ a
      torch.cuda.synchronize()
  "
memory: 4GiB
"""


def filling(cloud: Client, project: str) -> None:
    """A project with credit on a site whose idle card is filled, once it is."""
    headframe("price", "*", "--on-demand", "2")
    headframe("project", "create", project)
    headframe("project", "credit", project, "5")
    site = cloud.sites().items[0].name
    cloud.set_site(site, SiteBody(contract_w=2000, pue=1.1, tariff="name: flat\nenergy: [{price: 0.05}]\n"))
    cloud.set_filler(FILLER)
    wait(lambda: power_w() > BUSY_W, 90)


def filled() -> dict[str, Any]:
    """A filler on the idle card; how long a tenant waits for it, and how soon a grid's signal takes its watts away."""
    found: dict[str, Any] = {}
    with serving("--no-check-new") as cloud:
        filling(cloud, "filled")
        found["filler draws, W"], found["power"] = power_w(), headframe("power")
        found["explain"] = headframe("dispatch", "explain", uuid())
        (OUT / "state" / "paid.yaml").write_text(JOB.replace("heat", "paid").replace("+ 12", "+ 2"))
        began = time.monotonic()
        made = headframe("run", "--project", "filled", "--yes", "--json", str(OUT / "state" / "paid.yaml"))
        key = json.loads(made)["workload"]["id"]
        wait(lambda: cloud.workload(key).workload.started_ms > 0, 60)
        view = cloud.workload(key).workload
        found["tenant: submitted to started, s"] = round((view.started_ms - view.submitted_ms) / 1000, 2)
        wait(lambda: bool(cloud.logs(key).lines), 60)
        found["tenant: submitted to its first line (PyTorch loaded), s"] = round(time.monotonic() - began, 2)
        wait(lambda: cloud.workload(key).workload.ended_ms > 0, 60)
        began = time.monotonic()
        wait(lambda: power_w() > BUSY_W, 120)
        found["filler again after, s"] = round(time.monotonic() - began, 1)
        began = time.monotonic()
        headframe("power", "signal", "level", "1", "--for", "10m")
        wait(lambda: power_w() < 200, 60)
        found["signal to watts gone, s"], found["W after"] = round(time.monotonic() - began, 1), power_w()
        found["events"] = [event.text for event in cloud.events().items][:40]
    return found


ENDPOINT = """
type: endpoint
name: chat
model: random-1b
run: exec {python} {server}
env: {{TORCH_SERVER_DEVICE: {device}}}
replicas: 0..1
idle_timeout: 20s
resources: {{gpu: 1, cpu: 1, memory: 8GB, disk: 1MB}}
"""
ASKED = {"model": "random-1b", "messages": [{"role": "user", "content": "why is the rack warm? " * 20}], "max_tokens": 128, "stream": True}
SERVER = Path(__file__).parent / "torch_server.py"
WARM = 12


def served() -> dict[str, Any]:
    """A language model that sleeps while a filler has the card, is woken by a request, answers through the gateway beside the same one asked directly, and sleeps again."""
    found: dict[str, Any] = {}
    with serving("--no-check-new", "--gateway", "--gateway-port", str(PORT + 1)) as cloud:
        filling(cloud, "served")
        (OUT / "state" / "chat.yaml").write_text(
            ENDPOINT.format(python=sys.executable, server=SERVER, device=os.environ.get("TORCH_SERVER_DEVICE", "cuda"))
        )
        found["apply"] = headframe("apply", "-f", str(OUT / "state" / "chat.yaml"), "--project", "served")
        key = json.loads(headframe("key", "create", "web", "--scope", "infer", "--project", "served", "--json"))["secret"]
        wait(lambda: httpx.get(f"http://127.0.0.1:{PORT + 1}/v1/models", headers={"authorization": f"Bearer {key}"}).json()["data"], 30)
        wait(lambda: cloud.endpoint("chat").replicas == () and power_w() > BUSY_W, 120)
        found["woken, the filler gone, first token after, s"] = round(asked(PORT + 1, key)[0], 2)
        through = [asked(PORT + 1, key) for _ in range(WARM)]
        found["W while it answers"] = drawn_while(lambda: asked(PORT + 1, key, 512))
        found["endpoint"] = headframe("endpoint", "show", "chat")
        began = time.monotonic()
        wait(lambda: not cloud.endpoint("chat").replicas, 90)
        wait(lambda: power_w() > BUSY_W, 120)
        found["asleep, and the filler again after, s"] = round(time.monotonic() - began, 1)
        found["profit"] = headframe("profit")
        found["events"] = [event.text for event in cloud.events().items][:40]
    with subprocess.Popen([sys.executable, str(SERVER)], env={**os.environ, "HEADFRAME_PORT": str(PORT + 2)}, stdout=subprocess.PIPE) as bare:
        assert bare.stdout
        try:
            bare.stdout.readline()
            asked(PORT + 2, "none")
            direct = [asked(PORT + 2, "none") for _ in range(WARM)]
        finally:
            bare.kill()
    for name, took in (("through the gateway", through), ("directly", direct)):
        first, rate = (sorted(each) for each in zip(*took, strict=True))
        found[f"{name}: first token p50, ms; tokens/s"] = (round(first[WARM // 2] * 1000, 2), round(rate[WARM // 2], 1))
    return found


def asked(port: int, key: str, tokens: int = 128) -> tuple[float, float]:
    """Seconds to the first token of a streamed answer, and tokens a second after it."""
    began, first, count = time.perf_counter(), 0.0, 0
    with httpx.stream(
        "POST",
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json=ASKED | {"max_tokens": tokens},
        headers={"authorization": f"Bearer {key}"},
        timeout=300,
    ) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                first, count = first or time.perf_counter() - began, count + 1
    return first, (count - 1) / (time.perf_counter() - began - first)


def drawn_while(act: Callable[[], object]) -> float:
    """What the card draws in the middle of it."""
    thread = threading.Thread(target=act)
    thread.start()
    time.sleep(0.6)
    seen = [power_w() for _ in range(5)]
    thread.join()
    return round(sum(seen) / len(seen), 1)


def power_w() -> float:
    with opened() as cards:
        return cards[0].vendor.sample(cards[0].number, "it", 0, slow=False).power_w or 0.0


@contextlib.contextmanager
def serving(*options: str) -> Iterator[Client]:
    """A server of its own on a new directory, until the end."""
    (OUT / "state" / "config.json").unlink(missing_ok=True)
    data = OUT / "state" / f"data-{len(options)}"
    beside = () if "--gateway" in options else ("--no-gateway",)
    argv = [sys.executable, "-m", "headframe", "up", "--data", str(data), "--port", str(PORT), *beside, "--watch-interval", "1", *options]
    with (OUT / "server.log").open("ab") as log:
        server = subprocess.Popen(argv, env=environment(), stdout=log, stderr=log)
    try:
        wait(lambda: (OUT / "state" / "config.json").exists(), 60)
        with Client(f"http://127.0.0.1:{PORT}", json.loads((OUT / "state" / "config.json").read_text())["key"]) as cloud:
            wait(lambda: all(node.node.state == "ready" for node in cloud.nodes()), 30)
            yield cloud
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def eight_bits() -> dict[str, float]:
    """int8 and float8 products, in 10^12 operations a second."""
    code = "import torch; from headframe.agent import steps as s; b = s.Bench(0, torch.device('cuda', 0), {'product': 2.0}); print({k: 2 * 8192**3 / 1e12 * b.rate(s._product(b, k, 8192), 2.0) for k in s.EIGHT_BITS})"
    return {"said": subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout}  # type: ignore[dict-item]


def hurried() -> object:
    """The full check's own steps, each a thirtieth as long."""
    _, cards = asyncio.run(checks.check(Depth.FULL, OUT, lambda step: print(step.name, step.error, flush=True), ("--hurry", "30")))
    return json.loads(msgspec.json.encode(cards))


def wait(done: Callable[[], bool], limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        with contextlib.suppress(Exception):
            if done():
                return
        time.sleep(0.2)
    print(f"gave up after {limit_s} s", flush=True)


LOADS = """
import sys, time, torch
kind = sys.argv[1]
dev = 'cuda'
torch.backends.cuda.matmul.allow_tf32 = False
if kind == 'context':
    a = torch.ones(1, device=dev); torch.cuda.synchronize(); print('on', flush=True); time.sleep(60)
if kind == 'decode':
    ws = [torch.randn(8192, 8192, device=dev, dtype=torch.bfloat16) for _ in range(40)]
    x = torch.randn(1, 8192, device=dev, dtype=torch.bfloat16)
    act = lambda: [x @ w for w in ws]
elif kind == 'decode8':
    ws = [torch.randn(8192, 8192, device=dev, dtype=torch.bfloat16) for _ in range(40)]
    x = torch.randn(8, 8192, device=dev, dtype=torch.bfloat16)
    act = lambda: [x @ w for w in ws]
elif kind == 'copy':
    a = torch.randn(1 << 28, device=dev); b = torch.empty_like(a); act = lambda: b.copy_(a)
else:
    n, t = 8192, {'fp32': torch.float32, 'bf16': torch.bfloat16}[kind]
    a, b = torch.randn(n, n, device=dev).to(t), torch.randn(n, n, device=dev).to(t); act = lambda: a @ b
act(); torch.cuda.synchronize(); print('on', flush=True)
began, count = time.perf_counter(), 0
while True:
    for _ in range(10): act()
    torch.cuda.synchronize(); count += 10
"""


def draws() -> dict[str, Any]:
    """Watts, clocks and temperature under each load, means of 4 s after 3 s."""
    found = {"idle": sampled()}
    for kind in ("context", "copy", "decode", "decode8", "fp32", "bf16"):
        child = subprocess.Popen([sys.executable, "-c", LOADS, kind], stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()
        time.sleep(3)
        found[kind] = sampled()
        child.kill()
        child.wait()
        time.sleep(1)
    return found


def sampled() -> dict[str, float]:
    with opened() as cards:
        seen = []
        for _ in range(20):
            seen.append(cards[0].vendor.sample(cards[0].number, "it", 0, slow=False))
            time.sleep(0.2)
    mean = lambda name: round(sum(getattr(each, name) or 0 for each in seen) / len(seen), 1)  # noqa: E731
    return {name: mean(name) for name in ("power_w", "sm_mhz", "memory_mhz", "temperature_c", "use", "answer_ms", "memory_used_mib")}


def main() -> None:
    (OUT / "state").mkdir(parents=True, exist_ok=True)
    with opened() as cards:
        if not cards:
            print("no card answers here: nothing to measure")
            return
    parts: dict[str, Callable[[], object]] = {
        "nvml": answers, "draws": draws, "handover": hand_over, "server": through_a_server,
        "check": lambda: json.loads(subprocess.run([sys.executable, "-m", "headframe", "check", "--json"], capture_output=True, text=True, check=False, env=environment()).stdout),
        "full": hurried, "filler": filled, "eight_bits": eight_bits, "served": served,
    }  # fmt: skip
    for name, part in parts.items():
        if len(sys.argv) > 2 and name not in sys.argv[2:]:
            continue
        began = time.monotonic()
        try:
            found = part()
        except Exception as error:  # noqa: BLE001 - the other parts are worth having
            found = {"failed": f"{type(error).__name__}: {error}"}
        keep(name, found)
        print(f"== {name} ({time.monotonic() - began:.1f} s)")
        print(json.dumps(found, indent=1, default=str)[:3000].replace("\\n", "\n"), flush=True)


if __name__ == "__main__":
    main()
