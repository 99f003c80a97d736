"""What gateways say of endpoints: the memory of the leader alone, turned into what the tick decides on. It holds minutes, for scaling and for the page."""

from collections import deque
from typing import Any

import msgspec

from headframe.model.endpoint import Endpoint, EndpointReport, EndpointState, GatewayReport, Moment, ReplicaReport
from headframe.model.ids import AllocationId, GatewayId, WorkloadId
from headframe.model.serving import Load, Metric
from headframe.model.states import WORKLOAD_ENDS, WorkloadState
from headframe.model.work import Workload
from headframe.model.world import World
from headframe.reconcile.endpoints import attempt
from headframe.routing.scale import STABLE_MS, Memory, Sample, scale

HEARD_MS = 5_000
"""A gateway that was not heard of for so long has no say."""
FORGOTTEN_MS = 60_000
SAMPLE_MS = 900
KEPT_MS = 600_000


class _Said(msgspec.Struct):
    """The last word of a gateway, and the one before."""

    at_ms: int
    report: dict[WorkloadId, EndpointReport]


class Demand:
    """Fed by reports, asked by the tick and by pages."""

    def __init__(self) -> None:
        self._said: dict[GatewayId, _Said] = {}
        self._moments: dict[WorkloadId, deque[Moment]] = {}
        self._sums: dict[WorkloadId, tuple[int, dict[GatewayId, EndpointReport]]] = {}
        self._memory: dict[WorkloadId, Memory] = {}
        self._silent: dict[AllocationId, int] = {}

    def hear(self, report: GatewayReport, now_ms: int) -> bool:
        """Take it in; whether a decision may follow at once: somebody is held, or a replica answers for the first time."""
        before = self._said.get(report.gateway)
        for gone in [key for key, said in self._said.items() if now_ms - said.at_ms > FORGOTTEN_MS]:
            del self._said[gone]
        self._said[report.gateway] = _Said(now_ms, {each.id: each for each in report.endpoints})
        was = {replica.id for each in before.report.values() for replica in each.replicas if replica.ready} if before else set()
        now = {replica.id for each in report.endpoints for replica in each.replicas if replica.ready}
        held = any(each.held and not any(replica.ready for replica in each.replicas) for each in report.endpoints)
        drained = any(replica.draining and not replica.in_flight for each in report.endpoints for replica in each.replicas)
        return held or bool(now - was) or drained

    def gateways(self, now_ms: int) -> list[GatewayId]:
        """Those that were heard of lately."""
        return sorted(key for key, said in self._said.items() if now_ms - said.at_ms <= HEARD_MS)

    def loads(self, world: World, now_ms: int) -> dict[WorkloadId, Load]:
        """What to decide on. Where no gateway speaks, nothing: what runs goes on."""
        live = self.gateways(now_ms)
        if not live:
            return {}
        for key in self._moments.keys() - world.endpoints.keys():
            del self._moments[key]
            self._memory.pop(key, None)
            self._sums.pop(key, None)
        return {key: self._load(world, endpoint, live, now_ms) for key, endpoint in world.endpoints.items() if endpoint.state is EndpointState.ACTIVE}

    def moments(self, key: WorkloadId) -> list[Moment]:
        """The last minutes of an endpoint, oldest first."""
        return list(self._moments.get(key, ()))

    def replica(self, endpoint: WorkloadId, key: AllocationId) -> ReplicaReport:
        """What all gateways say of one: whether some get answers from it, how many requests it has, and else why it is not ready."""
        said = [each for word in self._said.values() if (told := word.report.get(endpoint)) for each in told.replicas if each.id == key]
        ready = any(each.ready for each in said)
        why = "" if ready else next((each.why for each in said if each.why), "")
        return ReplicaReport(id=key, ready=ready, in_flight=sum(each.in_flight for each in said), why=why)

    def total(self, key: WorkloadId) -> EndpointReport:
        """All gateways' sums since each started."""
        return _sum(key, [said.report[key] for said in self._said.values() if key in said.report])

    def _load(self, world: World, endpoint: Endpoint, live: list[GatewayId], now_ms: int) -> Load:
        told = {gateway: self._said[gateway].report[endpoint.id] for gateway in live if endpoint.id in self._said[gateway].report}
        replicas = [replica for replica in world.replicas.get(endpoint.id, {}).values() if replica.state not in WORKLOAD_ENDS]
        ready = frozenset(replica.id for each in told.values() for replica in each.replicas if replica.ready)
        self._sample(endpoint, told, len(ready), now_ms)
        moments = self._moments.get(endpoint.id, deque())
        samples = [Sample(m.at_ms, _demand(endpoint, m)) for m in moments if m.at_ms > now_ms - STABLE_MS]
        staying = [replica for replica in replicas if not replica.drain_ms and replica.state is not WorkloadState.STOPPING]
        memory = self._memory.get(endpoint.id) or _begun(endpoint, len(staying), told, now_ms)
        scaled = scale(endpoint.serving, samples, sum(attempt(replica) in ready for replica in staying), len(staying), memory, now_ms)
        self._memory[endpoint.id] = scaled.memory
        drained = frozenset(attempt(replica) for replica in replicas if replica.drain_ms and self._empty(attempt(replica), live, endpoint.id))
        return Load(
            wanted=scaled.wanted if told else None, why=scaled.why, ready=ready, drained=drained, silent=self._silences(replicas, ready, now_ms)
        )

    def _empty(self, key: AllocationId, live: list[GatewayId], endpoint: WorkloadId) -> bool:
        """Whether every gateway knows that it is drained and has nothing there."""
        for gateway in live:
            told = self._said[gateway].report.get(endpoint)
            replica = next((each for each in told.replicas if each.id == key), None) if told else None
            if replica is None or not replica.draining or replica.in_flight:
                return False
        return True

    def _silences(self, replicas: list[Workload], ready: frozenset[AllocationId], now_ms: int) -> dict[AllocationId, int]:
        """Since when replicas that run have not answered."""
        found: dict[AllocationId, int] = {}
        for replica in replicas:
            key = attempt(replica)
            if key in ready or replica.state is not WorkloadState.RUNNING:
                self._silent.pop(key, None)
                continue
            found[key] = self._silent.setdefault(key, now_ms)
        return found

    def _sample(self, endpoint: Endpoint, told: dict[GatewayId, EndpointReport], ready: int, now_ms: int) -> None:
        moments = self._moments.setdefault(endpoint.id, deque())
        woken = any(each.held for each in told.values()) and not (moments and moments[-1].held)  # who finds nobody waits for no second to end
        if moments and now_ms - moments[-1].at_ms < SAMPLE_MS and not woken:
            return
        before_ms, before = self._sums.get(endpoint.id, (now_ms, {}))
        self._sums[endpoint.id] = (now_ms, told)
        grown = _sum(endpoint.id, [_since(each, before[gateway]) for gateway, each in told.items() if gateway in before])
        total, seconds = _sum(endpoint.id, list(told.values())), max(0.001, (now_ms - before_ms) / 1000)
        moments.append(Moment(
            at_ms=now_ms, in_flight=total.in_flight, held=total.held, waiting=total.waiting, requests_s=grown.requests / seconds, failed_s=grown.failed / seconds,
            tokens_s=grown.completion / seconds, first_ms=grown.first_ms / grown.requests if grown.requests else None, replicas=ready,
        ))  # fmt: skip
        while moments[0].at_ms < now_ms - KEPT_MS:
            moments.popleft()


def _begun(endpoint: Endpoint, staying: int, told: dict[GatewayId, EndpointReport], now_ms: int) -> Memory:
    """What to begin with where nothing is remembered, as after another leader: what there is stays for now, and gateways know for how long nobody has asked."""
    quiet_s = min((each.quiet_s for each in told.values()), default=0.0)
    return Memory(wanted=((now_ms, max(staying, endpoint.wanted)),), busy_ms=now_ms - round(quiet_s * 1000))


def _demand(endpoint: Endpoint, moment: Moment) -> float:
    match endpoint.serving.metric:
        case Metric.CONCURRENCY:
            return moment.in_flight + moment.held
        case Metric.QUEUE:
            return moment.waiting
        case Metric.TOKENS_PER_S:
            return max(moment.tokens_s, float(bool(moment.held or moment.in_flight)))  # who waits for a first token wants something, too


def _sum(key: WorkloadId, reports: list[EndpointReport]) -> EndpointReport:
    names = ("in_flight", "held", "waiting", "requests", "failed", "prompt", "completion", "first_ms", "took_ms", "cold_starts")
    sums: dict[str, Any] = {name: sum(getattr(each, name) for each in reports) for name in names}
    return EndpointReport(id=key, **sums)


def _since(now: EndpointReport, before: EndpointReport) -> EndpointReport:
    """What was added; a gateway that began anew starts from nothing."""
    if now.requests < before.requests:
        return now
    names = ("requests", "failed", "prompt", "completion", "first_ms", "took_ms")
    return msgspec.structs.replace(now, **{name: getattr(now, name) - getattr(before, name) for name in names})
