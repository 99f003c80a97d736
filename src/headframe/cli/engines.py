"""engine: Slurm clusters that work runs on, looked at, added, compared with the ledger, removed."""

import getpass
import shutil
import subprocess
from typing import Annotated

import typer

from headframe.cli.jobs import Json
from headframe.cli.session import client, err, fail, out, show, table
from headframe.model.api import EngineBody, EngineFinding, EngineView, Reconciliation

engine_app = typer.Typer(no_args_is_help=True, help="Slurm clusters that work runs on.")
add_app = typer.Typer(no_args_is_help=True, help="Run work on another engine too.")
engine_app.add_typer(add_app, name="add")
MARKS = {"good": "[green]ok[/]", "limited": "[yellow]limited[/]", "bad": "[red]bad[/]"}


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.add_typer(engine_app, name="engine")


@add_app.command("slurm")
def engine_add_slurm(
    *, shared: Annotated[str, typer.Option(help="A directory that the server and all machines see under this path (NFS and the like).")],
    url: Annotated[str, typer.Option(help="slurmrestd: http://…, https://… or unix:/its.sock.")] = "",
    local: Annotated[bool, typer.Option("--local", help="This machine has Slurm's own commands: ask them for the key and the controller.")] = False,
    key_file: Annotated[str, typer.Option(help="The key that tokens are signed with, on the server's machine (slurm.conf: AuthAltParameters=jwt_key=…).")] = "",
    user: Annotated[str, typer.Option(help="The UNIX account that work runs as; else the server's own.")] = "",
    accounts: Annotated[str, typer.Option(help="Each project's own UNIX account, such as hf-{project}; the server has to be root.")] = "",
    partition: Annotated[str, typer.Option(help="Only this partition.")] = "",
    python: Annotated[str, typer.Option(help="Python 3 on its machines.")] = "/usr/bin/python3",
    check: Annotated[bool, typer.Option("--check", help="Only look.")] = False, json: Json = False,
) -> None:  # fmt: skip
    """Look at a Slurm cluster, say what limits it and how to mend that, and use it."""
    if local:
        url, key_file = url or f"unix:{_socket()}", key_file or _key()
    if not url or not key_file:
        fail(
            "where slurmrestd is and which key its tokens are signed with is not known",
            "give --url and --key-file, or --local on a machine with Slurm's commands",
            2,
        )
    body = EngineBody(url=url, key_file=key_file, shared=shared, user=user, partition=partition, python=python, accounts=accounts, check_only=True)
    with client() as cloud:
        with err.status("looking at the cluster; a small job tries the shared path"):
            looked = cloud.add_engine(body)
        if json:
            added = looked if check else cloud.add_engine(_add(body))
            show(added, as_json=True, people=lambda: None)
            return
        _findings(looked.findings)
        bad = [each for each in looked.findings if each.verdict == "bad"]
        if bad:
            fail("not added", bad[0].mend, 1)
        if check:
            return
        with err.status("adding it"):
            cloud.add_engine(_add(body))
    err.print("added: its machines appear in `headframe nodes` within seconds")


def _add(body: EngineBody) -> EngineBody:
    import msgspec

    return msgspec.structs.replace(body, check_only=False)


@engine_app.command("ls")
def engine_ls(*, json: Json = False) -> None:
    """Engines that were added, and whether they answer."""
    with client() as cloud:
        found = cloud.engines()
    show(found, json, lambda: _engines(found.items))


@engine_app.command("check")
def engine_check(name: Annotated[str, typer.Argument(help="Which.")] = "slurm", *, json: Json = False) -> None:
    """Look at an engine again: each verdict with what would mend it."""
    with client() as cloud, err.status("looking at the cluster"):
        found = cloud.check_engine(name)
    show(found, json, lambda: _findings(found.findings))


@engine_app.command("rm")
def engine_rm(name: Annotated[str, typer.Argument(help="Which.")] = "slurm", *, json: Json = False) -> None:
    """Use it no more; nothing may run there."""
    with client() as cloud:
        left = cloud.remove_engine(name)
    show(left, json, lambda: err.print(f"{name} is not used any more", markup=False))


@engine_app.command("reconcile")
def engine_reconcile(
    name: Annotated[str, typer.Argument(help="Which.")] = "slurm", *, hours: Annotated[int, typer.Option(min=1, max=2160, help="How far back.")] = 24, json: Json = False,
) -> None:  # fmt: skip
    """Compare the ledger with Slurm's own accounting: any difference in seconds or GPUs."""
    with client() as cloud:
        found = cloud.reconciliation(name, hours)
    show(found, json, lambda: _reconciled(found))
    if found.differences:
        raise SystemExit(1)


def _findings(findings: tuple[EngineFinding, ...]) -> None:
    shown = table("", "what", "finding", "what to do")
    for each in findings:
        shown.add_row(MARKS[each.verdict], each.what, each.finding, each.mend)
    out.print(shown)


def _engines(items: tuple[EngineView, ...]) -> None:
    shown = table("engine", "where", "shared path", "runs as", "answers", ">machines", ">ready")
    for row in items:
        setup = row.setup
        shown.add_row(setup.id, setup.url, setup.shared, setup.accounts or setup.user, "yes" if row.answers else "no", str(row.nodes), str(row.ready))
    out.print(shown)


def _reconciled(found: Reconciliation) -> None:
    out.print(
        f"{found.allocations} attempts in both: {found.ours_s:.1f} s in the ledger, {found.theirs_s:.0f} s in Slurm, which also counts preparation and clearing up"
    )
    if not found.differences:
        out.print("no difference beyond that")
        return
    shown = table("attempt", ">ledger s", ">Slurm s", ">ledger GPUs", ">Slurm GPUs", "difference")
    for row in found.differences:
        shown.add_row(
            row.allocation_id,
            *("–" if value is None else f"{value:g}" for value in (row.ours_s, row.theirs_s, row.ours_gpus, row.theirs_gpus)),
            row.why,
        )
    out.print(shown)


def _config() -> dict[str, str]:
    if shutil.which("scontrol") is None:
        fail("Slurm's commands are not on this machine", "apt install slurm-client, or give --url and --key-file", 1)
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        fail(f"scontrol does not answer: {(done.stderr or done.stdout).strip()[:300]}", "is slurmctld running?", 1)
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _key() -> str:
    told = _config().get("AuthAltParameters", "")
    found = next((each.split("=", 1)[1] for each in told.split(",") if each.startswith("jwt_key=")), "")
    return found or fail(
        "this cluster takes no tokens", "set AuthAltTypes=auth/jwt and AuthAltParameters=jwt_key=… in slurm.conf, and restart slurmctld", 1
    )


def _socket() -> str:
    for path in ("/run/slurmrestd/slurmrestd.socket", "/run/slurmrestd/slurmrestd.sock", "/var/run/slurmrestd.sock"):
        if subprocess.run(["test", "-S", path], check=False).returncode == 0:
            return path
    return fail(
        "no slurmrestd listens on this machine",
        f"systemctl enable --now slurmrestd, or as {getpass.getuser()}: slurmrestd -a rest_auth/jwt unix:/run/slurmrestd/slurmrestd.sock; or give --url", 1,
    )  # fmt: skip
