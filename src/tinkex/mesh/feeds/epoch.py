"""Epochs: each start or restore of a worker opens one, under the worker's role certificate.

Sans-IO. Owns what an opening says and who may open. An epoch's id is random, so that two lives of
one worker, the second begun from an old backup and without peers, never sign the same number. The
opening names every head that its author held: where several lines of epochs exist (the backup's and
the one that went on beyond it), the next opening names both, which joins them; until then views
fold both by time.

    A: 0 .. 50 .. 80     the first life; the backup was taken at 50
    B: 0 .. 7            restored, no peer in reach: builds on A 50
    C: 0 ..              peers gave A 51 .. 80 back: builds on A 80 and B 7
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from tinkex.errors import PeerProtocolError, TrustError
from tinkex.mesh.feeds.chain import Head
from tinkex.mesh.feeds.entry import FIRST, Entry, sign_entry
from tinkex.mesh.feeds.policy import FeedPolicy
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.certificates import (
    CLOCK_SKEW_S,
    CertificateBody,
    Chain,
    RoleCertificate,
    check_certificate,
)

MAX_BUILDS_ON = 64
"""Heads that one opening names: the newest; older ones are under them already."""
MAX_OPENING_BYTES = 16 * 1024


class Member(Protocol):
    """What a feed needs of a worker's credentials; `rpc.peers.Credentials` is one."""

    @property
    def key_pair(self) -> KeyPair:
        """The worker's own."""

    @property
    def network(self) -> PeerId:
        """The network's id."""

    @property
    def roots(self) -> frozenset[PeerId]:
        """Keys that certificates may lead up to."""

    @property
    def certificate(self) -> bytes | None:
        """The worker's own role certificate; None while it has none."""


class BuildsOn(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A head of an earlier epoch of the same author and feed."""

    epoch: bytes
    sequence: int
    hash: bytes


class Opening(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The payload of an epoch's entry 0."""

    certificate: bytes
    """The author's role certificate, with its chain up to the network's root."""
    builds_on: tuple[BuildsOn, ...]
    """What the author held of this feed of its own when it opened the epoch."""


@dataclass(frozen=True, slots=True)
class OpenedEpoch:
    """An opening that was checked."""

    role: Role
    expires_at: float
    """Unix seconds; no entry of the epoch may be later."""
    builds_on: tuple[BuildsOn, ...]


def open_epoch(
    member: Member, *, feed: str, epoch: bytes, time: int, builds_on: list[Head]
) -> Entry:
    """Sign an epoch's opening.

    Args:
        member: its certificate goes into the opening.
        feed: the feed's name.
        epoch: 16 fresh random bytes.
        time: microseconds, later than every entry that is held of the feed.
        builds_on: heads of the author's other epochs of this feed that no other opening names.

    Raises:
        TrustError: the worker has no certificate yet.
    """
    if member.certificate is None:
        raise TrustError("only a certified worker may write a feed: join the network first")
    newest = sorted(builds_on, key=lambda head: head.time, reverse=True)[:MAX_BUILDS_ON]
    named = tuple(BuildsOn(head.chain.epoch, head.sequence, head.hash) for head in newest)
    payload = msgspec.msgpack.encode(Opening(member.certificate, named))
    return sign_entry(
        member.key_pair,
        feed=feed,
        epoch=epoch,
        sequence=0,
        previous=FIRST,
        time=time,
        payload=payload,
    )


def read_opening(entry: Entry) -> Opening:
    """Read what an opening says.

    Raises:
        PeerProtocolError: it is none.
    """
    if entry.sequence != 0 or len(entry.payload) > MAX_OPENING_BYTES:
        raise PeerProtocolError(f"{entry.id} is no opening of an epoch")
    try:
        opening = msgspec.msgpack.decode(entry.payload, type=Opening)
    except ValueError as error:
        raise PeerProtocolError(f"the opening of {entry.chain} cannot be read ({error})") from error
    if len(opening.builds_on) > MAX_BUILDS_ON:
        raise PeerProtocolError(f"the opening of {entry.chain} names too many heads")
    return opening


def expiry_of(entry: Entry) -> float:
    """When the certificate in a stored opening ends, in Unix seconds; nothing is checked.

    Raises:
        PeerProtocolError: it cannot be read.
    """
    try:
        chain = msgspec.msgpack.decode(read_opening(entry).certificate, type=Chain)
        return msgspec.msgpack.decode(chain.certificate.body, type=CertificateBody).expires_at
    except ValueError as error:
        raise PeerProtocolError(f"the certificate of {entry.chain} cannot be read") from error


class EpochRules:
    """Who may open an epoch, and until when it goes on.

    Args:
        member: gives the worker's credentials of now: the network and its roots.
        policy: says which roles write which feed.
    """

    def __init__(self, member: Callable[[], Member], policy: FeedPolicy) -> None:
        self._member = member
        self._policy = policy

    def check_opening(self, entry: Entry) -> OpenedEpoch:
        """Check an epoch's first entry: a member of the network, of a role that writes the feed.

        The certificate must hold at the time that the opening says, not now: what a worker wrote
        goes on counting when it has left.

        Raises:
            TrustError: the author may not write this feed.
            PeerProtocolError: it is no opening.
        """
        opening = read_opening(entry)
        certificate = self.check_certificate(opening, entry)
        self.check_writer(entry, certificate)
        return OpenedEpoch(certificate.role, certificate.expires_at, opening.builds_on)

    def check_certificate(self, opening: Opening, entry: Entry) -> RoleCertificate:
        """Refuse an opening that the network's root does not stand behind."""
        member = self._member()
        certificate = check_certificate(
            opening.certificate,
            network=member.network,
            roots=member.roots,
            now=entry.time_s,
        )
        if certificate.peer != entry.author:
            raise TrustError(f"the opening of {entry.chain} shows another peer's certificate")
        return certificate

    def check_writer(self, entry: Entry, certificate: RoleCertificate) -> None:
        """Refuse an author whose role does not write this feed."""
        if not self._policy.may_write(entry.header.feed, certificate.role):
            raise TrustError(
                f"a {certificate.role} ({entry.author.short}) may not write {entry.header.feed!r}"
            )

    def check_within(self, entry: Entry, expires_at: float) -> None:
        """Refuse an entry that is later than the certificate its epoch was opened under."""
        if entry.time_s > expires_at + CLOCK_SKEW_S:
            raise TrustError(f"{entry.id} is later than its author's certificate lasted")
