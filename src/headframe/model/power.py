"""What power costs, what may be drawn, what cards do while nobody rents them: tariffs, signals, coins, fillers, ASICs."""

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from headframe.model.ids import AllocationId, RackId, SiteId
from headframe.model.units import MS_PER_DAY, MS_PER_HOUR

MINUTES_A_DAY = 1440
MARKET_MOST_USD_MWH, MARKET_LEAST_USD_MWH = 10_000.0, -1_000.0
"""No market clears beyond these: ERCOT's offers end at 5,000, Europe's day-ahead auction at 4,000 and -500. What lies outside is a mistake."""

HASHES_MOST = 1e18
"""No miner does more hashes a second: what one says beyond is nonsense."""
ADAPTERS = ("", "xmrig", "t-rex", "lolminer", "teamredminer", "gminer", "bzminer", "rigel", "srbminer", "hiveos", "prometheus")
"""How miners are read: see `agent/miners.py`."""


class LoadClass(StrEnum):
    """What a watt is spent on, firmest first."""

    FIRM = "firm"
    ONLINE = "online"
    BATCH = "batch"
    SPOT = "spot"
    FILLER = "filler"


class Window(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hours of a tariff, in the site's own time: months (1 to 12) and days (0 is Monday), none meaning all; from a minute of the day to another, over
    midnight where the second is the smaller.
    """

    months: tuple[int, ...] = ()
    days: tuple[int, ...] = ()
    from_min: int = 0
    to_min: int = MINUTES_A_DAY


class EnergyCharge(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """US$ per kWh in some windows (none: always). Of several charges the first whose window holds counts."""

    usd_kwh: float
    when: tuple[Window, ...] = ()


class DemandCharge(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """US$ a month for each kW of the month's highest mean over `interval_min`, of what is drawn within the windows (none: always). Charges by coincident
    peaks (ERCOT's 4CP and its like) are written the same way, with the windows in which a peak is expected.
    """

    name: str
    usd_kw: float
    interval_min: int = 15
    when: tuple[Window, ...] = ()


class Tariff(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a kWh costs: the market's price where there is one (`market` names it), or else the energy charges; `adder_usd_kwh` is on top of either (delivery, taxes).
    `zone` is the IANA name of the site's time.
    """

    name: str
    zone: str = "UTC"
    market: str = ""
    adder_usd_kwh: float = 0.0
    energy: tuple[EnergyCharge, ...] = ()
    demand: tuple[DemandCharge, ...] = ()


class MarketDay(msgspec.Struct, frozen=True, kw_only=True, tag="market_day"):
    """A day's prices of a market, US$ per MWh by UTC hour (None: not known). `id` is `market/2026-11-27`."""

    id: str
    market: str
    start_ms: int
    usd_mwh: tuple[float | None, ...]
    source: str = ""
    closed: bool = False


def market_days(market: str, usd_mwh: Mapping[int, float], source: str) -> tuple[MarketDay, ...]:
    """Prices by the hour's start (ms, UTC) as the market's days."""
    days: dict[int, list[float | None]] = {}
    for at_ms, price in sorted(usd_mwh.items()):
        start = at_ms // MS_PER_DAY * MS_PER_DAY
        days.setdefault(start, [None] * 24)[(at_ms - start) // MS_PER_HOUR] = price
    return tuple(
        MarketDay(id=f"{market}/{start}", market=market, start_ms=start, usd_mwh=tuple(prices), source=source) for start, prices in days.items()
    )


class SignalKind(StrEnum):
    """What is asked: draw at most so many watts, pay so much per MWh, or keep to a level of 0 (as usual) to 3 (all that can go)."""

    LIMIT = "limit"
    PRICE = "price"
    LEVEL = "level"


class Signal(msgspec.Struct, frozen=True, kw_only=True, tag="signal"):
    """What a grid, a market, a breaker or a person asks of a site from a time to a time. It is known by its source and that source's own event id; a higher
    `version` takes the place of a lower one, and `cancelled` ends it.
    """

    id: str
    site_id: SiteId
    source: str
    event: str
    version: int = 0
    kind: SignalKind
    value: float
    start_ms: int
    end_ms: int
    why: str = ""
    received_ms: int = 0
    cancelled: bool = False
    closed: bool = False


def signal_id(site: SiteId, source: str, event: str) -> str:
    """A signal is known by its site, its source and that source's own name for it."""
    return f"{site}/{source}/{event}"


class Coin(msgspec.Struct, frozen=True, kw_only=True, tag="coin"):
    """A coin's terms, as last told: US$ for one, the network's hashes a second, seconds between blocks, coins for a block (with fees). What a hash a second earns
    in a day follows from these.
    """

    id: str
    algorithm: str
    price_usd: float
    network_hs: float
    block_s: float
    reward: float
    at_ms: int = 0
    source: str = ""


class Mines(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one card of a model does for a filler: hashes a second, and watts of the card while it does."""

    hashes_s: float = 0.0
    watts: float


class Filler(msgspec.Struct, frozen=True, kw_only=True, tag="filler", omit_defaults=True):
    """What idle cards may do: mine a coin, or the operator's own work of a known worth (`usd_gpu_h`). `run` is started for each card; `program` is the file whose
    SHA-256 has to be `sha256` ("" for what is no closed program). `failures` counts ends of its own fault in a row, after which it waits until `not_before_ms`. `stats` names how its figures are read at `port`, or (hiveos) by `script`. Of a model that `models` does not name it does nothing.
    """

    id: str
    name: str
    run: str
    image: str = ""
    env: dict[str, str] = {}
    coin: str = ""
    usd_gpu_h: float = 0.0
    pool_fee: float = 0.01
    program_fee: float = 0.0
    models: dict[str, Mines] = {}
    program: str = ""
    sha256: str = ""
    stats: str = ""
    port: int = 0
    script: str = ""
    cpu_milli: int = 100
    memory_mib: int = 1024
    enabled: bool = True
    failures: int = 0
    not_before_ms: int = 0
    why: str = ""
    created_ms: int = 0
    removed: bool = False


def filler_id(name: str) -> str:
    """A filler is known by its name: one of that name replaces it."""
    return f"filler-{name}"


class AsicState(StrEnum):
    """What a mining machine does."""

    MINING = "mining"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


class Asic(msgspec.Struct, frozen=True, kw_only=True, tag="asic", omit_defaults=True):
    """A machine that only mines: what it was found to do at full speed, and what its firmware can be told. One that can't be stopped is part of what the site
    draws whatever happens. `limit_w` is the power limit that its firmware told last (0: none, or not told), `wanted_w` what it is to be (0: as it was), `usual_w` what it was
    before one was set here.
    """

    id: str
    name: str
    ip: str
    model: str
    rack_id: RackId = RackId("")
    coin: str = "BTC"
    hashes_s: float = 0.0
    watts: float = 0.0
    can_stop: bool = False
    can_limit: bool = False
    limit_w: float = 0.0
    wanted_w: float = 0.0
    usual_w: float = 0.0
    state: AsicState = AsicState.UNKNOWN
    wanted: AsicState = AsicState.MINING
    why: str = ""
    changed_ms: int = 0
    seen_ms: int = 0
    removed: bool = False


class Posture(msgspec.Struct, frozen=True, kw_only=True, tag="posture", omit_defaults=True):
    """What dispatch wants of a site's cards of one model from `since_ms` on: which filler ("" for none, the cards sleep), on at most how many of them, the share of their draw
    that each class may have (1 where it is not named); and why.
    """

    id: str
    site_id: SiteId
    model: str
    filler: str = ""
    most: int = 0
    caps: dict[str, float] = {}
    since_ms: int = 0
    why: str = ""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What a site has left for paid work at the meter (W): in `left_w` fillers count as gone, since they make room; in `free_w` all that runs, still goes or is granted counts, of
    which these are `waiting` to start, and will draw so many watts. `until_ms` is when its limit changes (0: not known), `why` what limits; with `no_spot`, spot work waits whatever is left;
    `floor_usd_h` is what a card-hour of spot work has to bring, by model.
    """

    left_w: float
    free_w: float
    limit_w: float
    pue: float
    waiting: dict[AllocationId, float] = {}
    until_ms: int = 0
    why: str = ""
    no_spot: bool = False
    floor_usd_h: dict[str, float] = {}


class Reading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a miner says of itself, of all its cards together: hashes a second, watts where it knows them, shares taken and refused, seconds since it began."""

    hashes_s: float
    watts: float | None = None
    accepted: int = 0
    rejected: int = 0
    uptime_s: int = 0
    algorithm: str = ""
