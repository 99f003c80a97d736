"""What an owner of mining rigs would earn by keeping on, by selling hours as batch work, inference or training (each needs its own upgrades), or by selling the hardware: from an
inventory alone.

Everything is US$ of a month of 730 hours. Mining: hashrate × coin × (1 - fees) - power; renting: price × share of hours sold - power, and what mining brings in the hours between.
Watts at the wall are the cards' and the host's over the supplies' efficiency, times the site's PUE. What is assumed is a field of `Assumptions`, shown with every plan; what is not
known is said. Formulas and typical figures: https://en.bitcoin.it/wiki/Mining for revenue by hashrate; the rest is arithmetic.
"""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from headframe.model.fleet import Rig
from headframe.model.pivot import ALGORITHMS, Assumptions, Band, FleetPlan, Option, RigPlan, Sensitivity
from headframe.model.units import counted

HOURS, DAYS = 730.0, 365 / 12
DRAWS = 4000
AI_POWER, IDLE_W = 0.8, 18.0
"""A rented card draws this much of its limit on average; a card that waits draws some watts."""
LEAST_MIB = {"batch": 6 * 1024, "inference": 8 * 1024, "training": 12 * 1024}
"""Cards with less memory are not sold as that: an 8-billion-parameter model at 4 bits with its cache needs 6 to 8 GiB, adapters trained on one 12."""
COIN_SPREAD, RENT_SPREAD, SOLD_SPREAD, POWER_SPREAD = 1.03, 0.25, 0.35, 0.15
"""Standard deviations of logarithms. The coin's makes nine in ten draws span a factor of 30, as the gross revenue of ETC per hash did from 2017 to 2020."""


class CardFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model: what it rents for (None: no source), what it may draw, and what it mines (rate and watts, by algorithm)."""

    name: str
    rent_usd_h: float | None
    limit_w: float
    memory_mib: int
    mines: dict[str, tuple[float, float]] = {}


class Draw(msgspec.Struct, frozen=True, kw_only=True):
    """Factors on coin, rent, share sold and power: numbers, or arrays of draws."""

    coin: Any = 1.0
    rent: Any = 1.0
    sold: Any = 1.0
    power: Any = 1.0


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """Something to do with a rig: the work that it is sold as, and what is bought first: memory and an SSD, hosts with real slots, a network, cards for slots that are left empty."""

    kind: str
    sells: str = ""
    host: bool = False
    slots: bool = False
    network: bool = False
    adds: bool = False


KEEP, RESALE = Way(kind="keep mining"), Way(kind="sell the hardware")
BATCH, INFERENCE = Way(kind="sell as batch", sells="batch"), Way(kind="memory and disk, sell as inference", sells="inference", host=True)
TRAINING = Way(kind="real slots, sell as training", sells="training", host=True, slots=True)
NETWORK = Way(kind="real slots and network, sell as training", sells="training", host=True, slots=True, network=True)
ADDED = Way(kind="real slots and network, cards added, sell as training", sells="training", host=True, slots=True, network=True, adds=True)
WAYS = (KEEP, BATCH, INFERENCE, TRAINING, NETWORK, ADDED, RESALE)


def facts(gpus: str, rents: str) -> dict[str, CardFacts]:
    """The models of `gpus.csv` with what `gpu_rents.csv` lists, by name."""
    offers = [(_plain(row["accelerator"]), row["vram_gib"], float(row["median_usd_h"])) for row in csv.DictReader(rents.splitlines())]
    listed = {name: usd_h for name, _, usd_h in offers}
    sized = {(name, vram_gib): usd_h for name, vram_gib, usd_h in offers}
    found: dict[str, CardFacts] = {}
    for row in csv.DictReader(gpus.splitlines()):
        name, plain = row["model"], _plain(row["model"])
        short = plain.removesuffix(row["vram_gib"] + "gb")
        rent = sized.get((short, row["vram_gib"])) or listed.get(plain) or listed.get(short)
        watts = float(row["mining_power_w"] or 0)
        mines = {
            algorithm: (float(row[column]), watts or 0.75 * float(row["tdp_w"] or 200)) for algorithm, column in ALGORITHMS.items() if row[column]
        }
        found[name] = CardFacts(
            name=name, rent_usd_h=rent, limit_w=float(row["tdp_w"] or 200), memory_mib=int(float(row["vram_gib"]) * 1024), mines=mines
        )
    return found


def plan(
    rigs: Sequence[Rig], named: Callable[[str, int], str | None], known: Mapping[str, CardFacts], assumed: Assumptions, rng: np.random.Generator
) -> FleetPlan:
    """The plan of a fleet; `named` is a model's name in the catalogue, from what an inventory calls it and its memory (MiB)."""
    draw = draws(rng)
    fleet = [
        (rig, [_facts(known, named(card.model, card.memory_mib), card.model, card.memory_mib) for card in rig.cards]) for rig in rigs if rig.cards
    ]
    rows = [_rig(rig, cards, assumed, draw) for rig, cards in fleet]
    plans, totals = [row for row, _ in rows], [total for _, total in rows]
    keep, best = sum(_of(row, KEEP).month_usd for row in plans), sum(row.options[0].month_usd for row in plans)
    capex = sum(row.options[0].capex_usd for row in plans)
    zero = np.zeros(DRAWS)
    return FleetPlan(
        rigs=tuple(plans), cards=sum(len(rig.cards) for rig in rigs), keep_usd=keep, plan_usd=best, capex_usd=capex,
        payback_months=capex / (best - keep) if capex > 0 and best > keep else None,
        keep_band=_band(sum((keeps for keeps, _ in totals), zero)), plan_band=_band(sum((bests for _, bests in totals), zero)),
        sensitivity=tuple(_sensitivity([cards for _, cards in fleet], assumed, plans)), assumptions=assumed,
        unknown=tuple(dict.fromkeys(each for row in plans for each in row.unknown)),
    )  # fmt: skip


def draws(rng: np.random.Generator) -> Draw:
    """Factors whose middle is one."""

    def factor(spread: float) -> Any:
        return np.exp(rng.standard_normal(DRAWS) * spread)

    return Draw(coin=factor(COIN_SPREAD), rent=factor(RENT_SPREAD), sold=factor(SOLD_SPREAD), power=factor(POWER_SPREAD))


def month(way: Way, cards: Sequence[CardFacts], assumed: Assumptions, draw: Draw) -> Any:
    """US$ a month of a rig in one of the ways."""
    if way == RESALE:
        return 0.0 * draw.coin
    if way == KEEP:
        mined = sum((np.maximum(0.0, _mined(card, assumed, draw)) for card in cards), 0.0 * draw.coin)
        return np.maximum(0.0, mined - _power(assumed.host_w, assumed, draw))
    sold = np.minimum(0.95, sold_share(way, assumed) * draw.sold)
    total = -_power(assumed.host_w * _hosts(way, cards, assumed), assumed, draw) + 0.0 * draw.coin
    factor = (assumed.batch_price if way.sells == "batch" else 1.0) * (assumed.riser_price if _risers(cards, assumed) and not way.slots else 1.0)
    for card in (*cards, *_added(way, cards, assumed)):
        idle = np.maximum(_mined(card, assumed, draw), -_power(IDLE_W, assumed, draw))
        rent = rented(card, assumed, way)
        if rent is None:
            total = total + idle
            continue
        price = rent * factor * (1 - assumed.market_fee) * draw.rent
        total = total + sold * (price * HOURS - _power(AI_POWER * card.limit_w, assumed, draw)) + (1 - sold) * idle
    return total


def sold_share(way: Way, assumed: Assumptions) -> float:
    """Which share of the hours is sold."""
    return assumed.sold_network if way.network else getattr(assumed, f"sold_{way.sells}")


def rented(card: CardFacts, assumed: Assumptions, way: Way = BATCH) -> float | None:
    """US$ per hour that a card is taken to be rented for, uninterrupted; None where nobody would, or no price is known."""
    own = assumed.rents.get(card.name)
    return own if own is not None else card.rent_usd_h if card.memory_mib >= LEAST_MIB[way.sells] else None


def _mined(card: CardFacts, assumed: Assumptions, draw: Draw) -> Any:
    """US$ a month of a card that mines what pays best; where nothing is known, as one that waits."""
    best: Any = None
    for algorithm, (rate, watts) in card.mines.items():
        coin = assumed.coins.get(algorithm)
        if coin is not None:
            net = rate * coin * (1 - assumed.pool_fee) * DAYS * draw.coin - _power(watts, assumed, draw)
            best = net if best is None else np.maximum(best, net)
    return -_power(IDLE_W, assumed, draw) if best is None else best


def _power(watts: float, assumed: Assumptions, draw: Draw) -> Any:
    return watts / assumed.supply_efficiency * assumed.pue / 1000 * HOURS * assumed.power_usd_kwh * draw.power


def _rig(rig: Rig, cards: Sequence[CardFacts], assumed: Assumptions, draw: Draw) -> tuple[RigPlan, tuple[Any, Any]]:
    ways = [way for way in WAYS if _open(way, cards, assumed)]
    drawn = {way.kind: month(way, cards, assumed, draw) for way in ways}
    keep = float(month(KEEP, cards, assumed, Draw()))
    options = [_option(way, cards, assumed, drawn, keep) for way in ways]
    options.sort(key=lambda option: -_worth(option))
    said = Counter(card.name for card in cards)
    shown = ", ".join(f"{count} × {name}" for name, count in sorted(said.items()))
    return RigPlan(
        name=rig.name, cards=shown, options=tuple(options), why=_why(options, keep, cards, assumed), unknown=tuple(_unknown(rig, cards, assumed))
    ), (
        drawn[KEEP.kind],
        drawn[options[0].kind],
    )


def _open(way: Way, cards: Sequence[CardFacts], assumed: Assumptions) -> bool:
    """Whether there is any such thing to do: what is sold has a card that is rented, what is added or sold a price."""
    if way == RESALE:
        return any(card.name in assumed.resale for card in cards)
    if way.sells and not any(rented(card, assumed, way) is not None for card in cards):
        return False
    return not way.adds or bool(_added(way, cards, assumed))


def _capex(way: Way, cards: Sequence[CardFacts], assumed: Assumptions) -> float:
    if way == RESALE:
        return -sum(assumed.resale.get(card.name, 0.0) for card in cards)
    hosts = _hosts(way, cards, assumed)
    rebuilt = hosts if way.slots and _risers(cards, assumed) else 0
    bought = assumed.host_usd * way.host + assumed.slots_usd * rebuilt + assumed.network_usd * hosts * way.network
    return bought + sum(assumed.resale[card.name] * assumed.added_price for card in _added(way, cards, assumed))


def _option(way: Way, cards: Sequence[CardFacts], assumed: Assumptions, drawn: Mapping[str, Any], keep: float) -> Option:
    sure, capex = float(month(way, cards, assumed, Draw())), _capex(way, cards, assumed)
    gain = sure - keep
    mining = sum(max((watts for _, watts in card.mines.values()), default=0.0) for card in cards)
    selling = sum(AI_POWER * card.limit_w for card in (*cards, *_added(way, cards, assumed)))
    watts = 0.0 if way == RESALE else assumed.host_w * _hosts(way, cards, assumed) + (mining if way == KEEP else selling)
    return Option(
        kind=way.kind, sells=way.sells, what=_bought(way, cards, assumed, capex), capex_usd=capex, month_usd=sure, watts=watts,
        payback_months=capex / gain if capex > 0 and gain > 0 else None, band=_band(drawn[way.kind]), better=float(np.mean(drawn[way.kind] > drawn[KEEP.kind])),
    )  # fmt: skip


def _bought(way: Way, cards: Sequence[CardFacts], assumed: Assumptions, capex: float) -> str:
    """What is paid for at first, in words."""
    if way in (KEEP, RESALE):
        return "as it is" if way == KEEP else f"{-capex:,.0f} US$ once"
    hosts, added = _hosts(way, cards, assumed), _added(way, cards, assumed)
    parts = [f"{counted(hosts, 'host')} with {assumed.slots_cards} real slots"] * (way.slots and _risers(cards, assumed)) + [
        "16 to 32 GB of memory, an SSD"
    ] * way.host
    parts += ["25 GbE"] * way.network + ([f"{len(added)} × {added[0].name}"] if added else [])
    return f"{', '.join(parts)}: {capex:,.0f} US$" if parts else "as it is; mines between"


def _worth(option: Option) -> float:
    """What orders options: a month's income less a twenty-fourth of what it costs at first (two years are what a card of this age is given)."""
    return option.month_usd - option.capex_usd / 24


def _why(options: Sequence[Option], keep: float, cards: Sequence[CardFacts], assumed: Assumptions) -> str:
    best = options[0]
    if not any(rented(card, assumed) is not None or assumed.coins.keys() & card.mines.keys() for card in cards):
        return "nothing is known that it could earn: measure it (`headframe check`), or give prices"
    if best.kind == KEEP.kind:
        return "nothing else would bring more" if keep > 0 else "neither mining nor renting covers its power: switch it off"
    paid = f", paid for after {best.payback_months:.1f} months" if best.payback_months else ""
    return f"{best.month_usd - keep:+,.0f} US$ a month against keeping on{paid}; better in {best.better:.0%} of the draws"


def _unknown(rig: Rig, cards: Sequence[CardFacts], assumed: Assumptions) -> list[str]:
    found = [
        f"what a {card.name} rents for: no listed price (--rent '{card.name}=0.10')"
        for card in cards
        if rented(card, assumed) is None and card.memory_mib >= LEAST_MIB[BATCH.sells]
    ]
    if not assumed.coins:
        found.append("what coins pay: give --coin etchash=0.02 (US$ a day for 10^6 hashes/s), else mining counts as nothing")
    if _risers(cards, assumed):
        found.append(f"links: a rig of {len(cards)} cards is taken to have risers (from {assumed.risers_from} on)")
    if not rig.memory_mib:
        found.append("memory of hosts: taken to be too little until upgraded")
    if not any(card.name in assumed.resale for card in cards):
        found.append("what cards sell for: give --resale 'GeForce RTX 3090=550', else neither selling nor adding cards is looked at")
    return list(dict.fromkeys(found))


def _sensitivity(fleet: Sequence[Sequence[CardFacts]], assumed: Assumptions, plans: Sequence[RigPlan]) -> list[Sensitivity]:
    def total(draw: Draw, ways: Sequence[Way]) -> float:
        return sum(float(month(way, cards, assumed, draw)) for way, cards in zip(ways, fleet, strict=True))

    cases = [("as assumed", Draw()), ("half as many hours sold", Draw(sold=0.5)), ("half again as many hours sold", Draw(sold=1.5)), ("rents a third lower", Draw(rent=2 / 3)),
             ("coin a fifth", Draw(coin=0.2)), ("coin five times", Draw(coin=5.0)), ("coin thirty times", Draw(coin=30.0)), ("power half", Draw(power=0.5)), ("power twice", Draw(power=2.0))]  # fmt: skip
    named = {way.kind: way for way in WAYS}
    keep, chosen = [KEEP] * len(fleet), [named[row.options[0].kind] for row in plans]
    return [Sensitivity(what=what, keep_usd=total(draw, keep), plan_usd=total(draw, chosen)) for what, draw in cases]


def _facts(known: Mapping[str, CardFacts], name: str | None, said: str, memory_mib: int) -> CardFacts:
    """Of a model that is not in the catalogue nothing is known but what the owner says."""
    return known[name] if name is not None and name in known else CardFacts(name=said, rent_usd_h=None, limit_w=200.0, memory_mib=memory_mib)


def _risers(cards: Sequence[CardFacts], assumed: Assumptions) -> bool:
    return len(cards) >= assumed.risers_from


def _hosts(way: Way, cards: Sequence[CardFacts], assumed: Assumptions) -> int:
    """How many machines the cards are in afterwards."""
    return -(-len(cards) // assumed.slots_cards) if way.slots and _risers(cards, assumed) else 1


def _added(way: Way, cards: Sequence[CardFacts], assumed: Assumptions) -> list[CardFacts]:
    """Cards for the slots that are left empty: of the kind there is most of among those that can be sold as this and have a price."""
    priced = [card for card in cards if way.adds and card.name in assumed.resale and rented(card, assumed, way) is not None]
    if not priced:
        return []
    most = Counter(card.name for card in priced).most_common(1)[0][0]
    return [next(card for card in priced if card.name == most)] * (_hosts(way, cards, assumed) * assumed.slots_cards - len(cards))


def _of(row: RigPlan, way: Way) -> Option:
    return next(option for option in row.options if option.kind == way.kind)


def _band(values: Any) -> Band:
    p10, p50, p90 = (float(each) for each in np.percentile(values, [10, 50, 90]))
    return Band(p10=p10, p50=p50, p90=p90)


def _plain(name: str) -> str:
    plain = "".join(filter(str.isalnum, name.lower()))
    for noise in ("geforce", "radeon", "nvidia", "amd", "quadro", "tesla", "instinct"):
        plain = plain.replace(noise, "")
    return plain
