"""What a gateway says to its control plane, and hears; without a thread that waits, so that a gateway ends when it is told to."""

from typing import TypeVar

import httpx
import msgspec

from headframe.client.http import TIMEOUT_S, Unreachable, good
from headframe.model.endpoint import GatewayAnswer, GatewayReport, Table

T = TypeVar("T")


class GatewayClient:
    """One gateway's end of the line. Everything raises Unreachable or ApiError."""

    def __init__(self, url: str, key: str, *, verify: bool | str = True) -> None:
        self.url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            timeout=2 * TIMEOUT_S,
            verify=verify,
            trust_env=False,
        )

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
        try:
            answer = await self._http.request(method, path, content=content)
        except httpx.TransportError as error:
            raise Unreachable(f"no Headframe server answers at {self.url}: {error}") from error
        return msgspec.json.decode(good(answer).content, type=kind)
