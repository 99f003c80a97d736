"""What a gateway knows: keys, projects, endpoints, limits and what may be spent. Told by the control plane as it changes and kept on disk, so that a gateway that
begins while the control plane is away serves; nothing here asks anybody.
"""

import hmac
from collections.abc import Callable
from pathlib import Path

import msgspec

from headframe.files import write_private
from headframe.gateway.records import Kept
from headframe.gateway.refusals import Refused, no_key, no_model
from headframe.gateway.replicas import Served
from headframe.gateway.spool import Spool
from headframe.model.endpoint import EndpointEntry, GatewayAnswer, KeyEntry, ProjectEntry, Table, Wish
from headframe.model.ids import KeyId, ProjectId, WorkloadId
from headframe.model.keys import KINDS, key_mac, read_key, read_pass, replica_key
from headframe.model.people import ALLOWS, Scope
from headframe.routing.admit import Bucket, Purse, wish

CALLERS_MAX = 50_000
REQUESTS, TOKENS = b"requests", b"tokens"
Limit = tuple[Bucket, int, bytes, bool]
"""What holds: the bucket, how much a minute, of what, and whether a client is told of it."""
IDLE_S = 600.0
"""What is held for a project goes back when it has asked for nothing for so long."""


class Caller:
    """Who asks, by their key."""

    __slots__ = ("asked", "key", "limits", "tokens")

    def __init__(self, key: KeyEntry, now_s: float) -> None:
        self.key = key
        self.limits: list[Limit] | None = None
        self.asked, self.tokens = Bucket(key.rpm, now_s), Bucket(key.tpm, now_s)


class Payer:
    """Whose money is spent here: what may be, and what was in the last minute."""

    def __init__(self, now_s: float) -> None:
        self.purse = Purse()
        self.why = ""
        self.lately: list[tuple[float, int]] = []
        self.busy_s = now_s
        self.short = 0

    def paid(self, held: int, cost: int, now_s: float) -> None:
        """A request for which so much was set aside cost so much."""
        self.purse.settle(held, cost)
        if cost:
            self.busy_s = now_s
            self.lately.append((now_s, cost))

    def wanted(self, now_s: float) -> int:
        """What to have at hand: nothing once nobody has asked for a while."""
        self.lately = [(at, spent) for at, spent in self.lately if at > now_s - 60]
        if not self.short and not self.purse.held and now_s - self.busy_s > IDLE_S:
            return 0
        return wish(sum(spent for _, spent in self.lately), self.short) if self.lately or self.short or self.purse.held else self.purse.left


class Tenant(Payer):
    """A project here, and its limits."""

    def __init__(self, entry: ProjectEntry, now_s: float) -> None:
        super().__init__(now_s)
        self.entry = entry
        self.asked, self.tokens = Bucket(entry.rpm, now_s), Bucket(entry.tpm, now_s)


class Budget(Payer):
    """A key here that may spend so much a month."""

    def __init__(self, key: KeyEntry, now_s: float) -> None:
        super().__init__(now_s)
        self.key = key


class Book:
    """One gateway's. `pepper` is the secret that keys are hashed under."""

    def __init__(self, path: Path, pepper: bytes, now_s: Callable[[], float], host: str) -> None:
        self._path, self._pepper, self._now_s, self._host = path, pepper, now_s, host
        self.run, self.seq = "", 0
        self.keys: dict[KeyId, KeyEntry] = {}
        self.tenants: dict[ProjectId, Tenant] = {}
        self.budgets: dict[KeyId, Budget] = {}
        self.endpoints: dict[WorkloadId, Served] = {}
        self.share = 1
        self._callers: dict[bytes, Caller] = {}
        self._by_key: dict[KeyId, Caller] = {}
        self._named: dict[tuple[ProjectId, str], Served] = {}
        self._taken: dict[str, int] = {}

    def load(self, spool: Spool) -> None:
        """What was known before; with what the spool still holds, what is left to spend."""
        if not self._path.exists():
            return
        kept = msgspec.json.decode(self._path.read_bytes(), type=Kept)
        self.take(kept.table)
        self.run, self.seq = "", 0  # what happened meanwhile is told whole
        unsent, self._taken = spool.unsent(), kept.spent
        for name, payer in self._payers():
            payer.purse.granted = kept.granted.get(name, 0)
            payer.purse.spent = kept.spent.get(name, 0) + unsent.get(name, 0)

    def kept(self) -> Kept:
        """What is so now, for `write`."""
        table = Table(run="", seq=0, full=True, keys=tuple(self.keys.values()), projects=tuple(tenant.entry for tenant in self.tenants.values()),
                      endpoints=tuple(served.entry for served in self.endpoints.values()))  # fmt: skip
        granted = {name: payer.purse.granted for name, payer in self._payers() if payer.purse.granted}
        return Kept(table=table, granted=granted, spent=dict(self._taken))

    def write(self, kept: Kept) -> None:
        """On disk; blocks. One at a time."""
        write_private(self._path, msgspec.json.encode(kept))

    def take(self, table: Table) -> None:
        """What changed, or everything."""
        if table.full:
            told = {entry.id for entry in table.keys}
            self.keys = {key: entry for key, entry in self.keys.items() if key in told}
            self.budgets = {key: budget for key, budget in self.budgets.items() if key in told}
            for key in self.endpoints.keys() - {entry.id for entry in table.endpoints}:
                self._end(key)
        for entry in table.keys:
            self.keys.pop(entry.id, None) if entry.gone else self.keys.__setitem__(entry.id, entry)
            if entry.budget_nano and not entry.gone:
                self.budgets.setdefault(entry.id, Budget(entry, self._now_s())).key = entry
            else:
                self.budgets.pop(entry.id, None)
        for project in table.projects:
            self.tenants.setdefault(project.id, Tenant(project, self._now_s())).entry = project
        for endpoint in table.endpoints:
            self._end(endpoint.id) if endpoint.gone else self._endpoint(endpoint)
        if table.keys or table.projects or table.full:
            self._callers.clear()
            for caller in self._by_key.values():
                caller.limits = None
            self._by_key = {key: caller for key, caller in self._by_key.items() if key in self.keys}
        if table.endpoints or table.full:
            self._index()
        self.run, self.seq = table.run, table.seq

    def hear(self, answer: GatewayAnswer, unsent: dict[str, int]) -> None:
        """What may be spent now. `unsent` is what was spent and is not in the control plane's sums."""
        self.share = max(1, answer.gateways)
        taken = dict(self._taken)
        for granted in answer.granted:
            name: str = granted.key_id or granted.project_id
            payer: Payer | None = self.budgets.get(granted.key_id) if granted.key_id else self.tenants.get(granted.project_id)
            if payer is not None:
                payer.purse.granted = granted.granted_nano
                payer.purse.spent = granted.spent_nano + unsent.get(name, 0)
                payer.why, payer.short = granted.why, 0
            taken[name] = granted.spent_nano
        self._taken = taken

    def wishes(self, *, heard: bool) -> list[Wish]:
        """What is wanted, and what is not any more, where the control plane was `heard` lately."""
        now_s, found = self._now_s(), list[Wish]()
        for project, tenant in self.tenants.items():
            found += _wishes(tenant, project, KeyId(""), now_s, heard=heard)
        for key, budget in self.budgets.items():
            found += _wishes(budget, budget.key.project_id, key, now_s, heard=heard)
        return found

    def caller(self, token: bytes, now_ms: int) -> Caller:
        """Who that key is. Raises Refused."""
        known = self._callers.get(token) or self._passed(token, now_ms)
        if known is None:
            parts = read_key(token.decode("latin-1"))
            entry = self.keys.get(parts.id) if parts else None
            good = parts is not None and hmac.compare_digest(key_mac(self._pepper, parts.id, parts.secret), entry.mac if entry else "")
            if parts is None or entry is None or not good or KINDS[entry.scope] != parts.kind or Scope.INFER not in ALLOWS[entry.scope]:
                raise no_key()
            known = self._by_key.setdefault(entry.id, Caller(entry, self._now_s()))
            known.key = entry
            if len(self._callers) >= CALLERS_MAX:
                self._callers.clear()
            self._callers[token] = known
        if known.key.expires_ms and known.key.expires_ms <= now_ms:
            raise no_key()
        return known

    def _passed(self, token: bytes, now_ms: int) -> Caller | None:
        """Who comes from the console, where that is how they come."""
        key = read_pass(self._pepper, token.decode("latin-1"), now_ms) if token.startswith(b"hfs_") else None
        entry = self.keys.get(key) if key else None
        if entry is None or Scope.INFER not in ALLOWS[entry.scope]:
            return None
        return self._by_key.setdefault(entry.id, Caller(entry, self._now_s()))

    def endpoint(self, caller: Caller, name: str) -> Served:
        """What a key may ask under that name: its project's own first, then what is sold to all. Raises Refused."""
        found = self._named.get((caller.key.project_id, name)) or self._named.get((ProjectId(""), name))
        if found is None and not caller.key.project_id:  # an operator sees all, the oldest of a name first
            found = next((served for served in sorted(self.endpoints.values(), key=_age) if name in _names(served)), None)
        if found is None:
            raise no_model(name)
        return found

    def visible(self, caller: Caller) -> list[Served]:
        """What a key may ask, oldest first."""
        own = caller.key.project_id
        return [served for served in sorted(self.endpoints.values(), key=_age) if not own or served.entry.project_id == own or served.sold]

    def admit(self, caller: Caller, tenant: Tenant | None, tokens: int) -> tuple[list[Bucket], bytes]:
        """Take a request and as many tokens from every limit that holds, or raise Refused with nothing taken. Returns the buckets of tokens, and the lines of a head that tell of
        limits: the key's own before the project's.
        """
        limits = caller.limits
        if limits is None:
            limits = caller.limits = _limits(caller, tenant)
        if not limits:
            return [], b""
        now_s, share, told = self._now_s(), self.share, b""
        for n, (bucket, limit, unit, tells) in enumerate(limits):
            amount = 1 if unit is REQUESTS else tokens
            bucket.fill(limit / share, now_s)
            if not bucket.take(amount):
                for other, _, kind, _ in limits[:n]:
                    other.give(1 if kind is REQUESTS else tokens)
                message = f"Rate limit reached: {limit} {unit.decode()} per minute. Wait, or ask for a higher limit."
                raise Refused(429, "rate_limit_exceeded", message, again_s=bucket.wait_s(amount), lines=_told(bucket, limit, unit))
            if tells:
                told += _told(bucket, limit, unit)
        return [bucket for bucket, _, unit, _ in limits if unit is TOKENS], told

    def _payers(self) -> list[tuple[str, Payer]]:
        return [*self.tenants.items(), *self.budgets.items()]

    def _endpoint(self, entry: EndpointEntry) -> None:
        served = self.endpoints.get(entry.id)
        if served is None:
            served = self.endpoints[entry.id] = Served(entry, self._now_s())
        replicas = tuple(replica if replica.host else msgspec.structs.replace(replica, host=self._host) for replica in entry.replicas)
        served.update(msgspec.structs.replace(entry, replicas=replicas), lambda key: replica_key(self._pepper, key).encode())

    def _end(self, key: WorkloadId) -> None:
        served = self.endpoints.pop(key, None)
        if served is not None:
            served.update(msgspec.structs.replace(served.entry, replicas=()), lambda _: b"")

    def _index(self) -> None:
        self._named = {}
        for served in sorted(self.endpoints.values(), key=_age, reverse=True):
            for name in _names(served):
                self._named[served.entry.project_id, name] = served
                if served.sold:
                    self._named[ProjectId(""), name] = served


def _wishes(payer: Payer, project: ProjectId, key: KeyId, now_s: float, *, heard: bool) -> list[Wish]:
    """More, or what is not needed back; nothing where it is as it should be."""
    wanted = payer.wanted(now_s)
    back = not wanted and payer.purse.left > 0 and heard
    if back:
        payer.purse.granted -= payer.purse.left
    if not back and wanted <= payer.purse.left:
        return []
    return [Wish(project_id=project, key_id=key, honoured_nano=payer.purse.granted, wanted_nano=wanted)]


def _names(served: Served) -> tuple[str, ...]:
    """What it is asked by: the model's name, and its own."""
    return tuple(dict.fromkeys(filter(None, (served.entry.name, served.entry.serving.model))))


def _age(served: Served) -> tuple[int, str]:
    return served.entry.created_ms, served.entry.id


def _limits(caller: Caller, tenant: Tenant | None) -> list[Limit]:
    """The limits that hold for a key; of each kind the first is told of."""
    found: list[Limit] = []
    of_key = [(caller.asked, caller.key.rpm, REQUESTS), (caller.tokens, caller.key.tpm, TOKENS)]
    of_project = [(tenant.asked, tenant.entry.rpm, REQUESTS), (tenant.tokens, tenant.entry.tpm, TOKENS)] if tenant else []
    for bucket, limit, unit in (*of_key, *of_project):
        if limit:
            found.append((bucket, limit, unit, all(other[2] is not unit for other in found)))
    return found


def _told(bucket: Bucket, limit: int, unit: bytes) -> bytes:
    reset = int((bucket.limit - bucket.level) * 6000 / bucket.limit)  # hundredths of a second
    told = b"%dm%ds" % (reset // 6000, reset // 100 % 60) if reset >= 6000 else b"%d.%02ds" % (reset // 100, reset % 100)
    return _TOLD[unit] % (limit, bucket.level if bucket.level > 0 else 0, told)


_TOLD = {
    unit: b"x-ratelimit-limit-UNIT: %d\r\nx-ratelimit-remaining-UNIT: %d\r\nx-ratelimit-reset-UNIT: %s\r\n".replace(b"UNIT", unit)
    for unit in (REQUESTS, TOKENS)
}
