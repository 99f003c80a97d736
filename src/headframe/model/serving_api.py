"""The bodies of the HTTP API that are about endpoints."""

import msgspec

from headframe.model.endpoint import Endpoint, EndpointReport, Moment
from headframe.model.work import Refusal, Workload


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """A replica: whether it answers and why not, where it is, how many requests it has, what it costs."""

    workload: Workload
    ready: bool
    node: str = ""
    in_flight: int = 0
    rate_nano: int = 0
    accrued_nano: int = 0
    waits: tuple[Refusal, ...] = ()
    why: str = ""


class EndpointView(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint with its replicas, its load over the last minutes, sums of all gateways since each started, and what it costs now and has cost.
    `base_url` is what OpenAI's clients are given.
    """

    endpoint: Endpoint
    base_url: str = ""
    replicas: tuple[ReplicaView, ...] = ()
    rate_nano: int = 0
    cost_nano: int = 0
    total: EndpointReport
    moments: tuple[Moment, ...] = ()
    gateways: int = 0
    warnings: tuple[str, ...] = ()


class EndpointList(msgspec.Struct, frozen=True, kw_only=True):
    """What is served now, by name."""

    items: tuple[EndpointView, ...]


class LimitsBody(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked of endpoints per minute; 0 is no limit."""

    rpm: int = 0
    tpm: int = 0
