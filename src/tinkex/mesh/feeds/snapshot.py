"""Snapshots: what an author's entries came to, signed by the author, so that they may be pruned.

Sans-IO. Owns what a snapshot says and its check. A reader that starts from one believes its author
that the state is what the pruned entries came to; the heads in it tie it to the chains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import msgspec

from tinkex.errors import PeerProtocolError, TrustError
from tinkex.mesh.feeds.entry import EPOCH_BYTES, HASH_BYTES, MAX_FEED_NAME
from tinkex.mesh.feeds.epoch import Member
from tinkex.mesh.feeds.policy import FeedPolicy
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S, check_certificate

SNAPSHOT = "feed-snapshot"
"""The purpose that snapshots are signed under."""
MAX_SNAPSHOT_BYTES = 64 * 1024 * 1024


class CoveredHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An epoch up to which the state goes: what later entries of it chain to."""

    epoch: bytes
    sequence: int
    hash: bytes
    time: int
    """Microseconds."""
    expires_at: float
    """When the certificate of the epoch's opening ends, in Unix seconds."""


class SnapshotBody(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What the author signs."""

    author: bytes
    feed: str
    time: int
    """Microseconds: that of the newest entry that is covered."""
    certificate: bytes
    """The author's role certificate, valid at the time at which it was signed."""
    signed_at: float
    """Unix seconds."""
    covered: tuple[CoveredHead, ...]
    states: dict[str, bytes]
    """The SHA-256 of each view's state, by the view's name and version."""


class Snapshot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A snapshot as it travels and is stored."""

    body: bytes
    signature: bytes
    states: dict[str, bytes]
    """What each view's entries came to, by the view's name and version."""

    def read(self) -> SnapshotBody:
        """Decode what was signed.

        Raises:
            PeerProtocolError: it makes no sense.
        """
        try:
            body = msgspec.msgpack.decode(self.body, type=SnapshotBody)
        except ValueError as error:
            raise PeerProtocolError(f"this is no snapshot of a feed ({error})") from error
        fits = all(
            len(head.epoch) == EPOCH_BYTES
            and len(head.hash) == HASH_BYTES
            and 0 <= head.sequence < 1 << 53
            and 0 <= head.time <= body.time < 1 << 62
            for head in body.covered
        )
        if not fits or len(body.author) != HASH_BYTES or not 0 < len(body.feed) <= MAX_FEED_NAME:
            raise PeerProtocolError("a snapshot of a feed is not in the form it must have")
        return body

    def encoded(self) -> bytes:
        """The bytes that travel."""
        return msgspec.msgpack.encode(self)


def decode_snapshot(encoded: bytes) -> Snapshot:
    """Read a snapshot from the bytes that travelled; check it before it is believed.

    Raises:
        PeerProtocolError: it is none.
    """
    if len(encoded) > MAX_SNAPSHOT_BYTES:
        raise PeerProtocolError("a snapshot is longer than any may be")
    try:
        return msgspec.msgpack.decode(encoded, type=Snapshot)
    except ValueError as error:
        raise PeerProtocolError(f"this is no snapshot of a feed ({error})") from error


def sign_snapshot(
    key_pair: KeyPair,
    *,
    feed: str,
    certificate: bytes,
    signed_at: float,
    covered: tuple[CoveredHead, ...],
    states: Mapping[str, bytes],
) -> Snapshot:
    """Sign what the entries up to `covered` came to."""
    digests = {name: hashlib.sha256(state).digest() for name, state in sorted(states.items())}
    time = max(head.time for head in covered)
    body = msgspec.msgpack.encode(
        SnapshotBody(key_pair.peer_id.raw, feed, time, certificate, signed_at, covered, digests)
    )
    return Snapshot(body, key_pair.sign(SNAPSHOT, body), dict(states))


class SnapshotRules:
    """What a snapshot must keep to.

    Args:
        member: gives the worker's credentials of now.
        policy: says which roles write which feed.
    """

    def __init__(self, member: Callable[[], Member], policy: FeedPolicy) -> None:
        self._member = member
        self._policy = policy

    def check(self, snapshot: Snapshot, *, now: float) -> SnapshotBody:
        """Check everything but what is held already.

        Raises:
            PeerProtocolError: it makes no sense.
            TrustError: its author did not sign it, or may not write the feed.
            UnsupportedError: there is no such feed.
        """
        body = snapshot.read()
        self.check_signature(snapshot, body)
        self.check_states(snapshot, body)
        self.check_author(body)
        if max(body.signed_at, body.time / 1e6) > now + CLOCK_SKEW_S:
            raise TrustError("a snapshot is from the future: check the clocks")
        return body

    def check_signature(self, snapshot: Snapshot, body: SnapshotBody) -> None:
        """Refuse what its author did not sign."""
        if not PeerId(body.author).signed(SNAPSHOT, snapshot.body, snapshot.signature):
            raise TrustError(f"the signature of a snapshot of {body.feed!r} does not hold")

    def check_states(self, snapshot: Snapshot, body: SnapshotBody) -> None:
        """Refuse states that are not those that were signed."""
        digests = {name: hashlib.sha256(state).digest() for name, state in snapshot.states.items()}
        if digests != body.states:
            raise TrustError(f"a snapshot of {body.feed!r} holds another state than was signed")

    def check_author(self, body: SnapshotBody) -> None:
        """Refuse an author that the network does not let write the feed."""
        member = self._member()
        certificate = check_certificate(
            body.certificate, network=member.network, roots=member.roots, now=body.signed_at
        )
        if certificate.peer != PeerId(body.author):
            raise TrustError("a snapshot shows another peer's certificate")
        if not self._policy.may_write(body.feed, certificate.role):
            raise TrustError(f"a {certificate.role} may not write {body.feed!r}")
