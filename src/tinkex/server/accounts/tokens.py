"""Tokens that stand for a key or a login for a while: JSON web tokens, signed with Ed25519.

Owns signing them, reading them, and the signing keys. Whether the key or the account behind one
still works is asked anew at every request, by `authenticator`: what is revoked ends at once, not
with its tokens.

RFC 7519 and RFC 8037. Only EdDSA is read, whatever a token's header says, and only with a key of
our own that its `kid` names.
"""

from __future__ import annotations

import base64
import itertools
import json
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinkex._files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from tinkex._clock import Clock

KEYS_NAME = "token_keys.json"
ALGORITHM = "EdDSA"
ISSUER = "passport-tinkex"
"""The official SDK reads the claims of a token that it is given directly where the issuer begins
with `passport-`."""
ORGANIZATION = "tinkex"
"""A server is one organisation."""
SUBJECT_PREFIX = "tml:organization_user:"
ROTATE_AFTER_S = 30 * 86_400.0
MAX_TOKEN_LENGTH = 4096
REMEMBERED_TOKENS = 4096
_REQUIRED = ["iss", "sub", "org_id", "email", "iat", "exp"]


class InvalidTokenError(Exception):
    """A token is not ours, was changed, or has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says. Times are unix seconds."""

    account_id: str
    email: str
    """Empty for an account without one."""
    key_id: str | None
    """The key that was exchanged for it; None after a login with a password."""
    logged_in_at: float
    """When the key or the password was shown, however often the token was renewed since."""


@dataclass(frozen=True, slots=True)
class _SigningKey:
    kid: str
    created_at: float
    private: Ed25519PrivateKey = field(repr=False)


class TokenIssuer:
    """Signs tokens and reads them.

    Args:
        key_file: the signing keys, for its owner's eyes alone; made when missing.
        clock: tells when tokens begin and end.
        lifetime_s: how long one is good.
    """

    def __init__(self, key_file: Path, *, clock: Clock, lifetime_s: float) -> None:
        self._key_file = key_file
        self._clock = clock
        self._lifetime_s = lifetime_s
        self._keys: list[_SigningKey] = []
        self._read: OrderedDict[str, tuple[Claims, float]] = OrderedDict()

    def issue(self, claims: Claims) -> tuple[str, float]:
        """Sign a token: (the token, when it ends)."""
        import jwt  # noqa: PLC0415 - with its cryptography a tenth of a second, for its users alone

        now = self._clock.now()
        key = self._signing_key(now)
        expires = int(now + self._lifetime_s)
        payload: dict[str, Any] = {
            "iss": ISSUER,
            "sub": SUBJECT_PREFIX + claims.account_id,
            "org_id": ORGANIZATION,
            "email": claims.email,
            "iat": int(now),
            "exp": expires,
            "auth_time": claims.logged_in_at,
        }
        if claims.key_id is not None:
            payload["key_id"] = claims.key_id
        token = jwt.encode(payload, key.private, algorithm=ALGORITHM, headers={"kid": key.kid})
        return token, float(expires)

    def read(self, token: str) -> Claims:
        """Return what a token says.

        Raises:
            InvalidTokenError: it is not ours, was changed, or has ended.
        """
        found = self._read.get(token)
        if found is None:
            found = self._verified(token)
            self._read[token] = found
            if len(self._read) > REMEMBERED_TOKENS:
                self._read.popitem(last=False)
        claims, expires = found
        if expires <= self._clock.now():
            self._read.pop(token, None)
            raise InvalidTokenError("it has ended")
        return claims

    def _verified(self, token: str) -> tuple[Claims, float]:
        import jwt  # noqa: PLC0415 - as above

        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidTokenError("it is too long")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            key = next((key for key in self._loaded() if key.kid == kid), None)
            if key is None:
                raise InvalidTokenError("its signing key is not known here")
            payload = jwt.decode(
                token,
                key.private.public_key(),
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                # times are compared below, with the server's own clock
                options={"require": _REQUIRED, "verify_exp": False, "verify_iat": False},
            )
            claims = Claims(
                account_id=str(payload["sub"]).removeprefix(SUBJECT_PREFIX),
                email=str(payload["email"]),
                key_id=payload.get("key_id"),
                logged_in_at=float(payload["auth_time"]),
            )
            return claims, float(payload["exp"])
        except (jwt.PyJWTError, ValueError, KeyError, TypeError) as error:
            raise InvalidTokenError("it is not one of ours") from error

    def _signing_key(self, now: float) -> _SigningKey:
        keys = self._loaded()
        if not keys or keys[-1].created_at + ROTATE_AFTER_S <= now:
            # what an older key signed within a token's life is still to be read
            kept = [
                key
                for key, successor in itertools.pairwise(keys)
                if successor.created_at + self._lifetime_s > now
            ]
            self._keys = [*kept, *keys[-1:], _new_key(now)]
            _write_keys(self._key_file, self._keys)
        return self._keys[-1]

    def _loaded(self) -> list[_SigningKey]:
        if not self._keys and self._key_file.exists():
            self._keys = _read_keys(self._key_file)
        return self._keys


def _new_key(now: float) -> _SigningKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - as above
        Ed25519PrivateKey,
    )

    return _SigningKey(secrets.token_hex(8), now, Ed25519PrivateKey.generate())


def _read_keys(path: Path) -> list[_SigningKey]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: PLC0415 - as above
        Ed25519PrivateKey,
    )

    return [
        _SigningKey(
            one["kid"],
            float(one["created_at"]),
            Ed25519PrivateKey.from_private_bytes(base64.b64decode(one["private"])),
        )
        for one in json.loads(path.read_text(encoding="utf-8"))["keys"]
    ]


def _write_keys(path: Path, keys: list[_SigningKey]) -> None:
    """Write the file with mode 0600, whole or not at all."""
    stored = [
        {
            "kid": key.kid,
            "created_at": key.created_at,
            "private": base64.b64encode(key.private.private_bytes_raw()).decode(),
        }
        for key in keys
    ]
    write_whole(path, json.dumps({"keys": stored}).encode())
