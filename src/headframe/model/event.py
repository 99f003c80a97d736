"""Events: what happened and the rows it left behind. The world is a fold over these.

Rows hold values and nothing that refers back, so Python's collector of cycles, which would look at each of a hundred thousand, is told to leave them out (`gc=False`).
"""

from enum import StrEnum

import msgspec

from headframe.model.endpoint import Allowance, Endpoint, Gateway, Served
from headframe.model.engine import EngineSetup
from headframe.model.fleet import Gpu, Node, Rack, Reservation, Rig, Site, Volume
from headframe.model.ids import ProjectId
from headframe.model.money import Entry, NodeYield, PriceList, Usage
from headframe.model.people import Key, Project, User
from headframe.model.power import Asic, Coin, Filler, MarketDay, Posture, Signal
from headframe.model.work import Allocation, Workload

Row = (
    Site | Rack | EngineSetup | Rig | Node | Gpu | Reservation | Volume | Project | User | Key | PriceList | Endpoint | Workload | Allocation | Gateway | Allowance
    | MarketDay | Signal | Coin | Filler | Asic | Posture | NodeYield | Usage | Served | Entry
)  # fmt: skip
ROW_TYPES: tuple[type[Row], ...] = (
    Site, Rack, EngineSetup, Rig, Node, Gpu, Reservation, Volume, Project, User, Key, PriceList, Endpoint, Workload, Allocation, Gateway,
    Allowance, MarketDay, Signal, Coin, Filler, Asic, Posture, NodeYield, Usage, Served, Entry,
)  # fmt: skip


HISTORY: tuple[type[Row], ...] = (Usage, Served, NodeYield, Entry)
"""What is only ever added: no decision looks at it, no row of it is ever changed."""


class Kind(StrEnum):
    """Every kind of event there is."""

    SITE_CREATED = "site.created"
    SITE_CHANGED = "site.changed"
    ENGINE_ADDED = "engine.added"
    ENGINE_REMOVED = "engine.removed"
    RIG_LISTED = "rig.listed"
    NODE_JOINED = "node.joined"
    NODE_CHANGED = "node.changed"
    RACK_CHANGED = "rack.changed"
    GPU_CHANGED = "gpu.changed"
    RESERVED = "reserved"
    RESERVATION_OVER = "reservation.over"
    VOLUME_CREATED = "volume.created"
    VOLUME_USED = "volume.used"
    VOLUME_REMOVED = "volume.removed"
    PROJECT_CREATED = "project.created"
    PROJECT_CHANGED = "project.changed"
    CREDIT_GRANTED = "credit.granted"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    PRICES_SET = "prices.set"
    WORKLOAD_QUEUED = "workload.queued"
    WORKLOAD_STARTING = "workload.starting"
    WORKLOAD_RUNNING = "workload.running"
    WORKLOAD_STOPPING = "workload.stopping"
    WORKLOAD_ENDED = "workload.ended"
    ENDPOINT_CREATED = "endpoint.created"
    ENDPOINT_CHANGED = "endpoint.changed"
    ENDPOINT_STOPPED = "endpoint.stopped"
    GATEWAY_CHANGED = "gateway.changed"
    REQUESTS_BILLED = "requests.billed"
    ALLOCATION_CHANGED = "allocation.changed"
    USAGE_METERED = "usage.metered"
    MARKET_TOLD = "market.told"
    SIGNAL_TAKEN = "signal.taken"
    SIGNAL_OVER = "signal.over"
    COIN_TOLD = "coin.told"
    FILLER_CHANGED = "filler.changed"
    ASIC_CHANGED = "asic.changed"
    POSTURE_CHANGED = "posture.changed"
    SHED = "shed"
    ENERGY_POSTED = "energy.posted"
    HOLD_EXTENDED = "hold.extended"
    REFUNDED = "refunded"


class Draft(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A decision, not yet committed: it becomes an event when the store has given it a place in the order."""

    kind: Kind
    subject: str
    project_id: ProjectId = ProjectId("")
    text: str
    rows: tuple[Row, ...] = ()


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A committed decision. `seq` orders all events; `rows` are the nouns as they are after it."""

    seq: int
    at_ms: int
    kind: Kind
    subject: str
    project_id: ProjectId = ProjectId("")
    text: str
    rows: tuple[Row, ...] = ()
