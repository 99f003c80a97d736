"""How well sick cards are told from well ones: months of a fleet under ailments at published rates, through the real watch, rules and tick.

Each ailment is what a card would say, minute by minute, and the truth about it. Found are the delay until a sick card is out of service, the well ones that were
taken, and how much of the fleet a mass false alarm takes. The promises of `checkers` hold throughout: no work starts on a card that is not ready.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from headframe.model.command import MoveGpu
from headframe.model.event import Event
from headframe.model.fleet import Gpu
from headframe.model.health import Report, Sample, Xid
from headframe.model.ids import GpuId, KeyId, NodeId
from headframe.model.states import GpuState
from headframe.model.units import MS_PER_DAY, MS_PER_HOUR
from headframe.simulate.world import START_MS, Config, Simulation

MINUTE_MS, YEAR_H = 60_000, 8766
MEND_MS = MS_PER_DAY
"""A person is at a card that was taken within a day, and puts it back well."""


class Ailment(msgspec.Struct, frozen=True, kw_only=True):
    """What cards may have: how often (per card and year), for how long, whether they are sick, and what they say meanwhile."""

    name: str
    per_year: float
    minutes: int
    sick: bool
    says: Callable[[int], dict[str, Any]]
    xid: int = 0
    source: str = ""


def _hot(_minute: int) -> dict[str, Any]:
    return {"memory_temperature_c": 108, "use": 1.0}


AILMENTS = (
    Ailment(name="falls off the bus (Xid 79)", per_year=0.030, minutes=60, sick=True, xid=79, says=lambda _: {"present": False}, source="RSC, Llama 3"),
    Ailment(name="uncontained memory error (Xid 95)", per_year=0.020, minutes=30, sick=True, xid=95, says=lambda _: {"ecc_uncorrected": 1}, source="Delta"),
    Ailment(name="row remap failed", per_year=0.004, minutes=60, sick=True, says=lambda _: {"remap_failed": True}, source="Delta"),
    Ailment(name="GSP hangs (Xid 119)", per_year=0.015, minutes=30, sick=True, xid=119, says=lambda _: {"answer_ms": 31_000}, source="Delta, Llama 3"),
    Ailment(name="memory at 108 °C for an hour", per_year=0.050, minutes=60, sick=True, says=_hot, source="ours, for GDDR6X"),
    Ailment(name="power brake for half an hour", per_year=0.010, minutes=30, sick=True, says=lambda _: {"reasons": 0x80, "use": 1.0}, source="ours"),
    Ailment(name="falls off, comes back by itself, three times", per_year=0.004, minutes=12, sick=True, says=lambda m: {"present": m % 4 != 0}, source="ours"),
    Ailment(name="a program's fault (Xid 13)", per_year=2.0, minutes=2, sick=False, xid=13, says=lambda _: {}, source="Delta: most of all Xids"),
    Ailment(name="a program's fault (Xid 31)", per_year=2.0, minutes=2, sick=False, xid=31, says=lambda _: {}, source="Delta: MMU"),
    Ailment(name="memory at 108 °C for three minutes", per_year=0.5, minutes=3, sick=False, says=_hot, source="ours"),
    Ailment(name="held back by its power limit", per_year=1.0, minutes=30, sick=False, says=lambda _: {"reasons": 0x4, "use": 1.0}, source="usual"),
    Ailment(name="link asleep while idle", per_year=1.0, minutes=30, sick=False, says=lambda _: {"link_gen": 1, "link_width": 16, "use": 0.0}, source="usual"),
    Ailment(name="corrected memory errors", per_year=0.2, minutes=10, sick=False, says=lambda m: {"ecc_corrected": 200 * m}, source="usual"),
    Ailment(name="driver slow for a while", per_year=0.3, minutes=5, sick=False, says=lambda _: {"answer_ms": 6_000}, source="usual"),
)  # fmt: skip


class Case(msgspec.Struct, kw_only=True):
    """One card that had something: since when, and when it was taken."""

    ailment: Ailment
    card: GpuId
    since_ms: int
    taken_ms: int = 0


class WardReport(msgspec.Struct, frozen=True, kw_only=True):
    """What it came to: per ailment how many cases, how many were taken, and the delay in seconds; what a mass alarm took at most."""

    cards: int
    days: float
    rows: tuple[tuple[str, bool, int, int, float, float], ...]
    alarm_taken: int
    alarm_cards: int


class Ward(Simulation):
    """A calm simulation (machines, servers and disk are well) whose cards fall ill; `factor` makes all ailments so much more frequent."""

    def __init__(self, config: Config, *, factor: float = 1.0, alarm: bool = True) -> None:
        super().__init__(msgspec.structs.replace(config, faults=False))
        self.cases: list[Case] = []
        self._ill: dict[GpuId, Case] = {}
        self._taken: set[GpuId] = set()
        self._alarm = alarm
        self._factor = factor
        self._alarmed = False
        self.alarm_taken = 0

    def watched(self) -> WardReport:
        """Run, and what it came to."""
        outcome = self.run()
        rows: list[tuple[str, bool, int, int, float, float]] = []
        for ailment in AILMENTS:
            cases = [case for case in self.cases if case.ailment is ailment]
            delays = sorted((case.taken_ms - case.since_ms) / 1000 for case in cases if case.taken_ms)
            middle, late = (delays[len(delays) // 2], delays[len(delays) * 99 // 100]) if delays else (0.0, 0.0)
            rows.append((ailment.name, ailment.sick, len(cases), len(delays), middle, late))
        return WardReport(
            cards=len(self.cards), days=outcome.simulated_hours / 24, rows=tuple(rows), alarm_taken=self.alarm_taken, alarm_cards=len(self.cards)
        )

    def _mischief(self) -> None:
        """Called once, at the start: every ailment's first case is drawn."""
        for ailment in AILMENTS:
            self._next(ailment)
        if self._alarm:
            self._at(START_MS + self.config.hours * MS_PER_HOUR // 2, self._mass_alarm)

    def _next(self, ailment: Ailment) -> None:
        rate = self._factor * ailment.per_year * len(self.cards) / (YEAR_H * MS_PER_HOUR)
        at_ms = self.at_ms + int(self.rng.expovariate(rate)) + 1
        if at_ms < START_MS + self.config.hours * MS_PER_HOUR:
            self._at(at_ms, lambda: self._begin(ailment))

    def _begin(self, ailment: Ailment) -> None:
        self._next(ailment)
        card = self.rng.choice(self.cards)
        if card in self._ill or card in self._taken or self._alarmed:
            return
        case = Case(ailment=ailment, card=card, since_ms=self.at_ms)
        self.cases.append(case)
        self._ill[card] = case
        self._go_on(case, 0)

    def _go_on(self, case: Case, minute: int) -> None:
        """The card speaks each minute until its time is over; then it says that it is well."""
        over = minute >= case.ailment.minutes
        said = {} if over else case.ailment.says(minute)
        xids = (Xid(at_ms=0, code=case.ailment.xid, slot=_slot(case.card)),) if case.ailment.xid and minute == 0 else ()
        self._tell(case.card, said, xids)
        if over:
            self._ill.pop(case.card, None)
        else:
            self._at(self.at_ms + MINUTE_MS, lambda: self._go_on(case, minute + 1))

    def _tell(self, card: GpuId, said: dict[str, Any], xids: Sequence[Xid]) -> None:
        report = Report(samples=(msgspec.structs.replace(_WELL, gpu_id=card, **said),), xids=tuple(xids))
        for server in self.servers:
            assert server is not None
            server.watch.hear(report, NodeId(f"node-{card[4:7]}"), self.at_ms)
        self._at(self.at_ms + 1, self._wake)

    def _mass_alarm(self) -> None:
        """A bad driver says of every card that it is gone, for ten minutes."""
        self._alarmed, before = True, len(self._taken)
        self._say(self.cards, present=False)

        def over() -> None:
            self.alarm_taken = len(self._taken) - before
            self._say(self.cards, present=True)
            self._alarmed = False

        self._at(self.at_ms + 10 * MINUTE_MS, over)

    def _committed(self, events: Sequence[Event]) -> None:
        super()._committed(events)
        for row in (row for event in events for row in event.rows if isinstance(row, Gpu)):
            if row.state is GpuState.SUSPECT and row.id not in self._taken:
                self._taken.add(row.id)
                case = self._ill.get(row.id)
                if case is not None:
                    case.taken_ms = self.at_ms
                self._at(self.at_ms + MEND_MS, lambda card=row.id: self._mend(card))

    def _mend(self, card: GpuId) -> None:
        self._try(MoveGpu(gpu_id=card, enable=True, by=KeyId("op")))
        self._taken.discard(card)


_WELL = Sample(gpu_id="", at_ms=0, temperature_c=60, memory_temperature_c=80, reasons=0, use=0.5, answer_ms=10, ecc_uncorrected=0, ecc_corrected=0,
               remap_failed=False)  # fmt: skip


def _slot(card: GpuId) -> str:
    """The place on its machine's bus that a simulated card has."""
    return f"0000:{int(card.rpartition('-')[2]) + 1:02x}:00"
