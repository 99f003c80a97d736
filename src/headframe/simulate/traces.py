"""Fleets and jobs from files and from generators: what a replay runs.

Job files are CSV (gzip if named `.gz`), their format told by their columns:

- `openb`: cpu_milli, memory_mib, num_gpu, gpu_milli[, gpu_spec, creation_time, deletion_time] (Alibaba 2023)
- `philly`: timestamp, duration, num_gpus[, cluster]
- `helios`: submit_time, duration, gpu_num[, node_num, cpu_num, user or vc]
- `acme`: submit_time, duration, gpu_num[, node_num, cpu_num, mem_per_pod_GB, user]
- `plain`: submit_s, duration_s, gpus[, tenant]

Fleet files: `sn, cpu_milli, memory_mib, gpu, model` (openb), `gpu_model, gpu_capacity_num, cpu_num` (Alibaba 2026), or
`nodes, gpu_model, gpus, vcpus`. A fleet may also be written: `64x8xH100` is 64 nodes of 8, several joined by `+`.
"""

import csv
import datetime as dt
import gzip
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from random import Random

import msgspec

from headframe.model.errors import HeadframeError
from headframe.model.units import MILLI

DEFAULT_CPU_MILLI, DEFAULT_MEMORY_MIB = 4000, 16_384
"""What a job is taken to need beside each GPU where its trace does not say."""
HOST_CPU_MILLI, HOST_MEMORY_MIB = 8000, 32_768
"""What a machine is taken to have beside each GPU where its file does not say."""
GPUS_PER_NODE_MAX = 16
JOBS_MAX = 5_000_000


class BadTrace(HeadframeError):
    """A fleet or a job file that can't be read."""

    code, status = "bad_trace", 422


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One machine of a replay."""

    name: str
    model: str
    gpus: int
    cpu_milli: int
    memory_mib: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job of a replay: `milli` thousandths of a GPU on each of `nodes`, for `run_s` once it runs."""

    at_s: float
    run_s: float
    milli: int
    nodes: int = 1
    cpu_milli: int = DEFAULT_CPU_MILLI
    memory_mib: int = DEFAULT_MEMORY_MIB
    model: str = ""
    tenant: str = "all"


def read_fleet(text: str) -> list[Machine]:
    """A fleet from a file, or from words such as `64x8xH100+16x4xRTX 3090`."""
    path = Path(text)
    if path.is_file():
        machines = list(_machines(path))
        if not any(machine.gpus > 0 for machine in machines):
            raise BadTrace(f"{path}: no machine with a GPU")
        return machines
    machines = []
    for part in text.split("+"):
        found = re.fullmatch(r"(\d{1,6})x(\d{1,2})(?:x([A-Za-z][\w .-]{0,40}))?", part.strip())
        if not found or not int(found[1]) or not 1 <= int(found[2]) <= GPUS_PER_NODE_MAX:
            raise BadTrace(f"{text!r} is neither a file nor a fleet", "write nodes x GPUs x model, such as 64x8xH100, or give a CSV file")
        gpus, model = int(found[2]), found[3] or "H100"
        machines += [
            Machine(name=f"n{len(machines) + n:06}", model=model, gpus=gpus, cpu_milli=gpus * HOST_CPU_MILLI, memory_mib=gpus * HOST_MEMORY_MIB)
            for n in range(int(found[1]))
        ]
    return machines


def read_jobs(paths: Iterable[str]) -> list[Job]:
    """The jobs of one or several files, in order of submission, from zero."""
    jobs = sorted(chain.from_iterable(_jobs(Path(path)) for path in paths), key=lambda job: job.at_s)
    if not jobs:
        raise BadTrace("there is no job in these files")
    first = jobs[0].at_s
    return [msgspec.structs.replace(job, at_s=job.at_s - first) for job in jobs]


def generate(count: int, fleet: Iterable[Machine], load: float, seed: int) -> list[Job]:
    """`count` jobs that ask for `load` of the fleet: most for one GPU, some for up to 64; run times from minutes to days (log-normal,
    median 19 min and mean 3.6 h as in the Philly trace), arrivals random in time.
    """
    rng = Random(seed)  # noqa: S311 - replayable chance, not secrets
    machines = list(fleet)
    per_node, total = max(machine.gpus for machine in machines), sum(machine.gpus for machine in machines)
    sizes = [(500, 1, 10), (MILLI, 1, 68), (2 * MILLI, 1, 8), (4 * MILLI, 1, 6), (8 * MILLI, 1, 6), (8 * MILLI, 4, 1.5), (8 * MILLI, 8, 0.5)]
    sizes = [size for size in sizes if size[0] <= per_node * MILLI and size[1] * size[0] * 4 <= total * MILLI]
    picks = rng.choices(sizes, weights=[size[2] for size in sizes], k=count)
    runs = [min(rng.lognormvariate(7.04, 2.1), 7 * 86_400.0) + 30 for _ in range(count)]
    span_s = sum(milli * nodes / MILLI * run for (milli, nodes, _), run in zip(picks, runs, strict=True)) / (total * load)
    times = sorted(rng.random() * span_s for _ in range(count))
    return [_job(at, run, milli, nodes, tenant=f"tenant-{rng.randrange(8)}") for at, run, (milli, nodes, _) in zip(times, runs, picks, strict=True)]


def _job(at_s: float, run_s: float, milli: int, nodes: int, tenant: str) -> Job:
    share = max(milli, 250)
    return Job(at_s=at_s, run_s=run_s, milli=milli, nodes=nodes, tenant=tenant, cpu_milli=DEFAULT_CPU_MILLI * share // MILLI,
               memory_mib=DEFAULT_MEMORY_MIB * share // MILLI)  # fmt: skip


def _rows(path: Path) -> tuple[list[str], Iterator[dict[str, str]]]:
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise BadTrace(f"{path}: {error}") from error
    if len(rows) > JOBS_MAX:
        raise BadTrace(f"{path}: more than {JOBS_MAX} rows")
    return columns, iter(rows)


def _machines(path: Path) -> Iterator[Machine]:
    columns, rows = _rows(path)
    for number, row in enumerate(rows, 2):
        try:
            if "sn" in columns:
                yield Machine(name=row["sn"], model=row["model"] or "CPU", gpus=int(row["gpu"]), cpu_milli=int(row["cpu_milli"]),
                              memory_mib=int(row["memory_mib"]))  # fmt: skip
                continue
            count, gpus = int(row.get("nodes") or 1), int(row.get("gpus") or row["gpu_capacity_num"])
            cpu = int(float(row.get("vcpus") or row["cpu_num"])) * MILLI
            for n in range(count):
                yield Machine(
                    name=f"{path.stem}-{number:05}-{n:05}", model=row["gpu_model"], gpus=gpus, cpu_milli=cpu, memory_mib=gpus * HOST_MEMORY_MIB
                )
        except (KeyError, ValueError, TypeError) as error:
            raise BadTrace(f"{path}: line {number}: {error}", "see `headframe simulate --help` for the columns") from error


def _jobs(path: Path) -> Iterator[Job]:
    columns, rows = _rows(path)
    read = next((reader for needed, reader in _FORMATS if needed <= set(columns)), None)
    if read is None:
        raise BadTrace(f"{path}: no known format has the columns {', '.join(columns)}", "see `headframe simulate --help` for the columns")
    for number, row in enumerate(rows, 2):
        try:
            job = read(row)
        except (KeyError, ValueError, TypeError) as error:
            raise BadTrace(f"{path}: line {number}: {error}") from error
        if job is not None and job.run_s > 0:
            yield job


def _openb(row: dict[str, str]) -> Job | None:
    count, start = int(row["num_gpu"]), float(row.get("creation_time") or 0)
    models = (row.get("gpu_spec") or "").split("|")
    run_s = float(row["deletion_time"]) - start if row.get("deletion_time") else 3600.0
    milli = int(row["gpu_milli"]) if count == 1 else count * MILLI
    return Job(at_s=start, run_s=run_s, milli=milli if count else 0, cpu_milli=int(row["cpu_milli"]), memory_mib=int(row["memory_mib"]),
               model=models[0] if len(set(models)) == 1 else "")  # fmt: skip


def _counted(at: str, run: str, gpus: str, tenants: tuple[str, ...]) -> Callable[[dict[str, str]], Job | None]:
    def read(row: dict[str, str]) -> Job | None:
        count = int(float(row[gpus] or 0))
        nodes = max(1, int(float(row.get("node_num") or 1)))
        if count <= 0 or not row[run]:
            return None
        if nodes == 1 and count > 8:
            nodes = -(-count // 8)
        each = -(-count // nodes)
        tenant = next((row[name] for name in tenants if row.get(name)), "all")
        return _job(_seconds(row[at]), float(row[run]), each * MILLI, nodes, tenant)

    return read


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        stamp = dt.datetime.fromisoformat(text)
        return (stamp if stamp.tzinfo else stamp.replace(tzinfo=dt.UTC)).timestamp()


_FORMATS: tuple[tuple[frozenset[str], Callable[[dict[str, str]], Job | None]], ...] = (
    (frozenset({"cpu_milli", "memory_mib", "num_gpu", "gpu_milli"}), _openb),
    (frozenset({"submit_s", "duration_s", "gpus"}), _counted("submit_s", "duration_s", "gpus", ("tenant",))),
    (frozenset({"timestamp", "duration", "num_gpus"}), _counted("timestamp", "duration", "num_gpus", ("cluster",))),
    (frozenset({"submission_time", "duration", "num_gpu"}), _counted("submission_time", "duration", "num_gpu", ("cluster",))),
    (frozenset({"submit_time", "duration", "gpu_num"}), _counted("submit_time", "duration", "gpu_num", ("vc", "user"))),
)  # fmt: skip
