"""A curve drawn with characters, for a terminal.

Owns the drawing: braille patterns, two dots wide and four high for each character. Pure; knows
nothing of where the numbers come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_BRAILLE = 0x2800
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""By column and row within a character."""


def curve(points: Sequence[tuple[float, float]], *, width: int = 64, height: int = 12) -> list[str]:
    """Draw points (x, y) as lines of text, with the range of both axes beside and below.

    Args:
        points: finite numbers, in any order; one at least.
        width: of the drawing, in characters.
        height: of the drawing, in lines.
    """
    xs, ys = [x for x, _ in points], [y for _, y in points]
    (left, right), (low, high) = (min(xs), max(xs)), (min(ys), max(ys))
    cells = [[0] * width for _ in range(height)]
    for x, y in points:
        column = _place(x, left, right, 2 * width)
        row = 4 * height - 1 - _place(y, low, high, 4 * height)
        cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
    labels = [_number(high), *[""] * (height - 2), _number(low)] if height > 1 else [_number(high)]
    margin = max(map(len, labels))
    lines = [
        f"{label:>{margin}} │{''.join(map(_character, row))}".rstrip()
        for label, row in zip(labels, cells, strict=True)
    ]
    start, end = _number(left), _number(right)
    axis = f"{start}{end:>{max(1, width - len(start))}}"
    return [*lines, f"{' ' * margin} └{'─' * width}", f"{' ' * margin}  {axis}"]


def _character(cell: int) -> str:
    return chr(_BRAILLE + cell) if cell else " "


def _place(value: float, low: float, high: float, dots: int) -> int:
    """Find the dot of a value, 0 to `dots` - 1."""
    if high <= low:
        return dots // 2
    return round((value - low) / (high - low) * (dots - 1))


def _number(value: float) -> str:
    return f"{value:.4g}"
