"""What a card does with fewer watts: its power limit lowered in steps while it works, its speed and draw read at each, and set back whatever happens."""

from collections.abc import Callable, Mapping

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the limit that is set. A card whose least is higher ends there."""
LEAST_POINTS = 3
"""Fewer say nothing of a curve's shape."""
Rate = Callable[[], tuple[float, float]]
"""Does one kind of work for a while: how much a second, and watts drawn meanwhile."""
Points = tuple[tuple[float, float], ...]


def swept(full_w: int, set_limit: Callable[[int], str], restore: Callable[[], object], loads: Mapping[str, Rate]) -> tuple[dict[str, Points], str]:
    """For each kind of work the share of its speed at each limit, by the limit over what it draws uncapped (1 where the limit does not bind), rising; and why the sweep
    ended early, "" where it did not. `set_limit` (W) answers why it could not, `restore` puts back what was there.
    """
    seen: dict[str, list[tuple[int, float, float]]] = {kind: [] for kind in loads}
    why = ""
    try:
        for share in SHARES:
            watts = round(full_w * share)
            why = set_limit(watts)
            if why:
                break
            for kind, rate in loads.items():
                seen[kind].append((watts, *rate()))
    finally:
        restore()
    return {kind: points for kind, rows in seen.items() if len(points := _curve(rows)) >= LEAST_POINTS}, why


def _curve(rows: list[tuple[int, float, float]]) -> Points:
    """Limits that bind, and full speed at 1. More speed under a lower limit is noise."""
    if not rows or rows[0][1] <= 0 or rows[0][2] <= 0:
        return ()
    _, fastest, drawn = rows[0]
    found, speed = [(1.0, 1.0)], 1.0
    for watts, rate, _ in rows[1:]:
        if watts < drawn:
            speed = min(speed, rate / fastest)
            found.append((round(watts / drawn, 3), round(speed, 4)))
    return tuple(reversed(found))
