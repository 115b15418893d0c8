"""Line plots as SVG text: axes, legend, bands, marks. Owns how they look; measures nothing.

The file carries both a light and a dark set of colours and its own background, so that it can be
read wherever it is shown. No plotting package is needed, and equal input gives equal bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 66, 18, 44, 54
LEGEND_ROW = 20

STYLE = """
svg { --card: #ffffff; --ink: #24292f; --soft: #59636e; --grid: #e3e7eb;
  --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --c4: #57606a; --c5: #bf3989;
  --s0: #7fc4b6; --s1: #35a08e; --s2: #0b7468; --s3: #043f3a; }
@media (prefers-color-scheme: dark) {
  svg { --card: #1c2128; --ink: #e6edf3; --soft: #9ea7b3; --grid: #343b45;
    --c0: #6cb6ff; --c1: #f69d50; --c2: #6bc46d; --c3: #c297ff; --c4: #adbac7; --c5: #fc8dc7;
    --s0: #1f6f66; --s1: #2fa392; --s2: #73d0bf; --s3: #d3f5ec; } }
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  fill: var(--soft); }
.title { font-size: 14px; font-weight: 600; fill: var(--ink); }
.legend { fill: var(--ink); }
.card { fill: var(--card); }
.grid { stroke: var(--grid); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; fill: none; }
.line { fill: none; stroke-linejoin: round; stroke-linecap: round; }
"""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its label with the unit, its ends, its ticks, linear or logarithmic."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    percent: bool = False

    def place(self, value: float) -> float:
        """Return where `value` lies between the ends, 0 to 1; what lies outside is held inside."""
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return min(max((at - low) / (high - low), 0.0), 1.0)

    def text(self, tick: float) -> str:
        """Write a tick: powers of ten as such, everything else as short as it goes."""
        if self.percent:
            return f"{tick:.0%}"
        power = math.log10(tick) if self.log and tick > 0 else 0.5
        if self.log and abs(power - round(power)) < 1e-9 and not -2 < power < 3:
            return f'10<tspan dy="-5" font-size="9">{round(power)}</tspan>'
        return f"{tick:g}"


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name in the legend, its points, its colour (c0-c5, or s0-s3 for an order)."""

    name: str
    points: list[tuple[float, float]]
    colour: str
    band: list[tuple[float, float, float]] = field(default_factory=list)
    """(x, low, high): shaded behind the line."""
    width: float = 2.0
    dash: str = ""
    dots: bool = False
    hollow: bool = False
    marks: list[tuple[float, float]] = field(default_factory=list)
    """Points shown as a triangle under the line."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes with its lines."""

    title: str
    x: Axis
    y: Axis
    series: list[Series]


def draw(panels: list[Panel], summary: str) -> str:
    """Return an SVG file with the panels side by side.

    Args:
        panels: from left to right.
        summary: what the picture shows, for readers who do not see it.
    """
    rows = max(len(_legend_rows(panel)) for panel in panels)
    width, height = WIDTH * len(panels), HEIGHT + rows * LEGEND_ROW
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
    parts = [
        head + f'width="{width}" height="{height}">',
        f"<title>{escape(summary)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" width="{width}" height="{height}" rx="8"/>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * WIDTH} 0)">')
        parts += [*_frame(panel), *_lines(panel), *_legend(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _x(panel: Panel, value: float) -> float:
    return round(LEFT + panel.x.place(value) * (WIDTH - LEFT - RIGHT), 1)


def _y(panel: Panel, value: float) -> float:
    return round(HEIGHT - BOTTOM - panel.y.place(value) * (HEIGHT - TOP - BOTTOM), 1)


def _frame(panel: Panel) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<text class="title" x="{LEFT}" y="26">{escape(panel.title)}</text>']
    for tick in panel.y.ticks:
        y = _y(panel, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{panel.y.text(tick)}</text>'
        )
    for tick in panel.x.ticks:
        x = _x(panel, tick)
        parts.append(f'<path class="axis" d="M{x} {bottom}v4"/>')
        parts.append(
            f'<text x="{x}" y="{bottom + 19}" text-anchor="middle">{panel.x.text(tick)}</text>'
        )
    middle = (LEFT + right) / 2
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    parts.append(
        f'<text x="{middle}" y="{bottom + 40}" text-anchor="middle">{escape(panel.x.label)}</text>'
    )
    across = (TOP + bottom) / 2
    parts.append(
        f'<text transform="translate(16 {across}) rotate(-90)" text-anchor="middle">'
        f"{escape(panel.y.label)}</text>"
    )
    return parts


def _lines(panel: Panel) -> list[str]:
    parts = []
    for one in panel.series:
        if one.band:
            there = [f"{_x(panel, x)},{_y(panel, high)}" for x, _, high in one.band]
            back = [f"{_x(panel, x)},{_y(panel, low)}" for x, low, _ in reversed(one.band)]
            parts.append(
                f'<polygon points="{" ".join(there + back)}" '
                f'style="fill: var(--{one.colour}); opacity: 0.16"/>'
            )
    for one in panel.series:
        places = [(_x(panel, x), _y(panel, y)) for x, y in one.points]
        parts.append(_stroke(one, "M" + "L".join(f"{x} {y}" for x, y in places)))
        if one.dots:
            parts += [_dot(one, x, y) for x, y in places]
        for x, y in one.marks:
            left, top = _x(panel, x), _y(panel, y) + 6
            parts.append(
                f'<path d="M{left} {top:.1f}l5 9h-10z" style="fill: var(--{one.colour}); '
                'stroke: var(--card)"/>'
            )
    return parts


def _stroke(one: Series, path: str) -> str:
    dash = f"; stroke-dasharray: {one.dash}" if one.dash else ""
    return (
        f'<path class="line" d="{path}" '
        f'style="stroke: var(--{one.colour}); stroke-width: {one.width}{dash}"/>'
    )


def _dot(one: Series, x: float, y: float) -> str:
    fill = "var(--card)" if one.hollow else f"var(--{one.colour})"
    return (
        f'<circle cx="{x}" cy="{y}" r="3" '
        f'style="fill: {fill}; stroke: var(--{one.colour}); stroke-width: 1.5"/>'
    )


def _name_width(name: str) -> float:
    return 44 + 6.7 * len(name)


def _legend_rows(panel: Panel) -> list[list[Series]]:
    rows: list[list[Series]] = []
    used = math.inf
    for one in panel.series:
        if not one.name:
            continue
        needed = _name_width(one.name)
        if used + needed > WIDTH - LEFT - RIGHT + 30:
            rows.append([])
            used = 0
        rows[-1].append(one)
        used += needed
    return rows


def _legend(panel: Panel) -> list[str]:
    parts = []
    for number, row in enumerate(_legend_rows(panel)):
        x, y = float(LEFT), HEIGHT + 4 + number * LEGEND_ROW
        for one in row:
            parts.append(_stroke(one, f"M{x:.1f} {y}h22"))
            if one.dots:
                parts.append(_dot(one, x + 11, y))
            parts.append(
                f'<text class="legend" x="{x + 29:.1f}" y="{y + 4}">{escape(one.name)}</text>'
            )
            x += _name_width(one.name)
    return parts
