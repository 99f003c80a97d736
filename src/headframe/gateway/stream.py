"""A model's stream of events on its way to the client: whole events only, without the one that only the gateway asked for, and what they say noted. It does no I/O."""

from collections.abc import Callable
from typing import Final

from headframe.gateway.refusals import Refused
from headframe.gateway.speech import data_of, events, last_end, read_said, text_of

EVENT_BYTES_MAX = 4 * 1024 * 1024
KEPT_BYTES_MAX = 4 * 1024 * 1024
"""So much of a stream is kept, to count its tokens if nobody says them."""

LINED: Final = 4096
"""Chunks of more bytes than that are left to the parser: they cost little for what they carry."""


def _line(size: int) -> bytes:
    """How one begins that has so many bytes from its first to its last: with the size of what it carries, in sixteens."""
    for digits in range(1, 5):
        carried = size - digits - 4
        if carried >= 0 and len(b"%x" % carried) == digits:
            return b"%x\r\n" % carried
    return b"no chunk"


_LINES = [_line(size) for size in range(LINED + 1)]


class Stream:
    """`injected`: usage was asked for by us alone, so its event is left out. `renamed` is (what the server calls the model, what the client does)."""

    __slots__ = (
        "_counted",
        "_events",
        "_kept",
        "_rest",
        "cached",
        "completion",
        "done",
        "failed",
        "injected",
        "name",
        "prompt",
        "size",
        "used",
        "write",
    )

    def __init__(self, *, injected: bool, name: str, write: Callable[[bytes], None]) -> None:
        self.injected, self.name, self.write = injected, name, write
        self.used = self.done = self.failed = False
        self.prompt = self.completion = self.cached = self.size = 0
        self._rest = b""
        self._kept: list[bytes] = []
        self._counted = self._events = 0

    def straight(self, data: bytes) -> bool:
        """What came between two chunks goes on as it is by `write`, if it is one whole chunk of whole events in which there is nothing to do: so a token costs no parser. (`find`,
        since `in` first makes an exception for what is no number.)
        """
        size = len(data)
        if self._rest or self.name or size > LINED or not data.startswith(_LINES[size]) or data[-4:] != b"\n\n\r\n":
            return False
        if data.find(b'"usage"') > 0 or data.find(b'"error"') > 0 or data.find(b"[DONE]") > 0:
            return False
        self._keep(data)
        self.write(data)
        return True

    def feed(self, data: bytes) -> bytes:
        """The whole events that are now there. Raises Refused where one never ends."""
        data = self._rest + data if self._rest else data
        end = last_end(data)
        if not end:
            self._rest = data
            if len(data) > EVENT_BYTES_MAX:
                raise Refused(502, "bad_upstream", "The model's server sent an event without an end.")
            return b""
        ready, self._rest = (data, b"") if end == len(data) else (data[:end], data[end:])
        return self._passed(ready)

    def rest(self) -> bytes:
        """What came after the last whole event, once the server has ended the stream as it should: an event whose end was not marked."""
        rest, self._rest = self._rest, b""
        return self._passed(rest + b"\n\n") if rest.strip() else b""

    def _passed(self, ready: bytes) -> bytes:
        """Events are looked into only where there may be something to do; a token costs one search each."""
        if self.name or b"[DONE]" in ready or b'"error"' in ready or ready.count(b'"usage"') > ready.count(b'"usage":null'):
            ready = b"".join([self._looked_at(event) for event in events(ready)])
        self._keep(ready)
        return ready

    def _keep(self, passed: bytes) -> None:
        self.size += len(passed)
        if self.size <= KEPT_BYTES_MAX:
            self._kept.append(passed)
        else:
            self._events += _count(passed)

    def events(self) -> int:
        """How many were passed on so far."""
        self._events += sum(map(_count, self._kept[self._counted :]))
        self._counted = len(self._kept)
        return self._events

    def text(self) -> str | None:
        """What a person reads of it; None where it was too large to be kept whole."""
        if self.size > KEPT_BYTES_MAX:
            return None
        return "".join([text_of(data_of(event)) for piece in self._kept for event in events(piece)])

    def _looked_at(self, event: bytes) -> bytes:
        data = data_of(event)
        if data == b"[DONE]":
            again, self.done = self.done, True
            return b"" if again else event
        said = read_said(data) if data else None
        if said is None:
            return event
        if bytes(said.error) not in {b"", b"null"}:
            self.failed = True
        if said.usage is not None:
            self.note(said.usage.prompt, said.usage.completion, said.usage.cached)
            if self.injected and said.choices is not None and not said.choices:
                return b""
        return renamed(event, said.model, self.name) if self.name and said.model else event

    def note(self, prompt: int, completion: int, cached: int) -> None:
        """What the server says that it used; of several words the greatest holds, since they are sums."""
        self.used = True
        self.prompt, self.completion, self.cached = max(self.prompt, prompt), max(self.completion, completion), max(self.cached, cached)


def _count(ready: bytes) -> int:
    return ready.count(b"\ndata:") + ready.startswith(b"data:")


def renamed(data: bytes, model: str, name: str) -> bytes:
    """With the name by which the client asked."""
    for space in (b"", b" "):
        data = data.replace(b'"model":' + space + b'"' + model.encode() + b'"', b'"model":' + space + b'"' + name.encode() + b'"')
    return data
