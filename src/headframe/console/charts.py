"""Charts as SVG text, made from numbers; each says in words what it shows."""

import math
from collections.abc import Sequence
from html import escape

from markupsafe import Markup


def split_bar(parts: Sequence[tuple[str, int, str]], label: str) -> Markup:
    """One bar of `(name, amount, css class)` parts in proportion."""
    total = sum(amount for _, amount, _ in parts) or 1
    pieces, at = [], 0.0
    for name, amount, style in parts:
        width = 100 * amount / total
        if amount:
            title = f"<title>{escape(name)}: {amount}</title>"
            pieces.append(f'<rect class="{style}" x="{at:.3f}" y="0" width="{max(0.0, width - 0.3):.3f}" height="6" rx="0.8">{title}</rect>')
        at += width
    return Markup(  # noqa: S704 - every text above is escaped
        f'<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<rect class="empty" width="100" height="6" rx="0.8"/>{"".join(pieces)}</svg>'
    )


def columns(values: Sequence[tuple[str, int]], label: str) -> Markup:
    """One column per `(name, amount)`, highest to the top."""
    top = max((amount for _, amount in values), default=0) or 1
    step = 100 / max(1, len(values))
    pieces = []
    for number, (name, amount) in enumerate(values):
        height = 36 * amount / top
        pieces.append(
            f'<rect class="{"on" if amount else "off"}" x="{number * step + step * 0.12:.2f}" y="{38 - max(height, 0.6):.2f}" '
            f'width="{step * 0.76:.2f}" height="{max(height, 0.6):.2f}" rx="0.5"><title>{escape(name)}</title></rect>'
        )
    return Markup(  # noqa: S704 - every text above is escaped
        f'<svg class="columns" viewBox="0 0 100 38" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">{"".join(pieces)}</svg>'
    )


def cells(states: Sequence[tuple[str, str]], label: str) -> Markup:
    """One square per GPU, `(title, css class)`, in the order given."""
    columns_count = 32 if len(states) > 64 else 16
    rows = -(-len(states) // columns_count)
    pieces = [
        f'<rect class="{style}" x="{number % columns_count * 12}" y="{number // columns_count * 12}" width="10" height="10" rx="2">'
        f"<title>{escape(title)}</title></rect>"
        for number, (title, style) in enumerate(states)
    ]
    return Markup(  # noqa: S704 - every text above is escaped
        f'<svg class="cells" viewBox="0 0 {columns_count * 12} {rows * 12}" role="img" aria-label="{escape(label)}">{"".join(pieces)}</svg>'
    )


def spark(values: Sequence[float | None], label: str) -> Markup:
    """A small line of readings, newest right, from zero to their highest; where there was none the line is broken."""
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    step = 100 / max(1, len(values) - 1)
    runs: list[list[str]] = [[]]
    for number, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append(f"{number * step:.1f},{23 - 21 * value / top:.1f}")
    pieces = [f'<polyline points="{" ".join(run if len(run) > 1 else run * 2)}"/>' for run in runs if run]
    return Markup(  # noqa: S704 - every text above is escaped
        f'<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" aria-label="{escape(label)}"><title>{escape(label)}</title>'
        f"{''.join(pieces)}</svg>"
    )


WIDTH, LEFT, HEAD, FOOT = 720.0, 46.0, 8.0, 22.0
"""Of a chart with scales, and what they take of it."""


def marks(top: float) -> list[float]:
    """Where a scale from zero to `top` (above 0) is marked: at round numbers, four to six times, the last at or beyond it."""
    least = top / 5 * (1 - 1e-6)  # no sixth step for what is lost in rounding
    size = 10.0 ** math.floor(math.log10(least))
    step = next(size * times for times in (1, 2, 2.5, 5, 10) if size * times >= least)
    return [step * n for n in range(math.ceil(least * 5 / step) + 1)]


def _short(value: float) -> str:
    """A number for a scale: "14.6k" where it is long."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.4g}"


def _grid(scale: Sequence[float], height: float) -> list[str]:
    """A line across with its number for each mark of `scale`, the last of them at the top."""
    pieces: list[str] = []
    for mark in scale:
        y = height - FOOT - mark / scale[-1] * (height - FOOT - HEAD)
        pieces.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        pieces.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(mark)}</text>')
    return pieces


def lines(series: Sequence[tuple[str, Sequence[tuple[float, float]]]], label: str, unit: str, span: float = 0.0, per: str = "h") -> Markup:
    """One line per `(name, points)`, with scales: x in `per` (at least `span`), y from zero in `unit`."""
    height = 220.0
    right = max(span, *(x for _, points in series for x, _ in points), 0.0) or 1.0
    scale = marks(max((0.0, *(y for _, points in series for _, y in points))) or 1.0)
    top, pieces = scale[-1], _grid(scale, height)
    for mark in marks(right):
        x = LEFT + mark / right * (WIDTH - LEFT)
        if x <= WIDTH:
            anchor = "middle" if x < WIDTH - LEFT / 2 else "end"
            pieces.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="{anchor}">{mark:.4g} {escape(per)}</text>')
    for number, (name, points) in enumerate(series):
        at = " ".join(f"{LEFT + x / right * (WIDTH - LEFT):.1f},{height - FOOT - y / top * (height - FOOT - HEAD):.1f}" for x, y in points)
        pieces.append(f'<polyline class="line line-{number % 8}" points="{at}"><title>{escape(name)}</title></polyline>')
    return Markup(  # noqa: S704 - every text above is escaped
        f'<svg class="lines" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label)}, {escape(unit)}">{"".join(pieces)}</svg>'
    )


def stacked(steps: Sequence[str], layers: Sequence[tuple[str, Sequence[float], int]], line: Sequence[float | None], label: str, unit: str) -> Markup:
    """Columns of `(name, amounts, colour)` layers, one column for each step, with a broken line over them (a limit) where it is known."""
    height = 240.0
    sums = [sum(amounts[n] for _, amounts, _ in layers) for n in range(len(steps))]
    scale = marks(max((0.0, *sums, *(value for value in line if value is not None))) or 1.0)
    top, pieces = scale[-1], _grid(scale, height)
    each, tall = (WIDTH - LEFT) / max(1, len(steps)), height - FOOT - HEAD
    for n, name in enumerate(steps):
        x, base = LEFT + n * each, 0.0
        if n % max(1, len(steps) // 8) == 0:
            pieces.append(f'<text x="{x + each / 2:.1f}" y="{height - 4}" text-anchor="middle">{escape(name)}</text>')
        for what, amounts, colour in layers:
            if amounts[n] > 0:
                y, h = height - FOOT - (base + amounts[n]) / top * tall, amounts[n] / top * tall
                pieces.append(
                    f'<rect class="layer line-{colour % 8}" x="{x + each * 0.06:.1f}" y="{y:.1f}" width="{each * 0.88:.1f}" height="{h:.1f}"><title>{escape(name)} {escape(what)}: {amounts[n]:.4g} {escape(unit)}</title></rect>'
                )
                base += amounts[n]
    for n, value in enumerate(line):
        if value is not None:
            y = height - FOOT - value / top * tall
            pieces.append(f'<line class="limit" x1="{LEFT + n * each:.1f}" x2="{LEFT + (n + 1) * each:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    return Markup(  # noqa: S704 - every text above is escaped
        f'<svg class="lines" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label)}, {escape(unit)}">{"".join(pieces)}</svg>'
    )
