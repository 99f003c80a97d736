"""plan: what turning a mining fleet into a GPU cloud would earn, before a dollar is spent. It needs no server."""

from collections.abc import Iterable
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headframe.cli.jobs import Json
from headframe.cli.session import err, fail, out, show, table
from headframe.client.inventory import Found, merged, read
from headframe.model.pivot import ALGORITHMS, Assumptions, FleetPlan, RigPlan
from headframe.model.text import printable
from headframe.model.units import counted

if TYPE_CHECKING:
    from headframe.dispatch.pivot import CardFacts

SHOWN_MAX = 25


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(plan)


def plan(
    files: Annotated[list[Path], typer.Argument(help="Inventories, as `headframe fleet import` reads them: HiveOS workers2, listjson, rig.conf, or CSV.", exists=True, dir_okay=False)], *,
    power: Annotated[float, typer.Option(min=-1, max=10, help="US$ per kWh.")],
    coin: Annotated[list[str] | None, typer.Option(help=f"What a coin pays a day for 10^6 hashes/s (pearl: 10^12), such as etchash=0.02; of {', '.join(ALGORITHMS)}. May repeat.")] = None,
    rent: Annotated[list[str] | None, typer.Option(help="Your own price of a model, US$ per GPU-hour, such as 'GeForce RTX 3090=0.18'. May repeat.")] = None,
    resale: Annotated[list[str] | None, typer.Option(help="What a card sells for, US$, such as 'GeForce RTX 3090=550'. May repeat.")] = None,
    sold: Annotated[float, typer.Option(min=0, max=0.95, help="Share of hours sold as training in real slots; the others' shares follow it.")] = 0.5,
    pue: Annotated[float, typer.Option(min=1, max=3, help="What the site draws for each watt of the machines.")] = 1.06,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write the plan as one HTML page.", dir_okay=False)] = None, json: Json = False,
) -> None:  # fmt: skip
    """What to do with each rig: keep mining, sell its hours as batch, inference or training with the upgrades these need, add cards, sell the hardware; US$ a month, payback, what it depends on."""
    found = _inventory(files)
    known = _known()
    coins, rents, resales = _pairs(coin, "--coin", ALGORITHMS), _pairs(rent, "--rent", known), _pairs(resale, "--resale", known)
    base = Assumptions(power_usd_kwh=power)
    scale = sold / base.sold_training
    assumed = Assumptions(
        power_usd_kwh=power,
        coins=coins,
        rents=rents,
        resale=resales,
        pue=pue,
        sold_batch=base.sold_batch * scale,
        sold_inference=base.sold_inference * scale,
        sold_training=sold,
        sold_network=min(0.95, base.sold_network * scale),
    )
    made = _planned(found, known, assumed, seed)
    if html is not None:
        _write(html, made)
    show(made, json, lambda: _show(made, html))


def _inventory(files: list[Path]) -> Found:
    try:
        found = merged(read(path) for path in files)
    except ValueError as error:
        fail(str(error), "`headframe fleet import --help` lists what is known", 2)
    for row in found.bad:
        err.print(f"{row.where}: {row.why}", style="red", markup=False)
    if found.bad:
        fail(f"{counted(len(found.bad), 'row')} can't be read: a plan without them would mislead", "correct them, or take them out", 2)
    if not any(rig.cards for rig in found.rigs):
        fail("no cards are listed there", "give an inventory with models, such as HiveOS workers2 or a CSV with rig,model,vram", 2)
    return found


def _known() -> "dict[str, CardFacts]":
    from headframe.data import text
    from headframe.dispatch.pivot import facts

    return facts(text("gpus.csv"), text("gpu_rents.csv"))


def _planned(found: Found, known: "dict[str, CardFacts]", assumed: Assumptions, seed: int) -> FleetPlan:
    import numpy as np

    from headframe.data import text
    from headframe.dispatch.pivot import plan as planned
    from headframe.health.catalogue import catalogue, claim
    from headframe.model.health import Inventory

    models = catalogue(text("gpus.csv"))

    def named(said: str, memory_mib: int) -> str | None:
        claimed = claim(models, Inventory(model=said, memory_mib=memory_mib or _stated(said))).model
        return claimed.name if claimed else None

    return planned(found.rigs, named, known, assumed, np.random.default_rng(seed))


def _stated(said: str) -> int:
    """The memory (MiB) that a name says, where it does."""
    import re

    found = re.search(r"(\d+)\s*GB?\b", said, re.IGNORECASE)
    return int(found[1]) * 1024 if found else 0


def _pairs(given: list[str] | None, option: str, known: Iterable[str]) -> dict[str, float]:
    """`NAME=NUMBER` each; exit 2 for anything else."""
    found: dict[str, float] = {}
    for each in given or []:
        name, _, number = each.rpartition("=")
        match = next((each for each in known if each.lower() == name.strip().lower()), None)
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not match or not 0 <= value < 1e6:
            names = ", ".join(list(ALGORITHMS)) if option == "--coin" else "the catalogue's names, such as 'GeForce RTX 3090'"
            fail(f"{option} {each!r} is no NAME=NUMBER", f"names are {names}; numbers are US$ from 0 on", 2)
        found[match] = value
    return found


def _show(made: FleetPlan, html: Path | None) -> None:
    rows = table("rig", "cards", "best", ">first, US$", ">now, US$/month", ">then", ">payback", "why")
    for row in made.rigs[:SHOWN_MAX]:
        rows.add_row(*_cells(row))
    out.print(rows)
    if len(made.rigs) > SHOWN_MAX:
        out.print(f"… and {len(made.rigs) - SHOWN_MAX} more (--json has all)", style="dim")
    pays = f", paid for after {made.payback_months:.1f} months" if made.payback_months else ""
    out.print(
        f"\n[bold]{counted(made.cards, 'card')}[/]: keep mining {made.keep_usd:,.0f} US$/month → by the plan {made.plan_usd:,.0f} US$/month for {made.capex_usd:,.0f} US$ at first{pays}"
    )
    keep, best = made.keep_band, made.plan_band
    out.print(f"eight draws of ten: kept on {keep.p10:,.0f} to {keep.p90:,.0f}, by the plan {best.p10:,.0f} to {best.p90:,.0f} US$/month")
    depends = table("if", ">kept on", ">by the plan")
    for case in made.sensitivity:
        depends.add_row(case.what, f"{case.keep_usd:,.0f}", f"{case.plan_usd:,.0f}")
    out.print(depends)
    for each in made.unknown:
        out.print(f"not known: {printable(each)}", style="yellow", markup=False)
    assumed = made.assumptions
    out.print(
        f"assumed: sold {assumed.sold_batch:.0%} of hours as batch, {assumed.sold_inference:.0%} as inference, {assumed.sold_training:.0%} as training, {assumed.sold_network:.0%} with a network; "
        f"batch gets {assumed.batch_price:.0%} of the price, a card behind a riser {assumed.riser_price:.0%}; PUE {assumed.pue:g}; prices: medians of listings (data/README.md)", style="dim",
    )  # fmt: skip
    if html is not None:
        out.print(f"written: {html}", style="dim", markup=False)


def _cells(row: RigPlan) -> list[str]:
    best = row.options[0]
    keep = next(option for option in row.options if option.kind == "keep mining")
    payback = f"{best.payback_months:.1f} months" if best.payback_months else "–"
    return [
        printable(row.name),
        printable(row.cards),
        best.kind,
        f"{best.capex_usd:,.0f}",
        f"{keep.month_usd:,.0f}",
        f"{best.month_usd:,.0f}",
        payback,
        row.why,
    ]


def _write(path: Path, made: FleetPlan) -> None:
    from headframe.console.report import plan_page

    style = resources("headframe.console").joinpath("static", "style.css").read_text()
    try:
        path.write_text(plan_page(made, style), encoding="utf-8")
    except OSError as error:
        fail(f"{path} can't be written: {error.strerror}", "name another file", 2)
