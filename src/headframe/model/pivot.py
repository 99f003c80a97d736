"""What a plan for a mining fleet is made of: what is assumed, what can be done with each rig, and what all of it depends on. US$ and months of 730 hours."""

import msgspec

ALGORITHMS = {"etchash": "hashrate_etchash_mh_s", "kawpow": "hashrate_kawpow_mh_s", "autolykos2": "hashrate_autolykos2_mh_s", "octopus": "hashrate_octopus_mh_s", "pearl": "hashrate_pearl_th_s"}  # fmt: skip
"""What can be mined, and the column of `gpus.csv` with its hashrate (10^6 hashes/s; 10^12 for pearl)."""


class Assumptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken for granted. `coins` is what a coin pays a day for 10^6 hashes/s (10^12 for pearl); `rents` replaces listed prices, US$ per GPU-hour, `resale` is US$ per card. `sold_*` are
    shares of hours that are sold: as batch work on a bare rig, as inference with memory and a disk, as training in real slots, as training of several machines with a network besides.
    `batch_price` and `riser_price` are what interruptible work and a card behind a riser get of the price. `host_usd`, `slots_usd` and `network_usd` (25 GbE: a card and a share of a switch)
    are of one host; a card that is added costs `added_price` times what one sells for. The spot share is the median of 41 models that list both (gpu_rents.csv); the others are judgements.
    """

    power_usd_kwh: float
    coins: dict[str, float] = {}
    rents: dict[str, float] = {}
    resale: dict[str, float] = {}
    pue: float = 1.06
    supply_efficiency: float = 0.92
    host_w: float = 75.0
    pool_fee: float = 0.02
    market_fee: float = 0.0
    sold_batch: float = 0.3
    sold_inference: float = 0.4
    sold_training: float = 0.5
    sold_network: float = 0.6
    batch_price: float = 0.625
    riser_price: float = 0.75
    host_usd: float = 140.0
    slots_usd: float = 420.0
    network_usd: float = 180.0
    added_price: float = 1.1
    slots_cards: int = 4
    risers_from: int = 5


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """A tenth, half and nine tenths of the draws lie below these."""

    p10: float
    p50: float
    p90: float


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to do with a rig, `sells` being the work that its hours are sold as ("" for none): US$ now, US$ a month, the months until it has paid for itself against keeping on (None: never, or nothing to pay), how it spreads,
    and in which share of the draws it is better than keeping on.
    """

    kind: str
    sells: str
    what: str
    capex_usd: float
    month_usd: float
    watts: float
    payback_months: float | None
    band: Band
    better: float


class RigPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A rig with what can be done with it, the best first, why, and what is not known of it."""

    name: str
    cards: str
    options: tuple[Option, ...]
    why: str
    unknown: tuple[str, ...] = ()


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """What the whole fleet earns a month, kept on and by the plan, where one thing is otherwise."""

    what: str
    keep_usd: float
    plan_usd: float


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All rigs together: keeping on against the plan, and what it depends on."""

    rigs: tuple[RigPlan, ...]
    cards: int
    keep_usd: float
    plan_usd: float
    capex_usd: float
    payback_months: float | None
    keep_band: Band
    plan_band: Band
    sensitivity: tuple[Sensitivity, ...]
    assumptions: Assumptions
    unknown: tuple[str, ...]
