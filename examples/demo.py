"""`make demo`: this machine becomes a cloud, a tenant gets credit, a real training job runs, and the bill is shown.

Everything goes through the public client, as a tenant's own program would. HEADFRAME_DEMO_EXIT=1 ends after the bill.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from headframe import Client
from headframe.model.people import Scope
from headframe.model.text import printable
from headframe.model.units import NANO_PER_USD, duration, gpus, mib, usd
from headframe.model.work import LogLine

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("HEADFRAME_DEMO_DATA", HERE.parent / ".headframe" / "demo"))
JOB = HERE / "digits" / "job.yaml"
START_LIMIT_S = 30
out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def main() -> int:
    url, server = start_server()
    try:
        with Client(url, operator_key()) as operator:
            tenant_key, shown_key = enrol(operator)
        with Client(url, tenant_key) as tenant:
            code = run_job(tenant)
            show_bill(tenant)
        out.print(f"\nThe console is open at [bold]{url}[/]\nSign in with this key (operator): [bold]{shown_key}[/]")
        if not os.environ.get("HEADFRAME_DEMO_EXIT"):
            out.print("Ctrl-C stops the server.")
            server.wait()
        return code
    except KeyboardInterrupt:
        return 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.send_signal(signal.SIGTERM)
        server.wait(timeout=15)


def start_server() -> tuple[str, subprocess.Popen[bytes]]:
    """`headframe up` on its own data directory and the first free port from 7070 on."""
    DATA.mkdir(parents=True, exist_ok=True)
    port = next(port for port in range(7070, 7170) if free(port))
    environment = {**os.environ, "HEADFRAME_CONFIG": str(DATA / "config.json"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    began = time.monotonic()
    with (DATA / "server.log").open("wb") as log:
        argv = [sys.executable, "-m", "headframe", "up", "--data", str(DATA / "data"), "--port", str(port)]
        server = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    with Client(url) as probe:
        while True:
            with contextlib.suppress(Exception):
                probe.health()
                break
            if server.poll() is not None or time.monotonic() - began > START_LIMIT_S:
                sys.exit(f"the server did not start:\n{(DATA / 'server.log').read_text()}")
            time.sleep(0.05)
    out.print(f"[bold]1[/] Headframe is up at {url} after {time.monotonic() - began:.1f} s")
    return url, server


def free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def operator_key() -> str:
    return re.search(r'"key": "([^"]+)"', (DATA / "config.json").read_text())[1]


def enrol(operator: Client) -> tuple[str, str]:
    for view in wait_for_nodes(operator):
        node = view.node
        cards = ", ".join(f"{gpu.model} ({mib(gpu.memory_mib)})" for gpu in view.gpus) or "no GPU"
        out.print(f"[bold]2[/] enrolled {node.name}: {node.cpu_milli // 1000} cores ({node.cpu_model}), {mib(node.memory_mib)}, {cards}")
    name = f"demo-{int(time.time())}"
    project = operator.create_project(name)
    operator.grant_credit(project.id, 25 * NANO_PER_USD, "demonstration credit")
    out.print(f"[bold]3[/] project {name} has {usd(25 * NANO_PER_USD, 2)} of credit")
    return operator.create_key("demo", Scope.ADMIN, project.id).secret, operator_key()


def wait_for_nodes(operator: Client):
    for _ in range(100):
        nodes = [view for view in operator.nodes() if view.node.state == "ready"]
        if nodes:
            return nodes
        time.sleep(0.1)
    sys.exit("this machine did not become ready; see the server's log")


def job_file(tenant: Client) -> str:
    """The example, with a GPU if the fleet has one free."""
    text = JOB.read_text()
    return text.replace("gpu: 0", "gpu: 1") if any(offer.free for offer in tenant.offers().items) else text


def run_job(tenant: Client) -> int:
    text = job_file(tenant)
    quote = tenant.quote(text).quote
    lines = ", ".join(f"{line.quantity} {line.what} {usd(line.amount_nano)}" for line in quote.lines)
    out.print(f"[bold]4[/] quote: [bold]{usd(quote.rate_max_nano)}[/] per hour ({lines}); {usd(quote.hold_nano)} is held")
    began = time.monotonic()
    job = tenant.submit(text, workdir=JOB.parent)
    out.print(f"[bold]5[/] submitted {job.workload.name} ({job.workload.id})")
    state, first = "", True
    for heard in tenant.follow(job.workload.id):
        if isinstance(heard, LogLine):
            if first and heard.stream == "out":
                out.print(f"    [dim]first line {time.monotonic() - began:.1f} s after submit[/]")
                first = False
            out.print(f"    {printable(heard.text)}", markup=False)
            continue
        if heard.workload.state != state:
            state = heard.workload.state
            out.print(f"  [cyan]● {state}[/]" + "".join(f"\n    waits: {refusal}" for refusal in heard.waits))
    row = tenant.workload(job.workload.id).workload
    out.print(f"[bold]6[/] {row.state} after {duration(row.ended_ms - row.started_ms)}" + (f": {row.detail}" if row.detail else ""))
    return 0 if row.state == "succeeded" else 1


def show_bill(tenant: Client) -> None:
    deadline = time.monotonic() + 10
    while (bill := tenant.bill()).project.held_nano and time.monotonic() < deadline:
        time.sleep(0.1)
    out.print("[bold]7[/] usage")
    for usage in bill.usage:
        out.print(
            f"    {duration(usage.end_ms - usage.start_ms)}, {gpus(usage.gpu_milli)} GPU, {usage.cpu_milli / 1000:g} cores at {usd(usage.rate_nano)}/h: {usd(usage.amount_nano, 6)}"
        )
    out.print("  ledger entries")
    for entry in reversed(bill.entries):
        out.print(f"    {entry.kind:7} {entry.account.split('/pr-')[0]:20} {usd(entry.amount_nano, 6):>14}  {entry.memo}")
    out.print(f"  invoice {bill.invoice.month}")
    for line in bill.invoice.lines:
        out.print(f"    {line.memo:24} {usd(line.amount_nano, 6):>14}")
    out.print(f"    {'total':24} {usd(bill.invoice.total_nano, 6):>14}   credit left {usd(bill.project.credit_nano, 6)}")


if __name__ == "__main__":
    sys.exit(main())
