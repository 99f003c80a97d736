"""Whether a replica answers: its own health path, and then, where it serves a model, one token of it. A model that has not spoken yet is not ready."""

import asyncio
from collections.abc import Callable

import msgspec

from headframe.gateway.dialing import connect
from headframe.gateway.replicas import Replica
from headframe.gateway.upstream import AnswerHead

PROBE_S, WARM_S = 5.0, 120.0
DEFAULT = "/health"


class _Answer:
    """One short answer, awaited."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._status = 0

    def answered(self, head: AnswerHead, length: int | None) -> None:
        """The head."""
        del length
        self._status = head.status

    def piece(self, data: bytes) -> None:
        """What it says beside its status is of no interest."""

    def ended(self) -> None:
        """It is whole."""
        if not self.status.done():
            self.status.set_result(self._status)

    def lost(self, *, began: bool, fresh: bool) -> None:
        """There is none."""
        del began, fresh
        if not self.status.done():
            self.status.set_exception(ConnectionError("the connection broke"))


async def probe(replica: Replica, now_s: Callable[[], float]) -> str:
    """Why it is not ready; empty where it is."""
    serving = replica.endpoint.entry.serving
    try:
        status = await _ask(replica, now_s, f"GET {serving.probe}", b"", PROBE_S)
        if not (200 <= status < 400 or (status == 404 and serving.probe == DEFAULT)):
            return f"{serving.probe} answers {status}"
        if serving.model:
            body = {"model": serving.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
            status = await _ask(replica, now_s, "POST /v1/chat/completions", msgspec.json.encode(body), WARM_S)
            if status >= 500 and status != 501:
                return f"the first token did not come: {status}"
    except (OSError, TimeoutError) as error:
        return str(error) or "it takes too long to answer"
    return ""


async def _ask(replica: Replica, now_s: Callable[[], float], what: str, body: bytes, limit_s: float) -> int:
    connection = await connect(replica, now_s)
    answer = _Answer()
    try:
        lines = f"{what} HTTP/1.1\r\nhost: {replica.entry.host}:{replica.entry.port}\r\nauthorization: Bearer {replica.key.decode()}\r\n"
        lines += f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        connection.ask(answer, lines.encode() + body)
        async with asyncio.timeout(limit_s):
            return await answer.status
    finally:
        connection.drop()
