"""A head that came before, byte for byte but for the length of its body, means what it meant then: it is not parsed again.

A connection says the same lines over and over: its client's key, content type and agent, its server's name. What the parser made of the first one, and what was made of that
(the lines that go on), holds for all that follow; only a whole message that came in one piece is taken so, anything else goes to the parser.
"""

import re
from typing import Generic, TypeVar

_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d{1,8})\r\n", re.ASCII | re.IGNORECASE)
M = TypeVar("M")


class Known(Generic[M]):
    """A head as it looks around the length that it says, and what it means. Both are the parser's: it read this very head, as the whole of what came before a body."""

    __slots__ = ("_after", "_before", "_start", "meaning")

    def __init__(self, before: bytes, after: bytes, meaning: M) -> None:
        self._before, self._after, self.meaning = before, after, meaning
        self._start = len(before)

    def body(self, data: bytes) -> bytes | None:
        """The body, if this is one whole message with that head and nothing more."""
        if not data.startswith(self._before):
            return None
        end = data.find(b"\r", self._start)
        length = data[self._start : end]
        if not length.isdigit() or not data.startswith(self._after, end):
            return None
        start = end + len(self._after)
        return data[start:] if len(data) - start == int(length) else None


def known(data: bytes, body: bytes, meaning: M) -> Known[M] | None:
    """What to remember of a message, which came as `data` and which the parser took from its first to its last byte; None where its head can't be told from the rest with
    certainty: it is not followed by the body alone (a second message, chunks), its lines end in other ways, or no single line says the length.
    """
    end = len(data) - len(body)
    if not body or data.find(b"\r\n\r\n") + 4 != end or data.count(b"\n", 0, end) != data.count(b"\r\n", 0, end):
        return None
    found = list(_LENGTH.finditer(data, 0, end))
    if len(found) != 1 or int(found[0][1]) != len(body):
        return None
    return Known(data[: found[0].start(1)], data[found[0].end(1) : end], meaning)
