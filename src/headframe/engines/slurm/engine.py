"""A Slurm cluster as an engine: what is wanted is sent to it, what its jobs' keepers wrote on the shared path is what happened.

Slurm says which machines and jobs live, the journals say what the work did. Two looks are taken: at Slurm every LOOK_S, more seldom where a look takes long, and at the
shared path whenever a keeper leaves word. A start whose answer was lost is sent again only after a look that did not show it; a job that comes twice finds the directory
claimed and ends. While the controller is away work goes on, nothing is lost, and nothing new is sent.
"""

import asyncio
import contextlib
import logging
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from headframe.data import text
from headframe.engines.base import Sight
from headframe.engines.carry import Shell
from headframe.engines.slurm import topology
from headframe.engines.slurm.directory import BEAT_S, Shared, cache_of, erasing, owner_of, script
from headframe.engines.slurm.machines import kind_of, machine, node_id
from headframe.engines.slurm.rest import SlurmRest
from headframe.engines.slurm.seen import Seen, observed
from headframe.engines.slurm.shells import Place, open_step, reach_step
from headframe.engines.slurm.words import NAMED, JobRequest, SlurmJob, SlurmNode, SlurmRefused
from headframe.health.catalogue import catalogue
from headframe.model.engine import EngineSetup
from headframe.model.errors import Conflicting, HeadframeError, Unavailable
from headframe.model.fleet import Down, Machine, Volume
from headframe.model.ids import AllocationId, NodeId, is_allocation_id
from headframe.model.shell import ShellAsk
from headframe.model.states import Reason
from headframe.model.units import MILLI
from headframe.model.work import Allocation, LogLine, Workload

LOOK_S, LOOK_MAX_S, NEWS_S, IDLE_S = 2.0, 5.0, 0.05, 1.0
LOOK_SHARE = 0.05
"""Of the time that goes into looks, as far as LOOK_MAX_S allows: each is answered with all jobs that Slurm still remembers, thousands where they are short."""
WHOLE_MS = 5_000
"""So often the tick is told of everything."""
AWAY_MS = 10_000
"""A controller that has not answered for so long is away: nothing new goes there."""
SILENT_MS = 300_000
"""A machine on which a rank went silent gets nothing new for so long, unless Slurm says that it is down itself."""
MACHINES_MS = 60_000
"""So often the machines are told again."""
SENDERS = 8
"""So many starts are on their way at once."""
PAUSE_MAX_S = 15.0
KILL_S = 15
"""After its grace a keeper has so long to end the work before Slurm is asked to."""
EXTRA_MIN = 5
"""Slurm's own time limit is so much longer than the keeper's: it is the keeper that ends the work, with a reason."""
ERASE_MIB, ERASE_MIN = 100, 60
"""What a job has that deletes a cache."""
AWAY = "required node not available"
"""Slurm's word for a machine that has not answered it lately."""
_log = logging.getLogger("headframe")


class SlurmEngine:
    """See `Engine`. `setup` is the cluster in use, None where there is none; `workdirs` is where uploaded workdirs lie. Of several servers only the one
    that is `leading` looks and acts.
    """

    def __init__(
        self, setup: Callable[[], EngineSetup | None], workdirs: Path, clock_ms: Callable[[], int], leading: Callable[[], bool] = lambda: True
    ) -> None:
        self._setup = setup
        self._leading = leading
        self._workdirs = workdirs
        self._clock_ms = clock_ms
        self._wake: Callable[[], None] = lambda: None
        self._line: Line | None = None

    def listen(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        """Call `wake` when there is news."""
        del loop
        self._wake = wake

    async def run(self) -> None:
        """Be the engine of whichever cluster is set up, for ever."""
        while True:
            setup = self._setup()
            if setup is None:
                await asyncio.sleep(IDLE_S)
                continue
            self._line = Line(setup, self._workdirs, self._clock_ms, lambda: self._wake(), self._leading)
            try:
                await self._line.run(lambda setup=setup: self._setup() == setup)
            except OSError as error:
                _log.warning("the shared path %s can't be used: %s; trying again", setup.shared, error)
                await asyncio.sleep(PAUSE_MAX_S)
            except Exception:
                _log.exception("the line to Slurm broke; this is a bug in Headframe, it goes on by itself")
                await asyncio.sleep(PAUSE_MAX_S)
            finally:
                line, self._line = self._line, None
                await line.close()

    async def start(self, allocation: Allocation, workload: Workload) -> None:
        if self._line is not None:
            self._line.want(allocation, workload)

    async def stop(self, allocation: AllocationId, because: Reason, grace_s: int) -> None:
        if self._line is not None:
            await self._line.stop(allocation, because, grace_s)

    async def observe(self) -> Sight:
        return self._line.sight() if self._line is not None else Sight(nodes=(), observations=(), complete=True)

    async def forget(self, allocation: AllocationId) -> None:
        if self._line is not None:
            await self._line.forget(allocation)

    async def logs(self, allocation: Allocation, after: int, limit: int) -> Sequence[LogLine]:
        if self._line is None:
            raise Unavailable("the Slurm cluster that keeps these lines is not set up any more")
        return await asyncio.to_thread(self._line.shared.logs, allocation, after, min(limit, 2000))

    async def shell(self, allocation: Allocation, workload: Workload, ask: ShellAsk) -> Shell:
        return open_step(*self._place(allocation, workload), ask)

    async def reach(self, allocation: Allocation, workload: Workload, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await reach_step(*self._place(allocation, workload), port)

    def _place(self, allocation: Allocation, workload: Workload) -> tuple[EngineSetup, Place]:
        if self._line is None:
            raise Unavailable("the Slurm cluster that runs this is not set up any more")
        return self._line.setup, self._line.place(allocation, workload)

    async def erase(self, volume: Volume) -> None:
        if self._line is not None:
            await self._line.erase(volume)

    async def discard(self, allocation: Allocation) -> None:
        if self._line is not None:
            await asyncio.to_thread(self._line.shared.discard, allocation.id, allocation.workload_id)

    def knows(self, allocation: AllocationId) -> bool:
        """Whether it tells of this."""
        return self._line is not None and self._line.knows(allocation)


class Line:
    """One cluster while it is set up: what was last seen of it, and what is on its way to it."""

    def __init__(
        self, setup: EngineSetup, workdirs: Path, clock_ms: Callable[[], int], wake: Callable[[], None], leading: Callable[[], bool]
    ) -> None:
        self.setup = setup
        self._leading = leading
        self.shared = Shared(setup)
        self.rest = SlurmRest(setup, clock_ms)
        self._workdirs = workdirs
        self._clock_ms = clock_ms
        self._wake = wake
        self._looked_ms = self._answered_ms = 0
        self._first_ms = clock_ms()
        self._nodes: dict[NodeId, SlurmNode] = {}
        self._machines: tuple[Machine, ...] = ()
        self._leaves: dict[str, str] = {}
        self._machines_ms = 0
        self._seen: dict[AllocationId, Seen] = {}
        self._known = catalogue(text("gpus.csv"))
        self._queue: asyncio.Queue[tuple[Allocation, Workload]] = asyncio.Queue()
        self._sending: dict[AllocationId, None] = {}
        self._unsure_ms: dict[AllocationId, int] = {}
        self._silent: dict[NodeId, int] = {}
        self._forgotten: dict[str, AllocationId] = {}
        self._news: set[AllocationId] = set()
        self._whole_ms = 0

    async def close(self) -> None:
        """Let go of the connections."""
        await self.rest.close()

    async def run(self, wanted: Callable[[], bool]) -> None:
        """Until it is set up otherwise. Raises OSError where the shared path can't be used."""
        await asyncio.to_thread(self.shared.make)
        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(self._looking()), tasks.create_task(self._hearing())]
            loops += [tasks.create_task(self._sender()) for _ in range(SENDERS)]
            while wanted():  # noqa: ASYNC110 - asked once a second, changed once a year
                await asyncio.sleep(IDLE_S)
            for task in loops:
                task.cancel()

    def knows(self, allocation: AllocationId) -> bool:
        """Whether it has a directory that is not put away."""
        return allocation in self._seen

    def want(self, allocation: Allocation, workload: Workload) -> None:
        """Send it to Slurm, unless that was done, is being done, or can't be now."""
        if allocation.id in self._sending or not self._up() or self._unsure_ms.get(allocation.id, -1) >= self._looked_ms:
            return
        seen = self._seen.get(allocation.id)
        if seen is not None and (seen.sent or seen.over or seen.fenced_ms):
            return
        self._sending[allocation.id] = None
        self._queue.put_nowait((allocation, workload))

    async def stop(self, allocation: AllocationId, because: Reason, grace_s: int) -> None:
        """Tell the keepers; a job that has not begun is taken back, and what was never sent never will be."""
        if allocation in self._sending:
            return  # asked again with the next tick, when its fate is known
        now_ms, seen = self._clock_ms(), self._know(allocation)
        if seen.stopping is None:
            await asyncio.to_thread(seen.held.stop, because, grace_s)
            seen.stopping, seen.stop_ms = because, now_ms
        if seen.job is not None and not seen.job.over and (not seen.began or now_ms - seen.stop_ms > (grace_s + KILL_S) * 1000):
            await self._cancel(seen.job)
        if seen.job is None and not seen.began and self._looked_ms > max(seen.stop_ms, self._unsure_ms.get(allocation, 0)):
            await asyncio.to_thread(seen.held.conclude, now_ms, because, "stopped before it started")
            await self._read(allocation)

    def place(self, allocation: Allocation, workload: Workload) -> Place:
        """Where steps of its job run. Raises Conflicting where it does not run."""
        seen = self._seen.get(allocation.id)
        if seen is None or seen.over or not seen.claimed or not seen.names or (seen.job is not None and seen.job.over):
            raise Conflicting("Slurm does not run it now", "`headframe ps` says what it does")
        part = allocation.parts[0]
        container = f"headframe-{allocation.id}" + (f"-{part.rank}" if len(allocation.parts) > 1 else "")
        return Place(
            account=self.setup.account(allocation.project_id),
            job=seen.claimed,
            node=seen.names[0],
            rank=seen.held.rank(0),
            container=container if workload.spec.image else "",
        )

    async def forget(self, allocation: AllocationId) -> None:
        """Its end is recorded."""
        await asyncio.to_thread(self.shared.put_away, allocation)
        self._seen.pop(allocation, None)
        self._unsure_ms.pop(allocation, None)

    async def erase(self, volume: Volume) -> None:
        """On the shared path here; a cache by a job on its machine, once that has room for one."""
        if not volume.cache:
            await asyncio.to_thread(self.shared.erase, volume.id)
            return
        node, account = self._nodes.get(volume.node_id), self.setup.account(volume.project_id)
        try:
            if node is None:
                raise SlurmRefused("Slurm does not list that machine")
            text = erasing(cache_of(owner_of(account), volume.project_id, volume.name), self._clock_ms() // 1000)
            await self.rest.submit(
                JobRequest(
                    name="headframe-erase", comment="", script=text, nodes=(node.name,), cpus=max(1, node.threads), memory_mib=ERASE_MIB, gpus=(),
                    minutes=ERASE_MIN, output="/dev/null", cwd="/", partition=self.setup.partition,
                ), account,
            )  # fmt: skip
        except (HeadframeError, SlurmRefused, msgspec.DecodeError, ValueError) as error:
            _log.warning("the cache %s of %s stays on %s: %s", volume.name, volume.project_id, node.name if node else volume.node_id, error)

    def sight(self) -> Sight:
        """What is known now, every WHOLE_MS of all, in between of those that were read since; complete only with Slurm's own word of a moment ago."""
        now_ms = self._clock_ms()
        whole = now_ms - self._whole_ms >= WHOLE_MS
        told = sorted(self._seen if whole else self._seen.keys() & self._news)
        self._whole_ms, self._news = now_ms if whole else self._whole_ms, set()
        found = [each for key in told if (each := observed(self._seen[key], key, now_ms)) is not None]
        if not self._up():
            why = f"Slurm's controller has not answered for {(now_ms - max(self._answered_ms, self._first_ms)) // 1000} s"
            down = {key: Down(lost=True, why=why) for key in self._nodes} if now_ms - max(self._answered_ms, self._first_ms) > AWAY_MS else {}
            return Sight(nodes=(), observations=tuple(found), complete=False, down=down)
        down = {key: told for key, node in self._nodes.items() if (told := self._told_down(key, node, now_ms)) is not None}
        there = tuple(key for key in self._nodes if key not in down or not down[key].lost)
        return Sight(nodes=there, observations=tuple(found), complete=whole, machines=self._machines, down=down)

    def _up(self) -> bool:
        return self._answered_ms > 0 and self._clock_ms() - self._answered_ms <= AWAY_MS

    def _told_down(self, key: NodeId, node: SlurmNode, now_ms: int) -> Down | None:
        if node.lost:
            return Down(lost=True, why=f"Slurm: {'+'.join(sorted(node.states)).lower()}{f', {node.reason}' if node.reason else ''}")
        if now_ms < self._silent.get(key, 0):
            return Down(lost=True, why="a rank of a gang there went silent")
        if node.name in self._forgotten:
            return Down(
                lost=False, why=f"Slurm does not know {self._forgotten[node.name]} any more, which runs there, and would give its cards out again"
            )
        return Down(lost=False, why=f"Slurm: {node.reason or 'drained'}") if node.drained else None

    def _know(self, key: AllocationId) -> Seen:
        if key not in self._seen:  # else nothing is read for it
            self._seen[key] = Seen(self.shared.of(key))
        return self._seen[key]

    async def _looking(self) -> None:
        """Ask Slurm, again and again, more slowly while it does not answer."""
        failed = 0
        while True:
            if not self._leading():
                self._seen.clear()  # whoever leads next reads all anew
                self._answered_ms = 0
                await asyncio.sleep(IDLE_S)
                continue
            began_ms = self._clock_ms()
            try:
                await self._look()
                failed = 0
                self._wake()
            except (HeadframeError, SlurmRefused, msgspec.DecodeError, OSError) as error:
                failed += 1
                _log.warning("Slurm does not answer: %s; work goes on, nothing new is sent", error) if failed == 3 else None
            await asyncio.sleep(pause_s((self._clock_ms() - began_ms) / 1000, failed))

    async def _look(self) -> None:
        began_ms = self._clock_ms()
        nodes, jobs = await asyncio.gather(self.rest.nodes(), self.rest.jobs())
        now_ms = self._clock_ms()
        if anew := now_ms - self._machines_ms > MACHINES_MS:
            told = await topology.told()
            self._machines_ms, self._leaves = now_ms, self._leaves if told is None else told
        self._take_nodes(nodes, now_ms, anew=anew)
        there = await asyncio.to_thread(self.shared.held)
        for key in self._seen.keys() - set(there) - self._sending.keys():
            self._seen.pop(key, None)  # put away meanwhile
        new = [key for key in there if key not in self._seen]
        found = await asyncio.to_thread(lambda: [Seen(self.shared.of(key)) for key in new])
        self._seen = dict(zip(new, found, strict=True)) | self._seen  # what a sender knows by now stays
        mine: dict[AllocationId, list[SlurmJob]] = {}
        for job in jobs:
            if job.comment and is_allocation_id(job.comment) and (job.standard_output or "").startswith(f"{self.shared.root}/"):
                mine.setdefault(AllocationId(job.comment), []).append(job)
        for key, seen in self._seen.items():
            seen.look(mine.get(key, []), began_ms, now_ms)
        self._forgotten = {name: key for key, seen in self._seen.items() if seen.forgotten for name in seen.names}
        self._looked_ms, self._answered_ms = began_ms, now_ms
        for key in list(mine):
            await self._tidy(key, mine[key])
        for key, seen in list(self._seen.items()):
            await self._attend(key, seen, now_ms)

    def _take_nodes(self, nodes: Sequence[SlurmNode], now_ms: int, *, anew: bool) -> None:
        there = [node for node in nodes if not self.setup.partition or self.setup.partition in node.partitions]
        before = {} if anew else {each.node.id: each for each in self._machines}
        known, self._nodes = self._nodes, {node_id(self.setup, node.name): node for node in there}
        self._machines = tuple(
            before[key]
            if key in before and known.get(key) == node
            else machine(node, self.setup, self._known, now_ms, self._leaves.get(node.name, ""))
            for key, node in self._nodes.items()
        )

    async def _tidy(self, key: AllocationId, jobs: Sequence[SlurmJob]) -> None:
        """End jobs of attempts that were put away, and twins that came of a start whose answer was lost."""
        seen = self._seen.get(key)
        if seen is None and key in self._sending:
            return
        keep = seen.job.job_id if seen is not None and seen.job is not None else 0
        for job in jobs:
            if not job.over and job.job_id != keep:
                await self._cancel(job)

    async def _attend(self, key: AllocationId, seen: Seen, now_ms: int) -> None:
        """End for its keepers what they can't: gangs of which a rank went silent, and what Slurm gave up. Whatever still runs is told to end first."""
        if seen.over:
            return
        silent = await asyncio.to_thread(_silent, seen) if len(seen.ranks) > 1 and seen.started_ms() else []
        if silent:
            self._silent |= {node: now_ms + SILENT_MS for node, row in self._nodes.items() if row.name in silent}
        end = (Reason.NODE_LOST, f"{', '.join(silent)} went silent, other ranks did not") if silent else seen.given_up(now_ms)
        if end is None and not seen.fenced_ms:
            return
        await self._read(key)
        if seen.over:
            return  # its keepers had said so, and only their word was missed
        seen.fence = seen.fence or end
        if not seen.fenced_ms:
            await asyncio.to_thread(seen.held.stop, seen.fence[0] if seen.fence else Reason.NODE_LOST, 0)
            seen.fenced_ms = now_ms
        if seen.job is not None and not seen.job.over:
            await self._cancel(seen.job)
        await self._read(key)  # to take a job back may have taken long, and its keepers may have come to an end meanwhile
        if seen.fence is not None and not seen.over and seen.settled(now_ms):
            await asyncio.to_thread(seen.held.conclude, now_ms, *seen.fence)
            await self._read(key)

    async def _hearing(self) -> None:
        """Look where keepers leave word."""
        while True:
            heard = await asyncio.to_thread(self._heard) if self._seen and self._leading() else []
            if heard:
                self._news.update(heard)
                self._wake()
            await asyncio.sleep(NEWS_S if self._seen else IDLE_S)

    def _heard(self) -> list[AllocationId]:
        """Read what has word."""
        heard = self.shared.heard()
        for key in heard:
            if seen := self._seen.get(key):
                seen.read()
        return heard

    async def _read(self, key: AllocationId) -> None:
        seen = self._seen.get(key)
        if seen is not None:
            await asyncio.to_thread(seen.read)
            self._news.add(key)

    async def _sender(self) -> None:
        while True:
            allocation, workload = await self._queue.get()
            try:
                await self._send(allocation, workload)
            finally:
                self._sending.pop(allocation.id, None)
                self._wake()

    async def _send(self, allocation: Allocation, workload: Workload) -> None:
        """Once prepared, ask Slurm. A no is the attempt's end; no answer is looked into before it is asked again."""
        seen = self._know(allocation.id)
        held, now_ms = seen.held, self._clock_ms()
        nodes = [self._nodes[part.node_id] for part in allocation.parts if part.node_id in self._nodes]
        try:
            if len(nodes) != len(allocation.parts):
                raise SlurmRefused("Slurm does not list all of its machines any more")
            await asyncio.to_thread(self._prepare, allocation, workload, nodes, now_ms)
            job_id = await self.rest.submit(self._request(allocation, workload, nodes), self.setup.account(allocation.project_id))
            await asyncio.to_thread(held.send, now_ms, job_id)
        except (Unavailable, msgspec.DecodeError) as error:
            self._unsure_ms[allocation.id] = self._clock_ms()
            _log.warning("%s: Slurm was asked to start it and did not answer: %s", allocation.id, error)
        except SlurmRefused as no:
            reason, why = reason_of(no), f"placed on {', '.join(node.name for node in nodes)}, and Slurm says: {no}"
            if reason is Reason.PREEMPTED:  # Slurm may have taken it all the same, and start it once its machine is back
                await asyncio.to_thread(held.stop, reason, 0)
                seen.fence, seen.fenced_ms = (reason, why), self._clock_ms()
            else:
                await asyncio.to_thread(held.conclude, now_ms, reason, why)
        except (OSError, ValueError, tarfile.TarError) as error:
            await asyncio.to_thread(held.conclude, now_ms, Reason.START_FAILED, f"the shared path could not be prepared: {error}")
        await self._read(allocation.id)

    def _prepare(self, allocation: Allocation, workload: Workload, nodes: Sequence[SlurmNode], now_ms: int) -> None:
        """What its keepers need, and that Slurm is about to be asked."""
        self.shared.prepare(allocation, workload, [node.name for node in nodes], nodes[0].address or nodes[0].name, self._workdirs)
        self.shared.of(allocation.id).send(now_ms)

    def _request(self, allocation: Allocation, workload: Workload, nodes: Sequence[SlurmNode]) -> JobRequest:
        part = allocation.parts[0]
        kinds: dict[str, int] = {}
        for share in part.shares:
            kind = kind_of(nodes[0], share.model, self._known)
            kinds[kind] = kinds.get(kind, 0) + 1
        threads = max(1, nodes[0].threads)
        minutes = -(-workload.spec.max_duration_s // 60) + EXTRA_MIN if workload.spec.max_duration_s else 0
        held = self.shared.of(allocation.id).path
        return JobRequest(
            name=f"{NAMED}{allocation.id}", comment=allocation.id, script=script(self.setup, self.shared.keeper, held, len(nodes)), nodes=tuple(node.name for node in nodes),
            cpus=max(1, part.cpu_milli // MILLI) * threads, memory_mib=part.memory_mib, gpus=tuple(sorted(kinds.items())), minutes=minutes,
            output=str(held / "slurm.out"), cwd="/", partition=self.setup.partition,
        )  # fmt: skip

    async def _cancel(self, job: SlurmJob) -> None:
        with contextlib.suppress(HeadframeError, SlurmRefused):
            await self.rest.cancel(job.job_id, job.user_name or self.setup.user)


def pause_s(took_s: float, failed: int) -> float:
    """How long after a look that took so long, and so many that failed before it, the next one is."""
    return min(LOOK_MAX_S, max(LOOK_S * max(1, failed), took_s / LOOK_SHARE))


def reason_of(no: SlurmRefused) -> Reason:
    """Why a start that Slurm refused ended: where its machine is away nothing is at fault, so it is no attempt, and tried again after a pause."""
    return Reason.PREEMPTED if AWAY in str(no).lower() else Reason.NODE_FAULT


def _silent(seen: Seen) -> list[str]:
    """The machines of a gang whose ranks have said nothing for long, while another's has just now: the shared path is there, they are not."""
    beats = seen.held.beats()
    newest = max(beats, default=0.0)
    late = [number for number, at in enumerate(beats) if at and newest - at > 3 * BEAT_S and not seen.ended(number)]
    return [seen.names[number] for number in late if number < len(seen.names)]
