"""Draws curves into an SVG file, with nothing but the standard library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _PANEL_HEIGHT = 760, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 30, 34
_MOST_POINTS = 600  # of a curve: as many as there are pixels, about
_COLOURS = ("#1f6feb", "#d1570b", "#1a7f37", "#8250df", "#bf3989", "#57606a")
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Curve:
    """Values over places; what is None or not finite is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share their axes."""

    title: str
    x_label: str
    curves: Sequence[Curve]


def svg_of(panels: Sequence[Panel]) -> str:
    """Panels one below the other, as the text of an SVG file."""
    height = _PANEL_HEIGHT * len(panels)
    drawn = "".join(_drawn(panel, _PANEL_HEIGHT * index) for index, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>{drawn}</svg>\n'
    )


def _drawn(panel: Panel, above: int) -> str:
    points = [_points(curve) for curve in panel.curves]
    known = [point for line in points for point in line if point]
    title = f'<text x="{_LEFT}" y="{above + 18}" font-size="13" font-weight="bold">{escape(panel.title)}</text>'
    if not known:
        return f'{title}<text x="{_LEFT}" y="{above + 60}">nothing was measured</text>'
    across = _Axis.over([x for x, _ in known], _LEFT, _WIDTH - _RIGHT)
    down = _Axis.over([y for _, y in known], above + _PANEL_HEIGHT - _BOTTOM, above + _TOP)
    parts = [title]
    for value in down.ticks:
        y = down.place(value)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d8dee4"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    foot = above + _PANEL_HEIGHT - _BOTTOM
    parts += [
        f'<text x="{across.place(value):.1f}" y="{foot + 14}" text-anchor="middle">{value:g}</text>'
        for value in across.ticks
    ]
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{foot + 28}" text-anchor="middle">')
    parts.append(f"{escape(panel.x_label)}</text>")
    for number, (curve, line) in enumerate(zip(panel.curves, points, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        path, pen = [], "M"
        for point in line:
            if point:
                path.append(f"{pen}{across.place(point[0]):.1f} {down.place(point[1]):.1f}")
            pen = "L" if point else "M"
        # Round ends make a point of a curve that has only one.
        shape = f'fill="none" stroke="{colour}" stroke-width="1.5" stroke-linecap="round"'
        parts.append(f'<path d="{" ".join(path)}{"h0" if len(path) == 1 else ""}" {shape}/>')
        beside = above + _TOP + 12 + 16 * number
        parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{beside}" fill="{colour}">{escape(curve.label)}</text>')
    return "".join(parts)


def _points(curve: Curve) -> list[tuple[float, float] | None]:
    """Few enough to draw: of a long curve, means over stretches."""
    at_once = max(1, -(-len(curve.x) // _MOST_POINTS))
    points: list[tuple[float, float] | None] = []
    for start in range(0, len(curve.x), at_once):
        stretch = zip(curve.x[start : start + at_once], curve.y[start : start + at_once], strict=True)
        known = [(x, y) for x, y in stretch if y is not None and math.isfinite(y)]
        points.append((sum(x for x, _ in known) / len(known), sum(y for _, y in known) / len(known)) if known else None)
    return points


@dataclass(frozen=True, slots=True)
class _Axis:
    least: float
    most: float
    begin: float
    end: float
    ticks: list[float]

    @classmethod
    def over(cls, values: Sequence[float], begin: float, end: float) -> "_Axis":
        least, most = min(values), max(values)
        if least == most:
            least, most = least - 0.5, most + 0.5
        step = _round_step((most - least) / _TICKS)
        first, last = math.floor(least / step), math.ceil(most / step)
        ticks = [round(step * number, 10) for number in range(first, last + 1)]
        return cls(ticks[0], ticks[-1], begin, end, ticks)

    def place(self, value: float) -> float:
        return self.begin + (self.end - self.begin) * (value - self.least) / (self.most - self.least)


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10 and so on."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= step * 0.999)
