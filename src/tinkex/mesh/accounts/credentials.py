"""API keys and refresh tokens as text: made, recognised, and turned into what may be stored.

Owns their form. Both are 256 random bits behind a prefix, shown once; stored is their SHA-256. A
slow hash would add nothing to 256 random bits, and would cost every request its time.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

from tinkex.errors import AuthenticationError

KEY_PREFIX = "tmk-"
REFRESH_PREFIX = "tmr-"
SECRET_BYTES = 32
ID_BYTES = 12
VISIBLE_CHARACTERS = len(KEY_PREFIX) + 8
_REFRESH_PARTS = 2


class UnknownCredentialError(AuthenticationError):
    """401: a credential of the right form that is not known here; it may be new."""


def new_key(random: Callable[[int], bytes]) -> str:
    """Make an API key."""
    return KEY_PREFIX + _text(random(SECRET_BYTES))


def visible_prefix(key: str) -> str:
    """Return the first characters of a key, by which a person tells keys apart."""
    return key[:VISIBLE_CHARACTERS]


def digest(secret: str) -> bytes:
    """Return what is stored of a key or refresh token, and found by: 32 bytes."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def new_refresh_token(session_id: str, random: Callable[[int], bytes]) -> str:
    """Make a refresh token of a session."""
    return f"{REFRESH_PREFIX}{session_id}.{_text(random(SECRET_BYTES))}"


def session_of(refresh_token: str) -> str | None:
    """Say which session a refresh token claims to be of; None: it is no refresh token."""
    parts = refresh_token.removeprefix(REFRESH_PREFIX).split(".")
    if not refresh_token.startswith(REFRESH_PREFIX) or len(parts) != _REFRESH_PARTS:
        return None
    return parts[0]


def new_id(kind: str, random: Callable[[int], bytes]) -> str:
    """Name something new: `kind` and 96 random bits."""
    return f"{kind}-{random(ID_BYTES).hex()}"


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
