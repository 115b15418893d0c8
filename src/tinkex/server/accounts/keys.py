"""API keys as text: made, recognised, and turned into what may be stored.

Owns their form. A key is shown once, when it is made; kept are its SHA-256, from which a random key
cannot be found, and its first characters, by which a person tells keys apart.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from tinkex.server.config import KEY_PREFIX

KEY_BYTES = 32
ID_HEX_DIGITS = 16
NUMBER_HEX_DIGITS = 13
VISIBLE_CHARACTERS = len(KEY_PREFIX) + 8
LONG_ENOUGH_TO_SHOW = 40


@dataclass(frozen=True, slots=True)
class GivenKey:
    """A key that the operator's settings or key file name, without the key."""

    digest: bytes
    prefix: str


def given_key(key: str) -> GivenKey:
    """Keep of an operator's key what may be kept."""
    return GivenKey(digest_of(key), visible_prefix(key))


def new_key() -> str:
    """Make a key of 256 random bits, with the prefix that the official SDK demands."""
    return f"{KEY_PREFIX}{secrets.token_urlsafe(KEY_BYTES)}"


def digest_of(key: str) -> bytes:
    """Return the SHA-256 of a key: what is stored of it, and what it is found by.

    A slow hash would add nothing to 256 random bits, and it would cost every request its time.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def key_id_of(digest: bytes) -> str:
    """Name a key: the first 64 bits of its hash."""
    return f"key-{digest.hex()[:ID_HEX_DIGITS]}"


def key_number_of(key_id: str) -> int:
    """Return a key's id as the whole number that the API knows it by; JSON holds it exactly."""
    return int(key_id.removeprefix("key-")[:NUMBER_HEX_DIGITS], 16)


def visible_prefix(key: str) -> str:
    """Return the part of a key that may be shown: of a short one, none of its secret."""
    return key[:VISIBLE_CHARACTERS] if len(key) >= LONG_ENOUGH_TO_SHOW else KEY_PREFIX
