"""A conversation with a served model, as the terminal has it."""

from collections.abc import Iterator

import httpx
import msgspec

STREAM_S = 600.0


class ChatRefused(Exception):
    """What the gateway said instead of an answer."""


class Message(msgspec.Struct):
    """One turn."""

    role: str
    content: str


class _Ask(msgspec.Struct):
    model: str
    messages: list[Message]
    max_tokens: int
    stream: bool = True
    stream_options: dict[str, bool] = msgspec.field(default_factory=lambda: {"include_usage": True})


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class Talk:
    """Keeps what was said; `prompt` and `completion` are the last answer's tokens."""

    def __init__(self, base_url: str, key: str, model: str, *, system: str = "", max_tokens: int = 512, ca: str = "") -> None:
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"}, timeout=httpx.Timeout(STREAM_S, connect=5), verify=ca or True, trust_env=False
        )
        self._url, self._model, self._max_tokens = f"{base_url}/chat/completions", model, max_tokens
        self._said = [Message("system", system)] if system else []
        self.prompt = self.completion = 0

    def say(self, text: str) -> Iterator[str]:
        """The answer, as it comes. Raises ChatRefused."""
        self._said.append(Message("user", text))
        ask = _Ask(self._model, self._said, self._max_tokens)
        parts: list[str] = []
        try:
            with self._http.stream("POST", self._url, content=msgspec.json.encode(ask), headers={"Content-Type": "application/json"}) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise ChatRefused(_why(answer.read()))
                for line in answer.iter_lines():
                    if line.startswith("data:") and line[5:].strip() != "[DONE]":
                        event = msgspec.json.decode(line[5:], type=_Event)
                        if event.error is not None:
                            raise ChatRefused(event.error.message or "the model failed")
                        self.prompt, self.completion = (
                            (event.usage.prompt_tokens, event.usage.completion_tokens) if event.usage else (self.prompt, self.completion)
                        )
                        for part in filter(None, (choice.delta.content for choice in event.choices)):
                            parts.append(part)
                            yield part
        except httpx.TransportError as error:
            raise ChatRefused(f"the gateway at {self._url} does not answer: {error}") from error
        self._said.append(Message("assistant", "".join(parts)))


def _why(body: bytes) -> str:
    try:
        said = msgspec.json.decode(body, type=_Event)
    except msgspec.DecodeError:
        return body[:200].decode(errors="replace")
    return said.error.message if said.error else body[:200].decode(errors="replace")
