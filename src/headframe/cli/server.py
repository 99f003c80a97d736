"""up, login, doctor."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from headframe.cli.jobs import Json
from headframe.cli.session import DEFAULT_URL, FAILED, Login, client, config_path, err, keep_login, login, out, refusals, show, table
from headframe.client import Client

DataOption = Annotated[Path | None, typer.Option("--data", help="Where the server keeps everything.", envvar="HEADFRAME_DATA")]


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(up)
    app.command("login")(sign_in)
    app.command()(doctor)


def default_data() -> Path:
    """Below `$XDG_DATA_HOME`."""
    return Path(os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local" / "share"))) / "headframe"


def up(
    *, data: DataOption = None, host: Annotated[str, typer.Option(help="Address to bind; other than loopback needs TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7070,
    database: Annotated[str, typer.Option(envvar="HEADFRAME_DATABASE", help="postgresql+psycopg://… for several servers; else an embedded SQLite.")] = "",
    tls_cert: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    tls_self_signed: Annotated[bool, typer.Option(help="Make a certificate.")] = False,
    watch_interval: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between two readings of the cards.")] = 10,
    kernel_log: Annotated[Path, typer.Option(help="Where the driver's Xids are read.")] = Path("/dev/kmsg"),
    check_new: Annotated[bool, typer.Option("--check-new/--no-check-new", help="On the first start: new cards are checked before they get work.")] = True,
    limits: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Your limits of the rules of health: lines of `rule = number` (TOML).")] = None,
    feeds: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Where prices, signals and coins' terms are fetched (YAML).")] = None,
    pepper: Annotated[Path | None, typer.Option(help="File with the secret that keys are hashed under; several servers and gateways share it.")] = None,
    gateway: Annotated[bool | None, typer.Option("--gateway/--no-gateway", help="Run a gateway for served models beside it; so it is unless several servers share a database.")] = None,
    gateway_port: Annotated[int, typer.Option(min=1, max=65535)] = 7071,
    gateway_url: Annotated[str, typer.Option(help="Where clients reach the gateways, such as https://ai.example.com.")] = "",
) -> None:  # fmt: skip
    """Serve this machine's hardware as a cloud: API, console, scheduler and local engine in one process."""
    from headframe.agent import asics
    from headframe.agent.handover import clean
    from headframe.agent.limits import limit
    from headframe.agent.miners import reading
    from headframe.agent.probe import probe
    from headframe.agent.watch import reports
    from headframe.server.main import Config, Hooks, Started, run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("alembic", "httpx", "uvicorn.access", "uvicorn.error"):  # the last would log what is asked of shells
        logging.getLogger(noisy).setLevel(logging.WARNING)
    config = Config(data=(data or default_data()).resolve(), host=host, port=port, database=database, tls_cert=tls_cert, tls_key=tls_key,
                    tls_self_signed=tls_self_signed, pepper=pepper, check_new=check_new, limits=limits, feeds=feeds, gateway=not database if gateway is None else gateway, gateway_port=gateway_port, gateway_url=gateway_url.rstrip("/"))  # fmt: skip

    def keep_key(text: str) -> None:
        keep_login(Login(url=config.url, key=text, ca=str(config.data / "tls-cert.pem") if tls_self_signed else ""))

    def started(what: Started) -> None:
        if what.operator_key:
            err.print(f"operator key, shown once: [bold]{what.operator_key}[/]\nkept for this user's CLI in {config_path()}")
        err.print(f"Headframe serves {what.node} at [bold]{what.url}[/] (Ctrl-C stops the server; work goes on)")

    with refusals():
        run(
            config,
            Hooks(
                probe=probe,
                keep_key=keep_key,
                started=started,
                reports=lambda: reports(watch_interval, kernel_log),
                clean=clean,
                asics=(asics.seen, asics.told, asics.limited) if asics.has_pyasic() else None,
                limit=limit,
                miner=reading,
            ),
        )


def sign_in(
    *, url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL, key: Annotated[str, typer.Option(prompt=True, hide_input=True)],
    ca: Annotated[str, typer.Option(help="Certificate to trust, for a self-signed server.")] = "", json: Json = False,
) -> None:  # fmt: skip
    """Remember a server and a key for this user."""
    with refusals(), Client(url, key, verify=ca or True) as cloud:
        who = cloud.whoami()
    keep_login(Login(url=url, key=key, ca=ca))
    show(who, json, lambda: out.print(f"signed in to {url} as {who.name} ({who.scope})"))


def doctor(*, data: DataOption = None, json: Json = False) -> None:
    """What works on this machine, what is limited, and how to mend it."""
    from headframe.agent.doctor import examine

    findings = examine((data or default_data()).resolve())
    kept = login()
    if kept.key:
        with client() as cloud:
            health = cloud.health()
            out.print(f"server {kept.url}: {health.status}, version {health.version}", markup=False) if not json else None

    def people() -> None:
        shown = table("", "what", "finding", "what to do")
        for finding in findings:
            mark = {"good": "[green]ok[/]", "limited": "[yellow]limited[/]", "bad": "[red]bad[/]"}[finding.verdict]
            shown.add_row(mark, finding.what, finding.finding, finding.mend)
        out.print(shown)

    show(findings, json, people)
    if any(finding.verdict == "bad" for finding in findings):
        raise SystemExit(FAILED)
