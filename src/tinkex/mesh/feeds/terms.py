"""Terms: who led when, and so which entries of the led feed count.

Sans-IO. Each leader signs a record of its term before it writes. The record names the term before
it and how far that one's leader got, as far as a majority can know: what the old leader wrote
beyond, alone, does not count, though its feed keeps it for ever.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import msgspec

from tinkex.errors import PeerProtocolError, TrustError
from tinkex.mesh.feeds.entry import Entry, check_entry, decode_entry
from tinkex.mesh.identity import PeerId


class Ballot(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """A member's vote; an entry of its own "leadership" feed."""

    term: int
    candidate: bytes


class Term(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """A leader's record of its term; an entry of its own "leadership" feed."""

    number: int
    previous: int
    """The term before it; 0: none."""
    ends: dict[str, int]
    """By feed, the time in microseconds of the last entry of the leader before that counts."""
    starts: dict[str, int]
    """By feed, the time after which this leader's entries count."""
    members: tuple[bytes, ...]
    """Who could vote."""
    ballots: tuple[bytes, ...]
    """The votes, as the voters signed them: of a majority."""


Record: TypeAlias = Ballot | Term


class _Dump(msgspec.Struct, array_like=True):
    terms: dict[int, tuple[bytes, Term]]
    voted: dict[bytes, tuple[int, bytes]]


def majority(members: Collection[bytes]) -> int:
    """How many of these are more than half."""
    return len(members) // 2 + 1


def encode_record(record: Record) -> bytes:
    """The payload of an entry."""
    return msgspec.msgpack.encode(record)


def read_ballot(encoded: bytes, *, term: int, candidate: PeerId) -> PeerId:
    """Check a ballot as it travels; returns the voter.

    Raises:
        TrustError: it is not what its voter signed, or for another term or candidate.
        PeerProtocolError: it is none.
    """
    entry = check_entry(decode_entry(encoded))
    try:
        ballot = msgspec.msgpack.decode(entry.payload, type=Record)
    except ValueError as error:
        raise PeerProtocolError(f"this is no ballot ({error})") from error
    if ballot != Ballot(term, candidate.raw):
        raise TrustError("a ballot is for another term or candidate")
    return entry.author


class Terms:
    """What the entries of "leadership" come to; a view's state.

    Args:
        data: what `dump` gave; None: nothing yet.
    """

    def __init__(self, data: bytes | None = None) -> None:
        dump = _Dump({}, {}) if data is None else msgspec.msgpack.decode(data, type=_Dump)
        self._terms = dump.terms
        self._voted = dump.voted
        self._line: list[tuple[PeerId, Term]] = []
        self._draw_line()

    def fold(self, entry: Entry) -> None:
        """Take an entry in.

        Raises:
            TrustError: it claims a term that no majority voted for.
            MsgspecError: it makes no sense.
        """
        record = msgspec.msgpack.decode(entry.payload, type=Record)
        author = entry.author.raw
        if isinstance(record, Ballot):
            known = self._voted.get(author)
            if known is None or known[0] < record.term:
                self._voted[author] = (record.term, record.candidate)
            return
        self.check_votes(entry.author, record)
        self._terms.setdefault(record.number, (author, record))
        self._draw_line()

    def dump(self) -> bytes:
        """The state as bytes."""
        return msgspec.msgpack.encode(_Dump(self._terms, self._voted))

    def check_votes(self, leader: PeerId, term: Term) -> None:
        """Refuse a term that no majority voted for.

        Raises:
            TrustError: it is one.
        """
        voters = {
            read_ballot(ballot, term=term.number, candidate=leader).raw for ballot in term.ballots
        }
        if len(voters & set(term.members)) < majority(term.members):
            raise TrustError(f"no majority voted for {leader.short} in term {term.number}")

    @property
    def last(self) -> int:
        """The newest term that has a record; 0: none."""
        return self._line[-1][1].number if self._line else 0

    @property
    def mark(self) -> int:
        """Changes with what `counts` says: also when a term before the newest becomes known."""
        return self.last << 32 | len(self._line)

    @property
    def last_leader(self) -> PeerId | None:
        """Who leads, or led, in it."""
        return self._line[-1][0] if self._line else None

    def voted(self, voter: PeerId) -> tuple[int, bytes]:
        """The newest term that somebody voted in, and for whom."""
        return self._voted.get(voter.raw, (0, b""))

    def counts(self, entry: Entry) -> bool:
        """Whether an entry of a led feed counts: its author led then, or nobody had led yet."""
        if not self._line:
            return True
        feed, time, author = entry.header.feed, entry.header.time, entry.author
        if time <= self._line[0][1].starts.get(feed, -1):
            return True
        for index, (leader, term) in enumerate(self._line):
            if leader == author and time > term.starts.get(feed, -1):
                after = self._line[index + 1 : index + 2]
                if not after or time <= after[0][1].ends.get(feed, -1):
                    return True
        return False

    def _draw_line(self) -> None:
        """From the newest term back: one that its successor does not name was nobody's."""
        line: list[tuple[PeerId, Term]] = []
        number = max(self._terms, default=0)
        while number in self._terms:
            leader, term = self._terms[number]
            line.append((PeerId(leader), term))
            if term.previous >= number:
                break
            number = term.previous
        self._line = line[::-1]
