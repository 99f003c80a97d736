"""Commands: what people and machines ask to change. Deciding them is pure; a command is a value with ids already drawn."""

import msgspec

from headframe.model.endpoint import GatewayReport, Served
from headframe.model.engine import EngineSetup
from headframe.model.fleet import Gpu, Grade, Node, Reservation, Rig, Sharing
from headframe.model.health import Depth
from headframe.model.ids import EngineId, GpuId, KeyId, NodeId, ProjectId, RackId, ReservationId, SiteId, WorkloadId
from headframe.model.money import GpuPrice
from headframe.model.people import Key
from headframe.model.power import Asic, Coin, Filler, MarketDay, Signal, Tariff
from headframe.model.states import Service
from headframe.model.work import Spec


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Make the first site, project, price list and operator key, once."""

    site_name: str
    key: Key
    check_new: bool = False


class Enrol(msgspec.Struct, frozen=True, kw_only=True):
    """A machine says what it has; the same machine again brings its record up to date."""

    node: Node
    gpus: tuple[Gpu, ...]


class AddEngine(msgspec.Struct, frozen=True, kw_only=True):
    """Run work on a Slurm cluster too, or reach the one there is in another way."""

    setup: EngineSetup
    by: KeyId


class RemoveEngine(msgspec.Struct, frozen=True, kw_only=True):
    """Use it no more; its machines are retired."""

    engine_id: EngineId
    by: KeyId


class Join(msgspec.Struct, frozen=True, kw_only=True):
    """A machine with a token becomes one of the fleet, with a key of its own; the token is used up. `rack_id` is for a rack that is not known."""

    node: Node
    gpus: tuple[Gpu, ...]
    token: KeyId
    key: Key
    macs: tuple[str, ...] = ()
    rack_id: RackId


class ListRigs(msgspec.Struct, frozen=True, kw_only=True):
    """Machines that an inventory lists, all or none; one that is known is brought up to date."""

    rigs: tuple[Rig, ...]


class CreateProject(msgspec.Struct, frozen=True, kw_only=True):
    """A new tenant."""

    id: ProjectId
    name: str
    quota_gpus_milli: int = 0


class SetBudget(msgspec.Struct, frozen=True, kw_only=True):
    """The project's own limits in US$ (nano) per hour and per month; 0 lifts one."""

    project_id: ProjectId
    hour_nano: int
    month_nano: int


class GrantCredit(msgspec.Struct, frozen=True, kw_only=True):
    """The operator gives credit (or takes unspent credit back: negative)."""

    project_id: ProjectId
    amount_nano: int
    memo: str
    id: str


class CreateKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key whose secret was already drawn; only its MAC is here."""

    key: Key


class RevokeKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key is refused from now on."""

    key_id: KeyId


class SetPrices(msgspec.Struct, frozen=True, kw_only=True):
    """Change some prices from now on; None keeps one as it is."""

    gpus: tuple[GpuPrice, ...] = ()
    cpu_core_hour_nano: int | None = None
    memory_gib_hour_nano: int | None = None
    disk_gib_hour_nano: int | None = None


class Submit(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed workload file with its uploaded workdir."""

    id: WorkloadId
    project_id: ProjectId
    key_id: KeyId
    spec: Spec
    workdir_digest: str = ""


class StopWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """End this workload, wherever it is."""

    id: WorkloadId


class ApplyEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint as it is to be; `id` is for a new one."""

    id: WorkloadId
    project_id: ProjectId
    key_id: KeyId
    spec: Spec
    workdir_digest: str = ""


class StopEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """End it and its replicas."""

    id: WorkloadId


class TakeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway says of money; `earlier` has the last tries of the requests that its batch names."""

    report: GatewayReport
    earlier: dict[str, Served] = {}


class SetLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a project may ask of endpoints per minute: requests and tokens, 0 for no limit."""

    project_id: ProjectId
    rpm: int
    tpm: int


class SetNode(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's operator says of it; None keeps what is known. A rack that is not known is made as `rack_id`."""

    node_id: NodeId
    rack_id: RackId
    rack: str = ""
    taints: tuple[str, ...] | None = None
    idle_w: int | None = None
    address: str | None = None
    owner: str | None = None


class SetRack(msgspec.Struct, frozen=True, kw_only=True):
    """What a rack can carry and cool, in watts; 0 is no limit, None keeps it. A rack that is not known is made as `id`. Air says what it cools instead."""

    id: RackId
    name: str
    power_limit_w: int | None = None
    cooling_limit_w: int | None = None
    airflow_m3_s: float = 0.0
    supply_c: float = 0.0


class SetGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A person's word on a card; None keeps what is known."""

    gpu_id: GpuId
    grade: Grade | None = None
    sharing: Sharing | None = None


class MoveNode(msgspec.Struct, frozen=True, kw_only=True):
    """Take a node out of service, back into it, or away for good. `until_ms` is when work still there has to go, 0: it may finish."""

    node_id: NodeId
    to: Service
    by: KeyId
    why: str = ""
    until_ms: int = 0


class MoveGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A person's word that a card is to get no work, or is well again; with `evict`, what runs on it has to go now."""

    gpu_id: GpuId
    enable: bool
    by: KeyId
    why: str = ""
    evict: bool = False


class Qualify(msgspec.Struct, frozen=True, kw_only=True):
    """Check the cards of a node that hold no work, and grade them anew; `id` is the checking workload's."""

    node_id: NodeId
    depth: Depth
    id: WorkloadId
    by: KeyId


class SetSite(msgspec.Struct, frozen=True, kw_only=True):
    """What a site does by itself, and what it may draw at which price; None keeps it as it is."""

    site_id: SiteId
    shadow: bool | None = None
    check_new: bool | None = None
    check_idle: bool | None = None
    contract_w: int | None = None
    pue: float | None = None
    caps: bool | None = None
    tariff: Tariff | None = None


class TellMarket(msgspec.Struct, frozen=True, kw_only=True):
    """Days of a market's prices; a day told again takes the place of what was known."""

    days: tuple[MarketDay, ...]


class TakeSignal(msgspec.Struct, frozen=True, kw_only=True):
    """What a grid, a breaker or a person asks of a site. Hearing a version twice, or an older one, changes nothing."""

    signal: Signal


class TakeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """All signals of one event of a source, as of its version: those that it had before and has no more are cancelled."""

    site_id: SiteId
    source: str
    event: str
    version: int
    signals: tuple[Signal, ...]


class TellCoin(msgspec.Struct, frozen=True, kw_only=True):
    """A coin's terms. What can't be is refused; a jump is taken only where a person is `sure`."""

    coin: Coin
    sure: bool = False


class SetFiller(msgspec.Struct, frozen=True, kw_only=True):
    """What idle cards may do; one of that name is replaced, and what runs of it is stopped and begun anew where it would run differently."""

    filler: Filler


class RemoveFiller(msgspec.Struct, frozen=True, kw_only=True):
    """No card does this any more."""

    name: str


class TellAsics(msgspec.Struct, frozen=True, kw_only=True):
    """Mining machines as they were found; one that is known is brought up to date, and what was wanted of it stays."""

    asics: tuple[Asic, ...]


class LimitAsic(msgspec.Struct, frozen=True, kw_only=True):
    """A mining machine is to draw at most so many watts; 0 as it did before."""

    id: str
    watts: float


class RemoveAsic(msgspec.Struct, frozen=True, kw_only=True):
    """A mining machine is no longer looked after; it goes on as it is."""

    id: str


class SetQuota(msgspec.Struct, frozen=True, kw_only=True):
    """The most that a project may hold (0: no limit) and what it is guaranteed, in thousandths of a GPU; and whether it may only have machines to itself."""

    project_id: ProjectId
    quota_gpus_milli: int
    guaranteed_gpus_milli: int
    whole_machines: bool = False


class Reserve(msgspec.Struct, frozen=True, kw_only=True):
    """Set nodes aside: those that the row names, or as many as `spec` asks for."""

    row: Reservation
    spec: Spec


class CancelReservation(msgspec.Struct, frozen=True, kw_only=True):
    """Give the nodes back now."""

    id: ReservationId


class RemoveVolume(msgspec.Struct, frozen=True, kw_only=True):
    """Delete a volume and what is in it; of a cache, on all nodes."""

    project_id: ProjectId
    name: str


class Defragment(msgspec.Struct, frozen=True, kw_only=True):
    """Move work together now (`apply`), and from now on by itself or not (`automatic`; None keeps that)."""

    apply: bool
    automatic: bool | None = None


Command = (
    Found
    | Enrol
    | Join
    | AddEngine
    | RemoveEngine
    | ListRigs
    | CreateProject
    | SetBudget
    | GrantCredit
    | CreateKey
    | RevokeKey
    | SetPrices
    | Submit
    | StopWorkload
    | ApplyEndpoint
    | StopEndpoint
    | TakeReport
    | SetLimits
    | SetNode
    | SetRack
    | SetSite
    | TellMarket
    | TakeSignal
    | TakeEvent
    | TellCoin
    | SetFiller
    | RemoveFiller
    | TellAsics
    | RemoveAsic
    | LimitAsic
    | Qualify
    | SetGpu
    | MoveNode
    | MoveGpu
    | SetQuota
    | Reserve
    | CancelReservation
    | RemoveVolume
    | Defragment
)
