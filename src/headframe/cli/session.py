"""Where the CLI finds its server and key, and how it answers: tables for people, JSON for programs, exit codes for scripts.

Exit codes: 0 done; 1 the workload failed; 2 wrong usage; 3 refused by the server; 4 no server; 5 not signed in; 130 interrupted.
"""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from rich.console import Console
from rich.table import Table

from headframe.client import ApiError, Client, Unreachable
from headframe.client.workdir import WorkdirTooLarge
from headframe.files import write_private
from headframe.model.errors import HeadframeError
from headframe.model.units import parse_duration_s

DEFAULT_URL = "http://127.0.0.1:7070"
FAILED, REFUSED, NO_SERVER, NO_KEY, INTERRUPTED = 1, 3, 4, 5, 130

WIDTH_PIPED = 160
out = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_PIPED)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDTH_PIPED)


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept in the config file, readable by its owner alone."""

    url: str = DEFAULT_URL
    key: str = ""
    ca: str = ""


def config_path() -> Path:
    """`$HEADFRAME_CONFIG`, else below `$XDG_CONFIG_HOME`."""
    named = os.environ.get("HEADFRAME_CONFIG")
    base = Path(os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config")))
    return Path(named) if named else base / "headframe" / "config.json"


def login() -> Login:
    """`$HEADFRAME_URL` and `$HEADFRAME_KEY` first, then the config file."""
    kept = Login()
    if config_path().exists():
        try:
            kept = msgspec.json.decode(config_path().read_bytes(), type=Login)
        except msgspec.DecodeError as error:
            fail(f"{config_path()} can't be read: {error}", "delete it and sign in again: `headframe login`", 2)
    return Login(
        url=os.environ.get("HEADFRAME_URL", kept.url), key=os.environ.get("HEADFRAME_KEY", kept.key), ca=os.environ.get("HEADFRAME_CA", kept.ca)
    )


def keep_login(kept: Login) -> None:
    """Write the config file, whole, with mode 0600."""
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(path, msgspec.json.format(msgspec.json.encode(kept)))


@contextmanager
def client() -> Generator[Client]:
    """The client for this login; refusals become a sentence and an exit code."""
    kept = login()
    if not kept.key:
        fail("there is no key to sign in with", "start a server with `headframe up`, or `headframe login --url … --key …`", NO_KEY)
    with refusals(), Client(kept.url, kept.key, verify=kept.ca or True) as made:
        yield made


@contextmanager
def refusals() -> Generator[None]:
    """No traceback for a mistake: what is wrong, and what to do next."""
    try:
        yield
    except ApiError as error:
        problem = error.problem
        if problem.mistakes:
            err.print("[red]The workload file has mistakes:[/]")
            for mistake in problem.mistakes:
                err.print(f"  {mistake}", markup=False)
        fail(problem.detail if not problem.mistakes else "", problem.next_step, NO_KEY if problem.status == 401 else REFUSED)
    except Unreachable as error:
        fail(str(error), "is it running? `headframe up` starts one; `headframe login --url` names another", NO_SERVER)
    except HeadframeError as error:
        fail(error.detail, error.next_step, REFUSED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read us has had enough, as `head` does
        raise SystemExit(0) from None
    except (WorkdirTooLarge, OSError) as error:
        fail(str(error), "", REFUSED)


def fail(detail: str, next_step: str = "", code: int = REFUSED) -> NoReturn:
    """One sentence on standard error, then leave."""
    if detail:
        err.print("error:", style="red", end=" ")
        err.print(detail, markup=False)
    if next_step:
        err.print(f"next: {next_step}", style="dim", markup=False)
    raise SystemExit(code)


def show(value: Any, as_json: bool, people: Callable[[], None]) -> None:  # noqa: FBT001
    """JSON for programs, else what `people` prints."""
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")
    else:
        people()


def table(*columns: str) -> Table:
    """A quiet table; a column whose name begins with `>` is right-aligned."""
    made = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return made


def seconds(text: str) -> int:
    """A duration as people write it; exit 2 where it is none."""
    try:
        return parse_duration_s(text)
    except ValueError as error:
        fail(str(error), "write it like 12h or 90d", 2)


def time_ms(text: str) -> int:
    """An instant as people write it, in UTC unless it says otherwise, in milliseconds; 0 for `now`; exit 2 where it is none."""
    if text == "now":
        return 0
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        fail(f"{text!r} is no time", "write it like 2026-12-01T08:00, in UTC unless it says otherwise", 2)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def watts(text: str) -> int | None:
    """A power as people write it, None where nothing is said; exit 2 where it is none."""
    if not text:
        return None
    number, factor = text.lower().removesuffix("w"), 1
    if number.endswith(("k", "m")):
        number, factor = number[:-1], 1000 if number.endswith("k") else 1_000_000
    try:
        return round(float(number) * factor)
    except (ValueError, OverflowError):
        fail(f"{text!r} is no power", "write it like 350W, 5kW or 1.2MW", 2)
