"""The ledger beside Slurm's own accounting. Ours is what is billed; a difference says that one of the two missed something, and which."""

from collections.abc import Callable, Sequence

from headframe.engines.slurm.rest import SlurmRest
from headframe.engines.slurm.words import NAMED, Accounted, SlurmRefused
from headframe.model.api import Difference, Reconciliation
from headframe.model.engine import EngineSetup
from headframe.model.errors import Conflicting
from headframe.model.states import AllocationState
from headframe.model.units import MILLI
from headframe.model.work import Allocation

ROUND_S = 2.0
"""Slurm counts whole seconds, at both ends."""
AROUND_S = 20.0
"""Slurm's job begins before its keeper and ends after it: preparation, prolog and epilog are not billed."""
SETTLE_MS = 15_000
"""What ended so lately may not have reached Slurm's accounts yet."""


async def compared(setup: EngineSetup, ours: Sequence[Allocation], since_ms: int, clock_ms: Callable[[], int]) -> Reconciliation:
    """Ask Slurm for the same time. Raises Conflicting where it keeps no accounts, Unavailable where it does not answer."""
    rest = SlurmRest(setup, clock_ms)
    try:
        theirs = await rest.accounted(since_ms // 1000)
    except SlurmRefused as no:
        raise Conflicting(f"Slurm keeps no accounts that could be compared: {no}", "set AccountingStorageType=accounting_storage/slurmdbd") from None
    finally:
        await rest.close()
    return differences(ours, theirs, since_ms, clock_ms() - SETTLE_MS)


def differences(ours: Sequence[Allocation], theirs: Sequence[Accounted], since_ms: int, until_ms: int) -> Reconciliation:
    """Pure: what has ended on our side, and what Slurm has of it. A job that found its work taken ran for an instant, and is none."""
    mine = {each.id: each for each in ours if each.state is AllocationState.ENDED and each.started_ms and each.started_ms >= since_ms}
    ended = {key: each for key, each in mine.items() if each.ended_ms <= until_ms}
    jobs: dict[str, list[Accounted]] = {}
    for job in theirs:
        if job.name.startswith(NAMED) and job.end_s:
            jobs.setdefault(job.name.removeprefix(NAMED), []).append(job)
    longest = {
        key: max(group, key=lambda job: (job.seconds is not None, job.seconds or 0.0, job.job_id))
        for key, group in jobs.items() if key in ended or (key not in mine and max(job.end_s for job in group) * 1000 <= until_ms)
    }  # fmt: skip
    found = [each for key in sorted(ended.keys() | longest.keys()) if (each := _difference(ended.get(key), longest.get(key), key)) is not None]  # pyright: ignore[reportArgumentType, reportCallIssue]
    both = ended.keys() & longest.keys()
    return Reconciliation(
        since_ms=since_ms, allocations=len(both), ours_s=round(sum(_seconds(ended[key]) for key in both), 3),  # pyright: ignore[reportArgumentType]
        theirs_s=sum(longest[key].seconds or 0.0 for key in both), differences=tuple(found),
    )  # fmt: skip


def _difference(mine: Allocation | None, job: Accounted | None, key: str) -> Difference | None:
    ours_s = _seconds(mine) if mine else None
    theirs_s = job.seconds if job else None
    gpus = mine.gpu_milli // MILLI if mine else None
    why = ""
    if mine is None:
        why = "Slurm ran it, and the ledger has no such attempt in this time"
    elif job is None:
        why = "it was billed, and Slurm has no job of it in this time"
    elif theirs_s is None:
        why = "Slurm has the job, but not when it ran"
    elif gpus != job.gpus:
        why = "not as many GPUs"
    elif ours_s is not None and not -ROUND_S <= theirs_s - ours_s <= AROUND_S + ROUND_S:
        why = "longer in the ledger" if ours_s > theirs_s else "longer in Slurm"
    if not why or (mine is None and (theirs_s or 0.0) <= ROUND_S):
        return None
    return Difference(allocation_id=key, workload=mine.workload_id if mine else "", ours_s=ours_s, theirs_s=theirs_s, ours_gpus=gpus,
                      theirs_gpus=job.gpus if job else None, why=why)  # fmt: skip


def _seconds(allocation: Allocation) -> float:
    return (allocation.ended_ms - allocation.started_ms) / 1000
