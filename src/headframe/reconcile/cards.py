"""What is wrong with cards in service becomes their state: a bad one is suspect, and its work is queued again and credited.

A bad probe or driver looks like a mass failure, so of a site's cards never more than a tenth (at least one) are taken without a
person. A suspect card stays so until a person or new checks say otherwise: what mended itself may break again under the next tenant.
"""

from collections.abc import Iterator, Sequence

import msgspec

from headframe.model.event import Draft, Kind
from headframe.model.fleet import Gpu, Site, broke
from headframe.model.health import Finding, Level
from headframe.model.ids import SiteId
from headframe.model.states import GpuState, Reason
from headframe.model.units import counted
from headframe.model.work import Facts
from headframe.model.world import World
from headframe.reconcile.nodes import vacate

TAKEN_SHARE = 10
"""Of so many cards of a site one may be taken without a person (NVSentinel's circuit breaker is a share likewise)."""


def cards(world: World, facts: Facts, now_ms: int) -> Iterator[Draft]:
    """Each draft is to be applied to the world before the next is asked for."""
    taken: dict[SiteId, list[int]] = {}
    for gpu_id in sorted(facts.findings):
        gpu, found = world.gpus.get(gpu_id), facts.findings[gpu_id]
        if gpu is None or gpu.state is not GpuState.READY:
            continue
        if found and found[0].level is Level.BAD:
            yield from _bad(world, gpu, found[0], taken, now_ms)
        else:
            yield from _noted(world, gpu, found, "")


def _bad(world: World, gpu: Gpu, worst: Finding, taken: dict[SiteId, list[int]], now_ms: int) -> Iterator[Draft]:
    site = world.sites[world.nodes[gpu.node_id].site_id]
    if site.id not in taken:
        taken[site.id] = _counts(world, site)
    gone, total = taken[site.id]
    most = max(1, total // TAKEN_SHARE)
    if site.shadow:
        yield from _noted(world, gpu, (worst,), "left in service: the site only watches")
    elif gone >= most:
        yield from _noted(world, gpu, (worst,), f"left in service: {gone} of {counted(total, 'card')} were taken already, a person has to look")
    else:
        taken[site.id][0] += 1
        yield from _suspect(world, gpu, worst, now_ms)


def _suspect(world: World, gpu: Gpu, worst: Finding, now_ms: int) -> Iterator[Draft]:
    text = str(worst)
    after = msgspec.structs.replace(
        broke(gpu, now_ms), state=GpuState.SUSPECT, why=f"{text}; {worst.mend}" if worst.mend else text, concern=text, concern_rule=worst.rule
    )
    yield Draft(kind=Kind.GPU_CHANGED, subject=gpu.id, text=f"{world.named(gpu)}: suspect, {text} ({worst.source})", rows=(after,))
    yield from vacate(world, world.holders(gpu), Reason.NODE_FAULT, now_ms)


def _noted(world: World, gpu: Gpu, found: Sequence[Finding], left: str) -> Iterator[Draft]:
    """A concern is told when it begins, when another takes its place, and when it is over; not each time its number changes."""
    rule = f"{found[0].rule}{' held back' if left else ''}" if found else ""
    if rule == gpu.concern_rule:
        return
    concern = f"{found[0]}{f' ({left})' if left else ''}" if found else ""
    after = msgspec.structs.replace(gpu, concern=concern, concern_rule=rule)
    yield Draft(kind=Kind.GPU_CHANGED, subject=gpu.id, text=f"{world.named(gpu)}: {concern or 'well again'}", rows=(after,))


def _counts(world: World, site: Site) -> list[int]:
    """How many of the site's cards a rule has taken, and how many there are."""
    there = [gpu for gpu in world.gpus.values() if gpu.state is not GpuState.RETIRED and world.nodes[gpu.node_id].site_id == site.id]
    return [sum(taken_by_rule(gpu) for gpu in there), len(there)]


def taken_by_rule(gpu: Gpu) -> bool:
    """Whether a rule took the card out of service; while it is checked it is still out, and comes back only if it passes."""
    out = gpu.state is GpuState.SUSPECT or (gpu.state is GpuState.TESTING and bool(gpu.why))
    return out and bool(gpu.concern_rule)
