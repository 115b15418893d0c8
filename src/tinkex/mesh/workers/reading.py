"""What a worker's metrics show when they are asked for: numbers that it has anyway.

Owns their form; `metrics` puts them into Prometheus'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """One number, or one for each value of a label."""

    name: str
    """Without `tinkex_mesh_`, and of one that only grows without `_total`."""
    help: str
    value: float | Mapping[str, float]
    label: str = ""
    """What the keys of `value` are: few, and never a peer's, a user's or a caller's words."""
    grows: bool = False
    """Whether it counts since the start, so that rates can be taken of it."""
