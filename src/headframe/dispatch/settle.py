"""From what would be best now to what is done: calm. Pure.

What runs is worth a little more than what does not (`sticky`), so that a price that wavers around a break-even switches nothing; and within a dwell only a limit switches. Both are
shares and times, never amounts: scaling all prices changes no choice.
"""

from collections.abc import Mapping

import msgspec

GAIN = 0.08
"""What has to be gained to switch, of what is earned; mining cards lose 10 to 60 s of work at each start, and wear with each heat cycle."""
DWELL_MS = 600_000
START_SHARE, START_LEAST, STEP_MS = 0.05, 1, 5_000
"""Within a step at most this share of a site's cards, and at least one, is started: a rack's breaker sees a ramp, not a step."""
MARGIN = 0.03
"""Below a limit that nothing new is started into, of the limit: caps are kept on average, not at each instant."""
SLEEP = ""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What cards of a kind are to do while nobody rents them, "" for sleeping; what it brings, and why."""

    filler: str
    usd_h: float
    why: str


def sticky(usd_h: float, *, on: bool) -> float:
    """What an earning counts for in a decision: more where it is there already, less where it would be new."""
    return usd_h * (1 + GAIN) if on else usd_h / (1 + GAIN)


def chosen(before: str, since_ms: int, earns: Mapping[str, float], costs: Mapping[str, float], now_ms: int) -> Choice:
    """The best of sleeping and the fillers that earn `earns` and cost `costs` (US$ per card-hour, energy; sleeping's cost is `costs[SLEEP]`), unless what is done now is as good
    within the gain asked for, or was begun too lately. A filler that is not among `earns` any more is left at once.
    """
    net = {name: earned - costs[name] for name, earned in earns.items()} | {SLEEP: -costs[SLEEP]}
    counted = {name: (sticky(earns[name], on=name == before) if name else 0.0) - costs[name] for name in net}
    best = max(sorted(net), key=lambda name: counted[name])
    if best == before or before not in net:
        return Choice(filler=best, usd_h=net[best], why=_why(best, net, costs))
    if now_ms - since_ms < DWELL_MS:
        left_s = (since_ms + DWELL_MS - now_ms) // 1000
        return Choice(filler=before, usd_h=net[before], why=f"{best or 'sleeping'} would bring more, and is begun in {left_s} s if it still does")
    return Choice(filler=best, usd_h=net[best], why=_why(best, net, costs))


def starts_at_once(cards: int) -> int:
    """How many cards of a site may begin something within one step."""
    return max(START_LEAST, int(cards * START_SHARE))


class Room:
    """What a limit leaves for starts, its margin kept (W): each start is counted before the next."""

    def __init__(self, limit_w: float, drawn_w: float) -> None:
        self.left_w = limit_w * (1 - MARGIN) - drawn_w

    def fits(self, watts: float) -> bool:
        """Whether one more start of so many watts does."""
        return watts <= self.left_w

    def take(self, watts: float) -> None:
        """Count it."""
        self.left_w -= watts


def _why(best: str, net: Mapping[str, float], costs: Mapping[str, float]) -> str:
    if best:
        return f"brings US$ {net[best]:.4f} an hour after power, sleeping costs {costs[SLEEP]:.4f}"
    others = [name for name in net if name]
    if not others:
        return "no filler is known for it"
    nearest = max(sorted(others), key=lambda name: net[name])
    return f"{nearest} would bring US$ {net[nearest]:.4f} an hour after power, sleeping costs {costs[SLEEP]:.4f}"
