"""Whether a request is sent again, and when: the truth table of the HTTP layer. Pure.

Time and randomness are arguments. The table, by status (`-` is what no answer means):

| status | nothing said | retry-after(-ms) | x-should-retry: true | x-should-retry: false |
|---|---|---|---|---|
| 2xx | no | no | no | no |
| 400 401 403 404 422 and other 4xx | no | no | exponential | no |
| 408 409 429 5xx | exponential | the time it names | that time, or exponential | no |
| 410 | no | no | exponential | no |
| - (connect, read, protocol error, time-out) | exponential | | | |

A failure of category `user` is never sent again, whatever the header says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tinkex._backoff import Backoff, retry_after_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

_TRANSIENT = frozenset({408, 409, 429})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Every constant of the retries, in one place."""

    max_retries: int | None = 10
    """Attempts after the first one; None leaves the limit to `max_elapsed`."""
    max_elapsed: float | None = None
    """Seconds since the first attempt after which no further one begins; None is no limit."""
    initial_delay: float = 0.5
    """Seconds before the first retry; doubles with each."""
    max_delay: float = 10.0
    """Seconds; the doubling stops here."""
    jitter: float = 0.25
    """Up to this share of the delay is taken off it at random."""
    max_retry_after: float = 60.0
    """Seconds; a server that asks for more is not followed, the exponential delay is used."""

    def delay(self, failure: Failure, attempt: int, elapsed: float, rng: Random) -> float | None:
        """Return the seconds to wait before attempt `attempt + 1`, or None to give up.

        Args:
            failure: what came back.
            attempt: the attempt that failed, from 0.
            elapsed: seconds since the first attempt began.
            rng: source of the jitter.
        """
        if self.max_retries is not None and attempt >= self.max_retries:
            return None
        if self.max_elapsed is not None and elapsed >= self.max_elapsed:
            return None
        if not failure.may_be_repeated():
            return None
        told = failure.told_delay(self.max_retry_after)
        return told if told is not None else self.exponential(attempt, rng)

    def exponential(self, attempt: int, rng: Random) -> float:
        """Return the seconds before retry `attempt`, from 0, when the server named none."""
        return Backoff(self.initial_delay, self.max_delay, self.jitter).delay(attempt, rng)

    def never(self) -> RetryPolicy:
        """Return this policy without any retry, for requests that are repeated elsewhere."""
        return replace(self, max_retries=0)


@dataclass(frozen=True, slots=True)
class Failure:
    """What one attempt came to: a status with its headers, or None for no answer at all."""

    status: int | None
    headers: Mapping[str, str]
    category_is_user: bool = False
    received_at: float = 0.0
    """When it came, in seconds since the epoch: a Retry-After may be a date."""

    def may_be_repeated(self) -> bool:
        """Apply the truth table."""
        if self.status is None:
            return True
        if self.status < 400 or self.category_is_user:
            return False
        said = self.headers.get("x-should-retry", "").strip().lower()
        if said in {"true", "false"}:
            return said == "true"
        return self.is_transient()

    def is_transient(self) -> bool:
        """Whether the status alone asks for another attempt."""
        return self.status is None or self.status in _TRANSIENT or self.status >= 500

    def told_delay(self, limit: float) -> float | None:
        """Return the seconds the server named, when they count and lie in (0, limit]."""
        if self.status is None or not self.is_transient():
            return None
        return retry_after_seconds(self.headers, self.received_at, limit)
