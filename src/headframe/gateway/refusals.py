"""No, in the words of OpenAI's API: clients branch on the status and the `code`, and heed the headers that say whether to try again."""

import msgspec

from headframe.gateway.records import Error, ErrorBody
from headframe.gateway.wire import Headers, head


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = "",
        param: str | None = None,
        again_s: float | None = None,
        never_again: bool = False,
        lines: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = Error(message=message, type=kind or _KINDS.get(status, "server_error"), param=param, code=code)
        self.headers, self._lines = Headers(), lines
        if again_s is not None:
            self.headers.append((b"retry-after", str(max(1, round(again_s + 0.5))).encode()))
            self.headers.append((b"retry-after-ms", str(max(1, round(again_s * 1000))).encode()))
        if never_again:
            self.headers.append((b"x-should-retry", b"false"))

    def answer(self, request_id: bytes, lines: bytes = b"", *, keep: bool) -> bytes:
        """The whole answer. `lines` are more of its head."""
        body = self.body()
        first = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id)]
        return head(self.status, [*first, *self.headers, *([] if keep else [(b"connection", b"close")])], self._lines + lines) + body

    def body(self) -> bytes:
        """As it is sent."""
        return msgspec.json.encode(ErrorBody(error=self.error))


_KINDS = {400: "invalid_request_error", 401: "invalid_request_error", 403: "invalid_request_error", 404: "invalid_request_error", 405: "invalid_request_error", 413: "invalid_request_error",
          402: "insufficient_quota", 429: "rate_limit_error"}  # fmt: skip


def no_key() -> Refused:
    """No key, or a wrong one; which of the two, and why, is not told."""
    return Refused(401, "invalid_api_key", "Incorrect API key provided: send `Authorization: Bearer hf_…`; `headframe key create` makes one.")


def no_model(name: str) -> Refused:
    """There is none of that name for this key."""
    return Refused(
        404,
        "model_not_found",
        f"The model {name[:200]!r} does not exist or you do not have access to it: GET /v1/models lists what you can ask.",
        param="model",
    )
