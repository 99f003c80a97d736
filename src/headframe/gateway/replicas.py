"""An endpoint as the gateway has it: its replicas with their connections, who waits for one, and what was counted. Replicas are tried by probes until they answer, and
passed over when they don't.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from headframe.gateway.upstream import ReplicaConnection
from headframe.model.endpoint import EndpointEntry, EndpointReport, ReplicaEntry, ReplicaReport
from headframe.model.ids import ProjectId
from headframe.model.serving import Pricing
from headframe.routing.choose import Beliefs, choose

IDLE_S = 4.0
"""Servers close idle connections after 5 s (uvicorn, llama.cpp): ours are given up before."""
POOL_MAX = 64
FAILURES_MAX = 3
"""After so many failures one after the other a replica is passed over until a probe finds it well."""
HELD_MAX, HELD_BYTES_MAX = 1024, 256 * 1024 * 1024


class Waiter(Protocol):
    """A request that waits for a replica."""

    size: int

    @property
    def project(self) -> ProjectId:
        """Whose turn it is when several wait."""
        ...

    def woken(self) -> None:
        """There is one."""
        ...


class Replica:
    """Where requests go. `bit` names it in beliefs about caches."""

    __slots__ = ("bit", "draining", "endpoint", "entry", "failures", "in_flight", "key", "lines", "pool", "ready", "why")

    def __init__(self, endpoint: "Served", entry: ReplicaEntry, bit: int, key: bytes) -> None:
        self.endpoint, self.entry, self.bit, self.key = endpoint, entry, bit, key
        self.draining = entry.draining
        self.lines = f"host: {entry.host}:{entry.port}\r\nauthorization: Bearer {key.decode()}\r\n".encode()
        self.ready = False
        self.why = "not tried yet"
        self.in_flight = self.failures = 0
        self.pool: deque[ReplicaConnection] = deque()

    def pooled(self, now_s: float) -> ReplicaConnection | None:
        """A connection that was used before and is still good."""
        while self.pool:
            connection = self.pool.pop()
            if connection.transport is not None:
                if now_s - connection.idle_s < IDLE_S:
                    return connection
                connection.transport.close()
        return None

    def take_back(self, connection: ReplicaConnection, keep: bool) -> None:  # noqa: FBT001
        """A connection on which nothing is asked any more."""
        if keep and len(self.pool) < POOL_MAX:
            self.pool.append(connection)
        elif keep and connection.transport is not None:
            connection.transport.close()

    def failed(self, why: str) -> None:
        """It did not answer as it should."""
        self.failures += 1
        if self.failures >= FAILURES_MAX:
            self.ready, self.why = False, why

    def close(self) -> None:
        """Let go of its idle connections."""
        while self.pool:
            connection = self.pool.pop()
            if connection.transport is not None:
                connection.transport.close()


class Served:
    """An endpoint with its replicas. `busy_s` is when a request of it last ended."""

    def __init__(self, entry: EndpointEntry, now_s: float) -> None:
        self.entry, self.sold, self.busy_s = entry, False, now_s
        self.salt = entry.id.encode()[-16:]
        self.replicas: dict[str, Replica] = {}
        self.open: list[Replica] = []
        self.beliefs = Beliefs()
        self.held = Held()
        self.turn = 0
        self.in_flight = self.waiting = 0
        self.requests = self.failed = self.prompt = self.completion = self.cold_starts = 0
        self.first_ms = self.took_ms = 0.0

    def update(self, entry: EndpointEntry, key_of: Callable[[str], bytes]) -> None:
        """What the control plane says of it now. `sold`: by the token, to all."""
        self.entry, self.sold = entry, entry.serving.pricing is Pricing.PER_TOKEN
        told = {each.id: each for each in entry.replicas}
        for key in self.replicas.keys() - told.keys():
            gone = self.replicas.pop(key)
            gone.ready = False
            gone.close()
            self.beliefs.forget(gone.bit)
        for key, each in told.items():
            if key in self.replicas:
                self.replicas[key].draining = each.draining
            else:
                taken = {replica.bit for replica in self.replicas.values()}
                bit = next(1 << n for n in range(len(taken) + 1) if 1 << n not in taken)
                self.replicas[key] = Replica(self, each, bit, key_of(key))
        self.sort()

    def sort(self) -> None:
        """Which replicas take requests; where there is one, those that waited are woken."""
        self.open = [replica for _, replica in sorted(self.replicas.items()) if replica.ready and not replica.draining]
        if self.open:
            for waiter in self.held.take_all():
                waiter.woken()

    def choose(self, prompt: Sequence[int], but: Replica | None = None) -> Replica | None:
        """The replica for a request; after a failure another than that one, where there is one."""
        self.turn += 1
        able = [replica for replica in self.open if replica is not but] if but is not None and len(self.open) > 1 else self.open
        if not able:
            return None
        found = able[choose([replica.in_flight for replica in able], [replica.bit for replica in able], self.beliefs, prompt, self.turn)]
        if prompt:
            self.beliefs.learn(prompt, found.bit)
        return found

    def report(self, now_s: float) -> EndpointReport:
        """What is told of it."""
        quiet_s = 0.0 if self.in_flight or self.held else now_s - self.busy_s
        replicas = tuple(
            ReplicaReport(
                id=replica.entry.id,
                ready=replica.ready,
                in_flight=replica.in_flight,
                draining=replica.draining,
                why="" if replica.ready else replica.why,
            )
            for _, replica in sorted(self.replicas.items())
        )
        return EndpointReport(
            id=self.entry.id, in_flight=self.in_flight, held=len(self.held), waiting=self.waiting, requests=self.requests, failed=self.failed, prompt=self.prompt,
            completion=self.completion, first_ms=round(self.first_ms, 1), took_ms=round(self.took_ms, 1), cold_starts=self.cold_starts, quiet_s=round(quiet_s, 1), replicas=replicas,
        )  # fmt: skip


class Held:
    """Requests that wait for a replica: a bounded number, and each project's turn after the other's."""

    def __init__(self) -> None:
        self._lines: OrderedDict[ProjectId, deque[Waiter]] = OrderedDict()
        self._count = self._bytes = 0

    def __len__(self) -> int:
        return self._count

    def put(self, waiter: Waiter) -> bool:
        """Whether there was room."""
        if self._count >= HELD_MAX or self._bytes + waiter.size > HELD_BYTES_MAX:
            return False
        self._lines.setdefault(waiter.project, deque()).append(waiter)
        self._count += 1
        self._bytes += waiter.size
        return True

    def leave(self, waiter: Waiter) -> None:
        """Its client went away, or it waited long enough."""
        line = self._lines.get(waiter.project)
        if line is not None and waiter in line:
            line.remove(waiter)
            self._counted_out(waiter)

    def take_all(self) -> list[Waiter]:
        """Everybody, the projects in turn."""
        found: list[Waiter] = []
        while self._lines:
            project, line = self._lines.popitem(last=False)
            found.append(line.popleft())
            self._counted_out(found[-1])
            if line:
                self._lines[project] = line
        return found

    def _counted_out(self, waiter: Waiter) -> None:
        self._count -= 1
        self._bytes -= waiter.size
        if waiter.project in self._lines and not self._lines[waiter.project]:
            del self._lines[waiter.project]
