"""Prometheus' text format: cards under the names of NVIDIA's dcgm-exporter, so that dashboards people own go on working, and the
fleet under ours. What a card does not say is left out, never 0.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from litestar import Response, Router, get
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headframe.dispatch.survey import NO_LIMIT_W, Known, surveyed
from headframe.model.fleet import Gpu
from headframe.model.health import Sample
from headframe.model.ids import RackId
from headframe.model.people import Scope
from headframe.model.units import MILLI
from headframe.model.work import Tier
from headframe.model.world import World
from headframe.server.context import Context
from headframe.server.dispatcher import Inlet

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LABELS = ("gpu", "UUID", "device", "modelName", "Hostname")
_Read = Callable[[Gpu, Sample], float | None]


def _free(gpu: Gpu, said: Sample) -> float | None:
    return None if said.memory_used_mib is None else gpu.memory_mib - said.memory_used_mib


READINGS: dict[str, tuple[str, _Read]] = {
    "DCGM_FI_DEV_GPU_TEMP": ("GPU temperature (in C).", lambda _, said: said.temperature_c),
    "DCGM_FI_DEV_MEMORY_TEMP": ("Memory temperature (in C).", lambda _, said: said.memory_temperature_c),
    "DCGM_FI_DEV_POWER_USAGE": ("Power draw (in W).", lambda _, said: said.power_w),
    "DCGM_FI_DEV_SM_CLOCK": ("SM clock frequency (in MHz).", lambda _, said: said.sm_mhz),
    "DCGM_FI_DEV_MEM_CLOCK": ("Memory clock frequency (in MHz).", lambda _, said: said.memory_mhz),
    "DCGM_FI_DEV_GPU_UTIL": ("GPU utilization (in %).", lambda _, said: None if said.use is None else said.use * 100),
    "DCGM_FI_DEV_FB_USED": ("Framebuffer memory used (in MiB).", lambda _, said: said.memory_used_mib),
    "DCGM_FI_DEV_FB_FREE": ("Framebuffer memory free (in MiB).", _free),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("Total energy consumption since boot (in mJ).", lambda _, said: said.energy_mj),
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": ("Total number of PCIe retries.", lambda _, said: said.replays),
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": ("Total number of double-bit volatile ECC errors.", lambda _, said: said.ecc_uncorrected),
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": ("Total number of single-bit volatile ECC errors.", lambda _, said: said.ecc_corrected),
}
"""All as gauges: dcgm-exporter's counters have no "_total", and dashboards know them by these names."""


class Fleet(Collector):
    """One reading of everything."""

    def __init__(self, world: World, latest: Callable[[Gpu], Sample | None]) -> None:
        said = [(gpu, sample) for gpu in world.gpus.values() if (sample := latest(gpu)) is not None and sample.present]
        self._world, self._said = world, said

    def collect(self) -> Iterator[Metric]:
        """All families, in the order of the tables."""
        for name, (text, read) in READINGS.items():
            yield self._filled(GaugeMetricFamily(name, text, labels=_LABELS), read)
        yield from _fleet(self._world)

    def _filled(self, family: GaugeMetricFamily, read: _Read) -> Metric:
        for gpu, said in self._said:
            value = read(gpu, said)
            if value is not None:
                host = self._world.nodes[gpu.node_id].name
                family.add_metric((str(gpu.index), gpu.id, f"nvidia{gpu.index}", gpu.model, host), float(value))
        return family


def _fleet(world: World) -> Iterator[Metric]:
    cards = GaugeMetricFamily("headframe_gpus", "GPUs by model, grade and state.", labels=("model", "grade", "state"))
    for labels, count in sorted(Counter((gpu.model, str(gpu.grade), str(gpu.state)) for gpu in world.gpus.values()).items()):
        cards.add_metric(labels, count)
    yield cards
    machines = GaugeMetricFamily("headframe_nodes", "Nodes by state.", labels=("state",))
    for state, count in sorted(Counter(str(node.state) for node in world.nodes.values()).items()):
        machines.add_metric((state,), count)
    yield machines
    concerns = GaugeMetricFamily(
        "headframe_gpu_concern", "1 for each GPU with which something is wrong, by rule.", labels=("UUID", "Hostname", "rule")
    )
    for gpu in world.gpus.values():
        if gpu.concern_rule:
            concerns.add_metric((gpu.id, world.nodes[gpu.node_id].name, gpu.concern_rule), 1)
    yield concerns
    held = {filler: sum(row.gpu_milli for row in world.held.values() if (row.tier is Tier.FILLER) is filler) for filler in (False, True)}
    yield GaugeMetricFamily("headframe_gpus_held", "GPUs held by allocations other than fillers.", value=held[False] / MILLI)
    yield GaugeMetricFamily("headframe_gpus_filling", "GPUs that fillers hold, and give up to whoever wants them.", value=held[True] / MILLI)
    yield GaugeMetricFamily("headframe_workloads_queued", "Workloads that wait.", value=len(world.queued))
    yield CounterMetricFamily("headframe_events", "Events committed.", value=world.version)


class Power:
    """The sites' watts, as prometheus_client's collectors are asked."""

    def __init__(self, world: World, now_ms: int, known: Known, refused: int, inlets: Mapping[RackId, Inlet]) -> None:
        self._world, self._now_ms, self._known, self._refused, self._inlets = world, now_ms, known, refused, inlets

    def collect(self) -> Iterator[Metric]:
        """What each site draws by use, what it may, and the signals that were refused since this server started."""
        drawn = GaugeMetricFamily("headframe_site_watts", "Watts at the meter, by use.", labels=("site", "use"))
        limits = GaugeMetricFamily(
            "headframe_site_limit_watts", "What may be drawn at the meter now; absent where there is no limit.", labels=("site",)
        )
        for site in self._world.sites.values():
            survey = surveyed(self._world, site, self._now_ms, self._known)
            for use in ("firm", "spot", "filler", "asic", "idle"):
                drawn.add_metric((site.name, use), getattr(survey.meter, f"{use}_w"))
            if survey.limit_w < NO_LIMIT_W:
                limits.add_metric((site.name,), survey.limit_w)
        warm = GaugeMetricFamily(
            "headframe_rack_inlet_celsius", "Racks' inlets by the model of what they draw and the air they get.", labels=("rack",)
        )
        for key, inlet in sorted(self._inlets.items()):
            warm.add_metric((self._world.racks[key].name,), inlet.now_c)
        yield drawn
        yield limits
        yield warm
        yield CounterMetricFamily("headframe_signals_refused", "Signals that were refused: out of range, or not understood.", value=self._refused)


@get("/metrics", opt={"scope": Scope.OPERATOR}, include_in_schema=False, media_type="text/plain")
async def metrics(context: Context) -> Response[bytes]:
    """For Prometheus, with an operator's key as its bearer token."""
    registry = CollectorRegistry()
    registry.register(Fleet(context.world, lambda gpu: context.watch.latest(gpu.id)))
    registry.register(Power(context.world, context.clock_ms(), context.dispatcher.known, context.refused_signals, context.dispatcher.inlets))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE)


ROUTER = Router("/", route_handlers=[metrics])
