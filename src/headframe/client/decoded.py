"""Answers as what they are, and Ctrl-C heard meanwhile.

What msgspec has not met before it looks at first, and an exception that comes while it asks an enumeration for an attribute it takes for "there is none": a Ctrl-C in those
milliseconds, which follow the first answer, was forgotten.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def decoded(data: bytes | str, kind: type[T]) -> T:
    """JSON as one of `kind`. Raises msgspec.DecodeError where it is none."""
    return _decoder(kind).decode(data)


@cache
def _decoder(kind: type[Any]) -> msgspec.json.Decoder[Any]:
    with _heard_after():
        return msgspec.json.Decoder(kind)


@contextmanager
def _heard_after() -> Generator[None]:
    """Ctrl-C, and what is told to be the same, is heard when this is over."""
    usual, came = signal.getsignal(signal.SIGINT), list[FrameType | None]()
    if not callable(usual) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda _, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        usual(signal.SIGINT, came[0])
