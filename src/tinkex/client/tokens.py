"""Short-lived tokens in place of the key, where the server wants them.

Owns when a token is exchanged and renewed: the key is sent once, every other request carries the
token. It is renewed in the background around half of its life, so that no request waits for it, and
waited for only when it is about to end.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from typing import TYPE_CHECKING, Any

from tinkex.client.shared_attempt import SharedAttempt
from tinkex.errors import APIError, APIResponseValidationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from tinkex._clock import Clock

_LOG = logging.getLogger("tinkex.client")

_LAST_SECONDS = 60.0
"""With less left of its life, a token is not used for another request."""
_RETRY_SECONDS = 60.0
"""Between two attempts to renew a token that still lives."""
_RENEW_FROM, _RENEW_TO = 0.45, 0.55
"""Shares of its life between which a token is renewed; chance spreads the clients of a server."""
_DEFAULT_LIFE_SECONDS = 3600.0


class TokenExchange:
    """The token of one client.

    Args:
        exchange: sends the key, and returns a token.
        clock: tells how old the token is.
        rng: spreads the renewals.
    """

    def __init__(self, exchange: Callable[[], Awaitable[str]], clock: Clock, rng: Random) -> None:
        self._exchange = exchange
        self._clock = clock
        self._rng = rng
        self._exchanging = SharedAttempt()
        self._token: str | None = None
        self._ends_at = 0.0
        self._renew_at = 0.0
        self._renewing: asyncio.Task[None] | None = None

    async def token(self) -> str:
        """Return a token that lives.

        Raises:
            APIError: the server gives none.
        """
        now = self._clock.monotonic()
        if self._token is None or self._ends_at - now <= _LAST_SECONDS:
            await self._renew(self._token)
        elif now >= self._renew_at and (self._renewing is None or self._renewing.done()):
            self._renew_at = now + _RETRY_SECONDS
            self._renewing = asyncio.create_task(self._renew_quietly(self._token))
        assert self._token is not None
        return self._token

    def refused(self, token: str) -> None:
        """Note that the server does not take a token any more."""
        if token == self._token:
            self._token = None

    async def _renew_quietly(self, old: str) -> None:
        try:
            await self._renew(old)
        except APIError as error:
            _LOG.warning("The token could not be renewed; it is tried again: %s", error)

    async def _renew(self, old: str | None) -> None:
        """Exchange the key, unless somebody else just did."""
        async with self._exchanging.turn():
            if self._token is not None and self._token != old:
                return
            token = await self._exchange()
            claims = jwt_claims(token)
            now = self._clock.monotonic()
            # the length of its life, not its end: the two clocks may differ
            life = _life(claims)
            self._ends_at = now + life
            share = _RENEW_FROM + (_RENEW_TO - _RENEW_FROM) * self._rng.random()
            self._renew_at = now + life * share
            self._token = token


def jwt_claims(token: str) -> dict[str, Any]:
    """Read what a JSON web token claims (RFC 7519); its signature is the server's business.

    Raises:
        APIResponseValidationError: it is no such token.
    """
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError) as error:
        raise APIResponseValidationError("The server's token is no JSON web token.") from error
    if not isinstance(claims, dict):
        raise APIResponseValidationError("The server's token claims nothing.")
    return claims


def _life(claims: dict[str, Any]) -> float:
    issued, expires = claims.get("iat"), claims.get("exp")
    if not isinstance(issued, int | float) or not isinstance(expires, int | float):
        return _DEFAULT_LIFE_SECONDS
    # one that ends at once would be asked for with every request
    return max(float(expires - issued), 2 * _LAST_SECONDS)
