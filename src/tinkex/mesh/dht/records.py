"""What is announced: a record that a peer signs, for a short while, with its role certificate.

Owns the record's form, its making and every check of it. Where it is kept, `storage` knows.

It travels compressed, because a certificate's chain names the same keys again and again: 780 bytes
become 540, which leaves room in the kilobyte for addresses, models and adapters.
"""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from tinkex.errors import InputError, TrustError
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S, RoleCertificate, check_certificate

RECORD = "dht-record"
MAX_RECORD_BYTES = 1024
"""As it travels."""
MAX_TTL_S = 60.0
MIN_TTL_S = 3.0
MAX_TOPIC_CHARACTERS = 128
_MAX_INFLATED_BYTES = 4096
_ADAPTER_PREFIX_BYTES = 8
_CHECKED_CERTIFICATES = 1024
_KNOWN = 4096
_RECHECK_S = 60.0

ANNOUNCERS: dict[str, frozenset[Role]] = {
    "auth": frozenset({Role.AUTH}),
    "gateway": frozenset({Role.GATEWAY}),
    "processor": frozenset({Role.PROCESSOR}),
    "bootstrap": frozenset({Role.BOOTSTRAP, Role.AUTH}),
}
"""Who may announce a topic that is a single word."""
PREFIX_ANNOUNCERS: dict[str, frozenset[Role]] = {
    "model:": frozenset({Role.PROCESSOR}),
    # Whoever holds an adapter's files: its owner's client until processors and gateways have them.
    "adapter:": frozenset({Role.PROCESSOR, Role.CLIENT, Role.GATEWAY}),
}


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a worker says of itself under a topic."""

    models: tuple[str, ...] = ()
    """Names of the base models that it runs."""
    adapters: tuple[str, ...] = ()
    """Hashes, in hexadecimal, of adapters that are loaded, latest used first. As many as fit."""
    load: float = 0.0
    """Work waiting, in any unit that is the same for all; 0 is idle."""
    free_slots: int = 0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A record that was checked."""

    topic: str
    contact: Contact
    certificate: RoleCertificate
    models: tuple[str, ...]
    adapters: tuple[str, ...]
    """First 16 hexadecimal digits of each hash."""
    load: float
    free_slots: int
    sequence: int
    """Higher than in every earlier record of this publisher under this topic."""
    expires_at: float
    """Unix seconds by the publisher's clock."""
    ttl_s: float
    withdrawn: bool
    """Whether the publisher takes back what it announced; readers never see such a record."""
    encoded: bytes
    """As it travels."""


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    topic: str
    peer: bytes
    addresses: tuple[str, ...]
    certificate: bytes
    models: tuple[str, ...]
    adapters: tuple[bytes, ...]
    load: float
    free_slots: int
    sequence: int
    expires_at: float
    ttl_s: float
    withdrawn: bool


class _Signed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The signer is the body's peer."""

    body: bytes
    signature: bytes


def may_announce(role: Role, topic: str) -> bool:
    """Whether a worker of this role may announce this topic at all."""
    prefix = topic[: topic.find(":") + 1]
    if prefix:
        return len(topic) > len(prefix) and role in PREFIX_ANNOUNCERS.get(prefix, ())
    return role in ANNOUNCERS.get(topic, ())


def make_record(
    key_pair: KeyPair,
    *,
    topic: str,
    offer: Offer,
    addresses: tuple[str, ...],
    certificate: bytes,
    sequence: int,
    expires_at: float,
    ttl_s: float,
    withdrawn: bool = False,
) -> bytes:
    """Sign a record; adapters that find no room are left out, the last ones first.

    Raises:
        InputError: it is longer than `MAX_RECORD_BYTES` even so.
    """
    prefixes = [bytes.fromhex(content)[:_ADAPTER_PREFIX_BYTES] for content in offer.adapters]
    while True:
        body = msgspec.msgpack.encode(
            _Body(
                topic,
                key_pair.peer_id.raw,
                addresses,
                certificate,
                offer.models,
                tuple(prefixes),
                offer.load,
                offer.free_slots,
                sequence,
                expires_at,
                ttl_s,
                withdrawn,
            )
        )
        encoded = zlib.compress(
            msgspec.msgpack.encode(_Signed(body, key_pair.sign(RECORD, body))), 9
        )
        if len(encoded) <= MAX_RECORD_BYTES:
            return encoded
        if not prefixes:
            raise InputError(
                f"the announcement of {topic!r} has {len(encoded)} bytes, more than the "
                f"{MAX_RECORD_BYTES} of a record: announce fewer or shorter models and addresses"
            )
        del prefixes[len(prefixes) * 3 // 4 :]


class RecordChecker:
    """Says whether a record is to be believed. Each check is a method of its own.

    Args:
        network: the network's id.
        roots: gives the network's root keys; they may be rotated.
        is_revoked: whether a peer was shut out.
    """

    def __init__(
        self,
        *,
        network: PeerId,
        roots: Callable[[], frozenset[PeerId]],
        is_revoked: Callable[[PeerId], bool],
    ) -> None:
        self._network = network
        self._roots = roots
        self._is_revoked = is_revoked
        self._known: OrderedDict[bytes, Record] = OrderedDict()
        self._certificates: OrderedDict[bytes, tuple[float, RoleCertificate]] = OrderedDict()

    def check(self, encoded: bytes, *, now: float, topic: str | None = None) -> Record:
        """Check a record of anybody's, and that it is of `topic`, if one was asked for.

        Raises:
            TrustError: it is forged, expired, too long or too long-lived, or its signer may not
                say it.
        """
        self._check_size(encoded)
        record = self._known.get(encoded)
        if record is None:
            record = self._opened(encoded, now)
            self._known[encoded] = record
            if len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        self._checked_certificate(record.certificate.encoded, now)
        self._check_topic(record, topic)
        self._check_expiry(record, now)
        self.check_not_revoked(record.contact.peer_id)
        self.check_issuer(record.certificate)
        return record

    def _opened(self, encoded: bytes, now: float) -> Record:
        """Check what stays true: a lookup sees the same records again and again."""
        signed, body = _read(encoded)
        self._check_values(body)
        self._check_lifetime(body, now)
        self._check_signature(signed, body)
        certificate = self._checked_certificate(body.certificate, now)
        self._check_owner(body, certificate)
        self._check_role(body, certificate)
        return _record(body, certificate, encoded)

    def check_not_revoked(self, peer: PeerId) -> None:
        """Check that a publisher was not shut out since.

        Raises:
            TrustError: it was.
        """
        if self._is_revoked(peer):
            raise TrustError(f"{peer.short}, who signed the record, was shut out of the network")

    def check_issuer(self, certificate: RoleCertificate) -> None:
        """Check that the auth worker that certified the publisher was not shut out since.

        Raises:
            TrustError: it was.
        """
        if self._is_revoked(certificate.issuer):
            raise TrustError(
                f"{certificate.peer.short}, who signed the record, was certified by an auth worker "
                "that was shut out of the network"
            )

    def _check_size(self, encoded: bytes) -> None:
        if len(encoded) > MAX_RECORD_BYTES:
            raise TrustError(
                f"the record has {len(encoded)} bytes, more than {MAX_RECORD_BYTES}: refused unread"
            )

    def _check_topic(self, record: Record, topic: str | None) -> None:
        if topic is not None and record.topic != topic:
            raise TrustError("the record is of another topic than was asked for")

    def _check_values(self, body: _Body) -> None:
        if not (
            1 <= len(body.topic) <= MAX_TOPIC_CHARACTERS
            and body.sequence >= 0
            and body.free_slots >= 0
            and math.isfinite(body.load)
            and body.load >= 0
        ):
            raise TrustError("the record's numbers make no sense")

    def _check_expiry(self, record: Record, now: float) -> None:
        # Written so that a NaN fails.
        if not now < record.expires_at + CLOCK_SKEW_S:
            raise TrustError("the record has expired: its publisher must renew it")

    def _check_lifetime(self, body: _Body, now: float) -> None:
        if not (
            MIN_TTL_S <= body.ttl_s <= MAX_TTL_S
            and body.expires_at <= now + body.ttl_s + CLOCK_SKEW_S
        ):
            raise TrustError(
                f"the record lives longer than {MAX_TTL_S:.0f} s, or its publisher's clock is "
                "ahead: check the clock"
            )

    def _check_signature(self, signed: _Signed, body: _Body) -> None:
        if not PeerId(body.peer).signed(RECORD, signed.body, signed.signature):
            raise TrustError("the record was not signed by the peer that it names")

    def _check_owner(self, body: _Body, certificate: RoleCertificate) -> None:
        if certificate.peer.raw != body.peer:
            raise TrustError("the record shows the role certificate of somebody else")

    def _check_role(self, body: _Body, certificate: RoleCertificate) -> None:
        if not may_announce(certificate.role, body.topic):
            raise TrustError(f"a {certificate.role} may not announce {body.topic!r}")

    def _checked_certificate(self, encoded: bytes, now: float) -> RoleCertificate:
        """Check the chain, or know it from a minute ago: four signatures take most of a ms."""
        known = self._certificates.get(encoded)
        if known is not None and 0 <= now - known[0] < _RECHECK_S:
            self._certificates.move_to_end(encoded)
            return known[1]
        certificate = check_certificate(
            encoded, network=self._network, roots=self._roots(), now=now
        )
        self._certificates[encoded] = (now, certificate)
        if len(self._certificates) > _CHECKED_CERTIFICATES:
            self._certificates.popitem(last=False)
        return certificate


def _read(encoded: bytes) -> tuple[_Signed, _Body]:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(encoded, _MAX_INFLATED_BYTES)
        if not inflater.eof or inflater.unused_data:
            raise TrustError(f"the record is cut off, or has over {_MAX_INFLATED_BYTES} bytes")
        signed = msgspec.msgpack.decode(plain, type=_Signed)
        body = msgspec.msgpack.decode(signed.body, type=_Body)
        PeerId(body.peer)
    except (zlib.error, ValueError) as error:
        raise TrustError(f"this is no record ({error})") from error
    return signed, body


def _record(body: _Body, certificate: RoleCertificate, encoded: bytes) -> Record:
    return Record(
        topic=body.topic,
        contact=Contact(PeerId(body.peer), body.addresses),
        certificate=certificate,
        models=body.models,
        adapters=tuple(prefix.hex() for prefix in body.adapters),
        load=body.load,
        free_slots=body.free_slots,
        sequence=body.sequence,
        expires_at=body.expires_at,
        ttl_s=body.ttl_s,
        withdrawn=body.withdrawn,
        encoded=encoded,
    )


def merged(records: list[Record]) -> tuple[Record, ...]:
    """Of each publisher the latest record, without those that were withdrawn; by publisher."""
    latest: dict[PeerId, Record] = {}
    for record in records:
        held = latest.get(record.contact.peer_id)
        if held is None or record.sequence > held.sequence:
            latest[record.contact.peer_id] = record
    return tuple(latest[peer] for peer in sorted(latest) if not latest[peer].withdrawn)
