"""What the API takes and tells of power: files, signals, coins, fillers, mining machines, and the site's watts and dollars now."""

import msgspec

from headframe.model.power import Asic, Coin, Filler, Posture, Signal, SignalKind


class TextBody(msgspec.Struct, frozen=True, kw_only=True):
    """A file's text."""

    file: str


class MarketBody(msgspec.Struct, frozen=True, kw_only=True):
    """A market's prices in US$ per MWh: the hour (UTC) that each begins, in ms."""

    market: str
    prices: tuple[tuple[int, float], ...]
    source: str = ""


class MarketTold(msgspec.Struct, frozen=True, kw_only=True):
    """How many days of a market are known from today on."""

    market: str
    days: int
    until_ms: int


class SignalBody(msgspec.Struct, frozen=True, kw_only=True):
    """A signal. `value` is watts at the meter (limit), US$/MWh (price) or 0 to 3 (level); `start_ms` 0 is now. `event` and `version` are the source's own: the same
    event again changes nothing, a higher version replaces it.
    """

    site: str = ""
    source: str
    event: str
    version: int = 0
    kind: SignalKind
    value: float
    start_ms: int = 0
    end_ms: int = 0
    length_s: int = 0
    why: str = ""
    cancelled: bool = False


class SignalList(msgspec.Struct, frozen=True, kw_only=True):
    """Signals in force or to come."""

    items: tuple[Signal, ...]


class EventTaken(msgspec.Struct, frozen=True, kw_only=True):
    """An OpenADR 3 event as it was taken: its signals, and the payload types that were not understood."""

    event: str
    signals: tuple[Signal, ...]
    ignored: tuple[str, ...]


class FeedView(msgspec.Struct, frozen=True, kw_only=True):
    """A feed: where it is looked at and how often, when last, when last with success, and why it could not be taken ("" where it could)."""

    name: str
    form: str
    url: str
    every_s: int
    looked_ms: int = 0
    good_ms: int = 0
    why: str = ""


class FeedList(msgspec.Struct, frozen=True, kw_only=True):
    """All feeds of this server, by name."""

    items: tuple[FeedView, ...]


class CoinBody(msgspec.Struct, frozen=True, kw_only=True):
    """A coin's terms; with `sure`, a jump is believed."""

    algorithm: str = ""
    price_usd: float
    network_hs: float
    block_s: float
    reward: float
    source: str = ""
    sure: bool = False


class CoinList(msgspec.Struct, frozen=True, kw_only=True):
    """All coins, by name."""

    items: tuple[Coin, ...]


class FillerView(msgspec.Struct, frozen=True, kw_only=True):
    """A filler, how many cards it is on, what it brings now (US$ an hour, before power) and why it is not on more. `promised` and `read` are hashes a second of the cards
    of this machine whose miner answers: what its file says, what the miner says.
    """

    filler: Filler
    cards: int = 0
    usd_h: float = 0.0
    watts: float = 0.0
    break_even_usd_kwh: dict[str, float] = {}
    promised: float = 0.0
    read: float = 0.0
    why: str = ""


class FillerList(msgspec.Struct, frozen=True, kw_only=True):
    """All fillers, by name."""

    items: tuple[FillerView, ...]


class AsicBody(msgspec.Struct, frozen=True, kw_only=True):
    """Mining machines as they were found."""

    asics: tuple[Asic, ...]


class AsicLimitBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a mining machine may draw (W); 0 as it did before."""

    watts: float


class AsicList(msgspec.Struct, frozen=True, kw_only=True):
    """All mining machines, by name."""

    items: tuple[Asic, ...]


class UseView(msgspec.Struct, frozen=True, kw_only=True):
    """What the site's watts are spent on: at the meter, US$ an hour that it brings and that its power costs."""

    what: str
    watts: float
    earns_usd_h: float
    power_usd_h: float


class ModelNow(msgspec.Struct, frozen=True, kw_only=True):
    """A site's cards of one model now: how many are sold, fill and sleep, what they bring together, and what one card leaves in an hour sold on demand, with its best filler
    ("" for none) and asleep; US$, after power.
    """

    model: str
    sold: int
    filling: int
    asleep: int
    now_usd_h: float
    sold_usd_h: float
    filler: str
    filler_usd_h: float
    asleep_usd_h: float


class HourView(msgspec.Struct, frozen=True, kw_only=True):
    """An hour of the schedule: the price, the limit (0 for none), what is to be drawn, by use, and what one more kWh would be worth."""

    start_ms: int
    usd_kwh: float
    limit_w: float
    meter_w: float
    by_use_w: dict[str, float]
    marginal_usd_kwh: float


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """A rung of the ladder: how many loads, watts at the meter, US$ an hour lost, seconds until they are gone and until they are back."""

    rung: str
    loads: int
    watts: float
    usd_h: float
    seconds: int
    back_seconds: int


class PowerView(msgspec.Struct, frozen=True, kw_only=True):
    """A site's power now and for the next day. `usd_kwh` is null where no tariff or price is known; `measured` is the share of the watts that was read rather than assumed."""

    site: str
    now_ms: int
    contract_w: int
    limit_w: float
    pue: float
    tariff: str
    usd_kwh: float | None
    meter_w: float
    going_w: float
    measured: float
    net_usd_h: float
    uses: tuple[UseView, ...]
    hours: tuple[HourView, ...]
    ladder: tuple[Step, ...]
    postures: tuple[Posture, ...]
    signals: tuple[Signal, ...]
    spot_floor_usd_h: dict[str, float]
    reached_w: dict[str, float]
    planned_ms: int = 0


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a card could do: US$ an hour that it earns, that its power costs, and what is left. `now` marks what it does."""

    what: str
    earns_usd_h: float
    power_usd_h: float
    net_usd_h: float
    now: bool = False
    note: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a card, a rack or a site does what it does now, in US$ an hour for each alternative."""

    subject: str
    does: str
    why: str
    usd_kwh: float | None
    alternatives: tuple[Alternative, ...]
    limits: tuple[str, ...] = ()


class Profit(msgspec.Struct, frozen=True, kw_only=True):
    """What something brought and cost: kWh at the meter, what they cost, what was sold, what was mined, what is left; `measured` is the share of the kWh that was read."""

    name: str
    kwh: float
    energy_nano: int
    sold_nano: int
    mined_nano: int
    net_nano: int
    measured: float


class ProfitHour(msgspec.Struct, frozen=True, kw_only=True):
    """An hour of all together: kWh at the meter, US$."""

    start_ms: int
    kwh: float
    energy_usd: float
    sold_usd: float
    mined_usd: float

    @property
    def net_usd(self) -> float:
        """What was left."""
        return self.sold_usd + self.mined_usd - self.energy_usd


class ProfitList(msgspec.Struct, frozen=True, kw_only=True):
    """Profits of a time, the best first, and all together."""

    by: str
    since_ms: int
    until_ms: int
    items: tuple[Profit, ...]
