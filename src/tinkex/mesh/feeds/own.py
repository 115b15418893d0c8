"""A feed that this worker writes: signs, chains, opens epochs.

Owns the one place where this process signs entries. Works in the store's writing thread, so that
entries get their numbers one after another. After anything that leaves doubt (a failed write,
entries of an earlier life that come back from a peer, a renewed certificate) the next append opens
a new epoch: a number is never signed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinkex._clock import Clock
from tinkex.errors import InputError
from tinkex.mesh.feeds import tables
from tinkex.mesh.feeds.chain import Head
from tinkex.mesh.feeds.database import Database, Transaction
from tinkex.mesh.feeds.entry import MAX_PAYLOAD_BYTES, ChainId, Entry, EntryId, sign_entry
from tinkex.mesh.feeds.epoch import Member, expiry_of, open_epoch, read_opening
from tinkex.mesh.feeds.tables import ChainRow

RENEW_S = 60.0
"""An epoch ends this long before its certificate does, so that no clock finds an entry late."""


@dataclass(slots=True)
class _Writing:
    chain: ChainRow
    head: Head


class OwnFeed:
    """Appends to one feed; made by `FeedStore.own`.

    Args:
        name: the feed's name.
        member: gives the worker's credentials of now: they sign, and show the certificate.
        database: where entries lie.
        clock: the time of entries.
        latest: the latest time held of each feed; shared with the store, used while writing only.
        stored: told of new entries within their transaction, and whether peers are told at once.
        check_self: raises LogForkError once this worker was shut out.
        new_epoch: 16 random bytes.
    """

    def __init__(
        self,
        name: str,
        member: Callable[[], Member],
        database: Database,
        *,
        clock: Clock,
        latest: dict[str, int],
        stored: Callable[[Transaction, Sequence[Entry], bool], None],
        check_self: Callable[[], None],
        new_epoch: Callable[[], bytes],
    ) -> None:
        self.name = name
        self._member = member
        self._database = database
        self._clock = clock
        self._latest = latest
        self._stored = stored
        self._check_self = check_self
        self._new_epoch = new_epoch
        self._writing: _Writing | None = None
        self._opened: set[bytes] = set()

    async def append(self, payload: bytes, *, flush: bool = True) -> EntryId:
        """Write an entry. It is on this worker's disk when this returns; a view has it soon after.

        Args:
            payload: what it says.
            flush: whether to wait for the disk, and tell peers at once. Without, an end of the
                process loses nothing, and one of the machine may take the entry, unless it reached
                a peer: no number is signed twice even so, as each start opens an epoch. Peers are
                told with the next entry that is flushed, or a second later.

        Raises:
            InputError: the payload is longer than an entry may be.
            StorageError: the disk is full or refuses; nothing was written.
            TrustError: this worker has no role certificate.
            LogForkError: somebody else signed with this worker's key.
        """
        (written,) = await self.append_many([payload], flush=flush)
        return written

    async def append_many(self, payloads: Sequence[bytes], *, flush: bool = True) -> list[EntryId]:
        """Write several entries: all of them, or none. Flushed as with `append`.

        Raises:
            InputError, StorageError, TrustError, LogForkError: as `append`.
        """
        longest = max(map(len, payloads), default=0)
        if longest > MAX_PAYLOAD_BYTES:
            raise InputError(
                f"an entry of {self.name!r} would have {longest} bytes, more than the "
                f"{MAX_PAYLOAD_BYTES} that one may have: divide it"
            )
        return await self._database.write(
            lambda transaction: self._append(transaction, payloads, at_once=flush), flush=flush
        )

    def opened_here(self, epoch: bytes) -> bool:
        """Whether this object itself opened an epoch: nobody else can have entries of it."""
        return epoch in self._opened

    def forget(self) -> None:
        """Let the next append open a new epoch, which joins whatever is held by then."""
        self._writing = None

    def _append(
        self, transaction: Transaction, payloads: Sequence[bytes], *, at_once: bool
    ) -> list[EntryId]:
        self._check_self()
        transaction.after_rollback.append(self.forget)
        entries: list[Entry] = []
        writing = self._current(transaction, entries)
        for payload in payloads:
            entry = sign_entry(
                self._member().key_pair,
                feed=self.name,
                epoch=writing.chain.id.epoch,
                sequence=writing.head.sequence + 1,
                previous=writing.head.hash,
                time=self._next_time(),
                payload=payload,
            )
            writing.head = Head.of(entry)
            entries.append(entry)
        tables.add_entries(transaction.connection, writing.chain, entries)
        self._stored(transaction, entries, at_once)
        return [entry.id for entry in entries if not entry.opens_epoch]

    def _current(self, transaction: Transaction, entries: list[Entry]) -> _Writing:
        writing = self._writing
        if writing is None or self._clock.now() > writing.chain.expires_at - RENEW_S:
            writing = self._writing = self._open(transaction, entries)
        return writing

    def _open(self, transaction: Transaction, entries: list[Entry]) -> _Writing:
        epoch = self._new_epoch()
        opening = open_epoch(
            self._member(),
            feed=self.name,
            epoch=epoch,
            time=self._next_time(),
            builds_on=self._loose_heads(transaction),
        )
        self._opened.add(epoch)
        chain = tables.add_chain(
            transaction.connection,
            ChainId(self._member().key_pair.peer_id, self.name, epoch),
            expiry_of(opening),
        )
        entries.append(opening)
        return _Writing(chain, Head.of(opening))

    def _loose_heads(self, transaction: Transaction) -> list[Head]:
        """The heads of this author's chains that no other opening builds on yet."""
        heads: dict[bytes, Head] = {}
        named: dict[bytes, int] = {}
        connection = transaction.connection
        for chain in tables.chains(connection, self.name, self._member().key_pair.peer_id):
            head = tables.head_of(connection, chain)
            if head is not None and head.sequence > chain.base:
                heads[chain.id.epoch] = head  # else this author's snapshot stands for it
            opening = tables.entry_at(connection, chain, 0)
            for under in () if opening is None else read_opening(opening).builds_on:
                named[under.epoch] = max(named.get(under.epoch, -1), under.sequence)
        return [head for epoch, head in heads.items() if head.sequence > named.get(epoch, -1)]

    def _next_time(self) -> int:
        """A time in microseconds that is later than every entry held of this feed."""
        time = max(int(self._clock.now() * 1e6), self._latest.get(self.name, 0) + 1)
        self._latest[self.name] = time
        return time
