"""A rate, as a bucket that fills by the minute. Policy only: the time is an argument.

Owns the arithmetic. A bucket holds a minute's worth, may be overdrawn by what is known only
afterwards (a sample's length), and lets nothing more through until that is paid back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LONGEST_WAIT_S = 60.0
"""Clients take no longer wait from a header seriously."""
SHORTEST_WAIT_S = 0.05


@dataclass(slots=True)
class Bucket:
    """What one key may still use."""

    per_minute: int
    updated: float
    """Monotonic seconds."""
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = float(self.per_minute)

    def fill(self, now: float) -> None:
        """Add what the time since the last call brings."""
        gained = (now - self.updated) * self.per_minute / 60
        self.level = min(float(self.per_minute), self.level + max(0.0, gained))
        self.updated = now

    def take(self, amount: float) -> None:
        """Take out what is used; a negative amount is put back."""
        self.level = min(float(self.per_minute), self.level - amount)

    @property
    def is_open(self) -> bool:
        """Whether anything more may go through."""
        return self.level >= 1

    @property
    def wait_s(self) -> float:
        """Seconds until it is open, within what clients heed; 0 when it is."""
        if self.is_open:
            return 0.0
        wait = (1 - self.level) * 60 / self.per_minute
        return min(LONGEST_WAIT_S, max(SHORTEST_WAIT_S, wait))

    @property
    def full_in_s(self) -> float:
        """Seconds until it is full again."""
        return (self.per_minute - self.level) * 60 / self.per_minute
