"""How much one key may ask for: so much a minute, and so many requests at once.

Owns a sliding window and a count of what is in progress, by key. Both fail closed: what they cannot
keep count of is refused. What an account may use in all is the business of `quota`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class _Window:
    """What one key took, newest last: (bucket's number, amount)."""

    buckets: deque[tuple[int, int]] = field(default_factory=deque)
    total: int = 0


class SlidingWindow:
    """At most so much in any stretch of time, for each key.

    Time is counted in buckets of a 60th of the window, so that a key's memory is bounded; a bucket
    leaves the window when all of it is old, and thus the limit is never exceeded.

    Args:
        limit: most in a window.
        window_s: its length, in seconds.
        max_keys: so many keys are kept count of; further ones are refused until others are idle.
    """

    BUCKETS = 60

    def __init__(self, limit: int, *, window_s: float = 60.0, max_keys: int = 100_000) -> None:
        self.limit = limit
        self._bucket_s = window_s / self.BUCKETS
        self._max_keys = max_keys
        self._windows: dict[str, _Window] = {}

    def take(self, key: str, amount: int, now: float, *, shared_by: int = 1) -> float | None:
        """Take `amount` if the window has room for it.

        Args:
            key: whose.
            amount: how much.
            now: monotonic seconds; never goes back.
            shared_by: gateways that the limit is divided among.

        Returns:
            None when it was taken, else after how many seconds to try again; nothing was taken
            then. Infinity says that it will never fit.
        """
        limit = max(1, self.limit // max(1, shared_by))
        if amount > limit:
            return float("inf")
        bucket = int(now // self._bucket_s)
        window = self._window(key, bucket)
        if window is None:
            return self._bucket_s * self.BUCKETS
        if window.total + amount > limit:
            return self._wait(window, window.total + amount - limit, now)
        if window.buckets and window.buckets[-1][0] == bucket:
            window.buckets[-1] = (bucket, window.buckets[-1][1] + amount)
        else:
            window.buckets.append((bucket, amount))
        window.total += amount
        return None

    def give_back(self, key: str, amount: int, taken_at: float) -> None:
        """Undo some of what was taken, as it was not needed after all.

        Args:
            key: whose.
            amount: how much of it, at most what was taken then.
            taken_at: when it was taken, in monotonic seconds.
        """
        window, bucket = self._windows.get(key), int(taken_at // self._bucket_s)
        for place, (at, taken) in enumerate(() if window is None else window.buckets):
            if at == bucket:
                assert window is not None, "it has a bucket"
                less = min(amount, taken)
                window.buckets[place] = (at, taken - less)
                window.total -= less
                return

    def _window(self, key: str, bucket: int) -> _Window | None:
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= self._max_keys:
                self._sweep(bucket)
            if len(self._windows) >= self._max_keys:
                return None
            window = self._windows[key] = _Window()
        self._prune(window, bucket)
        return window

    def _prune(self, window: _Window, bucket: int) -> None:
        # One more than the window has: the oldest of them is partly inside.
        while window.buckets and window.buckets[0][0] < bucket - self.BUCKETS:
            window.total -= window.buckets.popleft()[1]

    def _sweep(self, bucket: int) -> None:
        for window in self._windows.values():
            self._prune(window, bucket)
        self._windows = {key: one for key, one in self._windows.items() if one.buckets}

    def _wait(self, window: _Window, excess: int, now: float) -> float:
        for bucket, amount in window.buckets:
            excess -= amount
            if excess <= 0:
                return max(0.0, (bucket + self.BUCKETS + 1) * self._bucket_s - now)
        raise AssertionError("a window's buckets add up to its total")


class InProgress:
    """At most so many at once, for each key and in all.

    Args:
        per_key: most of one key.
        in_all: most of all keys together.
    """

    def __init__(self, *, per_key: int, in_all: int) -> None:
        self._per_key = per_key
        self._in_all = in_all
        self._counts: dict[str, int] = {}
        self._total = 0

    @property
    def total(self) -> int:
        """How many there are."""
        return self._total

    def enter(self, key: str) -> Ticket | None:
        """Count one more, or return None if there are too many."""
        if self._total >= self._in_all or self._counts.get(key, 0) >= self._per_key:
            return None
        self._counts[key] = self._counts.get(key, 0) + 1
        self._total += 1
        return Ticket(self, key)

    def _leave(self, key: str) -> None:
        self._total -= 1
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]


class Ticket:
    """One request in progress; left once, however often it is asked."""

    def __init__(self, owner: InProgress, key: str) -> None:
        self._owner: InProgress | None = owner
        self._key = key

    def leave(self) -> None:
        """Say that it is over. Harmless twice."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner._leave(self._key)  # noqa: SLF001 - the two are one thing
