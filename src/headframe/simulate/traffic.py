"""An endpoint under replayed requests, in the same world as all else: the real scaling, placement, table, holding and choosing. Made up are machines, models and time.

The promises: every request is answered, refused with a reason, or broken by the loss of the machine or card that it was on; in calm none is refused or broken, and when
nobody asks any more nothing runs.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from random import Random

import msgspec

from headframe.engines.simulated import Run
from headframe.gateway.book import Book
from headframe.gateway.replicas import Replica, Served
from headframe.model.command import ApplyEndpoint
from headframe.model.endpoint import GatewayReport
from headframe.model.errors import BadRequest
from headframe.model.ids import AllocationId, GatewayId, KeyId, ProjectId, WorkloadId
from headframe.model.serving import Serving
from headframe.model.states import Reason
from headframe.model.work import ENDPOINT, REPLICA, Allocation, GpuRequest, Resources, Spec, Workload
from headframe.server.table import GatewayTable
from headframe.simulate.checkers import BrokenInvariant
from headframe.simulate.world import START_MS, Config, Process, Simulation

TELL_MS, PROBE_MS, TRIES_MAX = 1000, 250, 3
FOREVER_MS = 10**12
FIRST_MS = 5000
"""By then everybody knows of the endpoint."""
KEY, PROJECT, GATEWAY = WorkloadId("wl-endpoint"), ProjectId("pr-1"), GatewayId("gw-simulated")


class Asked(msgspec.Struct, frozen=True):
    """One request: when, from the replay's start on, and of how many tokens in and out."""

    at_ms: int
    prompt: int
    completion: int


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a replica is: loading (until it answers its probe), reading prompts, and a token of one of `slots` streams; with more of them each is slower."""

    load_ms: int = 40_000
    prompt_tokens_s: float = 8_000
    token_ms: float = 20
    slots: int = 16


class TrafficReport(msgspec.Struct, frozen=True, kw_only=True):
    """What it came to. `wait` is of those requests that were held, `added` of all: how much longer than alone on a replica that is ready. `cold_ms` is how long a replica
    took where there was none, from the request that woke it on: the last time.
    """

    requests: int
    answered: int
    held: int
    refused: int
    broken: int
    retried: int
    wait_p50_ms: int
    wait_p99_ms: int
    wait_most_ms: int
    added_p50_ms: int
    added_p99_ms: int
    cold_ms: int
    replicas_most: int
    replica_h: float
    hours: float
    ready: tuple[tuple[int, int], ...]


class _Request:
    """One request on its way: what waits in `Held`."""

    def __init__(self, traffic: "Traffic", asked: Asked) -> None:
        self.traffic, self.asked = traffic, asked
        self.size, self.project = asked.prompt * 4, PROJECT
        self.tries = self.held_ms = 0
        self.replica: Replica | None = None
        self.before: Replica | None = None
        self.first = False

    def woken(self) -> None:
        """A replica is ready."""
        self.held_ms = self.traffic.now() - self.traffic.due(self.asked)
        self.traffic.send(self)


class Traffic(Simulation):
    """`run` as any simulation; `replayed` runs it and says what became of the requests."""

    def __init__(self, config: Config, serving: Serving, asked: Sequence[Asked], model: Model | None = None) -> None:
        super().__init__(config)
        self.model, self.asked = model or Model(), asked
        self.ends: Counter[str] = Counter()
        self.waits: list[int] = []
        self.added: list[int] = []
        self.ready: list[tuple[int, int]] = [(0, 0)]
        self.retried = self.cold_ms = self._cold_from_ms = 0
        self._serving = serving
        self._book = Book(Path("simulated"), b"", lambda: self.at_ms / 1000, "simulated")
        self._tables: dict[Process, GatewayTable] = {}
        self._ran_ms: dict[AllocationId, tuple[int, int]] = {}
        self._told_ms = 0

    def replayed(self) -> TrafficReport:
        """Run, and what it came to."""
        outcome = self.run()
        lost = len(self.asked) - sum(self.ends.values())
        if lost:
            raise BrokenInvariant(f"{lost} requests have no end")
        waits, added = sorted(self.waits) or [0], sorted(self.added) or [0]
        ran_ms = sum(end - start for start, end in self._ran_ms.values())
        return TrafficReport(
            requests=len(self.asked), answered=self.ends["answered"], held=len(self.waits), refused=self.ends["refused"], broken=self.ends["broken"], retried=self.retried,
            wait_p50_ms=waits[len(waits) // 2], wait_p99_ms=waits[len(waits) * 99 // 100], wait_most_ms=waits[-1],
            added_p50_ms=added[len(added) // 2], added_p99_ms=added[len(added) * 99 // 100], cold_ms=self.cold_ms,
            replicas_most=max(n for _, n in self.ready), replica_h=ran_ms / 3_600_000, hours=outcome.simulated_hours, ready=tuple(self.ready),
        )  # fmt: skip

    def due(self, asked: Asked) -> int:
        """When that is."""
        return START_MS + FIRST_MS + asked.at_ms

    def send(self, request: _Request) -> None:
        """To a replica; what finds nobody there goes to another, as often as a gateway tries."""
        served = self._served
        replica = served.choose((), request.before)
        if replica is None:
            self._hold(request)
            return
        request.tries += 1
        request.replica = replica
        replica.in_flight += 1
        served.in_flight += 1
        run = self._alive(replica)
        if run is None:
            replica.failed("no connection")
            self._again(request)
            return
        first_ms = int(request.asked.prompt / self.model.prompt_tokens_s * 1000)
        alone_ms = int(request.asked.completion * self.model.token_ms)
        lasts_ms = int(alone_ms * max(1.0, replica.in_flight / self.model.slots))
        self._at(self.at_ms + first_ms, lambda: self._first(request, replica))
        self._at(self.at_ms + first_ms + lasts_ms, lambda: self._whole(request, replica, run, first_ms + alone_ms))

    def _found(self) -> None:
        super()._found()
        resources = Resources(gpu=GpuRequest(milli=1000, model="H100"), cpu_milli=4000, memory_mib=8192)
        spec = Spec(type=ENDPOINT, name="chat", run="simulated", resources=resources, serve=self._serving)
        self._do(ApplyEndpoint(id=KEY, project_id=PROJECT, key_id=KeyId("op"), spec=spec))
        for asked in self.asked:
            self._at(self.due(asked), lambda asked=asked: self._begin(asked))
        self._at(self.at_ms, self._gateway)

    def _arrival(self) -> None:
        if self.config.jobs_per_hour:
            super()._arrival()

    def _wait_ms(self, server: Process | None) -> int:
        del server
        return TELL_MS  # the demand of each second is looked at

    def _fate(self, allocation: Allocation, workload: Workload) -> tuple[int, int]:
        return (FOREVER_MS, 0) if workload.spec.type == REPLICA else super()._fate(allocation, workload)

    @property
    def _served(self) -> Served:
        return self._book.endpoints[KEY]

    def _begin(self, asked: Asked) -> None:
        if KEY not in self._book.endpoints:
            self.ends["refused"] += 1  # no server has told of it yet
            return
        served, request = self._served, _Request(self, asked)
        served.requests += 1
        served.waiting += 1
        if served.open:
            self.send(request)
            return
        if not served.replicas:
            served.cold_starts += 1
            self._cold_from_ms = self._cold_from_ms or self.at_ms
        self._hold(request)
        self._tell()

    def _hold(self, request: _Request) -> None:
        if not self._served.held.put(request):
            self._end(request, "refused")
            return
        self._at(self.due(request.asked) + self._serving.start_s * 1000, lambda: self._patience(request))

    def _patience(self, request: _Request) -> None:
        before = len(self._served.held)
        self._served.held.leave(request)
        if len(self._served.held) < before:
            self._end(request, "refused")

    def _first(self, request: _Request, replica: Replica) -> None:
        if request.replica is not replica or request.first:
            return
        if self._alive(replica) is None:
            self._again(request)
            return
        request.first = True
        self._served.waiting -= 1

    def _whole(self, request: _Request, replica: Replica, run: Run, alone_ms: int) -> None:
        if request.replica is not replica:
            return
        if self._alive(replica) is not run:
            if run.over_ms is not None and run.reason not in {Reason.NODE_LOST, Reason.NODE_FAULT}:
                raise BrokenInvariant(f"{run.allocation.id} was stopped, {run.reason}, with a request under way")
            self._detach(request)
            self._end(request, "broken")
            return
        self._served.completion += request.asked.completion
        self.added.append(self.at_ms - self.due(request.asked) - alone_ms)
        self._detach(request)
        self._end(request, "answered")

    def _again(self, request: _Request) -> None:
        """Nothing of an answer came: it may go elsewhere."""
        self._detach(request)
        self._served.sort()
        if request.tries >= TRIES_MAX:
            self._end(request, "broken")
            return
        self.retried += 1
        self.send(request)

    def _detach(self, request: _Request) -> None:
        replica, request.replica = request.replica, None
        assert replica is not None
        request.before = replica
        replica.in_flight -= 1
        self._served.in_flight -= 1

    def _end(self, request: _Request, how: str) -> None:
        self.ends[how] += 1
        self._served.busy_s = self.at_ms / 1000
        self._served.waiting -= not request.first
        if request.held_ms:
            self.waits.append(request.held_ms)

    def _alive(self, replica: Replica) -> Run | None:
        """What runs there, if it answers."""
        run = self.machines.runs.get(AllocationId(replica.entry.id))
        if run is None:
            return None
        run.advance(self.at_ms)
        unheard = any(machine.silent_ms() is not None for machine in run.machines)
        return None if unheard or run.over_ms is not None or self.at_ms < run.start_ms + self.model.load_ms else run

    def _gateway(self) -> None:
        """What a gateway does beside requests: hear, probe, tell."""
        if self.at_ms - self._told_ms >= TELL_MS:
            self._tell()
        if KEY in self._book.endpoints:
            served = self._served
            for replica in served.replicas.values():
                if not replica.ready and self._alive(replica) is not None:
                    replica.ready, replica.failures = True, 0
                    if self._cold_from_ms:
                        self.cold_ms, self._cold_from_ms = self.at_ms - self._cold_from_ms, 0
                    served.sort()
                    self._tell()
            self._note(sum(replica.ready and not replica.draining for replica in served.replicas.values()))
        self._at(self.at_ms + PROBE_MS, self._gateway)

    def _note(self, ready: int) -> None:
        if ready != self.ready[-1][1]:
            self.ready.append((self.at_ms - START_MS - FIRST_MS, ready))
        for run in self.machines.active():
            if run.allocation.id.startswith(KEY):
                started, _ = self._ran_ms.get(run.allocation.id, (self.at_ms, 0))
                self._ran_ms[run.allocation.id] = started, self.at_ms

    def _tell(self) -> None:
        """Hear what changed of the leader and say how it is; where none leads nothing is heard, and what is known goes on."""
        self._told_ms = self.at_ms
        leader = next((server for server in self.servers if server is not None and not server.paused and server.leadership.epoch is not None), None)
        if leader is None:
            return
        if leader not in self._tables:
            table = GatewayTable(leader.desk.world)
            leader.desk.listeners.append(table.heard)
            self._tables[leader] = table
        news = self._tables[leader].since(self._book.run, self._book.seq)
        if news.full or news.endpoints:
            self._book.take(news)
        else:
            self._book.run, self._book.seq = news.run, news.seq
        report = GatewayReport(gateway=GATEWAY, endpoints=tuple(served.report(self.at_ms / 1000) for served in self._book.endpoints.values()))
        if leader.demand.hear(report, self.at_ms):
            self._at(self.at_ms + 1, self._wake)

    def _busy(self) -> list[str]:
        open_ = len(self.asked) - sum(self.ends.values())
        return [*super()._busy(), *([f"{open_} requests"] if open_ else [])]


def read_load(path: Path) -> list[Asked]:
    """Requests of a CSV file with the columns of Azure's LLM inference traces (TIMESTAMP, ContextTokens, GeneratedTokens; https://github.com/Azure/AzurePublicDataset), or with
    `at_s` instead of the first. Raises BadRequest.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        times = [_seconds(row) for row in rows]
        found = [
            Asked(round((at - min(times)) * 1000), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for at, row in zip(times, rows, strict=True)
        ]
        if min((min(asked.prompt, asked.completion) for asked in found), default=0) < 0:
            raise ValueError("a request has fewer than no tokens")
    except (OSError, KeyError, ValueError, OverflowError, TypeError, csv.Error) as error:
        why = f"it has no column {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or str(error)
        raise BadRequest(f"{path} can't be read as requests: {why}", "give CSV with TIMESTAMP or at_s, ContextTokens and GeneratedTokens") from None
    if not found:
        raise BadRequest(f"{path} has no requests", "give CSV with a row for each request")
    return sorted(found, key=lambda asked: asked.at_ms)


def _seconds(row: dict[str, str]) -> float:
    if "at_s" in row:
        return float(row["at_s"])
    return datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()


def waves(seed: int, hours: float, most_s: float) -> Iterator[Asked]:
    """Made-up load: twice from nothing up to so many requests a second and back, with an hour of silence between; lengths are spread around ShareGPT's means (161 and 338 tokens)."""
    rng, at_ms, end_ms = Random(seed), 0.0, hours * 3_600_000  # noqa: S311 - replayable chance
    while at_ms < end_ms:
        rate = most_s * _shape(at_ms / end_ms)
        if rate <= 0:
            at_ms += 1000
            continue
        at_ms += rng.expovariate(rate) * 1000
        yield Asked(int(at_ms), 1 + int(rng.expovariate(1 / 161)), 1 + int(rng.expovariate(1 / 338)))


def _shape(part: float) -> float:
    """Two triangles."""
    within = (part * 2) % 1.0
    return max(0.02, 1 - abs(within - 0.3) / 0.25) if within < 0.55 else 0.0
