"""What a gateway says to its control plane, and hears."""

from headframe.client.http import Client
from headframe.model.endpoint import GatewayAnswer, GatewayReport, Table


class GatewayClient(Client):
    """One gateway's end of the line."""

    def report(self, report: GatewayReport) -> GatewayAnswer:
        """Say what was served and how loaded replicas are; repeating it changes nothing."""
        return self._send("POST", "/v1/gateway/report", GatewayAnswer, report)

    def table(self, run: str, seq: int) -> Table:
        """What changed since then; held open until something does."""
        return self._get("/v1/gateway/table", Table, run=run, after=seq)
