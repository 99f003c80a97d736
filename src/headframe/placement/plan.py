"""The queue against the fleet: `plan` grants what fits, in order, and counts every refusal; same input, same answer.

Order: see `order.py`. Nodes: least cost (`score.py`), ties by id. A gang is granted whole or not at
all. What is granted in a plan is not yet taken in the world: it is subtracted in the fleet's rows, and the commit decides.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec
from typing_extensions import TypeIs

from headframe.model.fleet import SLACK_MS
from headframe.model.ids import NodeId, ProjectId, WorkloadId
from headframe.model.states import AllocationState, NodeState, Reason
from headframe.model.units import MILLI, MS_PER_HOUR, duration, gpus
from headframe.model.work import Alike, Allocation, GpuRequest, Network, Part, Refusal, Resources, Spec, Tier, Workload
from headframe.model.world import World
from headframe.placement.fit import No, Room, matches, refuse, take
from headframe.placement.fleet import Fleet, cheapest
from headframe.placement.horizon import STOP_MS
from headframe.placement.kernels import NEVER
from headframe.placement.order import Order
from headframe.placement.preempt import Eviction, Lending, gain, make_room
from headframe.placement.windows import SPOT_FROM_MS, Windows

KEPT_FOR_MAX = 4
"""How many waiting workloads at the head of the queue have room kept for them."""
STAY_MS = 16 * MS_PER_HOUR
"""Nodes that were kept for a workload stay kept for it while they are expected within this: what has been emptied of a node is lost if others are
emptied instead, and where nobody says how long work takes, another node looks better at every look.
"""
RETIRED = frozenset({NodeState.RETIRED})
FOREVER_MS = 1 << 50
_NO_NODES = Refusal(rule="fleet", need="a node", have="0 nodes", nodes=0, change="enrol a machine: `headframe up`")
_EMPTIED = (
    Refusal(rule="fillers", need="nodes without fillers", have="fillers that are stopping", nodes=0, change="starts by itself within seconds"),
)


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """This workload's next attempt holds these parts."""

    workload_id: WorkloadId
    parts: tuple[Part, ...]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes kept for a workload at the head of the queue, which is expected to start at `start_ms`."""

    workload_id: WorkloadId
    nodes: tuple[NodeId, ...]
    start_ms: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to grant now, who gives way, what is kept for whom, and for each workload left waiting, why."""

    grants: tuple[Grant, ...] = ()
    refusals: dict[WorkloadId, tuple[Refusal, ...]] = {}
    evictions: tuple[Eviction, ...] = ()
    kept: tuple[Kept, ...] = ()


Admit = Callable[[Workload, Sequence[Part], dict[ProjectId, int]], Refusal | None]
"""A last word on a placement that fits: budget and price, which placement does not know. Gets what the plan itself has
already given each project (US$ per hour, nano)."""


def plan(world: World, now_ms: int, admit: Admit | None = None, *, reasons: bool = True, until: Callable[[], bool] | None = None) -> Plan:
    """Place the queue: grants in order, who gives way, refusals with numbers (left out without `reasons`). Whatever is in the
    queue after `until` says that time is up waits for the next plan.
    """
    made = _Made(world, now_ms, admit, reasons=reasons)
    for workload in made.order:
        if until is not None and until():
            break
        made.consider(workload)
    made.refuse_alike()
    for grant in made.grants:
        made.fleet.ran(world.workloads[grant.workload_id].spec, grant.parts)
    made.fleet.kept = {kept.workload_id: kept.nodes for kept in made.kept}
    return Plan(grants=tuple(made.grants), refusals=made.refusals, evictions=tuple(made.evictions), kept=tuple(made.kept))


def explain(world: World, workload: Workload, now_ms: int, admit: Admit | None = None) -> tuple[Refusal, ...]:
    """Why this one waits now; empty if it would be granted were it alone in the queue."""
    made = _Made(world, now_ms, admit, reasons=True)
    made.consider(workload)
    return made.refusals.get(workload.id, ())


def anew(world: World, allocation: Allocation, now_ms: int, admit: Admit | None = None) -> int:
    """On how many nodes an elastic gang that runs would go on, were it stopped now and nobody else waiting."""
    made = _Made(world, now_ms, admit, reasons=False)
    made.fleet.take_back(allocation.parts)
    made.order.without(allocation)
    sized, answer = made.sized(world.workloads[allocation.workload_id])
    return sized.spec.nodes if isinstance(answer, Grant) or answer == _EMPTIED else 0


def feasible(world: World, spec: Spec) -> tuple[Part, ...] | tuple[Refusal, ...]:
    """Where `spec` would go in the idle fleet (parts), or why never (refusals)."""
    fleet = Fleet.of(world)
    fleet.sync()
    return fleet.idle_answer((spec.resources, spec.nodes), lambda rooms: _feasible(spec, rooms))


def _feasible(spec: Spec, rooms: Sequence[tuple[Room, int]]) -> tuple[Part, ...] | tuple[Refusal, ...]:
    answer = _asked(spec, rooms) if rooms else (_NO_NODES,)
    if answer:
        return answer
    fits = [room for room, _ in rooms if refuse(spec, room) is None]
    return (take(spec, min(fits, key=_tightness), 0),)


def at_most(world: World, spec: Spec) -> Spec:
    """The spec with what it may come to hold: a machine for itself is held, and paid for, whole; the largest that fits."""
    if not spec.resources.exclusive:
        return spec
    rooms = [room for room, _ in Fleet.of(world).idle_rooms() if refuse(spec, room) is None]
    need = msgspec.structs.replace(
        spec.resources, cpu_milli=max(room.cpu_milli for room in rooms), memory_mib=max(room.memory_mib for room in rooms),
        disk_mib=max(room.disk_mib for room in rooms),
    )  # fmt: skip
    return msgspec.structs.replace(spec, resources=need)


def models(world: World, request: GpuRequest) -> tuple[str, ...]:
    """What cards that `request` would take are called, of nodes that are not retired."""
    fleet = Fleet.of(world)
    fleet.sync()
    return fleet.idle_answer(request, lambda rooms: _models(request, rooms))


def _models(request: GpuRequest, rooms: Sequence[tuple[Room, int]]) -> tuple[str, ...]:
    return tuple(sorted({gpu.model for room, _ in rooms for gpu in room.gpus.values() if gpu.id in room.gpu_milli and matches(request, gpu)}))


_Shape = tuple[Resources, int, Network]


def _shape(spec: Spec) -> _Shape:
    """What decides where a workload fits."""
    return (spec.resources, spec.nodes, spec.network)


def _as_spot(spec: Spec) -> Spec:
    """The same, as work to which only fillers give way."""
    return msgspec.structs.replace(spec, tier=Tier.SPOT)


def _sizes(spec: Spec, soon: int, free: int) -> Iterator[int]:
    """On how many nodes an elastic gang is tried, where so many have room soon and now: each halves what is above the next bound, down to the fewest it needs."""
    nodes = max(spec.least, min(spec.nodes, soon))
    for bound in (max(spec.least, min(spec.nodes, free)), spec.least):
        while nodes > bound:
            yield nodes
            nodes = bound + (nodes - bound) // 2
    yield nodes


class _Made:
    """A plan in the making: what it has given out, kept for later, and refused."""

    def __init__(self, world: World, now_ms: int, admit: Admit | None, *, reasons: bool) -> None:
        self.world, self.now_ms, self.admit, self.reasons = world, now_ms, admit, reasons
        self.order = Order(world, now_ms)
        self.fleet = Fleet.of(world)
        self.fleet.sync()
        self.grants: list[Grant] = []
        self.evictions: list[Eviction] = []
        self.kept: list[Kept] = []
        self.refusals: dict[WorkloadId, tuple[Refusal, ...]] = {}
        self.rates: dict[ProjectId, int] = {}
        self._alike: dict[Alike, tuple[Refusal, ...]] = {}
        self._for_all = False  # whether the last refusal holds for all that are alike
        self._full: dict[_Shape, tuple[Refusal, ...]] = {}
        self._too_long: dict[_Shape, int] = {}
        self._hopeless: dict[tuple[_Shape, bool], float] = {}
        self.lending = Lending(world)
        self.windows = Windows(world, self.fleet, now_ms)
        for rank, until_ms in self.windows.until.items():
            self.fleet.hold(rank, until_ms)

    def consider(self, workload: Workload) -> None:
        """Grant it, or refuse it and see to it that it is not passed over for ever."""
        sized, answer = self.sized(workload) if workload.spec.nodes_min else (workload, self._place(workload))
        if not isinstance(answer, Grant):
            self.refusals[workload.id] = answer
            if self._for_all:
                self._alike[workload.alike] = answer
                self.order.pass_over(workload)
            return
        self.grants.append(answer)
        self.order.granted(sized)
        self.lending.promise(sized)

    def refuse_alike(self) -> None:
        """Tell those that were passed over what the first of them was told."""
        granted = {grant.workload_id for grant in self.grants}
        for alike, answer in self._alike.items() if self.reasons else ():
            for _, key in self.world.waiting[alike]:
                if key not in granted:
                    self.refusals.setdefault(key, self._resting(self.world.queued[key]) or answer)

    def sized(self, workload: Workload) -> tuple[Workload, Grant | tuple[Refusal, ...]]:
        """An elastic gang as large as it starts now, or as soon as fillers have gone; nobody else makes room for more nodes than it needs."""
        spec, free = workload.spec, self.fleet.costs(workload.spec) < NEVER
        soon = free | (self.fleet.losses(_as_spot(spec), self.now_ms) < NEVER)
        answer: Grant | tuple[Refusal, ...] = ()
        for nodes in _sizes(spec, int(soon.sum()), int(free.sum())):
            workload = msgspec.structs.replace(workload, spec=spec.sized(nodes))
            answer = self._place(workload, gladly=nodes > spec.least)
            if isinstance(answer, Grant):
                break
            if nodes > spec.least and not answer and self._emptied(workload):
                return workload, _EMPTIED
        return workload, answer

    def _emptied(self, workload: Workload) -> bool:
        """Whether enough nodes are its own as soon as fillers, and what is stopping there already, are gone; never for longer than that takes."""
        soon = make_room(self.fleet, msgspec.structs.replace(workload, spec=_as_spot(workload.spec)), self.now_ms, self.lending)
        if soon is None:
            return False
        there = (a for rank in soon.ranks for a in self.world.on_node.get(self.fleet.ids[rank], {}).values())
        if any(a.state is AllocationState.STOPPING and self.now_ms - a.stop_ms >= STOP_MS for a in there):
            return False
        self.evictions.extend(soon.evictions)
        self._keep(workload, soon.ranks, self.now_ms)
        return True

    def _place(self, workload: Workload, *, gladly: bool = False) -> Grant | tuple[Refusal, ...]:
        """Where it goes, or why nowhere; what would only be had `gladly` is not seen to."""
        self._for_all = False
        resting = self._resting(workload)
        if resting:
            return resting
        over = self._over_quota(workload)
        if over is not None:
            self._for_all = True
            return (over,)
        if workload.spec.homed:
            return self._where_its_volumes_are(workload)
        shape = _shape(workload.spec)
        # Capacity only shrinks within a plan: what did not fit before does not fit now.
        parts = self._set_aside(workload)
        parts = parts or (() if shape in self._full else self.fleet.place(workload.spec, near=self.fleet.at_hand(workload)))
        if not parts and workload.spec.max_duration_s < self._too_long.get(shape, FOREVER_MS):
            parts = self._backfilled(workload)
            if not parts and workload.spec.max_duration_s:
                self._too_long[shape] = workload.spec.max_duration_s
        if not parts:
            return () if gladly else self._refused(workload, shape)
        return self._admitted(workload, parts)

    def _resting(self, workload: Workload) -> tuple[Refusal, ...]:
        if workload.not_before_ms <= self.now_ms:
            return ()
        wait_s = (workload.not_before_ms - self.now_ms + 999) // 1000
        after = "giving way" if workload.reason is Reason.PREEMPTED else "a failed attempt"
        return (Refusal(rule="back-off", need=f"a pause after {after}", have=f"{wait_s} s to go", nodes=0,
                        change="starts by itself then"),)  # fmt: skip

    def _set_aside(self, workload: Workload, among: Sequence[int] = ()) -> tuple[Part, ...]:
        """A place on nodes that its project has reserved."""
        if workload.spec.tier is not Tier.RESERVED or not self.windows.until:
            return ()
        ends_ms = self.now_ms + (workload.spec.max_duration_s * 1000 + SLACK_MS if workload.spec.max_duration_s else FOREVER_MS)
        mine = self.windows.mine(workload.project_id, ends_ms)
        return self.fleet.place_on(workload.spec, [rank for rank in mine if not among or rank in among])

    def _where_its_volumes_are(self, workload: Workload) -> Grant | tuple[Refusal, ...]:
        """Work with volumes goes where they lie; where none does yet, anywhere."""
        homes = {self.world.homes[workload.project_id, mount.volume] for mount in workload.spec.volumes
                 if not mount.cache and (workload.project_id, mount.volume) in self.world.homes}  # fmt: skip
        names = ", ".join(self.world.nodes[home].name for home in sorted(homes))
        if len(homes) > 1:
            return (Refusal(rule="volume", need="volumes that lie on one node", have=f"volumes on {names}", nodes=0,
                            change="mount those of one node, or remove one: `headframe volume rm`"),)  # fmt: skip
        among = [self.fleet.rank[home] for home in homes]
        parts = self._set_aside(workload, among) or self.fleet.place(workload.spec, among=among) or self._backfilled(workload, among)
        if parts:
            return self._admitted(workload, parts)
        if not homes:
            return self._refused(workload, _shape(workload.spec))
        no = refuse(workload.spec, self.fleet.room(next(iter(homes))))
        have, change = (f"{no.rule}: {no.have}", no.change) if no else ("a node that is kept for others", "waits for its turn")
        return (Refusal(rule="volume", need=f"{names}, where its volumes lie", have=have, nodes=1, change=change),)

    def _admitted(self, workload: Workload, parts: tuple[Part, ...]) -> Grant | tuple[Refusal, ...]:
        refusal = self.admit(workload, parts, self.rates) if self.admit else None
        if refusal is not None:
            self.fleet.take_back(parts)
            return (refusal,)
        return Grant(workload_id=workload.id, parts=parts)

    def _backfilled(self, workload: Workload, among: Sequence[int] = ()) -> tuple[Part, ...]:
        """A place on nodes that are kept for others, for work that is over before they need them; spot work may use nodes that are
        set aside by date until it must go.
        """
        span_s, until = workload.spec.max_duration_s, self.fleet.held_until
        if span_s and until:
            return self.fleet.place_on(workload.spec, self._free_until(until, self.now_ms + span_s * 1000 + SLACK_MS, among))
        if workload.spec.tier is Tier.SPOT and self.windows.until:
            return self.fleet.place_on(workload.spec, self._free_until(self.windows.until, self.now_ms + SPOT_FROM_MS, among))
        return ()

    def _free_until(self, until: dict[int, int], ends_ms: int, among: Sequence[int]) -> list[int]:
        """Nodes that are kept from `ends_ms` on at the earliest, the last first; only of those given, if any are."""
        free = (rank for rank, at_ms in until.items() if at_ms >= ends_ms and (not among or rank in among))
        return sorted(free, key=lambda rank: (-until[rank], rank))

    def _refused(self, workload: Workload, shape: _Shape) -> tuple[Refusal, ...]:
        if shape not in self._full:
            self._full[shape] = _why_not(workload.spec, self.fleet, self.windows, self.now_ms) if self.reasons else ()
        kept = len(self.kept)
        if kept < KEPT_FOR_MAX and workload.id in self.world.queued:
            self._see_to(workload)
        self._for_all = len(self.kept) == kept
        return self._full[shape]

    def _see_to(self, workload: Workload) -> None:
        """Make room for it, or keep the nodes that come free first, so that nothing behind it delays it. What could not be done for
        a shape can't be done later in the same plan either, unless more would be gained by it.
        """
        shape, worth = (_shape(workload.spec), bool(self.lending.back_for(workload))), gain(workload.spec)
        if worth <= self._hopeless.get(shape, -1):
            return
        soon = make_room(self.fleet, workload, self.now_ms, self.lending)
        if soon is not None:
            self.evictions.extend(soon.evictions)
            self.lending.promise(workload)
            self._keep(workload, soon.ranks, self.now_ms)
        elif not self._wait_for(workload):
            self._hopeless[shape] = worth

    def _wait_for(self, workload: Workload) -> bool:
        """Keep the nodes that it had before, else those that come free first; False where there are none, or no need."""
        if workload.spec.nodes == 1 and workload.spec.resources.gpu.milli <= MILLI:
            return False  # it takes the first card that comes free: nothing smaller can pass it for long
        ready = self.fleet.ready(workload.spec, self.now_ms)
        first, before = ready.copy(), [self.fleet.rank[key] for key in self.fleet.kept.get(workload.id, ()) if key in self.fleet.rank]
        first[[rank for rank in before if ready[rank] <= self.now_ms + STAY_MS]] = 0
        ranks = cheapest(self.fleet.racks.soonest(workload.spec, first), workload.spec.nodes)
        if ranks:
            self._keep(workload, ranks, int(ready[list(ranks)].max()))
        return bool(ranks)

    def _keep(self, workload: Workload, ranks: Sequence[int], start_ms: int) -> None:
        for rank in ranks:
            self.fleet.hold(rank, start_ms)
        self._too_long.clear()
        nodes = tuple(self.fleet.ids[rank] for rank in ranks)
        self.kept.append(Kept(workload_id=workload.id, nodes=nodes, start_ms=start_ms))

    def _over_quota(self, workload: Workload) -> Refusal | None:
        project = self.world.projects[workload.project_id]
        if not project.quota_gpus_milli:
            return None
        used, need = self.order.held(project.id), workload.spec.gpu_milli
        if used + need <= project.quota_gpus_milli:
            return None
        have = f"{gpus(project.quota_gpus_milli - used)} of {gpus(project.quota_gpus_milli)} left"
        return Refusal(rule="quota", need=f"{gpus(need)} GPU", have=have, nodes=0, change="waits for the project's own work")


def _why_not(spec: Spec, fleet: Fleet, windows: Windows, now_ms: int) -> tuple[Refusal, ...]:
    """Every node's no, asked once of each state that nodes are in."""
    rooms: list[tuple[Room, int]] = []
    kept: list[tuple[No, int]] = []
    for node_id, count in fleet.states():
        room, until_ms = fleet.room(node_id), fleet.held_until.get(fleet.rank[node_id], -1)
        if until_ms >= 0 and refuse(spec, room) is None:
            kept.append((_kept(spec, until_ms, windows.names.get(fleet.rank[node_id], ""), now_ms), count))
        elif room.node.state not in RETIRED:
            rooms.append((room, count))
    return _asked(spec, rooms, kept) or _too_far(spec, fleet) or (_NO_NODES,)


def _too_far(spec: Spec, fleet: Fleet) -> tuple[Refusal, ...]:
    if spec.network is not Network.REQUIRED or not fleet.ids:
        return ()
    most = fleet.largest_rack(spec)
    return (Refusal(rule="network", need=f"{spec.nodes} nodes of one rack at once", have=f"{most} that fit", nodes=len(fleet.ids),
                    change=f"ask for nodes ≤ {most}, or `network: preferred`"),)  # fmt: skip


def _kept(spec: Spec, until_ms: int, reserved: str, now_ms: int) -> No:
    left_s = max(0, (until_ms - now_ms - SLACK_MS) // 1000)
    whom = f"set aside as {reserved!r}" if reserved else "kept for a workload ahead"
    need = f"an end within {duration(left_s * 1000)}: the node is {whom}"
    have = f"max_duration {duration(spec.max_duration_s * 1000)}" if spec.max_duration_s else "no max_duration"
    return No("kept", need, have, left_s, f"set max_duration ≤ {duration(left_s * 1000)}, or wait" if left_s else "waits for its turn")


def _asked(spec: Spec, rooms: Sequence[tuple[Room, int]], kept: Sequence[tuple[No, int]] = ()) -> tuple[Refusal, ...]:
    """The refusals of all rooms, each with how many nodes it stands for; () where enough of them do not refuse."""
    noes = list(kept)
    fitting = 0
    for room, count in rooms:
        no = refuse(spec, room)
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
