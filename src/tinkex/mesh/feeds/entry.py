"""One entry of a feed: what is signed, its canonical bytes, its id and its hash.

Sans-IO. Owns the form of an entry, not what may follow what (`chain`), nor who may write (`epoch`).

The header is signed; it names the payload by its hash. So a header proves itself without its
payload: the last one of an epoch is the epoch's signed head, and two of them prove a fork.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from tinkex.errors import PeerProtocolError, TrustError
from tinkex.mesh.identity import SIGNATURE_BYTES, KeyPair, PeerId

ENTRY = "feed-entry"
"""The purpose that headers are signed under."""
EPOCH_BYTES = 16
HASH_BYTES = 32
FIRST = bytes(HASH_BYTES)
"""What the first entry of an epoch has for the hash of the one before."""
MAX_PAYLOAD_BYTES = 256 * 1024
MAX_HEADER_BYTES = 512
MAX_ENTRY_BYTES = MAX_PAYLOAD_BYTES + MAX_HEADER_BYTES + SIGNATURE_BYTES + 16
"""As it travels."""
MAX_FEED_NAME = 64


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What an author signs."""

    author: bytes
    """Its peer id."""
    feed: str
    epoch: bytes
    """16 random bytes: one life of the author's process."""
    sequence: int
    """From 0, the epoch's opening."""
    previous: bytes
    """The hash of the entry before, in this epoch."""
    time: int
    """Microseconds since 1970, later than any that the author held of this feed: its order."""
    payload_hash: bytes
    """SHA-256."""


class Raw(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An entry as it travels and is stored."""

    header: bytes
    """As it was signed."""
    signature: bytes
    payload: bytes


@dataclass(frozen=True, slots=True, order=True)
class ChainId:
    """One epoch of one author's feed: a chain of entries."""

    author: PeerId
    feed: str
    epoch: bytes

    def at(self, sequence: int) -> EntryId:
        """The id of one of its entries."""
        return EntryId(self.author, self.feed, self.epoch, sequence)

    def __str__(self) -> str:
        return f"{self.feed} of {self.author.short}, epoch {self.epoch.hex()[:8]}"


@dataclass(frozen=True, slots=True, order=True)
class EntryId:
    """Where an entry is, in every store."""

    author: PeerId
    feed: str
    epoch: bytes
    sequence: int

    @property
    def chain(self) -> ChainId:
        """The chain it belongs to."""
        return ChainId(self.author, self.feed, self.epoch)

    def __str__(self) -> str:
        return f"entry {self.sequence} of {self.chain}"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry whose bytes make sense; `check_entry` makes one whose signature holds too."""

    raw: Raw
    header: Header
    hash: bytes
    """SHA-256 of the signed header and its signature: what the next entry chains to."""

    @property
    def id(self) -> EntryId:
        """Where it is."""
        header = self.header
        return EntryId(PeerId(header.author), header.feed, header.epoch, header.sequence)

    @property
    def chain(self) -> ChainId:
        """The chain it belongs to."""
        return ChainId(PeerId(self.header.author), self.header.feed, self.header.epoch)

    @property
    def author(self) -> PeerId:
        """Who signed it."""
        return PeerId(self.header.author)

    @property
    def sequence(self) -> int:
        """Its number within its epoch."""
        return self.header.sequence

    @property
    def payload(self) -> bytes:
        """What it says."""
        return self.raw.payload

    @property
    def time_s(self) -> float:
        """Unix seconds of its author's clock."""
        return self.header.time / 1e6

    @property
    def order(self) -> tuple[int, bytes, bytes, int]:
        """Sorts the entries of a feed alike everywhere, causes before what they caused."""
        header = self.header
        return header.time, header.author, header.epoch, header.sequence

    @property
    def opens_epoch(self) -> bool:
        """Whether it is an epoch's opening, which says nothing to views."""
        return self.header.sequence == 0

    def encoded(self) -> bytes:
        """The bytes that travel."""
        return msgspec.msgpack.encode(self.raw)


def sign_entry(
    key_pair: KeyPair,
    *,
    feed: str,
    epoch: bytes,
    sequence: int,
    previous: bytes,
    time: int,
    payload: bytes,
) -> Entry:
    """Make an entry. Signing two with one (feed, epoch, sequence) shuts the author out for good."""
    header = Header(
        key_pair.peer_id.raw,
        feed,
        epoch,
        sequence,
        previous,
        time,
        hashlib.sha256(payload).digest(),
    )
    signed = msgspec.msgpack.encode(header)
    signature = key_pair.sign(ENTRY, signed)
    return Entry(Raw(signed, signature, payload), header, hash_of(signed, signature))


def hash_of(header: bytes, signature: bytes) -> bytes:
    """The hash of an entry; it covers the signature, so that the next entry vouches for it too."""
    return hashlib.sha256(header + signature).digest()


def decode_entry(encoded: bytes) -> Raw:
    """Take an entry's three parts from the bytes that travelled.

    Raises:
        PeerProtocolError: it is none.
    """
    try:
        return msgspec.msgpack.decode(encoded, type=Raw)
    except ValueError as error:
        raise PeerProtocolError(f"this is no entry of a feed ({error})") from error


def read_header(signed: bytes) -> Header:
    """Decode a header, and make sure that no other bytes mean the same.

    Raises:
        PeerProtocolError: it is none, or not in the canonical form.
    """
    if len(signed) > MAX_HEADER_BYTES:
        raise PeerProtocolError(f"an entry's header has {len(signed)} bytes: too many")
    try:
        header = msgspec.msgpack.decode(signed, type=Header)
    except ValueError as error:
        raise PeerProtocolError(f"this is no header of an entry ({error})") from error
    lengths = (len(header.author), len(header.epoch), len(header.previous))
    if (
        lengths != (HASH_BYTES, EPOCH_BYTES, HASH_BYTES)
        or len(header.payload_hash) != HASH_BYTES
        or not 0 < len(header.feed) <= MAX_FEED_NAME
        or not 0 <= header.sequence < 1 << 53
        or not 0 <= header.time < 1 << 62
        or msgspec.msgpack.encode(header) != signed
    ):
        raise PeerProtocolError("the header of an entry is not in the form it must have")
    return header


def read_entry(raw: Raw) -> Entry:
    """Decode an entry and hold its payload against its header; its signature is not checked.

    Raises:
        PeerProtocolError: it makes no sense.
        TrustError: the payload is another than was signed.
    """
    header = read_header(raw.header)
    entry = Entry(raw, header, hash_of(raw.header, raw.signature))
    if hashlib.sha256(raw.payload).digest() != header.payload_hash:
        raise TrustError(f"the payload of {entry.id} is not the one that was signed")
    return entry


def check_signed(entry: Entry) -> None:
    """Check an entry's signature.

    Args:
        entry: decoded.

    Raises:
        TrustError: it is not what its author signed.
    """
    if not entry.author.signed(ENTRY, entry.raw.header, entry.raw.signature):
        raise TrustError(f"the signature of {entry.id} does not hold")


def check_entry(raw: Raw) -> Entry:
    """Decode an entry and check its signature.

    Raises:
        PeerProtocolError: it makes no sense.
        TrustError: it is not what its author signed.
    """
    entry = read_entry(raw)
    check_signed(entry)
    return entry
