"""Passwords: hashed with argon2id, and compared so that the time of an answer tells nothing.

Owns the hash and its cost, for the server's accounts and the mesh's. The parameters are those of
RFC 9106's second recommendation (64 MiB, three passes, four lanes). Every call takes some 50 ms of
a core, so it belongs into a thread.
"""

from __future__ import annotations

import secrets
from functools import cached_property
from typing import TYPE_CHECKING

from tinkex.errors import InputError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

MEMORY_KIB = 64 * 1024
MIN_LENGTH = 12
MAX_LENGTH = 1024


class Passwords:
    """Hashes passwords and compares them with hashes.

    Args:
        memory_kib: memory of one hash, in KiB.
    """

    def __init__(self, *, memory_kib: int = MEMORY_KIB) -> None:
        self._memory_kib = memory_kib

    @cached_property
    def _hasher(self) -> PasswordHasher:
        from argon2 import PasswordHasher, Type  # noqa: PLC0415 - only where somebody logs in

        return PasswordHasher(
            time_cost=3, memory_cost=self._memory_kib, parallelism=4, type=Type.ID
        )

    @cached_property
    def _nobodys(self) -> str:
        """The hash of a password that nobody has."""
        return self._hasher.hash(secrets.token_hex())

    def hash(self, password: str) -> str:
        """Return what may be stored of a password.

        Raises:
            InputError: it is too short or too long.
        """
        if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
            raise InputError(
                f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters; this one has "
                f"{len(password)}."
            )
        return self._hasher.hash(password)

    def matches(self, stored: str | None, password: str) -> bool:
        """Whether a password is that of a hash; the work is the same where there is no hash."""
        from argon2.exceptions import Argon2Error, InvalidHashError  # noqa: PLC0415 - as above

        try:
            same = self._hasher.verify(stored or self._nobodys, password[: MAX_LENGTH + 1])
        except (Argon2Error, InvalidHashError):
            return False
        return same and stored is not None
