"""Dispatch end to end in virtual time: days of real prices and real jobs through the real tick, placement, ladder, fillers and solver, with machines that fail, beside the optimum that knows
everything and knows of no machines.

`python benchmarks/bench_dispatch_tick.py [--market ercot-2023] [--from 180] [--days 7] [--nodes 25] [--asics 0] [--look 30] [--seed 1]`

A site of RTX 3090, eight to a machine, and of so many mining machines of 3.5 kW for each 100 cards (54 as in bench_dispatch) that do what they are told at once and earn the month's hash price, five minutes less at each start. Jobs are those of the trace at its own pace, thinned until they ask for three quarters of the cards: of eight and more cards on-demand (gangs over several
machines), of less than four hours spot, the others spot with a checkpoint. Idle cards mine. Prices are told a day ahead; a limit of 30 % less comes for three hours twice (of more than two weeks: each fortnight); each machine fails once
in ten days and is away for four hours. The site is looked at every `--look` seconds, again at once where something was granted or ended, and after 5 s where something waits, as a server does. Money is counted at each look: what is sold at its price, what is mined, what the meter draws at the hour's price. Work that is lost with its machine or shed before its
checkpoint is done again: paid once, as its owner is credited. The bound is one programme over all hours that places card-hours of all jobs at will after they were submitted, without machines, gangs, dwells or failures.
"""

import argparse
import asyncio
import csv
import gzip
import heapq
import sys
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from bench_curtailment import HOUR_MS, Drill
from bench_dispatch import ASIC_TH, ASIC_W, DATA, hashprice, prices
from headframe.dispatch.plan import Asics, Pool, Site, Work, solved
from headframe.dispatch.power import DRAW_SHARE, idle_w
from headframe.dispatch.survey import limit_w, surveyed
from headframe.model.command import MoveNode, SetPrices, SetSite, Submit, TakeSignal, TellAsics, TellCoin, TellMarket
from headframe.model.ids import KeyId, ProjectId, WorkloadId
from headframe.model.money import GpuPrice
from headframe.model.power import Asic, AsicState, Coin, LoadClass, MarketDay, Signal, SignalKind, Tariff
from headframe.model.states import AllocationState, Reason, Service
from headframe.model.units import MS_PER_DAY, NANO_PER_USD
from headframe.model.work import GpuRequest, Resources, Retry, Spec, Tier
from headframe.server.asics import Machines
from headframe.server.decide import SITE
from headframe.simulate.world import START_MS, run_now

LIMIT_W, PUE, MINED_USD_H, MINE_W = 350, 1.1, 0.0297, 280.0
ON_DEMAND, SPOT = 0.18, 0.09
SHARES = (0.3, 0.2, 0.25)
"""Of the cards, what on-demand, spot and batch work ask for on average, as in bench_dispatch."""
SOON_MS = 5_000
"""A server looks so often, and here where something waits for its watts."""
FAILS_DAYS, AWAY_MS = 10.0, 4 * HOUR_MS


def jobs(days, cards, rng):
    """(hour of submission, hours, cards) of a thinned part of the trace."""
    rows = csv.DictReader(gzip.open(next((DATA / "itp2021").glob("*.gz")), "rt"))
    found = [(int(row["submit_s"]) / 3600, int(row["duration_s"]) / 3600, int(row["gpus"])) for row in rows]
    span = max(at for at, _, _ in found) // 168 * 168  # whole weeks; after them the trace begins again
    start = sorted(at for at, _, _ in found)[len(found) // 3]
    found = [
        ((at - start) % span + again * span, min(lasts, 24.0), gpus)
        for at, lasts, gpus in found
        if at < span and gpus <= cards // 4
        for again in range(int(24 * days // span) + 1)
    ]
    found = [job for job in found if job[0] < 24 * days]
    kept = []
    for share, kind in zip(SHARES, ("firm", "spot", "batch"), strict=True):
        mine = [job for job in found if kind_of(job) == kind]
        keep = share * cards * 24 * days / sum(lasts * gpus for _, lasts, gpus in mine)
        kept += [job for job in mine for _ in range(int(keep)) or (0,) if keep >= 1 or rng.random() < keep]
    return sorted(kept)


def kind_of(job):
    _, lasts, gpus = job
    return "firm" if gpus >= 8 else "spot" if lasts < 4 else "batch"


class Days(Drill):
    """The drill's world, with a market, jobs that come by themselves, and machines that fail."""

    def __init__(self, nodes, seed, usd_kwh, work, asics):
        super().__init__(nodes, seed)
        self.usd_kwh, self.work, self.cards = usd_kwh, work, nodes * 8
        self.contract_w = contract_w(self.cards, asics)
        self.asics = [
            Asic(id=f"asic-{n:04}", name=f"s{n}", ip=f"10.0.{n // 250}.{n % 250 + 1}", model="S19", hashes_s=ASIC_TH * 1e12, watts=ASIC_W, can_stop=True, state=AsicState.MINING)
            for n in range(asics)
        ]  # fmt: skip
        self.mining, self.asic_usd_h = asics, 0.0
        self.machines = Machines(self.desk, SimpleNamespace(epoch=None), self.seen, self.told, self.told)
        self.do(SetSite(site_id=SITE, pue=PUE, contract_w=round(self.contract_w), tariff=Tariff(name="t", market="hub")))
        self.do(
            SetPrices(
                gpus=(
                    GpuPrice(
                        model="RTX 3090",
                        on_demand_nano=int(ON_DEMAND * NANO_PER_USD),
                        spot_nano=int(SPOT * NANO_PER_USD),
                        reserved_nano=int(SPOT * NANO_PER_USD),
                    ),
                )
            )
        )
        self.tiers, self.hours, self.back = {}, {}, {}
        self.usd = dict.fromkeys(("sold", "mined", "asics", "energy"), 0.0)
        self.over_s = self.over = self.failed = self.waited = 0.0

    async def seen(self, ips):
        """Machines say what they were told."""
        rows = {row.ip: row for row in self.desk.world.asics.values()}
        return [rows[ip] for ip in ips]

    async def told(self, asic):
        """It does it."""
        return ""

    def tell_hashes(self, usd_ph_day):
        """This month's hash price, pool's fee taken."""
        self.asic_usd_h = usd_ph_day * ASIC_TH / 1000 / 24
        self.do(TellCoin(coin=Coin(id="BTC", algorithm="sha256", price_usd=usd_ph_day / 0.98, network_hs=1e15, block_s=86_400, reward=1)))
        if self.asics:
            self.do(TellAsics(asics=tuple(self.asics)))
            self.asics = []

    def tell(self, day):
        """Today's prices and tomorrow's, as a day-ahead market does."""
        for d in (day, day + 1):
            hours = self.usd_kwh[24 * d : 24 * d + 24]
            start = START_MS // MS_PER_DAY * MS_PER_DAY + d * MS_PER_DAY
            if len(hours):
                self.do(
                    TellMarket(
                        days=(MarketDay(id=f"hub/{start}", market="hub", start_ms=start, usd_mwh=tuple(float(x) * 1000 for x in hours), source="t"),)
                    )
                )

    def cut(self, day, start_ms):
        """The grid asks for 30 % less for three hours of this day."""
        self.do(
            TakeSignal(
                signal=Signal(
                    id=f"g{day}",
                    site_id=SITE,
                    source="grid",
                    event=f"g{day}",
                    kind=SignalKind.LIMIT,
                    value=0.7 * self.contract_w,
                    start_ms=start_ms,
                    end_ms=start_ms + 3 * HOUR_MS,
                )
            )
        )

    def submit_job(self, n, lasts, gpus):
        key = WorkloadId(f"wl-{n:05}")
        self.runs_ms[key] = self.hours[key] = max(60_000, int(lasts * HOUR_MS))
        tier = self.tiers[key] = Tier.ON_DEMAND if gpus >= 8 else Tier.SPOT
        keeps = tier is Tier.SPOT and lasts >= 4
        each, nodes = min(8, gpus), max(1, -(-gpus // 8))
        spec = Spec(name=f"j{n}", run="x", tier=tier, nodes=nodes, checkpoint="/c" if keeps else "", retry=Retry(on=("node-fault", "preemption"), attempts=99),
                    resources=Resources(gpu=GpuRequest(milli=each * 1000), cpu_milli=1000, memory_mib=1024, disk_mib=0))  # fmt: skip
        self.do(Submit(id=key, project_id=ProjectId("pr-a"), key_id=KeyId("op"), spec=spec))

    def fail(self, node):
        """All that runs on a machine ends, and it is away for a while."""
        for held in list(self.desk.world.on_node.get(node, {}).values()):
            self.engine._stopped[held.id] = Reason.NODE_LOST
            heapq.heappush(self.engine.ends, (self.at_ms, held.id))
            self.failed += 1
        self.back[node] = self.at_ms + AWAY_MS
        self.do(MoveNode(node_id=node, to=Service.DRAIN, by=KeyId("op"), why="it failed", until_ms=self.at_ms))

    def look(self):
        """Dispatch and two ticks, again while there is a reason to look at once."""
        for _ in range(20):
            self.dispatcher._look.clear()
            run_now(self.dispatcher.once(SITE))
            asyncio.run(self.machines.once())
            for _ in range(2):
                run_now(self.tick.run(self.epoch))
            if not self.dispatcher._look.is_set():
                break

    def count(self, for_ms):
        """What the time until the next look brings and costs; work runs down while it is held. What was granted and has not started draws nothing yet."""
        world, hours = self.desk.world, for_ms / HOUR_MS
        there = surveyed(world, world.sites[SITE], self.at_ms, lambda _: None)
        waits = [each for each in there.held if each.allocation.state is AllocationState.GRANTED]
        self.waited += bool(waits)
        total_w = there.meter.total_w - PUE * sum(each.watts - idle_w(LIMIT_W) for each in waits)
        self.usd["energy"] += (
            total_w / 1000 * hours * self.usd_kwh[min(len(self.usd_kwh) - 1, (self.at_ms - START_MS // MS_PER_DAY * MS_PER_DAY) // HOUR_MS)]
        )
        limit = limit_w(world, world.sites[SITE], self.at_ms)
        self.over_s += (total_w > limit * 1.0001) * for_ms / 1000
        self.over = max(self.over, total_w / limit - 1)
        mining = sum(asic.state is AsicState.MINING for asic in world.asics.values())
        self.usd["asics"] += self.asic_usd_h * (mining * hours - max(0, mining - self.mining) / 12)
        self.mining = mining
        for held in world.held.values():
            if held.state is not AllocationState.RUNNING:
                continue
            cards = sum(len(part.shares) for part in held.parts)
            if held.tier is Tier.FILLER:
                self.usd["mined"] += cards * MINED_USD_H * hours
            else:
                self.usd["sold"] += cards * hours * (ON_DEMAND if held.tier is Tier.ON_DEMAND else SPOT)


def contract_w(cards, asics):
    """What the site may draw: as bench_dispatch's where it has its mining machines, else what three quarters of the cards' limits come to."""
    return cards * 2_700_000 / 1600 if asics else cards * 320.0


def bound(usd_kwh, work, cards, limits, asics, asic_usd_h):
    """Card-hours of every job at will after it was submitted."""
    steps = len(usd_kwh)
    arrives = {ON_DEMAND: np.zeros(steps), SPOT: np.zeros(steps)}
    for at, lasts, gpus in work:
        if at < steps:
            arrives[ON_DEMAND if gpus >= 8 else SPOT][int(at)] += gpus * lasts
    draw = LIMIT_W * DRAW_SHARE[LoadClass.FIRM]
    one = ((1.0, 1.0),)
    site = Site(
        hours=1.0, usd_kwh=tuple(map(float, usd_kwh)), limit_w=tuple(limits), pue=PUE, static_w=0.0, late_share_h=0.0, left_share=0.0,
        pools=(Pool(id="p", rack="r", cards=cards, idle_w=idle_w(LIMIT_W)),),
        asics=(Asics(id="s19", count=asics, watts=ASIC_W, usd_h=asic_usd_h),),
        work=(*(Work(id=f"sold-{price}", kind=LoadClass.BATCH, usd_h=price, draw_w={"p": draw}, cards=tuple(map(float, come)), can_wait=True, curve=one) for price, come in arrives.items()),
              Work(id="mine", kind=LoadClass.FILLER, usd_h=MINED_USD_H, draw_w={"p": MINE_W}, cards=(1e6,) * steps, curve=one)),
    )  # fmt: skip
    schedule, _ = solved(site, 600.0, interior=True)
    assert schedule is not None
    return schedule.net_usd


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--market", default="ercot-2023")
    parser.add_argument("--from", dest="first", type=int, default=180)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--nodes", type=int, default=25)
    parser.add_argument("--asics", type=int, default=0, help="mining machines for each 100 cards")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--look", type=float, default=30, help="seconds between looks")
    parser.add_argument("--sound", action="store_true", help="no machine fails")
    chosen = parser.parse_args()
    rng, cards = Random(chosen.seed), chosen.nodes * 8
    asics, (at, usd_kwh) = cards * chosen.asics // 100, prices(chosen.market)
    at, usd_kwh = (series[24 * chosen.first : 24 * (chosen.first + chosen.days)] for series in (at, usd_kwh))
    known = hashprice()
    hashes = [known[f"{hour:%Y-%m}"] for hour in at]
    work = jobs(chosen.days, cards, rng)
    look_ms = int(chosen.look * 1000)
    site = Days(chosen.nodes, chosen.seed, usd_kwh, work, asics)
    begin = site.at_ms = START_MS // MS_PER_DAY * MS_PER_DAY
    limits = np.full(len(usd_kwh), site.contract_w)
    cuts = {
        day: begin + (24 * day + 16) * HOUR_MS
        for day in range(chosen.days // 3 if chosen.days < 15 else 5, chosen.days, max(1, chosen.days // 3) if chosen.days < 15 else 15)
    }
    for day in cuts:
        limits[24 * day + 16 : 24 * day + 19] *= 0.7
    best = bound(usd_kwh, work, cards, limits, asics, tuple(usd * ASIC_TH / 1000 / 24 for usd in hashes))
    print(
        f"{chosen.market}, day {chosen.first} and {chosen.days} days, {cards} cards, {asics} mining machines, {len(work)} jobs of {sum(lasts * gpus for _, lasts, gpus in work):,.0f} card-hours; bound US$ {best:,.2f}"
    )
    began, n, day = time.perf_counter(), 0, -1
    end = begin + chosen.days * MS_PER_DAY
    while site.at_ms < end:
        hour = (site.at_ms - begin) / HOUR_MS
        if int(hour // 24) > day:
            day = int(hour // 24)
            site.tell(day)
            site.tell_hashes(hashes[24 * day])
            if day in cuts:
                site.cut(day, cuts[day])
        while n < len(work) and work[n][0] <= hour:
            site.submit_job(n, *work[n][1:])
            n += 1
        for node, at_ms in list(site.back.items()):
            if at_ms <= site.at_ms:
                del site.back[node]
                site.do(MoveNode(node_id=node, to=Service.RESUME, by=KeyId("op"), why="mended"))
        if not chosen.sound and rng.random() < look_ms / MS_PER_DAY / FAILS_DAYS * chosen.nodes:
            node = rng.choice([node for node in sorted(site.desk.world.nodes) if node not in site.back])
            site.fail(node)
        site.look()
        told = [at_ms - 30_000 for at_ms in cuts.values() if at_ms - 30_000 > site.at_ms]
        waits = any(held.state is AllocationState.GRANTED for held in site.desk.world.unsteady.values())
        step_ms = min([SOON_MS if waits else look_ms, *(at_ms - site.at_ms for at_ms in told)])
        site.count(step_ms)
        site.at_ms += step_ms
    net = site.usd["sold"] + site.usd["mined"] + site.usd["asics"] - site.usd["energy"]
    done = sum(key in site.ended for key in site.tiers)
    print(
        f"sold US$ {site.usd['sold']:,.2f}, mined {site.usd['mined']:,.2f} by cards and {site.usd['asics']:,.2f} by mining machines, energy {site.usd['energy']:,.2f}: net US$ {net:,.2f}, {net / best:.2%} of the bound"
    )
    print(
        f"jobs ended {done} of {n}, ended by a failing machine {site.failed:.0f}, fillers and spot work that gave way or were shed {sum(site.gone.values())}, over the limit for {site.over_s:.0f} s, by {max(0.0, site.over):.2%} at most; starts waited for room {site.waited:.0f} times 5 s; {time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
