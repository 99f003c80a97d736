"""A card in service: may it go on? A window of telemetry and the card's record beside the rules.

One bad reading of heat or speed is no verdict: such rules have to hold for minutes. An Xid that a tenant's program can cause never
counts on the first time, nor as often as one program causes it.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from headframe.health.grade import numbers
from headframe.health.rules import WATCH_RULES, Rule, fired, told
from headframe.health.xid import Code, blamed
from headframe.model.health import Cause, Finding, History, Level, Watched, Xid
from headframe.model.units import MS_PER_DAY

WEEK_MS = 7 * MS_PER_DAY
REPLAYS_MIN = {1: 0.15, 2: 0.30, 3: 0.48, 4: 0.96, 5: 1.92, 6: 3.84}
"""PCIe replays a minute and lane that are normal, by generation (DCGM 4.6)."""
POWER_MOST = 1.2
WORKS_LEAST = 3
"""So many different workloads must have met one Xid on one card within a day before the card is to blame (ours; NVSentinel counts 2 of any)."""
_RECOVERY_P2P = 2
_MENDS = {"reset_gpu": "reset it", "reboot": "reboot the machine", "drain_diagnose": "reseat it, look at riser, cable and supply"}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, worst first, and since when each rule has fired: to be given back with the next window."""

    findings: tuple[Finding, ...] = ()
    since_ms: dict[str, int] = {}

    @property
    def level(self) -> Level | None:
        """The worst; None is well."""
        return self.findings[0].level if self.findings else None


def judge(
    watched: Watched, history: History, codes: Mapping[int, Code], before: Verdict, now_ms: int, rules: Sequence[Rule] = WATCH_RULES
) -> Verdict:
    """The verdict on one card. Times of the record that lie in the future (a clock that was set back) count as now."""
    values = _readings(watched, history, now_ms)
    tripped = fired(rules, values)
    since = {rule.name: min(before.since_ms.get(rule.name, now_ms), now_ms) for rule in tripped}
    held = [rule for rule in tripped if now_ms - since[rule.name] >= rule.hold_ms]
    findings = [*told(held, values), *_of_xids(history.xids, codes, now_ms)]
    return Verdict(findings=tuple(sorted(findings, key=lambda each: each.level is not Level.BAD)), since_ms=since)


def _readings(watched: Watched, history: History, now_ms: int) -> dict[str, float | None]:
    slowdown, temperature = watched.slowdown_c, watched.temperature_c
    return {
        **numbers(watched),
        "missing": not watched.present,
        "losses_7d": sum(now_ms - min(at_ms, now_ms) <= WEEK_MS for at_ms in history.missing_ms),
        "faults": history.faults,
        "margin_c": slowdown - temperature if slowdown and temperature is not None else None,
        "replay_share": _replay_share(watched),
        "gen_short": _short(history.link_gen, watched.link_gen, watched),
        "width_short": _short(history.link_width, watched.link_width, watched),
        "power_odd": _power_odd(watched),
        "recovery_bad": watched.recovery_action not in {None, 0, _RECOVERY_P2P},
        "recovery_p2p": watched.recovery_action == _RECOVERY_P2P,
    }


def _short(record: int, now: int | None, watched: Watched) -> int | None:
    """By how much the link is below its record; never judged at rest, when links sleep."""
    return max(0, record - now) if watched.loaded and record and now else None


def _replay_share(watched: Watched) -> float | None:
    if watched.replays_min is None or not watched.link_width or watched.link_gen not in REPLAYS_MIN:
        return None
    return watched.replays_min / math.ceil(watched.link_width * REPLAYS_MIN[watched.link_gen])


def _power_odd(watched: Watched) -> float | None:
    if watched.power_w is None or not watched.power_limit_w:
        return None
    share = watched.power_w / watched.power_limit_w
    return share if share > POWER_MOST else 0


def _of_xids(xids: Sequence[Xid], codes: Mapping[int, Code], now_ms: int) -> Iterator[Finding]:
    """What the last day's Xids say, one finding per code."""
    recent = [xid for xid in blamed(xids) if now_ms - min(xid.at_ms, now_ms) <= MS_PER_DAY]
    times = Counter(xid.code for xid in recent)
    for number in sorted(times):
        code, works = codes.get(number), len({xid.work for xid in recent if xid.code == number})
        level = _level(code, times[number], works)
        if level:
            yield _xid_finding(number, code, level, times[number])


def _level(code: Code | None, times: int, works: int) -> Level | None:
    """Fatal ones are bad at once. One that a program can cause is the card's fault only if it comes back under other work."""
    if code is None or code.action == "ignore":
        return None
    if code.severity == "fatal":
        return Level.BAD
    if code.action == "restart_app":
        return (Level.BAD if works >= WORKS_LEAST else Level.WARN) if times > 1 else None
    return Level.WARN


def _xid_finding(number: int, code: Code | None, level: Level, times: int) -> Finding:
    assert code is not None
    repeated = f" {times} times in 24 h" if times > 1 else ""
    mend = code.escalation if times > 1 and code.escalation else _MENDS.get(code.action, "watch it")
    return Finding(rule=f"xid-{number}", cause=Cause.DRIVER, have=f"Xid {number}{repeated}", need="", why=code.meaning or code.name,
                   source="NVIDIA Xid catalogue; repeats as NVSentinel counts them", level=level, mend=mend)  # fmt: skip
