"""What each watt does: a linear programme over (pool of equal cards, work, cap, interval), solved by HiGHS. Pure, but for the solver's own time limit.

Maximised: what work brings at the speed that its cap leaves, less energy at the interval's price, less what a new peak would cost, less what lateness costs. Kept: cards of
a pool, demand (work that can wait has a backlog), each rack's watts, the site's watts at the meter in each interval. Firm work that does not fit is short by the largest
penalty, so that there is always an answer and the ladder (`shed.py`) has the last word. Caps as modes keep the concave curves exact without further rows. The marginal prices
(duals) are what a card-hour and a kWh are worth: below them nothing should be sold. Counts need not be
whole; rounded down (`whole`) they were measured to lose 0.15 to 0.32 % against an integer programme.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from headframe.dispatch.power import modes
from headframe.dispatch.tariff import Peak
from headframe.model.power import LoadClass

if TYPE_CHECKING:
    import highspy

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SHORT_USD_H = 1000.0
"""What a card-hour of firm work that can't be served is taken to cost: more than anything brings."""
LATE_SHARE_H = 0.002
"""What an hour's delay of work that can wait costs, of its worth: enough to do it rather today."""
LEFT_SHARE, LEFT_QUANTILE = 0.99, 0.25
"""What work that still waits at the end of the horizon is worth, of what it would bring in hours as cheap as the horizon's cheapest quarter, up to as much work as comes within
the horizon: of what is left beyond that nothing is counted, or it would be put off for ever wherever watts are short.
"""
INFINITY = math.inf
PRIMAL = 4
"""HiGHS' number for the primal simplex method: without a basis it took a third to a half of the dual one's time here, from one four times as long (benchmarks/results.md)."""


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """Cards that are alike, in racks that are alike: how many, and what an idle one draws (W)."""

    id: str
    rack: str
    cards: int
    idle_w: float


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """Something that cards can do: worth `usd_h` for each card-hour at full speed, on each of its pools drawing so many watts uncapped. `cards` is how many are asked for
    in each interval; of what `can_wait` it is what is added to the backlog in each interval, in card-hours. `waits` is the backlog at the start.
    No cap goes below `least` of the draw.
    """

    id: str
    kind: LoadClass
    usd_h: float
    draw_w: dict[str, float]
    cards: tuple[float, ...]
    can_wait: bool = False
    waits: float = 0.0
    curve: tuple[tuple[float, float], ...] | None = None
    least: float = 0.0


class Asics(msgspec.Struct, frozen=True, kw_only=True):
    """Mining machines that are alike: how many, what one draws and earns an hour (in each interval, where that differs); those that can't be stopped always run."""

    id: str
    count: int
    watts: float
    usd_h: float | tuple[float, ...]
    can_stop: bool = True


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """The problem: intervals of `hours` each, US$ per kWh in each, what may be drawn at the meter in each (W), `pue` from the cards' watts to the meter's, `static_w` that
    is drawn whatever the cards do, and what each rack may carry, its idle cards included. `late_share_h`, `left_share`: see the constants.
    """

    hours: float
    usd_kwh: tuple[float, ...]
    limit_w: tuple[float, ...]
    pue: float = 1.0
    static_w: float = 0.0
    pools: tuple[Pool, ...]
    racks: dict[str, float] = {}
    work: tuple[Work, ...] = ()
    asics: tuple[Asics, ...] = ()
    peaks: tuple[Peak, ...] = ()
    late_share_h: float = LATE_SHARE_H
    left_share: float = LEFT_SHARE


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """So many cards of a pool do this work at this cap, in each interval."""

    work: str
    pool: str
    x: float
    watts: float
    cards: tuple[float, ...]


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. `net_usd` is of the whole horizon; `meter_w` what the site draws; `kwh_usd` the worth of one more kWh at the meter beyond its price (0 where the limit does not bind),
    `card_usd_h` that of one more card of a pool, both by interval; `short` how many card-hours of firm work found no room; `asics` how many run.
    """

    net_usd: float
    uses: tuple[Use, ...]
    meter_w: tuple[float, ...]
    kwh_usd: tuple[float, ...]
    card_usd_h: dict[str, tuple[float, ...]]
    asics: dict[str, tuple[float, ...]]
    short: float
    waiting: dict[str, float]


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """Where a solved programme stood, to start one of the same shape from."""

    columns: tuple[int, ...]
    rows: tuple[int, ...]


class _Choice(msgspec.Struct, frozen=True):
    """One (work, pool, cap); it has a column in each interval."""

    work: int
    pool: int
    x: float
    speed: float
    watts: float


class _Rows:
    """Rows of the programme in the making, as triplets."""

    def __init__(self) -> None:
        self.row: list[Ints] = [np.zeros(0, dtype=np.int64)]
        self.column: list[Ints] = [np.zeros(0, dtype=np.int64)]
        self.value: list[Floats] = [np.zeros(0)]
        self.lower: list[Floats] = []
        self.upper: list[Floats] = []
        self.count = 0

    def new(self, lower: Floats, upper: Floats) -> Ints:
        """Rows with these bounds; their numbers."""
        numbers = np.arange(self.count, self.count + len(lower), dtype=np.int64)
        self.lower.append(lower)
        self.upper.append(upper)
        self.count += len(lower)
        return numbers

    def put(self, row: Ints, column: Ints, value: Floats | float) -> None:
        """Coefficients."""
        self.row.append(row)
        self.column.append(column)
        self.value.append(np.broadcast_to(np.asarray(value, dtype=np.float64), row.shape))


class Programme:
    """A site's programme, built once and solved once; `solve` may be given where a like one stood."""

    def __init__(self, site: Site) -> None:
        self.site, self.steps = site, len(site.usd_kwh)
        self.price: Floats = np.asarray(site.usd_kwh, dtype=np.float64)
        self._pools = {pool.id: number for number, pool in enumerate(site.pools)}
        self._choices = [
            _Choice(number, self._pools[pool], mode.x, mode.speed, max(draw * mode.x, site.pools[self._pools[pool]].idle_w))
            for number, work in enumerate(site.work) for pool, draw in work.draw_w.items() if pool in self._pools for mode in modes(work.kind, work.curve, work.least)
        ]  # fmt: skip
        self._rows = _Rows()
        self._cost: list[Floats] = [np.zeros(0)]
        self._lower: list[Floats] = [np.zeros(0)]
        self._upper: list[Floats] = [np.zeros(0)]
        self._count = 0
        self._build()

    def _columns(self, cost: Floats, upper: Floats | float, lower: Floats | float = 0.0) -> Ints:
        numbers = np.arange(self._count, self._count + len(cost), dtype=np.int64)
        self._cost.append(cost)
        self._lower.append(np.broadcast_to(np.asarray(lower, dtype=np.float64), cost.shape))
        self._upper.append(np.broadcast_to(np.asarray(upper, dtype=np.float64), cost.shape))
        self._count += len(cost)
        return numbers

    def _build(self) -> None:
        site, hours = self.site, self.site.hours
        kwh = self.price * site.pue / 1000 * hours
        self._extra_w = np.array([choice.watts - site.pools[choice.pool].idle_w for choice in self._choices], dtype=np.float64)
        worth = np.array(
            [site.work[c.work].usd_h * (c.speed if site.work[c.work].kind is not LoadClass.FIRM else 1.0) for c in self._choices], dtype=np.float64
        )
        self._n = self._columns((worth[:, None] * hours - self._extra_w[:, None] * kwh[None, :]).ravel(), INFINITY).reshape(
            len(self._choices), self.steps
        )
        self._a = [
            self._columns(
                np.asarray(asics.usd_h, dtype=np.float64) * hours - asics.watts * kwh,
                float(asics.count),
                0.0 if asics.can_stop else float(asics.count),
            )
            for asics in site.asics
        ]
        self._capacity()
        self._demand()
        self._racks()
        self._meter()

    def _capacity(self) -> None:
        pools = np.array([pool.cards for pool in self.site.pools], dtype=np.float64)
        upper = np.repeat(pools, self.steps)
        self._capacity_rows = self._rows.new(np.full(len(upper), -INFINITY), upper).reshape(len(pools), self.steps)
        for number, choice in enumerate(self._choices):
            self._rows.put(self._capacity_rows[choice.pool], self._n[number], 1.0)

    def _demand(self) -> None:
        self._short: list[Ints] = []
        self._backlog: dict[int, Ints] = {}
        for number, work in enumerate(self.site.work):
            asked, mine = np.asarray(work.cards, dtype=np.float64), [n for n, choice in enumerate(self._choices) if choice.work == number]
            if work.can_wait:
                self._waiting(number, work, asked, mine)
                continue
            firm = work.kind is LoadClass.FIRM
            rows = self._rows.new(asked if firm else np.full(self.steps, -INFINITY), asked)
            for n in mine:
                self._rows.put(rows, self._n[n], 1.0)
            if firm:
                short = self._columns(np.full(self.steps, -SHORT_USD_H * self.site.hours), INFINITY)
                self._rows.put(rows, short, 1.0)
                self._short.append(short)

    def _waiting(self, number: int, work: Work, arriving: Floats, mine: Sequence[int]) -> None:
        """backlog(t) = backlog(t-1) + what arrives - what is done; what is left at the end has a worth too, or all would be done today at any price."""
        hours = self.site.hours
        left = self._columns(np.full(self.steps, -work.usd_h * self.site.late_share_h * hours), INFINITY)
        cheap = float(np.quantile(self.price, LEFT_QUANTILE)) * self.site.pue / 1000
        brings = max((work.usd_h - self._extra_w[n] / self._choices[n].speed * cheap for n in mine), default=0.0)
        counts = self._columns(np.array([self.site.left_share * max(0.0, brings)]), float(arriving.sum()))
        kept = self._rows.new(np.full(1, -INFINITY), np.zeros(1))
        self._rows.put(kept, counts, 1.0)
        self._rows.put(kept, left[-1:], -1.0)
        arrived = arriving.copy()
        arrived[0] += work.waits
        rows = self._rows.new(arrived, arrived)
        self._rows.put(rows, left, 1.0)
        self._rows.put(rows[1:], left[:-1], -1.0)
        for n in mine:
            self._rows.put(rows, self._n[n], self._choices[n].speed * hours)
        self._backlog[number] = left

    def _racks(self) -> None:
        """A rack's cards, idle ones too, within what it carries."""
        for rack, limit in sorted(self.site.racks.items()):
            there = [number for number, pool in enumerate(self.site.pools) if pool.rack == rack]
            idle = sum(self.site.pools[number].cards * self.site.pools[number].idle_w for number in there)
            rows = self._rows.new(np.full(self.steps, -INFINITY), np.full(self.steps, max(0.0, limit - idle)))
            for n, choice in enumerate(self._choices):
                if choice.pool in there:
                    self._rows.put(rows, self._n[n], float(self._extra_w[n]))

    def _meter(self) -> None:
        site = self.site
        idle = sum(pool.cards * pool.idle_w for pool in site.pools)
        self._base_w = site.pue * (site.static_w + idle)
        room = np.maximum(0.0, np.asarray(site.limit_w, dtype=np.float64) - self._base_w)
        stuck = sum(asics.count * asics.watts for asics in site.asics if not asics.can_stop) * site.pue
        self._meter_rows = self._rows.new(np.full(self.steps, -INFINITY), np.maximum(room, stuck))
        self._drawn(self._meter_rows, slice(None))
        for peak in site.peaks:
            inside = np.nonzero(np.asarray(peak.within))[0]
            beyond = self._columns(np.array([-peak.usd_kw / 1000]), INFINITY)
            rows = self._rows.new(np.full(len(inside), -INFINITY), np.full(len(inside), max(0.0, peak.reached_w - self._base_w)))
            self._drawn(rows, inside)
            self._rows.put(rows, np.broadcast_to(beyond, rows.shape), -1.0)
            self._later(peak, beyond)

    def _later(self, peak: Peak, beyond: Ints) -> None:
        """What the level that is reached is worth in the month's later hours: the best use of each further watt there, at prices as they were lately."""
        found = worths(self.site, peak.like_usd_kwh) if peak.later_h and peak.like_usd_kwh else []
        uses = self._columns(np.array([usd_wh * peak.later_h for _, usd_wh in found]), np.array([watts for watts, _ in found]))
        row = self._rows.new(np.full(1, -INFINITY), np.full(1, max(0.0, peak.reached_w - self._base_w)))
        self._rows.put(np.broadcast_to(row, uses.shape), uses, 1.0)
        self._rows.put(row, beyond, -1.0)

    def _drawn(self, rows: Ints, which: "Ints | slice") -> None:
        for n in range(len(self._choices)):
            self._rows.put(rows, self._n[n][which], self.site.pue * float(self._extra_w[n]))
        for columns, asics in zip(self._a, self.site.asics, strict=True):
            self._rows.put(rows, columns[which], self.site.pue * asics.watts)

    def _model(self) -> "highspy.HighsLp":
        import highspy  # loaded where something is solved: a server that only looks does without

        rows, columns, values = np.concatenate(self._rows.row), np.concatenate(self._rows.column), np.concatenate(self._rows.value)
        order = np.lexsort((rows, columns))
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = self._count, self._rows.count
        model.col_cost_, model.col_lower_, model.col_upper_ = np.concatenate(self._cost), np.concatenate(self._lower), np.concatenate(self._upper)
        model.row_lower_, model.row_upper_ = np.concatenate(self._rows.lower), np.concatenate(self._rows.upper)
        model.sense_ = highspy.ObjSense.kMaximize
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=self._count))]).astype(np.int32)
        model.a_matrix_.index_, model.a_matrix_.value_ = rows[order].astype(np.int32), values[order]
        return model

    def solve(self, time_limit_s: float = 60.0, start: Basis | None = None, *, interior: bool = False) -> tuple[Schedule | None, Basis | None]:
        """The schedule, None where none was found in time; and where to start the next from. By the interior point method where `interior` says so: for years, and without
        a basis.
        """
        import highspy

        solver = highspy.Highs()
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("time_limit", time_limit_s)
        if interior:
            solver.setOptionValue("solver", "ipm")
            solver.setOptionValue("run_crossover", "off")
        solver.passModel(self._model())
        if start is None or len(start.columns) != self._count or len(start.rows) != self._rows.count:
            solver.setOptionValue("simplex_strategy", PRIMAL)
        else:
            basis = highspy.HighsBasis()
            basis.col_status, basis.row_status = (
                [highspy.HighsBasisStatus(n) for n in start.columns],
                [highspy.HighsBasisStatus(n) for n in start.rows],
            )
            basis.valid = True
            solver.setBasis(basis)
        solver.run()
        if solver.getModelStatus() not in {highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kModelEmpty}:
            return None, None
        basis = solver.getBasis()
        kept = Basis(columns=tuple(int(each) for each in basis.col_status), rows=tuple(int(each) for each in basis.row_status))
        return self._schedule(solver), kept

    def _schedule(self, solver: "highspy.Highs") -> Schedule:
        site, solution = self.site, solver.getSolution()
        value, dual = np.asarray(solution.col_value), np.asarray(solution.row_dual)
        counts = value[self._n] if len(self._choices) else np.zeros((0, self.steps))
        running = [value[columns] for columns in self._a]
        drawn = self._base_w + site.pue * (
            self._extra_w @ counts + sum((asics.watts * n for asics, n in zip(site.asics, running, strict=True)), np.zeros(self.steps))
        )
        uses = tuple(
            Use(work=site.work[choice.work].id, pool=site.pools[choice.pool].id, x=choice.x, watts=choice.watts, cards=tuple(map(float, counts[n])))
            for n, choice in enumerate(self._choices) if counts[n].max(initial=0.0) > 1e-6
        )  # fmt: skip
        idle_cost = float((self._base_w / 1000 * self.price).sum() * site.hours)
        return Schedule(
            net_usd=float(solver.getInfo().objective_function_value) - idle_cost, uses=uses, meter_w=tuple(map(float, drawn)),
            kwh_usd=tuple(float(each) * 1000 / site.hours for each in dual[self._meter_rows]),
            card_usd_h={pool.id: tuple(float(each) / site.hours for each in dual[self._capacity_rows[n]]) for n, pool in enumerate(site.pools)},
            asics={asics.id: tuple(map(float, n)) for asics, n in zip(site.asics, running, strict=True)},
            short=float(sum(value[short].sum() for short in self._short)) * site.hours,
            waiting={site.work[number].id: float(value[left[-1]]) for number, left in self._backlog.items()},
        )  # fmt: skip


def worths(site: Site, usd_kwh: Sequence[float]) -> list[tuple[float, float]]:
    """What further watts at the meter bring in an hour like these: (watts, US$ for each watt-hour, power paid), best first. Cards go to what brings most, caps are taken back where
    that brings most; work that can wait is left out, as it is done in other hours.
    """
    found: list[tuple[float, float]] = []
    asked = {work.id: sum(work.cards) / len(work.cards) for work in site.work if not work.can_wait}
    for pool in site.pools:
        left = float(pool.cards)
        for work in sorted(site.work, key=lambda work: (work.kind is not LoadClass.FIRM, -work.usd_h)):
            count = min(left, asked.get(work.id, 0.0)) if pool.id in work.draw_w else 0.0
            left -= count
            asked[work.id] = asked.get(work.id, 0.0) - count
            before_w, before_usd_h = pool.idle_w, 0.0
            for mode in reversed(modes(work.kind, work.curve, work.least)) if count else ():
                watts, usd_h = max(work.draw_w[pool.id] * mode.x, pool.idle_w), work.usd_h * mode.speed
                if watts > before_w:
                    found.append(
                        (
                            site.pue * count * (watts - before_w),
                            (SHORT_USD_H if work.kind is LoadClass.FIRM else usd_h - before_usd_h) / (watts - before_w) / site.pue,
                        )
                    )
                before_w, before_usd_h = watts, usd_h
    for asics in site.asics:
        earned = asics.usd_h[0] if isinstance(asics.usd_h, tuple) else asics.usd_h
        found.append((site.pue * asics.count * asics.watts, earned / asics.watts / site.pue))
    paid = [(watts, sum(max(0.0, usd_wh - price / 1000) for price in usd_kwh) / len(usd_kwh)) for watts, usd_wh in found]
    return sorted(paid, key=lambda each: -each[1])


def solved(site: Site, time_limit_s: float = 60.0, start: Basis | None = None, *, interior: bool = False) -> tuple[Schedule | None, Basis | None]:
    """See `Programme.solve`."""
    return Programme(site).solve(time_limit_s, start, interior=interior)


def whole(count: float) -> int:
    """Cards or machines of one interval as a whole number, rounded down: nothing is then drawn that the programme did not allow."""
    return int(count + 1e-6)
