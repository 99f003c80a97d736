"""power, dispatch, mining: what the site's watts are spent on, what is asked of them, and what idle cards do."""

import csv
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from headframe.cli.jobs import Json
from headframe.cli.session import client, err, fail, out, refusals, seconds, show, table, time_ms, watts
from headframe.client.flight_sheet import filler_files
from headframe.dispatch.mining import usd_per_hash_day
from headframe.model.errors import BadRequest
from headframe.model.power import ADAPTERS, Asic, Coin, SignalKind
from headframe.model.power_api import CoinBody, Explanation, FillerView, MarketBody, PowerView, SignalBody
from headframe.model.units import MS_PER_HOUR, clock, duration, hashes, parse_hashes, usd

power_app = typer.Typer(invoke_without_command=True, help="What the site's watts are spent on, now and for the next day.")
dispatch_app = typer.Typer(no_args_is_help=True, help="Why a card mines, runs or sleeps.")
mining_app = typer.Typer(no_args_is_help=True, help="What cards do while nobody rents them: coins, fillers, mining machines.")
Site = Annotated[str, typer.Option("--site", help="A site, by name; the only one without it.")]
CHUNK = 24 * 365
SHOWN_HOURS = 24
"""More are planned, and `--json` has them."""


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(profit)
    app.add_typer(power_app, name="power")
    app.add_typer(dispatch_app, name="dispatch")
    app.add_typer(mining_app, name="mining")


@power_app.callback()
def power(context: typer.Context, site: Site = "", *, json: Json = False) -> None:
    """Price, limit, what runs where in kW and US$ an hour, and what is shed next."""
    if context.invoked_subcommand:
        return
    with client() as cloud:
        found = cloud.power(site)
    show(found, json, lambda: _show_power(found))


def profit(
    *, by: Annotated[str, typer.Option(help="gpu | node | rack | model | owner | site")] = "model", days: Annotated[int, typer.Option(min=1, max=400)] = 7,
    month: Annotated[str, typer.Option(help="Of a month instead, such as 2026-11.")] = "", fee: Annotated[float, typer.Option(min=0, max=100, help="By owner: per cent of what is left that the operator keeps.")] = 0.0,
    json: Json = False,
) -> None:  # fmt: skip
    """What cards brought and cost: sold, mined, energy, and what is left for each kWh; by owner it is a payout statement."""
    if by not in {"gpu", "node", "rack", "model", "owner", "site"}:
        fail(f"profits are not told by {by!r}", "by gpu, node, rack, model, owner or site", 2)
    with client() as cloud:
        found = cloud.profits(by, days, month)

    def people() -> None:
        payout = by == "owner"
        shown = table(by, ">kWh", ">energy", ">sold", ">mined", ">left", ">US¢/kWh", ">measured", *([">paid out"] if payout else []))
        for row in found.items:
            per_kwh = f"{row.net_nano / 1e7 / row.kwh:+.2f}" if row.kwh else "–"
            due = [usd(round(max(0, row.net_nano) * (1 - fee / 100)), 2) if row.name != "the operator" else "–"] if payout else []
            shown.add_row(
                row.name,
                f"{row.kwh:.2f}",
                usd(row.energy_nano),
                usd(row.sold_nano),
                usd(row.mined_nano),
                usd(row.net_nano),
                per_kwh,
                f"{row.measured:.0%}",
                *due,
            )
        out.print(shown if found.items else "nothing is added up yet: an hour is, a quarter of an hour after its end")

    show(found, json, people)


@power_app.command("prices")
def prices(
    market: str, file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV: a column `utc` of hours, and one of prices.")], *,
    column: Annotated[str, typer.Option(help="The prices' column; the second without it.")] = "",
    factor: Annotated[float, typer.Option(help="US$/MWh for one of the file's units, such as 1.08 for EUR/MWh.")] = 1.0, json: Json = False,
) -> None:  # fmt: skip
    """Tell a market's day-ahead prices, which a tariff names."""
    with refusals():
        rows = _prices(file, column, factor)
    parts = [tuple(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
    with client() as cloud:
        told = [cloud.tell_market(MarketBody(market=market, prices=part, source=file.name)) for part in parts][-1]
    known = f", until {clock(told.until_ms)}" if told.days else ""
    show(told, json, lambda: out.print(f"{market}: {len(rows)} hours read; {told.days} days from today on are known{known}"))


@power_app.command("signal")
def signal(
    kind: Annotated[SignalKind, typer.Argument(help="limit: watts at the meter; price: US$/MWh; level: 0 (as usual) to 3 (all that can go).")],
    value: Annotated[str, typer.Argument(help="Such as 800kW, 120 or 2.")], *,
    length: Annotated[str, typer.Option("--for", help="Such as 3h.")] = "1h", start: Annotated[str, typer.Option("--from", help="Such as 2026-12-01T18:00 (UTC), or `now`.")] = "now",
    source: Annotated[str, typer.Option(help="Who asks.")] = "operator", event: Annotated[str, typer.Option(help="The source's own name for it; the same again changes nothing.")] = "",
    why: Annotated[str, typer.Option()] = "", site: Site = "", json: Json = False,
) -> None:  # fmt: skip
    """Ask the site to draw less, to count with another price, or to keep to a level."""
    said = float(watts(value) or 0) if kind is SignalKind.LIMIT else _number(value)
    name = event or f"{kind}-{secrets.token_hex(4)}"
    body = SignalBody(site=site, source=source, event=name, kind=kind, value=said, start_ms=time_ms(start), length_s=seconds(length), why=why)
    with client() as cloud:
        made = cloud.signal(body)
    show(made, json, lambda: out.print(f"{made.event}: {made.kind} {made.value:g} from {clock(made.start_ms)} to {clock(made.end_ms)}", markup=False))


@power_app.command("cancel")
def cancel(event: str, *, source: Annotated[str, typer.Option(help="Who asked.")] = "operator", site: Site = "", json: Json = False) -> None:
    """A signal no longer holds."""
    with client() as cloud:
        row = next((row for row in cloud.signals().items if row.event == event and row.source == source), None)
        if row is None:
            fail(f"{source} asked for nothing named {event!r}", "see what is in force: `headframe power signals`", 3)
        body = SignalBody(
            site=site,
            source=source,
            event=event,
            version=row.version + 1,
            kind=row.kind,
            value=row.value,
            start_ms=row.start_ms,
            end_ms=row.end_ms,
            cancelled=True,
        )
        made = cloud.signal(body)
    show(made, json, lambda: out.print(f"{event} is cancelled", markup=False))


@power_app.command("signals")
def signals(*, json: Json = False) -> None:
    """What is asked of the site, now or later."""
    with client() as cloud:
        found = cloud.signals()

    def people() -> None:
        shown = table("source", "event", "asks", "from", "to", "why")
        for row in found.items:
            shown.add_row(
                row.source,
                row.event,
                ("cancelled: " if row.cancelled else "") + f"{row.kind} {row.value:g}",
                clock(row.start_ms),
                clock(row.end_ms),
                row.why,
            )
        out.print(shown)

    show(found, json, people)


@power_app.command("feeds")
def feeds(*, json: Json = False) -> None:
    """Where the server fetches prices, signals and coins' terms, and how that fares."""
    with client() as cloud:
        found = cloud.feeds()

    def people() -> None:
        shown = table("feed", "form", "where", ">every", "heard", "why not")
        for row in found.items:
            shown.add_row(row.name, row.form, row.url, duration(row.every_s * 1000), clock(row.good_ms) if row.good_ms else "never", row.why)
        out.print(shown if found.items else "no feeds: give the server a file of them: `headframe up --feeds feeds.yaml`")

    show(found, json, people)


@dispatch_app.command("explain")
def explain(subject: Annotated[str, typer.Argument(help="A card's UUID, a rack or a site.")], *, json: Json = False) -> None:
    """Why it does what it does now, in US$ an hour for each alternative."""
    with client() as cloud:
        found = cloud.explain_dispatch(subject)
    show(found, json, lambda: _show_explanation(found))


@mining_app.command("set")
def set_filler(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A filler's file (YAML).")], *, json: Json = False) -> None:
    """What idle cards may do: mine a coin, or work of your own that is worth something."""
    with client() as cloud:
        made = cloud.set_filler(file.read_text("utf-8", "replace"))
    show(made, json, lambda: _show_fillers((made,)))


@mining_app.command("ls")
def fillers(*, json: Json = False) -> None:
    """Fillers, what they bring now, and at which power price they stop paying."""
    with client() as cloud:
        found = cloud.fillers()
    show(found, json, lambda: _show_fillers(found.items))


@mining_app.command("stats")
def stats(
    adapter: Annotated[str, typer.Argument(help=f"One of {', '.join(ADAPTERS[1:])}.")], *, port: Annotated[int, typer.Option(min=0, max=65_535, help="Of this machine; the miner's usual one without it.")] = 0,
    script: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="With hiveos: the `h-stats.sh` to run.")] = None, json: Json = False,
) -> None:  # fmt: skip
    """What a miner on this machine says of itself."""
    from headframe.agent import miners
    from headframe.model.agent import Miner

    if adapter not in miners.ADAPTERS:
        fail(f"no adapter {adapter!r}", f"one of {', '.join(sorted(miners.ADAPTERS))}", 2)
    try:
        found = miners.reading(Miner(adapter, port, str(script.absolute()) if script and adapter == "hiveos" else ""))
    except miners.Unread as error:
        fail(str(error), "is it running, with its API on, on loopback?", 1)
    show(
        found,
        json,
        lambda: out.print(
            f"{hashes(found.hashes_s)}, {f'{found.watts:.0f} W' if found.watts else 'watts not told'}, {found.accepted} shares accepted, {found.rejected} rejected, up {found.uptime_s} s, {found.algorithm}",
            markup=False,
        ),
    )


@mining_app.command("rm")
def remove_filler(name: str, *, json: Json = False) -> None:
    """No card does this any more."""
    with client() as cloud:
        gone = cloud.remove_filler(name)
    show(gone, json, lambda: out.print(f"{name} is removed; what runs of it ends"))


@mining_app.command("coin")
def coin(
    name: Annotated[str, typer.Argument(help="Such as RVN.")], *, price: Annotated[float, typer.Option(help="US$ for one.")],
    network: Annotated[str, typer.Option(help="The network's hashrate, such as 5.2TH.")], block: Annotated[str, typer.Option(help="Seconds between blocks, such as 60s.")],
    reward: Annotated[float, typer.Option(help="Coins for a block, with fees.")], algorithm: Annotated[str, typer.Option()] = "",
    sure: Annotated[bool, typer.Option("--sure", help="Believe a jump of more than ten times.")] = False, json: Json = False,
) -> None:  # fmt: skip
    """Say what a coin pays."""
    try:
        network_hs, block_s = parse_hashes(network), float(block.removesuffix("s"))
    except ValueError as error:
        fail(str(error), "write --network 5.2TH --block 60s", 2)
    with client() as cloud:
        made = cloud.tell_coin(
            name, CoinBody(algorithm=algorithm, price_usd=price, network_hs=network_hs, block_s=block_s, reward=reward, source="operator", sure=sure)
        )
    show(made, json, lambda: _show_coins((made,)))


@mining_app.command("coins")
def coins(*, json: Json = False) -> None:
    """Coins and what a hash earns."""
    with client() as cloud:
        found = cloud.coins()
    show(found, json, lambda: _show_coins(found.items))


@mining_app.command("import")
def import_sheet(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A flight sheet exported from HiveOS (JSON).")], *,
    wallets: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="The farm's wallets, as its API lists them (JSON): for their addresses.")] = None,
    to: Annotated[Path, typer.Option(file_okay=False, help="Where the files are written.")] = Path(),
) -> None:  # fmt: skip
    """Turn a HiveOS flight sheet into filler files to look over, complete and `headframe mining set`."""
    with refusals():
        made = filler_files(file.read_text("utf-8", "replace"), wallets.read_text("utf-8", "replace") if wallets else "")
    to.mkdir(parents=True, exist_ok=True)
    for name in made:
        path = to / f"{name}.yaml"
        if path.exists():
            fail(f"{path} is there already", "move it away, or name another folder: --to", 2)
    for name, text in made.items():
        (to / f"{name}.yaml").write_text(text)
        out.print(f"{to / f'{name}.yaml'}: complete what is marked, then `headframe mining set` it", markup=False)


@mining_app.command("asics")
def asics(
    *, scan: Annotated[str, typer.Option(help="Find machines of a network, such as 10.0.8.0/24 (with pyasic).")] = "",
    remove: Annotated[str, typer.Option(help="Look after this one no longer.")] = "", json: Json = False,
) -> None:  # fmt: skip
    """Mining machines: what they are, what they do."""
    with client() as cloud:
        if scan:
            from headframe.agent import asics as machines

            with refusals(), err.status(f"looking for mining machines in {scan}"):
                found = machines.scanned(scan)
            err.print(f"{len(found)} found in {scan}")
            listed = cloud.tell_asics(found) if found else cloud.asics()
        else:
            listed = cloud.remove_asic(remove) if remove else cloud.asics()
    show(listed, json, lambda: _show_asics(listed.items))


@mining_app.command("limit")
def limit(
    machine: Annotated[str, typer.Argument(help="A mining machine, by name or id.")], power: Annotated[str, typer.Argument(help="Such as 2.8kW, or `usual`.")], *, json: Json = False,
) -> None:  # fmt: skip
    """A mining machine is to draw less, where its firmware can; `usual` as it did before."""
    with client() as cloud:
        listed = cloud.limit_asic(machine, 0.0 if power == "usual" else float(watts(power) or 0))
    show(listed, json, lambda: _show_asics(listed.items))


def _show_power(found: PowerView) -> None:
    limit = f" of {found.limit_w / 1000:g} kW" if found.limit_w else ""
    price = f"{found.usd_kwh * 100:.2f} US¢/kWh" if found.usd_kwh is not None else "price not known (headframe site set --tariff)"
    out.print(
        f"[bold]{found.site}[/]: {found.meter_w / 1000:.2f} kW{limit} at the meter, {price}, US$ {found.net_usd_h:+.3f} an hour"
        + (f"; {found.measured:.0%} measured" if found.uses else "")
    )
    uses = table("use", ">kW", ">earns US$/h", ">power US$/h", ">net US$/h")
    for use in found.uses:
        uses.add_row(
            use.what, f"{use.watts / 1000:.2f}", f"{use.earns_usd_h:.4f}", f"{use.power_usd_h:.4f}", f"{use.earns_usd_h - use.power_usd_h:+.4f}"
        )
    out.print(uses)
    for row in found.signals:
        out.print(
            f"[yellow]{row.source}[/]: {row.kind} {row.value:g} from {clock(row.start_ms)} to {clock(row.end_ms)}{' (cancelled)' if row.cancelled else ''} {row.why}"
        )
    for row in found.postures:
        out.print(f"{row.model}: {row.filler or 'sleeps'} where idle{f', on up to {row.most}' if row.filler else ''}; {row.why}", markup=False)
    steps = table("shed next", ">loads", ">kW", ">US$/h", ">gone in", ">back in")
    for step in found.ladder:
        steps.add_row(step.rung, str(step.loads), f"{step.watts / 1000:.2f}", f"{step.usd_h:.4f}", f"{step.seconds} s", f"{step.back_seconds} s")
    out.print(steps)
    if found.hours:
        hours = table("hour (UTC)", ">US¢/kWh", ">limit kW", ">drawn kW", "by use")
        for hour in found.hours[:SHOWN_HOURS]:
            by_use = ", ".join(f"{what} {w / 1000:.2f}" for what, w in hour.by_use_w.items() if w >= 5)
            hours.add_row(
                clock(hour.start_ms)[11:16],
                f"{hour.usd_kwh * 100:.2f}",
                f"{hour.limit_w / 1000:g}" if hour.limit_w else "–",
                f"{hour.meter_w / 1000:.2f}",
                by_use,
            )
        out.print(hours)


def _show_explanation(found: Explanation) -> None:
    out.print(f"[bold]{found.subject}[/] {found.does}" + (f": {found.why}" if found.why else ""))
    if found.usd_kwh is not None:
        out.print(f"power costs {found.usd_kwh * 100:.2f} US¢/kWh", style="dim")
    shown = table("", "alternative", ">earns US$/h", ">power US$/h", ">net US$/h", "")
    for row in found.alternatives:
        shown.add_row(
            "[green]●[/]" if row.now else "", row.what, f"{row.earns_usd_h:.4f}", f"{row.power_usd_h:.4f}", f"{row.net_usd_h:+.4f}", row.note
        )
    out.print(shown)
    for limit in found.limits:
        out.print(limit, markup=False)


def _show_fillers(rows: Sequence[FillerView]) -> None:
    shown = table("filler", "does", ">cards", ">US$/h", ">W", ">hashes told", ">promised", "pays below", "why")
    for row in rows:
        does = f"mines {row.filler.coin}" if row.filler.coin else f"own work, US$ {row.filler.usd_gpu_h:g}/card-h"
        even = ", ".join(f"{model} {price * 100:.1f} US¢/kWh" for model, price in row.break_even_usd_kwh.items())
        shown.add_row(
            row.filler.name,
            does,
            str(row.cards),
            f"{row.usd_h:.4f}",
            f"{row.watts:.0f}",
            hashes(row.read) if row.read else "–",
            hashes(row.promised) if row.promised else "–",
            even,
            row.why,
        )
    out.print(shown)


def _show_coins(rows: Sequence[Coin]) -> None:
    shown = table("coin", "algorithm", ">US$", ">network", ">block s", ">reward", ">US$/day for 1 GH/s", "told")
    for row in rows:
        day = usd_per_hash_day(row) * 1e9
        shown.add_row(
            row.id, row.algorithm, f"{row.price_usd:g}", hashes(row.network_hs), f"{row.block_s:g}", f"{row.reward:g}", f"{day:.6g}", clock(row.at_ms)
        )
    out.print(shown)


def _show_asics(rows: Sequence[Asic]) -> None:
    shown = table("machine", "address", "model", ">hashrate", ">W", ">limit W", "state", "wanted", "can", "why")
    for row in rows:
        can = ", ".join(what for what, able in (("stop", row.can_stop), ("limit", row.can_limit)) if able) or "nothing"
        shown.add_row(
            row.name,
            row.ip,
            row.model,
            hashes(row.hashes_s),
            f"{row.watts:.0f}",
            f"{row.wanted_w or row.limit_w:.0f}" if row.wanted_w or row.limit_w else "–",
            row.state,
            row.wanted,
            can,
            row.why,
        )
    out.print(shown)


def _prices(file: Path, column: str, factor: float) -> list[tuple[int, float]]:
    """(hour's start, US$/MWh); BadRequest with the line that can't be read. Hours without a price are left out."""
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        reader = csv.DictReader(lines)
        names = reader.fieldnames or []
        if "utc" not in names or len(names) < 2 or (column and column not in names):
            raise BadRequest(f"{file}: its columns are {', '.join(names)[:200]}", f"it needs `utc` and {column or 'a column of prices'}")
        wanted = column or next(name for name in names if name != "utc")
        found: list[tuple[int, float]] = []
        for number, row in enumerate(reader, start=2):
            if not (row[wanted] or "").strip():
                continue
            try:
                at_ms = int(datetime.fromisoformat(row["utc"].replace("Z", "+00:00")).replace(tzinfo=UTC).timestamp() * 1000)
                found.append((at_ms // MS_PER_HOUR * MS_PER_HOUR, float(row[wanted]) * factor))
            except ValueError as error:
                raise BadRequest(f"{file}, line {number}: {error}", "an hour as 2026-11-27T14:00Z, and a number") from error
    if not found:
        raise BadRequest(f"{file} has no prices", "one line for each hour: utc,price")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        fail(f"{text!r} is no number", "such as 120 for a price or 2 for a level", 2)
