"""simulate, demo: the real scheduler over machines that exist only as values, for finding bugs and for sizing fleets."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from headframe.cli.jobs import Json
from headframe.cli.session import FAILED, err, out, refusals, show, table
from headframe.model.errors import Conflicting
from headframe.model.report import Policy, Report
from headframe.model.units import duration

POLICIES = ", ".join(Policy)


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(simulate)
    app.command()(demo)


def simulate(
    *, fleet: Annotated[str, typer.Option(help="Replay on this fleet: words such as 64x8xH100+16x4xA10, or a CSV file (openb or Alibaba 2026 node list).")] = "",
    trace: Annotated[list[str] | None, typer.Option(help="Replay these jobs: CSV as of openb, Philly, Helios or Acme, told by its columns; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Without --trace: so many made-up jobs.")] = 1000,
    load: Annotated[float, typer.Option(min=0.01, max=10, help="Without --trace: what the jobs ask for, 1 being the fleet.")] = 0.9,
    policy: Annotated[str, typer.Option(help=f"One or several of {POLICIES}, separated by commas.")] = "headframe",
    limits: Annotated[float, typer.Option(min=0, help="Give each job a max_duration of so many times its run time, which lets short ones fill gaps.")] = 0,
    spot: Annotated[float, typer.Option(min=0, max=1, help="Share of the jobs that are spot and may have to give way.")] = 0,
    step: Annotated[float, typer.Option(min=0.001, help="Seconds of virtual time between ticks at least.")] = 60,
    endpoint: Annotated[Path | None, typer.Option(help="Rehearse how this endpoint's file scales under --requests.", dir_okay=False)] = None,
    requests: Annotated[Path | None, typer.Option(help="CSV: TIMESTAMP (or at_s), ContextTokens, GeneratedTokens, as Azure's LLM traces have.", dir_okay=False)] = None,
    cold: Annotated[float, typer.Option(min=0, help="With --endpoint: seconds until a replica that starts answers.")] = 40,
    token_ms: Annotated[float, typer.Option(min=0.01, help="With --endpoint: milliseconds for a token of one stream.")] = 20,
    html: Annotated[Path | None, typer.Option(help="Write the report as one HTML page.", dir_okay=False)] = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Without --fleet: how many runs under faults.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Without --fleet: nodes of the faulty fleet.")] = 50,
    hours: Annotated[int, typer.Option(min=1, help="Without --fleet: virtual hours.")] = 48,
    faults: Annotated[bool, typer.Option(help="Without --fleet: crashes, lost and late facts, dead nodes, full disks.")] = True, json: Json = False,
) -> None:  # fmt: skip
    """Run the real scheduler over a simulated fleet.

    With --fleet: replay a trace and report what was held, how long jobs waited and what was billed, for one or several policies.
    With --endpoint and --requests: how many replicas it has when, and how long requests wait.
    Without: check every promise under random faults; a failure prints the seed to replay.
    """
    with refusals():
        if fleet:
            reports = _replayed(fleet, trace or [], jobs, load, policy, limits, spot, step, seed, quiet=json)
            if html is not None:
                _keep(html, _page(reports))
            show(reports, json, lambda: _tables(reports))
            return
        if endpoint is not None or requests is not None:
            _rehearsed(endpoint, requests, cold, token_ms, json=json)
            return
        _under_faults(seed, seeds, nodes, hours, faults=faults, json=json)


def _rehearsed(file: Path | None, requests: Path | None, cold_s: float, token_ms: float, *, json: bool) -> None:
    from headframe.server.workload_file import parse
    from headframe.simulate.traffic import Model, Traffic, read_load
    from headframe.simulate.world import Config

    if file is None or requests is None:
        raise Conflicting("an endpoint is rehearsed with its file and a load", "give both: --endpoint chat.yaml --requests load.csv")
    try:
        spec = parse(file.read_text(encoding="utf-8")).spec
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise Conflicting(f"{file} can't be read: {why}", "give an endpoint's file") from None
    if spec.serve is None:
        raise Conflicting(f"{file} is no endpoint's", "give one with `type: endpoint`")
    asked = read_load(requests)
    hours = 1 + asked[-1].at_ms // 3_600_000
    config = Config(seed=0, nodes=max(3, 3 * -(-spec.serve.replicas_max // 8)), hours=hours, jobs_per_hour=0, servers=1, faults=False)
    with err.status(f"{len(asked):,} requests over {_span(asked[-1].at_ms / 1000)}"):
        report = Traffic(config, spec.serve, asked, Model(load_ms=round(cold_s * 1000), token_ms=token_ms)).replayed()

    def people() -> None:
        cold = f"a cold start is {report.cold_ms / 1000:.1f} s; " if report.cold_ms else ""
        out.print(
            f"{report.requests:,} requests over {_span(asked[-1].at_ms / 1000)}: {report.answered:,} answered, {report.held} held, {report.refused} refused"
        )
        out.print(f"held: p50 {report.wait_p50_ms / 1000:.1f} s, p99 {report.wait_p99_ms / 1000:.1f} s, at most {report.wait_most_ms / 1000:.1f} s; "
                  f"{cold}slower than alone by p50 {report.added_p50_ms} ms, p99 {report.added_p99_ms} ms")  # fmt: skip
        out.print(
            f"replicas: at most {report.replicas_most}, {report.replica_h:.2f} hours in all ({report.replicas_most * report.hours:.1f} if always on)"
        )
        shown = table(">after", ">ready")
        for at_ms, ready in report.ready:
            shown.add_row(_span(at_ms / 1000), str(ready))
        out.print(shown)

    show(report, json, people)


def _replayed(
    fleet: str, trace: Sequence[str], count: int, load: float, policy: str, limits: float, spot: float, step: float, seed: int, *, quiet: bool
) -> list[Report]:
    from rich.progress import Progress

    from headframe.placement.compiled import compiled
    from headframe.simulate.replay import Replay, Setting
    from headframe.simulate.report import report
    from headframe.simulate.traces import BadTrace, generate, read_fleet, read_jobs

    wrong = [name for name in policy.split(",") if name not in set(Policy)]
    if wrong:
        raise BadTrace(f"no policy {wrong[0]!r}", f"there are {POLICIES}")
    machines = read_fleet(fleet)
    work = read_jobs(trace) if trace else generate(count, machines, load, seed)
    named = ", ".join(Path(path).name for path in trace) or f"{count} made-up jobs, load {load:g}, seed {seed}"
    reports: list[Report] = []
    with Progress(console=err, transient=True, disable=quiet) as progress:
        code = compiled()
        bars = [progress.add_task(name, total=len(work)) for name in policy.split(",")]
        for bar, name in zip(bars, policy.split(","), strict=True):
            began = time.monotonic()
            replay = Replay(machines, work, Setting(policy=Policy(name), step_s=step, limits=limits, spot=spot), code)
            for done in replay.steps():
                progress.update(bar, completed=done)
            reports.append(report(replay, Path(fleet).name if Path(fleet).is_file() else fleet, named, time.monotonic() - began))
    return reports


def _keep(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Conflicting(f"{path} can't be written: {error.strerror}", "choose another --html") from None
    err.print(f"wrote {path}", markup=False)


def _page(reports: Sequence[Report]) -> str:
    from importlib.resources import files

    from headframe.console.report import page

    return page(reports, files("headframe.console").joinpath("static/style.css").read_text(encoding="utf-8"))


def _tables(reports: Sequence[Report]) -> None:
    first = reports[0]
    out.print(f"{first.trace} on {first.fleet}: {first.jobs} jobs over {first.span_h:.1f} h, {first.gpus} GPUs on {first.nodes} nodes", markup=False)
    shown = table("policy", ">held", ">stranded", ">waiting", ">preempted", ">lost GPU-h", ">fairness", ">makespan", ">billed", ">wall")
    for r in reports:
        shown.add_row(r.policy, f"{r.held:.1f} %", f"{r.stranded:.2f} %", str(r.waiting), str(r.preempted), f"{r.lost_gpu_h:.1f}", f"{r.fairness:.3f}",
                      _span(r.makespan_h * 3600), f"US$ {r.revenue_usd:,.0f}", f"{r.wall_s:.1f} s")  # fmt: skip
    out.print(shown)
    sizes = table("size", "policy", ">jobs", ">delay mean", ">p50", ">p99", ">JCT mean", ">p50", ">p99", ">slowdown")
    for name in [group.name for group in first.groups]:
        for r in reports:
            for g in (group for group in r.groups if group.name == name):
                delay, jct = g.delay_s, g.jct_s
                sizes.add_row(
                    name, r.policy, str(g.jobs), *map(_span, (delay.mean, delay.p50, delay.p99, jct.mean, jct.p50, jct.p99)), f"{g.slowdown:.2f}"
                )
    out.print(sizes)
    if first.never:
        out.print(f"{first.never} jobs fit no machine of this fleet and were refused at submission")


def _span(seconds: float) -> str:
    return duration(int(seconds * 1000))


def _under_faults(seed: int, seeds: int, nodes: int, hours: int, *, faults: bool, json: bool) -> None:
    from rich.progress import track

    from headframe.simulate.world import Config, Simulation, SimulationFailed

    outcomes = []
    for number in track(range(seed, seed + seeds), "simulating", console=err, disable=json or seeds == 1, transient=True):
        try:
            outcomes.append(Simulation(Config(seed=number, nodes=nodes, hours=hours, faults=faults)).run())
        except SimulationFailed as failed:
            err.print(str(failed), markup=False)
            raise SystemExit(FAILED) from None

    def people() -> None:
        shown = table(">seed", ">hours", ">jobs", ">events", ">crashes", "ended", "hash")
        for o in outcomes:
            ended = ", ".join(f"{count} {state}" for state, count in o.ended.items())
            shown.add_row(str(o.seed), f"{o.simulated_hours:.0f}", str(o.jobs), str(o.events), str(o.crashes), ended, o.event_hash[:12])
        out.print(shown)

    show(outcomes, json, people)


def demo(
    *, gpus: Annotated[int, typer.Option(min=24, max=100_000, help="How many GPUs to simulate.")] = 2000,
    speed: Annotated[float, typer.Option(min=1, max=3600, help="Simulated seconds per second.")] = 60,
    load: Annotated[float, typer.Option(min=0.01, max=3, help="What the made-up jobs ask for, 1 being the fleet.")] = 0.95,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7071,
) -> None:  # fmt: skip
    """The real console over a simulated fleet, clearly marked as such; nothing is kept when it ends (Ctrl-C)."""
    import tempfile

    from headframe.server.main import Config, Hooks, Stage, Started, run, wall_ms
    from headframe.simulate.demo import Demo

    began = wall_ms()

    def clock_ms() -> int:
        return began + int((wall_ms() - began) * speed)

    demonstration = Demo(gpus, load, clock_ms)
    note = f"Simulated: {len(demonstration.fleet) * 8} GPUs that exist only as values, time at {speed:g} times its speed"

    def started(what: Started) -> None:
        err.print(f"{note}\nconsole: [bold]{what.url}[/]  sign in with [bold]{what.operator_key}[/]  (Ctrl-C ends it, nothing is kept)")

    with refusals(), tempfile.TemporaryDirectory(prefix="headframe-demo-") as root:
        stage = Stage(clock_ms=clock_ms, engine=demonstration.engine, beside=demonstration.play, note=note)
        hooks = Hooks(probe=lambda *_: demonstration.first, keep_key=lambda _: None, started=started, stage=stage)
        run(Config(data=Path(root), port=port), hooks)
