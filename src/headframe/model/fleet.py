"""What the operator owns: sites, racks, nodes and GPUs."""

from enum import StrEnum
from functools import lru_cache
from typing import TypeVar

import msgspec

from headframe.model.ids import GpuId, NodeId, ProjectId, RackId, ReservationId, RigId, SiteId, VolumeId
from headframe.model.power import Tariff
from headframe.model.states import GpuState, NodeState
from headframe.model.units import faded


class Grade(StrEnum):
    """What a card is good for, best first."""

    TRAIN_MULTI = "train-multi"
    TRAIN = "train"
    INFERENCE = "inference"
    BATCH = "batch"
    MINING_ONLY = "mining-only"
    REJECT = "reject"
    UNMEASURED = "unmeasured"


class Sharing(StrEnum):
    """How fractions of a card are kept apart. Neither way of sharing is a boundary between tenants who don't trust each other:
    `time-slice` isolates nothing, `mps` (CUDA's Multi-Process Service) limits the share of the processors, and from Volta on
    separates address spaces. MIG instances, which do isolate, are cards of their own.
    """

    EXCLUSIVE = "exclusive"
    TIME_SLICE = "time-slice"
    MPS = "mps"


UNKNOWN_GPU_W = 300
"""What a card whose limit is not known is taken to draw at most: an assumption, above the 220 W of the median consumer card."""


class Site(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="site"):
    """A building with a power contract. With `defragment`, work that keeps checkpoints is moved together where that lets others
    start; without it, moves are only proposed. With `shadow`, what is wrong with cards is told but nothing is done about it.
    With `check_new`, cards get their first work once they have been checked; with `check_idle`, machines that stand idle are checked again.
    `contract_w` is what may be drawn at the meter (0: no limit), `pue` the meter's watts for each of the machines', with `caps` dispatch sets cards' power limits; `reached_w` the peaks of `month`, by demand charge.
    """

    id: SiteId
    name: str
    created_ms: int
    defragment: bool = False
    shadow: bool = False
    check_new: bool = False
    check_idle: bool = False
    contract_w: int = 0
    pue: float = 1.0
    caps: bool = False
    tariff: Tariff | None = None
    month: str = ""
    reached_w: dict[str, float] = {}


class Rack(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="rack"):
    """A rack at a site. `power_limit_w` is what its breaker carries (continuously: 80 % of its rating), `cooling_limit_w` the heat
    that can be taken away; 0 is not known, and does not limit. `airflow_m3_s` of air at `supply_c` is what it follows from, where that was told.
    """

    id: RackId
    site_id: SiteId
    name: str
    created_ms: int
    power_limit_w: int = 0
    cooling_limit_w: int = 0
    airflow_m3_s: float = 0.0
    supply_c: float = 0.0

    @property
    def limit_w(self) -> int:
        """What may be drawn at most, 0 for no limit: what is drawn is heat."""
        return min(filter(None, (self.power_limit_w, self.cooling_limit_w)), default=0)


LOCAL, JOINED, SLURM, SIMULATED = "local", "joined", "slurm", "simulated"
"""What runs work on a machine: the server's own process keepers, those of the machine's agent, Slurm, or nothing real."""
TOGETHER = frozenset({SLURM, SIMULATED})
"""Those that start several machines as one."""
DIALS_OUT = frozenset({JOINED})
"""Those whose machines nobody reaches unless they have an address."""


class NodeGraded(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """When and how a machine was last checked, what its cards are good for together (None where it has none), why not more, and what was measured
    of the machine itself (10^9 bytes/s, 10^6 bytes/s, gigabits/s), and which of a vendor's own tests it did not pass.
    """

    at_ms: int
    depth: str
    grade: Grade | None = None
    reasons: tuple[str, ...] = ()
    threads: int = 0
    memory_copy_gb_s: float | None = None
    disk_mb_s: float | None = None
    network_gbit_s: float | None = None
    evidence: tuple[str, ...] = ()


class Node(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="node"):
    """A machine, known by its own serial, never by its address. `taints` keep away work that does not tolerate them; `idle_w` is
    drawn by the machine without its cards' work; `faults` counts what broke under work here, older faults counting less
    (as of `faults_ms`). `address` is where what it serves is reached, empty for this machine itself; `owner` who gets what it brings, empty for the operator. `why` says why it is in its state; work that is still there at `drain_ms` has to go (0: it may finish).
    """

    id: NodeId
    name: str
    site_id: SiteId
    rack_id: RackId
    state: NodeState
    engine: str
    cpu_milli: int
    memory_mib: int
    disk_mib: int
    cpu_model: str = ""
    os: str = ""
    boot_id: str = ""
    arch: str = ""
    address: str = ""
    owner: str = ""
    taints: tuple[str, ...] = ()
    idle_w: int = 0
    faults: float = 0.0
    faults_ms: int = 0
    why: str = ""
    drain_ms: int = 0
    graded: NodeGraded | None = None
    joined_ms: int
    seen_ms: int


SLACK_MS = 60_000
"""Work that is to be over by a time is asked to be over so much earlier: it is told to stop, and given a grace."""


class Reservation(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="reservation"):
    """Nodes set aside from a time to a time: for a project's reserved work, or with no project for maintenance, when nothing may
    run there. With `evict`, what is still there at the start is stopped. `closed` once it is over or cancelled.
    """

    id: ReservationId
    name: str
    project_id: ProjectId
    node_ids: tuple[NodeId, ...]
    start_ms: int
    end_ms: int
    created_ms: int
    evict: bool = True
    closed: bool = False


class Volume(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="volume"):
    """A project's directory that outlives its workloads; it lies on one node, and work that mounts it goes there. A cache (models, data sets) has one such row for each node that
    has it: work prefers those nodes. What nothing has mounted for `delete_s` since `used_ms` is deleted (0: never).
    """

    id: VolumeId
    project_id: ProjectId
    name: str
    node_id: NodeId
    created_ms: int
    cache: bool = False
    used_ms: int = 0
    delete_s: int = 0
    removed: bool = False


class RigCard(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A card as an inventory lists it; what it does not say is empty, and only the probe knows its link."""

    index: int
    model: str
    memory_mib: int = 0
    bus: str = ""
    vendor: str = ""
    vbios: str = ""
    serial: str = ""
    power_limit_w: int = 0


class Rig(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="rig"):
    """A machine that an inventory lists, awaited until it joins as `node_id`: where it stands, how it is reached by people, what is said
    to be in it. `memory_mib` 0 is not known.
    """

    id: RigId
    name: str
    rack: str = ""
    site: str = ""
    container: str = ""
    shelf: str = ""
    ip: str = ""
    mac: str = ""
    psu: str = ""
    breaker: str = ""
    memory_mib: int = 0
    cards: tuple[RigCard, ...] = ()
    source: str = ""
    created_ms: int = 0
    node_id: NodeId = NodeId("")


class Graded(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """When and how a card was last checked: why it has its grade, what would raise it, what was measured (10^9 bytes/s, 10^12 operations/s
    at 16 bits) beside what its model is known for, and as what it was checked: a change of these ends the grade. The link is as it was under
    load (0: not known): one that is worse in service has to be looked at. `caps` are its speeds under power limits, from its last sweep.
    """

    at_ms: int
    depth: str
    model: str = ""
    reasons: tuple[str, ...] = ()
    raises: tuple[str, ...] = ()
    h2d_gb_s: float | None = None
    memory_gb_s: float | None = None
    memory_known_gb_s: float | None = None
    half_tflops: float | None = None
    half_known_tflops: float | None = None
    vbios: str = ""
    driver: str = ""
    slot: str = ""
    power_limit_w: int | None = None
    link_gen: int = 0
    link_width: int = 0
    caps: dict[str, tuple[tuple[float, float], ...]] | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="gpu"):
    """A card, known by its UUID. `pcie_width` is in lanes (0: not known); cards of one `p2p` domain (not empty) reach each other's
    memory directly; `mig` is the profile of a MIG instance, which is a card of its own here; `max_w` its power limit; `why` says why it is in its state,
    `concern` what is wrong with it in service, by the rule `concern_rule`; a suspect card with one was taken out by that rule.
    `ready_ms` is when a person or a check last put it into service: what was said of it before counts no more.
    `faults` counts how often it broke, older faults counting less (as of `faults_ms`).
    """

    id: GpuId
    node_id: NodeId
    index: int
    model: str
    memory_mib: int
    compute_capability: str = ""
    pci_bus: str = ""
    driver: str = ""
    vbios: str = ""
    pcie_gen: int = 0
    pcie_width: int = 0
    p2p: str = ""
    mig: str = ""
    max_w: int = 0
    grade: Grade = Grade.UNMEASURED
    sharing: Sharing = Sharing.TIME_SLICE
    state: GpuState
    why: str = ""
    concern: str = ""
    concern_rule: str = ""
    graded: Graded | None = None
    ready_ms: int = 0
    faults: float = 0.0
    faults_ms: int = 0
    joined_ms: int

    @property
    def full_w(self) -> int:
        """Its power limit, or what is assumed of one whose limit is not known."""
        return self.max_w or UNKNOWN_GPU_W


@lru_cache(maxsize=1024)
def plain_model(model: str) -> str:
    """One spelling for a model: "NVIDIA GeForce RTX 3090" and "RTX3090" are the same."""
    text = model.lower()
    for noise in ("nvidia", "geforce", "amd", "radeon", "tesla", "graphics"):
        text = text.replace(noise, "")
    return "".join(filter(str.isalnum, text))


class Machine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A machine that an engine brings with it, and the name of the rack it is in, "" where that is not told."""

    node: Node
    gpus: tuple[Gpu, ...]
    rack: str = ""


class Down(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why a machine gets nothing new: it is `lost`, or else its own system sets it aside."""

    lost: bool
    why: str


Breakable = TypeVar("Breakable", Node, Gpu)


def broke(row: Breakable, now_ms: int, much: float = 1.0) -> Breakable:
    """The machine or card with one fault more on its record, or part of one where others may be to blame."""
    return msgspec.structs.replace(row, faults=faded(row.faults, row.faults_ms, now_ms) + much, faults_ms=now_ms)
