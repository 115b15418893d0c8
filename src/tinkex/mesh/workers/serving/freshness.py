"""How old what a gateway knows of accounts is, and what it does not answer for that reason.

Owns two refusals, both 503 and never 401: of everybody, where the auth workers were not heard of
for so long that a revoked key may go on working here; and of a credential that is not known here,
where they cannot be asked whether it is new. Limits fail closed.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Protocol

from tinkex._clock import Clock
from tinkex.errors import APIStatusError, ConfigurationError, TinkerError, status_error
from tinkex.mesh.positive import not_positive
from tinkex.mesh.tasks import Tasks

RETRY_MS = 1000.0
LOOK_S = 1.0
"""How long it is not looked again whether enough is known; who counts may change meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreshnessConfig:
    """How old a gateway's knowledge of accounts may be. Times are in seconds.

    Raises:
        ConfigurationError: naming every value that cannot be.
    """

    stale_after_s: float = 60.0
    """Without a word of most auth workers for so long, everybody is refused."""
    ask_s: float = 2.0
    """How long they are waited for, when a credential is not known here."""
    pause_s: float = 0.2
    """Between two such questions: who comes meanwhile shares the next."""

    def __post_init__(self) -> None:
        if problems := not_positive(self):
            raise ConfigurationError(problems)


class News(Protocol):
    """What auth workers say of accounts."""

    def age_s(self) -> float:
        """Seconds since most of them gave all that they had; infinity: never yet."""

    async def ask(self, timeout_s: float) -> bool:
        """Ask them now; whether most gave all that they have."""


class Freshness:
    """Knows whether a gateway knows enough.

    Args:
        news: of the auth workers.
        tasks: owns questions.
        clock: tells and waits for time.
        config: how old it may be.
    """

    def __init__(self, news: News, tasks: Tasks, *, clock: Clock, config: FreshnessConfig) -> None:
        self._news = news
        self._tasks = tasks
        self._clock = clock
        self._config = config
        self._asked_at = -math.inf
        self._failed_at = -math.inf
        self._fresh_until = -math.inf
        self._next: asyncio.Future[bool] | None = None

    @property
    def trouble(self) -> str:
        """Why everybody is refused; empty where nobody is."""
        age = self._news.age_s()
        if age <= self._config.stale_after_s:
            return ""
        since = "yet" if math.isinf(age) else f"for {age:.0f} s"
        return f"it has not heard from most auth workers {since}"

    async def ensure(self) -> None:
        """Make sure that what is known is not too old.

        Raises:
            APIStatusError: 503, it is, and the auth workers cannot be asked.
        """
        now = self._clock.monotonic()
        if now < self._fresh_until:
            return
        left = self._config.stale_after_s - self._news.age_s()
        if left >= 0:
            self._fresh_until = now + min(left, LOOK_S)
            return
        if self._clock.monotonic() < self._failed_at + RETRY_MS / 1000:
            raise self._refusal()
        await self.catch_up()

    async def catch_up(self) -> None:
        """Get to know what the auth workers know by now.

        Raises:
            APIStatusError: 503, most of them cannot be asked.
        """
        asked = self._next
        if asked is None:
            asked = self._next = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._ask(asked), name="ask auth workers for what is new")
        if not await asyncio.shield(asked):
            raise self._refusal()

    async def _ask(self, asked: asyncio.Future[bool]) -> None:
        try:
            pause = self._asked_at + self._config.pause_s - self._clock.monotonic()
            if pause > 0:
                await self._clock.sleep(pause)
            self._next = None  # who comes from now on may know of something newer
            self._asked_at = self._clock.monotonic()
            answered = await self._answered()
            if not answered:
                self._failed_at = self._clock.monotonic()
            asked.set_result(answered)
        finally:
            if self._next is asked:
                self._next = None
            if not asked.done():
                asked.set_result(False)

    async def _answered(self) -> bool:
        try:
            return await self._news.ask(self._config.ask_s)
        except TinkerError:
            return False

    def _refusal(self) -> APIStatusError:
        why = self.trouble or "most auth workers do not answer it"
        return status_error(
            503,
            f"This gateway cannot check credentials now: {why}. Try again, or ask another gateway.",
            retry_after_ms=RETRY_MS,
        )
