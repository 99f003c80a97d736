"""Nodes set aside by date: for a project's reserved work, or for maintenance, when nothing may run there.

A reservation names its nodes when it is made, and only nodes that are sure to be free by then: idle, or held by work that ends
before or that gives way. From then on nothing is placed there that would not be over by the start, so a reserved start is
never late.
"""

from collections.abc import Sequence

import numpy as np

from headframe.model.fleet import SLACK_MS, Node, Reservation
from headframe.model.ids import NodeId, ProjectId
from headframe.model.states import AllocationState, NodeState
from headframe.model.units import MS_PER_HOUR
from headframe.model.work import Allocation, Refusal, Spec, Tier
from headframe.model.world import World
from headframe.placement.fit import refuse, room_idle
from headframe.placement.fleet import Fleet, cheapest
from headframe.placement.kernels import NEVER

SPOT_FROM_MS = MS_PER_HOUR // 4
"""Spot work may use nodes that are set aside if it has so long before it must go."""


class Windows:
    """The reservations that matter to a plan: `until` is when a node's next one begins, by rank (`now` where one is on)."""

    def __init__(self, world: World, fleet: Fleet, now_ms: int) -> None:
        self.until: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self._now_ms = now_ms
        self._by_rank: dict[int, list[Reservation]] = {}
        for key in sorted(world.reservations):
            row = world.reservations[key]
            for rank in (fleet.rank[node_id] for node_id in row.node_ids if node_id in fleet.rank and row.end_ms > now_ms):
                self._by_rank.setdefault(rank, []).append(row)
        for rank, rows in self._by_rank.items():
            rows.sort(key=lambda row: (row.start_ms, row.id))
            self.until[rank], self.names[rank] = max(now_ms, rows[0].start_ms), rows[0].name

    def mine(self, project: ProjectId, ends_ms: int) -> list[int]:
        """The nodes that are set aside for a project now and, but for its own, until `ends_ms`."""
        return [rank for rank in sorted(self._by_rank) if self._for(project, self._by_rank[rank], ends_ms)]

    def _for(self, project: ProjectId, rows: Sequence[Reservation], ends_ms: int) -> bool:
        others = [row.start_ms for row in rows if row.project_id != project]
        return rows[0].project_id == project and rows[0].start_ms <= self._now_ms and min(others, default=ends_ms) >= ends_ms


def choose(world: World, spec: Spec, row: Reservation) -> tuple[NodeId, ...] | Refusal:
    """`spec.nodes` nodes that `spec` fits on and that are sure to be free for `row`, near one another; or why there are not so many."""
    fleet = Fleet.of(world)
    fleet.sync()
    cost = np.full(len(fleet.ids), NEVER, dtype=np.int64)
    noes: dict[str, int] = {}
    for rank, node_id in enumerate(fleet.ids):
        no = why_not(world, world.nodes[node_id], row) or ("unfit" if _unfit(world, spec, node_id) else "")
        if no:
            noes[no] = noes.get(no, 0) + 1
        else:
            cost[rank] = len(world.on_node.get(node_id, {}))
    ranks = cheapest(fleet.racks.near(spec, cost), spec.nodes)
    if ranks:
        return tuple(fleet.ids[rank] for rank in ranks)
    able = int((cost < NEVER).sum())
    why = ", ".join(f"{count} {no}" for no, count in sorted(noes.items(), key=lambda item: (-item[1], item[0])))
    return Refusal(rule="reservation", need=f"{spec.nodes} nodes sure to be free from the start on", have=f"{able} ({why})" if why else str(able),
                   nodes=len(fleet.ids), change="start later, or reserve fewer nodes")  # fmt: skip


def why_not(world: World, node: Node, row: Reservation) -> str:
    """Why a node can't be set aside, in a word or two; "" where it can."""
    if node.state is NodeState.RETIRED:
        return "retired"
    taken = [other for other in world.reservations.values() if node.id in other.node_ids and other.id != row.id]
    if any(other.start_ms < row.end_ms and row.start_ms < other.end_ms for other in taken):
        return "set aside already"
    there = world.on_node.get(node.id, {}).values()
    if row.project_id and not all(_over_by(world, allocation, row.start_ms) for allocation in there):
        return "with work that may not be over by then"
    return ""


def _unfit(world: World, spec: Spec, node_id: NodeId) -> bool:
    return refuse(spec, room_idle(world, world.nodes[node_id])) is not None


def _over_by(world: World, allocation: Allocation, at_ms: int) -> bool:
    """Whether an allocation is sure to have gone: it gives way, is going, or must end by its own max_duration."""
    if allocation.tier is Tier.SPOT or allocation.state is AllocationState.STOPPING:
        return True
    workload = world.workloads.get(allocation.workload_id)
    limit_s = workload.spec.max_duration_s if workload else 0
    start_ms = allocation.started_ms or allocation.granted_ms
    return bool(limit_s) and start_ms + limit_s * 1000 + SLACK_MS <= at_ms
