"""Settings of an auth worker: how long things last, and how much of them there may be."""

from __future__ import annotations

from dataclasses import dataclass

from tinkex.errors import ConfigurationError
from tinkex.mesh.positive import not_positive
from tinkex.passwords import MEMORY_KIB

DAY_S = 86_400.0
MAX_ACCESS_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthConfig:
    """Settings of an auth worker.

    Raises:
        ConfigurationError: naming every setting that is wrong, not only the first.
    """

    registration_open: bool = True
    """Whether gateways may register new accounts; accounts that exist are not touched."""

    default_quota_tokens: int | None = 1_000_000
    """Tokens that a new account may use in all; None sets no limit."""

    access_s: float = 600.0
    """Seconds that an access token is good for, at most 900: gateways check it offline."""

    session_s: float = 14 * DAY_S
    """Seconds after a login when it ends, however often it was refreshed."""

    signing_key_s: float = 30 * DAY_S
    """Seconds after which the key that signs access tokens is replaced."""

    lease_tokens: int = 16_384
    """Tokens that a gateway is lent at once, of an account that has them."""

    lease_s: float = 30.0
    """Seconds that it may begin requests with them."""

    failures_per_account: int = 10
    """Wrong passwords for one address, after which it has to wait, with the right one too."""

    failures_per_source: int = 30
    """Wrong passwords from one client, for whichever addresses, after which it has to wait."""

    lockout_s: float = 60.0
    """Seconds of the first wait; each failure after it doubles the next."""

    lockout_max_s: float = 3600.0
    """Seconds of the longest."""

    registrations_per_hour: int = 10
    """Attempts to register from one client, whether they succeed or not."""

    max_sessions: int = 20
    """Sessions of one account; a further login ends the oldest."""

    max_keys: int = 100
    """API keys of one account that are neither revoked nor expired."""

    hashes_at_once: int = 1
    """Passwords that are hashed at the same time; each takes `password_memory_kib`."""

    max_waiting: int = 32
    """Requests that may wait for that; further ones are sent away at once."""

    password_memory_kib: int = MEMORY_KIB
    """Memory of one password hash, in KiB. Stored hashes keep theirs."""

    def __post_init__(self) -> None:
        problems = not_positive(self, but=("access_s", "default_quota_tokens"))
        if not 0 < self.access_s <= MAX_ACCESS_S:
            problems.append(
                f"access_s is {self.access_s:g}: an access token lasts at most {MAX_ACCESS_S:g} "
                "seconds, for gateways do not ask whether it still holds"
            )
        if self.default_quota_tokens is not None and self.default_quota_tokens < 0:
            problems.append("default_quota_tokens is negative: give 0, or None for no limit")
        if self.lockout_max_s < self.lockout_s:
            problems.append("lockout_max_s is less than lockout_s")
        if problems:
            raise ConfigurationError(problems)
