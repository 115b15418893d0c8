"""What may follow what: runs of entries that chain, and proofs that an author forked.

Sans-IO. Each defence is a method of `ChainRules`, so that a test can turn it off and see that it is
needed. Does not know who may write a feed (`epoch`), nor where entries lie (`store`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tinkex.errors import LogForkError, PeerProtocolError, TrustError
from tinkex.mesh.feeds.entry import (
    ENTRY,
    FIRST,
    MAX_ENTRY_BYTES,
    MAX_HEADER_BYTES,
    ChainId,
    Entry,
    EntryId,
    check_signed,
    hash_of,
    read_header,
)
from tinkex.mesh.identity import PeerId
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S

FORK_PROOF_BYTES = 2 * (MAX_HEADER_BYTES + 80)


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of a chain that somebody holds."""

    chain: ChainId
    sequence: int
    hash: bytes
    time: int
    """Microseconds."""

    @classmethod
    def of(cls, entry: Entry) -> Head:
        """The head that a chain has once `entry` is in it."""
        return cls(entry.chain, entry.sequence, entry.hash, entry.header.time)


class ForkProof(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Two headers that one author signed with one number: anybody can check it, alone."""

    header: bytes
    signature: bytes
    other_header: bytes
    other_signature: bytes

    @classmethod
    def of(cls, entry: Entry, other: Entry) -> ForkProof:
        """Put two entries' headers together, in an order that does not depend on the finder."""
        return cls.of_heads(entry, SignedHead(other.raw.header, other.raw.signature))

    @classmethod
    def of_heads(cls, entry: Entry, head: SignedHead) -> ForkProof:
        """As `of`, where only the other's header is known."""
        held = SignedHead(entry.raw.header, entry.raw.signature)
        first, second = sorted((held, head), key=lambda each: each.header)
        return cls(first.header, first.signature, second.header, second.signature)

    @classmethod
    def decode(cls, encoded: bytes) -> ForkProof:
        """Read a proof from the bytes that travelled; `check` it before it is believed.

        Raises:
            PeerProtocolError: it is none.
        """
        if len(encoded) > FORK_PROOF_BYTES:
            raise PeerProtocolError("a proof of a fork is longer than any may be")
        try:
            return msgspec.msgpack.decode(encoded, type=cls)
        except ValueError as error:
            raise PeerProtocolError(f"this is no proof of a fork ({error})") from error

    def encoded(self) -> bytes:
        """The bytes that travel."""
        return msgspec.msgpack.encode(self)

    def check(self) -> EntryId:
        """Make sure that it proves a fork; returns the number that was signed twice.

        A third party can sign neither header, so nobody can be shut out by another.

        Raises:
            TrustError: it proves nothing.
            PeerProtocolError: it makes no sense.
        """
        one, two = read_header(self.header), read_header(self.other_header)
        numbered = [(h.author, h.feed, h.epoch, h.sequence) for h in (one, two)]
        if numbered[0] != numbered[1] or self.header == self.other_header:
            raise TrustError("a proof of a fork shows no two entries with one number")
        author = PeerId(one.author)
        if not (
            author.signed(ENTRY, self.header, self.signature)
            and author.signed(ENTRY, self.other_header, self.other_signature)
        ):
            raise TrustError("a proof of a fork holds a signature that is not its author's")
        return EntryId(author, one.feed, one.epoch, one.sequence)


class SignedHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The header of the last entry that a peer holds of a chain: it proves itself."""

    header: bytes
    signature: bytes

    def check(self) -> Head:
        """Check the author's signature.

        Raises:
            PeerProtocolError: it makes no sense.
            TrustError: its author did not sign it.
        """
        header = read_header(self.header)
        author = PeerId(header.author)
        if not author.signed(ENTRY, self.header, self.signature):
            raise TrustError("the signature of a head does not hold")
        chain = ChainId(author, header.feed, header.epoch)
        return Head(chain, header.sequence, hash_of(self.header, self.signature), header.time)


class ChainRules:
    """What a run of entries must keep to."""

    def check_run(self, run: Sequence[Entry], head: Head | None, *, now: float) -> None:
        """Check entries of one chain, in order, that are to follow `head`.

        Args:
            run: the entries, decoded; those that `head` covers must have been left out.
            head: the last entry that is held; None where the run opens the epoch.
            now: Unix seconds.

        Raises:
            PeerProtocolError: they are out of order, or do not chain.
            TrustError: a signature does not hold, or a time lies in the future.
        """
        for entry in run:
            self.check_follows(entry, head)
            self.check_time(entry, head, now)
            self.check_signature(entry)
            head = Head.of(entry)

    def check_size(self, encoded: bytes) -> None:
        """Refuse what is longer than an entry may be, before anything is made of it."""
        if len(encoded) > MAX_ENTRY_BYTES:
            raise PeerProtocolError(f"an entry of {len(encoded)} bytes is longer than any may be")

    def check_signature(self, entry: Entry) -> None:
        """Refuse what its author did not sign."""
        check_signed(entry)

    def check_follows(self, entry: Entry, head: Head | None) -> None:
        """Refuse what does not continue the chain: a gap, another author's, another epoch's."""
        if head is None:
            if entry.sequence != 0 or entry.header.previous != FIRST:
                raise PeerProtocolError(f"{entry.id} came before the opening of its epoch")
        elif entry.chain != head.chain or entry.sequence != head.sequence + 1:
            raise PeerProtocolError(f"{entry.id} came out of order")
        elif entry.header.previous != head.hash:
            raise PeerProtocolError(f"{entry.id} does not chain to the entry before it")

    def check_time(self, entry: Entry, head: Head | None, now: float) -> None:
        """Refuse times that do not grow, and those of the future: they order the feed."""
        if head is not None and entry.header.time <= head.time:
            raise PeerProtocolError(f"{entry.id} is no later than the entry before it")
        if entry.time_s > now + CLOCK_SKEW_S:
            raise TrustError(f"{entry.id} is from the future: check the clocks")


def fork_error(proof: ForkProof) -> LogForkError:
    """The error that a shut-out author's entries meet."""
    at = read_header(proof.header)
    return LogForkError(
        f"{PeerId(at.author).short} signed two entries of {at.feed!r} with the number "
        f"{at.sequence} of epoch {at.epoch.hex()[:8]}: its key was copied or stolen, and nothing "
        "of it is believed any more; revoke it, and let the worker join again with a new key"
    )
