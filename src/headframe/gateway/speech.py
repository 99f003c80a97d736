"""What model servers say, as far as a gateway has to understand it: what is asked for, what it used, where an event ends. Bytes go through untouched wherever
nothing has to be changed.
"""

import re
from typing import Any

import msgspec

from headframe.gateway.records import Ask, Options, Said, Wrapped
from headframe.gateway.refusals import Refused

MAX_TOKENS = 4096
"""What a request without a limit is taken to ask for at most, until it shows that it wants more."""
BYTES_PER_TOKEN = 4
CHAT, TEXT, EMBEDDINGS = b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings"
_NEEDS = {CHAT: "messages", TEXT: "prompt", EMBEDDINGS: "input"}
_EMPTY = frozenset({b"", b"null", b'""', b"[]"})
_END = re.compile(rb"\r?\n\r?\n")


_ask = msgspec.json.Decoder(Ask).decode
_options = msgspec.json.Decoder(Options).decode
_said = msgspec.json.Decoder(Said).decode
_wrapped = msgspec.json.Decoder(Wrapped).decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def read_ask(path: bytes, body: bytes) -> Ask:
    """What a body asks for. Raises Refused where no server could answer: none is woken for it."""
    try:
        ask = _ask(body)
    except msgspec.ValidationError as error:
        raise Refused(400, "invalid_value", f"The request can't be read: {error}.", param=_param(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, "invalid_json", f"The body is no JSON: {error}.") from None
    if not ask.model:
        raise Refused(400, "missing_required_parameter", "You must provide a model parameter.", param="model")
    needed = _NEEDS.get(path)
    asked = getattr(ask, needed) if needed else None
    if needed and (not asked or (isinstance(asked, msgspec.Raw) and bytes(asked) in _EMPTY)):
        raise Refused(400, "missing_required_parameter", f"You must provide {needed}.", param=needed)
    return ask


def most_tokens(ask: Ask, size: int) -> tuple[int, int]:
    """How many tokens may go in (guessed from the body's size) and come out at the most."""
    out = ask.max_completion_tokens or ask.max_tokens or MAX_TOKENS
    if ask.n is not None:
        out *= max(1, ask.n)
    return size // BYTES_PER_TOKEN + 1, out if out > 0 else 0


def wants_usage(ask: Ask) -> bool:
    """Whether the client asked for the usage at the stream's end."""
    try:
        return bool(_options(bytes(ask.stream_options) or b"{}").include_usage)
    except msgspec.DecodeError:
        return False


def with_usage(ask: Ask, body: bytes) -> bytes:
    """The body asking for usage; every other byte of it as it was."""
    if bytes(ask.stream_options) in _EMPTY:
        if b'"stream_options"' not in body:
            rest = body.lstrip()[1:]
            return b'{"stream_options":{"include_usage":true},' + rest
        return replaced(body, "stream_options", b'{"include_usage":true}')
    try:
        options = _fields(bytes(ask.stream_options))
    except msgspec.DecodeError:
        return body  # the server will say what it thinks of it
    options["include_usage"] = msgspec.Raw(b"true")
    return replaced(body, "stream_options", _join(options))


def replaced(body: bytes, name: str, value: bytes) -> bytes:
    """The object `body` with another value of a field; the other values byte for byte."""
    fields = _fields(body)
    fields[name] = msgspec.Raw(value)
    return _join(fields)


def read_said(data: bytes) -> Said:
    """An answer or an event; one that can't be read says nothing."""
    try:
        said = _said(data)
        if said.usage is None and said.choices is None and not said.error:
            wrapped = _wrapped(data)
            inner = wrapped.response or wrapped.message
            said.usage = inner.usage if inner else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Said()
    return said


def last_end(data: bytes) -> int:
    """Where the last whole event of a stream ends; 0 where none does."""
    plain = data.rfind(b"\n\n") + 2
    crlf = data.rfind(b"\n\r\n") + 3
    return max(plain if plain > 1 else 0, crlf if crlf > 2 else 0)


def events(data: bytes) -> list[bytes]:
    """Whole events, each with its end."""
    found: list[bytes] = []
    start = 0
    for end in _END.finditer(data):
        found.append(data[start : end.end()])
        start = end.end()
    return found


def data_of(event: bytes) -> bytes:
    """What an event carries: its `data:` lines."""
    lines = [line[5:].strip() for line in event.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def text_of(data: bytes) -> str:
    """What a person would read of an event: the text of its choices."""
    try:
        said: Any = msgspec.json.decode(data)
        parts: list[str] = []
        for choice in said.get("choices") or []:
            delta = choice.get("delta") or choice.get("message") or {}
            parts += [str(delta.get(name) or "") for name in ("reasoning_content", "content")] + [str(choice.get("text") or "")]
        return "".join(parts)
    except (msgspec.DecodeError, AttributeError, TypeError, UnicodeDecodeError):
        return ""


def _join(fields: dict[str, msgspec.Raw]) -> bytes:
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + bytes(value) for name, value in fields.items()) + b"}"


def _param(text: str) -> str | None:
    found = re.search(r"`\$\.(\w+)", text)
    return found[1] if found else None
