"""What is known of cards and machines, and what is concluded from it. A fact that is not known is None, never 0."""

from enum import StrEnum

import msgspec

from headframe.model.fleet import Grade


class Errors(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a card with ECC counts since its driver was loaded, and what its driver asks for (NVML field 230)."""

    ecc_uncorrected: int | None = None
    ecc_corrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    sram_threshold: bool | None = None
    retired_pages: int | None = None
    retired_pending: bool | None = None
    recovery_action: int | None = None


class Inventory(Errors, frozen=True, kw_only=True, omit_defaults=True):
    """What a card says of itself at rest. `slot` is its place on the bus; offsets are in MHz above the maker's clocks, as miners
    set them; with `persistence` the driver stays loaded while nobody uses the card.
    """

    model: str
    memory_mib: int
    slot: str = ""
    vendor: str = "nvidia"
    compute_capability: str = ""
    vbios: str = ""
    serial: str = ""
    driver: str = ""
    power_limit_w: int | None = None
    power_default_w: int | None = None
    link_gen_max: int | None = None
    link_width_max: int | None = None
    core_offset_mhz: int | None = None
    memory_offset_mhz: int | None = None
    persistence: bool | None = None
    ecc: bool | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the checks found of one card; a step that gave no result leaves None. Rates in 10^9 bytes/s (`_gb_s`) and 10^12
    operations/s (`_tflops`), shares as parts of 1 of the samples under load; `tflops` holds one rate per dtype, operations on integers included. `caps` has, for `training` and `decoding`, the share of the speed by the power limit over what is drawn uncapped.
    """

    h2d_gb_s: float | None = None
    d2h_gb_s: float | None = None
    memory_gb_s: float | None = None
    pattern_errors: int | None = None
    tflops: dict[str, float] | None = None
    repeat_errors: int | None = None
    golden_errors: int | None = None
    readback_errors: int | None = None
    peer_errors: int | None = None
    peer_gb_s: float | None = None
    soak_loss: float | None = None
    link_gen: int | None = None
    link_width: int | None = None
    replays: int | None = None
    temperature_c: int | None = None
    memory_temperature_c: int | None = None
    software_thermal: float | None = None
    hardware_thermal: float | None = None
    hardware_slowdown: float | None = None
    power_brake: float | None = None
    power_w: float | None = None
    ecc_new_uncorrected: int | None = None
    xids: tuple[int, ...] = ()
    lost: bool = False
    hung: bool = False
    device_error: str = ""
    arch_supported: bool | None = None
    caps: dict[str, tuple[tuple[float, float], ...]] | None = None


class Host(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a machine's checks found of the machine itself. `_gbit_s` is in gigabits per second, as ports are named."""

    memory_mib: int
    threads: int
    avx2: bool | None = None
    memory_copy_gb_s: float | None = None
    disk_mb_s: float | None = None
    disk_p99_ms: float | None = None
    network_gbit_s: float | None = None
    fabric_gbit_s: float | None = None
    pair_passed: bool | None = None
    edac_uncorrected: int | None = None
    disks_failing: int | None = None
    cpu_errors: int | None = None


class Sample(Errors, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One reading of a card in service, by the node's clock. `reasons` is NVML's mask of why clocks are held back, `use` and `fan` are
    parts of 1, counters are totals, `answer_ms` is how long the driver took; what was not read is None.
    """

    gpu_id: str
    at_ms: int
    present: bool = True
    answer_ms: int = 0
    temperature_c: int | None = None
    slowdown_c: int | None = None
    memory_temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_mj: int | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    reasons: int | None = None
    use: float | None = None
    memory_used_mib: int | None = None
    fan: float | None = None
    link_gen: int | None = None
    link_width: int | None = None
    replays: int | None = None


class Watched(Errors, frozen=True, kw_only=True, omit_defaults=True):
    """A card in service over a short window: the worst of each reading. Shares are of the samples, rates per minute or second."""

    present: bool = True
    temperature_c: int | None = None
    slowdown_c: int | None = None
    memory_temperature_c: int | None = None
    software_thermal: float | None = None
    hardware_thermal: float | None = None
    hardware_slowdown: float | None = None
    power_brake: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_share: float | None = None
    link_gen: int | None = None
    link_width: int | None = None
    loaded: bool = False
    replays_min: float | None = None
    nvlink_crc_s: float | None = None
    nvlinks_down: int | None = None
    answer_s: float | None = None


class Xid(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One line of NVIDIA's driver in the kernel's log, by the server's clock; `work` is the workload that held the card then."""

    at_ms: int
    code: int
    slot: str = ""
    work: str = ""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What is on record of a card: its link as it was when it was last graded, its Xids, when it went missing, and how often it broke, older
    faults counting less.
    """

    link_gen: int = 0
    link_width: int = 0
    xids: tuple[Xid, ...] = ()
    missing_ms: tuple[int, ...] = ()
    faults: float = 0.0


class Cause(StrEnum):
    """What stands behind a finding: whoever mends it takes all of its findings away."""

    LINK = "link"
    HEAT = "heat"
    SUPPLY = "supply"
    MEMORY = "memory"
    ARITHMETIC = "arithmetic"
    SPEED = "speed"
    SIZE = "size"
    ECC = "ecc"
    IDENTITY = "identity"
    DRIVER = "driver"
    SOFTWARE = "software"
    HOST = "host"
    FABRIC = "fabric"
    MIXED = "mixed"
    UNMEASURED = "unmeasured"


class Level(StrEnum):
    """How bad a finding in service is: `warn` makes a card the last choice, `bad` takes it out of service."""

    WARN = "warn"
    BAD = "bad"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that fired: what was found beside what is needed, why that matters, and where the threshold comes from. In a grading
    `cap` is the best grade that it leaves.
    """

    rule: str
    cause: Cause
    have: str
    need: str
    why: str
    source: str
    cap: Grade | None = None
    level: Level | None = None
    mend: str = ""

    def __str__(self) -> str:
        need = f" (needs {self.need})" if self.need else ""
        return f"{self.have}{need}: {self.why}"


class Grading(msgspec.Struct, frozen=True, kw_only=True):
    """A card's grade, the findings that hold it there (worst first), and step by step what would raise it."""

    grade: Grade
    findings: tuple[Finding, ...] = ()
    raises: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine tells at once: readings of its cards, and the Xids in its kernel's log since it last told."""

    samples: tuple[Sample, ...] = ()
    xids: tuple[Xid, ...] = ()


class CardHour(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One card in one hour: in how many minutes it answered, and over these the means; None where it does not say."""

    gpu_id: str
    minutes: int
    temperature_c: float | None = None
    temperature_max_c: float | None = None
    power_w: float | None = None
    use: float | None = None
    sm_mhz: float | None = None


class NodeHour(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's cards in the hour that began at `hour_ms`."""

    node_id: str
    hour_ms: int
    cards: tuple[CardHour, ...]


class Depth(StrEnum):
    """How long the checks take: `quick` at most 90 s, `full` about 45 min, most of it memory patterns and the soak; `idle` about 20 min, and it
    gives way to work at any time.
    """

    QUICK = "quick"
    FULL = "full"
    IDLE = "idle"


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the checks' child: a card's step begins, has a result, or can't be done; without any of these it is over."""

    card: int
    name: str
    begins: bool = False
    result: Measured | None = None
    error: str = ""
    broken: bool = False


class CardFacts(msgspec.Struct, frozen=True, kw_only=True, tag="card"):
    """What the checks found of one card; `notes` say what could not be done."""

    gpu_id: str
    index: int
    card: Inventory
    measured: Measured
    notes: tuple[str, ...] = ()


class Evidence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a vendor's own test said, of one card by its index or of the machine: beside our findings, not among them."""

    test: str
    status: str
    index: int | None = None
    said: str = ""

    def __str__(self) -> str:
        where = "" if self.index is None else f" on GPU {self.index}"
        return f"{self.test}{where}: {self.status}" + (f", {self.said}" if self.said else "")


class HostFacts(msgspec.Struct, frozen=True, kw_only=True, tag="host"):
    """What the checks found of the machine, and what a vendor's own tests say beside it."""

    depth: Depth
    took_s: float
    torch: str
    host: Host
    evidence: tuple[Evidence, ...] = ()


class CardCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A card as it was checked, and what follows. `model` is the catalogue's, "" where it is not known."""

    facts: CardFacts
    model: str
    grading: Grading


class NodeCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A machine as it was checked: its cards, itself, and what its cards together are good for."""

    facts: HostFacts
    grading: Grading
    cards: tuple[CardCheck, ...] = ()
