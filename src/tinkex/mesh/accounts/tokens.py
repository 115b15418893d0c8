"""Access tokens: JSON web tokens, signed with Ed25519, that gateways read offline.

Owns signing and reading them. RFC 7519, 8037, 9068. Read is EdDSA alone, whatever a token's header
says, and only with a key that an auth worker announced under the header's `kid`.

An auth worker's signing keys are derived from its identity's secret key and the `kid`: who has the
one may announce any other in the log, so a second secret on the disk would protect nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tinkex.errors import AuthenticationError
from tinkex.mesh.accounts.credentials import UnknownCredentialError
from tinkex.mesh.accounts.events import SigningKeyAdded, SigningKeyRevoked
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S

ALGORITHM = "EdDSA"
ISSUER = "tinkex-mesh"
TYPE = "at+jwt"
MAX_TOKEN_LENGTH = 2048
REMEMBERED_TOKENS = 4096
_REQUIRED = ["iss", "aud", "sub", "sid", "iat", "exp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says. Times are unix seconds."""

    account_id: str
    session_id: str
    issued_at: float
    expires_at: float


def is_token(credential: str) -> bool:
    """Whether a credential looks like a token rather than a key."""
    return credential.count(".") == 2


class TokenSigner:
    """Signs one auth worker's tokens.

    Args:
        identity: the auth worker's key pair.
        network: whose members the tokens are for.
    """

    def __init__(self, identity: KeyPair, network: PeerId) -> None:
        self._identity = identity
        self._network = network

    def announce(self, kid: str, *, now: float, lasts_s: float, token_s: float) -> SigningKeyAdded:
        """Describe a new signing key, to be appended to the log before it signs anything."""
        return SigningKeyAdded(
            at=now,
            kid=kid,
            author=self._identity.peer_id.raw,
            public_key=self._derived(kid).public_key().public_bytes_raw(),
            sign_until=now + lasts_s,
            not_after=now + lasts_s + token_s,
        )

    def sign(self, kid: str, claims: Claims) -> str:
        """Sign a token with the key of a name."""
        import jwt  # noqa: PLC0415 - with its imports 50 ms and 8 MB, for auth and gateways alone

        payload = {
            "iss": ISSUER,
            "aud": str(self._network),
            "sub": claims.account_id,
            "sid": claims.session_id,
            "iat": claims.issued_at,
            "exp": claims.expires_at,
        }
        headers = {"kid": kid, "typ": TYPE}
        return jwt.encode(payload, self._derived(kid), algorithm=ALGORITHM, headers=headers)

    def _derived(self, kid: str) -> Ed25519PrivateKey:
        info = b"tinkex-mesh access tokens\x00" + self._network.raw + kid.encode()
        seed = HKDF(SHA256(), length=32, salt=None, info=info).derive(self._identity.seed)
        return Ed25519PrivateKey.from_private_bytes(seed)


class TokenReader:
    """Reads tokens of one network, with the signing keys that were announced.

    Args:
        network: tokens of others are refused.
    """

    def __init__(self, network: PeerId) -> None:
        self._network = network
        self._keys: dict[str, SigningKeyAdded] = {}
        self._revoked: dict[str, None] = {}
        self._read: OrderedDict[bytes, tuple[str, Claims]] = OrderedDict()

    def add(self, key: SigningKeyAdded) -> None:
        """Believe what a key signs, for its time. The first key of a name stays."""
        self._keys.setdefault(key.kid, key)

    def revoke(self, kid: str) -> None:
        """Believe a key no more, nor one that would come under its name."""
        self._revoked[kid] = None

    def dump(self) -> Iterator[SigningKeyAdded | SigningKeyRevoked]:
        """Give the keys that are known, and those that are revoked."""
        yield from self._keys.values()
        for kid in self._revoked:
            yield SigningKeyRevoked(at=0.0, kid=kid)

    def knows(self, kid: str) -> bool:
        """Whether a key was announced."""
        return kid in self._keys

    def knows_revoked(self, kid: str) -> bool:
        """Whether a key was revoked."""
        return kid in self._revoked

    def read(self, token: str, now: float) -> Claims:
        """Return what a token says.

        Raises:
            AuthenticationError: it is not of this network, was changed, or has ended. What was
                forged gets one answer, whatever is wrong with it.
        """
        name = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found = self._read.get(name)
        if found is None:
            found = self._verified(token)
            self._read[name] = found
            if len(self._read) > REMEMBERED_TOKENS:
                self._read.popitem(last=False)
        kid, claims = found
        self._check_key(self._keys[kid], now)
        self._check_expiry(claims, now)
        self._check_begun(claims, now)
        return claims

    def _verified(self, token: str) -> tuple[str, Claims]:
        import jwt  # noqa: PLC0415 - as above

        try:
            if len(token) > MAX_TOKEN_LENGTH:
                raise _forged()
            header = jwt.get_unverified_header(token)
            self._check_type(header)
            key = self._keys.get(str(header.get("kid")))
            if key is None:
                raise UnknownCredentialError(_FORGED)
            payload = self._signed(token, key)
            self._check_place(payload)
            claims = Claims(
                account_id=str(payload["sub"]),
                session_id=str(payload["sid"]),
                issued_at=float(payload["iat"]),
                expires_at=float(payload["exp"]),
            )
        except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
            raise _forged() from error
        return key.kid, claims

    # Each defence is a method of its own, so that a test can show what it alone holds back.

    def _check_type(self, header: dict[str, Any]) -> None:
        if header.get("typ") != TYPE:
            raise _forged()

    def _signed(self, token: str, key: SigningKeyAdded) -> dict[str, Any]:
        """Read what the key signed, with the one algorithm that there is."""
        import jwt  # noqa: PLC0415 - as above

        return jwt.decode(
            token,
            Ed25519PublicKey.from_public_bytes(key.public_key),
            algorithms=[ALGORITHM],
            # place and times are checked by their own methods, times with an injected clock
            options={
                "require": _REQUIRED,
                "verify_exp": False,
                "verify_iat": False,
                "verify_aud": False,
            },
        )

    def _check_place(self, payload: dict[str, Any]) -> None:
        if payload.get("iss") != ISSUER or payload.get("aud") != str(self._network):
            raise _forged()

    def _check_key(self, key: SigningKeyAdded, now: float) -> None:
        if key.kid in self._revoked or now >= key.not_after:
            raise AuthenticationError("the access token's signing key has ended: log in again")

    def _check_expiry(self, claims: Claims, now: float) -> None:
        if now >= claims.expires_at:
            raise AuthenticationError("the access token has expired: refresh the session")

    def _check_begun(self, claims: Claims, now: float) -> None:
        if claims.issued_at > now + CLOCK_SKEW_S:
            raise AuthenticationError(
                "the access token is not valid yet: the clocks of this network are apart"
            )


_FORGED = "the access token is none of this network: log in again"


def _forged() -> AuthenticationError:
    return AuthenticationError(_FORGED)
