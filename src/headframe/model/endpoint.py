"""Endpoints, the gateways before them, and what was served: nouns, and what gateways and the control plane say to each other."""

from enum import StrEnum

import msgspec

from headframe.model.ids import AllocationId, GatewayId, KeyId, ProjectId, WorkloadId
from headframe.model.people import Scope
from headframe.model.serving import Serving
from headframe.model.work import Spec


class EndpointState(StrEnum):
    """`active` until it is told to stop; `stopped` once nothing of it is left."""

    ACTIVE = "active"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, tag="endpoint"):
    """A served model. Its replicas are workloads with its id; `made` counts them, `wanted` is how many there should be. Replicas that ended by themselves raise `failures` until
    one answers; after one nothing is tried before `not_before_ms`. `billed_nano` is what its replicas that are over cost, `earned_nano` what its tokens brought.
    """

    id: WorkloadId
    project_id: ProjectId
    key_id: KeyId
    name: str
    spec: Spec
    workdir_digest: str = ""
    state: EndpointState = EndpointState.ACTIVE
    revision: int = 1
    wanted: int = 0
    made: int = 0
    failures: int = 0
    not_before_ms: int = 0
    why: str = ""
    billed_nano: int = 0
    earned_nano: int = 0
    created_ms: int

    @property
    def serving(self) -> Serving:
        """How it is served."""
        assert self.spec.serve is not None, self.id
        return self.spec.serve


class Gateway(msgspec.Struct, frozen=True, kw_only=True, tag="gateway"):
    """A process that carries requests. `batch` is the last batch of what it served that was taken; `closed` once its allowances went back."""

    id: GatewayId
    created_ms: int
    seen_ms: int
    batch: int = 0
    closed: bool = False


class Allowance(msgspec.Struct, frozen=True, kw_only=True, tag="allowance"):
    """What a gateway may spend for a project: a part of its credit that is held; or with a key that has a budget: a part of that, for which nothing is held beside. They are sums since the gateway began, so that either side may say them twice; `granted_nano`
    falls only by what the gateway said before that it does not count on. `moves` numbers what was granted and given back.
    """

    id: str
    gateway_id: GatewayId
    project_id: ProjectId
    key_id: KeyId = KeyId("")
    created_ms: int
    granted_nano: int = 0
    spent_nano: int = 0
    moves: int = 0
    closed: bool = False

    @property
    def left_nano(self) -> int:
        """What is still held."""
        return self.granted_nano - self.spent_nano


class Served(msgspec.Struct, frozen=True, kw_only=True, tag="served"):
    """What was served: the sum of many requests of one key, or one request that its client named: then `name` is the project's and the client's name for it. `paid_nano` is what was charged for it, with all earlier tries of that
    name that our side had `cut`. `estimated` counts requests whose tokens were guessed, since their server did not say.
    """

    id: str
    gateway_id: GatewayId
    endpoint_id: WorkloadId
    project_id: ProjectId
    key_id: KeyId
    at_ms: int
    requests: int
    prompt: int
    completion: int
    cached: int = 0
    failed: int = 0
    estimated: int = 0
    request_id: str = ""
    name: str = ""
    cut: bool = False
    amount_nano: int = 0
    paid_nano: int = 0


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A key as a gateway knows it; `gone` once it is no more."""

    id: KeyId
    mac: str = ""
    scope: Scope = Scope.INFER
    project_id: ProjectId = ProjectId("")
    expires_ms: int = 0
    rpm: int = 0
    tpm: int = 0
    budget_nano: int = 0
    gone: bool = False


class ProjectEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A project as a gateway knows it: requests and tokens per minute, 0 for no limit."""

    id: ProjectId
    name: str
    rpm: int = 0
    tpm: int = 0


class ReplicaEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Where a replica answers, and whether it is being drained."""

    id: AllocationId
    host: str
    port: int
    draining: bool = False


class EndpointEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint as a gateway knows it; one that sells tokens answers all projects."""

    id: WorkloadId
    project_id: ProjectId
    name: str
    serving: Serving
    replicas: tuple[ReplicaEntry, ...] = ()
    created_ms: int = 0
    gone: bool = False


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """What changed since a gateway asked last, or everything (`full`). `run` is the server's own life: a number of another one means nothing."""

    run: str
    seq: int
    full: bool = False
    keys: tuple[KeyEntry, ...] = ()
    projects: tuple[ProjectEntry, ...] = ()
    endpoints: tuple[EndpointEntry, ...] = ()


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a gateway finds a replica: whether it is ready, how many requests it has, whether the gateway knows that it is being drained, and why it is not ready."""

    id: AllocationId
    ready: bool
    in_flight: int
    draining: bool = False
    why: str = ""


class EndpointReport(msgspec.Struct, frozen=True, kw_only=True):
    """The load of an endpoint at one gateway: requests under way, held, and those of both that have no first byte yet; since the gateway started: requests, failed ones, tokens that came out, and
    waits in milliseconds until the first byte, summed. `quiet_s` is for how long nothing was asked, as far as the gateway knows.
    """

    id: WorkloadId
    in_flight: int
    held: int
    waiting: int = 0
    requests: int = 0
    failed: int = 0
    prompt: int = 0
    completion: int = 0
    first_ms: float = 0.0
    took_ms: float = 0.0
    cold_starts: int = 0
    quiet_s: float = 0.0
    replicas: tuple[ReplicaReport, ...] = ()


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway wants to have for a project, or with a key, and what it holds itself to: `honoured_nano` is the sum granted that it counts on, `wanted_nano` what it would
    like to have left.
    """

    project_id: ProjectId
    key_id: KeyId = KeyId("")
    honoured_nano: int
    wanted_nano: int


class ServedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway served, in a batch with a number: taken once, in order."""

    number: int
    items: tuple[Served, ...]


class GatewayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway says, once a second and whenever something can't wait."""

    gateway: GatewayId
    endpoints: tuple[EndpointReport, ...] = ()
    wishes: tuple[Wish, ...] = ()
    batch: ServedBatch | None = None


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway may spend for a project, or with a key, as sums; `why` says why it is not more."""

    project_id: ProjectId
    key_id: KeyId = KeyId("")
    granted_nano: int
    spent_nano: int
    why: str = ""


class GatewayAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway hears: the last batch taken, what it may spend, and how many gateways share the limits."""

    batch: int
    granted: tuple[Granted, ...] = ()
    gateways: int = 1


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint's load at a moment, of all gateways together; rates are per second since the moment before."""

    at_ms: int
    in_flight: int = 0
    held: int = 0
    waiting: int = 0
    requests_s: float = 0.0
    failed_s: float = 0.0
    tokens_s: float = 0.0
    first_ms: float | None = None
    replicas: int = 0
