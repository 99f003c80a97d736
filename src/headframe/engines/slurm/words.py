"""Slurm's REST interface in our words, pure: what is asked of it in each of its dialects, and what it answers.

Seen on v0.0.38 (Slurm 22.05, Debian 12), v0.0.42 (24.11, Debian 13) and v0.0.45 (26.05) themselves, in recorded answers on those between; what differs is hidden here.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

DIALECTS = ("v0.0.45", "v0.0.44", "v0.0.43", "v0.0.42", "v0.0.41", "v0.0.40", "v0.0.38")
"""Those that are spoken, the best first."""
OLD = "v0.0.38"
HELD = 2042
"""ESLURM_... "job held, as asked": comes among the errors of the old dialect, and is none."""
NAMED = "hf-"
"""How the names of our jobs begin; the allocation's id follows."""
NOTHING_FOUND = 9003
"""ESLURM_REST_EMPTY_RESULT."""
_GRES = re.compile(r"gpu(?::([A-Za-z0-9_.-]+?))?:(\d+)(?:\(|,|$)")
_RANGE = re.compile(r"^(\d+)(?:-(\d+))?$")


class Number(msgspec.Struct, frozen=True):
    """A number as later dialects write it."""

    set: bool = False
    infinite: bool = False
    number: int | float = 0


Numeric = int | float | Number | None


class SlurmNode(msgspec.Struct, frozen=True):
    """A machine as Slurm tells of it. Sizes in MiB."""

    name: str
    state: str | list[str] = ""
    state_flags: list[str] = []
    address: str = ""
    architecture: str = ""
    operating_system: str | None = ""
    boot_time: Numeric = 0
    cpus: int = 0
    threads: int = 1
    real_memory: int = 0
    temporary_disk: int = 0
    gres: str = ""
    features: str | list[str] = ""
    reason: str | None = ""
    partitions: list[str] = []

    @property
    def states(self) -> frozenset[str]:
        """Its base state and all flags."""
        return states(self.state, self.state_flags)

    @property
    def lost(self) -> bool:
        """Whether Slurm has no word of it, or counts on its work having ended."""
        return bool(self.states & {"DOWN", "NO_RESPOND", "NOT_RESPONDING", "POWERED_DOWN", "POWERING_DOWN", "FUTURE", "UNKNOWN", "ERROR"})

    @property
    def drained(self) -> bool:
        """Whether Slurm gives it nothing new."""
        return bool(self.states & {"DRAIN", "FAIL", "MAINT", "MAINTENANCE", "PLANNED_MAINT", "REBOOT_REQUESTED", "REBOOT_ISSUED"})

    @property
    def rack(self) -> str:
        """What its feature `rack=NAME` or `switch=NAME` says."""
        features = self.features if isinstance(self.features, list) else self.features.split(",")
        return next((each.split("=", 1)[1] for each in features if each.startswith(("rack=", "switch="))), "")


class SlurmJob(msgspec.Struct, frozen=True):
    """A job as Slurm tells of it; `comment` holds our allocation's id, for Slurm's own number may be given out again after a crash."""

    job_id: int
    name: str = ""
    comment: str | None = ""
    user_name: str | None = ""
    job_state: str | list[str] = ""
    state_reason: str | None = ""
    nodes: str | None = ""
    standard_output: str | None = ""
    gres_detail: list[str] = []
    start_time: Numeric = 0
    end_time: Numeric = 0

    @property
    def states(self) -> frozenset[str]:
        """Its base state and all flags."""
        return states(self.job_state)

    @property
    def over(self) -> bool:
        """Whether it will never run (again)."""
        return bool(self.states & ENDS) and "COMPLETING" not in self.states


ENDS = frozenset({
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE", "PREEMPTED", "REVOKED",
})  # fmt: skip


class Accounted(msgspec.Struct, frozen=True, kw_only=True):
    """A job in Slurm's own accounting: when it ran, in seconds since 1970 (`end_s` 0: it still does), and how many GPUs it held."""

    job_id: int
    name: str
    start_s: int
    end_s: int
    gpus: int
    state: str

    @property
    def seconds(self) -> float | None:
        """How long it ran, once it has ended. None where Slurm does not know: 26.05 has a start in the year 2106 (its C's word for no number) for some jobs whose controller was killed."""
        return float(self.end_s - self.start_s) if self.end_s >= self.start_s else None


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What Slurm is asked to start: `script` on exactly these `nodes`, each with so many cores, so much memory and such GPUs."""

    name: str
    comment: str
    script: str
    nodes: tuple[str, ...]
    cpus: int
    memory_mib: int
    gpus: tuple[tuple[str, int], ...]
    minutes: int
    output: str
    cwd: str
    partition: str = ""


class SlurmRefused(Exception):
    """Slurm understood and said no; `number` is its own error's."""

    def __init__(self, text: str, number: int = 0) -> None:
        super().__init__(text)
        self.number = number


def states(told: str | Sequence[str], flags: Sequence[str] = ()) -> frozenset[str]:
    """One set of upper-case words: of "mixed" and its flags, "IDLE+DRAIN", or ["MIXED", "DRAIN"]."""
    words = told.replace("*", "+NO_RESPOND").split("+") if isinstance(told, str) else told
    return frozenset(word.upper() for word in (*words, *flags) if word)


def whole(told: Numeric) -> int:
    """A number in either dialect; 0 where there is none."""
    if isinstance(told, Number):
        return int(told.number) if told.set else 0
    return int(told or 0)


def gpus(gres: str) -> list[tuple[str, int]]:
    """The typed GPUs of a node or a job: `gpu:rtx3090:4(S:0-1)` is [("rtx3090", 4)]; a type that is not told is ""."""
    return [(found[1] or "", int(found[2])) for found in _GRES.finditer(gres or "")]


def hosts(text: str) -> list[str]:
    """Slurm's short form of a list of names: `n[1-3,7],gpu01` is n1, n2, n3, n7, gpu01. What is no such list gives what can be read of it."""
    found: list[str] = []
    for part in re.findall(r"[^,\[]+(?:\[[^\]]*\][^,\[]*)*", text or ""):
        found += _expanded(part.strip())
    return found


def _expanded(part: str) -> list[str]:
    begin, end = part.find("["), part.find("]")
    if begin < 0 or end < begin:
        return [part] if part else []
    return [f"{part[:begin]}{each}{rest}" for each in _numbers(part[begin + 1 : end]) for rest in (_expanded(part[end + 1 :]) or [""])]


def _numbers(text: str) -> Iterator[str]:
    for piece in text.split(","):
        match = _RANGE.fullmatch(piece.strip())
        if match is None:
            continue
        first, last = match[1], match[2] or match[1]
        for number in range(int(first), min(int(last), int(first) + 65_535) + 1):
            yield f"{number:0{len(first)}d}"


def body(request: JobRequest, dialect: str) -> dict[str, Any]:
    """The request in Slurm's words. Nothing of a tenant's is in it but ids of ours: not a command, not a variable."""
    ranks = len(request.nodes)
    job: dict[str, Any] = {
        "name": request.name, "comment": request.comment, "current_working_directory": request.cwd, "standard_output": request.output,
        "standard_error": request.output, "tasks": ranks, "tasks_per_node": 1, "cpus_per_task": request.cpus, "requeue": False,
    }  # fmt: skip
    if request.partition:
        job["partition"] = request.partition
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    if dialect == OLD:
        gres = ",".join(_gpu(kind, count) for kind, count in request.gpus)
        job |= {"environment": env, "nodes": ranks, "memory_per_node": request.memory_mib, "nodelist": ",".join(request.nodes)}
        job |= {"gres": gres} if gres else {}
        job |= {"time_limit": request.minutes} if request.minutes else {}
        return {"script": request.script, "job": job}
    tres = ",".join("gres/" + _gpu(kind, count) for kind, count in request.gpus)
    job |= {
        "script": request.script, "environment": [f"{key}={value}" for key, value in env.items()], "nodes": str(ranks),
        "memory_per_node": {"set": True, "number": request.memory_mib}, "required_nodes": list(request.nodes),
    }  # fmt: skip
    job |= {"tres_per_node": tres} if tres else {}
    job |= {"time_limit": {"set": True, "number": request.minutes}} if request.minutes else {}
    return {"job": job}


def _gpu(kind: str, count: int) -> str:
    return f"gpu:{kind}:{count}" if kind else f"gpu:{count}"


class _Complaint(msgspec.Struct, frozen=True):
    error: str | None = ""
    description: str | None = ""
    error_number: int | None = 0
    error_code: int | None = 0

    def __str__(self) -> str:
        return ": ".join(text for text in (self.description, self.error) if text)


class _Nodes(msgspec.Struct, frozen=True):
    nodes: list[SlurmNode] = []


class _Jobs(msgspec.Struct, frozen=True):
    jobs: list[SlurmJob] = []


class _Submitted(msgspec.Struct, frozen=True):
    job_id: int = 0


class _Complaints(msgspec.Struct, frozen=True):
    errors: list[_Complaint] = []
    warnings: list[_Complaint] = []


_nodes, _jobs = msgspec.json.Decoder(_Nodes), msgspec.json.Decoder(_Jobs)
_submitted, _complaints = msgspec.json.Decoder(_Submitted), msgspec.json.Decoder(_Complaints)


def refused(status: int, answer: bytes) -> SlurmRefused | None:
    """What Slurm objected to, if to anything. A field that a version ignores is an objection too: the job would run without it."""
    try:
        said = _complaints.decode(answer) if answer else _Complaints()
    except msgspec.DecodeError:
        return SlurmRefused(answer[:300].decode("utf-8", "replace") or f"HTTP {status}") if status >= 400 else None
    errors = [each for each in said.errors if (each.error_number or each.error_code) != HELD]
    ignored = [each for each in said.warnings if "gnoring unknown" in (each.description or "")]
    if status < 400 and not errors and not ignored:
        return None
    first = next(iter([*errors, *ignored]), _Complaint())
    return SlurmRefused(str(first) or f"HTTP {status}", first.error_number or first.error_code or 0)


def read_nodes(answer: bytes) -> list[SlurmNode]:
    """All machines."""
    return _nodes.decode(answer).nodes


def read_jobs(answer: bytes) -> list[SlurmJob]:
    """All jobs that the controller remembers."""
    return _jobs.decode(answer).jobs


def read_submitted(answer: bytes) -> int:
    """The number that a job was given."""
    return _submitted.decode(answer).job_id


class _Tres(msgspec.Struct, frozen=True):
    type: str = ""
    name: str | None = ""
    count: int | None = 0


class _TresOf(msgspec.Struct, frozen=True):
    allocated: list[_Tres] = []


class _Time(msgspec.Struct, frozen=True):
    start: Numeric = 0
    end: Numeric = 0


class _State(msgspec.Struct, frozen=True):
    current: str | list[str] = ""


class _Past(msgspec.Struct, frozen=True):
    job_id: int
    name: str = ""
    time: _Time = _Time()
    tres: _TresOf = _TresOf()
    state: _State = _State()


class _Pasts(msgspec.Struct, frozen=True):
    jobs: list[_Past] = []


_pasts = msgspec.json.Decoder(_Pasts)


def read_accounted(answer: bytes) -> list[Accounted]:
    """The jobs of Slurm's accounting that ever began."""
    return [
        Accounted(
            job_id=job.job_id, name=job.name, start_s=whole(job.time.start), end_s=whole(job.time.end), state="+".join(sorted(states(job.state.current))),
            gpus=sum(each.count or 0 for each in job.tres.allocated if each.type == "gres" and (each.name or "") == "gpu"),
        )
        for job in _pasts.decode(answer).jobs if whole(job.time.start)
    ]  # fmt: skip
