"""Logging in with a password.

Owns how often it may be tried, and that many at once cannot take the machine's memory: a hash takes
64 MiB. What is answered, and when, does not depend on whether there is such an account.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from tinkex.server.accounts.tokens import Claims
from tinkex.server.refusal import try_later, unauthorized

if TYPE_CHECKING:
    from tinkex._clock import Clock
    from tinkex.server.accounts.directory import Directory
    from tinkex.server.accounts.tokens import TokenIssuer

AT_ONCE = 2
MAX_WAITING = 16
ATTEMPTS = 10
"""Failures for one address within the window; after them it has to wait, with the right password
too."""
WINDOW_S = 900.0
MAX_ADDRESSES = 10_000


class Logins:
    """Takes passwords and gives tokens.

    Args:
        directory: knows the accounts.
        tokens: signs.
        clock: tells when a failure is forgotten.
    """

    def __init__(self, directory: Directory, tokens: TokenIssuer, clock: Clock) -> None:
        self._directory = directory
        self._tokens = tokens
        self._clock = clock
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._failures: OrderedDict[bytes, list[float]] = OrderedDict()

    async def log_in(self, email: str, password: str) -> tuple[str, float]:
        """Return a token, and when it ends in unix seconds.

        Raises:
            Refusal: 401 for a wrong address or password, in the same words; 429 after too many
                failures, or while too many wait.
        """
        address = hashlib.sha256(email.strip().lower().encode()).digest()
        self._check_failures(address)
        if self._waiting >= MAX_WAITING:
            raise try_later("Too many logins wait just now.", retry_after_s=2.0)
        self._waiting += 1
        try:
            async with self._turn:
                account = await asyncio.to_thread(self._directory.log_in, email, password)
        finally:
            self._waiting -= 1
        if account is None:
            self._note_failure(address)
            raise unauthorized("The e-mail address or the password is wrong.")
        self._failures.pop(address, None)
        claims = Claims(
            account_id=account.account_id,
            email=account.email or "",
            key_id=None,
            logged_in_at=self._clock.now(),
        )
        return self._tokens.issue(claims)

    def _check_failures(self, address: bytes) -> None:
        start = self._clock.monotonic() - WINDOW_S
        recent = [at for at in self._failures.get(address, ()) if at > start]
        if len(recent) >= ATTEMPTS:
            wait = max(1.0, recent[-ATTEMPTS] - start)
            raise try_later(
                "Too many failed logins with this address: wait, then try again.",
                retry_after_s=wait,
            )

    def _note_failure(self, address: bytes) -> None:
        recent = self._failures.setdefault(address, [])
        recent.append(self._clock.monotonic())
        del recent[:-ATTEMPTS]
        self._failures.move_to_end(address)
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
