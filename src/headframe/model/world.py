"""The world as it is now: a fold over events, kept small by forgetting what has ended and been paid for.

`put` is the only way in; it keeps the derived indexes (free capacity, the queue, names) equal to what a full rebuild would
give, so a tick costs what changed. `begin`/`rollback` let a writer try decisions before the store has accepted them.
"""

import bisect
import heapq
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from headframe.model.endpoint import Allowance, Endpoint, EndpointState, Gateway
from headframe.model.engine import EngineSetup
from headframe.model.event import HISTORY, Event, Row
from headframe.model.fleet import Gpu, Node, Rack, Reservation, Rig, Site, Volume
from headframe.model.ids import (
    AllocationId,
    EngineId,
    GatewayId,
    GpuId,
    KeyId,
    NodeId,
    ProjectId,
    RackId,
    ReservationId,
    RigId,
    SiteId,
    UserId,
    VolumeId,
    WorkloadId,
)
from headframe.model.money import PriceList
from headframe.model.people import Key, Project, User
from headframe.model.power import Asic, Coin, Filler, MarketDay, Posture, Signal
from headframe.model.states import WORKLOAD_ENDS, AllocationState, GpuState, WorkloadState
from headframe.model.units import MILLI
from headframe.model.work import Alike, Allocation, Part, Workload


class Free:
    """What a node has left: mutable, owned by the world, read by placement."""

    __slots__ = ("cpu_milli", "disk_mib", "gpu_milli", "memory_mib", "whole")

    def __init__(self) -> None:
        self.cpu_milli = 0
        self.memory_mib = 0
        self.disk_mib = 0
        self.gpu_milli: dict[GpuId, int] = {}
        self.whole = 0

    def add(self, part: Part, sign: int) -> None:
        """Give back (+1) or take (-1) what a part holds."""
        self.cpu_milli += sign * part.cpu_milli
        self.memory_mib += sign * part.memory_mib
        self.disk_mib += sign * part.disk_mib
        for share in part.shares:
            if share.gpu_id in self.gpu_milli:
                self.set_gpu(share.gpu_id, self.gpu_milli[share.gpu_id] + sign * share.milli)

    def set_gpu(self, gpu: GpuId, milli: int | None) -> None:
        """Set one GPU's free thousandths, or take it out with None; `whole` stays the count of wholly free ones."""
        if self.gpu_milli.get(gpu) == MILLI:
            self.whole -= 1
        if milli is None:
            self.gpu_milli.pop(gpu, None)
            return
        self.gpu_milli[gpu] = milli
        if milli == MILLI:
            self.whole += 1


class World:
    """Everything a decision may look at. Rows are frozen; only the dictionaries change."""

    def __init__(self) -> None:
        self.version = 0
        self.sites: dict[SiteId, Site] = {}
        self.racks: dict[RackId, Rack] = {}
        self.engines: dict[EngineId, EngineSetup] = {}
        self.rigs: dict[RigId, Rig] = {}
        self.nodes: dict[NodeId, Node] = {}
        self.gpus: dict[GpuId, Gpu] = {}
        self.reservations: dict[ReservationId, Reservation] = {}
        self.volumes: dict[VolumeId, Volume] = {}
        self.homes: dict[tuple[ProjectId, str], NodeId] = {}
        self.caches: dict[tuple[ProjectId, str], dict[NodeId, None]] = {}
        self.projects: dict[ProjectId, Project] = {}
        self.users: dict[UserId, User] = {}
        self.keys: dict[KeyId, Key] = {}
        self.price_lists: dict[str, PriceList] = {}
        self.endpoints: dict[WorkloadId, Endpoint] = {}
        self.replicas: dict[WorkloadId, dict[WorkloadId, Workload]] = {}
        self.gateways: dict[GatewayId, Gateway] = {}
        self.allowances: dict[str, Allowance] = {}
        self.market_days: dict[str, MarketDay] = {}
        self.signals: dict[str, Signal] = {}
        self.coins: dict[str, Coin] = {}
        self.fillers: dict[str, Filler] = {}
        self.asics: dict[str, Asic] = {}
        self.postures: dict[str, Posture] = {}
        self.workloads: dict[WorkloadId, Workload] = {}
        self.allocations: dict[AllocationId, Allocation] = {}
        self.free: dict[NodeId, Free] = {}
        self.node_gpus: dict[NodeId, dict[GpuId, Gpu]] = {}
        self.queued: dict[WorkloadId, Workload] = {}
        self.waiting: dict[Alike, list[tuple[int, WorkloadId]]] = {}
        self._line: dict[WorkloadId, list[tuple[int, WorkloadId]]] = {}
        self.unsettled: dict[AllocationId, Allocation] = {}
        self.closing: dict[WorkloadId, Workload] = {}
        self.names: dict[tuple[ProjectId, str], WorkloadId] = {}
        self.gpu_use_milli: dict[ProjectId, int] = {}
        self.held: dict[AllocationId, Allocation] = {}
        self.unsteady: dict[AllocationId, Allocation] = {}
        self.small: dict[AllocationId, Allocation] = {}
        self.watched: dict[AllocationId, Allocation] = {}
        self._deadlines: list[tuple[int, AllocationId]] = []
        self.on_node: dict[NodeId, dict[AllocationId, Allocation]] = {}
        self.views: dict[type, object] = {}
        self._watchers: list[set[NodeId]] = []
        self._tables: dict[type, dict[Any, Any]] = {
            Site: self.sites, Rack: self.racks, EngineSetup: self.engines, Rig: self.rigs, Node: self.nodes, Gpu: self.gpus, Project: self.projects,
            User: self.users, Key: self.keys, PriceList: self.price_lists, Reservation: self.reservations, Volume: self.volumes, Workload: self.workloads,
            Allocation: self.allocations, Endpoint: self.endpoints, Gateway: self.gateways, Allowance: self.allowances,
            MarketDay: self.market_days, Signal: self.signals, Coin: self.coins, Filler: self.fillers, Asic: self.asics, Posture: self.postures,
        }  # fmt: skip
        self._undo: list[tuple[type, Any, Any]] = []

    def apply(self, event: Event) -> None:
        """Advance by one committed (or, between begin and rollback, tried) event."""
        assert event.seq == self.version + 1, (event.seq, self.version)
        for row in event.rows:
            self.put(row)
        self.version = event.seq

    def load(self, rows: Iterable[Row], version: int) -> None:
        """Fill an empty world from the store's live rows, parents first (a snapshot has no others)."""
        assert self.version == 0, "only an empty world is loaded"
        for row in rows:
            self._replace(type(row), row.id, row)
        self.version = version

    def begin(self) -> int:
        """Forget how to undo what came before; returns the version to roll back to."""
        self._undo.clear()
        return self.version

    def mark(self) -> tuple[int, int]:
        """A place to roll back to inside a batch."""
        return len(self._undo), self.version

    def rollback(self, mark: tuple[int, int]) -> None:
        """Take back everything since `mark`, newest first."""
        depth, version = mark
        while len(self._undo) > depth:
            kind, key, old = self._undo.pop()
            self._replace(kind, key, old)
        self.version = version

    def put(self, row: Row) -> None:
        """Take in one row; history leaves no trace here."""
        if isinstance(row, HISTORY):
            return
        kind = type(row)
        self._undo.append((kind, row.id, self._tables[kind].get(row.id)))
        self._replace(kind, row.id, None if over(row) else row)

    def _replace(self, kind: type, key: Any, new: Any) -> None:
        table = self._tables[kind]
        old = table.get(key)
        if new is None:
            table.pop(key, None)
        else:
            table[key] = new
        if kind is Allocation:
            self._index_allocation(old, new)
        elif kind is Workload:
            self._index_workload(old, new)
        elif kind is Node:
            self._index_node(old, new)
        elif kind is Gpu:
            self._index_gpu(old, new)
        elif kind is Volume:
            self._index_volume(old, new)
        elif kind is Rack:
            self._index_rack(key)
        elif kind is Endpoint:
            self._index_endpoint(old, new)

    def _index_allocation(self, old: Allocation | None, new: Allocation | None) -> None:
        held, holds = _holds(old), _holds(new)
        if held != holds:
            allocation = old or new
            assert allocation is not None
            sign = 1 if held else -1
            for part in allocation.parts:
                if part.node_id in self.free:
                    self.free[part.node_id].add(part, sign)
            used = self.gpu_use_milli.get(allocation.project_id, 0) - sign * allocation.gpu_milli
            self.gpu_use_milli[allocation.project_id] = used
        self._index_holders(old if held else None, new if holds else None)
        self._index_progress(old, new if holds else None, (new or old).id)  # pyright: ignore[reportOptionalMemberAccess]
        ended = new is not None and new.state is AllocationState.ENDED
        key = (new or old).id  # pyright: ignore[reportOptionalMemberAccess]
        if ended and new is not None:
            self.unsettled[key] = new
        else:
            self.unsettled.pop(key, None)

    def _index_progress(self, old: Allocation | None, new: Allocation | None, key: AllocationId) -> None:
        """What holds GPUs; what of it is not simply running, which elastic gangs run on fewer nodes than they would take, and what is stopped when nobody
        uses it; and until when it may run.
        """
        for index in (self.held, self.unsteady, self.small, self.watched):
            index.pop(key, None)
        if new is None:
            return
        self.held[key] = new
        if new.state is not AllocationState.RUNNING:
            self.unsteady[key] = new
            return
        workload = self.workloads.get(new.workload_id)
        if workload is None:
            return
        if workload.spec.nodes_min and len(new.parts) < workload.spec.nodes:
            self.small[key] = new
        if workload.spec.idle_s:
            self.watched[key] = new
        if workload.spec.max_duration_s and (old is None or old.state is not AllocationState.RUNNING):
            heapq.heappush(self._deadlines, (new.started_ms + workload.spec.max_duration_s * 1000, key))

    def overdue(self, now_ms: int) -> list[Allocation]:
        """Running allocations past their workload's max_duration, in order; they are told again until they stop."""
        found: list[tuple[int, AllocationId]] = []
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            item = heapq.heappop(self._deadlines)
            if item[1] in self.held and self.held[item[1]].state is AllocationState.RUNNING:
                found.append(item)
        for item in found:
            heapq.heappush(self._deadlines, item)
        return [self.held[key] for key in dict.fromkeys(key for _, key in found)]

    def _index_holders(self, old: Allocation | None, new: Allocation | None) -> None:
        """Who holds something of a node; whoever watches learns of a start or a stop too, since it changes what is expected."""
        if old is not None:
            for part in old.parts:
                self.on_node[part.node_id].pop(old.id, None)
        if new is not None:
            for part in new.parts:
                self.on_node.setdefault(part.node_id, {})[new.id] = new
        allocation = new or old
        if allocation is not None and (old is None or new is None or old.state != new.state):
            for part in allocation.parts:
                self._touch(part.node_id)

    def _index_workload(self, old: Workload | None, new: Workload | None) -> None:
        if old is not None:
            if self.queued.pop(old.id, None):
                self._leave_line(old)
            self.closing.pop(old.id, None)
            self.names.pop((old.project_id, old.name), None)
            if old.endpoint_id:
                self.replicas.get(old.endpoint_id, {}).pop(old.id, None)
        if new is None:
            return
        if new.endpoint_id:
            self.replicas.setdefault(new.endpoint_id, {})[new.id] = new
        if new.state in WORKLOAD_ENDS:
            self.closing[new.id] = new
            return
        self.names[new.project_id, new.name] = new.id
        if new.state is WorkloadState.QUEUED:
            self.queued[new.id] = new
            self._line[new.id] = line = self.waiting.setdefault(new.alike, [])
            bisect.insort(line, (new.queued_ms, new.id))

    def _leave_line(self, workload: Workload) -> None:
        """It waits no more; where it was the last of those that are alike, so is their line."""
        line = self._line.pop(workload.id)
        del line[bisect.bisect_left(line, (workload.queued_ms, workload.id))]
        if not line:
            del self.waiting[workload.alike]

    def _index_endpoint(self, old: Endpoint | None, new: Endpoint | None) -> None:
        if old is not None:
            self.names.pop((old.project_id, old.name), None)
        if new is None:
            if old is not None and not self.replicas.get(old.id):
                self.replicas.pop(old.id, None)
            return
        self.names[new.project_id, new.name] = new.id

    def _index_node(self, old: Node | None, new: Node | None) -> None:
        node = new or old
        assert node is not None
        if old is None or new is None or _placed(old) != _placed(new):
            self._touch(node.id)
        if new is None:
            self.free.pop(node.id, None)
            return
        if old is None:
            self.free[new.id] = Free()
            self.node_gpus.setdefault(new.id, {})
        free, was = self.free[new.id], _size(old)
        size = _size(new)
        free.cpu_milli += size[0] - was[0]
        free.memory_mib += size[1] - was[1]
        free.disk_mib += size[2] - was[2]

    def _index_volume(self, old: Volume | None, new: Volume | None) -> None:
        for row in (old, new):
            if row is None:
                continue
            key = (row.project_id, row.name)
            if row.cache and row is new:
                self.caches.setdefault(key, {})[row.node_id] = None
            elif row.cache:
                self.caches.get(key, {}).pop(row.node_id, None)
            elif row is new:
                self.homes[key] = row.node_id
            else:
                self.homes.pop(key, None)

    def _index_rack(self, rack_id: RackId) -> None:
        for node in self.nodes.values():
            if node.rack_id == rack_id:
                self._touch(node.id)

    def _index_gpu(self, old: Gpu | None, new: Gpu | None) -> None:
        if old is not None and new is not None and old.node_id != new.node_id:  # it was put into another machine
            self._index_gpu(old, None)
            old = None
        gpu = new or old
        assert gpu is not None
        self._touch(gpu.node_id)
        on_node = self.node_gpus.setdefault(gpu.node_id, {})
        if new is None:
            on_node.pop(gpu.id, None)
        else:
            on_node[gpu.id] = new
        ready = new is not None and new.state is GpuState.READY
        was_ready = old is not None and old.state is GpuState.READY
        if ready != was_ready and gpu.node_id in self.free:
            self.free[gpu.node_id].set_gpu(gpu.id, MILLI - self._used_milli(gpu) if ready else None)

    def _used_milli(self, gpu: Gpu) -> int:
        parts = (part for allocation in self.on_node.get(gpu.node_id, {}).values() for part in allocation.parts)
        return sum(share.milli for part in parts for share in part.shares if share.gpu_id == gpu.id)

    def watch(self) -> set[NodeId]:
        """A set that from now on gathers the nodes whose capacity changes; the watcher empties it."""
        touched: set[NodeId] = set()
        self._watchers.append(touched)
        return touched

    def _touch(self, node_id: NodeId) -> None:
        for touched in self._watchers:
            touched.add(node_id)

    def prices(self) -> list[PriceList]:
        """All price lists, oldest first."""
        return sorted(self.price_lists.values(), key=lambda prices: prices.version)

    def named(self, gpu: Gpu) -> str:
        """A card for people: its machine's name and its number there."""
        return f"{self.nodes[gpu.node_id].name} GPU {gpu.index}"

    def person(self, key: KeyId) -> str:
        """Who acts with a key, by the key's name."""
        return self.keys[key].name if key in self.keys else key

    def holders(self, gpu: Gpu) -> list[Allocation]:
        """Who holds some of a card, in id order."""
        there = self.on_node.get(gpu.node_id, {})
        return [there[key] for key in sorted(there) if there[key].holds(gpu.id)]

    def live(self) -> list[Allocation]:
        """Allocations that hold GPUs, in id order."""
        return [self.held[key] for key in sorted(self.held)]


def _holds(allocation: Allocation | None) -> bool:
    return allocation is not None and allocation.state is not AllocationState.ENDED


def _size(node: Node | None) -> tuple[int, int, int]:
    return (node.cpu_milli, node.memory_mib, node.disk_mib) if node else (0, 0, 0)


def _placed(node: Node) -> tuple[object, ...]:
    """What placement looks at."""
    return (node.state, _size(node), node.rack_id, node.arch, node.taints, node.idle_w, node.faults, node.address)


_CLOSED, _REMOVED = attrgetter("closed"), attrgetter("removed")
_OVER: dict[type, Callable[[Any], bool]] = {
    **dict.fromkeys((Workload, Reservation, Gateway, Allowance, Signal, MarketDay), _CLOSED), **dict.fromkeys((Volume, EngineSetup, Filler, Asic), _REMOVED),
    Endpoint: lambda row: row.state is EndpointState.STOPPED, Allocation: attrgetter("settled"),
}  # fmt: skip


def over(row: Row) -> bool:
    """Whether the world may forget this row: its history is in the store, nothing remains to be decided about it."""
    says = _OVER.get(type(row))
    return says is not None and says(row)
