"""A finished replay as figures."""

from collections.abc import Sequence

from headframe.model.report import Group, Report, Sample, jain, spread
from headframe.model.units import NANO_PER_USD
from headframe.simulate.replay import Ran, Replay

SIZES = ((1.0, "< 1 GPU"), (2.0, "1 GPU"), (8.0, "2-7 GPUs"), (9.0, "8 GPUs"), (float("inf"), "> 8 GPUs"))
SAMPLES_MAX = 240


def report(replay: Replay, fleet: str, trace: str, wall_s: float) -> Report:
    """The figures of a replay that has run to its end."""
    total = sum(machine.gpus for machine in replay.machines) or 1
    span_s = replay.jobs[-1].at_s or 1.0
    inside = [sample for sample in replay.samples if sample.at_h * 3600 <= span_s] or replay.samples
    held_h = sum(ran.gpus * (ran.ended_s - ran.started_s) for ran in replay.ran) / 3600
    tenants: dict[str, list[float]] = {}
    for ran in replay.ran:
        tenants.setdefault(ran.tenant, []).append(_slowdown(ran))
    usd = replay.revenue_nano / NANO_PER_USD
    return Report(
        policy=str(replay.setting.policy), fleet=fleet, trace=trace, gpus=total, nodes=len(replay.machines), jobs=len(replay.jobs),
        never=replay.refused, waiting=len(replay.world.queued), span_h=span_s / 3600,
        makespan_h=max((ran.ended_s for ran in replay.ran), default=0.0) / 3600,
        held=sum(sample.held for sample in inside) / max(1, len(inside)),
        stranded=sum(sample.stranded for sample in inside) / max(1, len(inside)), groups=tuple(_groups(replay.ran)),
        preempted=replay.preempted, lost_gpu_h=replay.lost_gpu_s / 3600, fairness=jain([sum(each) / len(each) for each in tenants.values()]),
        revenue_usd=usd, revenue_per_gpu_h_usd=usd / held_h if held_h else 0.0, ticks=replay.ticks, wall_s=wall_s,
        samples=tuple(_thinned(replay.samples)),
    )  # fmt: skip


def _groups(ran: Sequence[Ran]) -> list[Group]:
    by_name: dict[str, list[Ran]] = {"all": list(ran), **{name: [] for _, name in SIZES}}
    for one in ran:
        by_name[next(name for limit, name in SIZES if one.gpus < limit)].append(one)
    return [
        Group(
            name=name, jobs=len(group), delay_s=spread([one.started_s - one.submitted_s for one in group]),
            jct_s=spread([one.ended_s - one.submitted_s for one in group]), slowdown=sum(map(_slowdown, group)) / len(group),
        )
        for name, group in by_name.items() if group
    ]  # fmt: skip


def _slowdown(ran: Ran) -> float:
    return max(1.0, (ran.ended_s - ran.submitted_s) / max(ran.run_s, 10.0))


def _thinned(samples: Sequence[Sample]) -> list[Sample]:
    step = max(1, -(-len(samples) // SAMPLES_MAX))
    return list(samples[::step])
