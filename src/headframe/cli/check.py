"""check: what this machine's cards are good for, measured."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from headframe.cli.jobs import Json
from headframe.cli.session import err, fail, out, refusals, show, table
from headframe.data import text
from headframe.health.catalogue import catalogue
from headframe.health.grade import examined, half_tflops, remarks
from headframe.health.rules import Rules, limited
from headframe.model.health import CardCheck, Depth, NodeCheck, Step
from headframe.model.units import mib

MINUTES = {Depth.QUICK: "about a minute and a half", Depth.FULL: "about 45 minutes", Depth.IDLE: "about 20 minutes"}


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(check)


def check(
    *, depth: Annotated[Depth, typer.Option(help="quick takes at most 90 s, idle about 20 min, full about 45 min.")] = Depth.QUICK,
    data: Annotated[Path, typer.Option(file_okay=False, exists=True, help="The disk that is measured.")] = Path(),
    on_cpu: Annotated[bool, typer.Option("--on-cpu", envvar="CHECK_ON_CPU", help="Where there is no card: try the checks themselves on the processor.")] = False,
    limits: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Your limits of the rules: lines of `rule = number` (TOML).")] = None,
    facts: Annotated[bool, typer.Option("--facts", help="Only what was found, as one line of JSON for each card and the machine.")] = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Measure this machine and its cards, and say what each is good for, why, and what would raise its grade. Don't run work meanwhile."""
    from headframe.agent import checks

    with refusals():
        rules = limited(limits.read_text()) if limits else Rules()
    if not checks.list_cards() and not on_cpu:
        err.print("NVML lists no card: only the machine itself is checked", style="yellow")
    elif not checks.has_torch():
        fail("PyTorch is not installed, and does the cards' work", "pip install torch, in the environment of `headframe`", 1)
    with err.status(f"checking, {MINUTES[depth]}") as status:

        def told(step: Step) -> None:
            status.update(f"{step.name} (GPU {step.card})")

        host, cards = asyncio.run(checks.check(depth, data, told, ("--device", "cpu", "--hurry", "20") if on_cpu else ()))
    if facts:
        for each in (*cards, host):
            sys.stdout.write(msgspec.json.encode(each).decode() + "\n")
        return
    done = examined(catalogue(text("gpus.csv")), host, cards, lambda _: None, rules)
    show(done, json, lambda: _people(done))
    if on_cpu:
        err.print("a processor stood in for each card: these grades say that the checks run, not what a card can do", style="yellow")


def _people(done: NodeCheck) -> None:
    shown = table(">#", "GPU", ">memory", "link", ">from host", ">memory speed", ">16 bit", "grade")
    for each in done.cards:
        shown.add_row(str(each.facts.index), each.model or each.facts.card.model, mib(each.facts.card.memory_mib), _link(each), _rate(each.facts.measured.h2d_gb_s, "GB/s"),
                      _rate(each.facts.measured.memory_gb_s, "GB/s"), _rate(half_tflops(each.facts.measured), "TFLOP/s"), each.grading.grade)  # fmt: skip
    if done.cards:
        out.print(shown)
    for each in done.cards:
        _reasons(f"GPU {each.facts.index}", [*map(str, each.grading.findings), *each.facts.notes, *remarks(each.facts.card)], each.grading.raises)
    host = done.facts.host
    out.print(f"machine: {host.threads} threads, {mib(host.memory_mib)} at {_rate(host.memory_copy_gb_s, 'GB/s')}, disk {_rate(host.disk_mb_s, 'MB/s')}, "
              f"network {_rate(host.network_gbit_s, 'Gb/s')}", markup=False)  # fmt: skip
    if len(done.cards) > 1:
        out.print(f"its cards together: {done.grading.grade}")
    vendor = [str(each) for each in done.facts.evidence if each.status != "pass"]
    _reasons("machine", [*map(str, done.grading.findings), *vendor], ())
    out.print(f"took {done.facts.took_s:.0f} s", style="dim")


def _reasons(what: str, reasons: list[str], raises: tuple[str, ...]) -> None:
    for reason in reasons:
        out.print(f"{what}: {reason}", markup=False)
    for step in raises:
        out.print(f"{what}: [green]→[/] {step}")


def _link(each: CardCheck) -> str:
    measured = each.facts.measured
    return f"gen{measured.link_gen} x{measured.link_width}" if measured.link_gen and measured.link_width else "–"


def _rate(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.3g} {unit}"
