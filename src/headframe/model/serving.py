"""What an endpoint asks for beyond a job: how it is reached, what it costs, and how many replicas answer."""

from enum import StrEnum

import msgspec

from headframe.model.ids import AllocationId


class Metric(StrEnum):
    """What replicas are counted by: requests under way and waiting, requests waiting alone, or tokens that come out per second."""

    CONCURRENCY = "concurrency"
    QUEUE = "queue"
    TOKENS_PER_S = "tokens_per_s"


class Pricing(StrEnum):
    """What is sold: the replicas' time, to whoever runs the endpoint, or tokens, to whoever asks."""

    PER_SECOND = "per-second"
    PER_TOKEN = "per-token"  # noqa: S105 - what is sold, no secret


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint is served. `port` is where its server listens inside a container (a plain process is told another one); `model` is the name that clients ask
    for; `target` is the metric's value that one replica carries; `idle_s` without a request ends the last replicas where `replicas_min` is 0; `start_s` is how long
    a replica may take until it answers `probe`. Prices are US$ (nano) per million tokens.
    """

    port: int = 8000
    model: str = ""
    replicas_min: int = 1
    replicas_max: int = 1
    metric: Metric = Metric.CONCURRENCY
    target: float = 8.0
    probe: str = "/health"
    idle_s: int = 900
    start_s: int = 600
    pricing: Pricing = Pricing.PER_SECOND
    input_nano: int = 0
    output_nano: int = 0


MILLION = 1_000_000


def tokens_nano(serving: Serving, prompt: int, completion: int) -> int:
    """What so many tokens cost, rounded up to a whole nano-dollar: the one place where tokens become money."""
    if serving.pricing is Pricing.PER_SECOND:
        return 0
    return -(-(prompt * serving.input_nano + completion * serving.output_nano) // MILLION)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What gateways say of an endpoint together: how many replicas there should be and why (None: not known yet), which are ready, which have nothing left to do, and since
    when some that run have not answered.
    """

    wanted: int | None = None
    why: str = ""
    ready: frozenset[AllocationId] = frozenset()
    drained: frozenset[AllocationId] = frozenset()
    silent: dict[AllocationId, int] = {}
