"""What the clients of one process share: clock, chance, rate limits, tokenizers, events.

An object, so that tests and multi-tenant programs have their own; `DEFAULT_RUNTIME` is what a
client uses that is given none. It owns no thread and no connection.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tinkex._clock import SystemClock
from tinkex.client.events import EventHub
from tinkex.client.limiter import LimiterRegistry
from tinkex.client.tokenizer import TokenizerCache

if TYPE_CHECKING:
    from tinkex._clock import Clock


class Runtime:
    """The shared parts.

    Args:
        clock: tells and waits time for every client of this runtime.
        rng: source of the jitter of back-offs.
        tokenizers: cache of loaded tokenizers.
    """

    def __init__(
        self,
        clock: Clock | None = None,
        rng: Random | None = None,
        tokenizers: TokenizerCache | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.rng = rng or Random()  # noqa: S311 - jitter, no secret
        self.limiters = LimiterRegistry(self.clock)
        self.tokenizers = tokenizers or TokenizerCache()
        self.events = EventHub()


DEFAULT_RUNTIME = Runtime()
