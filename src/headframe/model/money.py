"""Money's nouns: price lists, usage intervals, ledger entries. All amounts are integer nano-dollars."""

from enum import StrEnum
from functools import lru_cache

import msgspec

from headframe.model.ids import AllocationId, GpuId, NodeId, PostingId, ProjectId, UsageId, WorkloadId
from headframe.model.work import Tier

ANY_MODEL = "*"


class GpuPrice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """US$ per whole GPU and hour, by tier; `model` may be `*` for every model without a price of its own."""

    model: str
    on_demand_nano: int
    spot_nano: int
    reserved_nano: int

    def nano(self, tier: Tier) -> int:
        """The price of this tier."""
        if tier is Tier.ON_DEMAND:
            return self.on_demand_nano
        if tier is Tier.SPOT:
            return self.spot_nano
        assert tier is Tier.RESERVED, "no other tier is sold by time"
        return self.reserved_nano


class PriceList(msgspec.Struct, frozen=True, kw_only=True, gc=False, cache_hash=True, tag="price_list"):
    """One version of all prices, in force from `effective_ms` until the next. Never changed, only followed."""

    id: str
    version: int
    effective_ms: int
    gpus: tuple[GpuPrice, ...]
    cpu_core_hour_nano: int
    memory_gib_hour_nano: int
    disk_gib_hour_nano: int

    def of(self, model: str) -> GpuPrice:
        """The price of a model, however its name is spelled, else that of `*`."""
        return _priced(self, model)


@lru_cache(maxsize=1024)
def _priced(prices: PriceList, model: str) -> GpuPrice:
    plain, other = _plain(model), None
    for price in prices.gpus:
        if _plain(price.model) == plain:
            return price
        if price.model == ANY_MODEL:
            other = price
    assert other, "a list always has a price for any model"
    return other


@lru_cache(maxsize=1024)
def _plain(model: str) -> str:
    return model if model == ANY_MODEL else "".join(filter(str.isalnum, model.lower())).replace("nvidia", "").replace("geforce", "")


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="usage"):
    """What one allocation used between two instants, at one pinned price."""

    id: UsageId
    allocation_id: AllocationId
    workload_id: WorkloadId
    project_id: ProjectId
    start_ms: int
    end_ms: int
    gpu_milli: int
    cpu_milli: int
    memory_mib: int
    disk_mib: int
    price_version: int
    rate_nano: int
    amount_nano: int


class EntryKind(StrEnum):
    """Why money moved."""

    CREDIT = "credit"
    HOLD = "hold"
    USAGE = "usage"
    VOID = "void"
    REFUND = "refund"
    ENERGY = "energy"
    MINED = "mined"


class Entry(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="entry"):
    """One side of a posting; the entries of a posting sum to zero, and none is ever changed."""

    id: str
    posting_id: PostingId
    kind: EntryKind
    account: str
    amount_nano: int
    project_id: ProjectId
    workload_id: WorkloadId
    at_ms: int
    memo: str


class CardYield(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A card's hour: watt-hours at the meter and what they cost, what was sold of it, what it mined; `measured` where the watts were read."""

    gpu_id: GpuId
    wh: int
    energy_nano: int
    sold_nano: int
    mined_nano: int
    measured: bool


class NodeYield(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="node_yield"):
    """A machine's hour: its cards', and what the machine itself drew. `owner` is who gets what it brings, "" the operator."""

    id: str
    node_id: NodeId
    start_ms: int
    owner: str
    host_wh: int
    host_energy_nano: int
    cards: tuple[CardYield, ...]


def credit_account(project: ProjectId) -> str:
    """What the project can still spend."""
    return f"credit/{project}"


def held_account(project: ProjectId) -> str:
    """What is set aside for its admitted work."""
    return f"held/{project}"


GRANTED_ACCOUNT = "operator/granted"
REVENUE_ACCOUNT = "operator/revenue"
WRITTEN_OFF_ACCOUNT = "operator/written-off"


class QuoteLine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One priced thing of a quote."""

    what: str
    quantity: str
    unit_nano: int
    amount_nano: int


class Quote(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a workload would cost per hour, at least and at most, over the models that could run it."""

    name: str
    tier: Tier
    price_version: int
    rate_min_nano: int
    rate_max_nano: int
    lines: tuple[QuoteLine, ...]
    hold_nano: int
    hold_covers_s: int
    credit_nano: int
    waits: tuple[str, ...] = ()


class InvoiceLine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one workload cost in a month."""

    workload_id: WorkloadId
    memo: str
    usage_nano: int
    refund_nano: int
    amount_nano: int


class Invoice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A month of one project: a fold over its ledger entries."""

    project_id: ProjectId
    month: str
    lines: tuple[InvoiceLine, ...]
    usage_nano: int
    refund_nano: int
    total_nano: int
