"""The `headframe` command: each verb a function; nouns with several verbs are groups."""

import os
import signal
import threading
import time
from types import FrameType

import typer

from headframe.cli import agent, check, cluster, engines, fleet, gateway, jobs, machines, money, operate, plan, power, server, shells, simulate

NUDGE, NUDGE_S = signal.SIGURG, 0.1  # it is ignored by default, so that no child that it might reach minds it

app = typer.Typer(
    name="headframe", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Turn the GPUs you own into an AI cloud.", context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
jobs.add(app)
shells.add(app)
fleet.add(app)
money.add(app)
machines.add(app)
operate.add(app)
engines.add(app)
cluster.add(app)
gateway.add(app)
server.add(app)
check.add(app)
agent.add(app)
simulate.add(app)
plan.add(app)
power.add(app)


def main() -> None:
    """The entry point; Ctrl-C anywhere is an exit code, not a traceback, and to be told to end is the same as Ctrl-C: what was begun is tidied up."""
    signal.signal(signal.SIGTERM, _end)
    never_unheard()
    try:
        app()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def never_unheard() -> None:
    """A signal that arrives just as a blocking call begins is noted, but its handler would run when that call is over, which may be never.

    So every signal is followed by another that interrupts such a call and does nothing else; until then Python has had the time to begin it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(NUDGE, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_nudged, args=(reader, threading.get_ident()), name="signals", daemon=True).start()


def _nudged(heard: int, main_thread: int) -> None:
    while number := os.read(heard, 1):
        if number[0] != NUDGE:
            time.sleep(NUDGE_S)
            signal.pthread_kill(main_thread, NUDGE)


def _end(_number: int, frame: FrameType | None) -> None:
    as_ctrl_c = signal.getsignal(signal.SIGINT)
    if not callable(as_ctrl_c):  # where a shell without job control started it Ctrl-C is ignored, this is not
        raise KeyboardInterrupt
    as_ctrl_c(signal.SIGINT, frame)
