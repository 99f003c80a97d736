"""The operator's commands to drafts: what a node, rack or card is for, what is set aside, what a project is guaranteed. Pure."""

from collections.abc import Iterator

import msgspec

from headframe.model.command import (
    CancelReservation,
    Defragment,
    MoveGpu,
    MoveNode,
    Qualify,
    RemoveVolume,
    Reserve,
    SetGpu,
    SetNode,
    SetQuota,
    SetRack,
    SetSite,
)
from headframe.model.errors import Conflicting, Infeasible, NotFound
from headframe.model.event import Draft, Kind
from headframe.model.fleet import Rack, Reservation, Site, Volume
from headframe.model.ids import NodeId, RackId
from headframe.model.states import Reason
from headframe.model.units import MS_PER_DAY, duration, gpus
from headframe.model.work import Refusal
from headframe.model.world import World
from headframe.placement.defragment import defragment
from headframe.placement.windows import choose, why_not
from headframe.reconcile.jobs import stop
from headframe.reconcile.reservations import overstayers
from headframe.server.lifecycle import serve
from headframe.server.qualify import qualify

CACHE_S = 30 * 86_400
Operate = Qualify | SetNode | SetSite | SetRack | SetGpu | SetQuota | Reserve | CancelReservation | RemoveVolume | Defragment | MoveNode | MoveGpu


def operate(world: World, command: Operate, now_ms: int) -> Iterator[Draft]:
    """What `command` does to `world`."""
    match command:
        case SetNode():
            yield from _set_node(world, command, now_ms)
        case Qualify():
            yield from qualify(world, command, now_ms)
        case SetSite():
            yield from _set_site(world, command)
        case SetRack():
            yield _set_rack(world, command, now_ms)
        case SetGpu():
            yield _set_gpu(world, command)
        case SetQuota():
            yield _set_quota(world, command)
        case Reserve():
            yield _reserve(world, command, now_ms)
        case CancelReservation():
            yield from _cancel(world, command)
        case RemoveVolume():
            yield from _remove_volume(world, command)
        case Defragment():
            yield from _defragment(world, command, now_ms)
        case MoveNode() | MoveGpu():
            yield from serve(world, command, now_ms)


def rack_named(world: World, name: str) -> Rack | None:
    """The rack of that name or id."""
    return next((rack for rack in world.racks.values() if name in {rack.name, rack.id}), None)


def site_named(world: World, name: str) -> Site | None:
    """The site of that name or id; the first where nothing is said."""
    return next((site for site in world.sites.values() if name in {site.name, site.id, ""}), None)


def _rack(world: World, name: str, fresh: RackId, now_ms: int) -> Rack:
    """The rack of that name or id, or a new one."""
    site = next(iter(world.sites.values()))
    return rack_named(world, name) or Rack(id=fresh, site_id=site.id, name=name, created_ms=now_ms)


def _set_node(world: World, command: SetNode, now_ms: int) -> Iterator[Draft]:
    node = world.nodes.get(command.node_id)
    if node is None:
        raise NotFound(f"no node {command.node_id}", "list them: `headframe nodes`")
    rack = _rack(world, command.rack, command.rack_id, now_ms) if command.rack else world.racks[node.rack_id]
    after = msgspec.structs.replace(
        node, rack_id=rack.id, taints=node.taints if command.taints is None else tuple(sorted(set(command.taints))),
        idle_w=node.idle_w if command.idle_w is None else command.idle_w, address=node.address if command.address is None else command.address,
        owner=node.owner if command.owner is None else command.owner,
    )  # fmt: skip
    if after != node:
        taints = f", taints {', '.join(after.taints)}" if after.taints else ""
        text = (
            f"{node.name}: in {rack.name}{taints}"
            + (f", {after.idle_w} W idle" if after.idle_w else "")
            + (f", of {after.owner}" if after.owner else "")
        )
        yield Draft(kind=Kind.NODE_CHANGED, subject=node.id, text=text, rows=(after,) if rack.id in world.racks else (rack, after))


_SITE_DOES = {
    "check_new": ("checks cards before their first work", "puts new cards to work unchecked"),
    "check_idle": ("checks idle machines again, once a day", "leaves idle machines alone"),
    "caps": ("sets cards' power limits where that pays", "leaves cards' power limits alone"),
    "shadow": ("only tells what is wrong with cards", "takes bad cards out of service"),
}


def _set_site(world: World, command: SetSite) -> Iterator[Draft]:
    site = world.sites[command.site_id]
    for name, (does, does_not) in _SITE_DOES.items():
        wanted = getattr(command, name)
        if wanted is not None and wanted != getattr(site, name):
            site = msgspec.structs.replace(site, **{name: wanted})
            yield Draft(kind=Kind.SITE_CHANGED, subject=site.id, text=f"{site.name}: {does if wanted else does_not}", rows=(site,))
    powered = msgspec.structs.replace(
        site, contract_w=site.contract_w if command.contract_w is None else command.contract_w, pue=site.pue if command.pue is None else command.pue,
        tariff=site.tariff if command.tariff is None else command.tariff,
    )  # fmt: skip
    if powered != site:
        limit = f"{powered.contract_w / 1000:g} kW" if powered.contract_w else "no limit"
        text = f"{site.name}: {limit} at the meter, PUE {powered.pue:g}, tariff {powered.tariff.name if powered.tariff else 'not known'}"
        yield Draft(kind=Kind.SITE_CHANGED, subject=site.id, text=text, rows=(powered,))


def _set_rack(world: World, command: SetRack, now_ms: int) -> Draft:
    rack = _rack(world, command.name, command.id, now_ms)
    after = msgspec.structs.replace(
        rack, power_limit_w=rack.power_limit_w if command.power_limit_w is None else command.power_limit_w,
        cooling_limit_w=rack.cooling_limit_w if command.cooling_limit_w is None else command.cooling_limit_w,
    )  # fmt: skip
    if command.cooling_limit_w is not None:
        after = msgspec.structs.replace(after, airflow_m3_s=command.airflow_m3_s, supply_c=command.supply_c)
    text = f"{rack.name}: " + (f"at most {after.limit_w} W" if after.limit_w else "no limit")
    return Draft(kind=Kind.RACK_CHANGED, subject=rack.id, text=text, rows=(after,))


def _set_gpu(world: World, command: SetGpu) -> Draft:
    gpu = world.gpus.get(command.gpu_id)
    if gpu is None:
        raise NotFound(f"no GPU {command.gpu_id}", "list them: `headframe nodes --json`")
    graded = None if command.grade else gpu.graded  # a person's word takes the place of what was measured, and does not expire
    after = msgspec.structs.replace(gpu, grade=command.grade or gpu.grade, graded=graded, sharing=command.sharing or gpu.sharing)
    return Draft(kind=Kind.GPU_CHANGED, subject=gpu.id, text=f"{gpu.id}: grade {after.grade}, sharing {after.sharing}", rows=(after,))


def _set_quota(world: World, command: SetQuota) -> Draft:
    project = world.projects[command.project_id]
    total = sum(other.guaranteed_gpus_milli for other in world.projects.values() if other.id != project.id) + command.guaranteed_gpus_milli
    if command.quota_gpus_milli and command.guaranteed_gpus_milli > command.quota_gpus_milli:
        raise Conflicting("a project can't be guaranteed more than its quota", "raise the quota, or lower the guarantee")
    if command.guaranteed_gpus_milli and total > len(world.gpus) * 1000:
        raise Conflicting(f"{gpus(total)} GPUs would be guaranteed of {len(world.gpus)}", "guarantee less, or add machines")
    after = msgspec.structs.replace(
        project, quota_gpus_milli=command.quota_gpus_milli, guaranteed_gpus_milli=command.guaranteed_gpus_milli, whole_machines=command.whole_machines
    )
    limit = f"at most {gpus(after.quota_gpus_milli)}" if after.quota_gpus_milli else "no limit"
    alone = ", on machines of its own" if after.whole_machines else ""
    return Draft(kind=Kind.PROJECT_CHANGED, subject=project.id, project_id=project.id, rows=(after,),
                 text=f"{project.name}: {gpus(after.guaranteed_gpus_milli)} GPUs guaranteed, {limit}{alone}")  # fmt: skip


def _reserve(world: World, command: Reserve, now_ms: int) -> Draft:
    row = command.row
    if any(other.name == row.name for other in world.reservations.values()):
        raise Conflicting(f"there is a reservation named {row.name!r}", "choose another name")
    nodes = _named_nodes(world, row) if row.node_ids else choose(world, command.spec, row)
    if isinstance(nodes, Refusal):
        raise Infeasible(str(nodes))
    after = msgspec.structs.replace(row, node_ids=nodes, created_ms=now_ms)
    names = ", ".join(world.nodes[node_id].name for node_id in nodes[:8]) + (f" and {len(nodes) - 8} more" if len(nodes) > 8 else "")
    there = len(overstayers(world, after))
    runs = f"; {there} allocations there will be stopped" if there and row.evict else f"; {there} allocations there go on" if there else ""
    return Draft(kind=Kind.RESERVED, subject=row.id, project_id=row.project_id, text=f"{row.name}: {names} set aside{runs}", rows=(after,))


def _named_nodes(world: World, row: Reservation) -> tuple[NodeId, ...]:
    noes = [f"{world.nodes[node_id].name} is {no}" for node_id in row.node_ids if (no := why_not(world, world.nodes[node_id], row))]
    if noes:
        raise Infeasible("; ".join(noes), "choose other nodes, or another time")
    return row.node_ids


def _cancel(world: World, command: CancelReservation) -> Iterator[Draft]:
    row = world.reservations.get(command.id)
    if row is not None:
        closed = msgspec.structs.replace(row, closed=True)
        yield Draft(kind=Kind.RESERVATION_OVER, subject=row.id, project_id=row.project_id, text=f"{row.name}: cancelled", rows=(closed,))


def _remove_volume(world: World, command: RemoveVolume) -> Iterator[Draft]:
    users = [w.name for w in world.workloads.values()
             if w.project_id == command.project_id and not w.ended_ms and any(mount.volume == command.name for mount in w.spec.volumes)]  # fmt: skip
    if users:
        raise Conflicting(f"{command.name} is used by {', '.join(sorted(users)[:5])}", "stop them first: `headframe stop`")
    there = [row for row in world.volumes.values() if (row.project_id, row.name) == (command.project_id, command.name)]
    for row in sorted(there, key=lambda row: row.id):
        yield _removed(world, row, "")


def _removed(world: World, row: Volume, why: str) -> Draft:
    gone = msgspec.structs.replace(row, removed=True)
    node = world.nodes.get(row.node_id)
    what = f"cache {row.name} on {node.name if node else row.node_id}" if row.cache else f"volume {row.name}"
    return Draft(kind=Kind.VOLUME_REMOVED, subject=row.id, project_id=row.project_id, text=f"{what} removed{why}", rows=(gone,))


def stale(world: World, now_ms: int) -> Iterator[Draft]:
    """Caches, and what its workspace lets go, that nothing has mounted for long enough: disks are finite. What is mounted is noted as used once a day."""
    old = [row for row in world.volumes.values() if row.delete_s and now_ms - row.used_ms >= min(row.delete_s * 1000, MS_PER_DAY)]
    mounted = {(w.project_id, mount.volume) for w in world.workloads.values() if not w.ended_ms for mount in w.spec.volumes} if old else set()
    for row in sorted(old, key=lambda row: row.id):
        if (row.project_id, row.name) in mounted:
            used = msgspec.structs.replace(row, used_ms=now_ms)
            yield Draft(kind=Kind.VOLUME_USED, subject=row.id, project_id=row.project_id, text=f"volume {row.name} is mounted", rows=(used,))
        elif now_ms - row.used_ms >= row.delete_s * 1000:
            yield _removed(world, row, f": unused for {duration(now_ms - row.used_ms)}")


def _defragment(world: World, command: Defragment, now_ms: int) -> Iterator[Draft]:
    site = next(iter(world.sites.values()))
    if command.automatic is not None and command.automatic != site.defragment:
        after = msgspec.structs.replace(site, defragment=command.automatic)
        text = "work is moved together by itself" if command.automatic else "work is moved together only when asked for"
        yield Draft(kind=Kind.SITE_CHANGED, subject=site.id, text=text, rows=(after,))
    if command.apply:
        yield from moves(world, now_ms)


def moves(world: World, now_ms: int) -> Iterator[Draft]:
    """Stop what makes room elsewhere: it starts again where it was found a place."""
    proposal = defragment(world, now_ms)
    for move in proposal.moves if proposal else ():
        yield stop(world, world.allocations[move.allocation_id], Reason.PREEMPTED, now_ms)
