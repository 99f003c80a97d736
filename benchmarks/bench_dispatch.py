"""What dispatch earns: a year of real prices, a site of 1,600 GPUs and 3 MW of ASICs, a real job trace as demand; beside simpler policies and the optimum with perfect foresight.

`python benchmarks/bench_dispatch.py [--market ercot-2023] [--days 366] [--solve]`

Every policy only chooses how many cards of each kind do what at which cap in each hour; one function accounts for all of them: revenue at the speed of the cap, energy at the meter,
demand charges by the month's highest hour, a minute of mining lost at each start of a miner. Demand: the trace's jobs at the times they were submitted, repeated to fill the year; of 8 and
more GPUs firm, of less than 4 hours spot, others batch that can wait. What is not served at its time is lost (spot) or waits (batch). Rents: medians of listed prices
(src/headframe/data/gpu_rents.csv), spot at half. The bound: the whole year as one programme with everything known; no policy can do better.
"""

import argparse
import csv
import gzip
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from headframe.dispatch.plan import Asics, Pool, Programme, Site, Work, solved
from headframe.dispatch.power import modes
from headframe.dispatch.settle import GAIN
from headframe.dispatch.tariff import Peak
from headframe.model.power import LoadClass as L

DATA = Path(__file__).parent / "data"
PUE, STATIC_W, CONTRACT_W = 1.1, 45_000.0, 2_700_000.0
MODELS = {  # cards, limit W, rent US$/h, mining US$ per hour and W (benchmark's assumption: Pearl-like and KawPow-like income, gross)
    "3090": (960, 350.0, 0.18, 0.030, 280.0), "4090": (480, 450.0, 0.34, 0.055, 350.0), "a100": (160, 400.0, 0.90, 0.040, 300.0),
}  # fmt: skip
SPEED_SHARE = {"3090": 0.6, "4090": 0.3, "a100": 0.1}
ASIC_COUNT, ASIC_W, ASIC_TH = 857, 3500.0, 200.0
HORIZON = 48
LIKE_DAYS = 14
START_H = 1 / 60
CHARGE_USD_KW = 6.0
"""A month's highest hour on weekdays from 16 to 20 o'clock UTC-6, June to September."""


def prices(name):
    rows = list(csv.DictReader(gzip.open(DATA / "prices" / f"{name}.csv.gz", "rt")))
    usd = np.array([float(row["mwh"]) if row["mwh"] else np.nan for row in rows]) / 1000
    usd[np.isnan(usd)] = np.nanmean(usd)
    return [datetime.strptime(row["utc"], "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC) for row in rows], usd


def hashprice():
    return {row["month"]: float(row["usd_ph_day"]) for row in csv.DictReader(open(DATA / "prices" / "hashprice.csv"))}


def demand(hours):
    """GPUs running of firm and of spot work in each hour, GPU-hours of batch work that arrive in each; repeated to fill the year."""
    jobs = [
        tuple(map(int, (row["submit_s"], row["duration_s"], row["gpus"])))
        for row in csv.DictReader(gzip.open(next((DATA / "itp2021").glob("*.gz")), "rt"))
    ]
    span = (max(at for at, _, _ in jobs) // 604_800) * 168  # whole weeks
    firm, spot, batch = np.zeros(span), np.zeros(span), np.zeros(span)
    for at, lasts, gpus in jobs:
        first, last = at / 3600, (at + lasts) / 3600
        if first >= span:
            continue
        if gpus < 8 and lasts >= 4 * 3600:
            batch[int(first)] += gpus * lasts / 3600
            continue
        into = firm if gpus >= 8 else spot
        for hour in range(int(first), min(span, int(last) + 1)):
            into[hour] += gpus * (min(last, hour + 1) - max(first, hour))
    scale = np.array([480.0, 320.0, 480.0]) / [firm.mean(), spot.mean(), batch.mean()]
    take = np.arange(hours) % span
    return np.minimum(firm[take] * scale[0], 720.0), spot[take] * scale[1], batch[take] * scale[2]


class Year:
    """Everything that is given: by hour."""

    def __init__(self, market, days):
        self.at, self.price = prices(market)
        count = min(len(self.at), days * 24)
        self.at, self.price = self.at[:count], self.price[:count]
        self.firm, self.spot, self.batch = demand(count)
        known = hashprice()
        self.asic_usd_h = np.array([known[f"{at:%Y-%m}"] * ASIC_TH / 1000 / 24 for at in self.at])
        self.month = np.array([at.year * 12 + at.month for at in self.at])
        local = np.array([(at.hour - 6) % 24 for at in self.at])
        self.peak = np.array([6 <= at.month <= 9 and at.weekday() < 5 for at in self.at]) & (local >= 16) & (local < 20)
        rng = np.random.default_rng(7)
        self.limit = np.full(count, CONTRACT_W)
        for month in sorted(set(self.month)):
            inside = np.nonzero(self.month == month)[0]
            for start in rng.choice(inside[:-3], size=min(2, len(inside) // 100 + 1), replace=False):
                self.limit[start : start + 3] *= 0.7  # a grid event: -30 % for three hours

    def site(self, hours, backlog, reached, on=None, seen=None, caps=True):
        """The programme of some hours. `seen` is what demand is taken to be; by default what it is."""
        firm, spot, batch = seen if seen is not None else (self.firm[hours], self.spot[hours], self.batch[hours])
        work = []
        for model, (_cards, limit, rent, mine, mine_w) in MODELS.items():
            share, draw, one = SPEED_SHARE[model], {model: limit * 0.85}, ((1.0, 1.0),)
            curve = None if caps else one
            work.append(Work(id=f"firm-{model}", kind=L.FIRM, usd_h=rent, draw_w=draw, cards=tuple(firm * share)))
            work.append(Work(id=f"spot-{model}", kind=L.SPOT, usd_h=rent / 2, draw_w=draw, cards=tuple(spot * share), curve=curve))
            work.append(
                Work(
                    id=f"batch-{model}",
                    kind=L.BATCH,
                    usd_h=rent * 0.6,
                    draw_w=draw,
                    cards=tuple(batch * share),
                    can_wait=True,
                    waits=float(backlog.get(model, 0.0)),
                    curve=curve,
                )
            )
            bonus = 1.0 if on is None else 1 + GAIN if on.get(model) else 1 / (1 + GAIN)
            work.append(Work(id=f"mine-{model}", kind=L.FILLER, usd_h=mine * bonus, draw_w={model: mine_w}, cards=(1e6,) * len(hours), curve=curve))
        asic = float(self.asic_usd_h[hours[0]])
        bonus = 1.0 if on is None else 1 + GAIN if on.get("asic") else 1 / (1 + GAIN)
        peaks = ()
        if self.peak[hours].any():
            first, marked = hours[0], self.peak[hours] & (self.month[hours] == self.month[hours[0]])
            left = int(self.peak[first:][self.month[first:] == self.month[first]].sum()) - int(marked.sum())
            like = self.price[max(0, first - 24 * LIKE_DAYS) : first + 24][self.peak[max(0, first - 24 * LIKE_DAYS) : first + 24]]
            peaks = (Peak(name="summer", usd_kw=CHARGE_USD_KW, within=tuple(map(bool, self.peak[hours])), reached_w=reached,
                          later_h=left if len(hours) <= 2 * HORIZON else 0, like_usd_kwh=tuple(map(float, like))),)  # fmt: skip
        return Site(hours=1, usd_kwh=tuple(self.price[hours]), limit_w=tuple(self.limit[hours]), pue=PUE, static_w=STATIC_W, work=tuple(work), peaks=peaks,
                    pools=tuple(Pool(id=model, rack=model, cards=cards, idle_w=min(0.08 * limit, 80.0)) for model, (cards, limit, *_) in MODELS.items()),
                    asics=(Asics(id="asic", count=ASIC_COUNT, watts=ASIC_W, usd_h=asic * bonus),))  # fmt: skip


class Books:
    """What a year of choices comes to."""

    def __init__(self, year):
        self.year, self.usd, self.kwh, self.violations, self.short = year, 0.0, 0.0, 0, 0.0
        self.backlog = dict.fromkeys(MODELS, 0.0)
        self.reached, self.month, self.on, self.starts = 0.0, None, {}, 0.0

    def hour(self, t, did):
        """`did[(work, model)] = [(x, cards)]`, `did["asic"] = count`."""
        year, earned, watts = self.year, 0.0, 0.0
        if year.month[t] != self.month:
            self.usd -= self.reached / 1000 * CHARGE_USD_KW
            self.month, self.reached = year.month[t], 0.0
        for model, (cards, limit, rent, mine, mine_w) in MODELS.items():
            idle, used, mining = min(0.08 * limit, 80.0), 0.0, 0.0
            self.backlog[model] += year.batch[t] * SPEED_SHARE[model]
            for kind, worth, draw in (
                ("firm", rent, limit * 0.85),
                ("spot", rent / 2, limit * 0.85),
                ("batch", rent * 0.6, limit * 0.85),
                ("mine", mine, mine_w),
            ):
                for x, count in did.get((kind, model), ()):
                    speed = next(
                        mode.speed
                        for mode in modes({"firm": L.FIRM, "spot": L.SPOT, "batch": L.BATCH, "mine": L.FILLER}[kind])
                        if abs(mode.x - x) < 1e-6
                    )
                    if kind == "batch":
                        done = min(count * speed, self.backlog[model])
                        self.backlog[model] -= done
                        earned += done * worth
                    else:
                        earned += count * worth * speed
                    used += count
                    watts += count * (max(draw * x, idle) - idle)
                    mining += count if kind == "mine" else 0.0
            short = max(0.0, year.firm[t] * SPEED_SHARE[model] - sum(n for _, n in did.get(("firm", model), ())))
            self.short += short if did.get("sells", True) else 0.0
            assert used <= cards + 1e-3, (model, used)
            started = max(0.0, mining - self.on.get(model, 0.0))
            earned -= started * mine * START_H
            self.starts += started
            self.on[model] = mining
            watts += cards * idle
        asics = did.get("asic", 0.0)
        earned += asics * year.asic_usd_h[t] - max(0.0, asics - self.on.get("asic", 0.0)) * year.asic_usd_h[t] * 5 * START_H
        self.on["asic"] = asics
        meter = PUE * (watts + STATIC_W + asics * ASIC_W)
        self.violations += meter > year.limit[t] * (1 + 1e-6)
        self.reached = max(self.reached, meter) if year.peak[t] else self.reached
        self.kwh += meter / 1000
        self.usd += earned - meter / 1000 * year.price[t]

    def net(self):
        return self.usd - self.reached / 1000 * CHARGE_USD_KW


def programmed(year, horizon=HORIZON, caps=True, calm=True):
    """The product's: a rolling programme, prices known a day ahead and then taken to be those of a day before, as the demand of the coming hours is."""
    books = Books(year)
    for t in range(len(year.price)):
        hours = np.arange(t, min(t + horizon, len(year.price)))
        before = np.maximum(hours - 24, 0)
        seen = tuple(np.where(hours == t, series[hours], series[before]) for series in (year.firm, year.spot, year.batch))
        reached = books.reached if year.month[t] == books.month else 0.0
        on = {model: books.on.get(model, 0.0) > 0 for model in (*MODELS, "asic")} if calm else None
        site = year.site(hours, books.backlog, reached, on, seen, caps)
        known = site.usd_kwh[:24]
        site = msgspec.structs.replace(site, usd_kwh=known + known[: max(0, len(hours) - 24)])
        schedule, _ = solved(site)
        assert schedule is not None
        did = {"asic": schedule.asics["asic"][0]}
        for use in schedule.uses:
            kind, model = use.work.split("-")
            did.setdefault((kind, model), []).append((use.x, use.cards[0]))
        books.hour(t, did)
    return books


def merit(year, capped=False, sells=True, mines=lambda price, margin_usd_kwh: price < margin_usd_kwh, mining_share=None, asics=True):
    """What brings most for each card goes first, hour by hour, until cards or watts are used up."""
    books = Books(year)
    for t in range(len(year.price)):
        price, room = year.price[t] * PUE, year.limit[t] / PUE - STATIC_W - sum(n * min(0.08 * w, 80.0) for n, w, *_ in MODELS.values())
        options, left, did = [], {}, {"sells": sells}
        for model, (cards, limit, rent, mine, mine_w) in MODELS.items():
            idle = min(0.08 * limit, 80.0)
            left[model, "ai"], left[model, "mine"] = (cards, cards) if mining_share is None else (cards * (1 - mining_share), cards * mining_share)
            wants = {"firm": year.firm[t], "spot": year.spot[t], "batch": books.backlog[model] / SPEED_SHARE[model] + year.batch[t]} if sells else {}
            for kind, asked in wants.items():
                worth = {"firm": rent, "spot": rent / 2, "batch": rent * 0.6}[kind]
                for mode in modes({"firm": L.FIRM, "spot": L.SPOT, "batch": L.BATCH}[kind]) if capped else modes(L.FIRM):
                    watts = limit * 0.85 * mode.x - idle
                    options.append(
                        (
                            worth * mode.speed - watts / 1000 * price,
                            kind,
                            model,
                            mode.x,
                            watts,
                            asked * SPEED_SHARE[model] / (mode.speed if kind == "batch" else 1.0),
                            "ai",
                        )
                    )
            for mode in modes(L.FILLER) if capped else modes(L.FILLER)[:1]:
                watts = mine_w * mode.x - idle
                if mines(year.price[t], mine * mode.speed / (watts * PUE / 1000)):
                    options.append((mine * mode.speed - watts / 1000 * price, "mine", model, mode.x, watts, 1e9, "mine"))
        if asics and mines(year.price[t], year.asic_usd_h[t] / (ASIC_W * PUE / 1000)):
            options.append((year.asic_usd_h[t] - ASIC_W / 1000 * price, "asic", "asic", 1.0, ASIC_W, ASIC_COUNT, "asic"))
        left["asic", "asic"] = ASIC_COUNT
        done = {}
        by = (lambda o: (o[1] != "firm", -o[0] / o[4])) if capped and room < 900_000 else (lambda o: (o[1] != "firm", o[1] == "asic", -o[0]))
        for _, kind, model, x, watts, asked, part in sorted(options, key=by):
            part = "ai" if mining_share is None and kind == "mine" else part
            count = max(0.0, min(asked - done.get((kind, model), 0.0), left[model, part], room / watts))
            if kind == "asic":
                did["asic"] = count
            elif count:
                did.setdefault((kind, model), []).append((x, count))
            done[kind, model] = done.get((kind, model), 0.0) + count
            left[model, part] -= count
            room -= count * watts
        books.hour(t, did)
    return books


def bound(year):
    """The whole year as one programme, everything known; what is not done by its end is not paid, as in the books."""
    hours = np.arange(len(year.price))
    site = year.site(hours, {}, 0.0)
    months = [tuple(bool(x) for x in year.peak & (year.month == month)) for month in sorted(set(year.month))]
    site = msgspec.structs.replace(
        site, late_share_h=0.0, left_share=0.0, peaks=tuple(Peak(name=str(n), usd_kw=CHARGE_USD_KW, within=within) for n, within in enumerate(months) if any(within)),
        asics=tuple(msgspec.structs.replace(asics, usd_h=tuple(year.asic_usd_h)) for asics in site.asics),
    )  # fmt: skip
    schedule, _ = solved(site, 3600.0, interior=True)
    assert schedule is not None
    return schedule.net_usd


POLICIES = {
    "mine only": lambda year: merit(year, sells=False, mines=lambda *_: True), "AI only": lambda year: merit(year, mines=lambda *_: False),
    "a quarter mines": lambda year: merit(year, mining_share=0.25, mines=lambda *_: True), "half mines": lambda year: merit(year, mining_share=0.5, mines=lambda *_: True),
    "three quarters mine": lambda year: merit(year, mining_share=0.75, mines=lambda *_: True),
    "AI, mines at any price": lambda year: merit(year, mines=lambda *_: True), "mines below break-even": merit, "greedy with caps": lambda year: merit(year, capped=True),
    "ours": programmed, "ours without caps": lambda year: programmed(year, caps=False), "ours, an hour ahead": lambda year: programmed(year, horizon=1),
    "ours, restless": lambda year: programmed(year, calm=False),
}  # fmt: skip


def solve_times():
    rng = np.random.default_rng(1)
    for racks, grouped, steps in ((200, 40, 24), (5000, 200, 24), (200, 200, 1)):
        pools = tuple(Pool(id=f"p{n}", rack=f"r{n}", cards=8 * racks // grouped, idle_w=25) for n in range(grouped))
        ids, cards = [pool.id for pool in pools], 8 * racks
        work = [Work(id=kind, kind=kind, usd_h=usd, draw_w=dict.fromkeys(ids, 300.0), cards=tuple(rng.uniform(0.1, 0.3, steps) * cards), can_wait=kind is L.BATCH)
                for kind, usd in ((L.FIRM, 0.5), (L.ONLINE, 0.4), (L.BATCH, 0.2), (L.SPOT, 0.15))]  # fmt: skip
        work.append(Work(id="mine", kind=L.FILLER, usd_h=0.05, draw_w={key: 220.0 + n % 5 for n, key in enumerate(ids)}, cards=(1e9,) * steps))
        site = Site(hours=1, usd_kwh=tuple(rng.lognormal(-3, 0.6, steps)), limit_w=(0.6 * cards * 330,) * steps, pue=1.15, pools=pools, work=tuple(work),
                    racks={pool.rack: pool.cards * 250.0 for pool in pools})  # fmt: skip
        began = time.perf_counter()
        programme = Programme(site)
        built = time.perf_counter() - began
        _, basis = programme.solve()
        cold = time.perf_counter() - began - built
        began = time.perf_counter()
        Programme(site).solve(start=basis)
        print(
            f"{racks} racks as {grouped}, {steps} intervals: built in {built * 1000:.0f} ms, solved in {cold * 1000:.0f} ms, again from its basis {1000 * (time.perf_counter() - began):.0f} ms with building"
        )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--market", action="append", choices=("ercot-2023", "caiso-2024", "de-2024"))
    parser.add_argument("--days", type=int, default=366)
    parser.add_argument("--solve", action="store_true", help="only how long solving takes")
    chosen = parser.parse_args()
    solve_times()
    for market in () if chosen.solve else chosen.market or ("ercot-2023", "caiso-2024", "de-2024"):
        year = Year(market, chosen.days)
        best = bound(year)
        print(f"\n{market}, {len(year.price) // 24} days: bound US$ {best:,.0f}")
        for name, policy in POLICIES.items():
            began = time.perf_counter()
            books = policy(year)
            net = books.net()
            print(f"{name:>24}: US$ {net:12,.0f} {net / best:7.2%} of the bound, {net / books.kwh * 100:6.2f} US¢/kWh, over the limit in {books.violations} h, firm card-hours short {books.short:,.0f}, "
                  f"miners started {books.starts:,.0f}, {time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
