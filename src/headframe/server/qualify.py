"""Cards are checked as work is run: as an allocation, and what it found becomes their grade. Pure.

The check is the operator's own work, so it is not billed. Cards under test are `testing` and get no other work; one that computes wrong
is `suspect` afterwards, one that could not be measured is as it was before. It is graded in the commit in which the check ends.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec

from headframe.data import text
from headframe.dispatch.power import SWEPT
from headframe.health.catalogue import Model, catalogue
from headframe.health.grade import OURS, examined, half_tflops, remarks, stale, typical
from headframe.health.rules import Rules
from headframe.model.command import Qualify
from headframe.model.errors import Conflicting
from headframe.model.event import Draft, Kind
from headframe.model.fleet import Gpu, Grade, Graded, Node, NodeGraded, broke
from headframe.model.health import CardCheck, CardFacts, Depth, HostFacts, NodeCheck
from headframe.model.ids import AllocationId, GpuId, ProjectId, allocation_id
from headframe.model.people import Project
from headframe.model.states import GPU_MOVES, NODE_MOVES, AllocationState, GpuState, NodeState, Reason, WorkloadState
from headframe.model.units import MILLI, counted
from headframe.model.work import CHECK, Allocation, Facts, Part, Retry, Share, Spec, Tier, Workload
from headframe.model.world import World

HOUSE = ProjectId("pr-house")
"""The operator's own work belongs to it; made when it is first needed."""
LIMIT_S = {Depth.QUICK: 600, Depth.FULL: 7200, Depth.IDLE: 3600}
PASSED, EVIDENCE_MAX = frozenset({"pass", "skip"}), 20
"""What is no news of a vendor's test, and how much news is kept."""
CAPS_MOST = 16
Caps = dict[str, tuple[tuple[float, float], ...]]
"""Share of the speed by power limit, by kind of work; and the most points that are kept."""
GIVES_WAY = -1
"""The priority of a check that work may end at any time."""
CPU_MOST_MILLI, MEMORY_MOST_MIB, MEMORY_LEAST_MIB = 4 * MILLI, 16_384, 1024


def qualify(world: World, command: Qualify, now_ms: int) -> Iterator[Draft]:
    """Start the check of a node's free cards, at once; raises Conflicting where that can't be."""
    node = world.nodes[command.node_id]
    if node.state is not NodeState.READY:
        raise Conflicting(f"{node.name} is {node.state}: only a ready node can be checked", f"`headframe node resume {node.name}` puts it back")
    if (HOUSE, _name(node)) in world.names:
        raise Conflicting(f"{node.name} is being checked", f"see `headframe node show {node.name}`")
    cards = [gpu for gpu in world.node_gpus[node.id].values() if GpuState.TESTING in GPU_MOVES[gpu.state] and not world.holders(gpu)]
    busy = sum(gpu.state is not GpuState.RETIRED for gpu in world.node_gpus[node.id].values()) - len(cards)
    if not cards and busy:
        raise Conflicting(f"no card of {node.name} is free to be checked", "wait for its work to end")
    left = f", {counted(busy, 'card')} with work left out" if busy else ""
    rows = (
        *([] if HOUSE in world.projects else [Project(id=HOUSE, name="house", created_ms=now_ms)]),
        *_started(world, node, cards, command, now_ms),
    )
    yield Draft(kind=Kind.WORKLOAD_STARTING, subject=command.id, project_id=HOUSE, rows=rows,
                text=f"{node.name}: {command.depth} check of {counted(len(cards), 'card') if cards else 'the machine'}{left} (by {world.person(command.by)})")  # fmt: skip


def _started(world: World, node: Node, cards: Sequence[Gpu], command: Qualify, now_ms: int) -> Iterator[Workload | Allocation | Gpu]:
    free = world.free[node.id]
    if free.cpu_milli <= 0 or free.memory_mib < MEMORY_LEAST_MIB:
        raise Conflicting(f"{node.name} has no processor or memory to spare for a check", "wait for work to end")
    ordered = sorted(cards, key=lambda gpu: gpu.index)
    shares = tuple(Share(gpu_id=gpu.id, index=gpu.index, model=gpu.model, milli=MILLI) for gpu in ordered)
    part = Part(rank=0, node_id=node.id, shares=shares, cpu_milli=min(free.cpu_milli, CPU_MOST_MILLI), memory_mib=min(free.memory_mib, MEMORY_MOST_MIB),
                disk_mib=0)  # fmt: skip
    run = f'exec "$HEADFRAME_PYTHON" -m headframe check --depth {command.depth} --facts'
    spec = Spec(
        type=CHECK,
        name=_name(node),
        run=run,
        tier=Tier.HOUSE,
        max_duration_s=LIMIT_S[command.depth],
        priority=GIVES_WAY if command.depth is Depth.IDLE else 0,
        retry=Retry(on=(), attempts=1),
    )
    yield from (msgspec.structs.replace(gpu, state=GpuState.TESTING) for gpu in ordered)
    workload = Workload(id=command.id, project_id=HOUSE, key_id=command.by, name=spec.name, spec=spec, state=WorkloadState.STARTING, attempt=1,
                        submitted_ms=now_ms, queued_ms=now_ms)  # fmt: skip
    yield workload
    yield Allocation(id=allocation_id(workload.id, 1), workload_id=workload.id, project_id=HOUSE, attempt=1, tier=Tier.HOUSE, parts=(part,),
                     state=AllocationState.GRANTED, granted_ms=now_ms)  # fmt: skip


def _name(node: Node) -> str:
    return f"check-{node.id}"


def graded(world: World, facts: Facts, now_ms: int, rules: Rules = OURS) -> Iterator[Draft]:
    """What checks that have just ended found: to be decided before their end is."""
    for seen in facts.observations:
        if seen.state is AllocationState.ENDED and is_check(world, seen.allocation_id):
            allocation = world.allocations[seen.allocation_id]
            detail = "it gave way to work" if seen.reason is Reason.PREEMPTED else seen.detail
            yield from _ended(world, allocation, facts.checked.get(allocation.id, ()), detail, rules, now_ms)


def _ended(world: World, allocation: Allocation, found: Sequence[CardFacts | HostFacts], detail: str, rules: Rules, now_ms: int) -> Iterator[Draft]:
    host = next((each for each in found if isinstance(each, HostFacts)), None)
    cards = {GpuId(each.gpu_id): each for each in found if isinstance(each, CardFacts)}
    whole = examined(_models(), host, list(cards.values()), lambda each: _peers(world, each), rules) if host else None
    checks = whole.cards if whole else ()
    by_id = {GpuId(check.facts.gpu_id): check for check in checks}
    for part in allocation.parts:
        for share in part.shares:
            gpu = world.gpus.get(share.gpu_id)
            if gpu is not None and gpu.state is GpuState.TESTING:
                yield _after(world, gpu, by_id.get(gpu.id), host, detail, now_ms)
        if whole is not None and part.node_id in world.nodes:
            yield _machine(world.nodes[part.node_id], whole, now_ms)


def _machine(node: Node, whole: NodeCheck, now_ms: int) -> Draft:
    """The machine with what was found of it. One that computes wrong is quarantined: no card of it can be trusted."""
    host, worst = whole.facts.host, [finding for finding in whole.grading.findings if finding.cap is Grade.REJECT]
    graded = NodeGraded(
        at_ms=now_ms, depth=whole.facts.depth, grade=whole.grading.grade if whole.cards else None, reasons=tuple(map(str, whole.grading.findings)),
        threads=host.threads, memory_copy_gb_s=host.memory_copy_gb_s, disk_mb_s=host.disk_mb_s, network_gbit_s=host.network_gbit_s,
        evidence=tuple(str(each) for each in whole.facts.evidence if each.status not in PASSED)[:EVIDENCE_MAX],
    )  # fmt: skip
    bad = bool(worst) and NodeState.QUARANTINED in NODE_MOVES[node.state]
    after = msgspec.structs.replace(node, graded=graded, state=NodeState.QUARANTINED if bad else node.state, why=str(worst[0]) if bad else node.why)
    found = f", {worst[0]}" if worst else f", its cards together: {graded.grade}" if len(whole.cards) > 1 else ""
    return Draft(kind=Kind.NODE_CHANGED, subject=node.id, text=f"{node.name}: checked{found}", rows=(after,))


def _after(world: World, gpu: Gpu, check: CardCheck | None, host: HostFacts | None, detail: str, now_ms: int) -> Draft:
    """The card with its new grade. One without a result keeps its grade, and the state it had: what was suspect says why."""
    where = world.named(gpu)
    before = GpuState.SUSPECT if gpu.why else GpuState.READY
    if check is None or host is None:
        row = msgspec.structs.replace(gpu, state=before)
        return Draft(
            kind=Kind.GPU_CHANGED, subject=gpu.id, text=f"{where}: {before}, its check gave no result{f': {detail}' if detail else ''}", rows=(row,)
        )
    grade, reasons = check.grading.grade, (*map(str, check.grading.findings), *check.facts.notes, *remarks(check.facts.card))
    as_before = grade is Grade.UNMEASURED and before is GpuState.SUSPECT
    gpu = broke(gpu, now_ms) if grade is Grade.REJECT else gpu
    state = GpuState.SUSPECT if grade is Grade.REJECT else before if grade is Grade.UNMEASURED else GpuState.READY
    why = "; ".join(reasons[:1]) if grade is Grade.REJECT else gpu.why if state is GpuState.SUSPECT else ""
    row = msgspec.structs.replace(
        gpu, grade=grade, state=state, why=why, concern=gpu.concern if as_before else "",
        concern_rule=gpu.concern_rule if as_before else "", ready_ms=now_ms if state is GpuState.READY else gpu.ready_ms, graded=_kept(check, host, reasons, now_ms, gpu.graded.caps if gpu.graded else None),
    )  # fmt: skip
    text_ = f"{where}: {state}, grade {grade}" + (f": {reasons[0]}" if reasons else "")
    return Draft(kind=Kind.GPU_CHANGED, subject=gpu.id, text=text_, rows=(row,))


def _kept(check: CardCheck, host: HostFacts, reasons: Sequence[str], now_ms: int, before: Caps | None) -> Graded:
    card, measured = check.facts.card, check.facts.measured
    model = next((each for each in _models() if each.name == check.model), None)
    return Graded(
        at_ms=now_ms, depth=host.depth, model=check.model, reasons=tuple(reasons), raises=check.grading.raises, h2d_gb_s=measured.h2d_gb_s,
        memory_gb_s=measured.memory_gb_s, memory_known_gb_s=model and model.memory_gb_s, half_tflops=half_tflops(measured), caps=good_caps(measured.caps) or before,
        half_known_tflops=model and model.half_tflops, vbios=card.vbios, driver=card.driver, slot=card.slot, power_limit_w=card.power_limit_w,
        link_gen=measured.link_gen or 0, link_width=measured.link_width or 0,
    )  # fmt: skip


def good_caps(told: Caps | None) -> Caps | None:
    """A sweep's curves as far as they can be: rising in the limit, never faster than uncapped, which is their end. A machine may say anything."""
    kept = {
        kind: curve for kind, curve in (told or {}).items()
        if kind in SWEPT.values() and 2 <= len(curve) <= CAPS_MOST and curve[-1] == (1.0, 1.0)
        and all(0 < x <= 1 and 0 <= speed <= 1 for x, speed in curve) and all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(curve))
    }  # fmt: skip
    return kept or None


def expired(world: World, now_ms: int) -> Iterator[Draft]:
    """Grades that no longer hold: the card is unmeasured again, and says why. It goes on working: a person decides when it is checked."""
    for key in sorted(world.gpus):
        gpu = world.gpus[key]
        why = stale(gpu.graded, gpu, now_ms) if gpu.graded and gpu.grade is not Grade.UNMEASURED else ""
        if why and gpu.graded:
            again = f"it has to be measured again: `headframe node qualify {world.nodes[gpu.node_id].name}`"
            row = msgspec.structs.replace(gpu, grade=Grade.UNMEASURED, graded=msgspec.structs.replace(gpu.graded, reasons=(why,), raises=(again,)))
            text_ = f"{world.named(gpu)}: no longer {gpu.grade}, {why}"
            yield Draft(kind=Kind.GPU_CHANGED, subject=gpu.id, text=text_, rows=(row,))


def _peers(world: World, facts: CardFacts) -> float | None:
    """The median 16-bit rate of equal cards at an equal power limit, once there are enough of them."""
    card = facts.card
    rates = [
        gpu.graded.half_tflops for gpu in world.gpus.values()
        if gpu.id != facts.gpu_id and gpu.graded and gpu.graded.half_tflops and gpu.grade is not Grade.REJECT
        and (gpu.model, gpu.memory_mib, gpu.graded.power_limit_w, gpu.graded.driver) == (card.model, card.memory_mib, card.power_limit_w, card.driver)
    ]  # fmt: skip
    return typical(rates)


def _models() -> tuple[Model, ...]:
    return catalogue(text("gpus.csv"))


def said(lines: Sequence[str]) -> tuple[CardFacts | HostFacts, ...]:
    """The facts among a check's lines; what else it prints is no fact."""
    found: list[CardFacts | HostFacts] = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=CardFacts | HostFacts))
        except msgspec.DecodeError:
            continue
    return tuple(found)


def is_check(world: World, allocation: AllocationId) -> bool:
    """Whether that is a check whose end is not yet in the world."""
    known = world.allocations.get(allocation)
    return known is not None and known.state is not AllocationState.ENDED and world.workloads[known.workload_id].spec.type == CHECK
