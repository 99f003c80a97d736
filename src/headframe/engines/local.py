"""Runs allocations on this machine so that they outlive the server: each has a directory and a detached keeper process.

The directory is the truth: `spec.json` (what to run), `journal` (what happened, fsynced), `lock` (held while its keeper
lives), `stop.json` (asked to end), `log/`. Adopting work after a crash is reading directories. A process in its own session
is no tenant boundary; where podman is installed and an image is named, it runs in a container, which is not called one either.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from headframe.engines import supervisor
from headframe.engines.base import GRACE_S, Sight
from headframe.engines.carry import Shell
from headframe.engines.cgroup import make_cgroups, remove_cgroups
from headframe.engines.runtime import LOGIN, SETUP_EXIT, Launch, here, launch_for, podman_path
from headframe.engines.shell import ChildShell, listens, open_shell
from headframe.files import write_private
from headframe.model.errors import Conflicting
from headframe.model.fleet import Volume
from headframe.model.ids import AllocationId, GpuId, NodeId, is_allocation_id
from headframe.model.shell import ShellAsk
from headframe.model.states import AllocationState, Reason
from headframe.model.units import MILLI
from headframe.model.work import CHECK, Allocation, LogLine, Observation, Workload, mounted_id

LOG_LINES_MAX = 2000
KEEPER_AGAIN_MS, KEEPER_LIMIT_MS = 2_000, 20_000
"""A keeper that has not shown itself gets a second one after the first time, and is given up on after the second."""


class JournalLine(msgspec.Struct, frozen=True):
    """One fact of a keeper's journal."""

    event: str
    at_ms: int
    pid: int = 0
    boot_id: str = ""
    reason: str = ""
    exit_code: int | None = None
    detail: str = ""
    unclean: tuple[GpuId, ...] = ()


Clean = Callable[[Sequence[str]], Awaitable[dict[str, str]]]
"""Hands whole cards over to their next holder: what could not be made clean, by UUID, with the reason."""
_journal_line = msgspec.json.Decoder(JournalLine)


class LocalEngine:
    """See `Engine`; `workdirs` is where uploaded workdirs lie, by digest; `wake` is called when a keeper has news. With a `lease`, work ends
    by itself once the time in that file (seconds of CLOCK_BOOTTIME) is past.
    """

    def __init__(
        self,
        root: Path,
        node_id: NodeId,
        workdirs: Path,
        clock_ms: Callable[[], int],
        boot_id: str,
        lease: Path | None = None,
        clean: Clean | None = None,
    ) -> None:
        self._node_id = node_id
        self._active, self._ended = root / "active", root / "ended"
        self._checkpoints = root / "checkpoints"
        self._volumes = root / "volumes"
        self._workdirs = workdirs
        self._clock_ms = clock_ms
        self._boot_id = boot_id
        self._lease = lease
        self._clean = clean
        self._handing: dict[str, asyncio.Task[None]] = {}
        self._wake: Callable[[], None] = lambda: None
        self._socket_path = root / "notify.sock"
        self._over: dict[str, Observation] = {}
        self._spawned: list[subprocess.Popen[bytes]] = []
        self._spare: subprocess.Popen[bytes] | None = None
        self._handed_ms: dict[str, int] = {}
        self._shells: dict[str, list[ChildShell]] = {}
        for path in (self._active, self._ended, self._checkpoints, self._volumes):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def listen(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Hear keepers' nudges on a datagram socket; the journal stays the truth."""
        with contextlib.suppress(FileNotFoundError):
            self._socket_path.unlink()
        heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        heard.setblocking(False)
        heard.bind(str(self._socket_path))

        def ready() -> None:
            with contextlib.suppress(BlockingIOError):
                while heard.recv(256):
                    pass
            wake()

        self._wake = wake
        loop.add_reader(heard, ready)

    async def start(self, allocation: Allocation, workload: Workload) -> None:
        if any(part.node_id != self._node_id for part in allocation.parts):
            return  # another machine's: its own engine starts it
        directory = self._active / allocation.id
        if directory.name in self._handing or (self._ended / allocation.id).exists() or (directory / "journal").exists() or _locked(directory):
            return
        try:
            if self._given_up(directory):
                return
            await asyncio.to_thread(self._prepare, directory, allocation, workload)
            cards = [share.gpu_id for part in allocation.parts for share in part.shares if share.milli == MILLI]
            if self._clean is not None and cards and workload.spec.type != CHECK:
                handing = self._handed_over(directory, cards, self._clean)  # ends by itself, in bounded time; cut off, it is begun again
                self._handing[directory.name] = asyncio.create_task(handing)  # noqa: TID251
            else:
                self._spawn(directory)
        except (OSError, tarfile.TarError, ValueError) as error:
            self._journal_end(directory, Reason.START_FAILED, f"this machine could not start it: {error}")

    async def stop(self, allocation: AllocationId, because: Reason, grace_s: int) -> None:
        assert is_allocation_id(allocation), allocation
        directory = self._active / allocation
        if (self._ended / allocation).exists():
            return
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (directory / "stop.json").exists():
            write_private(directory / "stop.json", json.dumps({"reason": because, "grace_s": grace_s}).encode())
        pid = next((line.pid for line in read_journal(directory) if line.event == "starting"), 0)
        if pid and _locked(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)
        elif not (directory / "journal").exists() and not _locked(directory):
            self._journal_end(directory, because, "stopped before it started")

    async def observe(self) -> Sight:
        self._spawned = [process for process in self._spawned if process.poll() is None]
        seen = [found for path in sorted(self._active.iterdir()) if (found := self._look(path)) is not None]
        return Sight(nodes=(self._node_id,), observations=tuple(seen))

    async def forget(self, allocation: AllocationId) -> None:
        assert is_allocation_id(allocation), allocation
        directory = self._active / allocation
        if directory.exists():
            await asyncio.to_thread(self._put_away, directory)
        self._over.pop(allocation, None)
        self._handed_ms.pop(allocation, None)

    async def logs(self, allocation: Allocation, after: int, limit: int) -> Sequence[LogLine]:
        for root in (self._active, self._ended):  # in this order: it may be put away while we read, and is never brought back
            with contextlib.suppress(FileNotFoundError):
                lines = await asyncio.to_thread(read_log, root / allocation.id / "log", after, min(limit, LOG_LINES_MAX))
                if lines:
                    return lines
        return []

    async def erase(self, volume: Volume) -> None:
        await asyncio.to_thread(shutil.rmtree, self._volumes / volume.id, ignore_errors=True)

    async def discard(self, allocation: Allocation) -> None:
        for files in (self._ended / allocation.id / "log", self._checkpoints / allocation.workload_id):
            await asyncio.to_thread(shutil.rmtree, files, ignore_errors=True)

    async def shell(self, allocation: Allocation, workload: Workload, ask: ShellAsk) -> Shell:
        spec, _ = await asyncio.to_thread(self._running, allocation)
        argv = list(ask.argv or ("/bin/sh", "-c", LOGIN))
        if workload.spec.image:
            flags = ["--interactive", *(["--tty"] if ask.rows else []), f"--env=TERM={ask.term}"]
            argv = [podman_path() or "podman", "exec", *flags, f"headframe-{allocation.id}", *argv]
        opened = open_shell(ask, argv, spec["env"], spec["cwd"], spec["cgroups"])
        self._shells[allocation.id] = [*(each for each in self._shells.get(allocation.id, ()) if not each.over), opened]
        return opened

    async def reach(self, allocation: Allocation, workload: Workload, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        del workload
        _, pid = await asyncio.to_thread(self._running, allocation)
        roots = [pid, *(shell.pid for shell in self._shells.get(allocation.id, ()))]
        if not await asyncio.to_thread(listens, roots, port):
            raise Conflicting(f"nothing of this work listens at port {port}", "start its server first, or name another port")
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError as error:
            raise Conflicting(f"port {port} does not answer: {error.strerror}", "does its server listen at 127.0.0.1?") from None

    def _running(self, allocation: Allocation) -> tuple[dict[str, Any], int]:
        """What its keeper was told, and the work's process; Conflicting where it does not run."""
        directory = self._active / allocation.id
        lines = read_journal(directory)
        pid = next((line.pid for line in reversed(lines) if line.event == "running"), 0)
        if not pid or not _locked(directory) or any(line.event == "ended" for line in lines):
            raise Conflicting("it does not run now", "`headframe ps` says what it does")
        return json.loads((directory / "spec.json").read_bytes()), pid

    def _close_shells(self, allocation: str) -> None:
        for shell in self._shells.pop(allocation, ()):
            shell.close()

    def told(self, allocation: AllocationId) -> tuple[str, ...]:
        """What a check wrote: what it found. Of other work, nothing."""
        directory = self._active / allocation
        try:
            kind = json.loads((directory / "spec.json").read_bytes()).get("type")
            return tuple(line.text for line in read_log(directory / "log", 0, LOG_LINES_MAX)) if kind == CHECK else ()
        except (OSError, ValueError):
            return ()

    def knows(self, allocation: AllocationId) -> bool:
        """Whether it runs here, or its end here is not yet recorded."""
        return is_allocation_id(allocation) and (self._active / allocation).exists()

    def _look(self, directory: Path) -> Observation | None:
        over = self._over.get(directory.name)
        if over is not None:
            return over
        alive = _locked(directory)  # before the journal: a keeper writes its end before it lets go
        lines = read_journal(directory)
        key = AllocationId(directory.name)
        started_ms = next((line.at_ms for line in lines if line.event in {"setup", "running"}), 0)
        ended = next((line for line in lines if line.event == "ended"), None)
        if ended is not None:
            self._close_shells(key)
            self._over[key] = Observation(
                allocation_id=key, state=AllocationState.ENDED, started_ms=started_ms, ended_ms=ended.at_ms,
                reason=Reason(ended.reason), exit_code=ended.exit_code, detail=ended.detail, unclean=ended.unclean, seen_ms=ended.at_ms,
            )  # fmt: skip
            return self._over[key]
        if alive:
            now_ms = self._clock_ms()
            state = AllocationState.RUNNING if lines and lines[-1].event == "running" else AllocationState.STARTING
            return Observation(allocation_id=key, state=state, started_ms=started_ms, seen_ms=now_ms)
        return self._orphan(directory, lines, started_ms)

    def _orphan(self, directory: Path, lines: Sequence[JournalLine], started_ms: int) -> Observation | None:
        """No keeper and no end: it never started (start it again), or its keeper was killed (end it, in the customer's favour)."""
        if not lines:
            return None
        for line in lines:
            if line.boot_id == self._boot_id or not line.boot_id:
                _kill_session(line.pid)
        rebooted = lines[0].boot_id not in {"", self._boot_id}
        reason = Reason.NODE_LOST if rebooted else Reason.NODE_FAULT
        detail = "the machine restarted" if rebooted else "its keeper process was killed"
        self._journal_end(directory, reason, detail, at_ms=started_ms or lines[-1].at_ms)
        return self._look(directory)

    def _prepare(self, directory: Path, allocation: Allocation, workload: Workload) -> None:
        """Everything the keeper needs, on disk, before it exists; doing it again is harmless."""
        work = directory / "work"
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
        if workload.workdir_digest:
            with tarfile.open(self._workdirs / f"{workload.workdir_digest}.tar") as archive:
                archive.extractall(work, filter="data")
        checkpoint = self._checkpoints / workload.id
        if workload.spec.checkpoint:
            checkpoint.mkdir(exist_ok=True, mode=0o700)
        mounts = {mount: self._volumes / mounted_id(workload, mount, allocation.parts[0].node_id) for mount in workload.spec.volumes}
        for volume in mounts.values():
            volume.mkdir(exist_ok=True, mode=0o700)
        launch = launch_for(here(allocation), allocation, workload, work, checkpoint, mounts)
        set_aside(directory)
        write_private(directory / "spec.json", json.dumps(self._spec(allocation, workload, work, launch)).encode())

    def _spec(self, allocation: Allocation, workload: Workload, work: Path, launch: Launch) -> dict[str, Any]:
        return {
            "id": allocation.id, "rank": allocation.parts[0].rank, "boot_id": self._boot_id, "cwd": str(work),
            "setup": launch.setup, "setup_shown": workload.spec.setup, "run": launch.run, "env": launch.env,
            "on_stop": launch.on_stop, "max_duration_s": workload.spec.max_duration_s, "lease": str(self._lease or ""), "type": workload.spec.type, "grace_s": GRACE_S,
            "setup_exit": SETUP_EXIT if workload.spec.image and workload.spec.setup else None,
            "cgroups": make_cgroups(self._cgroup(allocation.id), allocation.parts[0]) if not workload.spec.image else [],
        }  # fmt: skip

    def _spawn(self, directory: Path) -> None:
        """Hand the directory to the keeper that waits, or to a new one; then have another wait for the next."""
        keeper, self._spare = self._spare or self._keeper(), None
        if not _hand_over(keeper, directory):  # the one that waited was killed
            keeper = self._keeper()
            _hand_over(keeper, directory)
        self._spawned.append(keeper)
        self._spare = self._keeper()

    async def _handed_over(self, directory: Path, cards: Sequence[str], clean: Clean) -> None:
        """Start what waits for its cards once they are clean; work that meets others' remains never starts."""
        try:
            unclean = await clean(cards)
            if unclean:
                detail = "; ".join(f"{card}: {why}" for card, why in unclean.items())
                self._journal_end(directory, Reason.NODE_FAULT, f"not clean: {detail}", unclean=tuple(unclean))
            elif not (directory / "journal").exists():  # it may have been stopped meanwhile
                self._handed_ms[directory.name] = self._clock_ms()
                self._spawn(directory)
        except OSError as error:
            self._journal_end(directory, Reason.START_FAILED, f"this machine could not start it: {error}")
        finally:
            del self._handing[directory.name]
            self._wake()

    def _given_up(self, directory: Path) -> bool:
        """Whether to wait for the keeper that was handed this; one that never shows itself ends the attempt, with what it said."""
        now_ms = self._clock_ms()
        waited_ms = now_ms - self._handed_ms.setdefault(directory.name, now_ms)
        if waited_ms >= KEEPER_LIMIT_MS:
            said = directory / "keeper.err"
            last = said.read_text(errors="replace").strip().splitlines()[-1:] if said.exists() else []
            self._journal_end(directory, Reason.START_FAILED, "; ".join(["its keeper process did not start", *last]))
        return waited_ms > 0 and (waited_ms >= KEEPER_LIMIT_MS or waited_ms < KEEPER_AGAIN_MS)

    def _keeper(self) -> subprocess.Popen[bytes]:
        """A keeper that waits for its work: starting an interpreter is most of what starting costs."""
        argv = [sys.executable, "-I", "-S", supervisor.__file__, str(self._socket_path)]
        return subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, close_fds=True,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"}, cwd="/",
        )  # fmt: skip

    def _journal_end(self, directory: Path, reason: Reason, detail: str, at_ms: int = 0, unclean: Sequence[str] = ()) -> None:
        """An end written by the engine, only where no keeper lives to write one."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _claimed(directory) as mine:
            if mine and not any(line.event == "ended" for line in read_journal(directory)):
                self._append_end(directory, reason, detail, at_ms, unclean)

    def _append_end(self, directory: Path, reason: Reason, detail: str, at_ms: int, unclean: Sequence[str]) -> None:
        fact = {"event": "ended", "at_ms": at_ms or self._clock_ms(), "reason": reason, "exit_code": None, "detail": detail[:500], "unclean": unclean}
        with (directory / "journal").open("ab") as journal:
            journal.write(json.dumps(fact).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())

    def _cgroup(self, allocation: str) -> str:
        """A name that no other engine on this machine uses."""
        return f"{allocation}-{zlib.crc32(str(self._active).encode()):08x}"

    def _put_away(self, directory: Path) -> None:
        """The work's own files go, the journal and the log stay."""
        remove_cgroups(self._cgroup(directory.name))
        shutil.rmtree(directory / "work", ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            directory.rename(self._ended / directory.name)


def _hand_over(keeper: subprocess.Popen[bytes], directory: Path) -> bool:
    """Tell a waiting keeper what to keep; False if it is gone. If it goes right after, the next tick starts another."""
    assert keeper.stdin is not None
    try:
        keeper.stdin.write(f"{directory}\n".encode())
        keeper.stdin.close()
    except BrokenPipeError:
        return False
    return True


def read_log(directory: Path, after: int, limit: int) -> list[LogLine]:
    """Up to `limit` lines from byte offset `after`; what was rotated away is skipped. A line still being written is left."""
    segments = sorted((int(path.stem), path) for path in directory.glob("*.log"))
    lines: list[LogLine] = []
    for number, (offset, path) in enumerate(segments):
        following = segments[number + 1][0] if number + 1 < len(segments) else None
        if following is not None and following <= after:
            continue
        with path.open("rb") as file:
            at = max(after, offset)
            file.seek(at - offset)
            for raw in file:
                if len(lines) == limit or not raw.endswith(b"\n"):
                    return lines
                at += len(raw)
                lines.append(_parse(raw, at))
    return lines


def _parse(raw: bytes, following: int) -> LogLine:
    at_ms, rank, stream, text = raw[:-1].decode("utf-8", "replace").split(" ", 3)
    return LogLine(at_ms=int(at_ms), rank=int(rank), stream=stream, text=text, next=following)


def set_aside(directory: Path) -> None:
    """What a keeper needs to tell how its work ended, whatever that does to the disk or its quota: room for its journal, and a directory for its log."""
    (directory / "log").mkdir(exist_ok=True, mode=0o700)
    write_private(directory / "room", b" " * supervisor.ROOM_BYTES, durable=False)


def read_journal(directory: Path) -> list[JournalLine]:
    """What happened, in order; a line cut off by a power loss does not count."""
    try:
        data = (directory / "journal").read_bytes()
    except FileNotFoundError:
        return []
    return list(_complete(data))


def _complete(data: bytes) -> Iterator[JournalLine]:
    for raw in data.split(b"\n")[:-1]:
        with contextlib.suppress(msgspec.DecodeError):
            yield _journal_line.decode(raw)


def _locked(directory: Path) -> bool:
    """Whether a keeper lives: it holds the lock for its whole life, and the kernel lets go when it dies."""
    try:
        handle = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def _claimed(directory: Path) -> Generator[bool]:
    """Hold a keeper's lock, so that none can start meanwhile; False if one lives."""
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def _kill_session(pid: int) -> None:
    """What a killed keeper left behind: the session that it had given the work."""
    for member in supervisor.descendants(pid) if pid else []:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(member, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if pid and os.getsid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
