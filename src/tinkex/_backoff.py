"""How long to wait before the next attempt. Pure: time and randomness are arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

MAX_RETRY_AFTER_SECONDS = 60.0
"""A server that asks for a longer wait is not followed."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays: `initial` seconds, doubling to `maximum`, less up to `jitter` of it."""

    initial: float = 0.5
    """Seconds before the first retry."""
    maximum: float = 10.0
    """Seconds; the doubling stops here."""
    jitter: float = 0.25
    """Up to this share is taken off at random, so that clients do not come back together."""

    def delay(self, attempt: int, rng: Random) -> float:
        """Return the seconds before retry `attempt`, from 0."""
        # 2**1000 would overflow a float; no delay doubles that often.
        doubled = self.initial * 2.0 ** min(max(attempt, 0), 60)
        return min(doubled, self.maximum) * (1.0 - self.jitter * rng.random())


def retry_after_seconds(
    headers: Mapping[str, str], now: float, limit: float = MAX_RETRY_AFTER_SECONDS
) -> float | None:
    """Return the seconds a server asks to wait, or None when it asks for nothing sensible.

    `retry-after-ms` goes before `retry-after`, which is in seconds, whole or not, or an HTTP date
    (RFC 9110, section 10.2.3).

    Args:
        headers: the answer's, names in lower case or a case-insensitive mapping.
        now: the present, in seconds since the epoch, for a date.
        limit: a wait above it counts as none.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        seconds = None if text is None else _seconds(text.strip(), unit, now)
        if seconds is not None and 0 < seconds <= limit:
            return seconds
    return None


def _seconds(text: str, unit: float, now: float) -> float | None:
    # float() also reads "1_0", "inf", "nan": none of them is a number of a header.
    if text and all(c in "0123456789.+-eE" for c in text):
        try:
            value = float(text) * unit
        except ValueError:
            return None
        return value if math.isfinite(value) else None
    if unit != 1.0:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return moment.timestamp() - now
    except OverflowError:
        return None
