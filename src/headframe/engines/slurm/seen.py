"""What is known of one allocation on Slurm: its keepers' journals, Slurm's own word, and what follows from both. Only `read` touches the disk."""

from headframe.engines.local import JournalLine
from headframe.engines.slurm.directory import Ended, Held, Sent
from headframe.engines.slurm.words import SlurmJob
from headframe.model.ids import AllocationId
from headframe.model.states import AllocationState, Reason
from headframe.model.work import Observation

LATE_MS = 5_000
"""A job is over for Slurm before everybody can read what its keeper wrote last."""
FENCE_MS = 6_000
"""Within this a keeper that still lives has read that it has to end: it looks every second, at what is there then."""
LOST_MS = 60_000
"""Slurm saves its state every few seconds: a job that it has not known for so long is lost."""
PENDING_MS = 60_000
"""Placement saw free cards; if Slurm has not started it by now, the two disagree."""
_ENDS = {
    "NODE_FAIL": (Reason.NODE_LOST, "Slurm lost a machine of it"),
    "BOOT_FAIL": (Reason.NODE_LOST, "Slurm could not start a machine of it"),
    "OUT_OF_MEMORY": (Reason.FAILED, "it used more memory than it asked for"),
    "TIMEOUT": (Reason.MAX_DURATION, "Slurm's time limit"),
    "DEADLINE": (Reason.MAX_DURATION, "Slurm's deadline"),
    "PREEMPTED": (Reason.PREEMPTED, "Slurm gave its place to others"),
    "CANCELLED": (Reason.PREEMPTED, "its job was cancelled in Slurm"),
    "REVOKED": (Reason.PREEMPTED, "its job was revoked in Slurm"),
}


class Seen:
    """One allocation, as far as it was looked at."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.ranks: list[list[JournalLine]] = []
        self.names: list[str] = []
        self.asked: Sent | None = None
        self.end: Ended | None = None
        self.claimed = 0
        self.job: SlurmJob | None = None
        self.over_ms = self.missing_ms = self.fenced_ms = self.pending_ms = 0
        self.had_begun = self.relapsed = False
        self.stopping: Reason | None = None
        self.stop_ms = 0
        self.fence: tuple[Reason, str] | None = None
        self.read()

    def read(self) -> None:
        """Look at its directory."""
        self.ranks, self.asked, self.end, self.claimed = self.held.journals(), self.held.sent(), self.held.end(), self.held.claimed()
        self.names = self.held.names() if len(self.names) != len(self.ranks) else self.names

    def look(self, jobs: list[SlurmJob], began_ms: int, now_ms: int) -> None:
        """Take in Slurm's word: the jobs that carry its id. The one that claimed the directory is it; of others those that live."""
        self.job = min(jobs, key=lambda job: (job.job_id != self.claimed, job.over, job.job_id), default=None)
        known = self.job is not None or self.asked is None or not self.asked.job_id or self.asked.at_ms > began_ms
        self.missing_ms = 0 if known else self.missing_ms or now_ms
        self.over_ms = (self.over_ms or now_ms) if self.job is not None and self.job.over else 0
        pending = self.job is not None and "PENDING" in self.job.states
        self.pending_ms = (self.pending_ms or now_ms) if pending else 0
        # Slurm was asked some time ago: only what had begun by the look before this one has come back to wait.
        self.relapsed, self.had_begun = pending and self.had_begun, self.began

    @property
    def sent(self) -> bool:
        """Whether Slurm has it, or had."""
        return self.began or self.job is not None or (self.asked is not None and self.asked.job_id > 0)

    @property
    def began(self) -> bool:
        """Whether any keeper has."""
        return bool(self.claimed) or any(self.ranks)

    @property
    def forgotten(self) -> bool:
        """Whether it runs, and Slurm does not know it: a controller that was killed has what it last saved."""
        return self.began and bool(self.missing_ms) and not self.over

    @property
    def complete(self) -> bool:
        """Whether every rank's keeper has written its end."""
        return bool(self.ranks) and all(self.ended(number) for number in range(len(self.ranks)))

    @property
    def over(self) -> bool:
        """Whether its end is written, by its keepers or for them."""
        return self.complete or self.end is not None

    def ended(self, number: int) -> JournalLine | None:
        """A rank's end."""
        return next((line for line in self.ranks[number] if line.event == "ended"), None)

    def started_ms(self) -> int:
        """When all ranks were at work, 0 where they are not yet."""
        firsts = [next((line.at_ms for line in lines if line.event in {"setup", "running"}), 0) for lines in self.ranks]
        return max(firsts) if firsts and all(firsts) else 0

    def given_up(self, now_ms: int) -> tuple[Reason, str] | None:
        """Why it is over though its keepers did not say so, once they have had the time to."""
        if self.over_ms and now_ms - self.over_ms >= LATE_MS and self.job is not None:
            return self._of_job(self.job)
        if self.missing_ms and now_ms - self.missing_ms >= LOST_MS:
            return Reason.NODE_LOST, "Slurm does not know its job any more"
        if self.relapsed:
            return Reason.NODE_LOST, "Slurm lost a machine of it, and would start it anew"
        why = ((self.job and self.job.state_reason) or "no reason given").replace("_", " ").lower()
        held = "launch failed" in why or "held" in why  # it does not come out of that by itself
        if self.pending_ms and (held or now_ms - self.pending_ms >= PENDING_MS):
            return Reason.NODE_FAULT, f"placed on {', '.join(self.names)}, and Slurm does not start it there: {why}"
        return None

    def _of_job(self, job: SlurmJob) -> tuple[Reason, str]:
        if self.stopping is not None:
            return self.stopping, f"stopped: {self.stopping}"
        word = next((each for each in _ENDS if each in job.states), "")
        if word:
            return _ENDS[word]
        if not self.began and "COMPLETED" not in job.states:
            return Reason.NODE_FAULT, f"Slurm could not run its job: {job.state_reason or 'it failed at once'}"
        return Reason.NODE_FAULT, "its keeper process was killed"

    def settled(self, now_ms: int) -> bool:
        """Whether no keeper can still be at work: each that began has ended, or has had the time to read that it must."""
        quiet = all(not lines or self.ended(number) for number, lines in enumerate(self.ranks))
        return quiet or bool(self.fenced_ms and now_ms - self.fenced_ms >= FENCE_MS)


def observed(seen: Seen, key: AllocationId, now_ms: int) -> Observation | None:
    """The allocation as the tick sees it; None where Slurm was not asked yet, or has not answered."""
    started_ms = seen.started_ms()
    if seen.end is not None:
        first = next((lines[0].at_ms for lines in seen.ranks if lines), 0)
        return Observation(
            allocation_id=key, state=AllocationState.ENDED, started_ms=started_ms or first, ended_ms=seen.end.at_ms, reason=seen.end.reason,
            detail=seen.end.detail, seen_ms=seen.end.at_ms,
        )  # fmt: skip
    if seen.complete:
        return _whole(seen, key, started_ms)
    if not seen.sent:
        return None
    running = bool(seen.ranks) and all(lines and lines[-1].event in {"running", "ended"} for lines in seen.ranks)
    state = AllocationState.RUNNING if running else AllocationState.STARTING
    return Observation(allocation_id=key, state=state, started_ms=started_ms, seen_ms=now_ms)


def _whole(seen: Seen, key: AllocationId, started_ms: int) -> Observation:
    """A gang ends as one: the rank that ended badly first says why, else all of them well."""
    ends = [(end.at_ms, number, end) for number in range(len(seen.ranks)) if (end := seen.ended(number)) is not None]
    bad = [each for each in ends if each[2].reason != Reason.FINISHED]
    _, number, first = min(bad or ends, key=lambda each: each[:2])
    rank = f"rank {number}: " if len(ends) > 1 and bad and first.detail else ""
    last_ms = max(at_ms for at_ms, _, _ in ends)
    return Observation(
        allocation_id=key, state=AllocationState.ENDED, started_ms=started_ms or min(lines[0].at_ms for lines in seen.ranks), ended_ms=last_ms,
        reason=Reason(first.reason), exit_code=first.exit_code, detail=rank + first.detail, unclean=first.unclean, seen_ms=last_ms,
    )  # fmt: skip
