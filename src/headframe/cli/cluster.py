"""cluster: a new Slurm cluster on this machine, its controller, and how machines join and leave it."""

import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Annotated

import typer

from headframe.cli.jobs import Json
from headframe.cli.session import err, fail, out, show
from headframe.engines.slurm.cluster import (
    CGROUP,
    CGROUP_CONF,
    CONF,
    CONTAINER,
    CONTAINER_CONF,
    EPILOG,
    EPILOG_TEXT,
    JOIN,
    JWT,
    MUNGE,
    REST_SOCKET,
    NewCluster,
    join_script,
    rest_unit,
    slurm_conf,
)
from headframe.files import write_private

cluster_app = typer.Typer(no_args_is_help=True, help="A new Slurm cluster: its controller here, its machines by one command each.")
PROGRAMS = {"slurmctld": "slurmctld", "slurmrestd": "slurmrestd", "munged": "munge", "scontrol": "slurm-client"}
JWT_PLUGIN = "slurm-wlm-jwt-plugin"
UNITS = "/etc/systemd/system"
START_S = 60.0
"""A controller that has not come up by then does not by itself."""


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.add_typer(cluster_app, name="cluster")


@cluster_app.command("init")
def init(
    *, name: Annotated[str, typer.Option(help="The cluster's name.")] = "headframe",
    address: Annotated[str, typer.Option(help="Where its machines reach this one; its own name, if they can resolve that.")] = "",
    nodes_max: Annotated[int, typer.Option(min=1, max=65_000, help="How many machines may join.")] = 1024,
    prefix: Annotated[Path | None, typer.Option(help="Put everything below this directory, start nothing: to look at it, or to try it without root (nothing is isolated then).", file_okay=False)] = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The controller's.")] = 6817, node_port: Annotated[int, typer.Option(min=1, max=65_535, help="The machines'.")] = 6818,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a slurm.conf that is there; its machines have to join again.")] = False, json: Json = False,
) -> None:  # fmt: skip
    """Make this machine the controller of a new Slurm cluster: configuration, keys, units; then one command for each machine."""
    new = _wanted(name, address, nodes_max, prefix, port, node_port)
    _ready(new, replace=replace)
    try:
        keys = _written(new)
        if not new.prefix:
            _started()
    except OSError as error:
        fail(f"{error.filename or 'a file'} can't be written: {error.strerror}", "run it as root, or give --prefix", 1)
    join = new.path(JOIN)
    each = f"sh {join} --name NODE" if new.prefix else f"ssh root@NODE sh -s < {join}"
    show({"controller": new.address, "files": keys, "join": each}, json, lambda: _told(new, keys, each))


def _wanted(name: str, address: str, nodes_max: int, prefix: Path | None, port: int, node_port: int) -> NewCluster:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        fail(f"--name {name!r}", "a lower-case letter, then letters, digits and dashes, at most 31", 2)
    host = socket.gethostname().partition(".")[0]
    address = address or host
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}", address):
        fail(f"--address {address!r}", "a host name or an address", 2)
    account = pwd.getpwuid(os.geteuid()).pw_name if prefix else "slurm"
    return NewCluster(
        name=name,
        host=host,
        address=address,
        account=account,
        nodes_max=nodes_max,
        prefix=str(prefix.absolute()) if prefix else "",
        port=port,
        node_port=node_port,
    )


def _ready(new: NewCluster, *, replace: bool) -> None:
    """Everything that could stop it halfway, first."""
    if Path(new.path(CONF)).exists() and not replace:
        fail(
            f"{new.path(CONF)} is there already: this machine belongs to a cluster",
            "use it (`headframe engine add slurm --local`), or --replace it",
            1,
        )
    if new.prefix:
        return
    if os.geteuid() != 0:
        fail("it writes /etc/slurm and starts services", "run it as root, or give --prefix to look at what it would write", 1)
    gone = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if not any(
        folder.exists()
        for pattern in ("*/slurm-wlm", "*/slurm", "slurm")
        for folder in (each / "auth_jwt.so" for each in Path("/usr/lib").glob(pattern))
    ):
        gone.append(JWT_PLUGIN)
    if gone:
        fail(f"not installed: {', '.join(gone)}", f"apt install {' '.join(gone)}", 1)


def _written(new: NewCluster) -> list[str]:
    """Each file whole or not at all, secrets readable by their own account only. A munge key that is there stays: machines may have it already."""
    for folder, mode in (
        ("/etc/slurm", 0o755),
        ("/etc/munge", 0o700),
        ("/var/lib/slurm/slurmctld", 0o700),
        ("/var/log/slurm", 0o755),
        ("/run", 0o755),
    ):
        Path(new.path(folder)).mkdir(parents=True, exist_ok=True, mode=mode)
    if not new.prefix:
        for folder in ("/var/lib/slurm", "/var/lib/slurm/slurmctld", "/var/log/slurm"):
            shutil.chown(folder, new.account, new.account)
    munge = Path(new.path(MUNGE))
    key = munge.read_bytes() if munge.exists() else secrets.token_bytes(128)
    files: list[tuple[str, bytes, int, str]] = [
        (MUNGE, key, 0o400, "munge"), (JWT, secrets.token_bytes(32), 0o600, new.account), (CONF, slurm_conf(new).encode(), 0o644, ""),
        (JOIN, join_script(new, key).encode(), 0o600, ""), (EPILOG, EPILOG_TEXT.encode(), 0o755, ""),
    ]  # fmt: skip
    if not new.prefix:
        files += [
            (CGROUP, CGROUP_CONF.encode(), 0o644, ""),
            (CONTAINER, CONTAINER_CONF.encode(), 0o644, ""),
        ]
    for each in files:
        _put(new, *each)
    if not new.prefix:  # slurmrestd says what it can only where slurm.conf is, and later ones only where munge answers, with the key that it has now
        _done("systemctl", "restart", "munge")
        files.append((f"{UNITS}/slurmrestd.service.d/headframe.conf", rest_unit(_listed()).encode(), 0o644, ""))
        _put(new, *files[-1])
    return [new.path(name) for name, *_ in files]


def _put(new: NewCluster, name: str, content: bytes, mode: int, owner: str) -> None:
    path = Path(new.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, content)
    path.chmod(mode)
    if owner and not new.prefix:
        shutil.chown(path, owner, owner)


def _listed() -> str:
    """What slurmrestd can speak; it says so to nobody who is root."""
    done = subprocess.run(["slurmrestd", "-s", "list"], capture_output=True, text=True, check=False, user="nobody", group="nogroup", extra_groups=[])
    return done.stdout + done.stderr


def _done(*command: str) -> None:
    with err.status(" ".join(command)):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"{' '.join(command)}: {done.stderr.strip()[:300]}", "`journalctl -xe` says why; `--replace` tries again", 1)


def _started() -> None:
    _done("systemctl", "daemon-reload")
    _done("systemctl", "enable", "--quiet", "munge", "slurmctld", "slurmrestd")
    _done("systemctl", "restart", "slurmctld", "slurmrestd")
    with err.status("waiting for Slurm's controller"):
        for unit, up in (("slurmctld", _answers), ("slurmrestd", Path(REST_SOCKET).exists)):
            until = time.monotonic() + START_S
            while not up():
                if time.monotonic() > until:
                    fail(f"{unit} does not come up", f"`journalctl -u {unit}` says why; everything is written, so `--replace` tries again", 1)
                time.sleep(0.5)


def _answers() -> bool:
    return " is UP" in subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False).stdout


def _told(new: NewCluster, files: list[str], each: str) -> None:
    for path in files:
        out.print(f"written: {path}", style="dim", markup=False)
    out.print(f"\non each machine (again whenever its cards change; [b]--rack B2[/] says where it stands):\n  [b]{each}[/]")
    where = f"--url unix:{new.path(REST_SOCKET)} --key-file {new.path(JWT)}" if new.prefix else "--local"
    out.print(f"then, with a directory that all of them see under the same path:\n  [b]headframe engine add slurm {where} --shared /srv/headframe[/]")
    out.print("a machine leaves with:\n  [b]scontrol delete NodeName=NODE[/]")
