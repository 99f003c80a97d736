"""What a machine that joined and its server say to each other. The machine always speaks first; a server never dials a machine."""

import msgspec

from headframe.model.fleet import Gpu, Node, Volume
from headframe.model.health import Report
from headframe.model.ids import AllocationId, GpuId, NodeId
from headframe.model.power import Reading
from headframe.model.shell import ShellAsk
from headframe.model.states import Reason
from headframe.model.work import Allocation, LogLine, Observation, Workload

LEASE_MS = 600_000
"""A machine that has not reached its server for so long ends its work: from then on it may be running elsewhere."""
VOUCH_MS = LEASE_MS + 60_000
"""After so much silence the server counts on that."""
BATCHES_MAX, ORDERS_MAX, SEEN_MAX, TOLD_MAX = 64, 256, 4096, 2000
"""The most that one message holds."""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that wants to join: itself and its cards by serial and UUID, and by the `macs` of its ports as
    an inventory may know it. Where it stands is the operator's to say, its states the server's.
    """

    node: Node
    gpus: tuple[Gpu, ...] = ()
    macs: tuple[str, ...] = ()
    version: str = ""


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """The machine is one of the fleet; `key` is its own, in this answer alone."""

    node_id: NodeId
    name: str
    key: str


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One round of readings, and how long ago it was: a machine's clock may be wrong, its age is not."""

    age_ms: int
    report: Report


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a check that has ended wrote."""

    allocation_id: AllocationId
    lines: tuple[str, ...]


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine tells: everything that it runs or has seen end (times by its own clock, which says `clock_ms`), its cards' readings, how many
    readings it had to drop, what the miners said that it was asked about, and where the inventory has changed, that too.
    """

    clock_ms: int
    observations: tuple[Observation, ...] = ()
    batches: tuple[Batch, ...] = ()
    dropped: int = 0
    told: tuple[Told, ...] = ()
    hello: Hello | None = None
    readings: dict[AllocationId, Reading] = {}


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: for how long the machine's work may go on without the next."""

    lease_ms: int = LEASE_MS


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Start this, once."""

    allocation: Allocation
    workload: Workload


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """End this, and never start it."""

    allocation_id: AllocationId
    because: Reason
    grace_s: int


class Forget(msgspec.Struct, frozen=True, kw_only=True, tag="forget"):
    """Its end is recorded."""

    allocation_id: AllocationId


class Discard(msgspec.Struct, frozen=True, kw_only=True, tag="discard"):
    """Delete its logs and checkpoints."""

    allocation: Allocation


class Erase(msgspec.Struct, frozen=True, kw_only=True, tag="erase"):
    """Delete a volume."""

    volume: Volume


class Read(msgspec.Struct, frozen=True, kw_only=True, tag="read"):
    """Somebody wants to see log lines: answer under this number."""

    number: int
    allocation: Allocation
    after: int
    limit: int


class Attach(msgspec.Struct, frozen=True, kw_only=True, tag="attach"):
    """Somebody wants a shell beside this work, or to reach a port of it: open a line for that under this number."""

    number: int
    allocation: Allocation
    workload: Workload
    ask: ShellAsk | None = None
    port: int = 0


class Limit(msgspec.Struct, frozen=True, kw_only=True, tag="limit"):
    """Cards are to draw at most so many watts, by UUID."""

    watts: dict[GpuId, int]


class Miner(msgspec.Struct, frozen=True):
    """How a miner is read: its adapter, and its port on that machine, or the HiveOS script there that reads it."""

    adapter: str
    port: int
    script: str = ""


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask"):
    """These miners, and no others, are to be asked now and then what they do."""

    miners: dict[AllocationId, Miner]


Order = Start | Stop | Forget | Discard | Erase | Read | Attach | Limit | Ask


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What one machine is to do, by the leader of this epoch."""

    epoch: int
    node_id: NodeId
    items: tuple[Order, ...] = ()


class Lines(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a `Read`."""

    number: int
    lines: tuple[LogLine, ...]


class AddBody(msgspec.Struct, frozen=True, kw_only=True):
    """A machine is to join within `expires_in_s`, into this rack."""

    rack: str = ""
    expires_in_s: int = 3600


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """The token with which one machine may join, once, shown in this answer alone; `pin` is the SHA-256 of the server's own certificate,
    where it made one.
    """

    key_id: str
    token: str
    pin: str = ""
    expires_ms: int
