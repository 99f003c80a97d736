"""What a gateway says to its control plane, and hears; without a thread that waits, so that a gateway ends when it is told to."""

from collections.abc import Sequence
from typing import TypeVar

import httpx
import msgspec

from headframe.client.http import TIMEOUT_S, Unreachable, good
from headframe.model.endpoint import GatewayAnswer, GatewayReport, Table

T = TypeVar("T")


class GatewayClient:
    """One gateway's end of the line. Of several control planes it speaks to the one that leads: where another says so, or none answers, the next is asked. Everything raises
    Unreachable or ApiError.
    """

    def __init__(self, urls: Sequence[str], key: str, *, verify: bool | str = True) -> None:
        self._urls, self._at = tuple(urls), 0
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._http = httpx.AsyncClient(headers=headers, timeout=2 * TIMEOUT_S, verify=verify, trust_env=False)

    async def report(self, report: GatewayReport) -> GatewayAnswer:
        """Say what was served and how loaded replicas are; repeating it changes nothing."""
        return await self._call("POST", "/v1/gateway/report", GatewayAnswer, content=msgspec.json.encode(report))

    async def table(self, run: str, seq: int) -> Table:
        """What changed since then; held open until something does."""
        return await self._call("GET", f"/v1/gateway/table?run={run}&after={seq}", Table)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def _call(self, method: str, path: str, kind: type[T], content: bytes | None = None) -> T:
        asked = self._at
        url = self._urls[asked % len(self._urls)]
        try:
            answer = await self._http.request(method, url + path, content=content)
        except httpx.TransportError as error:
            self._next(asked)
            raise Unreachable(f"no Headframe server answers at {url}: {error}") from error
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            self._next(asked)
        return msgspec.json.decode(good(answer).content, type=kind)

    def _next(self, asked: int) -> None:
        """The next one; once, where two calls found the same one wanting."""
        if self._at == asked:
            self._at += 1
