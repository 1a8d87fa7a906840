"""Plots as SVG text, for pages that must stand alone: points, lines, bars, axes, and nothing to load."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

__all__ = ["Bars", "Points", "bar_chart", "grouped_bars", "line_chart"]

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 40, 48
COLOURS = ("#2f6f4f", "#c2703d", "#4f6fa8", "#8a6fb0", "#b0413e", "#7a8b2f", "#3d9aa1", "#6b6b6b")
_INK, _SOFT, _GRID = "var(--ink,#3b423e)", "var(--soft,#6b746e)", "var(--grid,#e3e6e2)"
"""A page's own colours, so that a plot is dark where the page is; beside them those of a plot alone."""
_LEGEND_ROW = 16
_FINEST = 1e-9
"""Ticks have ten decimals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """A named row of points, joined by a line or, with ``scattered``, drawn as dots."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    scattered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A named row of bars, one for each group, None where there is none; ``lowest`` marks how low each may
    come."""

    name: str
    values: Sequence[float | None]
    lowest: Sequence[float | None] = ()


def line_chart(
    rows: Sequence[Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    target: float | None = None,
    log_x: bool = False,
) -> str:
    """Lines over a common pair of axes; ``target`` draws a dashed horizontal line.

    With ``log_x`` the same ratio is as wide everywhere; points that are not above 0 are left out.
    """
    if log_x:
        rows = [_above_zero(row) for row in rows]
    xs = [value for row in rows for value in row.x]
    ys = [value for row in rows for value in row.y] + ([target] if target is not None else [])
    if not xs:
        return _frame(title, x_label, y_label, ['<text x="280" y="150" class="label">no data</text>'])
    y_ticks = _ticks(min(ys), max(ys))
    across: _Scale
    if log_x:
        x_ticks, across = _ratio_ticks(min(xs), max(xs)), _LogScale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    else:
        x_ticks = _ticks(min(xs), max(xs))
        # Across, the axis ends with the data: up to a fifth of the picture would be empty else.
        end = max(*xs, x_ticks[1]) if len(x_ticks) == 2 else max(xs)
        x_ticks = [value for value in x_ticks if value <= end]
        across = _Scale(x_ticks[0], end, LEFT, WIDTH - RIGHT)
    down = _Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    marks = _axes(x_ticks, y_ticks, across, down)
    if target is not None:
        at = f"{down(target):.1f}"
        marks.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}" class="target"/>')
    for number, row in enumerate(rows):
        marks += _draw(row, COLOURS[number % len(COLOURS)], across, down)
    legend, above = _legend(rows) if len(rows) > 1 else ([], 0)
    return _frame(title, x_label, y_label, marks + legend, above=above)


def bar_chart(
    names: Sequence[str], values: Sequence[float], *, title: str, x_label: str, y_label: str
) -> str:
    """One bar for each name, its value above it."""
    if not names:
        return _frame(title, x_label, y_label, ['<text x="280" y="150" class="label">no data</text>'])
    ticks = _ticks(0.0, max(*values, 1.0))
    down = _Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    marks = _axes([], ticks, _Scale(0.0, 1.0, 0.0, 1.0), down)
    step = (WIDTH - LEFT - RIGHT) / len(names)
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        x, y = LEFT + step * number + step * 0.14, down(value)
        height = HEIGHT - BOTTOM - y
        middle = x + step * 0.36
        marks.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{step * 0.72:.1f}" height="{height:.1f}" rx="2" '
            f'fill="{COLOURS[0]}"><title>{escape(name)}: {_number(value)}</title></rect>'
        )
        if len(names) <= 24:
            marks.append(
                f'<text x="{middle:.1f}" y="{y - 5:.1f}" class="tick middle">{_number(value)}</text>'
            )
            marks.append(
                f'<text x="{middle:.1f}" y="{HEIGHT - BOTTOM + 16}" class="tick middle">{escape(name)}</text>'
            )
    return _frame(title, x_label, y_label, marks)


def grouped_bars(
    groups: Sequence[str], rows: Sequence[Bars], *, title: str, x_label: str, y_label: str
) -> str:
    """For each group a bar of each row, its value above it, and a mark at its lowest. A group's name has a
    second line behind a comma."""
    known = [value for row in rows for value in row.values if value is not None]
    ticks = _ticks(0.0, max(known, default=1.0))
    down = _Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)
    marks = _axes([], ticks, _Scale(0.0, 1.0, 0.0, 1.0), down)
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    width = step * 0.8 / len(rows)
    for place, group in enumerate(groups):
        start = LEFT + step * (place + 0.1)
        middle = f"{start + step * 0.4:.1f}"
        for line, part in enumerate(group.split(", ")):
            y = HEIGHT - BOTTOM + 12 + 11 * line
            marks.append(f'<text x="{middle}" y="{y}" class="tick middle">{escape(part)}</text>')
        for number, row in enumerate(rows):
            if row.values[place] is not None:
                colour = COLOURS[number % len(COLOURS)]
                marks += _bar(row, place, colour, (start + width * number, width - 2), down)
    legend, above = _legend(rows)
    return _frame(title, x_label, y_label, marks + legend, above=above)


def _bar(row: Bars, place: int, colour: str, across: tuple[float, float], down: "_Scale") -> list[str]:
    """``across`` is where it begins and how wide it is, in pixels."""
    value = row.values[place] or 0.0
    lowest = row.lowest[place] if row.lowest else None
    (x, width), y = across, down(value)
    marks = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" rx="2" '
        f'fill="{colour}"><title>{escape(row.name)}: {value:.3g}</title></rect>',
        # Above the bar; but in it, where the legend is.
        f'<text x="{x + width / 2:.1f}" y="{y - 4 if y > TOP + 10 else y + 11:.1f}" class="small middle'
        f'{"" if y > TOP + 10 else " light"}">{value:.3g}</text>',
    ]
    if lowest is not None:
        at = f"{down(lowest):.1f}"
        marks.append(f'<line x1="{x:.1f}" x2="{x + width:.1f}" y1="{at}" y2="{at}" class="lowest"/>')
    return marks


def _draw(row: Points, colour: str, across: "_Scale", down: "_Scale") -> list[str]:
    spots = [(across(x), down(y)) for x, y in zip(row.x, row.y, strict=True)]
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}" fill-opacity="0.75">'
        f"<title>{escape(row.name)}: {_number(value_x)}, {_number(value_y)}</title></circle>"
        for (x, y), value_x, value_y in zip(spots, row.x, row.y, strict=True)
    ]
    if row.scattered:
        return dots
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], across: "_Scale", down: "_Scale") -> list[str]:
    marks = []
    for value in y_ticks:
        y = f"{down(value):.1f}"
        marks.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        marks.append(f'<text x="{LEFT - 8}" y="{y}" dy="0.32em" class="tick end">{_number(value)}</text>')
    for value in x_ticks:
        x = f"{across(value):.1f}"
        marks.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" class="tick middle">{_number(value)}</text>')
    return marks


def _legend(rows: Sequence[Points | Bars]) -> tuple[list[str], int]:
    """A mark and a name for each, in as many rows as they need; and by how much these heighten the plot."""
    places: list[tuple[float, int]] = []
    x, line = float(LEFT), 0
    for row in rows:
        length = 32 + 5.8 * len(row.name)
        if x > LEFT and x + length > WIDTH:
            x, line = float(LEFT), line + 1
        places.append((x, line))
        x += length
    marks = []
    for number, (row, (left, line)) in enumerate(zip(rows, places, strict=True)):
        y = TOP - 20 - _LEGEND_ROW * (places[-1][1] - line)
        colour = COLOURS[number % len(COLOURS)]
        marks.append(f'<rect x="{left:.0f}" y="{y}" width="10" height="10" rx="2" fill="{colour}"/>')
        marks.append(f'<text x="{left + 15:.0f}" y="{y + 9}" class="tick">{escape(row.name)}</text>')
    return marks, _LEGEND_ROW * (places[-1][1] + 1) - 6


def _frame(title: str, x_label: str, y_label: str, marks: Sequence[str], *, above: int = 0) -> str:
    """``above``: pixels by which the picture is higher than usual, between its title and the plot."""
    middle, centre = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    style = (
        f".title{{font:600 14px sans-serif;fill:{_INK}}}"
        f".label{{font:12px sans-serif;fill:{_INK};text-anchor:middle}}"
        f".tick{{font:11px sans-serif;fill:{_SOFT}}}.middle{{text-anchor:middle}}.end{{text-anchor:end}}"
        f".small{{font:9px sans-serif;fill:{_SOFT}}}.light{{fill:#fff}}.lowest{{stroke:#fff;stroke-width:2}}"
        f".grid{{stroke:{_GRID}}}.target{{stroke:#b0463c;stroke-dasharray:5 4}}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-above} {WIDTH} {HEIGHT + above}" '
            f'role="img" aria-label="{escape(title)}">',
            f"<style>{style}</style>",
            f'<text x="{LEFT}" y="{18 - above}" class="title">{escape(title)}</text>',
            *marks,
            f'<text x="{middle}" y="{HEIGHT - 8}" class="label">{escape(x_label)}</text>',
            f'<text transform="translate(15 {centre}) rotate(-90)" class="label">{escape(y_label)}</text>',
            "</svg>",
        ]
    )


class _Scale:
    """Maps a range of values onto a range of pixels."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self._low, self._first = low, first
        self._slope = (last - first) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return self._first + (value - self._low) * self._slope


class _LogScale(_Scale):
    """The same of the logarithm; values are above 0."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        super().__init__(math.log(low), math.log(high), first, last)

    def __call__(self, value: float) -> float:
        return super().__call__(math.log(value))


def _above_zero(row: Points) -> Points:
    kept = [(x, y) for x, y in zip(row.x, row.y, strict=True) if x > 0]
    return replace(row, x=[x for x, _ in kept], y=[y for _, y in kept])


def _ratio_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten in ``[low, high]``; the powers alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that enclose ``[low, high]``."""
    # Below what ticks can tell apart there is no spread, and no size.
    span = next(size for size in (high - low, abs(high), 1.0) if size >= _FINEST)
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _number(value: float) -> str:
    if abs(value) >= 1_000_000_000:
        return f"{value / 1_000_000_000:g}G"
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
