"""The queue against the fleet: `plan` grants what fits, in order, and counts every refusal; same input, same answer.

Order: tier, then priority, then age, then id. Nodes: best fit, ties by id. A gang is granted whole or not at all. What is
granted in a plan is not yet taken in the world: it is subtracted in an overlay, and the commit decides.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

import msgspec
from typing_extensions import TypeIs

from headframe.model.fleet import Node
from headframe.model.ids import NodeId, ProjectId, WorkloadId
from headframe.model.states import NodeState
from headframe.model.units import MILLI, gpus
from headframe.model.work import Part, Refusal, Resources, Spec, Tier, Workload
from headframe.model.world import World
from headframe.placement.fit import No, Room, refuse, room_idle, room_now, take

TIER_ORDER = {Tier.RESERVED: 0, Tier.ON_DEMAND: 1, Tier.SPOT: 2}
RETIRED = frozenset({NodeState.RETIRED})
_NO_NODES = Refusal(rule="fleet", need="a node", have="0 nodes", nodes=0, change="enrol a machine: `headframe up`")


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """This workload's next attempt holds these parts."""

    workload_id: WorkloadId
    parts: tuple[Part, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to grant now, and for each workload left waiting, why."""

    grants: tuple[Grant, ...] = ()
    refusals: dict[WorkloadId, tuple[Refusal, ...]] = {}


Admit = Callable[[Workload, Sequence[Part], dict[ProjectId, int]], Refusal | None]
"""A last word on a placement that fits: budget and price, which placement does not know. Gets what the plan itself has
already given each project (US$ per hour, nano)."""


def plan(world: World, now_ms: int, admit: Admit | None = None) -> Plan:
    """Place the queue: grants in order, refusals with numbers."""
    grants: list[Grant] = []
    refusals: dict[WorkloadId, tuple[Refusal, ...]] = {}
    taken = _Overlay(world)
    for workload in in_order(world.queued.values()):
        answer = _place(world, workload, taken, now_ms, admit)
        if isinstance(answer, Grant):
            grants.append(answer)
            taken.take(workload.project_id, answer.parts)
        else:
            refusals[workload.id] = answer
    return Plan(grants=tuple(grants), refusals=refusals)


def explain(world: World, workload: Workload, now_ms: int, admit: Admit | None = None) -> tuple[Refusal, ...]:
    """Why this one waits now; empty if the next plan would grant it."""
    answer = _place(world, workload, _Overlay(world), now_ms, admit)
    return () if isinstance(answer, Grant) else answer


def feasible(world: World, spec: Spec) -> tuple[Part, ...] | tuple[Refusal, ...]:
    """Where `spec` would go in the idle fleet (parts), or why never (refusals)."""
    nodes = [node for node in world.nodes.values() if node.state not in RETIRED]
    if not nodes:
        return (_NO_NODES,)
    return _choose(spec, [room_idle(world, node) for node in nodes], idle=True)


def in_order(queue: Iterable[Workload]) -> list[Workload]:
    """Tier, priority, age, id: a total order."""
    return sorted(queue, key=lambda w: (TIER_ORDER[w.spec.tier], -w.spec.priority, w.queued_ms, w.id))


class _Overlay:
    """What this plan has already given out, on top of the world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rooms: dict[NodeId, Room] = {}
        self.gpu_milli: dict[ProjectId, int] = {}
        self.granted: dict[ProjectId, int] = {}
        self.refused: dict[tuple[Resources, int], tuple[Refusal, ...]] = {}

    def room(self, node: Node) -> Room:
        return self.rooms.get(node.id) or room_now(self.world, node)

    def take(self, project: ProjectId, parts: Sequence[Part]) -> None:
        for part in parts:
            room = self.room(self.world.nodes[part.node_id])
            milli = dict(room.gpu_milli)
            for share in part.shares:
                milli[share.gpu_id] -= share.milli
                self.gpu_milli[project] = self.gpu_milli.get(project, 0) + share.milli
            self.rooms[part.node_id] = msgspec.structs.replace(
                room, gpu_milli=milli, whole=sum(left == MILLI for left in milli.values()),
                cpu_milli=room.cpu_milli - part.cpu_milli, memory_mib=room.memory_mib - part.memory_mib,
                disk_mib=room.disk_mib - part.disk_mib,
            )  # fmt: skip


def _place(world: World, workload: Workload, taken: _Overlay, now_ms: int, admit: Admit | None) -> Grant | tuple[Refusal, ...]:
    if workload.not_before_ms > now_ms:
        wait_s = (workload.not_before_ms - now_ms + 999) // 1000
        return (Refusal(rule="back-off", need="a pause after a failed attempt", have=f"{wait_s} s to go", nodes=0,
                        change="starts by itself then"),)  # fmt: skip
    over = _over_quota(world, workload, taken)
    if over is not None:
        return (over,)
    shape = (workload.spec.resources, workload.spec.nodes)
    if shape in taken.refused:  # capacity only shrinks within a plan: what did not fit before does not fit now
        return taken.refused[shape]
    rooms = [taken.room(node) for node in world.nodes.values() if node.state not in RETIRED]
    parts = _choose(workload.spec, rooms, idle=False)
    if not are_parts(parts):
        taken.refused[shape] = parts or (_NO_NODES,)
        return taken.refused[shape]
    refusal = admit(workload, parts, taken.granted) if admit else None
    return (refusal,) if refusal else Grant(workload_id=workload.id, parts=parts)


def _over_quota(world: World, workload: Workload, taken: _Overlay) -> Refusal | None:
    project = world.projects[workload.project_id]
    used = world.gpu_use_milli.get(project.id, 0) + taken.gpu_milli.get(project.id, 0)
    need = workload.spec.resources.gpu.milli * workload.spec.nodes
    if not project.quota_gpus_milli or used + need <= project.quota_gpus_milli:
        return None
    have = f"{gpus(project.quota_gpus_milli - used)} of {gpus(project.quota_gpus_milli)} left"
    return Refusal(rule="quota", need=f"{gpus(need)} GPU", have=have, nodes=0, change="waits for the project's own work")


def _choose(spec: Spec, rooms: Sequence[Room], *, idle: bool) -> tuple[Part, ...] | tuple[Refusal, ...]:
    fits: list[tuple[tuple[int, int, int, NodeId], Room]] = []
    noes: list[No] = []
    for room in rooms:
        no = refuse(spec, room, idle=idle)
        if no is None:
            fits.append((_tightness(room), room))
        else:
            noes.append(no)
    if len(fits) < spec.nodes:
        return _counted(spec, noes, len(fits))
    best = heapq.nsmallest(spec.nodes, fits, key=itemgetter(0))
    return tuple(take(spec, room, rank) for rank, (_, room) in enumerate(best))


def _tightness(room: Room) -> tuple[int, int, int, NodeId]:
    """Least left over first, which for work without GPUs means nodes without any."""
    return (sum(room.gpu_milli.values()), room.cpu_milli, room.memory_mib, room.node.id)


def _counted(spec: Spec, noes: Sequence[No], fitting: int) -> tuple[Refusal, ...]:
    """Refusals by rule, most nodes first, each with the best that any refused node has."""
    by_rule: dict[str, list[No]] = {}
    for no in noes:
        by_rule.setdefault(no.rule, []).append(no)
    best = {rule: max(group, key=lambda no: (no.size, no.have)) for rule, group in by_rule.items()}
    refusals = [
        Refusal(rule=rule, need=no.need, have=no.have, nodes=len(by_rule[rule]), change=no.change)
        for rule, no in sorted(best.items(), key=lambda item: (-len(by_rule[item[0]]), item[0]))
    ]
    if spec.nodes > 1:
        need, have = f"{spec.nodes} nodes at once", f"{fitting} that fit"
        change = f"ask for nodes ≤ {fitting}" if fitting else "see the rules below"
        refusals.insert(0, Refusal(rule="gang", need=need, have=have, nodes=len(noes), change=change))
    return tuple(refusals)


def are_parts(answer: tuple[Part, ...] | tuple[Refusal, ...]) -> TypeIs[tuple[Part, ...]]:
    """Whether an answer places."""
    return bool(answer) and isinstance(answer[0], Part)
