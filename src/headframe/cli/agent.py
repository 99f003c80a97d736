"""agent join, agent run: what runs on a machine that is one of another server's."""

import asyncio
import logging
import pwd
import signal
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from headframe.cli.session import err, fail, refusals
from headframe.files import alone

agent_app = typer.Typer(no_args_is_help=True, help="This machine as one of a fleet: it dials out, no port is opened on it.")
DataOption = Annotated[Path | None, typer.Option("--data", help="Where this machine keeps its key and its work.", envvar="HEADFRAME_AGENT_DATA")]
Interval = Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between two readings of the cards.")]
KernelLog = Annotated[Path, typer.Option(help="Where the driver's Xids are read.")]


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.add_typer(agent_app, name="agent")


@agent_app.command("join")
def join(
    url: Annotated[str, typer.Argument(help="The server.")], token: Annotated[str, typer.Argument(help="What `headframe node add` printed.")], *,
    pin: Annotated[str, typer.Option(help="SHA-256 of the server's own certificate.")] = "", data: DataOption = None,
    name: Annotated[str, typer.Option(help="What it is to be called; else its host name.")] = "",
    new_identity: Annotated[bool, typer.Option("--new-identity", help="For a copied disk: be another machine than the original.")] = False,
    run_now: Annotated[bool, typer.Option("--run/--no-run", help="Go on as the agent, or leave that to a service.")] = True,
    watch_interval: Interval = 10, kernel_log: KernelLog = Path("/dev/kmsg"),
) -> None:  # fmt: skip
    """Make this machine one of a server's fleet, and run its agent."""
    from headframe.agent.seat import take

    at = _data(data)
    with refusals(), _alone(at):
        seat = take(url, token, at, name=name, pin=pin, new_identity=new_identity)
        err.print(f"joined {seat.url} as [bold]{seat.name}[/]" + ("" if run_now else "; `headframe agent run` is its agent"))
        if run_now:
            _serve(at, watch_interval, kernel_log)


@agent_app.command("run")
def run(*, data: DataOption = None, watch_interval: Interval = 10, kernel_log: KernelLog = Path("/dev/kmsg")) -> None:
    """The agent of a machine that has joined."""
    with refusals(), _alone(_data(data)):
        _serve(_data(data), watch_interval, kernel_log)


@agent_app.command("clean")
def clean(cards: Annotated[list[str], typer.Argument(help="By UUID, or by number on this machine.")]) -> None:
    """Hand cards over, as between two holders: nobody is left on them, clocks are the maker's, memory is overwritten. Ends with 1, and the reasons, where that can't be: for Slurm's Epilog."""
    from headframe.agent import handover

    unclean = asyncio.run(handover.clean(cards))
    if unclean:
        fail("; ".join(f"card {name}: {why}" for name, why in unclean.items()), "mend it, then let it take work again", 1)


@agent_app.command("helper")
def helper(
    *, user: Annotated[str, typer.Option(help="Who may ask: the user that the agent, or the server, runs as.")] = "headframe",
    path: Annotated[Path, typer.Option("--socket", help="Where it is asked.", envvar="HEADFRAME_HELPER")] = Path("/run/headframe/helper.sock"),
) -> None:  # fmt: skip
    """As root: set power limits and clocks of this machine's cards for the agent, within the cards' own bounds."""
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        fail(f"there is no user {user!r} on this machine", "give --user the one that `headframe agent run` or `headframe up` runs as", 2)
    try:
        asyncio.run(_help(path, uid))
    except (OSError, RuntimeError) as error:
        fail(f"the helper can't run: {error}", "run it as root, on a machine with cards and their driver", 1)


async def _help(path: Path, uid: int) -> None:
    from headframe.agent.helper import serve

    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    await serve(path, uid, lambda: err.print(f"asked at {path} (Ctrl-C sets power limits back and ends)"), over)


def _serve(data: Path, watch_interval: float, kernel_log: Path) -> None:
    from headframe.agent.probe import boot_id
    from headframe.agent.run import serve
    from headframe.agent.seat import kept
    from headframe.agent.watch import reports
    from headframe.model.errors import HeadframeError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    seat = kept(data)
    err.print(f"agent of {seat.name} for {seat.url} (Ctrl-C stops the agent; work goes on for ten minutes, or until it is back)")
    try:
        asyncio.run(serve(seat, data, boot_id(), lambda: reports(watch_interval, kernel_log)))
    except* HeadframeError as many:
        raise next(error for error in many.exceptions if isinstance(error, HeadframeError)) from None


def _data(data: Path | None) -> Path:
    from headframe.cli.server import default_data

    return (data or default_data().with_name("headframe-agent")).resolve()


def _alone(data: Path) -> AbstractContextManager[None]:
    """One agent for each directory: two would both keep its work."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    return alone(data / "agent.lock", f"another agent runs on {data}", "stop it first, or give this one its own --data")
