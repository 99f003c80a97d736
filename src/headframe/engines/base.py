"""The seam between deciding and running. Everything an engine is asked is idempotent by the allocation's id."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from headframe.engines.carry import Shell
from headframe.model.errors import Conflicting
from headframe.model.fleet import Down, Machine, Volume
from headframe.model.ids import AllocationId, NodeId
from headframe.model.shell import ShellAsk
from headframe.model.states import Reason
from headframe.model.work import Allocation, LogLine, Observation, Workload

GRACE_S, FILLER_GRACE_S = 10, 3
"""Between the signal to end and the kill. A filler has nothing to save, and a tenant waits for its card."""


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """One look: the nodes that answered, and every allocation they have and were not told to forget; or, where it is not
    `complete`, only those about which there is news. `machines` are those that the engine brings, told at least when they change; `down` those
    that are to get nothing new.
    """

    nodes: tuple[NodeId, ...]
    observations: tuple[Observation, ...]
    complete: bool = True
    machines: tuple[Machine, ...] = ()
    down: dict[NodeId, Down] = {}


class NoShells:
    """For engines whose work is simulated."""

    async def shell(self, allocation: Allocation, workload: Workload, ask: ShellAsk) -> Shell:
        del allocation, workload, ask
        raise Conflicting("this work is simulated: there is no shell in it", "run it on a real machine")

    async def reach(self, allocation: Allocation, workload: Workload, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        del allocation, workload, port
        raise Conflicting("this work is simulated: it has no ports", "run it on a real machine")


class Engine(Protocol):
    """Runs allocations. `observe` is the truth; the others are wishes that may be repeated."""

    async def start(self, allocation: Allocation, workload: Workload) -> None:
        """Start, unless this id was ever started or stopped here; a failure shows as an observed end."""
        ...

    async def stop(self, allocation: AllocationId, because: Reason, grace_s: int) -> None:
        """Ask for an end: a term signal, grace, a kill; also forbids a start that comes later."""
        ...

    async def observe(self) -> Sight:
        """Everything it runs or has seen end, in one call; an engine of many machines may say only what is new in between."""
        ...

    async def forget(self, allocation: AllocationId) -> None:
        """The end is recorded: stop reporting it. Its logs are kept."""
        ...

    async def logs(self, allocation: Allocation, after: int, limit: int) -> Sequence[LogLine]:
        """Lines from the cursor `after` on; a cursor that has been rotated away goes on at the oldest line kept."""
        ...

    async def erase(self, volume: Volume) -> None:
        """Delete a volume that nothing mounts any more."""
        ...

    async def shell(self, allocation: Allocation, workload: Workload, ask: ShellAsk) -> Shell:
        """A command beside running work. Raises Conflicting where there can be none, with the reason."""
        ...

    async def reach(self, allocation: Allocation, workload: Workload, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a port at which running work listens. Raises Conflicting where there can be none."""
        ...

    async def discard(self, allocation: Allocation) -> None:
        """Delete the logs and the checkpoints of what has ended and was forgotten."""
        ...
