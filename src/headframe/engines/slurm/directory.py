"""What Headframe keeps of one allocation on the path that all machines share: one directory for each rank, as the local engine's keepers know it.

`claim` is a link made by the one job of Slurm's that may run it, to that job's number, `sent.json` says that Slurm was asked, `job.json` which job it became, `end.json` how it ended
where no keeper could say so. Each rank has `spec.json`, `room`, `journal`, `log/`, `work/`, `stop.json`, and in a gang `alive`.
"""

import contextlib
import hashlib
import json
import os
import pwd
import py_compile
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from headframe.engines import supervisor
from headframe.engines.base import GRACE_S
from headframe.engines.local import JournalLine, read_journal, read_log, set_aside
from headframe.engines.runtime import SETUP_EXIT, Place, launch_for
from headframe.files import write_private
from headframe.model.engine import EngineSetup
from headframe.model.ids import AllocationId, ProjectId, VolumeId, WorkloadId, is_allocation_id, volume_id
from headframe.model.states import Reason
from headframe.model.work import Allocation, LogLine, Mount, Workload

KEEPER = "headframe_keeper"
"""What our keeper is called as a module on the shared path."""
BEAT_S = 10
PORT_FIRST, PORTS = 15_000, 15_000
"""Rank 0 listens on one of these, below what kernels hand out to clients."""
INHERITED = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "SLURM_JOB_ID", "SLURM_JOB_GPUS", "SLURM_CONF", "SLURMD_NODENAME")
"""What Slurm has bound the job to; of all else the work has only what it asked for."""
CARDS = "/run/lock/headframe-card"
"""On each node, where everybody may lock: the beginning of the name of a card's lock; the cluster's mark follows, as several may meet on one machine in tests."""
MERGED_LINES_MAX, STALE_S = 5000, 60.0
WRITTEN = "written"
CACHES = Path("/var/tmp")  # noqa: S108 - it is meant to be kept, and its sticky bit keeps others from removing what is ours
"""Caches lie on each node's own disk, each account's in a directory that it alone can reach; the system clears away what is unused there for long."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """An end that the engine wrote."""

    at_ms: int
    reason: Reason
    detail: str


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """Slurm was asked to start it; `job_id` once it said yes."""

    at_ms: int
    job_id: int = 0


class Shared:
    """The shared path of one Slurm cluster."""

    def __init__(self, setup: EngineSetup) -> None:
        self.root = Path(setup.shared)
        self.setup = setup
        self.cards = f"{CARDS}-{hashlib.sha256(setup.shared.encode()).hexdigest()[:8]}"
        self.active, self.ended, self.news = (self.root / name for name in ("allocations", "ended", "news"))

    def make(self) -> None:
        """The directories, and our keeper's text under a name of its own content. Raises OSError where that can't be."""
        if not self.root.exists():  # one that is there is the operator's, with the rights that they gave it
            self.root.mkdir(parents=True)
            self.root.chmod(0o711)
        for path in (self.active, self.ended, self.root / "checkpoints", self.root / "volumes", self.root / "keeper"):
            path.mkdir(exist_ok=True)
            path.chmod(0o711)  # whatever this process's mask is: those whose work lies below have to get there
        self.news.mkdir(exist_ok=True)
        self.news.chmod(0o1733)  # all may leave word, none may see who else did
        text = Path(supervisor.__file__).read_bytes()
        self.keeper = self.root / "keeper" / hashlib.sha256(text).hexdigest()[:16]
        if not self.keeper.exists():
            _lay_keeper(self.keeper, text)

    def of(self, allocation: AllocationId) -> "Held":
        """One allocation's directory."""
        assert is_allocation_id(allocation), allocation
        return Held(self.active / allocation)

    def held(self) -> list[AllocationId]:
        """All that are not put away."""
        return [AllocationId(name) for name in sorted(_names(self.active)) if is_allocation_id(name)]

    def heard(self) -> list[AllocationId]:
        """Those whose journals have grown since this was last asked."""
        found: dict[AllocationId, None] = {}
        for name in _names(self.news):
            (self.news / name).unlink(missing_ok=True)  # before the journal is read: what comes after leaves word again
            allocation = name.rpartition(".")[0]
            if is_allocation_id(allocation):
                found[AllocationId(allocation)] = None
        return list(found)

    def prepare(self, allocation: Allocation, workload: Workload, nodes: Sequence[str], master: str, workdirs: Path) -> None:
        """Everything its keepers need, on disk before Slurm is asked; doing it again is harmless. Raises OSError, ValueError, TarError."""
        held = self.of(allocation.id)
        owner = owner_of(self.setup.account(allocation.project_id))
        (held.path / "by-node").mkdir(parents=True, exist_ok=True)
        held.path.chmod(0o700)
        mounts = {
            mount: cache_of(owner, workload.project_id, mount.volume)
            if mount.cache
            else self.root / "volumes" / volume_id(workload.project_id, mount.volume)
            for mount in workload.spec.volumes
        }
        checkpoint = self.root / "checkpoints" / workload.id
        shared = [path for mount, path in mounts.items() if not mount.cache]
        for path in (*shared, *([checkpoint] if workload.spec.checkpoint else [])):
            path.mkdir(exist_ok=True, mode=0o700)
            give(path, owner)
        for part, node in zip(allocation.parts, nodes, strict=True):
            place = Place(part=part, ranks=len(nodes), master=master, port=port_of(allocation.id), cards=None)
            self._prepare_rank(held.rank(part.rank), place, allocation, workload, checkpoint, mounts, workdirs)
            with contextlib.suppress(FileExistsError):
                (held.path / "by-node" / node).symlink_to(f"../{part.rank}")
            give(held.rank(part.rank), owner)
        give(held.path, owner)

    def _prepare_rank(
        self, at: Path, place: Place, allocation: Allocation, workload: Workload, checkpoint: Path, mounts: Mapping[Mount, Path], workdirs: Path
    ) -> None:  # fmt: skip
        work = at / "work"
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
        if workload.workdir_digest:
            with tarfile.open(workdirs / f"{workload.workdir_digest}.tar") as archive:
                archive.extractall(work, filter="data")
        launch = launch_for(place, allocation, workload, work, checkpoint, mounts)
        spec: dict[str, Any] = {
            "id": allocation.id, "rank": place.part.rank, "boot_id": "", "cwd": str(work), "setup": launch.setup, "setup_shown": workload.spec.setup,
            "run": launch.run, "env": launch.env, "inherit": INHERITED, "on_stop": launch.on_stop, "max_duration_s": workload.spec.max_duration_s,
            "lease": "", "type": workload.spec.type, "grace_s": GRACE_S, "cgroups": [], "caches": [str(path) for mount, path in mounts.items() if mount.cache], "news": str(self.news), "on_term": Reason.PREEMPTED, "cards": self.cards,
            "beat_s": BEAT_S if place.ranks > 1 else 0, "setup_exit": SETUP_EXIT if workload.spec.image and workload.spec.setup else None,
        }  # fmt: skip
        set_aside(at)
        write_private(at / "spec.json", json.dumps(spec).encode())

    def put_away(self, allocation: AllocationId) -> None:
        """Its end is recorded: the work's own files go, journals and logs stay."""
        held = self.of(allocation)
        for rank in held.ranks():
            shutil.rmtree(rank / "work", ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            held.path.rename(self.ended / allocation)

    def erase(self, volume: VolumeId) -> None:
        """Delete a volume."""
        shutil.rmtree(self.root / "volumes" / volume, ignore_errors=True)

    def discard(self, allocation: AllocationId, workload: WorkloadId) -> None:
        """Delete what is left of an attempt that was put away, and the workload's checkpoint."""
        for path in (self.ended / allocation, self.root / "checkpoints" / workload):
            shutil.rmtree(path, ignore_errors=True)

    def logs(self, allocation: Allocation, after: int, limit: int) -> list[LogLine]:
        """Lines from the cursor on: of one rank as its keeper writes them, of several as they are brought together here."""
        for root in (self.active, self.ended):  # in this order: it may be put away meanwhile
            at = root / allocation.id
            with contextlib.suppress(FileNotFoundError):
                if len(allocation.parts) > 1:
                    Held(at).merge()
                lines = read_log(at / ("log" if len(allocation.parts) > 1 else "0/log"), after, limit)
                if lines:
                    return lines
        return []


class Held:
    """One allocation's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rank(self, number: int) -> Path:
        """A rank's directory."""
        return self.path / str(number)

    def ranks(self) -> list[Path]:
        """Those that were prepared, by number."""
        return [self.path / name for name in sorted((name for name in _names(self.path) if name.isdigit()), key=int)]

    def names(self) -> list[str]:
        """Slurm's names of the machines, by rank; some may be missing while it is being prepared."""
        links = self.path / "by-node"
        found = {int((links / name).readlink().name): name for name in _names(links)}
        return [found[number] for number in sorted(found)]

    def journals(self) -> list[list[JournalLine]]:
        """What each rank's keeper wrote."""
        return [read_journal(_anew(rank)) for rank in self.ranks()]

    def sent(self) -> Sent | None:
        """Whether Slurm was asked, and what it said."""
        return _read(self.path / "sent.json", Sent)

    def send(self, at_ms: int, job_id: int = 0) -> None:
        """Say so, before and after."""
        write_private(self.path / "sent.json", msgspec.json.encode(Sent(at_ms=at_ms, job_id=job_id)))

    def end(self) -> Ended | None:
        """An end that the engine wrote."""
        return _read(self.path / "end.json", Ended)

    def conclude(self, at_ms: int, reason: Reason, detail: str) -> None:
        """Write the end, once; and that nothing may begin or go on, for keepers and jobs that come late."""
        self.stop(reason, 0)
        if self.end() is None:
            write_private(self.path / "end.json", msgspec.json.encode(Ended(at_ms=at_ms, reason=reason, detail=detail[:500])))

    def stop(self, because: Reason, grace_s: int) -> None:
        """Tell its keepers to end the work, and a job that comes late not to begin."""
        said = json.dumps({"reason": because, "grace_s": grace_s}).encode()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o711)
        for at in (self.path, *self.ranks()):
            if not (at / "stop.json").exists():
                write_private(at / "stop.json", said)
                (at / "stop.json").chmod(0o644)

    def claimed(self) -> int:
        """The job that runs it, 0 where none has begun to."""
        try:
            return int((_anew(self.path) / "claim").readlink().name.removeprefix("job-"))
        except (OSError, ValueError):
            return 0

    def beats(self) -> list[float]:
        """When each rank of a gang last said that it lives, by the shared path's clock; 0 where it never did."""
        return [_beat(rank) for rank in self.ranks()]

    def merge(self) -> None:
        """Bring the ranks' new lines together, in order of time, in a log of their own. One at a time."""
        with _only_one(self.path / "merging") as mine:
            if mine:
                self._merge()

    def _merge(self) -> None:
        at, log = self.path / "offsets.json", self.path / "log"
        done: dict[str, int] = _read(at, dict[str, int]) or {WRITTEN: 0}
        lines = [
            (line.at_ms, line.rank, n, line)
            for rank in self.ranks()
            for n, line in enumerate(read_log(rank / "log", done.get(rank.name, 0), MERGED_LINES_MAX))
        ]
        if not lines:
            return
        with _segment(log, done[WRITTEN]) as file:
            for at_ms, number, _, line in sorted(lines, key=lambda each: each[:3]):
                done[WRITTEN] += file.write(f"{at_ms} {number} {line.stream} {line.text}\n".encode())
                done[str(number)] = line.next
        write_private(at, msgspec.json.encode(done), durable=False)


def _lay_keeper(at: Path, text: bytes) -> None:
    """The keeper as a module, compiled for machines with the server's version of Python: others compile it each time."""
    new = at.with_name(f"{at.name}.{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    write_private(new / f"{KEEPER}.py", text)
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compiled = Path(str(py_compile.compile(str(new / f"{KEEPER}.py"), dfile=f"{KEEPER}.py", invalidation_mode=mode, doraise=True)))
    write_private(compiled, compiled.read_bytes())  # on disk before anybody is told to use it
    for path in (new, *new.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    try:
        new.rename(at)
    except OSError:
        shutil.rmtree(new)
        if not at.exists():  # else another server was first
            raise


def script(setup: EngineSetup, keeper: Path, held: Path, ranks: int) -> str:
    """What Slurm runs: our own text and paths, and nothing that a tenant wrote."""
    where = 'os.path.realpath(os.path.expandvars("$HEADFRAME_HELD/by-node/$SLURMD_NODENAME"))'
    rank = f"import os, sys; sys.path.append({str(keeper)!r}); import {KEEPER}; sys.exit({KEEPER}.main('-', {where}))"
    begin = "exec srun --ntasks-per-node=1 --kill-on-bad-exit=1 --mpi=none " if ranks > 1 else "exec "
    return "\n".join(
        (
            "#!/bin/sh",
            "# Headframe: what is run stands in the directory, not here.",
            f"HEADFRAME_HELD={shlex.quote(str(held))}; export HEADFRAME_HELD",
            'ln -sn "job-$SLURM_JOB_ID" "$HEADFRAME_HELD/claim" 2>/dev/null || { [ -L "$HEADFRAME_HELD/claim" ]; exit; }  # another job runs it: never twice',
            '[ -e "$HEADFRAME_HELD/stop.json" ] && exit 0',
            f"{begin}{shlex.quote(setup.python)} -I -S -c {shlex.quote(rank)}",
            "",
        )
    )


def cache_of(owner: tuple[int, int] | None, project: ProjectId, name: str) -> Path:
    """Where a cache lies on each machine that has it."""
    return CACHES / f"headframe-cache-{owner[0] if owner else os.geteuid()}" / volume_id(project, name)


def erasing(cache: Path, at_s: int) -> str:
    """What Slurm runs on a machine to delete a cache that nothing has mounted since then: whoever mounts it marks it, and what is mounted anew stays."""
    place = shlex.quote(str(cache))
    return f'#!/bin/sh\n[ "$(stat -c %Y {place})" -le {at_s} ] || exit 0\nmv {place} {place}.gone && rm -rf {place}.gone\n'


def port_of(allocation: AllocationId) -> int:
    """Where rank 0 of a gang listens."""
    return PORT_FIRST + zlib.crc32(allocation.encode()) % PORTS


def owner_of(account: str) -> tuple[int, int] | None:
    """To whom the work's files are to be given, None where they are this process's own user's already; ValueError where that can't be."""
    try:
        known = pwd.getpwnam(account)
    except KeyError:
        raise ValueError(f"there is no UNIX account {account!r} on the server's machine: make it, on all machines with the same number") from None
    if known.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise ValueError(f"work is to run as {account!r}, and only a server that is root may give files to others")
    return known.pw_uid, known.pw_gid


def give(path: Path, owner: tuple[int, int] | None) -> None:
    """Everything below belongs to the project's account."""
    if owner is None:
        return
    for folder, _, names in os.walk(path):
        os.chown(folder, *owner)
        for name in names:
            os.chown(Path(folder) / name, *owner, follow_symlinks=False)


def _read(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _names(path: Path) -> list[str]:
    """What is in a directory, nothing where there is none."""
    try:
        return [each.name for each in path.iterdir()]
    except FileNotFoundError:
        return []


def _anew(directory: Path) -> Path:
    """The same, once it was asked what is in it now, if it is there."""
    supervisor.attempt(supervisor.look_anew, directory)
    return directory


def _beat(rank: Path) -> float:
    try:
        with (_anew(rank) / "alive").open("rb") as file:  # opened, as NFS then says what is, not what was
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return 0.0


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _segment(log: Path, written: int) -> BinaryIO:
    """The end of a log at so many bytes: what a crash left beyond is cut off, a full segment is followed by another, the oldest go."""
    log.mkdir(exist_ok=True, mode=0o700)
    starts = sorted(int(path.stem) for path in log.glob("*.log"))
    start = max((each for each in starts if each <= written), default=written)
    if written - start >= supervisor.LOG_SEGMENT_BYTES:
        start = written
    for old in [each for each in starts if each > written] + starts[: -supervisor.LOG_SEGMENTS_MAX]:
        (log / f"{old:016d}.log").unlink(missing_ok=True)
    file = (log / f"{start:016d}.log").open("r+b" if start in starts else "w+b")
    file.truncate(written - start)
    file.seek(written - start)
    return file


@contextlib.contextmanager
def _only_one(path: Path) -> Generator[bool]:
    """Whether nobody else is at it. A directory is made or it is not, on every file system; one left by a crash is old after a while."""
    try:
        os.utime(path.parent)  # now, by the clock that the other was made by
        if path.parent.stat().st_mtime - _mtime(path) > STALE_S and path.exists():
            path.rmdir()
        path.mkdir()
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()
