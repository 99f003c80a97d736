"""nodes, offers, events."""

from datetime import datetime
from typing import Annotated

import typer

from headframe.cli.jobs import Json
from headframe.cli.session import client, out, show, table
from headframe.model.api import EventView, NodeView, Offers
from headframe.model.units import MILLI, gpus, mib, usd


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(nodes)
    app.command()(offers)
    app.command()(events)


def nodes(*, json: Json = False) -> None:
    """The machines, what they have and what is free."""
    with client() as cloud:
        rows = list(cloud.nodes())
    show(rows, json, lambda: _show_nodes(rows))


def offers(*, json: Json = False) -> None:
    """What can be had now, and what it costs per hour."""
    with client() as cloud:
        found = cloud.offers()
    show(found, json, lambda: _show_offers(found))


def events(
    *, follow: Annotated[bool, typer.Option("--follow", "-f", help="As they come.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500)] = 50, json: Json = False,
) -> None:  # fmt: skip
    """What happened, oldest first."""
    with client() as cloud:
        page = cloud.events(latest=True, limit=limit)
        for event in page.items:
            _show_event(event, json=json)
        if follow:
            for event in cloud.follow_events(page.next):
                _show_event(event, json=json)


def _show_event(event: EventView, *, json: bool) -> None:
    at = datetime.fromtimestamp(event.at_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    show(event, json, lambda: out.print(f"{at}  {event.kind:20} {event.text}", markup=False))


def _show_nodes(rows: list[NodeView]) -> None:
    shown = table("node", "state", "engine", ">GPUs free", ">cores free", ">memory free", "model")
    for row in rows:
        model = ", ".join(sorted({gpu.model for gpu in row.gpus})) or row.node.cpu_model
        shown.add_row(
            row.node.name, row.node.state, row.node.engine, f"{gpus(row.gpu_free_milli)} of {len(row.gpus)}",
            f"{row.cpu_free_milli / MILLI:g} of {row.node.cpu_milli / MILLI:g}", f"{mib(row.memory_free_mib)} of {mib(row.node.memory_mib)}", model,
        )  # fmt: skip
    out.print(shown)


def _show_offers(found: Offers) -> None:
    shown = table("GPU", ">memory", ">free", ">on-demand", ">spot", ">reserved")
    for item in found.items:
        shown.add_row(
            item.model, mib(item.memory_mib), f"{item.free} of {item.total}", usd(item.on_demand_nano), usd(item.spot_nano), usd(item.reserved_nano)
        )
    if found.items:
        out.print(shown)
    else:
        out.print("no GPUs in this fleet; CPU work runs with `gpu: 0`")
    out.print(
        f"per hour: {usd(found.cpu_core_hour_nano)} a core, {usd(found.memory_gib_hour_nano)} a GiB of memory, "
        f"{usd(found.disk_gib_hour_nano, 5)} a GiB of disk (price list {found.price_version})",
        style="dim",
    )
