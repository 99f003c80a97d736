"""A whole system in one thread: virtual clock, faulty store, simulated machines, one or two servers with the real desk,
leadership and tick. First a span under faults, in which every promise must hold; then calm, in which all work must finish.
"""

import hashlib
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any, TypeVar

import msgspec

from headframe.engines.simulated import NOTHING, Machine, Machines, SimulatedEngine
from headframe.model.command import CreateProject, Enrol, Found, GrantCredit, MoveGpu, Qualify, SetPrices, StopWorkload, Submit
from headframe.model.errors import Fenced, HeadframeError
from headframe.model.event import Event
from headframe.model.fleet import SIMULATED, Gpu, Node
from headframe.model.health import CardFacts, Depth, Host, HostFacts, Inventory, Measured, Report, Sample
from headframe.model.ids import GpuId, KeyId, NodeId, ProjectId, UserId, WorkloadId
from headframe.model.money import GpuPrice
from headframe.model.people import Key, Scope
from headframe.model.states import GpuState, NodeState, Reason
from headframe.model.units import MS_PER_HOUR, NANO_PER_USD
from headframe.model.work import CHECK, SOLD, Allocation, GpuRequest, Resources, Retry, Share, Spec, Tier, Workload
from headframe.model.world import World
from headframe.server.decide import RACK, SITE, decide
from headframe.server.demand import Demand
from headframe.server.desk import Desk
from headframe.server.lead import Leadership
from headframe.server.tick import Tick
from headframe.server.watch import Watch
from headframe.simulate.checkers import BrokenInvariant, Checker
from headframe.simulate.faults import CALM, Crash, FaultyEngine, FaultyStore, Weather, draw_mix

T = TypeVar("T")
START_MS = 1_750_000_000_000
QUIET_MS, BUSY_MS, RESTART_MS = 900_000, 10_000, 4_000
DRAIN_LIMIT_MS = 30 * 24 * MS_PER_HOUR
LAST_EVENTS = 20
CHECK_MS = 80_000
MODELS = (("RTX 3090", 24_576), ("RTX 3060", 12_288), ("H100", 81_920))


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What one run is: the seed decides everything else."""

    seed: int
    nodes: int = 50
    hours: int = 48
    jobs_per_hour: float = 2.0
    servers: int = 2
    faults: bool = True


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to. `event_hash` is equal for equal seeds."""

    seed: int
    simulated_hours: float
    events: int
    jobs: int
    ended: dict[str, int]
    crashes: int
    fenced: int
    event_hash: str


class SimulationFailed(AssertionError):
    """A promise was broken or work did not finish; the message has what is needed to replay."""


class Process:
    """One server: the real desk, leadership and tick; gone after a crash until restarted."""

    def __init__(self, sim: "Simulation", name: str) -> None:
        self.desk = Desk(sim.store, sim.now, at_once)
        self.desk.open()
        engine = FaultyEngine(SimulatedEngine(sim.machines, sim.weather.distort), sim.weather)
        self.watch, self.demand = Watch(), Demand()
        self.tick = Tick(self.desk, engine, sim.now, self.watch, demand=self.demand)
        self.leadership = Leadership(sim.store, name, sim.now, at_once, alone=False)
        self.paused = False
        self.fenced = 0

    def step(self) -> None:
        """What a server does when woken."""
        run_now(self._step())

    async def _step(self) -> None:
        waking, self.paused = self.paused, False
        # Whoever wakes from a pause goes on in the middle of a tick, believing that it still leads: the commit must know better.
        epoch = self.leadership.epoch if waking else await self.leadership.poll()
        if epoch is None:
            await self.desk.catch_up()
            return
        try:
            await self.tick.run(epoch)
        except Fenced:
            self.leadership.lose()
            self.fenced += 1
        except HeadframeError:
            return  # the next wake does what is left


class Simulation:
    """Everything of one run; `run` is the only verb."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.rng = Random(config.seed)  # noqa: S311 - replayable chance, not secrets
        self.at_ms = START_MS
        mix = draw_mix(self.rng) if config.faults else CALM
        self.weather = Weather(Random(config.seed + 1), mix)  # noqa: S311 - as above
        self.store = FaultyStore(self.weather, self.now, self._sleep)
        self.machines = Machines(self.now, self._fate, self._tells)
        self.checker = Checker()
        self.hash = hashlib.sha256()
        self.last: deque[Event] = deque(maxlen=LAST_EVENTS)
        self.store.committed.append(self._committed)
        self.servers: list[Process | None] = []
        self.crashes = 0
        self.fenced = 0
        self.submitted: list[WorkloadId] = []
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._fates: dict[WorkloadId, tuple[int, int]] = {}
        self._pending: list[Submit] = []
        self.cards: list[GpuId] = []
        self._checks = 0

    def now(self) -> int:
        """The virtual clock."""
        return self.at_ms

    def run(self) -> Outcome:
        """Faults, then calm; raises SimulationFailed."""
        try:
            self._found()
            self._run_until(START_MS + self.config.hours * MS_PER_HOUR)
            self._heal()
            self._drain()
        except BrokenInvariant as broken:
            raise SimulationFailed(self._report(str(broken))) from broken
        return self._outcome()

    def _found(self) -> None:
        """A fleet and three tenants, before the weather turns."""
        mix, self.weather.mix = self.weather.mix, CALM
        for n in range(self.config.servers):
            self.servers.append(Process(self, f"server-{n}"))
        key = Key(id=KeyId("op"), name="operator", scope=Scope.OPERATOR, project_id=ProjectId(""), user_id=UserId(""),
                  mac="", created_ms=self.at_ms)  # fmt: skip
        self._do(Found(site_name="simulated", key=key))
        for n in range(self.config.nodes):
            self._do(self._node(n, mix.skew_ms))
        for n in range(3):
            project = ProjectId(f"pr-{n}")
            self._do(CreateProject(id=project, name=f"tenant {n}"))
            self._do(GrantCredit(project_id=project, amount_nano=(100_000 if n else 300) * NANO_PER_USD, memo="", id=f"{n}"))
        self.weather.mix = mix
        for n in range(self.config.servers):
            self._at(self.at_ms + n, lambda n=n: self._serve(n))
        self._at(self.at_ms, self._arrival)
        self._at(self.at_ms, self._mischief)

    def _node(self, n: int, skew_ms: int) -> Enrol:
        model, memory = MODELS[n % len(MODELS)]
        node = NodeId(f"node-{n:03}")
        self.machines.machines[node] = Machine(node, self.rng.randint(-skew_ms, skew_ms))
        row = Node(id=node, name=f"rig-{n:03}", site_id=SITE, rack_id=RACK, state=NodeState.NEW, engine=SIMULATED, cpu_milli=32_000,
                   memory_mib=262_144, disk_mib=1_000_000, joined_ms=self.at_ms, seen_ms=self.at_ms)  # fmt: skip
        cards = tuple(
            Gpu(
                id=GpuId(f"GPU-{n:03}-{k}"),
                node_id=node,
                index=k,
                model=model,
                memory_mib=memory,
                state=GpuState.NEW,
                joined_ms=self.at_ms,
                pci_bus=f"00000000:{k + 1:02x}:00.0",
            )
            for k in range(8)
        )
        self.cards += [card.id for card in cards]
        return Enrol(node=row, gpus=cards)

    def _do(self, command: Any) -> None:
        server = next(server for server in self.servers if server is not None)
        run_now(server.desk.write(lambda world, now_ms: decide(world, command, now_ms)))

    def _at(self, at_ms: int, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_ms, self._count, what))

    def _run_until(self, end_ms: int) -> None:
        while self._events and self._events[0][0] <= end_ms:
            at_ms, _, what = heapq.heappop(self._events)
            self.at_ms = max(self.at_ms, at_ms)
            what()
        self.at_ms = max(self.at_ms, end_ms)

    def _sleep(self, ms: int) -> None:
        self.at_ms += ms

    def _serve(self, n: int) -> None:
        """One wake of one server, then when to wake it next: soon while anything is under way, else when something ends."""
        server = self.servers[n]
        paused = self.weather.happens(self.weather.mix.pause)
        if server is not None and paused:
            server.paused = True
        if server is not None and not paused:
            try:
                server.step()
                self._one_attempt_at_most()
            except Crash:
                self._crash(n)
                return
        wait_ms = 30_000 if paused else self._wait_ms(server)
        self._at(self.at_ms + wait_ms, lambda: self._serve(n))

    def _wait_ms(self, server: Process | None) -> int:
        if server is None or self._pending or any(m.down_ms is not None or m.unlinked_ms is not None for m in self.machines.machines.values()):
            return BUSY_MS
        world = server.desk.world
        unsettled = any(a.state != "running" for a in world.allocations.values()) or any(not w.closed for w in world.closing.values())
        if unsettled or server.leadership.epoch is None:
            return BUSY_MS if server.leadership.epoch is not None else QUIET_MS // 2
        ends = self.machines.next_end_ms()
        return max(100, min(QUIET_MS, (ends if ends is not None else self.at_ms + QUIET_MS) - self.at_ms + 50))

    def _crash(self, n: int) -> None:
        self.crashes += 1
        server, self.servers[n] = self.servers[n], None
        self.fenced += server.fenced if server else 0

        def restart() -> None:
            self.servers[n] = Process(self, f"server-{n}-{self.crashes}")
            self._serve(n)

        self._at(self.at_ms + RESTART_MS, restart)

    def _arrival(self) -> None:
        """A new job, retries of those not yet acknowledged, now and then a cancellation."""
        if self.at_ms >= START_MS + self.config.hours * MS_PER_HOUR:
            return
        key = WorkloadId(f"wl-{len(self.submitted) + len(self._pending):05}")
        self._fates[key] = (int(self.rng.expovariate(1 / (2 * MS_PER_HOUR))) + 1000, int(self.rng.random() < 0.1))
        spec = self._spec(key)
        self._pending.append(Submit(id=key, project_id=ProjectId(f"pr-{self.rng.randrange(3)}"), key_id=KeyId("op"), spec=spec))
        self._push()
        if self.submitted and self.rng.random() < 0.1:
            self._try(StopWorkload(id=self.rng.choice(self.submitted)))
        self._at(self.at_ms + int(self.rng.expovariate(self.config.jobs_per_hour / MS_PER_HOUR)) + 1, self._arrival)

    def _spec(self, key: WorkloadId) -> Spec:
        rng = self.rng
        nodes = rng.choice((1, 1, 1, 1, 2, 4))
        milli = rng.choice((0, 250, 500, 1000, 1000, 2000, 4000, 8000)) if nodes == 1 else rng.choice((1000, 8000))
        gpu = GpuRequest(milli=milli, model=rng.choice(("", "RTX 3090", "H100")), memory_min_mib=rng.choice((0, 0, 20_000)))
        retry = Retry(on=(*Retry().on, Reason.FAILED), attempts=3) if rng.random() < 0.3 else Retry()
        least = nodes // 2 if nodes > 1 and rng.random() < 0.5 else 0
        return Spec(
            name=str(key), run="simulated", nodes=nodes, nodes_min=least, checkpoint="/checkpoint" if least else "", tier=rng.choice(SOLD), priority=rng.randrange(3), retry=retry,
            resources=Resources(gpu=gpu, cpu_milli=4000, memory_mib=8192), max_duration_s=rng.choice((0, 0, 3600, 36_000)),
        )  # fmt: skip

    def _push(self) -> None:
        """Clients repeat a submission until it is acknowledged or refused; the id makes the repetition harmless."""
        for submit in list(self._pending):
            if self.store.get(Workload, submit.id) is not None or self._try(submit) is not None:
                self._pending.remove(submit)
                self.submitted.append(submit.id)

    def _try(self, command: Any) -> bool | None:
        """True: done; False: refused; None: unknown, try again."""
        up = [n for n, server in enumerate(self.servers) if server is not None]
        if not up:
            return None
        n = self.rng.choice(up)
        server = self.servers[n]
        assert server is not None
        try:
            run_now(server.desk.catch_up())
            run_now(server.desk.write(lambda world, now_ms: decide(world, command, now_ms)))
        except Crash:
            self._crash(n)
            return None
        except HeadframeError as error:
            return None if error.status in {503, 507} else False
        return True

    def _mischief(self) -> None:
        """Nodes die and return, links break, disks fill, prices change."""
        weather, rng = self.weather, self.weather.rng
        if weather.happens(weather.mix.node):
            machine = self.machines.machines[rng.choice(sorted(self.machines.machines))]
            if machine.silent_ms() is None:
                self._break(machine, power=rng.random() < 0.5, for_ms=rng.choice((20_000, 50_000, 120_000, 3_600_000)))
        if weather.happens(weather.mix.disk_full):
            weather.full_until_ms = self.at_ms + 300_000
        if weather.happens(weather.mix.price_change):
            price = NANO_PER_USD // 10 * rng.randrange(1, 9)
            self._try(SetPrices(gpus=(GpuPrice(model="*", on_demand_nano=price, spot_nano=price // 2, reserved_nano=price),)))
        if weather.happens(weather.mix.card):
            self._sicken(rng.sample(self.cards, k=rng.choice((1, 1, 2, 8))), for_ms=rng.choice((60_000, 900_000, 7_200_000)))
        if weather.happens(weather.mix.alarm):
            self._sicken(self.cards, for_ms=120_000)
        self._at(self.at_ms + MS_PER_HOUR // 2, self._mischief)
        self._push()

    def _sicken(self, cards: Sequence[GpuId], *, for_ms: int) -> None:
        """Cards are lost, or say so; later they are there again, and some are put back by a person or a check."""
        self._say(cards, present=False)

        def mend() -> None:
            self._say(cards, present=True)
            for card in cards[:8]:
                if self.rng.random() < 0.5:
                    self._try(MoveGpu(gpu_id=card, enable=True, by=KeyId("op")))
                else:
                    self._checks += 1
                    self._try(
                        Qualify(node_id=NodeId(f"node-{card[4:7]}"), depth=Depth.QUICK, id=WorkloadId(f"wl-check-{self._checks}"), by=KeyId("op"))
                    )

        self._at(self.at_ms + for_ms, mend)

    def _say(self, cards: Sequence[GpuId], *, present: bool) -> None:
        """Every server that is up hears of the cards: a report that is lost is said again with the next reading."""
        report = Report(samples=tuple(Sample(gpu_id=card, at_ms=0, present=present) for card in cards))
        for server in self.servers:
            if server is not None:
                server.watch.hear(report, NodeId(""), self.at_ms)
        self._at(self.at_ms + 1, self._wake)

    def _break(self, machine: Machine, *, power: bool, for_ms: int) -> None:
        if power:
            machine.down_ms = self.at_ms
        else:
            machine.unlinked_ms = self.at_ms

        def mend() -> None:
            for run in self.machines.runs.values():
                run.advance(self.at_ms)
            machine.down_ms = machine.unlinked_ms = None

        self._at(self.at_ms + for_ms, mend)
        self._at(self.at_ms + 1, self._wake)

    def _wake(self) -> None:
        for n, server in enumerate(self.servers):
            if server is not None:
                self._at(self.at_ms, lambda n=n: self._poke(n))

    def _poke(self, n: int) -> None:
        """An extra wake, without scheduling more."""
        server = self.servers[n]
        try:
            if server is not None:
                server.step()
        except Crash:
            self._crash(n)

    def _fate(self, allocation: Allocation, workload: Workload) -> tuple[int, int]:
        del allocation
        return (CHECK_MS, 0) if workload.spec.type == CHECK else self._fates[workload.id]

    def _tells(self, allocation: Allocation) -> Sequence[str]:
        """What a check prints: facts of each card, in whose absence nothing may be passed."""
        if allocation.tier is not Tier.HOUSE:
            return NOTHING
        rng = Random(f"{self.config.seed} {allocation.id}")  # noqa: S311 - asked again, it says the same
        shares = allocation.parts[0].shares
        return [check_line(share, wrong=rng.random() < 0.1) for share in shares if rng.random() < 0.9] + ([HOST_LINE] if rng.random() < 0.9 else [])

    def _one_attempt_at_most(self) -> None:
        active = [run.allocation.workload_id for run in self.machines.active()]
        if len(active) != len(set(active)):
            raise BrokenInvariant(f"two attempts of one workload run: {sorted(active)}")

    def _committed(self, events: Sequence[Event]) -> None:
        self.last.extend(events)
        for event in events:
            self.hash.update(msgspec.json.encode(event))
        self.checker.committed(events)

    def _heal(self) -> None:
        self.weather.calm()
        for run in self.machines.runs.values():
            run.advance(self.at_ms)
        for machine in self.machines.machines.values():
            machine.down_ms = machine.unlinked_ms = None
        self._say(self.cards, present=True)
        self._at(self.at_ms + MS_PER_HOUR, self._mended)

    def _mended(self) -> None:
        """Somebody has been to every card: checks are over by now, and what is out goes back. Work that waits for credit gets it."""
        self._do(GrantCredit(project_id=ProjectId("pr-0"), amount_nano=100_000 * NANO_PER_USD, memo="", id="calm"))
        for card in self.store.load().rows:
            if isinstance(card, Gpu) and card.state is GpuState.SUSPECT:
                self._do(MoveGpu(gpu_id=card.id, enable=True, by=KeyId("op")))

    def _drain(self) -> None:
        """Calm: everything admitted must end, every hold be released, and the fold be what the store has."""
        limit_ms = self.at_ms + DRAIN_LIMIT_MS
        while self._busy():
            if self.at_ms > limit_ms:
                raise BrokenInvariant(f"work did not finish in calm: {self._busy()}")
            self._run_until(self.at_ms + MS_PER_HOUR)
        rebuilt = World()
        snapshot = self.store.load()
        rebuilt.load(snapshot.rows, snapshot.version)
        for server in self.servers:
            assert server is not None
            run_now(server.desk.catch_up())
            self.checker.finally_(server.desk.world, rebuilt)

    def _busy(self) -> list[str]:
        if any(server is None for server in self.servers):
            return ["a server restarts"]
        snapshot = self.store.load()
        live = [row.id for row in snapshot.rows if isinstance(row, Workload | Allocation)]
        return [*live, *(submit.id for submit in self._pending)]

    def _outcome(self) -> Outcome:
        ended: dict[str, int] = {}
        for key in self.submitted:
            workload = self.store.get(Workload, key)
            state = workload.state if workload else "refused"
            ended[state] = ended.get(state, 0) + 1
        return Outcome(
            seed=self.config.seed, simulated_hours=(self.at_ms - START_MS) / MS_PER_HOUR, events=self.store.version(),
            jobs=len(self.submitted), ended=dict(sorted(ended.items())), crashes=self.crashes,
            fenced=self.fenced + sum(server.fenced for server in self.servers if server), event_hash=self.hash.hexdigest(),
        )  # fmt: skip

    def _report(self, broken: str) -> str:
        lines = [f"{broken}", f"seed {self.config.seed}: replay with `headframe simulate --seed {self.config.seed}`", "last events:"]
        lines += [f"  {event.seq} +{(event.at_ms - START_MS) / 1000:.1f}s {event.kind} {event.text}" for event in self.last]
        return "\n".join(lines)


def check_line(share: Share, *, wrong: bool) -> str:
    """One card's facts, as a check prints them."""
    found = Measured(h2d_gb_s=12.0, memory_gb_s=800.0, pattern_errors=0, tflops={"float16": 60.0}, soak_loss=0.0, repeat_errors=int(wrong))
    card = Inventory(model=share.model, memory_mib=24_576)
    return msgspec.json.encode(CardFacts(gpu_id=share.gpu_id, index=share.index, card=card, measured=found)).decode()


HOST_LINE = msgspec.json.encode(HostFacts(depth=Depth.QUICK, took_s=80, torch="", host=Host(memory_mib=262_144, threads=32))).decode()


async def at_once(call: Callable[[], T]) -> T:
    """Blocking calls do not block here: the disk is a value."""
    return call()


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never really waits, without an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("simulated code waited for something real")
