"""What a gateway reads and writes as it is: msgspec makes these of their annotations, so this module is never compiled."""

from pathlib import Path

import msgspec

from headframe.model.endpoint import Table
from headframe.model.ids import KeyId, ProjectId, WorkloadId

NOTHING = msgspec.Raw()


class Ask(msgspec.Struct):
    """The fields of a request that matter here; all others are passed on unread."""

    model: str | None = None
    stream: bool | None = None
    stream_options: msgspec.Raw = NOTHING
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    messages: list[msgspec.Raw] | None = None
    prompt: msgspec.Raw = NOTHING
    input: msgspec.Raw = NOTHING


class Details(msgspec.Struct):
    """How much of the prompt was known already."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """What a server says that it used, in the words of OpenAI's older and newer interfaces, and of Anthropic's."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: Details | None = None

    @property
    def prompt(self) -> int:
        """Tokens that went in."""
        return max(0, self.prompt_tokens or self.input_tokens or 0)

    @property
    def completion(self) -> int:
        """Tokens that came out."""
        return max(0, self.completion_tokens or self.output_tokens or 0)

    @property
    def cached(self) -> int:
        """Those of the prompt that the server had worked on before."""
        return max(0, (self.prompt_tokens_details.cached_tokens or 0) if self.prompt_tokens_details else 0)


class Inner(msgspec.Struct):
    """What is inside."""

    usage: Usage | None = None


class Said(msgspec.Struct):
    """An answer, or one event of it."""

    usage: Usage | None = None
    error: msgspec.Raw = NOTHING
    choices: list[msgspec.Raw] | None = None
    model: str | None = None


class Options(msgspec.Struct):
    """What a client asks of a stream."""

    include_usage: bool | None = None


class Wrapped(msgspec.Struct):
    """Where Anthropic's and OpenAI's newer interfaces have it: one inside."""

    response: Inner | None = None
    message: Inner | None = None


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request. `open` while it lasts. `request_id` only where the client gave one."""

    serial: int
    endpoint: WorkloadId
    project: ProjectId
    key: KeyId
    at_ms: int
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    amount: int = 0
    failed: bool = False
    estimated: bool = False
    cut: bool = False
    request_id: str = ""
    open: bool = False


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is on disk of it: the table whole, and the sums granted and spent, by project or key."""

    table: Table
    granted: dict[str, int] = {}
    spent: dict[str, int] = {}


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """As it is sent."""

    error: Error


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator chooses. `servers` are the control planes; `pepper` the file with their secret."""

    data: Path
    servers: tuple[str, ...]
    key: str
    pepper: Path
    host: str = "127.0.0.1"
    port: int = 7071
    ca: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    shared_port: bool = False
