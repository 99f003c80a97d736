"""node, gpu: machines and cards, what is wrong with them, and in and out of service."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from headframe.cli.fleet import nodes
from headframe.cli.jobs import Json
from headframe.cli.session import client, err, fail, out, seconds, show, table, watts
from headframe.client import Client
from headframe.model.agent import AddBody
from headframe.model.api import CheckBody, EnableBody, EventView, GpuBody, NodeBody, NodeReadings, NodeView, ServiceBody
from headframe.model.fleet import Gpu, Grade, NodeGraded, Sharing
from headframe.model.health import CardHour, Depth
from headframe.model.states import GpuState, NodeState, Service
from headframe.model.units import MILLI, counted, gpus, mib
from headframe.model.work import Tier

POLL_S = 1.0
CARDS_TOLD, EVENTS_TOLD = 16, 8
Why = Annotated[str, typer.Option("--why", help="Kept with it, and shown.")]

node_app = typer.Typer(no_args_is_help=True, help="Machines: where they are, what is wrong with them, in and out of service.")
gpu_app = typer.Typer(no_args_is_help=True, help="Cards: what they are good for, how they are shared, in and out of service.")
node_app.command("ls")(nodes)


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.add_typer(node_app, name="node")
    app.add_typer(gpu_app, name="gpu")


@node_app.command("add")
def node_add(
    *, rack: Annotated[str, typer.Option(help="The rack it is in.")] = "",
    expires: Annotated[str, typer.Option(help="For how long the token may be used.")] = "1h",
    url: Annotated[str, typer.Option(help="How the machine reaches this server, where that differs.")] = "", json: Json = False,
) -> None:  # fmt: skip
    """The command that makes a machine one of the fleet; its token works once."""
    with client() as cloud:
        made, server = cloud.invite(AddBody(rack=rack, expires_in_s=seconds(expires))), url or cloud.url
    command = f"headframe agent join {server} {made.token}" + (f" --pin {made.pin}" if made.pin else "")

    def people() -> None:
        err.print(f"On the machine, within {expires}, with Headframe installed there:", style="dim")
        out.print(command, markup=False, soft_wrap=True)
        if any(name in server for name in ("127.0.0.1", "localhost", "[::1]")):
            err.print("this server is reached from this machine alone: for others, start it with --host and TLS, and add --url here", style="yellow")

    show({"command": command, "key_id": made.key_id, "expires_ms": made.expires_ms}, json, people)


@node_app.command("show")
def node_show(name: str, *, json: Json = False) -> None:
    """One machine: its cards, what is wrong with them, and what runs there."""
    with client() as cloud:
        found, said = cloud.node(name), cloud.readings(name)
        told = [] if json else _history(cloud, found.node.id, *(card.id for card in found.gpus[:CARDS_TOLD]))

    def people() -> None:
        _show_node(found, said)
        _show_history(told)

    show(found, json, people)


@node_app.command("qualify")
def node_qualify(
    name: str, *, depth: Annotated[Depth, typer.Option(help="quick takes at most 90 s, full about 45 min, idle about 20 min and gives way to work.")] = Depth.QUICK,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the result; Ctrl-C leaves the check running.")] = True, json: Json = False,
) -> None:  # fmt: skip
    """Check a machine and its cards that hold no work, and grade them anew."""
    with client() as cloud:
        made = cloud.check_node(name, CheckBody(depth=depth))
        testing = {card.id for card in made.gpus if card.state is GpuState.TESTING}
        with err.status(f"{made.node.name}: checking {counted(len(testing), 'card') if testing else 'the machine'}"):
            while wait and any(held.tier is Tier.HOUSE for held in made.allocations):
                time.sleep(POLL_S)
                made = cloud.node(name)
        said = cloud.readings(name)
    show(made, json, lambda: _show_node(made, said))


@node_app.command("set")
def node_set(
    name: str, *, rack: Annotated[str, typer.Option(help="The rack it is in.")] = "",
    taint: Annotated[list[str] | None, typer.Option(help="Keeps away work that does not tolerate it; give it again for more.")] = None,
    no_taints: Annotated[bool, typer.Option("--no-taints", help="Take all taints away.")] = False,
    idle: Annotated[str, typer.Option(help="Watts that it draws when idle.")] = "",
    address: Annotated[str | None, typer.Option(help="Where gateways reach what it serves, such as 10.0.0.7; '' for nowhere.")] = None,
    owner: Annotated[str | None, typer.Option(help="Who gets what it brings (`headframe profit --by owner`); '' for the operator.")] = None, json: Json = False,
) -> None:  # fmt: skip
    """Say where a machine is, how it is reached, and what keeps work away from it."""
    taints = () if no_taints else tuple(taint) if taint else None
    with client() as cloud:
        made = cloud.set_node(name, NodeBody(rack=rack, taints=taints, idle_w=watts(idle), address=address, owner=owner))
    taints_now = f", taints {', '.join(made.node.taints)}" if made.node.taints else ""
    show(made, json, lambda: out.print(f"{made.node.name}: in {made.node.rack_id}{taints_now}"))


@gpu_app.command("set")
def gpu_set(
    uuid: str, *, grade: Annotated[Grade | None, typer.Option(help="What it is good for.")] = None,
    sharing: Annotated[Sharing | None, typer.Option(help="How fractions of it are kept apart.")] = None, json: Json = False,
) -> None:  # fmt: skip
    """Say what a card is good for and how it is shared."""
    with client() as cloud:
        made = cloud.set_gpu(uuid, GpuBody(grade=grade, sharing=sharing))
    show(made, json, lambda: out.print(f"{made.id}: grade {made.grade}, sharing {made.sharing}"))


@node_app.command("drain")
def node_drain(
    name: str, *, deadline: Annotated[str, typer.Option(help="What still runs then is stopped and queued again, such as 2h; 0s is now.")] = "",
    why: Why = "", json: Json = False,
) -> None:  # fmt: skip
    """Nothing new starts there; once it is empty it is in maintenance."""
    _move(name, ServiceBody(to=Service.DRAIN, why=why, deadline_s=seconds(deadline) if deadline else None), json=json)


@node_app.command("maintenance")
def node_maintenance(name: str, *, why: Why = "", json: Json = False) -> None:
    """Take it out of service now: what runs there is stopped and queued again."""
    _move(name, ServiceBody(to=Service.DRAIN, why=why, deadline_s=0), json=json)


@node_app.command("resume")
def node_resume(name: str, *, json: Json = False) -> None:
    """Put it back into service."""
    _move(name, ServiceBody(to=Service.RESUME), json=json)


@node_app.command("retire")
def node_retire(name: str, *, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, why: Why = "", json: Json = False) -> None:
    """Take it out of the fleet for good; its history stays."""
    if not yes and not typer.confirm(f"{name} can never come back under this identity. Retire it?"):
        fail("nothing was done", "`headframe node drain` takes it out of service for a while", 1)
    _move(name, ServiceBody(to=Service.RETIRE, why=why), json=json)


@gpu_app.command("show")
def gpu_show(uuid: str, *, json: Json = False) -> None:
    """One card."""
    with client() as cloud:
        found = _home(cloud, uuid)
        said, told = cloud.readings(found.node_id), [] if json else _history(cloud, found.id)

    def people() -> None:
        _show_gpus((found,), said)
        _show_measured(found)
        _show_history(told)

    show(found, json, people)


@gpu_app.command("history")
def gpu_history(
    uuid: str, *, days: Annotated[int, typer.Option(min=1, max=41, help="How far back.")] = 7, json: Json = False,
) -> None:  # fmt: skip
    """What a card said, hour by hour: temperature, power, use, clock."""
    with client() as cloud:
        kept = [(hour.hour_ms, card) for hour in cloud.hours(_home(cloud, uuid).node_id, days).items for card in hour.cards if card.gpu_id == uuid]
    show([{"hour_ms": at_ms, **msgspec.to_builtins(card)} for at_ms, card in kept], json, lambda: _show_hours(kept))


def _show_hours(kept: Sequence[tuple[int, CardHour]]) -> None:
    if not kept:
        err.print("nothing is kept of it yet: an hour is kept once it is over", style="yellow")
        return
    shown = table("hour (UTC)", ">minutes", ">°C", ">most °C", ">W", ">kWh", ">use", ">MHz")
    for at_ms, card in kept:
        spent = "–" if card.power_w is None else f"{card.power_w * card.minutes / 60_000:.3f}"
        shown.add_row(datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:00"), str(card.minutes), _told(card.temperature_c),
                      _told(card.temperature_max_c), _told(card.power_w), spent, _told(card.use, "%"), _told(card.sm_mhz))  # fmt: skip
    out.print(shown)


def _home(cloud: Client, uuid: str) -> Gpu:
    """The card of that UUID, or the end of the command."""
    found = next((gpu for row in cloud.nodes() for gpu in row.gpus if gpu.id == uuid), None)
    return found or fail(f"no GPU {uuid!r}", "list them: `headframe node show NAME`", 3)


@gpu_app.command("disable")
def gpu_disable(
    uuid: str, *, evict: Annotated[bool, typer.Option("--evict", help="Stop what runs on it now; it is queued again.")] = False,
    why: Why = "", json: Json = False,
) -> None:  # fmt: skip
    """It gets no work until it is enabled; the other cards of its machine go on."""
    _enable(uuid, EnableBody(enable=False, why=why, evict=evict), json=json)


@gpu_app.command("enable")
def gpu_enable(uuid: str, *, json: Json = False) -> None:
    """It may get work again."""
    _enable(uuid, EnableBody(enable=True), json=json)


def _move(name: str, body: ServiceBody, *, json: bool) -> None:
    with client() as cloud:
        made = cloud.move_node(name, body)
        if body.to is Service.DRAIN:
            made = cloud.node(name)
    show(made, json, lambda: _show_moved(made))


def _show_moved(made: NodeView) -> None:
    there = len(made.allocations)
    waits = f", {counted(there, 'allocation')} still there" if made.node.state is NodeState.DRAINING and there else ""
    out.print(f"{made.node.name}: {made.node.state}{waits}", markup=False)


def _enable(uuid: str, body: EnableBody, *, json: bool) -> None:
    with client() as cloud:
        made = cloud.move_gpu(uuid, body)
    show(made, json, lambda: out.print(f"{made.id}: {made.state}" + (f", {made.why}" if made.why else ""), markup=False))


def _show_node(found: NodeView, said: NodeReadings) -> None:
    node = found.node
    until = datetime.fromtimestamp(node.drain_ms / 1000, UTC).strftime(" until %Y-%m-%d %H:%M UTC") if node.drain_ms else ""
    out.print(f"{node.name}  {node.state}{until}" + (f": {node.why}" if node.why else ""), markup=False)
    out.print(f"{gpus(found.gpu_free_milli)} of {len(found.gpus)} GPUs free, {found.cpu_free_milli / MILLI:g} of {node.cpu_milli / MILLI:g} cores, "
              f"{mib(found.memory_free_mib)} of {mib(node.memory_mib)} memory, {node.os}, in {node.rack_id}", style="dim", markup=False)  # fmt: skip
    if found.gpus:
        _show_gpus(found.gpus, said)
    if node.graded:
        _show_machine(node.graded)
    for allocation in found.allocations:
        out.print(f"{allocation.workload_id}: {allocation.state}, attempt {allocation.attempt}", markup=False)


def _show_machine(graded: NodeGraded) -> None:
    together = f"its cards together: {graded.grade}; " if graded.grade else ""
    rates = ((graded.memory_copy_gb_s, "memory", "GB/s"), (graded.disk_mb_s, "disk", "MB/s"), (graded.network_gbit_s, "network", "Gb/s"))
    out.print(f"machine: {together}" + ", ".join(f"{what} {rate:.0f} {unit}" for rate, what, unit in rates if rate is not None), markup=False)
    for reason in (*graded.reasons, *graded.evidence):
        out.print(f"machine: {reason}", markup=False)


def _show_gpus(cards: tuple[Gpu, ...], said: NodeReadings) -> None:
    latest = {reading.gpu_id: reading.sample for reading in said.items}
    shown = table(">#", "GPU", ">memory", "link", ">°C", ">W", ">use", "grade", "state", "id")
    for card in cards:
        link = f"{f'gen{card.pcie_gen} ' if card.pcie_gen else ''}x{card.pcie_width}" if card.pcie_width else "–"
        state = card.state if card.state is GpuState.READY or not card.why else f"{card.state}: {card.why}"
        sample = latest.get(card.id)
        read = (_told(sample.temperature_c), _told(sample.power_w), _told(sample.use, "%")) if sample else ("–", "–", "–")
        shown.add_row(str(card.index), card.model, mib(card.memory_mib), link, *read, card.grade, state, card.id)
    out.print(shown)
    for card in cards:
        lines = None if len(cards) == 1 else 1  # of many cards what counts most; `gpu show` has all
        for reason in card.graded.reasons[:lines] if card.graded else ():
            out.print(f"GPU {card.index}: {reason}", markup=False)
        for step in card.graded.raises[:lines] if card.graded else ():
            out.print(f"GPU {card.index}: [green]→[/] {step}")
        if card.concern and card.state is GpuState.READY:
            out.print(f"GPU {card.index}: {card.concern}", style="yellow", markup=False)


def _show_measured(card: Gpu) -> None:
    """What was measured, beside what its model is known for."""
    if card.graded is None:
        return
    graded, shown = card.graded, table("measured", ">here", ">its model", ">share")
    for what, here, known, unit in (
        ("memory bandwidth", graded.memory_gb_s, graded.memory_known_gb_s, "GB/s"), ("16-bit products", graded.half_tflops, graded.half_known_tflops, "TFLOP/s"),
        ("from the host", graded.h2d_gb_s, None, "GB/s"),
    ):  # fmt: skip
        rates = ("–" if value is None else f"{value:.4g} {unit}" for value in (here, known))
        shown.add_row(what, *rates, f"{here / known:.0%}" if here is not None and known else "–")
    out.print(shown)


def _history(cloud: Client, *subjects: str) -> list[EventView]:
    """The last events of machines and cards, oldest first."""
    each = [event for subject in subjects for event in cloud.events(subject=subject, limit=500).items]
    return sorted(each, key=lambda event: event.seq)[-EVENTS_TOLD:]


def _show_history(events: list[EventView]) -> None:
    for event in events:
        out.print(f"{datetime.fromtimestamp(event.at_ms / 1000, UTC):%Y-%m-%d %H:%M} {event.text}", style="dim", markup=False)


def _told(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{value:.0%}" if unit == "%" else f"{value:.0f}"
