"""Who uses the system: projects (tenants), users, keys and their scopes."""

from enum import StrEnum

import msgspec

from headframe.model.ids import KeyId, NodeId, ProjectId, UserId
from headframe.model.units import faded


class Scope(StrEnum):
    """What a key may do."""

    OPERATOR = "operator"
    ADMIN = "admin"
    MEMBER = "member"
    READ = "read"
    INFER = "infer"
    GATEWAY = "gateway"
    NODE = "node"
    JOIN = "join"
    SIGNAL = "signal"


ALLOWS: dict[Scope, frozenset[Scope]] = {
    Scope.OPERATOR: frozenset({Scope.OPERATOR, Scope.ADMIN, Scope.MEMBER, Scope.READ, Scope.INFER, Scope.SIGNAL}),
    Scope.ADMIN: frozenset({Scope.ADMIN, Scope.MEMBER, Scope.READ, Scope.INFER}),
    Scope.MEMBER: frozenset({Scope.MEMBER, Scope.READ, Scope.INFER}),
    Scope.READ: frozenset({Scope.READ}),
    Scope.INFER: frozenset({Scope.INFER}),
    Scope.GATEWAY: frozenset({Scope.GATEWAY}),
    Scope.NODE: frozenset({Scope.NODE}),
    Scope.JOIN: frozenset({Scope.JOIN}),
    Scope.SIGNAL: frozenset({Scope.SIGNAL}),
}
"""What a holder of each scope is also allowed: never more than itself, which is why granting can't escalate."""


class Project(msgspec.Struct, frozen=True, kw_only=True, tag="project"):
    """A tenant. It never holds more GPUs than its quota (0: no limit), and up to `guaranteed_gpus_milli` it comes first and gets back
    what others have borrowed; `whole_machines` says that its work shares no machine with others'. `rpm` and `tpm` are the requests and tokens that its keys together may ask of endpoints per minute (0: no limit). The `_nano` balances are projections of the ledger, kept beside it so that the database can guard
    them.
    """

    id: ProjectId
    name: str
    created_ms: int
    credit_nano: int = 0
    held_nano: int = 0
    month: str = ""
    month_spent_nano: int = 0
    budget_hour_nano: int = 0
    budget_month_nano: int = 0
    quota_gpus_milli: int = 0
    guaranteed_gpus_milli: int = 0
    whole_machines: bool = False
    rpm: int = 0
    tpm: int = 0
    used_milli_h: float = 0.0
    used_ms: int = 0


def recent_use_milli_h(project: Project, now_ms: int) -> float:
    """What the project used lately, in thousandths of a GPU times hours."""
    return faded(project.used_milli_h, project.used_ms, now_ms)


def used(project: Project, milli_ms: int, at_ms: int) -> Project:
    """The project after it used so much more, up to `at_ms`."""
    at_ms = max(at_ms, project.used_ms)
    return msgspec.structs.replace(project, used_milli_h=recent_use_milli_h(project, at_ms) + milli_ms / 3_600_000, used_ms=at_ms)


class User(msgspec.Struct, frozen=True, kw_only=True, tag="user"):
    """A person, for the record of who did what."""

    id: UserId
    name: str
    created_ms: int


class Key(msgspec.Struct, frozen=True, kw_only=True, tag="key"):
    """An API key as stored: never the secret, only its HMAC. `project_id` is empty for the operator's and for machines': a machine's
    own is bound to its `node_id`, one to join with leads to a `rack` and is revoked by its use. `rpm` and `tpm` limit what it may ask of endpoints per minute, `budget_nano` what it may spend on
    tokens in a month (UTC; 0: no limit); what it has spent in `month` is counted where there is one.
    """

    id: KeyId
    name: str
    scope: Scope
    project_id: ProjectId
    user_id: UserId
    node_id: NodeId = NodeId("")
    rack: str = ""
    rpm: int = 0
    tpm: int = 0
    budget_nano: int = 0
    month: str = ""
    month_spent_nano: int = 0
    mac: str
    created_ms: int
    expires_ms: int = 0
    revoked_ms: int = 0
