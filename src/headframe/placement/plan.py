"""The queue against the fleet: `plan` grants what fits, in order, and counts every refusal; same input, same answer.

Order: tier, then priority, then age, then id. Nodes: least cost (`score.py`), ties by id. A gang is granted whole or not at
all. What is granted in a plan is not yet taken in the world: it is subtracted in the fleet's rows, and the commit decides.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec
from typing_extensions import TypeIs

from headframe.model.ids import NodeId, ProjectId, WorkloadId
from headframe.model.states import NodeState
from headframe.model.units import gpus
from headframe.model.work import Part, Refusal, Resources, Spec, Tier, Workload
from headframe.model.world import World
from headframe.placement.fit import No, Room, refuse, take
from headframe.placement.fleet import Fleet

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
    taken = _Taken(world)
    for workload in in_order(world.queued.values()):
        answer = _place(workload, taken, now_ms, admit)
        if isinstance(answer, Grant):
            grants.append(answer)
            taken.count(workload)
        else:
            refusals[workload.id] = answer
    return Plan(grants=tuple(grants), refusals=refusals)


def explain(world: World, workload: Workload, now_ms: int, admit: Admit | None = None) -> tuple[Refusal, ...]:
    """Why this one waits now; empty if the next plan would grant it."""
    answer = _place(workload, _Taken(world), now_ms, admit)
    return () if isinstance(answer, Grant) else answer


def feasible(world: World, spec: Spec) -> tuple[Part, ...] | tuple[Refusal, ...]:
    """Where `spec` would go in the idle fleet (parts), or why never (refusals)."""
    fleet = Fleet.of(world)
    fleet.sync()
    rooms = fleet.idle_rooms()
    if not rooms:
        return (_NO_NODES,)
    answer = _asked(spec, rooms, idle=True)
    if answer:
        return answer
    fits = [room for room, _ in rooms if refuse(spec, room, idle=True) is None]
    return (take(spec, min(fits, key=_tightness), 0),)


def in_order(queue: Iterable[Workload]) -> list[Workload]:
    """Tier, priority, age, id: a total order."""
    return sorted(queue, key=lambda w: (TIER_ORDER[w.spec.tier], -w.spec.priority, w.queued_ms, w.id))


class _Taken:
    """What this plan has already given out, beside what the fleet's rows say."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fleet = Fleet.of(world)
        self.fleet.sync()
        self.gpu_milli: dict[ProjectId, int] = {}
        self.granted: dict[ProjectId, int] = {}
        self.refused: dict[tuple[Resources, int], tuple[Refusal, ...]] = {}

    def count(self, workload: Workload) -> None:
        milli = workload.spec.resources.gpu.milli * workload.spec.nodes
        self.gpu_milli[workload.project_id] = self.gpu_milli.get(workload.project_id, 0) + milli


def _place(workload: Workload, taken: _Taken, now_ms: int, admit: Admit | None) -> Grant | tuple[Refusal, ...]:
    if workload.not_before_ms > now_ms:
        wait_s = (workload.not_before_ms - now_ms + 999) // 1000
        return (Refusal(rule="back-off", need="a pause after a failed attempt", have=f"{wait_s} s to go", nodes=0,
                        change="starts by itself then"),)  # fmt: skip
    over = _over_quota(taken.world, workload, taken)
    if over is not None:
        return (over,)
    shape = (workload.spec.resources, workload.spec.nodes)
    if shape in taken.refused:  # capacity only shrinks within a plan: what did not fit before does not fit now
        return taken.refused[shape]
    parts = taken.fleet.place(workload.spec)
    if not parts:
        taken.refused[shape] = _why_not(workload.spec, taken.fleet)
        return taken.refused[shape]
    refusal = admit(workload, parts, taken.granted) if admit else None
    if refusal is not None:
        taken.fleet.take_back(parts)
        return (refusal,)
    return Grant(workload_id=workload.id, parts=parts)


def _why_not(spec: Spec, fleet: Fleet) -> tuple[Refusal, ...]:
    """Every node's no, asked once of each state that nodes are in."""
    rooms = [(fleet.room(node_id), count) for node_id, count in fleet.states()]
    rooms = [(room, count) for room, count in rooms if room.node.state not in RETIRED]
    return _asked(spec, rooms, idle=False) or (_NO_NODES,)


def _over_quota(world: World, workload: Workload, taken: _Taken) -> Refusal | None:
    project = world.projects[workload.project_id]
    used = world.gpu_use_milli.get(project.id, 0) + taken.gpu_milli.get(project.id, 0)
    need = workload.spec.resources.gpu.milli * workload.spec.nodes
    if not project.quota_gpus_milli or used + need <= project.quota_gpus_milli:
        return None
    have = f"{gpus(project.quota_gpus_milli - used)} of {gpus(project.quota_gpus_milli)} left"
    return Refusal(rule="quota", need=f"{gpus(need)} GPU", have=have, nodes=0, change="waits for the project's own work")


def _asked(spec: Spec, rooms: Sequence[tuple[Room, int]], *, idle: bool) -> tuple[Refusal, ...]:
    """The refusals of all rooms, each with how many nodes it stands for; () where enough of them do not refuse."""
    noes: list[tuple[No, int]] = []
    fitting = 0
    for room, count in rooms:
        no = refuse(spec, room, idle=idle)
        if no is None:
            fitting += count
        else:
            noes.append((no, count))
    return () if fitting >= spec.nodes else _counted(spec, noes, fitting)


def _tightness(room: Room) -> tuple[int, int, int, NodeId]:
    """Least left over first, which for work without GPUs means nodes without any."""
    return (sum(room.gpu_milli.values()), room.cpu_milli, room.memory_mib, room.node.id)


def _counted(spec: Spec, noes: Sequence[tuple[No, int]], fitting: int) -> tuple[Refusal, ...]:
    """Refusals by rule, most nodes first, each with the best that any refused node has."""
    by_rule: dict[str, list[No]] = {}
    nodes: dict[str, int] = {}
    for no, count in noes:
        by_rule.setdefault(no.rule, []).append(no)
        nodes[no.rule] = nodes.get(no.rule, 0) + count
    best = {rule: max(group, key=lambda no: (no.size, no.have)) for rule, group in by_rule.items()}
    refusals = [
        Refusal(rule=rule, need=no.need, have=no.have, nodes=nodes[rule], change=no.change)
        for rule, no in sorted(best.items(), key=lambda item: (-nodes[item[0]], item[0]))
    ]
    if spec.nodes > 1:
        need, have = f"{spec.nodes} nodes at once", f"{fitting} that fit"
        change = f"ask for nodes ≤ {fitting}" if fitting else "see the rules below"
        refusals.insert(0, Refusal(rule="gang", need=need, have=have, nodes=sum(nodes.values()), change=change))
    return tuple(refusals)


def are_parts(answer: tuple[Part, ...] | tuple[Refusal, ...]) -> TypeIs[tuple[Part, ...]]:
    """Whether an answer places."""
    return bool(answer) and isinstance(answer[0], Part)
