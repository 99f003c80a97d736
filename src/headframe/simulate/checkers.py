"""What must hold after every commit, told apart from the code that should make it hold. Each looks only at what changed."""

from collections.abc import Sequence

from headframe.model.event import Event, Row
from headframe.model.fleet import Gpu, Node
from headframe.model.ids import AllocationId, NodeId, WorkloadId
from headframe.model.money import Entry, Usage, credit_account, held_account
from headframe.model.people import Project
from headframe.model.states import ALLOCATION_MOVES, GPU_MOVES, NODE_MOVES, WORKLOAD_MOVES, AllocationState, GpuState
from headframe.model.units import MILLI
from headframe.model.work import Allocation, Tier, Workload
from headframe.model.world import World
from headframe.placement.fleet import Fleet
from headframe.reconcile.cards import TAKEN_SHARE, taken_by_rule

_MOVES = {Node: NODE_MOVES, Gpu: GPU_MOVES, Workload: WORKLOAD_MOVES, Allocation: ALLOCATION_MOVES}


class BrokenInvariant(AssertionError):
    """A promise was broken; the message says which and by what."""


class Checker:
    """Sees every committed event, in order."""

    def __init__(self) -> None:
        self._rows: dict[tuple[type, str], Row] = {}
        self._held: dict[str, int] = {}
        self._live: dict[WorkloadId, AllocationId] = {}
        self._accounts: dict[str, int] = {}
        self._metered_ms: dict[AllocationId, int] = {}
        self._cards = 0
        self._taken = 0

    def committed(self, events: Sequence[Event]) -> None:
        """Raise BrokenInvariant on the first promise that these events break."""
        for event in events:
            for row in event.rows:
                self._row(row)
            self._ledger(event)
            self._balances(event)

    def _row(self, row: Row) -> None:
        old = self._rows.get((type(row), row.id))
        if isinstance(row, Node | Gpu | Workload | Allocation):
            state, was = row.state, getattr(old, "state", row.state)
            _hold(state == was or state in _MOVES[type(row)][was], f"{row.id} moved from {was} to {state}")  # pyright: ignore[reportArgumentType]
        if isinstance(row, Gpu):
            assert old is None or isinstance(old, Gpu)
            self._card(old, row)
        if isinstance(row, Allocation):
            assert old is None or isinstance(old, Allocation)
            self._allocation(old, row)
        if isinstance(row, Usage):
            self._usage(row)
        self._rows[type(row), row.id] = row

    def _card(self, old: Gpu | None, new: Gpu) -> None:
        """Rules take a tenth of the cards at most, and always at least one may go."""
        self._cards += old is None
        before = self._taken
        self._taken += taken_by_rule(new) - (old is not None and taken_by_rule(old))
        _hold(
            self._taken <= max(before, 1, self._cards // TAKEN_SHARE),
            f"{new.id} is suspect too: {self._taken} of {self._cards} cards were taken by rules",
        )

    def _starts(self, new: Allocation) -> None:
        """Work starts on ready cards alone; a check holds those that are under test."""
        wanted = GpuState.TESTING if new.tier is Tier.HOUSE else GpuState.READY
        for share in (share for part in new.parts for share in part.shares):
            card = self._rows[Gpu, share.gpu_id]
            assert isinstance(card, Gpu)
            _hold(card.state is wanted, f"{new.id} starts on {card.id}, which is {card.state}: {card.why}")

    def _allocation(self, old: Allocation | None, new: Allocation) -> None:
        was, holds = old is not None and old.state != "ended", new.state is not AllocationState.ENDED
        if old is None:
            workload = self._rows[Workload, new.workload_id]
            assert isinstance(workload, Workload)
            nodes = {part.node_id for part in new.parts}
            _hold(
                len(nodes) == len(new.parts) and workload.spec.least <= len(nodes) <= workload.spec.nodes,
                f"{new.id} is not a whole gang: {new.parts}",
            )
            _hold(new.workload_id not in self._live, f"{new.id} is a second live attempt")
            self._starts(new)
        sign = int(holds) - int(was)
        for share in (share for part in new.parts for share in part.shares):
            self._held[share.gpu_id] = self._held.get(share.gpu_id, 0) + sign * share.milli
            _hold(0 <= self._held[share.gpu_id] <= MILLI, f"{share.gpu_id} is held by {self._held[share.gpu_id]} thousandths")
        if holds:
            self._live[new.workload_id] = new.id
        elif was:
            self._live.pop(new.workload_id, None)
        if new.settled and new.started_ms:
            _hold(
                self._metered_ms.get(new.id, new.started_ms) == new.ended_ms,
                f"{new.id} ran until {new.ended_ms}, billed until {self._metered_ms.get(new.id)}",
            )

    def _usage(self, usage: Usage) -> None:
        _hold((Usage, usage.id) not in self._rows, f"{usage.id} is recorded twice")
        _hold(usage.end_ms > usage.start_ms, f"{usage.id} is empty")
        before = self._metered_ms.get(usage.allocation_id)
        if before is not None:
            _hold(usage.start_ms == before, f"{usage.id} starts at {usage.start_ms}, the last one ended at {before}")
        self._metered_ms[usage.allocation_id] = usage.end_ms

    def _ledger(self, event: Event) -> None:
        postings: dict[str, int] = {}
        for row in event.rows:
            if isinstance(row, Entry):
                postings[row.posting_id] = postings.get(row.posting_id, 0) + row.amount_nano
                self._accounts[row.account] = self._accounts.get(row.account, 0) + row.amount_nano
        for posting, total in postings.items():
            _hold(total == 0, f"posting {posting} sums to {total}")

    def _balances(self, event: Event) -> None:
        for row in event.rows:
            if isinstance(row, Project):
                _hold(row.credit_nano >= 0 <= row.held_nano, f"{row.id} is below zero")
                _hold(row.credit_nano == self._accounts.get(credit_account(row.id), 0), f"{row.id}: credit is not its ledger's")
                _hold(row.held_nano == self._accounts.get(held_account(row.id), 0), f"{row.id}: holds are not its ledger's")

    def finally_(self, world: World, rebuilt: World) -> None:
        """When all is quiet: no hold is left, money is where it was put, and the fold equals what the store has."""
        _hold(sum(self._accounts.values()) == 0, f"the ledger sums to {sum(self._accounts.values())}")
        _hold(not any(self._held.values()), "GPUs are still held")
        _hold(not any(gpu.state is GpuState.TESTING for gpu in world.gpus.values()), "cards are still under test")
        for project in world.projects.values():
            _hold(project.held_nano == 0, f"{project.id} still has {project.held_nano} held")
        for table in ("nodes", "gpus", "projects", "workloads", "allocations", "keys", "price_lists"):
            _hold(getattr(world, table) == getattr(rebuilt, table), f"the fold's {table} are not the store's")
        free = {key: (f.cpu_milli, f.memory_mib, f.disk_mib, f.gpu_milli, f.whole) for key, f in world.free.items()}
        again = {key: (f.cpu_milli, f.memory_mib, f.disk_mib, f.gpu_milli, f.whole) for key, f in rebuilt.free.items()}
        _hold(free == again, "free capacity drifted")
        fleet, fresh = Fleet.of(world), Fleet(rebuilt)
        fleet.sync()
        same = [key for key in fresh.ids if (_contents(fleet, key) != _contents(fresh, key))]
        _hold(not same, f"placement's rows drifted from the world: {same}")


def _contents(fleet: Fleet, node_id: NodeId) -> tuple[list[int], list[int], list[int]]:
    """What placement believes of a node, but for the number of its class."""
    rank = fleet.rank[node_id]
    return fleet.index.row(rank)[1:].tolist(), fleet.ahead().until[rank].tolist(), fleet.ahead().lost[:, rank].tolist()


def _hold(promise: bool, broken: str) -> None:  # noqa: FBT001
    if not promise:
        raise BrokenInvariant(broken)
