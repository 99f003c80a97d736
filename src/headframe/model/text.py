"""Text that others wrote, made safe to show: no escape sequences, no control characters, no direction tricks."""

import re

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_]|.)?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """What a terminal or a page may show of `text`: tabs stay; of a line redrawn by carriage returns, the last state."""
    shown = _ESCAPES.sub("", text).rstrip("\r").rsplit("\r", 1)[-1]
    return _CONTROL.sub("", shown)
