"""What tenants ask for and what they are given: specifications, workloads, allocations, refusals, observations."""

from enum import StrEnum
from typing import NamedTuple

import msgspec

from headframe.model.fleet import Down, Grade, Machine, Sharing
from headframe.model.health import CardFacts, Finding, HostFacts
from headframe.model.ids import AllocationId, GpuId, KeyId, NodeId, ProjectId, SiteId, VolumeId, WorkloadId, cache_id, volume_id
from headframe.model.power import Budget
from headframe.model.serving import Load, Serving
from headframe.model.states import AllocationState, Reason, WorkloadState
from headframe.model.units import MILLI, gpus, mib


class Tier(StrEnum):
    """How firmly GPUs are held, firmest first. `served` is as firm as on-demand, but what is sold is its tokens, not its time; `house` is the operator's own
    work (checks of cards): it is not sold, and costs nothing; nor does a `filler`, which has cards for as long as nobody else wants them.
    """

    RESERVED = "reserved"
    ON_DEMAND = "on-demand"
    SPOT = "spot"
    SERVED = "served"
    HOUSE = "house"
    FILLER = "filler"


SOLD = (Tier.RESERVED, Tier.ON_DEMAND, Tier.SPOT)
UNTIMED = frozenset({Tier.SERVED, Tier.HOUSE, Tier.FILLER})
"""Those whose time costs nothing."""
CHECK, FILLER = "check", "filler"
"""The types of workloads that check cards, and that fill them. No file can ask for them."""
JOB, ENDPOINT, REPLICA, WORKSPACE = "job", "endpoint", "replica", "workspace"


class Network(StrEnum):
    """How near to one another the nodes of a gang are to be."""

    UNCONSTRAINED = "unconstrained"
    PREFERRED = "preferred"
    REQUIRED = "required"


class GpuRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False, cache_hash=True):
    """GPUs per node: `milli` thousandths (a fraction of one card, or whole cards), of a model or a memory range, and on demand
    of at least a compute capability (such as 8.0), a grade and a PCIe width in lanes; `p2p` asks for cards that reach each
    other's memory, `sharing` how a fraction is to be kept apart, `mig` for instances of that profile.
    """

    milli: int = 0
    model: str = ""
    memory_min_mib: int = 0
    memory_max_mib: int = 0
    compute_capability: str = ""
    grade: Grade | None = None
    pcie_width: int = 0
    p2p: bool = False
    sharing: Sharing | None = None
    mig: str = ""

    def __str__(self) -> str:
        kind = self.model or (f"{mib(self.memory_min_mib)}.." if self.memory_min_mib else "any model")
        return f"{gpus(self.milli)} GPU ({kind})" if self.milli else "no GPU"


class Resources(msgspec.Struct, frozen=True, kw_only=True, gc=False, cache_hash=True):
    """What each node of the workload needs. `exclusive` asks for the whole machine, which then has just the cards asked for;
    `arch` is the processor's (x86_64, aarch64); `tolerations` are taints that it does not mind; a `gang` is several machines that are started as one; what is
    `reached` serves others.
    """

    gpu: GpuRequest = GpuRequest()
    cpu_milli: int = MILLI
    memory_mib: int = 2048
    disk_mib: int = 1024
    exclusive: bool = False
    arch: str = ""
    tolerations: tuple[str, ...] = ()
    gang: bool = False
    reached: bool = False


class Mount(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A volume of the project and where it is seen; a cache is one on each node of its own, filled again where it is not."""

    volume: str
    path: str
    cache: bool = False


class Retry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Which ends are tried again, and how often at most."""

    on: tuple[Reason, ...] = (Reason.PREEMPTED, Reason.NODE_LOST, Reason.NODE_FAULT)
    attempts: int = 5


class Spec(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A parsed workload file. Sizes are per node, `max_price_nano` is US$ per hour for the whole workload; with `nodes_min`
    an attempt may have from that to `nodes` nodes; what nobody has used for
    `idle_s` is stopped, and its volumes are deleted once nothing has mounted them for `delete_s` (0: never).
    """

    type: str = "job"
    name: str = ""
    run: str
    workdir: str = ""
    image: str = ""
    setup: str = ""
    env: dict[str, str] = {}
    nodes: int = 1
    nodes_min: int = 0
    resources: Resources = Resources()
    tier: Tier = Tier.ON_DEMAND
    priority: int = 0
    max_price_nano: int = 0
    max_duration_s: int = 0
    retry: Retry = Retry()
    checkpoint: str = ""
    network: Network = Network.PREFERRED
    volumes: tuple[Mount, ...] = ()
    serve: Serving | None = None
    idle_s: int = 0
    delete_s: int = 0

    @property
    def gpu_milli(self) -> int:
        """Thousandths of GPUs on all nodes together."""
        return self.resources.gpu.milli * self.nodes

    @property
    def least(self) -> int:
        """How many nodes an attempt needs; it gets as many as are free, up to `nodes`."""
        return self.nodes_min or self.nodes

    @property
    def size(self) -> str:
        """Its nodes, as a file says it."""
        return f"{self.nodes_min}..{self.nodes}" if self.nodes_min else str(self.nodes)

    def sized(self, nodes: int) -> "Spec":
        """The same on so many nodes, neither more nor fewer."""
        if not self.nodes_min:
            return self
        return msgspec.structs.replace(self, nodes=nodes, nodes_min=0, resources=msgspec.structs.replace(self.resources, gang=nodes > 1))

    @property
    def homed(self) -> bool:
        """Whether it mounts what lies on one node."""
        return any(not mount.cache for mount in self.volumes)


class Workload(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="workload"):
    """One submitted job, with what it has cost so far. `held_nano` is what its pending hold still covers; `closed` once
    it has ended, everything it used is billed and the rest of the hold is given back. `preempted` counts the attempts that gave
    way to others or to its own growth, which are not held against it. A replica has its endpoint's id and revision; from `drain_ms` on it gets no new requests.
    """

    id: WorkloadId
    project_id: ProjectId
    key_id: KeyId
    name: str
    spec: Spec
    endpoint_id: WorkloadId = WorkloadId("")
    revision: int = 0
    drain_ms: int = 0
    workdir_digest: str = ""
    state: WorkloadState
    attempt: int = 0
    preempted: int = 0
    submitted_ms: int
    queued_ms: int
    not_before_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    reason: Reason | None = None
    exit_code: int | None = None
    detail: str = ""
    held_nano: int = 0
    cost_nano: int = 0
    credited_nano: int = 0
    closed: bool = False

    @property
    def alike(self) -> "Alike":
        """What it has in common with those that wait for the same."""
        spec = self.spec
        return Alike(
            spec.tier, self.project_id, spec.priority, spec.resources, spec.nodes, spec.nodes_min, spec.network, spec.max_duration_s, spec.volumes
        )


class Alike(NamedTuple):
    """All of a workload that placement looks at but its age: where one is refused for want of room or of quota, so are all others that are alike (HTCondor calls
    them an autocluster).
    """

    tier: Tier
    project_id: ProjectId
    priority: int
    resources: Resources
    nodes: int
    nodes_min: int
    network: Network
    max_duration_s: int
    volumes: tuple[Mount, ...]


class Share(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`milli` thousandths of one GPU; the model is copied here so that pricing needs no look-up, and for a fraction how it is kept
    apart from the others.
    """

    gpu_id: GpuId
    index: int
    model: str
    milli: int
    sharing: Sharing = Sharing.EXCLUSIVE


class Part(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One rank of an allocation: what it holds of one node, and where it is reached if it serves something (an empty host is this machine, port 0 is nowhere)."""

    rank: int
    node_id: NodeId
    shares: tuple[Share, ...]
    cpu_milli: int
    memory_mib: int
    disk_mib: int
    host: str = ""
    port: int = 0


class Allocation(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="allocation"):
    """The GPUs, on one or more nodes, held whole by one attempt.

    Times are the node's own. `metered_ms` is how far usage has been recorded; `settled` once the end has been billed too.
    """

    id: AllocationId
    workload_id: WorkloadId
    project_id: ProjectId
    attempt: int
    tier: Tier
    parts: tuple[Part, ...]
    state: AllocationState
    granted_ms: int
    started_ms: int = 0
    metered_ms: int = 0
    stop_because: Reason | None = None
    stop_ms: int = 0
    ended_ms: int = 0
    reason: Reason | None = None
    exit_code: int | None = None
    detail: str = ""
    cost_nano: int = 0
    settled: bool = False

    @property
    def gpu_milli(self) -> int:
        """Thousandths of GPUs held on all nodes together."""
        return sum(share.milli for part in self.parts for share in part.shares)

    def holds(self, gpu: GpuId) -> bool:
        """Whether it has a share of this card."""
        return any(share.gpu_id == gpu for part in self.parts for share in part.shares)


class Refusal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why `nodes` candidates said no: the rule, what is needed, the best there is, and what would change it."""

    rule: str
    need: str
    have: str
    nodes: int
    change: str

    def __str__(self) -> str:
        where = "the fleet" if self.nodes == 0 else f"{self.nodes} node{'s' if self.nodes != 1 else ''}"
        return f"{self.rule}: {where} refused: needs {self.need}, best has {self.have}; {self.change}"


class Observation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an engine sees of one allocation, by the node's clock. Hearing it twice, late or out of order is harmless. `unclean` cards could
    not be handed over to it.
    """

    allocation_id: AllocationId
    state: AllocationState
    started_ms: int = 0
    ended_ms: int = 0
    reason: Reason | None = None
    exit_code: int | None = None
    detail: str = ""
    unclean: tuple[GpuId, ...] = ()
    seen_ms: int = 0


class Facts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Everything the engines saw in one look: when each node was last heard of, the allocations seen, and since when expected
    ones have not been, and what is wrong with cards, worst first (a card without an entry was not heard of); what checks that ended told; machines that
    engines bring, and those that are to get nothing new; what gateways say of endpoints; since when workspaces have not been used; what power sites have left; and whether what looks at everything is due.
    """

    nodes: dict[NodeId, int] = {}
    observations: tuple[Observation, ...] = ()
    missing_since_ms: dict[AllocationId, int] = {}
    findings: dict[GpuId, tuple[Finding, ...]] = {}
    sweep: bool = False
    machines: tuple[Machine, ...] = ()
    down: dict[NodeId, Down] = {}
    loads: dict[WorkloadId, Load] = {}
    idle: dict[AllocationId, int] = {}
    budgets: dict[SiteId, Budget] = {}
    checked: dict[AllocationId, tuple[CardFacts | HostFacts, ...]] = {}


class LogLine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One captured line; `next` is the cursor to ask for what follows."""

    at_ms: int
    rank: int
    stream: str
    text: str
    next: int


def mounted_id(workload: Workload, mount: Mount, node: NodeId) -> VolumeId:
    """Which volume a mount is, on a node."""
    return cache_id(workload.project_id, mount.volume, node) if mount.cache else volume_id(workload.project_id, mount.volume)
