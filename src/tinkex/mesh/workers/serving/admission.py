"""Who may ask, and how often: the first thing that a gateway does with a request.

Owns the check of a credential's scope, the windows and counts of each key and each client, and the
refusals with their Retry-After. Whether a credential is right, the accounts know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tinkex._clock import Clock
from tinkex.errors import ConfigurationError, RateLimitError
from tinkex.mesh.accounts.credentials import UnknownCredentialError
from tinkex.mesh.accounts.public import Caller
from tinkex.mesh.api.gateway import SHARE_IS_USED
from tinkex.mesh.identity import PeerId
from tinkex.mesh.limits import InProgress, SlidingWindow, Ticket
from tinkex.mesh.positive import not_positive
from tinkex.mesh.workers.serving.freshness import Freshness

BUSY_MS = 1000.0


class Accounts(Protocol):
    """Checks credentials, offline."""

    def verify(self, credential: str, now: float) -> Caller:
        """Say whose a credential is.

        Raises:
            UnknownCredentialError: nobody's that is known here.
            AuthenticationError: nobody's, or not any more.
        """

    async def current(self) -> None:
        """Wait until all that auth workers gave is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionConfig:
    """How much one key may ask for. Each rate is divided among the gateways that there are.

    Raises:
        ConfigurationError: naming every value that cannot be.
    """

    requests_per_minute: int = 600
    """Completions of one key that are let in."""
    tokens_per_minute: int = 2_000_000
    """Tokens, prompt and completion; of a request in progress, all that it may come to need."""
    account_calls_per_minute: int = 60
    """Registrations, logins and the like, of one client worker."""
    per_key: int = 64
    """Requests of one key in progress at once, at one gateway."""
    in_all: int = 512
    """Requests in progress at once, at one gateway."""

    def __post_init__(self) -> None:
        if problems := not_positive(self):
            raise ConfigurationError(problems)


class TokensTaken:
    """The tokens of a request in progress, as its key's limit counts them.

    Args:
        give_back: told how many were needed.
    """

    def __init__(self, give_back: Callable[[int], None]) -> None:
        self._give_back: Callable[[int], None] | None = give_back

    def settle(self, needed: int) -> None:
        """Count no more than those that were needed. Only the first word counts."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(needed)


class Admission:
    """Lets requests in.

    Args:
        accounts: checks credentials.
        freshness: whether what they know is new enough.
        gateways: says how many share the limits.
        clock: tells the time.
        config: the limits.
    """

    def __init__(
        self,
        accounts: Accounts,
        freshness: Freshness,
        gateways: Callable[[], int],
        *,
        clock: Clock,
        config: AdmissionConfig,
    ) -> None:
        self._accounts = accounts
        self._freshness = freshness
        self._gateways = gateways
        self._clock = clock
        self._requests = SlidingWindow(config.requests_per_minute)
        self._tokens = SlidingWindow(config.tokens_per_minute)
        self._account_calls = SlidingWindow(config.account_calls_per_minute)
        self._progress = InProgress(per_key=config.per_key, in_all=config.in_all)

    @property
    def in_progress(self) -> int:
        """Requests that were let in and are not over."""
        return self._progress.total

    async def caller(self, credential: str, scope: str) -> Caller:
        """Say whose a credential is, if it may do this.

        One that is not known here may have been made a moment ago: auth workers are asked.

        Raises:
            AuthenticationError: it is nobody's.
            PermissionDeniedError: it lacks the scope.
            APIStatusError: 503, this gateway cannot know.
        """
        await self._freshness.ensure()
        try:
            caller = self._accounts.verify(credential, self._clock.now())
        except UnknownCredentialError:
            await self._freshness.catch_up()
            await self._accounts.current()
            caller = self._accounts.verify(credential, self._clock.now())
        caller.need(scope)
        return caller

    def enter(self, caller: Caller) -> Ticket:
        """Let a completion in; the ticket is left when it is over.

        Raises:
            RateLimitError: the key has too many at once, or asks too often, or there are too many.
        """
        who = _key(caller)
        ticket = self._progress.enter(who)
        if ticket is None:
            raise _refused("Too many requests in progress: wait for one to end.", BUSY_MS)
        try:
            self._take(self._requests, who, 1, "requests", self._clock.monotonic())
        except RateLimitError:
            ticket.leave()
            raise
        return ticket

    def take_tokens(self, caller: Caller, tokens: int) -> TokensTaken:
        """Count the tokens that a request may cost.

        Raises:
            RateLimitError: too many within a minute.
        """
        who, now = _key(caller), self._clock.monotonic()
        self._take(self._tokens, who, tokens, "tokens", now)
        return TokensTaken(lambda needed: self._tokens.give_back(who, tokens - needed, now))

    def take_account_call(self, client: PeerId) -> None:
        """Count a call about accounts.

        Raises:
            RateLimitError: too many within a minute.
        """
        now = self._clock.monotonic()
        self._take(self._account_calls, str(client), 1, "account requests", now)

    def _take(self, window: SlidingWindow, who: str, amount: int, name: str, now: float) -> None:
        wait = window.take(who, amount, now, shared_by=self._gateways())
        if wait is None:
            return
        if math.isinf(wait):
            raise _refused(
                f"This request may need {amount} {name}, more than a minute's limit at this "
                "gateway: ask for fewer."
            )
        raise _refused(f"Too many {name} in a minute.", wait * 1000)


def _refused(why: str, after_ms: float | None = None) -> RateLimitError:
    return RateLimitError(why, body={"code": SHARE_IS_USED}, retry_after_ms=after_ms)


def _key(caller: Caller) -> str:
    return f"{caller.account_id}/{caller.key_id}"
