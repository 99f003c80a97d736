"""nodes, offers, events; fleet: machines that are awaited."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from headframe.cli.jobs import Json
from headframe.cli.session import client, err, fail, out, show, table
from headframe.client.inventory import Found
from headframe.model.api import EventView, NodeView, Offers
from headframe.model.fleet import Rig
from headframe.model.units import MILLI, counted, gpus, mib, usd

SHOWN_MAX = 20
fleet_app = typer.Typer(no_args_is_help=True, help="Machines that an inventory lists: import them, and see which have joined.")


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(nodes)
    app.command()(offers)
    app.command()(events)
    app.add_typer(fleet_app, name="fleet")


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


@fleet_app.command("import")
def fleet_import(
    files: Annotated[list[Path], typer.Argument(help="HiveOS workers2, `gpu-detect listjson` or rig.conf; or CSV.", exists=True, dir_okay=False)], *,
    rig: Annotated[str, typer.Option(help="The machine's name, where the file does not say it; else the file's name.")] = "",
    rack: Annotated[str, typer.Option(help="The rack of machines for which none is said.")] = "",
    apply: Annotated[bool, typer.Option("--apply", help="Keep it; without this, only what was understood is shown.")] = False, json: Json = False,
) -> None:  # fmt: skip
    """Read an inventory: what was understood, what is missing, what was refused. Secrets in it never leave this machine."""
    from headframe.client.inventory import merged, read

    try:
        found = merged(read(path, rig) for path in files)
    except ValueError as error:
        fail(str(error), "`headframe fleet import --help` lists what is known", 2)
    rigs = tuple(msgspec.structs.replace(each, rack=each.rack or rack) for each in found.rigs)
    found = msgspec.structs.replace(found, rigs=rigs)
    if not json:
        _show_found(found)
    if found.bad:
        show(found, json, lambda: None)
        fail(f"{counted(len(found.bad), 'row')} can't be read: nothing is kept", "correct them and import again; importing twice is harmless", 2)
    if apply:
        with client() as cloud:
            cloud.await_rigs(rigs)
    show(found, json, lambda: _said_import(len(rigs), kept=apply))


@fleet_app.command("ls")
def fleet_ls(*, json: Json = False) -> None:
    """The machines that inventories listed, and which of them have joined."""
    with client() as cloud:
        rows = cloud.rigs().items
    show(rows, json, lambda: _show_rigs(rows))


def _said_import(count: int, *, kept: bool) -> None:
    if kept:
        out.print(f"{counted(count, 'machine')} awaited: each takes its place when it joins (`headframe node add` prints the command)")
    else:
        out.print("nothing is kept yet: add --apply", style="dim")


def _show_found(found: Found) -> None:
    _show_rigs(found.rigs[:SHOWN_MAX])
    if len(found.rigs) > SHOWN_MAX:
        out.print(f"… and {len(found.rigs) - SHOWN_MAX} more", style="dim")
    cards = sum(len(each.cards) for each in found.rigs)
    out.print(f"{found.kind}: {counted(len(found.rigs), 'machine')} with {counted(cards, 'card')}")
    for what, items in (("not told", found.missing), ("not in the catalogue, will be measured", found.unknown), ("left out", found.dropped)):
        if items:
            out.print(f"{what}: {', '.join(items)}", markup=False)
    for row in found.bad:
        err.print(f"{row.where}: {row.why}", style="red", markup=False)


def _show_rigs(rows: Sequence[Rig]) -> None:
    shown = table("machine", "rack", "MAC", ">cards", "models", "joined")
    for row in rows:
        models = Counter(card.model for card in row.cards)
        named = ", ".join(f"{count} x {model}" for model, count in sorted(models.items()))
        shown.add_row(row.name, row.rack, row.mac, str(len(row.cards)), named, row.node_id or "–")
    out.print(shown)


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
