"""The bodies of the HTTP API that are not nouns themselves; the server writes them and the client reads them."""

import msgspec

from headframe.model.engine import EngineSetup
from headframe.model.errors import Mistake
from headframe.model.fleet import Gpu, Grade, Node, Rack, Reservation, Rig, Sharing, Site, Volume
from headframe.model.health import Depth, NodeHour, Sample
from headframe.model.ids import KeyId, ProjectId
from headframe.model.money import Entry, GpuPrice, Invoice, Quote, Usage
from headframe.model.people import Project, Scope
from headframe.model.states import AllocationState, Reason, Service
from headframe.model.work import Allocation, LogLine, Refusal, Workload


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457, with a stable `code` and a `next_step`."""

    title: str
    status: int
    detail: str
    code: str
    next_step: str = ""
    mistakes: tuple[Mistake, ...] = ()
    type: str = "about:blank"


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server answers, and whether it is the one that decides."""

    status: str
    version: str
    leader: bool


class Whoami(msgspec.Struct, frozen=True, kw_only=True):
    """Who a key is."""

    key_id: KeyId
    name: str
    scope: Scope
    project_id: ProjectId
    project_name: str


class SubmitBody(msgspec.Struct, frozen=True, kw_only=True):
    """A workload file as text, the digest of an uploaded workdir, and for operators the project."""

    file: str
    workdir: str = ""
    project: str = ""


class WorkloadView(msgspec.Struct, frozen=True, kw_only=True):
    """A workload with what it costs now and, while it waits, why."""

    workload: Workload
    rate_nano: int = 0
    accrued_nano: int = 0
    waits: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()
    allocations: tuple[Allocation, ...] = ()


class WorkloadPage(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first; `next` is the cursor of the following page."""

    items: tuple[WorkloadView, ...]
    next: str = ""


class QuoteView(msgspec.Struct, frozen=True, kw_only=True):
    """A quote and what to mention about the file."""

    quote: Quote
    warnings: tuple[str, ...] = ()


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Log lines of one attempt; ask again from `next`. `done` once nothing more can come."""

    attempt: int
    state: AllocationState | None
    reason: Reason | None
    lines: tuple[LogLine, ...]
    next: int
    done: bool


class WorkdirMade(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded workdir, named by its content."""

    digest: str
    files: int
    size_bytes: int


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A node, its cards and what is free."""

    node: Node
    gpus: tuple[Gpu, ...]
    cpu_free_milli: int
    memory_free_mib: int
    disk_free_mib: int
    gpu_free_milli: int
    allocations: tuple[Allocation, ...] = ()


class CardReading(msgspec.Struct, frozen=True, kw_only=True):
    """A card's last reading (null: never heard of), and by the minute its last hours, newest last; a gap is null."""

    gpu_id: str
    sample: Sample | None
    minutes: dict[str, tuple[float | None, ...]] = {}


class EngineBody(msgspec.Struct, frozen=True, kw_only=True):
    """A Slurm cluster to run work on. With `check_only` it is looked at and not added; it is not added either while something about it is bad."""

    url: str
    key_file: str
    shared: str
    user: str = ""
    partition: str = ""
    python: str = "/usr/bin/python3"
    accounts: str = ""
    check_only: bool = False


class EngineFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict on an engine: `good`, `limited` (what it limits) or `bad`, and what would mend it."""

    what: str
    verdict: str
    finding: str
    mend: str = ""


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that was added, as it is now: whether it answers, how many of its machines are ready, what was found when it was last looked at."""

    setup: EngineSetup
    answers: bool
    nodes: int
    ready: int
    findings: tuple[EngineFinding, ...] = ()


class EngineList(msgspec.Struct, frozen=True, kw_only=True):
    """All engines that were added."""

    items: tuple[EngineView, ...]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Where the ledger and Slurm's accounting disagree about an allocation: seconds and GPUs, as each has them; None where one does not know it."""

    allocation_id: str
    workload: str
    ours_s: float | None
    theirs_s: float | None
    ours_gpus: int | None
    theirs_gpus: int | None
    why: str


class Reconciliation(msgspec.Struct, frozen=True, kw_only=True):
    """The ledger beside Slurm's accounting since a time: how many allocations both have, how many seconds they ran in each, and the differences."""

    since_ms: int
    allocations: int
    ours_s: float
    theirs_s: float
    differences: tuple[Difference, ...]


class NodeHours(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's cards hour by hour, oldest first."""

    items: tuple[NodeHour, ...]


class NodeReadings(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's cards say, by index."""

    items: tuple[CardReading, ...]


class NodePage(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes by id; `next` is the cursor of the following page."""

    items: tuple[NodeView, ...]
    next: str = ""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What can be had of one GPU model (or of machines without one) and what it costs per hour."""

    model: str
    memory_mib: int
    total: int
    free: int
    on_demand_nano: int
    spot_nano: int
    reserved_nano: int


class Offers(msgspec.Struct, frozen=True, kw_only=True):
    """All offers, and the prices of what comes with a GPU."""

    items: tuple[Offer, ...]
    cpu_core_hour_nano: int
    memory_gib_hour_nano: int
    disk_gib_hour_nano: int
    price_version: int


class PricesBody(msgspec.Struct, frozen=True, kw_only=True):
    """New prices; what is left out stays."""

    gpus: tuple[GpuPrice, ...] = ()
    cpu_core_hour_nano: int | None = None
    memory_gib_hour_nano: int | None = None
    disk_gib_hour_nano: int | None = None


class ProjectBody(msgspec.Struct, frozen=True, kw_only=True):
    """A new project; `quota_gpus_milli` 0 is no quota."""

    name: str
    quota_gpus_milli: int = 0


class ProjectList(msgspec.Struct, frozen=True, kw_only=True):
    """The projects that a key may see."""

    items: tuple[Project, ...]


class QuotaBody(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a project may hold (0: no limit), and what it is guaranteed, in thousandths of a GPU; and whether it may only have machines to itself."""

    quota_gpus_milli: int = 0
    guaranteed_gpus_milli: int = 0
    whole_machines: bool = False


class NodeBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's operator says of it; what is left out stays. A rack that is not known is made."""

    rack: str = ""
    taints: tuple[str, ...] | None = None
    idle_w: int | None = None
    address: str | None = None
    owner: str | None = None


class ServiceBody(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a node, and why. When draining, work still there after `deadline_s` is stopped; null lets it finish."""

    to: Service
    why: str = ""
    deadline_s: int | None = None


class EnableBody(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a card may get work, and why; with `evict`, what runs on one that is disabled is stopped now."""

    enable: bool
    why: str = ""
    evict: bool = False


class CheckBody(msgspec.Struct, frozen=True, kw_only=True):
    """How thorough a check is to be."""

    depth: Depth = Depth.QUICK


class SiteBody(msgspec.Struct, frozen=True, kw_only=True):
    """With `shadow`, what is wrong with the site's cards is told but nothing is done about it; with `check_new`, new cards are checked before they
    get work; with `check_idle`, machines that stand idle are checked again, once a day, and the check gives way to work. `contract_w` is what may be drawn at
    the meter (W; 0 for no limit), `pue` the meter's watts for each watt of the machines; with `caps`, dispatch sets cards' power limits. Null keeps each.
    """

    shadow: bool | None = None
    check_new: bool | None = None
    check_idle: bool | None = None
    contract_w: int | None = None
    pue: float | None = None
    caps: bool | None = None
    tariff: str | None = None
    """A tariff file's text (YAML)."""


class SiteList(msgspec.Struct, frozen=True, kw_only=True):
    """All sites by name."""

    items: tuple[Site, ...]


class RigsBody(msgspec.Struct, frozen=True, kw_only=True):
    """Machines that an inventory lists: all are kept, or none."""

    rigs: tuple[Rig, ...]


class RigList(msgspec.Struct, frozen=True, kw_only=True):
    """The machines that inventories listed; those with a `node_id` have joined."""

    items: tuple[Rig, ...]


class RackBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a rack can carry and cool, in watts; 0 is no limit, what is left out stays. Air (m3/s, at `supply_c` at its warmest) says what it cools instead."""

    power_limit_w: int | None = None
    cooling_limit_w: int | None = None
    airflow_m3_s: float | None = None
    supply_c: float = 27.0


class RackView(msgspec.Struct, frozen=True, kw_only=True):
    """A rack, its nodes, and what they may draw at most now. Where its air is told: its inlet by the model (C), where that settles, and in how many seconds it is too
    warm (None: never as things are).
    """

    rack: Rack
    nodes: int
    drawn_w: int
    inlet_c: float | None = None
    settles_c: float | None = None
    too_warm_s: int | None = None


class RackList(msgspec.Struct, frozen=True, kw_only=True):
    """All racks by name."""

    items: tuple[RackView, ...]


class GpuBody(msgspec.Struct, frozen=True, kw_only=True):
    """A person's word on a card; what is left out stays."""

    grade: Grade | None = None
    sharing: Sharing | None = None


class DefragmentBody(msgspec.Struct, frozen=True, kw_only=True):
    """Whether to move work now, and by itself from now on (null leaves that as it is)."""

    apply: bool = False
    automatic: bool | None = None


class MoveView(msgspec.Struct, frozen=True, kw_only=True):
    """A workload that would stop and start again elsewhere, with the GPU-hours that it loses."""

    workload: str
    to: tuple[str, ...]
    lost_gpu_h: float


class Defragmentation(msgspec.Struct, frozen=True, kw_only=True):
    """The moves that would let `workload` start on `node` (empty where none is worth it), GPU-hours gained and lost."""

    automatic: bool
    workload: str = ""
    node: str = ""
    moves: tuple[MoveView, ...] = ()
    gain_gpu_h: float = 0.0
    lost_gpu_h: float = 0.0


class ReservationBody(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes to set aside: these, or for a project `nodes` machines with `gpu` (as in a workload file). Without a project for maintenance, without a start from now on."""

    name: str
    length_s: int
    start_ms: int = 0
    project: str = ""
    nodes: int = 1
    gpu: str = ""
    on: tuple[str, ...] = ()
    evict: bool = True


class ReservationList(msgspec.Struct, frozen=True, kw_only=True):
    """The reservations that a key may see, next first."""

    items: tuple[Reservation, ...]


class VolumeView(msgspec.Struct, frozen=True, kw_only=True):
    """A volume and the name of the node that it lies on."""

    volume: Volume
    node: str


class VolumeList(msgspec.Struct, frozen=True, kw_only=True):
    """The volumes that a key may see, by name."""

    items: tuple[VolumeView, ...]


class CreditBody(msgspec.Struct, frozen=True, kw_only=True):
    """Credit in nano-dollars; negative takes unspent credit back."""

    amount_nano: int
    memo: str = ""


class BudgetBody(msgspec.Struct, frozen=True, kw_only=True):
    """Limits in nano-dollars per hour and per month; 0 lifts one."""

    hour_nano: int = 0
    month_nano: int = 0


class KeyBody(msgspec.Struct, frozen=True, kw_only=True):
    """A new key; without `expires_in_s` it lives until revoked. `rpm` and `tpm` limit what it may ask of endpoints per minute, `budget_nano` what it may spend on tokens in a month (0: no limit)."""

    name: str
    scope: Scope
    project: str = ""
    expires_in_s: int = 0
    rpm: int = 0
    tpm: int = 0
    budget_nano: int = 0


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key without anything secret; `spent_nano` is what was spent of its budget this month."""

    id: KeyId
    name: str
    scope: Scope
    project_id: ProjectId
    created_ms: int
    expires_ms: int
    revoked_ms: int
    budget_nano: int = 0
    spent_nano: int = 0


class KeyMade(msgspec.Struct, frozen=True, kw_only=True):
    """A new key; `secret` is the text to use, shown this once (a repeated request gets it empty)."""

    key: KeyView
    secret: str


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that the caller may see."""

    items: tuple[KeyView, ...]


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """A project's month: balances, the invoice, and the newest usage and entries behind it."""

    project: Project
    invoice: Invoice
    usage: tuple[Usage, ...]
    entries: tuple[Entry, ...]


class UsagePage(msgspec.Struct, frozen=True, kw_only=True):
    """Usage intervals, newest first."""

    items: tuple[Usage, ...]
    next: str = ""


class EntryPage(msgspec.Struct, frozen=True, kw_only=True):
    """Ledger entries, newest first."""

    items: tuple[Entry, ...]
    next: str = ""


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """An event as told to people and machines: what happened, without the rows behind it."""

    seq: int
    at_ms: int
    kind: str
    subject: str
    project_id: ProjectId
    text: str


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events after a cursor, oldest first; ask again with `after=next`."""

    items: tuple[EventView, ...]
    next: int
