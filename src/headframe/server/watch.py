"""What cards say while they are in service: the last readings of each, what they come to, and by the minute what they were.

Kept in memory and bounded; a restart forgets it, what was concluded from it is in the store. A finding that is over is held for
some minutes, so that a card on the edge does not flap.
"""

import math
from array import array
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from headframe.data import text
from headframe.health.grade import typical
from headframe.health.judge import Verdict, judge
from headframe.health.rules import WATCH_RULES, Rule
from headframe.health.watch import LOADED_FROM, window
from headframe.health.xid import codes, slot
from headframe.model.api import CardReading
from headframe.model.fleet import Gpu
from headframe.model.health import CardHour, Finding, History, NodeHour, Report, Sample, Xid
from headframe.model.ids import GpuId, NodeId
from headframe.model.states import GpuState
from headframe.model.units import MS_PER_HOUR, faded
from headframe.model.world import World

WINDOW_MS = 60_000
SAMPLES_MAX, XIDS_MAX, LOSSES_MAX = 64, 64, 16
MINUTES_MAX = 360
"""Six hours of the charts, four bytes for each minute and datum."""
CLEAR_MS = 600_000
"""A finding counts for so long after its rule last fired."""
CHARTED = ("temperature_c", "power_w", "use", "sm_mhz")
MS_PER_MINUTE = 60_000


class Card:
    """One card's recent past."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self.xids: deque[Xid] = deque(maxlen=XIDS_MAX)
        self.losses: deque[int] = deque(maxlen=LOSSES_MAX)
        self.verdict = Verdict()
        self.lasting: dict[str, tuple[Finding, int]] = {}
        self.since_ms = 0
        self.minute = 0
        self.minutes: dict[str, array[float]] = {name: array("f") for name in CHARTED}

    def hear(self, sample: Sample, now_ms: int) -> None:
        """Another reading, stamped by the server: a node's clock may jump."""
        if self.samples and self.samples[-1].present and not sample.present:
            self.losses.append(now_ms)
        self.samples.append(msgspec.structs.replace(sample, at_ms=now_ms))
        while self.samples[0].at_ms <= now_ms - WINDOW_MS:
            self.samples.popleft()
        self._chart(now_ms // MS_PER_MINUTE)

    def _chart(self, minute: int) -> None:
        """The last reading of each minute; where there was none, or no answer, a gap."""
        missed = min(minute - self.minute, MINUTES_MAX) if self.minute else 1
        for name, values in self.minutes.items():
            values.extend([float("nan")] * max(0, missed))
            said = getattr(self.samples[-1], name)
            values[-1] = float("nan") if said is None else said
            del values[:-MINUTES_MAX]
        self.minute = max(minute, self.minute)

    def hour(self, gpu_id: GpuId, hour: int) -> CardHour | None:
        """What the minutes of an hour come to, None where there was no reading in it."""
        first = hour * 60 - self.minute - 1  # counted back from the newest minute, which is at -1
        said = {name: _between(values, first, first + 60) for name, values in self.minutes.items()}
        minutes = max(map(len, said.values()))
        heat = said["temperature_c"]
        means = {name: round(sum(known) / len(known), 3) for name, known in said.items() if known}
        return CardHour(gpu_id=gpu_id, minutes=minutes, temperature_max_c=max(heat, default=None), **means) if minutes else None

    def judged(self, gpu: Gpu, equals_mhz: float | None, rules: Sequence[Rule], now_ms: int) -> tuple[Finding, ...]:
        """What is wrong with it now, worst first. What was said before a person or a check put it into service counts no more."""
        if gpu.ready_ms > self.since_ms:
            self.since_ms, self.verdict, self.lasting = gpu.ready_ms, Verdict(), {}
        if gpu.state is not GpuState.READY:
            return ()
        xids, losses = tuple(xid for xid in self.xids if xid.at_ms > self.since_ms), tuple(at for at in self.losses if at > self.since_ms)
        kept = gpu.graded
        history = History(
            link_gen=kept.link_gen if kept else 0,
            link_width=(kept and kept.link_width) or gpu.pcie_width,
            xids=xids,
            missing_ms=losses,
            faults=faded(gpu.faults, gpu.faults_ms, now_ms),
        )
        self.verdict = judge(window(self.samples, equals_mhz), history, CODES, self.verdict, now_ms, rules)
        self.lasting |= {finding.rule: (finding, now_ms) for finding in self.verdict.findings}
        self.lasting = {rule: kept for rule, kept in self.lasting.items() if now_ms - kept[1] < CLEAR_MS}
        now = {finding.rule for finding in self.verdict.findings}
        return (*self.verdict.findings, *(finding for rule, (finding, _) in self.lasting.items() if rule not in now))


CODES = codes(text("xid.csv"))


class Watch:
    """All cards that were heard of."""

    def __init__(self, rules: Sequence[Rule] = WATCH_RULES) -> None:
        self.cards: dict[GpuId, Card] = {}
        self._rules = rules
        self._fresh: dict[GpuId, None] = {}
        self._unplaced: deque[tuple[NodeId, Xid]] = deque(maxlen=XIDS_MAX)

    def hear(self, report: Report, node_id: NodeId, now_ms: int) -> bool:
        """Take a node's report in, as of `now_ms`; whether there was anything in it."""
        for sample in report.samples:
            key = GpuId(sample.gpu_id)
            self.cards.setdefault(key, Card()).hear(sample, now_ms)
            self._fresh[key] = None
        self._unplaced.extend((node_id, msgspec.structs.replace(xid, at_ms=now_ms)) for xid in report.xids)
        return bool(report.samples or report.xids)

    def findings(self, world: World, now_ms: int) -> dict[GpuId, tuple[Finding, ...]]:
        """What is wrong with the cards that were heard of since this was last asked."""
        self._place(world)
        fresh, self._fresh = self._fresh, {}
        there = [key for key in fresh if key in world.gpus]
        usual = self._usual(world, there)
        return {key: self.cards[key].judged(world.gpus[key], usual.get(_kind(world.gpus[key])), self._rules, now_ms) for key in there}

    def _usual(self, world: World, keys: Sequence[GpuId]) -> dict[tuple[str, int], float]:
        """The median clock under load of equal cards at an equal power limit, where enough of them work."""
        clocks: dict[tuple[str, int], list[float]] = {}
        for key in keys:
            last = self.cards[key].samples[-1]
            if last.sm_mhz and (last.use or 0) >= LOADED_FROM:
                clocks.setdefault(_kind(world.gpus[key]), []).append(last.sm_mhz)
        return {kind: usual for kind, known in clocks.items() if (usual := typical(known))}

    def latest(self, gpu_id: GpuId) -> Sample | None:
        """The last reading of a card, None where there never was one."""
        card = self.cards.get(gpu_id)
        return card.samples[-1] if card else None

    def reading(self, gpu_id: GpuId) -> CardReading:
        """A card's last reading and its last hours."""
        card = self.cards.get(gpu_id)
        if card is None:
            return CardReading(gpu_id=gpu_id, sample=None)
        minutes = {name: tuple(None if math.isnan(value) else round(value, 3) for value in values) for name, values in card.minutes.items()}
        return CardReading(gpu_id=gpu_id, sample=card.samples[-1], minutes=minutes)

    def hours(self, world: World, hour: int) -> Iterator[NodeHour]:
        """What the cards said in an hour (its number since the epoch), machine by machine."""
        for node_id, gpus in list(world.node_gpus.items()):
            cards = tuple(said for key in list(gpus) if (card := self.cards.get(key)) and (said := card.hour(key, hour)))
            if cards:
                yield NodeHour(node_id=node_id, hour_ms=hour * MS_PER_HOUR, cards=cards)

    def _place(self, world: World) -> None:
        """Xids name a slot: the card in it, with the work that held it then."""
        while self._unplaced:
            node_id, xid = self._unplaced.popleft()
            for gpu_id, gpu in world.node_gpus.get(node_id, {}).items():
                if gpu_id in self.cards and slot(gpu.pci_bus) == xid.slot:
                    self.cards[gpu_id].xids.append(msgspec.structs.replace(xid, work=next((held.workload_id for held in world.holders(gpu)), "")))
                    self._fresh[gpu_id] = None


def _between(values: Sequence[float], first: int, last: int) -> list[float]:
    """The known ones of a stretch, in places counted back from the end; what is no longer there is not known."""
    size = len(values)
    return [value for value in values[max(0, size + first) : max(0, size + min(0, last))] if not math.isnan(value)]


def _kind(gpu: Gpu) -> tuple[str, int]:
    return gpu.model, gpu.max_w
