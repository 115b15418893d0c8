"""Whoever guesses passwords has to wait, longer each time.

Owns counting failures and how long a wait is. Failures are counted for the account's address and
for the client they came from, apart: the one stops many clients that guess at one account, the
other one client that guesses at many. A right password during a wait does not help. The price is
that a member can make another's account wait, for an hour at most; it then waits itself, and its
key can be revoked.

Pure: a wait that begins is an event, so that no restart ends it; failures before it are counted in
memory alone, so that a stranger's guesses do not fill the log. A subject stands in the log under an
HMAC whose key does not.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from tinkex.errors import RateLimitError
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.accounts.events import LockedOut, LockLifted

MAX_SUBJECTS = 20_000
SUBJECT_BYTES = 16
_FORGET_S = 900.0
"""Failures are forgotten so long after the last one, or after the wait that it began."""


@dataclass(slots=True)
class _Failures:
    count: int
    last: float
    until: float = 0.0

    def forgotten(self, now: float) -> bool:
        return now >= max(self.last, self.until) + _FORGET_S


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom failures are counted for."""

    name: bytes
    allowed: int
    """Failures before a wait begins."""


class LockOut:
    """Counts failures.

    Args:
        config: how many are allowed, and how long waits are.
        secret: names subjects in the log; of this auth worker alone.
    """

    def __init__(self, config: AuthConfig, secret: bytes) -> None:
        self._config = config
        self._secret = secret
        self._failures: OrderedDict[bytes, _Failures] = OrderedDict()

    def account(self, email: str) -> Subject:
        """The subject of an address, whether or not an account has it."""
        return Subject(self._name(b"account", email.encode()), self._config.failures_per_account)

    def source(self, source: bytes) -> Subject:
        """The subject of a client."""
        return Subject(self._name(b"source", source), self._config.failures_per_source)

    def _name(self, kind: bytes, value: bytes) -> bytes:
        message = kind + b"\x00" + value
        return hmac.new(self._secret, message, hashlib.sha256).digest()[:SUBJECT_BYTES]

    def apply(self, event: LockedOut | LockLifted) -> None:
        """Fold one event of the log."""
        if isinstance(event, LockedOut):
            self._keep(event.subject, _Failures(event.failures, event.at, event.until))
        else:
            self._failures.pop(event.subject, None)

    def dump(self) -> Iterator[LockedOut]:
        """Give events that come to the waits that began."""
        for name, known in self._failures.items():
            if known.until:
                yield LockedOut(
                    at=known.last, subject=name, failures=known.count, until=known.until
                )

    def check(self, subjects: tuple[Subject, ...], now: float) -> None:
        """Refuse while one of the subjects has to wait.

        Raises:
            RateLimitError: it has; `retry_after_ms` says for how long.
        """
        until = max((one.until for one in map(self._of, subjects) if one), default=0.0)
        if now < until:
            raise RateLimitError(
                "too many wrong passwords: wait, then try again",
                retry_after_ms=int((until - now) * 1000) + 1,
            )

    def failed(self, subjects: tuple[Subject, ...], now: float) -> tuple[LockedOut, ...]:
        """Count a wrong password: the waits that begin, to be appended."""
        begun = []
        for subject in subjects:
            known = self._of(subject)
            if known is None or known.forgotten(now):
                known = _Failures(0, now)
            self._keep(subject.name, known)
            known.count += 1
            known.last = now
            beyond = known.count - subject.allowed
            if beyond >= 0:
                wait = self._config.lockout_s * 2.0 ** min(beyond, 30)
                until = now + min(wait, self._config.lockout_max_s)
                # at once, too: where the log refuses the event, the wait holds nevertheless
                known.until = until
                begun.append(
                    LockedOut(at=now, subject=subject.name, failures=known.count, until=until)
                )
        return tuple(begun)

    def succeeded(self, account: Subject, now: float) -> tuple[LockLifted, ...]:
        """Forget an account's failures; not its source's, who might guess at others in between."""
        known = self._failures.pop(account.name, None)
        if known is None or not known.until:
            return ()
        return (LockLifted(at=now, subject=account.name),)

    def _of(self, subject: Subject) -> _Failures | None:
        return self._failures.get(subject.name)

    def _keep(self, name: bytes, failures: _Failures) -> None:
        self._failures[name] = failures
        self._failures.move_to_end(name)
        if len(self._failures) > MAX_SUBJECTS:
            self._failures.popitem(last=False)
