"""Draw a curve in text. Owns no data and no terminal."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"


def resample(values: Sequence[float], width: int) -> list[float]:
    """Average `values` into at most `width` columns."""
    if len(values) <= width:
        return list(values)
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def line_chart(values: Sequence[float], *, width: int = 60, height: int = 6) -> str:
    """Return a chart of `values` from left to right, with the highest and lowest value marked.

    Args:
        values: at least one finite number.
        width: columns at most.
        height: text rows.
    """
    columns = resample(values, width)
    low, high = min(columns), max(columns)
    span = (high - low) or 1.0
    # Each row shows eight levels; the lowest value keeps a sliver so that no column looks empty.
    levels = [1 + round((value - low) / span * (height * 8 - 1)) for value in columns]
    rows = []
    for row in range(height - 1, -1, -1):
        cells = "".join(_BLOCKS[min(max(level - row * 8, 0), 8)] for level in levels)
        label = f"{high:8.3f}" if row == height - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        rows.append(f"{label} ┤{cells}")
    return "\n".join(rows)
