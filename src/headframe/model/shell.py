"""A command beside running work: what is asked for, and what is said to it beside data."""

import msgspec


class ShellAsk(msgspec.Struct, frozen=True, kw_only=True):
    """What to run beside the work (nothing: a login shell), and the terminal's size (no rows: no terminal)."""

    argv: tuple[str, ...] = ()
    rows: int = 0
    columns: int = 0
    term: str = "xterm-256color"


class Control(msgspec.Struct, frozen=True, omit_defaults=True):
    """What whoever asked says beside data: the terminal's new size, a signal for what runs, or that nothing more comes."""

    resize: tuple[int, int] | None = None
    signal: int = 0
    shut: bool = False


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is said beside data the other way: that it was refused, and what would help; or at the end how it ended (128 and more for a signal)."""

    error: str = ""
    next: str = ""
    code: int | None = None
