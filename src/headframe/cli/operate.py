"""rack, reservation, volume: what the operator says of the fleet, and what is set aside."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from headframe.cli.jobs import Json, ProjectOption
from headframe.cli.session import client, fail, out, seconds, show, table, time_ms, watts
from headframe.model.api import Defragmentation, RackBody, RackView, ReservationBody, SiteBody, VolumeView
from headframe.model.fleet import Reservation, Site
from headframe.model.units import duration

site_app = typer.Typer(no_args_is_help=True, help="Sites: what they do by themselves.")
rack_app = typer.Typer(no_args_is_help=True, help="Racks: what they can carry and cool.")
reservation_app = typer.Typer(no_args_is_help=True, help="Machines set aside by date, for a project or for maintenance.")
volume_app = typer.Typer(no_args_is_help=True, help="Directories that outlive the work that mounts them.")


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(defrag)
    app.add_typer(site_app, name="site")
    app.add_typer(rack_app, name="rack")
    app.add_typer(reservation_app, name="reservation")
    app.add_typer(volume_app, name="volume")


@site_app.command("ls")
def site_ls(*, json: Json = False) -> None:
    """Sites and what they do by themselves."""
    with client() as cloud:
        rows = cloud.sites()
    show(rows, json, lambda: _show_sites(rows.items))


@site_app.command("set")
def site_set(
    name: str, *, shadow: Annotated[bool | None, typer.Option("--shadow/--act", help="Only tell what is wrong with cards, or take bad ones out.")] = None,
    check_new: Annotated[bool | None, typer.Option("--check-new/--no-check-new", help="Whether new cards are checked before they get work.")] = None,
    check_idle: Annotated[bool | None, typer.Option("--check-idle/--no-check-idle", help="Whether idle machines are checked again, once a day; work comes first.")] = None,
    contract: Annotated[str, typer.Option(help="What may be drawn at the meter, such as 1.2MW; 0 is no limit.")] = "",
    pue: Annotated[float | None, typer.Option(help="The meter's watts for each watt of the machines, such as 1.15.")] = None,
    caps: Annotated[bool | None, typer.Option("--caps/--no-caps", help="Whether dispatch sets cards' power limits (needs `headframe agent helper` on the machines).")] = None,
    tariff: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="What a kWh costs: a tariff file (YAML).")] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Say what a site does by itself, what it may draw and what power costs there."""
    body = SiteBody(
        shadow=shadow, check_new=check_new, check_idle=check_idle, contract_w=watts(contract), pue=pue, caps=caps, tariff=tariff.read_text("utf-8", "replace") if tariff else None
    )  # fmt: skip
    with client() as cloud:
        made = cloud.set_site(name, body)
    show(made, json, lambda: _show_sites((made,)))


@rack_app.command("ls")
def rack_ls(*, json: Json = False) -> None:
    """Racks, what they can carry, and what is drawn there at most now."""
    with client() as cloud:
        found = cloud.racks()
    show(found, json, lambda: _show_racks(found.items))


@rack_app.command("set")
def rack_set(
    name: str, *, breaker: Annotated[str, typer.Option(help="Watts that the breaker carries continuously, such as 5kW; 0 is no limit.")] = "",
    cooling: Annotated[str, typer.Option(help="Watts of heat that can be taken away; 0 is no limit.")] = "",
    airflow: Annotated[float, typer.Option(min=0, help="Instead of --cooling: cubic metres of air a second through it.")] = 0.0,
    supply: Annotated[float, typer.Option(min=-40, max=60, help="With --airflow: the supplied air's temperature in C, at its warmest.")] = 27.0, json: Json = False,
) -> None:  # fmt: skip
    """Say what a rack can carry; one that is not known is made."""
    if airflow and cooling:
        fail("--cooling and --airflow say the same", "give one of them", 2)
    body = RackBody(power_limit_w=watts(breaker), cooling_limit_w=watts(cooling), airflow_m3_s=airflow or None, supply_c=supply)
    with client() as cloud:
        made = cloud.set_rack(name, body)
    show(made, json, lambda: _show_racks((made,)))


@reservation_app.command("create")
def reservation_create(
    name: str, *, start: Annotated[str, typer.Option("--from", help="Such as 2026-12-01T08:00 (UTC), or `now`.")] = "now",
    length: Annotated[str, typer.Option("--for", help="Such as 12h or 7d.")],
    project: Annotated[str, typer.Option("--project", "-p", help="Whose reserved work may run there; nobody's without it: maintenance.")] = "",
    nodes: Annotated[int, typer.Option(min=1, help="How many machines.")] = 1,
    gpu: Annotated[str, typer.Option(help="What they have, written as in a workload file: H100:8.")] = "",
    on: Annotated[list[str] | None, typer.Option("--on", help="These machines; give it again for more.")] = None,
    evict: Annotated[bool, typer.Option(help="Stop what is still there at the start.")] = True, json: Json = False,
) -> None:  # fmt: skip
    """Set machines aside; only such as are sure to be free by then."""
    body = ReservationBody(name=name, project=project, nodes=nodes, gpu=gpu, on=tuple(on or ()), evict=evict,
                           start_ms=time_ms(start), length_s=seconds(length))  # fmt: skip
    with client() as cloud:
        made = cloud.reserve(body)
    show(made, json, lambda: _show_reservations((made,)))


@reservation_app.command("ls")
def reservation_ls(*, json: Json = False) -> None:
    """What is set aside, next first."""
    with client() as cloud:
        found = cloud.reservations()
    show(found, json, lambda: _show_reservations(found.items))


@reservation_app.command("cancel")
def reservation_cancel(name: str, *, json: Json = False) -> None:
    """Give the machines back now."""
    with client() as cloud:
        gone = cloud.cancel_reservation(name)
    show(gone, json, lambda: out.print(f"{gone.name} is cancelled"))


def defrag(
    *, apply: Annotated[bool, typer.Option("--apply", help="Move the work now.")] = False,
    automatic: Annotated[bool | None, typer.Option("--automatic/--by-hand", help="Whether it is done by itself from now on.")] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """What moving work together would let start, and what it would cost; it is done only with --apply or --automatic."""
    with client() as cloud:
        found = cloud.defragment(apply=apply, automatic=automatic) if apply or automatic is not None else cloud.defragmentation()
    show(found, json, lambda: _show_defragmentation(found, applied=apply))


def _show_defragmentation(found: Defragmentation, *, applied: bool) -> None:
    out.print("work is moved by itself" if found.automatic else "work is moved only when asked for", style="dim")
    if not found.moves:
        out.print("nothing that waits would start if others moved")
        return
    out.print(f"{found.workload} {'starts' if applied else 'could start'} on {found.node}: "
              f"{found.gain_gpu_h:.2f} GPU-hours gained, {found.lost_gpu_h:.2f} lost by moving")  # fmt: skip
    for move in found.moves:
        out.print(f"  {move.workload} to {', '.join(move.to)}")


@volume_app.command("ls")
def volume_ls(*, project: ProjectOption = "", json: Json = False) -> None:
    """Volumes and where they lie."""
    with client() as cloud:
        found = cloud.volumes(project)
    show(found, json, lambda: _show_volumes(found.items))


@volume_app.command("rm")
def volume_rm(name: str, *, project: ProjectOption = "", json: Json = False) -> None:
    """Delete a volume and what is in it; a cache on all machines."""
    with client() as cloud:
        gone = cloud.remove_volume(name, project)
    show(gone, json, lambda: out.print(f"{gone.volume.name} is deleted"))


def _show_sites(rows: tuple[Site, ...]) -> None:
    shown = table("site", ">contract", ">PUE", "tariff", "bad cards", "new cards", "idle machines", "moves work together", "id")
    for row in rows:
        new = "checked first" if row.check_new else "put to work"
        idle = "checked daily" if row.check_idle else "left alone"
        contract = f"{row.contract_w / 1000:g} kW" if row.contract_w else "–"
        shown.add_row(row.name, contract, f"{row.pue:g}", row.tariff.name if row.tariff else "–", "told only" if row.shadow else "taken out of service", new, idle,
                      "by itself" if row.defragment else "when asked", row.id)  # fmt: skip
    out.print(shown)


def _show_racks(rows: tuple[RackView, ...]) -> None:
    shown = table("rack", ">nodes", ">drawn at most", ">breaker", ">cooling", ">inlet", "id")
    for row in rows:
        inlet = (
            "–"
            if row.inlet_c is None
            else f"{row.inlet_c:.1f} C, settles at {row.settles_c:.1f}"
            + (f", too warm in {row.too_warm_s // 60} min" if row.too_warm_s is not None else "")
        )
        limits = [f"{watts} W" if watts else "–" for watts in (row.rack.power_limit_w, row.rack.cooling_limit_w)]
        shown.add_row(row.rack.name, str(row.nodes), f"{row.drawn_w} W", *limits, inlet, row.rack.id)
    out.print(shown)


def _show_reservations(rows: tuple[Reservation, ...]) -> None:
    shown = table("reservation", "for", ">machines", "from", ">length", "id")
    for row in rows:
        at = datetime.fromtimestamp(row.start_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        shown.add_row(row.name, row.project_id or "maintenance", str(len(row.node_ids)), at, duration(row.end_ms - row.start_ms), row.id)
    out.print(shown)


def _show_volumes(rows: tuple[VolumeView, ...]) -> None:
    shown = table("volume", "kind", "node", "last mounted", "project")
    for row in rows:
        used = datetime.fromtimestamp(row.volume.used_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC") if row.volume.used_ms else "–"
        shown.add_row(row.volume.name, "cache" if row.volume.cache else "volume", row.node, used, row.volume.project_id)
    out.print(shown)
