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


class Prewarm(msgspec.Struct, frozen=True, kw_only=True):
    """At least so many replicas on these days (0 is Monday), from a minute of the day to another, UTC; a window may run past midnight."""

    days: tuple[int, ...]
    start_min: int
    end_min: int
    replicas: int

    def holds(self, now_ms: int) -> bool:
        """Whether it does at that instant."""
        minutes = now_ms // 60_000
        day, minute = (minutes // 1440 + 3) % 7, minutes % 1440  # 1970 began on a Thursday
        if self.start_min < self.end_min:
            return day in self.days and self.start_min <= minute < self.end_min
        return (day in self.days and minute >= self.start_min) or ((day - 1) % 7 in self.days and minute < self.end_min)


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint is served. `port` is where its server listens inside a container (a plain process is told another one); `model` is the name that clients ask
    for; `target` is the metric's value that one replica carries; `idle_s` without a request ends the last replicas where `replicas_min` is 0; `start_s` is how long
    a replica may take until it answers `probe`; at times there are more than the least (`prewarm`). Prices are US$ (nano) per million tokens.
    """

    port: int = 8000
    model: str = ""
    replicas_min: int = 1
    replicas_max: int = 1
    metric: Metric = Metric.CONCURRENCY
    target: float = 8.0
    probe: str = "/health"
    prewarm: tuple[Prewarm, ...] = ()
    idle_s: int = 900
    start_s: int = 600
    pricing: Pricing = Pricing.PER_SECOND
    input_nano: int = 0
    output_nano: int = 0


def least(serving: Serving, now_ms: int) -> int:
    """How many replicas there are to be at least now."""
    return min(serving.replicas_max, max([serving.replicas_min, *(each.replicas for each in serving.prewarm if each.holds(now_ms))]))


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
