"""price, bill, project, key."""

import csv
import sys
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from headframe.cli.jobs import Json, ProjectOption
from headframe.cli.session import client, err, fail, out, seconds, show, table
from headframe.client import Client
from headframe.model.api import Bill, KeyList, KeyMade
from headframe.model.money import Entry, GpuPrice, Invoice, PriceList, Usage
from headframe.model.people import Project, Scope
from headframe.model.units import MILLI, duration, gpus, parse_usd, usd

project_app = typer.Typer(no_args_is_help=True, help="Tenants: their credit and budgets.")
key_app = typer.Typer(no_args_is_help=True, help="API keys.")
SPOT_OF_ON_DEMAND, RESERVED_OF_ON_DEMAND = 50, 80
"""Per cent of the on-demand price, where a tier's own price is not given."""


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(price)
    app.command()(bill)
    app.add_typer(project_app, name="project")
    app.add_typer(key_app, name="key")


def price(
    model: Annotated[str, typer.Argument(help="A GPU model, or * for every other; nothing shows the prices.")] = "", *,
    on_demand: Annotated[str, typer.Option(help="US$ per GPU-hour.")] = "", spot: Annotated[str, typer.Option()] = "",
    reserved: Annotated[str, typer.Option()] = "", cpu: Annotated[str, typer.Option(help="US$ per core-hour.")] = "",
    memory: Annotated[str, typer.Option(help="US$ per GiB-hour.")] = "", disk: Annotated[str, typer.Option(help="US$ per GiB-hour.")] = "",
    json: Json = False,
) -> None:  # fmt: skip
    """Show the prices in force, or set some from now on."""
    if model and not on_demand:
        fail("a model needs --on-demand", "headframe price 'RTX 3090' --on-demand 0.35 --spot 0.18", 2)
    with client() as cloud:
        if not any((model, cpu, memory, disk)):
            prices = cloud.prices()
        else:
            changed = (_gpu_price(model, on_demand, spot, reserved),) if model else ()
            prices = cloud.set_prices(*changed, cpu_nano=_amount(cpu), memory_nano=_amount(memory), disk_nano=_amount(disk))
    show(prices, json, lambda: _show_prices(prices))


def bill(
    *, project: ProjectOption = "", month: Annotated[str, typer.Option("--month", help="Such as 2026-11.")] = "",
    export: Annotated[str, typer.Option("--export", help="All usage or entries as CSV: usage | entries.")] = "", json: Json = False,
) -> None:  # fmt: skip
    """A project's usage, ledger entries and invoice."""
    with client() as cloud:
        if export:
            _export(export, cloud, project, json=json)
            return
        found = cloud.bill(project, month)
    show(found, json, lambda: _show_bill(found))


@project_app.command("create")
def project_create(
    name: str,
    *,
    credit: Annotated[str, typer.Option(help="US$ to start with.")] = "0",
    quota_gpus: Annotated[float, typer.Option(min=0)] = 0,
    json: Json = False,
) -> None:
    """A new tenant."""
    amount = _amount(credit)
    with client() as cloud:
        made = cloud.create_project(name, round(quota_gpus * MILLI))
        if amount:
            made = cloud.grant_credit(made.id, amount, "first credit")
    show(made, json, lambda: _show_projects([made]))


@project_app.command("ls")
def project_ls(*, json: Json = False) -> None:
    """Projects and their balances."""
    with client() as cloud:
        found = cloud.projects()
    show(found, json, lambda: _show_projects(found.items))


@project_app.command("credit")
def project_credit(
    name: str,
    amount: Annotated[str, typer.Argument(help="US$; negative takes unspent credit back.")],
    *,
    memo: Annotated[str, typer.Option()] = "",
    json: Json = False,
) -> None:
    """Give a project credit."""
    sign, digits = (-1, amount[1:]) if amount.startswith("-") else (1, amount)
    amount_nano = sign * (_amount(digits) or 0)
    with client() as cloud:
        made = cloud.grant_credit(name, amount_nano, memo)
    show(made, json, lambda: _show_projects([made]))


@project_app.command("budget")
def project_budget(
    name: str, *, per_hour: Annotated[str, typer.Option(help="US$ per hour; 0 lifts it.")] = "0",
    per_month: Annotated[str, typer.Option(help="US$ per month; 0 lifts it.")] = "0", json: Json = False,
) -> None:  # fmt: skip
    """Limit what a project may spend."""
    hour_nano, month_nano = _amount(per_hour) or 0, _amount(per_month) or 0
    with client() as cloud:
        made = cloud.set_budget(name, hour_nano, month_nano)
    show(made, json, lambda: _show_projects([made]))


@project_app.command("quota")
def project_quota(
    name: str, *, most: Annotated[float, typer.Option(min=0, help="GPUs that it may hold; 0 is no limit.")] = 0,
    guaranteed: Annotated[float, typer.Option(min=0, help="GPUs that it gets back from whoever borrowed them.")] = 0,
    whole_machines: Annotated[bool, typer.Option("--whole-machines", help="Its work has machines to itself: for those whom others should not share one with.")] = False, json: Json = False,
) -> None:  # fmt: skip
    """How many GPUs a project may hold, how many it is guaranteed, and whether it shares machines; what is left out is lifted."""
    with client() as cloud:
        made = cloud.set_quota(name, round(most * MILLI), round(guaranteed * MILLI), whole_machines=whole_machines)
    show(made, json, lambda: _show_projects([made]))


@key_app.command("create")
def key_create(
    name: str, *, scope: Annotated[Scope, typer.Option(help="What it may do.")] = Scope.MEMBER, project: ProjectOption = "",
    expires: Annotated[str, typer.Option(help="Such as 90d; never if left out.")] = "",
    rpm: Annotated[int, typer.Option(min=0, help="Requests that it may ask of endpoints per minute; 0 is no limit.")] = 0,
    tpm: Annotated[int, typer.Option(min=0, help="Tokens per minute.")] = 0,
    budget: Annotated[str, typer.Option(help="US$ a month that it may spend on tokens; no limit if left out.")] = "", json: Json = False,
) -> None:  # fmt: skip
    """A new key; its text is shown this once."""
    expires_in_s, budget_nano = seconds(expires) if expires else 0, _amount(budget) or 0
    with client() as cloud:
        made = cloud.create_key(name, scope, project, expires_in_s, rpm, tpm, budget_nano)
    show(made, json, lambda: _show_new_key(made))


@project_app.command("limits")
def project_limits(
    name: str, *, rpm: Annotated[int, typer.Option(min=0, help="Requests per minute; 0 lifts it.")] = 0,
    tpm: Annotated[int, typer.Option(min=0, help="Tokens per minute; 0 lifts it.")] = 0, json: Json = False,
) -> None:  # fmt: skip
    """What a project's keys together may ask of endpoints."""
    with client() as cloud:
        made = cloud.set_limits(name, rpm, tpm)
    show(made, json, lambda: out.print(f"{made.name}: {made.rpm or 'any number of'} requests, {made.tpm or 'any number of'} tokens per minute"))


@key_app.command("ls")
def key_ls(*, json: Json = False) -> None:
    """Keys, without their secrets."""
    with client() as cloud:
        found = cloud.keys()
    show(found, json, lambda: _show_keys(found))


@key_app.command("revoke")
def key_revoke(key_id: str, *, json: Json = False) -> None:
    """Refuse a key from now on."""
    with client() as cloud:
        gone = cloud.revoke_key(key_id)
    show(gone, json, lambda: out.print(f"{gone.name} is revoked"))


def _amount(text: str) -> int | None:
    if not text:
        return None
    try:
        return parse_usd(text)
    except ValueError as error:
        fail(str(error), "write it like 0.35", 2)


def _gpu_price(model: str, on_demand: str, spot: str, reserved: str) -> GpuPrice:
    firm = _amount(on_demand) or 0
    lower, set_aside = _amount(spot), _amount(reserved)
    return GpuPrice(
        model=model, on_demand_nano=firm, spot_nano=firm * SPOT_OF_ON_DEMAND // 100 if lower is None else lower,
        reserved_nano=firm * RESERVED_OF_ON_DEMAND // 100 if set_aside is None else set_aside,
    )  # fmt: skip


def _export(what: str, cloud: Client, project: str, *, json: bool) -> None:
    if what not in {"usage", "entries"}:
        fail(f"there is no export {what!r}", "usage or entries", 2)
    rows: list[Usage | Entry] = []
    before = ""
    while True:
        page = cloud.usage(project, before=before, limit=500) if what == "usage" else cloud.entries(project, before=before, limit=500)
        rows += page.items
        before = page.next
        if not before:
            break
    if json:
        show(rows, as_json=True, people=lambda: None)
        return
    fields = (Usage if what == "usage" else Entry).__struct_fields__
    writer = csv.writer(sys.stdout)
    writer.writerow(fields)
    writer.writerows([msgspec.to_builtins(getattr(row, field)) for field in fields] for row in rows)


def _show_prices(prices: PriceList) -> None:
    shown = table("per hour", ">on-demand", ">spot", ">reserved")
    for gpu in prices.gpus:
        name = "any other GPU" if gpu.model == "*" else gpu.model
        shown.add_row(name, usd(gpu.on_demand_nano), usd(gpu.spot_nano), usd(gpu.reserved_nano))
    shown.add_row("CPU core", usd(prices.cpu_core_hour_nano), "", "")
    shown.add_row("memory, GiB", usd(prices.memory_gib_hour_nano), "", "")
    shown.add_row("disk, GiB", usd(prices.disk_gib_hour_nano, 5), "", "")
    out.print(shown)
    out.print(f"price list {prices.version}, since {_clock(prices.effective_ms)}", style="dim")


def _show_projects(rows: list[Project] | tuple[Project, ...]) -> None:
    shown = table("project", ">credit", ">held", ">this month", ">budget/h", ">budget/month", "GPUs", "id")
    for row in rows:
        hour = usd(row.budget_hour_nano, 2) if row.budget_hour_nano else "–"
        month = usd(row.budget_month_nano, 2) if row.budget_month_nano else "–"
        shown.add_row(row.name, usd(row.credit_nano, 2), usd(row.held_nano, 2), usd(row.month_spent_nano), hour, month, _gpus(row), row.id)
    out.print(shown)


def _gpus(row: Project) -> str:
    most = f"{gpus(row.quota_gpus_milli)} at most" if row.quota_gpus_milli else ""
    sure = f"{gpus(row.guaranteed_gpus_milli)} guaranteed" if row.guaranteed_gpus_milli else ""
    return ", ".join(each for each in (most, sure, "whole machines" if row.whole_machines else "") if each) or "–"


def _show_new_key(made: KeyMade) -> None:
    err.print(f"{made.key.name}: keep this key now, it is not shown again", style="dim")
    sys.stdout.write(made.secret + "\n")


def _show_keys(found: KeyList) -> None:
    shown = table("name", "scope", "project", "created", "expires", ">budget/month", "id")
    for key in found.items:
        budget = f"{usd(key.spent_nano, 2)} of {usd(key.budget_nano, 2)}" if key.budget_nano else "–"
        expires = "revoked" if key.revoked_ms else _clock(key.expires_ms) if key.expires_ms else "never"
        shown.add_row(key.name, key.scope, key.project_id or "–", _clock(key.created_ms), expires, budget, key.id)
    out.print(shown)


def _show_bill(found: Bill) -> None:
    out.print(f"[bold]{found.project.name}[/]: {usd(found.project.credit_nano, 2)} of credit, {usd(found.project.held_nano)} held")
    usage = table("usage from", ">time", ">GPUs", ">rate/h", ">amount", "workload")
    for row in found.usage:
        usage.add_row(
            _clock(row.start_ms),
            duration(row.end_ms - row.start_ms),
            f"{row.gpu_milli / MILLI:g}",
            usd(row.rate_nano),
            usd(row.amount_nano, 6),
            row.workload_id,
        )
    entries = table("entry", "kind", "account", ">amount", "for")
    for entry in found.entries:
        entries.add_row(_clock(entry.at_ms), entry.kind, entry.account.replace(f"/{found.project.id}", ""), usd(entry.amount_nano, 6), entry.memo)
    out.print(usage)
    out.print(entries)
    _show_invoice(found.invoice)


def _show_invoice(invoice: Invoice) -> None:
    shown = table(f"invoice {invoice.month}", ">usage", ">credited", ">amount")
    for line in invoice.lines:
        shown.add_row(line.memo, usd(line.usage_nano, 6), usd(line.refund_nano, 6), usd(line.amount_nano, 6))
    shown.add_row("[bold]total[/]", usd(invoice.usage_nano, 6), usd(invoice.refund_nano, 6), f"[bold]{usd(invoice.total_nano, 6)}[/]")
    out.print(shown)


def _clock(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
