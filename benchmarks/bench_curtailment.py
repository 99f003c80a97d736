"""A curtailment drill in virtual time, through the real tick, placement, ladder and dispatch: a grid asks for 30 % less within 30 s for three hours.

`python benchmarks/bench_curtailment.py [--nodes 25] [--cut 0.3] [--seed 1]`

Machines of eight cards of 350 W, as values; a third of the cards reserved or on-demand, a third spot (half of it with checkpoints), the rest mining. Cards draw what dispatch assumes of them (no
telemetry is simulated), so what is tracked is the meter that it would see. Printed beside what Emerald showed in Phoenix, May 2025: 25 % of 256 GPUs for three hours (arXiv 2507.00909).
"""

import argparse
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parent))
import msgspec

from headframe.dispatch.plan import solved
from headframe.dispatch.survey import surveyed
from headframe.model.command import CreateProject, Found, GrantCredit, SetFiller, SetSite, Submit, TakeSignal, TellCoin
from headframe.model.event import Kind
from headframe.model.ids import KeyId, ProjectId, UserId, WorkloadId
from headframe.model.people import Key, Scope
from headframe.model.power import Coin, EnergyCharge, Filler, Mines, Signal, SignalKind, Tariff
from headframe.model.states import AllocationState
from headframe.model.work import Allocation, GpuRequest, Resources, Spec, Tier
from headframe.placement.fleet import Fleet
from headframe.server.decide import SITE, decide
from headframe.server.desk import Desk
from headframe.server.dispatcher import Dispatcher
from headframe.server.solving import Answer
from headframe.server.tick import Tick
from headframe.server.watch import Watch
from headframe.simulate.replay import Fast, Forgetful, enrol
from headframe.simulate.traces import Machine
from headframe.simulate.world import START_MS, at_once, run_now

STEP_MS, HOUR_MS = 5_000, 3_600_000
FILLER = Filler(id="filler-mine", name="mine", run="mine", coin="RVN", models={"any": Mines(hashes_s=50e6, watts=280)})
RVN = Coin(id="RVN", algorithm="kawpow", price_usd=0.02, network_hs=5e12, block_s=60, reward=2500)


class Drill:
    """The world, and what happened in it."""

    def __init__(self, nodes, seed):
        self.at_ms, self.rng = START_MS, Random(seed)
        self.runs_ms, self.gone, self.ended, self.events = {}, {}, {}, []
        store = Forgetful()
        store.heard = self.hear
        self.desk = Desk(store, lambda: self.at_ms, at_once)
        key = Key(id=KeyId("op"), name="op", scope=Scope.OPERATOR, project_id=ProjectId(""), user_id=UserId(""), mac="", created_ms=0)
        self.do(Found(site_name="drill", key=key))
        for n in range(nodes):
            row = enrol(Machine(name=f"rig-{n:03}", model="RTX 3090", gpus=8, cpu_milli=64_000, memory_mib=262_144), self.at_ms)
            self.do(msgspec.structs.replace(row, gpus=tuple(msgspec.structs.replace(gpu, max_w=350) for gpu in row.gpus)))
        self.do(CreateProject(id=ProjectId("pr-a"), name="a"))
        self.do(GrantCredit(project_id=ProjectId("pr-a"), amount_nano=10**18, memo="", id="1"))
        self.do(SetSite(site_id=SITE, pue=1.1, contract_w=nodes * 8 * 450, tariff=Tariff(name="t", energy=(EnergyCharge(usd_kwh=0.05),))))
        self.do(TellCoin(coin=RVN))
        self.do(SetFiller(filler=FILLER))
        self.desk.world.views[Fleet] = Fleet(self.desk.world, None)
        self.engine = Fast(tuple(self.desk.world.nodes), lambda: self.at_ms, lambda key: self.runs_ms.get(key, 10**12))
        lease = store.lead("drill", store.lease())
        leader = SimpleNamespace(epoch=lease.epoch)

        async def solver(site, start=None):
            return Answer(schedule=solved(site)[0])

        self.dispatcher = Dispatcher(self.desk, leader, Watch(), lambda: None, solver)
        self.tick, self.epoch = Tick(self.desk, self.engine, lambda: self.at_ms, budgets=self.dispatcher.budgets), lease.epoch

    def do(self, command):
        run_now(self.desk.write(lambda world, now_ms: decide(world, command, now_ms)))

    def hear(self, events):
        for event in events:
            if event.kind is Kind.SHED:
                self.events.append(event.text)
            for row in event.rows:
                if isinstance(row, Allocation) and row.state is AllocationState.ENDED and not row.settled:
                    bucket = self.gone if row.reason == "preempted" else self.ended
                    bucket[row.workload_id] = bucket.get(row.workload_id, 0) + 1

    def submit(self, n, tier, gpus, hours, checkpoint=""):
        key = WorkloadId(f"wl-{n:05}")
        self.runs_ms[key] = int(hours * HOUR_MS)
        spec = Spec(
            name=f"j{n}",
            run="x",
            tier=tier,
            checkpoint=checkpoint,
            resources=Resources(gpu=GpuRequest(milli=gpus * 1000), cpu_milli=1000, memory_mib=1024, disk_mib=0),
        )
        self.do(Submit(id=key, project_id=ProjectId("pr-a"), key_id=KeyId("op"), spec=spec))
        return key

    def step(self):
        run_now(self.dispatcher.once(SITE))
        for _ in range(3):
            run_now(self.tick.run(self.epoch))
        self.at_ms += STEP_MS

    def meter(self):
        return surveyed(self.desk.world, self.desk.world.sites[SITE], self.at_ms, lambda _: None).meter


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=25)
    parser.add_argument("--cut", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    drill, cards = Drill(chosen.nodes, chosen.seed), chosen.nodes * 8
    firm, loose, n = set(), set(), 0
    for tier, share in ((Tier.ON_DEMAND, 0.33), (Tier.SPOT, 0.33)):
        left = int(cards * share)
        while left > 0:
            gpus = min(left, drill.rng.choice([1, 1, 2, 4]))
            keeps = tier is Tier.SPOT and n % 2 == 0
            key = drill.submit(n, tier, gpus, 12 if tier is Tier.ON_DEMAND else drill.rng.uniform(5, 8), "/c" if keeps else "")
            (firm if tier is Tier.ON_DEMAND else loose).add(key)
            left, n = left - gpus, n + 1
    for _ in range(2 * 720):
        drill.step()
    before = drill.meter()
    target = before.total_w * (1 - chosen.cut)
    print(
        f"{cards} cards, {before.total_w / 1000:.1f} kW at the meter: sold {before.firm_w / 1000:.1f}, spot {before.spot_w / 1000:.1f}, mining {before.filler_w / 1000:.1f}, idle {before.idle_w / 1000:.1f}"
    )
    drill.do(
        TakeSignal(
            signal=Signal(
                id="s",
                site_id=SITE,
                source="grid",
                event="drill",
                kind=SignalKind.LIMIT,
                value=target,
                start_ms=drill.at_ms,
                end_ms=drill.at_ms + 3 * HOUR_MS,
                received_ms=drill.at_ms,
            )
        )
    )
    began, reached, drawn = drill.at_ms, None, []
    while drill.at_ms < began + 3 * HOUR_MS:
        drill.step()
        watts = drill.meter().total_w
        drawn.append(watts)
        if reached is None and watts <= target:
            reached = (drill.at_ms - began) / 1000
    late = drawn[6:]
    over, under = max(late) - target, target - sum(late) / len(late)
    print(
        f"{chosen.cut:.0%} less asked for: reached after {reached} s (30 s asked for), at most {max(0.0, over) / target:.2%} over the target after 30 s, on average {under / target:.2%} below it (goal: within 3 %)"
    )
    stopped = firm & drill.gone.keys()
    print(f"firm work stopped: {len(stopped)} of {len(firm)}; spot work stopped: {len(loose & drill.gone.keys())} of {len(loose)}")
    after = drill.at_ms
    while drill.at_ms < after + 26 * HOUR_MS and not loose <= drill.ended.keys():
        drill.step()
    cost = (before.filler_w - 0) / 1.1 / 280 * 0.0297 * 3
    print(
        f"of the spot work {len(loose & drill.ended.keys())} of {len(loose)} ended well in the end; mining back to {drill.meter().filler_w / 1000:.1f} kW; the mining not done is worth some US$ {cost:.2f}"
    )
    for text in drill.events[:4]:
        print(" ", text)


if __name__ == "__main__":
    main()
