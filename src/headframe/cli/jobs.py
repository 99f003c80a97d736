"""run, apply, quote, ps, logs, stop, rm."""

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from headframe.cli.session import FAILED, INTERRUPTED, client, err, fail, out, show, table
from headframe.client import Client
from headframe.model.api import QuoteView, WorkloadView
from headframe.model.serving_api import EndpointView
from headframe.model.states import WORKLOAD_ENDS
from headframe.model.text import printable
from headframe.model.units import duration, money, usd
from headframe.model.work import LogLine

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
ProjectOption = Annotated[str, typer.Option("--project", "-p", help="Project, by name or id; needed by operators with several.")]
File = Annotated[Path, typer.Argument(help="A workload file (YAML), or - for standard input.")]
COLOURS = {
    "succeeded": "blue",
    "running": "green",
    "failed": "red",
    "queued": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "cancelled": "dim",
}


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(run)
    app.command()(apply)
    app.command()(quote)
    app.command()(ps)
    app.command()(logs)
    app.command()(stop)
    app.command()(rm)


def complete_workload(incomplete: str) -> list[str]:
    """Names of recent workloads, for the shell's tab."""
    try:
        with client() as cloud:
            return [w.workload.name for w in cloud.workloads(limit=50) if w.workload.name.startswith(incomplete)]
    except SystemExit:
        return []


Name = Annotated[str, typer.Argument(help="A workload, by name or id.", autocompletion=complete_workload)]


def run(
    file: File, *, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not follow the log.")] = False,
    project: ProjectOption = "", json: Json = False,
) -> None:  # fmt: skip
    """Quote a workload, ask, submit it, and follow its log to the end."""
    text = _read(file)
    if _is_endpoint(text):
        fail("this file is an endpoint's: it does not run to an end", f"serve it: `headframe apply -f {file}`", 2)
    with client() as cloud:
        if not json:
            _show_quote(cloud.quote(text, project))
            if not yes and not typer.confirm("Submit?", default=True, err=True):
                raise SystemExit(0)
        made = cloud.submit(text, _workdir(file, text), project)
        if json:
            show(made, as_json=True, people=lambda: None)
            return
        err.print(f"submitted [bold]{made.workload.name}[/] ({made.workload.id})")
        if not detach:
            _follow(cloud, made.workload.id, made.workload.name)


def apply(
    file: Annotated[Path, typer.Option("--file", "-f", help="A workload file, or - for standard input.")],
    *,
    project: ProjectOption = "",
    json: Json = False,
) -> None:
    """Submit a job without asking or following, or serve a model."""
    text = _read(file)
    with client() as cloud:
        if _is_endpoint(text):
            served = cloud.apply_endpoint(text, _workdir(file, text), project)
            show(served, json, lambda: _show_served(served))
            return
        made = cloud.submit(text, _workdir(file, text), project)
    show(made, json, lambda: out.print(f"{made.workload.name} ({made.workload.id}) is {made.workload.state}"))


def quote(file: File, *, project: ProjectOption = "", json: Json = False) -> None:
    """What a workload would cost, or why it can't run."""
    with client() as cloud:
        offered = cloud.quote(_read(file), project)
    show(offered, json, lambda: _show_quote(offered))


def ps(
    *, all_: Annotated[bool, typer.Option("--all", "-a", help="Ended ones too.")] = False, project: ProjectOption = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most this many.")] = 50, json: Json = False,
) -> None:  # fmt: skip
    """Workloads, and for those that wait, why."""
    with client() as cloud:
        rows: list[WorkloadView] = []
        for item in cloud.workloads(project=project, limit=min(limit, 500)):
            if all_ or item.workload.state not in WORKLOAD_ENDS:
                rows.append(item)
            if len(rows) == limit:
                break
        served = () if json else cloud.endpoints(project).items
    show(rows, json, lambda: _show_workloads(rows, all_=all_, served=served))


def logs(
    name: Name, *, follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    attempt: Annotated[int, typer.Option("--attempt", help="Of an earlier attempt.")] = 0,
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t")] = False, json: Json = False,
) -> None:  # fmt: skip
    """What a workload printed."""
    with client() as cloud:
        if follow and not json:
            _follow(cloud, name, name)
            return
        after = 0
        while True:
            page = cloud.logs(name, after, attempt)
            for line in page.lines:
                if json:
                    show(line, as_json=True, people=lambda: None)
                else:
                    _print_line(line, timestamps=timestamps)
            after = page.next
            if not page.lines:
                break
        item = cloud.workload(name)
        _explain(item)


def stop(name: Name, *, json: Json = False) -> None:
    """End a workload: a term signal, grace, then a kill."""
    with client() as cloud:
        item = cloud.stop(name)
    show(item, json, lambda: out.print(f"{item.workload.name} is {item.workload.state}"))


def rm(name: Name) -> None:
    """Delete an ended workload's logs; its history and bill stay."""
    with client() as cloud:
        cloud.remove(name)
    out.print(f"{name}: logs deleted")


def _follow(cloud: Client, key: str, name: str) -> None:
    """The log to its end; Ctrl-C detaches, and the exit code is the workload's."""
    told = ""
    item: WorkloadView | None = None
    try:
        for heard in cloud.follow(key):
            if isinstance(heard, LogLine):
                _print_line(heard, timestamps=False)
                continue
            item = heard
            state = f"{heard.workload.state}{heard.workload.attempt}"
            if state != told:
                told = state
                err.print(f"[{COLOURS.get(heard.workload.state, 'dim')}]● {heard.workload.state}[/]")
                _explain(heard)
    except KeyboardInterrupt:
        err.print(f"\ndetached; it goes on. Come back: headframe logs -f {name} · end it: headframe stop {name}", markup=False)
        raise SystemExit(INTERRUPTED) from None
    if item is None:
        return
    row = item.workload
    took = duration(row.ended_ms - row.started_ms) if row.started_ms and row.ended_ms else "0 s"
    err.print(f"{row.name} {row.state} after {took}, {usd(item.accrued_nano, 6)}", markup=False)
    if row.state != "succeeded":
        raise SystemExit(FAILED)


def _explain(item: WorkloadView) -> None:
    for refusal in item.waits:
        err.print(f"  waits: {refusal}", style="yellow", markup=False)
    if item.workload.detail and item.workload.state in WORKLOAD_ENDS:
        err.print(f"  {item.workload.reason}: {printable(item.workload.detail)}", style="dim", markup=False)


def _print_line(line: LogLine, *, timestamps: bool) -> None:
    stamp = datetime.fromtimestamp(line.at_ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3] + " " if timestamps else ""
    sys.stdout.write(stamp + printable(line.text) + "\n")
    sys.stdout.flush()


def _show_quote(offered: QuoteView) -> None:
    for warning in offered.warnings:
        err.print(f"note: {warning}", style="yellow", markup=False)
    quote = offered.quote
    rows = table("", ">quantity", ">per hour")
    for line in quote.lines:
        rows.add_row(line.what, line.quantity, money(line.amount_nano))
    low = f"{money(quote.rate_min_nano)} to " if quote.rate_min_nano != quote.rate_max_nano else ""
    rows.add_row(f"[bold]total, {quote.tier}[/]", "", f"[bold]{low}{money(quote.rate_max_nano)}[/]")
    err.print(rows)
    err.print(
        f"{money(quote.hold_nano)} is held for {duration(quote.hold_covers_s * 1000)}; {usd(quote.credit_nano, 2)} of credit is left",
        style="dim",
        markup=False,
    )
    for wait in quote.waits:
        err.print(f"it would wait: {wait}", style="yellow", markup=False)


def _show_workloads(rows: list[WorkloadView], *, all_: bool, served: Sequence[EndpointView]) -> None:
    if not rows and not served:
        out.print("no workloads" if all_ else "nothing runs or waits; `headframe ps --all` shows what has ended")
        return
    shown = table("name", "state", "resources", "tier", ">per hour", ">cost", "why")
    for item in rows:
        row = item.workload
        why = str(item.waits[0]) if item.waits else row.detail
        state = f"[{COLOURS.get(row.state, 'dim')}]{row.state}[/]"
        rate = money(item.rate_nano) if item.rate_nano else "–"
        shown.add_row(
            row.name, state, f"{row.spec.size} × {row.spec.resources.gpu}", row.spec.tier, rate, money(item.accrued_nano), escape(printable(why))
        )
    for each in served:
        row = each.endpoint
        ready = f"{sum(replica.ready for replica in each.replicas)} of {row.wanted} × {row.spec.resources.gpu}"
        rate = money(each.rate_nano) if each.rate_nano else "–"
        shown.add_row(row.name, f"[green]{row.state}[/]", ready, row.spec.tier, rate, money(each.cost_nano), escape(printable(row.why)))
    out.print(shown)


def _read(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        fail(f"there is no file {file}", "name a workload file, such as examples/digits/job.yaml", 2)
    except UnicodeDecodeError:
        fail(f"{file} is not UTF-8 text", "save it as UTF-8", 2)
    except OSError as error:
        fail(f"{file} can't be read: {error.strerror}", "", 2)


def _is_endpoint(text: str) -> bool:
    return re.search(r"^[\"']?type[\"']?\s*:\s*[\"']?(endpoint|service)\b", text, re.MULTILINE) is not None


def _show_served(served: EndpointView) -> None:
    for warning in served.warnings:
        err.print(f"note: {warning}", style="yellow", markup=False)
    row = served.endpoint
    out.print(f"{row.name} ({row.id}) is {row.state}, revision {row.revision}", markup=False)
    if served.base_url:
        out.print(f"  base_url={served.base_url}  model={row.serving.model or row.name}", markup=False)
    out.print(f"next: headframe endpoint show {row.name} · headframe chat {row.name}", style="dim", markup=False)


def _workdir(file: Path, text: str) -> Path | None:
    """The directory that the file's `workdir` names, below the file's own; none where it names none."""
    named = next(
        (line.split(":", 1)[1].split("#")[0].strip().strip("\"'") for line in text.splitlines() if line.startswith(("workdir:", "working_dir:"))), ""
    )
    if not named:
        return None
    base = Path.cwd() if str(file) == "-" else file.resolve().parent
    directory = (base / named).resolve()
    if not directory.is_dir():
        fail(f"workdir {named!r} is no directory below {base}", "", 2)
    return directory
