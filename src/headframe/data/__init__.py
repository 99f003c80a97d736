"""Facts that ship with Headframe, as text; who wrote them down and from where is told in README.md beside them."""

from functools import cache
from importlib.resources import files


@cache
def text(name: str) -> str:
    """The whole of the file `name`."""
    return (files(__name__) / name).read_text(encoding="utf-8")
