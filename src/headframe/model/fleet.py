"""What the operator owns: sites, racks, nodes and GPUs."""

import msgspec

from headframe.model.ids import GpuId, NodeId, RackId, SiteId
from headframe.model.states import GpuState, NodeState


class Site(msgspec.Struct, frozen=True, kw_only=True, tag="site"):
    """A building with a power contract."""

    id: SiteId
    name: str
    created_ms: int


class Rack(msgspec.Struct, frozen=True, kw_only=True, tag="rack"):
    """A rack at a site; later its breaker and cooling limits."""

    id: RackId
    site_id: SiteId
    name: str
    created_ms: int


class Node(msgspec.Struct, frozen=True, kw_only=True, tag="node"):
    """A machine, known by its own serial, never by its address."""

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
    joined_ms: int
    seen_ms: int


class Gpu(msgspec.Struct, frozen=True, kw_only=True, tag="gpu"):
    """A card, known by its UUID."""

    id: GpuId
    node_id: NodeId
    index: int
    model: str
    memory_mib: int
    compute_capability: str = ""
    pci_bus: str = ""
    driver: str = ""
    state: GpuState
    joined_ms: int
