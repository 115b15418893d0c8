"""Permits: a gateway's word that one peer may do one thing for an account, for a short while.

Owns what they say, how they are made, and every check of them, one method each. That a permit is
used once is `nonces`' business; who a caller is, the transport's and its certificate's.

    Permit      one completion, on one processor, once
    BlobPermit  the files of one adapter, to one peer, until it expires
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tinkex.errors import TrustError
from tinkex.mesh.identity import PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S, Signed, check_certificate, opened

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinkex._clock import Clock
    from tinkex.mesh.identity import KeyPair
    from tinkex.mesh.trust.nonces import NonceStore

T = TypeVar("T")

PERMIT = "permit"
BLOB_PERMIT = "blob-permit"
NONCE_BYTES = 16
PERMIT_S = 30.0
"""How long a permit is meant to last: it is used as soon as it is made."""
MAX_PERMIT_S = 60.0
"""Longest that any permit may last."""
REMEMBERED_S = MAX_PERMIT_S + 3 * CLOCK_SKEW_S
"""Longest that a used permit must be remembered: it may be made by a clock that is ahead, used by
one that is behind, and that clock be set back meanwhile."""


class Permit(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One completion on one processor."""

    gateway: bytes
    processor: bytes
    account: str
    model: str
    """The base model, as the processor serves it and the request names it."""
    adapter: str
    """The content id of the adapter to run on it; empty for the base model itself."""
    request_hash: bytes
    """SHA-256 of the request's bytes."""
    max_tokens: int
    """Most tokens that all its completions may have together, those of `resume` included."""
    expires_at: float
    """Unix seconds."""
    nonce: bytes


class BlobPermit(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The files of one adapter, for one peer."""

    gateway: bytes
    fetcher: bytes
    account: str
    content: str
    expires_at: float
    """Unix seconds."""


def request_hash(request: bytes) -> bytes:
    """Return what a permit says of a request."""
    return hashlib.sha256(request).digest()


def make_permit(
    gateway: KeyPair,
    *,
    processor: PeerId,
    account: str,
    model: str,
    request: bytes,
    max_tokens: int,
    expires_at: float,
    adapter: str = "",
    nonce: bytes | None = None,
) -> bytes:
    """Sign a permit for the very bytes of a request."""
    body = Permit(
        gateway.peer_id.raw,
        processor.raw,
        account,
        model,
        adapter,
        request_hash(request),
        max_tokens,
        expires_at,
        secrets.token_bytes(NONCE_BYTES) if nonce is None else nonce,
    )
    return _signed(gateway, PERMIT, body)


def make_blob_permit(
    gateway: KeyPair, *, fetcher: PeerId, account: str, content: str, expires_at: float
) -> bytes:
    """Sign a permit to fetch an adapter's files."""
    body = BlobPermit(gateway.peer_id.raw, fetcher.raw, account, content, expires_at)
    return _signed(gateway, BLOB_PERMIT, body)


class PermitCheck:
    """What a processor demands before anything is done.

    Args:
        processor: who it is.
        nonces: the permits that were used.
        clock: tells the time.
    """

    def __init__(self, processor: PeerId, nonces: NonceStore, *, clock: Clock) -> None:
        self._processor = processor
        self._nonces = nonces
        self._clock = clock

    def check(
        self, encoded: bytes, *, caller: PeerId, request: bytes, model: str, tokens: int
    ) -> Permit:
        """Check a permit but for its signature, and use it up.

        `prove` and `keep` it before anything of its work is told. Both may wait until the work has
        begun: only the gateway that a permit names may bring it, and that one could sign it.

        Args:
            encoded: as it came.
            caller: who brought it, proven by the transport.
            request: the bytes that it is to be for.
            model: what the request names.
            tokens: most tokens that the request may make.

        Raises:
            TrustError: it was used, or does not cover the request.
            RateLimitError: too many permits are remembered; see `nonces`.
        """
        signed = _envelope(encoded, "permit")
        permit = _read(signed)
        self.check_caller(permit, signed, caller)
        self.check_processor(permit)
        self.check_request(permit, request)
        self.check_time(permit)
        self.check_scope(permit, model, tokens)
        self.check_unused(permit)
        return permit

    def prove(self, encoded: bytes) -> None:
        """Demand that who is said to have signed a permit that was checked did.

        Raises:
            TrustError: the signature does not hold.
        """
        opened(_envelope(encoded, "permit"), PERMIT, Permit)

    def check_caller(self, permit: Permit, signed: Signed, caller: PeerId) -> None:
        """Demand that it was made by the gateway that brings it."""
        if not signed.signer == permit.gateway == caller.raw:
            raise TrustError("the permit was made by another gateway than the one that brings it")

    def check_processor(self, permit: Permit) -> None:
        """Demand that it is for this processor."""
        if permit.processor != self._processor.raw:
            raise TrustError("the permit is for another processor")

    def check_request(self, permit: Permit, request: bytes) -> None:
        """Demand that it is for this request."""
        if permit.request_hash != request_hash(request):
            raise TrustError("the permit is for another request")

    def check_time(self, permit: Permit) -> None:
        """Demand that it has not expired, and does not last for ever."""
        _check_time(permit.expires_at, self._clock.now())

    def check_scope(self, permit: Permit, model: str, tokens: int) -> None:
        """Demand that it covers the model and the tokens."""
        if permit.model != model:
            raise TrustError("the permit is for another model than the request names")
        if not 0 <= tokens <= permit.max_tokens:
            raise TrustError(
                f"the permit is for {permit.max_tokens} tokens, and the request may make {tokens}"
            )

    def check_unused(self, permit: Permit) -> None:
        """Demand that it was not used before, and remember that it is now."""
        forget_at = permit.expires_at + 2 * CLOCK_SKEW_S
        self._nonces.use(permit.gateway, permit.nonce, forget_at=forget_at)

    def keep(self) -> None:
        """Have it remembered over a restart that it was used.

        Raises:
            StorageError: it cannot be written.
        """
        self._nonces.keep()


class BlobPermitCheck:
    """What a peer that has an adapter's files demands before it gives them away.

    Args:
        network: the network's id.
        roots: its roots' keys.
        is_revoked: whether a peer was shut out.
        clock: tells the time.
    """

    def __init__(
        self,
        network: PeerId,
        roots: Callable[[], frozenset[PeerId]],
        *,
        is_revoked: Callable[[PeerId], bool],
        clock: Clock,
    ) -> None:
        self._network = network
        self._roots = roots
        self._is_revoked = is_revoked
        self._clock = clock

    def check(
        self, encoded: bytes, *, certificate: bytes, caller: PeerId, content: str
    ) -> BlobPermit:
        """Check a permit to fetch.

        Args:
            encoded: as it came.
            certificate: of the gateway that made it.
            caller: who brings it, proven by the transport.
            content: what it wants.

        Raises:
            TrustError: it does not hold, or is for something else.
        """
        signed = _envelope(encoded, "permit to fetch")
        permit = self.check_signature(signed)
        self.check_signer(permit, signed, certificate)
        self.check_fetcher(permit, caller)
        self.check_content(permit, content)
        self.check_time(permit)
        return permit

    def check_signature(self, signed: Signed) -> BlobPermit:
        """Demand that who is said to have signed it did."""
        return opened(signed, BLOB_PERMIT, BlobPermit)

    def check_signer(self, permit: BlobPermit, signed: Signed, certificate: bytes) -> None:
        """Demand that a gateway of this network signed it."""
        found = check_certificate(
            certificate, network=self._network, roots=self._roots(), now=self._clock.now()
        )
        if found.role is not Role.GATEWAY or not found.peer.raw == signed.signer == permit.gateway:
            raise TrustError("the permit to fetch was made by no gateway")
        if self._is_revoked(found.peer) or self._is_revoked(found.issuer):
            raise TrustError("the gateway that made the permit to fetch was shut out")

    def check_fetcher(self, permit: BlobPermit, caller: PeerId) -> None:
        """Demand that it is for the peer that brings it."""
        if permit.fetcher != caller.raw:
            raise TrustError("the permit to fetch is for another peer")

    def check_content(self, permit: BlobPermit, content: str) -> None:
        """Demand that it is for what is wanted."""
        if permit.content != content:
            raise TrustError("the permit to fetch is for another adapter")

    def check_time(self, permit: BlobPermit) -> None:
        """Demand that it has not expired, and does not last for ever."""
        _check_time(permit.expires_at, self._clock.now())


def _signed(key_pair: KeyPair, purpose: str, message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    signature = key_pair.sign(purpose, body)
    return msgspec.msgpack.encode(Signed(body, key_pair.peer_id.raw, signature))


def _envelope(encoded: bytes, what: str) -> Signed:
    try:
        return msgspec.msgpack.decode(encoded, type=Signed)
    except ValueError as error:
        raise TrustError(f"this is no {what} ({error})") from error


def _read(signed: Signed) -> Permit:
    try:
        return msgspec.msgpack.decode(signed.body, type=Permit)
    except (ValueError, RecursionError) as error:
        raise TrustError(f"a {PERMIT} cannot be read ({error})") from error


def _check_time(expires_at: float, now: float) -> None:
    if not now < expires_at + CLOCK_SKEW_S:  # so that a NaN expires too
        raise TrustError("the permit has expired: ask for a new one, and check both clocks")
    if expires_at > now + MAX_PERMIT_S + CLOCK_SKEW_S:
        raise TrustError(f"the permit lasts longer than {MAX_PERMIT_S:g} s: none may")
