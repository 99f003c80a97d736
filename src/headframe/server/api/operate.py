"""What operators say of racks and cards, what is set aside, and where volumes lie."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Request, Router, delete, get, post, put

from headframe.dispatch.heat import INLET_MOST_C, carried_w, reaches_s
from headframe.model.api import (
    Defragmentation,
    DefragmentBody,
    EnableBody,
    GpuBody,
    MoveView,
    RackBody,
    RackList,
    RackView,
    ReservationBody,
    ReservationList,
    SiteBody,
    SiteList,
    VolumeList,
    VolumeView,
)
from headframe.model.command import CancelReservation, Defragment, MoveGpu, RemoveVolume, Reserve, SetGpu, SetRack, SetSite
from headframe.model.errors import BadRequest
from headframe.model.fleet import Gpu, Rack, Reservation, Site, Volume
from headframe.model.ids import GpuId, ProjectId, RackId, ReservationId
from headframe.model.people import Scope
from headframe.model.units import MILLI
from headframe.model.work import GpuRequest, Resources, Spec
from headframe.model.world import World
from headframe.placement.defragment import defragment
from headframe.placement.power import rack_w
from headframe.server.api.fleet import node_named, said, watts_good
from headframe.server.api.problems import answers
from headframe.server.auth import Principal, may_see, project_for
from headframe.server.context import Context, drawn, found, named
from headframe.server.dispatcher import Inlet
from headframe.server.operate import rack_named, site_named
from headframe.server.power_file import tariff
from headframe.server.workload_file import NODES_MAX, parse_gpu

LENGTH_MAX_S = 10 * 366 * 86_400
CONTRACT_MOST_W = 1_000_000_000
AIRFLOW_MOST = 1000.0


@get("/v1/racks", opt={"scope": Scope.OPERATOR}, responses=answers())
async def list_racks(context: Context) -> RackList:
    """Racks with what they can carry and what is drawn at most."""
    world = context.world
    return RackList(
        items=tuple(
            _rack_view(world, rack, context.dispatcher.inlets) for rack in sorted(world.racks.values(), key=lambda rack: (rack.name, rack.id))
        )
    )


@get("/v1/sites", opt={"scope": Scope.OPERATOR}, responses=answers())
async def list_sites(context: Context) -> SiteList:
    """All sites."""
    return SiteList(items=tuple(sorted(context.world.sites.values(), key=lambda site: (site.name, site.id))))


@put("/v1/sites/{site:str}", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 422))
async def set_site(context: Context, request: Request[Principal, Any, Any], site: str, data: SiteBody) -> Site:
    """What a site does by itself."""
    key = found(site_named(context.world, site), f"site {site[:80]!r}", "site ls").id
    if data.contract_w is not None and not 0 <= data.contract_w <= CONTRACT_MOST_W:
        raise BadRequest("a contract is between 0 and 1 GW, in watts")
    if data.pue is not None and not 1.0 <= data.pue <= 3.0:
        raise BadRequest(f"a PUE of {data.pue:g} is out of range", "1 to 3: the meter's watts for each watt of the machines")
    command = SetSite(site_id=key, shadow=data.shadow, check_new=data.check_new, check_idle=data.check_idle, contract_w=data.contract_w, pue=data.pue, caps=data.caps,
                      tariff=tariff(data.tariff) if data.tariff is not None else None)  # fmt: skip

    def answer(world: World) -> Site:
        return world.sites[key]

    return await context.write(request, command, answer)


@put("/v1/racks/{rack:str}", opt={"scope": Scope.OPERATOR}, responses=answers(409, 422))
async def set_rack(context: Context, request: Request[Principal, Any, Any], rack: str, data: RackBody) -> RackView:
    """What a rack can carry and cool; one that is not known is made."""
    named(rack)
    watts_good(data.power_limit_w)
    watts_good(data.cooling_limit_w)

    def answer(world: World) -> RackView:
        return _rack_view(world, found(rack_named(world, rack), f"rack {rack!r}", "rack ls"), context.dispatcher.inlets)

    cooling_w, air = data.cooling_limit_w, data.airflow_m3_s or 0.0
    if air:
        if cooling_w is not None:
            raise BadRequest("watts of cooling and an airflow say the same", "give one of them")
        if not (0 < air <= AIRFLOW_MOST and -40 <= data.supply_c <= 60):
            raise BadRequest("the air is out of range", f"up to {AIRFLOW_MOST:g} m3/s, at -40 to 60 C")
        cooling_w = round(carried_w(air, data.supply_c))
        if cooling_w < 1:
            raise BadRequest(f"air of {data.supply_c:g} C cools nothing below {INLET_MOST_C:g} C", "cool the supply, or say what is cooled in watts")
    command = SetRack(
        id=RackId(drawn("rack")),
        name=rack,
        power_limit_w=data.power_limit_w,
        cooling_limit_w=cooling_w,
        airflow_m3_s=air,
        supply_c=data.supply_c if air else 0.0,
    )
    return await context.write(request, command, answer)


@put("/v1/gpus/{gpu:str}", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 422))
async def set_gpu(context: Context, request: Request[Principal, Any, Any], gpu: str, data: GpuBody) -> Gpu:
    """A person's word on what a card is good for and how it is shared."""
    row = found(context.world.gpus.get(GpuId(gpu)), f"GPU {gpu[:80]!r}", "node show NAME")

    def answer(world: World) -> Gpu:
        return world.gpus[row.id]

    return await context.write(request, SetGpu(gpu_id=row.id, grade=data.grade, sharing=data.sharing), answer)


@put("/v1/gpus/{gpu:str}/service", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 422))
async def move_gpu(context: Context, request: Request[Principal, Any, Any], gpu: str, data: EnableBody) -> Gpu:
    """Keep a card from getting work, or let it work again."""
    said(data.why)
    row = found(context.world.gpus.get(GpuId(gpu)), f"GPU {gpu[:80]!r}", "node show NAME")

    def answer(world: World) -> Gpu:
        return world.gpus[row.id]

    command = MoveGpu(gpu_id=row.id, enable=data.enable, by=request.user.key.id, why=data.why, evict=data.evict)
    return await context.write(request, command, answer)


@get("/v1/reservations", opt={"scope": Scope.READ}, responses=answers())
async def list_reservations(context: Context, request: Request[Principal, Any, Any]) -> ReservationList:
    """What is set aside, next first: all for an operator, a project's own for its keys."""
    seen = [row for row in context.world.reservations.values() if may_see(request.user, row.project_id)]
    return ReservationList(items=tuple(sorted(seen, key=lambda row: (row.start_ms, row.id))))


@post("/v1/reservations", opt={"scope": Scope.OPERATOR}, responses=answers(404, 409, 422))
async def reserve(context: Context, request: Request[Principal, Any, Any], data: ReservationBody) -> Reservation:
    """Set nodes aside for a project's reserved work, or for maintenance."""
    named(data.name)
    now_ms = context.clock_ms()
    start_ms = max(data.start_ms, now_ms)
    if not 60 <= data.length_s <= LENGTH_MAX_S or start_ms > now_ms + LENGTH_MAX_S * 1000:
        raise BadRequest("a reservation lasts from a minute to ten years, and begins within ten years")
    if not (data.on or data.project) or not 1 <= data.nodes <= NODES_MAX or len(data.on) > NODES_MAX:
        raise BadRequest(f"say which nodes, or for which project and how many (1 to {NODES_MAX})")
    world = context.world
    project = project_for(world, request.user, data.project).id if data.project else ProjectId("")
    nodes = tuple(dict.fromkeys(node_named(world, name).id for name in data.on))
    row = Reservation(id=ReservationId(drawn("rs")), name=data.name, project_id=project, node_ids=nodes, evict=data.evict,
                      start_ms=start_ms, end_ms=start_ms + data.length_s * 1000, created_ms=now_ms)  # fmt: skip
    spec = Spec(run="", nodes=data.nodes, resources=Resources(gpu=_gpu(data.gpu), cpu_milli=1, memory_mib=1, disk_mib=1))

    def answer(world: World) -> Reservation:
        return world.reservations[row.id]

    return await context.write(request, Reserve(row=row, spec=spec), answer)


@delete("/v1/reservations/{reservation:str}", opt={"scope": Scope.OPERATOR}, status_code=200, responses=answers(404, 409, 422))
async def cancel_reservation(context: Context, request: Request[Principal, Any, Any], reservation: str) -> Reservation:
    """Give the nodes back now."""
    row = found(
        next((r for r in context.world.reservations.values() if reservation in {r.id, r.name}), None),
        f"reservation {reservation[:80]!r}",
        "reservation ls",
    )

    def answer(world: World) -> Reservation:
        del world
        return msgspec.structs.replace(row, closed=True)

    return await context.write(request, CancelReservation(id=row.id), answer)


@get("/v1/defragmentation", opt={"scope": Scope.OPERATOR}, responses=answers())
async def show_defragmentation(context: Context) -> Defragmentation:
    """What moving work together would gain and cost now."""
    return _proposed(context.world, context.clock_ms())


@post("/v1/defragmentation", opt={"scope": Scope.OPERATOR}, responses=answers(409, 422))
async def run_defragmentation(context: Context, request: Request[Principal, Any, Any], data: DefragmentBody) -> Defragmentation:
    """Move work together now, or have it done by itself from now on; answers with what was proposed."""
    proposed = _proposed(context.world, context.clock_ms())

    def answer(world: World) -> Defragmentation:
        return msgspec.structs.replace(proposed, automatic=any(site.defragment for site in world.sites.values()))

    return await context.write(request, Defragment(apply=data.apply, automatic=data.automatic), answer)


def _proposed(world: World, now_ms: int) -> Defragmentation:
    automatic, found = any(site.defragment for site in world.sites.values()), defragment(world, now_ms)
    if found is None:
        return Defragmentation(automatic=automatic)
    moves = tuple(
        MoveView(workload=world.allocations[move.allocation_id].workload_id, to=tuple(world.nodes[key].name for key in move.to),
                 lost_gpu_h=move.lost_milli_h / MILLI)
        for move in found.moves
    )  # fmt: skip
    return Defragmentation(automatic=automatic, workload=found.for_id, node=world.nodes[found.node_id].name, moves=moves,
                           gain_gpu_h=found.gain_milli_h / MILLI, lost_gpu_h=found.lost_milli_h / MILLI)  # fmt: skip


@get("/v1/volumes", opt={"scope": Scope.READ}, responses=answers(404))
async def list_volumes(context: Context, request: Request[Principal, Any, Any], project: str = "") -> VolumeList:
    """Volumes and where they lie."""
    world = context.world
    wanted = project_for(world, request.user, project).id if project else None
    seen = [row for row in world.volumes.values() if may_see(request.user, row.project_id) and wanted in {None, row.project_id}]
    return VolumeList(items=tuple(_volume_view(world, row) for row in sorted(seen, key=lambda row: row.id)))


@delete("/v1/volumes/{volume:str}", opt={"scope": Scope.MEMBER}, status_code=200, responses=answers(404, 409, 422))
async def remove_volume(context: Context, request: Request[Principal, Any, Any], volume: str, project: str = "") -> VolumeView:
    """Delete a volume that no live workload mounts, with what is in it; a cache on all nodes."""
    world = context.world
    owner = project_for(world, request.user, project).id
    row = found(
        next((row for row in world.volumes.values() if (row.project_id, row.name) == (owner, volume)), None), f"volume {volume[:80]!r}", "volume ls"
    )

    def answer(world: World) -> VolumeView:
        return _volume_view(world, msgspec.structs.replace(row, removed=True))

    return await context.write(request, RemoveVolume(project_id=owner, name=row.name), answer)


def _volume_view(world: World, row: Volume) -> VolumeView:
    node = world.nodes.get(row.node_id)
    return VolumeView(volume=row, node=node.name if node else row.node_id)


def _rack_view(world: World, rack: Rack, inlets: Mapping[RackId, Inlet]) -> RackView:
    nodes = {node.id: node for node in world.nodes.values() if node.rack_id == rack.id}
    view = RackView(rack=rack, nodes=len(nodes), drawn_w=rack_w(world, nodes))
    inlet = inlets.get(rack.id)
    if inlet is None:
        return view
    after_s = reaches_s(inlet.now_c, inlet.settles_c)
    return msgspec.structs.replace(
        view, inlet_c=round(inlet.now_c, 1), settles_c=round(inlet.settles_c, 1), too_warm_s=None if math.isinf(after_s) else round(after_s)
    )


def _gpu(text: str) -> GpuRequest:
    try:
        return parse_gpu(text) if text else GpuRequest()
    except ValueError as error:
        raise BadRequest("`gpu` is written like H100:8, 24GB..:2 or 4") from error


ROUTER = Router(
    "/",
    route_handlers=[
        list_sites, set_site, list_racks, set_rack, set_gpu, move_gpu, list_reservations, reserve, cancel_reservation,
        show_defragmentation, run_defragmentation, list_volumes, remove_volume,
    ],
)  # fmt: skip
"""All of this module's routes."""
