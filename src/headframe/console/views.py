"""Pages: each a function from values to HTML. Nothing here reads a clock, a store or a request."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from headframe.console.charts import cells, columns, lines, spark, split_bar
from headframe.console.floor import COLOURS, Floor
from headframe.model.api import Bill, CardReading, EventView, LogPage, NodeView, Offers, WorkloadView
from headframe.model.errors import HeadframeError
from headframe.model.fleet import Gpu, Node
from headframe.model.health import CardHour
from headframe.model.ids import GpuId
from headframe.model.money import Quote, Usage
from headframe.model.people import Project
from headframe.model.serving_api import EndpointView
from headframe.model.states import AllocationState, GpuState
from headframe.model.text import printable
from headframe.model.units import duration, gpus, mib, money, usd
from headframe.model.work import Allocation
from headframe.model.world import World

CELLS_MAX = 512
DAY_MS = 86_400_000
MARKS = {
    "queued": "wait", "starting": "wait", "granted": "wait", "running": "good", "stopping": "wait", "succeeded": "done", "failed": "bad",
    "cancelled": "off", "ended": "off", "ready": "good", "unknown": "bad", "new": "wait", "qualifying": "wait", "testing": "wait",
    "active": "good", "stopped": "off",
    "suspect": "bad", "quarantined": "bad", "draining": "wait", "maintenance": "off", "retired": "off", "finished": "done",
}  # fmt: skip


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What every page's frame shows: who looks, where, and the token for its forms."""

    who: str
    scope: str
    project: str
    csrf: str
    path: str
    now_ms: int
    leader: bool
    operator: bool
    note: str = ""


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """The overview's numbers."""

    gpus: tuple[tuple[str, int, str], ...]
    gpu_cells: tuple[tuple[str, str], ...]
    gpu_total: int
    queued: int
    running: int
    rate_nano: int
    cpu_used_milli: int
    cpu_total_milli: int
    nodes: int
    nodes_ready: int


def overview(frame: Frame, counts: Counts, live: Sequence[WorkloadView], recent: Sequence[EventView], projects: Sequence[Project]) -> str:
    """GPUs by state, the queue, US$ per hour now."""
    free_cpu = counts.cpu_total_milli - counts.cpu_used_milli
    return page(
        "overview.html", frame, counts=counts, live=live, recent=recent, projects=projects,
        gpu_bar=split_bar(counts.gpus, "GPUs by state"), gpu_cells=cells(counts.gpu_cells[:CELLS_MAX], "one square per GPU"),
        cpu_bar=split_bar((("in use", counts.cpu_used_milli, "used"), ("free", free_cpu, "free")), "CPU cores"),
    )  # fmt: skip


def count(world: World, rate_nano: int, project: str) -> Counts:
    """The overview's numbers of a world; of one project where it is named."""
    used: dict[str, str] = {}
    for allocation in world.live():
        for part in allocation.parts:
            for share in part.shares:
                used[share.gpu_id] = allocation.id
    states = [("in use" if gpu.id in used and gpu.state is GpuState.READY else _gpu_state(gpu.state)) for gpu in world.gpus.values()]
    cards = sorted(world.gpus.values(), key=lambda gpu: (gpu.node_id, gpu.index))
    squares = tuple(
        (f"{gpu.model} {gpu.index}: {'in use' if gpu.id in used else gpu.state}", "used" if gpu.id in used else _gpu_style(gpu.state))
        for gpu in cards
    )
    mine = [w for w in world.workloads.values() if project in {"", w.project_id}]
    cpu_free = sum(world.free[key].cpu_milli for key in world.nodes)
    cpu_total = sum(node.cpu_milli for node in world.nodes.values())
    return Counts(
        gpus=(("in use", states.count("in use"), "used"), ("free", states.count("free"), "free"), ("not ready", states.count("not ready"), "bad")),
        gpu_cells=squares, gpu_total=len(cards), queued=sum(w.state == "queued" for w in mine),
        running=sum(w.state in {"starting", "running", "stopping"} for w in mine), rate_nano=rate_nano,
        cpu_used_milli=cpu_total - cpu_free, cpu_total_milli=cpu_total, nodes=len(world.nodes),
        nodes_ready=sum(node.state == "ready" for node in world.nodes.values()),
    )  # fmt: skip


def workloads(frame: Frame, items: Sequence[WorkloadView], following: str, state: str) -> str:
    """The list, newest first."""
    return page("workloads.html", frame, items=items, following=following, state=state,
                 states=("queued", "running", "succeeded", "failed", "cancelled"))  # fmt: skip


def workload(frame: Frame, item: WorkloadView, log: LogPage, events: Sequence[EventView], usage: Sequence[Usage]) -> str:
    """One workload: timeline, live log, cost, why it waits."""
    return page("workload.html", frame, item=item, log=log, events=events, usage=usage, steps=_steps(item, frame.now_ms))


def new(frame: Frame, text: str, quote: Quote | None, error: HeadframeError | None, projects: Sequence[Project], project: str, offers: Offers) -> str:
    """The form for a new workload, with its quote or its mistakes."""
    return page("new.html", frame, text=text, quote=quote, error=error, projects=projects, project=project, offers=offers)


def nodes(frame: Frame, items: Sequence[NodeView]) -> str:
    """All nodes."""
    return page("nodes.html", frame, items=items)


def floor(frame: Frame, shown: Floor) -> str:
    """Every card as one cell."""
    return page("floor.html", frame, floor=shown, colours=tuple(COLOURS))


def node(frame: Frame, item: NodeView, said: Mapping[GpuId, CardReading], work: Mapping[str, str], events: Sequence[EventView]) -> str:
    """One node: its cards and what they say, what is free, what runs. `work` names allocations' workloads."""
    drawn = {key: {name: _spark(name, reading.minutes.get(name, ())) for name in _SPARKS} for key, reading in said.items()}
    return page("node.html", frame, item=item, said=said, drawn=drawn, work=work, events=events)


def gpu(frame: Frame, node: Node, card: Gpu, said: CardReading, hours: Sequence[tuple[int, CardHour]], events: Sequence[EventView]) -> str:
    """One card: what it says, what it is good for and why, fit to be printed, its last hours and its last weeks."""
    sample, graded = said.sample, card.graded
    now = [("Temperature", _unit(sample and sample.temperature_c, "°C")), ("Memory", _unit(sample and sample.memory_temperature_c, "°C")),
           ("Power", _unit(sample and sample.power_w, "W")), ("Use", _unit(sample and sample.use, "%", 100))]  # fmt: skip
    measured = [] if graded is None else [
        _beside("Memory bandwidth", graded.memory_gb_s, graded.memory_known_gb_s, "GB/s"),
        _beside("16-bit products", graded.half_tflops, graded.half_known_tflops, "TFLOP/s"),
        _beside("From the host", graded.h2d_gb_s, None, "GB/s"),
    ]  # fmt: skip
    setting = [] if graded is None else [("VBIOS", graded.vbios), ("Driver", graded.driver), ("Place on the bus", graded.slot),
                                         ("Power limit", _unit(graded.power_limit_w, "W"))]  # fmt: skip
    charts = [(f"{what} ({unit})", _hours(said.minutes.get(name, ()), what, unit, scale)) for name, (what, unit, scale) in _CHARTS.items()
              if any(value is not None for value in said.minutes.get(name, ()))]  # fmt: skip
    return page(
        "gpu.html", frame, node=node, gpu=card, now=now, measured=measured, setting=setting, charts=charts, weeks=_weeks(hours), events=events
    )


def _unit(value: float | None, unit: str, scale: float = 1) -> str:
    return "–" if value is None else f"{value * scale:.0f} {unit}"


def _beside(what: str, here: float | None, known: float | None, unit: str) -> tuple[str, str, str, str]:
    """A measurement beside what the model is known for; `–` for what is not known."""
    share = f"{here / known:.0%}" if here is not None and known else "–"
    told, usual = ("–" if value is None else f"{value:.4g} {unit}" for value in (here, known))
    return what, told, usual, share


def _hours(values: Sequence[float | None], what: str, unit: str, scale: float) -> Markup:
    """A reading over the last hours, newest right."""
    points = [(number / 60, value * scale) for number, value in enumerate(values) if value is not None]
    return lines([(what, points)], f"{what} over the last {len(values)} minutes", unit, span=1.0)


def _weeks(hours: Sequence[tuple[int, CardHour]]) -> list[tuple[str, Markup]]:
    """The hours that the store keeps, one chart for each datum that the card tells; nothing where there are too few for a line."""
    made: list[tuple[str, Markup]] = []
    for name, (what, unit, scale) in _CHARTS.items():
        points = [((at_ms - hours[0][0]) / DAY_MS, value * scale) for at_ms, said in hours if (value := getattr(said, name)) is not None]
        if len(points) > 1:
            made.append((f"{what} ({unit})", lines([(what, points)], f"{what} by the hour over {points[-1][0]:.1f} days", unit, per="d")))
    return made


_CHARTS = {"temperature_c": ("Temperature", "°C", 1), "power_w": ("Power", "W", 1), "use": ("Use", "%", 100), "sm_mhz": ("Clock", "MHz", 1)}
_SPARKS = {"temperature_c": ("temperature", "°C", 1), "power_w": ("power", "W", 1), "use": ("use", "%", 100)}


def _spark(name: str, values: Sequence[float | None]) -> Markup:
    what, unit, scale = _SPARKS[name]
    known = [value * scale for value in values if value is not None]
    spread = f"{min(known):.0f} to {max(known):.0f} {unit}" if known else "no reading"
    return spark(values, f"{what} in the last {len(values)} minutes: {spread}")


def endpoints(frame: Frame, items: Sequence[EndpointView]) -> str:
    """What is served."""
    return page("endpoints.html", frame, items=items)


def endpoint(frame: Frame, item: EndpointView, events: Sequence[EventView]) -> str:
    """One endpoint: load, replicas, money, how to ask it."""
    moments = item.moments
    start_ms = moments[0].at_ms if moments else frame.now_ms
    charts = [
        (title, lines([(name, [((m.at_ms - start_ms) / 60_000, float(value)) for m in moments if (value := getattr(m, field)) is not None]) for name, field in drawn],
                      title, unit, span=1.0, per="min"))
        for title, unit, drawn in _LOADS if moments
    ]  # fmt: skip
    return page("endpoint.html", frame, item=item, charts=charts, events=events, now=moments[-1] if moments else None)


_LOADS = (
    ("Requests under way and held", "requests", (("under way", "in_flight"), ("held", "held"))),
    ("Replicas that answer", "replicas", (("ready", "replicas"),)),
    ("Tokens out", "tokens/s", (("tokens/s", "tokens_s"),)),
    ("Time to the first byte", "ms", (("first byte", "first_ms"),)),
)


def playground(frame: Frame, items: Sequence[EndpointView], chosen: str) -> str:
    """A conversation with a served model."""
    return page("playground.html", frame, items=items, chosen=chosen)


def billing(frame: Frame, bill: Bill | None, projects: Sequence[Project], days: Sequence[tuple[str, int]]) -> str:
    """Balances, the month's invoice, usage and entries."""
    chart = columns([(f"{day}: {usd(amount, 2)}", amount) for day, amount in days], "cost per day of this month")
    return page("billing.html", frame, bill=bill, projects=projects, chart=chart, spent=sum(amount for _, amount in days))


def events(frame: Frame, items: Sequence[EventView], oldest: int) -> str:
    """What happened, newest first."""
    return page("events.html", frame, items=items, oldest=oldest)


def sign_in(error: str, path: str) -> str:
    """The only page without a key."""
    return _TEMPLATES.get_template("sign_in.html").render(error=error, path=path)


def failure(frame: Frame | None, error: HeadframeError) -> str:
    """A refusal as a page."""
    return _TEMPLATES.get_template("failure.html").render(frame=frame, error=error)


def per_day(usage: Sequence[Usage], now_ms: int) -> list[tuple[str, int]]:
    """Cost per UTC day of the present month, from usage intervals."""
    today = datetime.fromtimestamp(now_ms / 1000, UTC)
    days = {f"{today:%Y-%m}-{day:02}": 0 for day in range(1, today.day + 1)}
    for interval in usage:
        day = _day(interval.start_ms)
        if day in days:
            days[day] += interval.amount_nano
    return list(days.items())


def _steps(item: WorkloadView, now_ms: int) -> list[dict[str, Any]]:
    """The state timeline: queued, then each attempt's phases, with how long each took."""
    row = item.workload
    attempts: list[Allocation] = sorted(item.allocations, key=lambda attempt: attempt.attempt)
    first_ms = attempts[0].granted_ms if attempts else row.ended_ms or now_ms
    steps = [_step("queued", row.submitted_ms, first_ms, "wait", "")]
    for attempt in attempts:
        began = attempt.started_ms or attempt.ended_ms or now_ms
        steps.append(_step("starting", attempt.granted_ms, max(began, attempt.granted_ms), "wait", f"attempt {attempt.attempt}"))
        if attempt.started_ms:
            over = attempt.state is AllocationState.ENDED
            until = attempt.ended_ms if over else now_ms
            name, mark = (str(attempt.reason), _end_mark(attempt)) if over else (str(attempt.state), "good")
            steps.append(_step(name, attempt.started_ms, max(until, attempt.started_ms), mark, ""))
    return steps


def _end_mark(attempt: Allocation) -> str:
    return "done" if attempt.reason == "finished" else "off" if attempt.reason in {"cancelled", "preempted"} else "bad"


def _step(name: str, start_ms: int, end_ms: int, mark: str, note: str) -> dict[str, Any]:
    return {"name": name, "start_ms": start_ms, "took": duration(max(0, end_ms - start_ms)), "mark": mark, "note": note}


def _gpu_state(state: GpuState) -> str:
    return "free" if state is GpuState.READY else "not ready"


def _gpu_style(state: GpuState) -> str:
    return "free" if state is GpuState.READY else "bad"


def page(template: str, frame: Frame, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(frame=frame, now_ms=frame.now_ms, **values)


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if at_ms else "–"


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")


def _ago(at_ms: int, now_ms: int) -> str:
    return f"{duration(max(0, now_ms - at_ms))} ago" if at_ms else "–"


_TEMPLATES = Environment(
    loader=PackageLoader("headframe.console"), autoescape=select_autoescape(default=True), undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
_FILTERS: dict[str, Callable[..., str]] = {
    "usd": usd, "money": money, "duration": duration, "gpus": gpus, "mib": mib, "clock": _clock, "ago": _ago, "printable": printable,
    "cores": gpus, "mark": lambda state: MARKS.get(str(state), "off"),
}  # fmt: skip
_TEMPLATES.filters.update(_FILTERS)
