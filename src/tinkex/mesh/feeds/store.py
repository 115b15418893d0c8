"""A worker's feeds: its own, and its copies of others'.

Owns what is believed: entries are checked before they are stored, the file when it is opened and
what is read when it is read; an author that forked is shut out. SQL is in `tables`, who asks whom
for entries in `replication`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from tinkex._clock import Clock
from tinkex.errors import PeerProtocolError, TrustError
from tinkex.mesh.feeds import saved, tables
from tinkex.mesh.feeds.chain import ChainRules, ForkProof, Head, SignedHead
from tinkex.mesh.feeds.database import Database, Transaction
from tinkex.mesh.feeds.entry import (
    EPOCH_BYTES,
    ChainId,
    Entry,
    decode_entry,
    read_entry,
)
from tinkex.mesh.feeds.epoch import EpochRules, Member
from tinkex.mesh.feeds.own import OwnFeed
from tinkex.mesh.feeds.policy import FeedPolicy
from tinkex.mesh.feeds.reading import StoredFeeds
from tinkex.mesh.feeds.snapshot import Snapshot, SnapshotBody, SnapshotRules
from tinkex.mesh.identity import PeerId

T = TypeVar("T")

INSTANCE_BYTES = 8
MAX_EPOCHS = 8192
"""Epochs of one author and feed that are held, at most."""
Callback = Callable[[Sequence[Entry]], None]


@dataclass(slots=True)
class _Checked:
    """What a run of entries came to."""

    entries: list[Entry]
    expires_at: float = 0.0
    proof: ForkProof | None = None


class Folded(Protocol):
    """What a store knows of the views over it."""

    feed: str
    name: str
    by_author: bool

    async def current(self) -> None:
        """Wait until nothing is being folded again."""

    def covered(self, author: PeerId) -> tuple[Mapping[ChainId, int], bytes]:
        """An author's folded numbers, and what they came to."""

    async def state_at(self, author: PeerId, upto: Mapping[ChainId, int]) -> bytes:
        """What an author's entries up to these numbers come to."""


class FeedStore(StoredFeeds):
    """The feeds of one worker, in one SQLite file.

    Args:
        path: the file; a second process that opens it is refused.
        member: the worker's key, its network and its role certificate.
        clock: the time of entries.
        policy: which feeds there are, who writes and reads them.
        inline: do everything in the caller's thread: for simulations on a virtual clock.
        new_epoch: makes ids of epochs, instead of `random`.
        random: so many random bytes; no two lives of a worker may share an epoch.
    """

    def __init__(
        self,
        path: Path,
        member: Member,
        *,
        clock: Clock,
        policy: FeedPolicy | None = None,
        inline: bool = False,
        new_epoch: Callable[[], bytes] | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        super().__init__(Database(path, tables.SCHEMA + saved.SCHEMA, inline=inline))
        self.policy = policy or FeedPolicy()
        self.member = member
        """The worker's credentials; replaced when it gets a new certificate."""
        self.instance = random(INSTANCE_BYTES)
        """New with each object: numbers of arrival that peers know are of this one."""
        self.chain_rules = ChainRules()
        self.epoch_rules = EpochRules(self._member, self.policy)
        self.snapshot_rules = SnapshotRules(self._member, self.policy)
        self.revoked_at: Callable[[PeerId], float | None] = lambda _: None
        """When a peer was revoked, in Unix seconds: later entries of it are refused."""
        self._clock = clock
        self._new_epoch = new_epoch or (lambda: random(EPOCH_BYTES))
        self._inline = inline
        self._own: dict[str, OwnFeed] = {}
        self._latest: dict[str, int] = {}
        self._subscribers: dict[str, list[tuple[Callback, Callback]]] = {}
        self._snapshot_times: dict[tuple[PeerId, str], int] = {}
        self._unwritten: dict[PeerId, ForkProof] = {}
        """Proofs of forks that are not on the disk yet."""
        self._views: list[Folded] = []
        self._on_rebase: list[Callable[[str, PeerId], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def peer_id(self) -> PeerId:
        """Whose own feeds these are."""
        return self.member.key_pair.peer_id

    async def open(self) -> None:
        """Open the file and check all of it.

        Raises:
            ConfigurationError: another process uses it.
            DamagedDataError: it does not hold what was written; nothing of it is used.
        """
        await self.database.open()
        self._loop = asyncio.get_running_loop()
        try:
            await self.read(self._load)
        except BaseException:
            await self.database.close()
            raise

    async def close(self) -> None:
        """Finish what is being written and let the file go. Harmless twice."""
        await self.database.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def check_file(self, connection: sqlite3.Connection) -> None:
        """Refuse a file in which anything is not what was written."""
        try:
            tables.check_all(connection)
            saved.check_all(connection)
        except (TypeError, ValueError, AttributeError) as error:
            raise tables.RowError(f"a value is of another kind than written ({error})") from error

    async def verify(self) -> None:
        """Check the whole file again, as at its opening.

        Raises:
            DamagedDataError: it does not hold what was written.
        """
        await self.read(self.check_file)

    async def ends(self) -> list[Head]:
        """The last entry of every chain that is held, by feed, author and time."""

        def find(connection: sqlite3.Connection) -> list[Head]:
            held = (tables.head_of(connection, chain) for chain in tables.chains(connection))
            return [head for head in held if head is not None]

        found = await self.read(find)
        return sorted(found, key=lambda head: (head.chain.feed, head.chain.author, head.time))

    def own(self, feed: str) -> OwnFeed:
        """This worker's own feed of a name; the same object each time.

        Raises:
            UnsupportedError: there is no such feed.
        """
        self.policy.rule(feed)
        if feed not in self._own:
            self._own[feed] = OwnFeed(
                feed,
                self._member,
                self.database,
                clock=self._clock,
                latest=self._latest,
                stored=self._stored,
                check_self=lambda: self.check_not_forked(self.peer_id),
                new_epoch=self._new_epoch,
            )
        return self._own[feed]

    def subscribe(
        self, feed: str, callback: Callback, *, later: Callback | None = None
    ) -> Callable[[], None]:
        """Have `callback` told of entries as they are stored, own ones and others'.

        Args:
            feed: of which feed.
            callback: told.
            later: told instead of own entries that were appended without `flush`.

        It is called in the event loop, once for each author's run, openings of epochs included, and
        before the `append` or `ingest` that stored them returns. It must not raise.

        Returns:
            What ends the subscription.
        """
        self.policy.rule(feed)
        subscribers = self._subscribers.setdefault(feed, [])
        subscriber = (callback, later or callback)
        subscribers.append(subscriber)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                subscribers.remove(subscriber)

        return unsubscribe

    async def ingest(self, encoded: Sequence[bytes]) -> list[Entry]:
        """Check entries that came from elsewhere and store what is new.

        Args:
            encoded: entries as they travelled; those of one chain in order.

        Returns:
            The new ones.

        Raises:
            PeerProtocolError: they make no sense, or are out of order.
            TrustError: a signature or certificate does not hold, or the author may not write.
            LogForkError: the author forked; the proof is kept, and is in `forks`.
            UnsupportedError: there is no such feed.
        """
        for each in encoded:
            self.chain_rules.check_size(each)
        stored: list[Entry] = []
        for chain, run in _by_chain([read_entry(decode_entry(each)) for each in encoded]):
            stored += await self._ingest_run(chain, run)
        return stored

    async def adopt(self, snapshot: Snapshot, *, same: bool = False) -> bool:
        """Check an author's snapshot and put it in the place of the entries that it covers.

        Args:
            snapshot: as its author signed it.
            same: it says what the entries held here come to, all of them: nothing changes but the
                room that they take. Else views of the feed begin from it again.

        Returns:
            Whether it is newer than what is held.

        Raises:
            PeerProtocolError, TrustError, UnsupportedError: it does not hold.
            LogForkError: its author forked.
        """
        body = self.check_snapshot(snapshot)
        author = PeerId(body.author)

        def put(transaction: Transaction) -> bool:
            connection = transaction.connection
            held = saved.snapshot_of(connection, author, body.feed)
            if held is not None and held.read().time >= body.time:
                return False
            saved.put_snapshot(connection, snapshot, body)
            self._latest[body.feed] = max(self._latest.get(body.feed, 0), body.time)
            if author == self.peer_id and body.feed in self._own and not same:
                self._own[body.feed].forget()
            transaction.after_commit.append(lambda: self.call_soon(adopted))
            return True

        def adopted() -> None:
            self._snapshot_times[author, body.feed] = body.time
            if not same:
                self._past_changed(body.feed, author)

        return await self.database.write(put)

    def check_snapshot(self, snapshot: Snapshot) -> SnapshotBody:
        """Check all of a snapshot but whether it fits what is held.

        Raises:
            PeerProtocolError, TrustError, UnsupportedError, LogForkError: as `adopt`.
        """
        body = self.snapshot_rules.check(snapshot, now=self._clock.now())
        self.check_not_forked(PeerId(body.author))
        return body

    def on_rebase(self, callback: Callable[[str, PeerId], None]) -> Callable[[], None]:
        """Have `callback` told of a feed and an author whose past changed.

        The author was shut out (then the feed is "": all of them), or a snapshot took the place of
        its entries.

        Returns:
            What ends that.
        """
        self._on_rebase.append(callback)
        return lambda: self._on_rebase.remove(callback)

    def renew(self, member: Member, *, anew: bool) -> None:
        """Show other credentials from now on.

        Args:
            member: those.
            anew: own feeds open new epochs with the next entry, because what the old certificate
                vouched for holds no more; else each does before that certificate ends.
        """
        self.member = member
        for own in self._own.values() if anew else ():
            own.forget()

    def latest_time(self, feed: str) -> int:
        """The latest time held of a feed, in microseconds; -1: nothing is held."""
        return self._latest.get(feed, -1)

    def snapshot_times(self) -> Mapping[tuple[PeerId, str], int]:
        """When the newest entry was that each held snapshot covers, in microseconds."""
        return self._snapshot_times

    def opened_here(self, chain: ChainId) -> bool:
        """Whether this object opened an epoch of its own feed: no peer holds more of it."""
        mine = self._own.get(chain.feed)
        return chain.author == self.peer_id and mine is not None and mine.opened_here(chain.epoch)

    def register(self, view: Folded) -> Callable[[], None]:
        """Let pruning know of a view; returns what ends that."""
        self._views.append(view)
        return lambda: self._views.remove(view)

    def views(self, feed: str) -> list[Folded]:
        """The open views of a feed."""
        return [view for view in self._views if view.feed == feed]

    async def compare(self, signed: SignedHead) -> Head | None:
        """Hold a head that a peer shows against what is stored; returns the head held here.

        Raises:
            LogForkError: they prove a fork, or there was one before.
            PeerProtocolError, TrustError: its author did not sign it.
        """
        theirs = signed.check()
        self.check_not_forked(theirs.chain.author)

        def find(connection: sqlite3.Connection) -> tuple[Head | None, Entry | None]:
            row = tables.find_chain(connection, theirs.chain)
            if row is None:
                return None, None
            return tables.head_of(connection, row), tables.entry_at(
                connection, row, theirs.sequence
            )

        mine, same = await self.read(find)
        if same is not None and same.raw.header != signed.header:
            await self.shut_out(ForkProof.of_heads(same, signed))
            self.check_not_forked(theirs.chain.author)
        return mine

    async def shut_out(self, proof: ForkProof) -> bool:
        """Check a proof that an author forked, and believe nothing of it from now on.

        Returns:
            Whether it is news.

        Raises:
            TrustError, PeerProtocolError: it proves nothing.
            StorageError: the disk is full or refuses. The author is shut out all the same; the
                proof is written down with what is written next.
        """
        author = proof.check().author
        news = author not in self._forks
        if news:
            self._forks[author] = self._unwritten[author] = proof
            self._past_changed("", author)  # at once: whoever brought the proof may go away
        if self._unwritten:
            await self.database.write(self._write_forks)
        return news

    def _write_forks(self, transaction: Transaction) -> None:
        written = list(self._unwritten)
        for author in written:
            tables.add_fork(transaction.connection, author, self._unwritten[author])

        def forget() -> None:
            for author in written:
                self._unwritten.pop(author, None)

        transaction.after_commit.append(forget)

    def _member(self) -> Member:
        return self.member

    async def _ingest_run(self, chain: ChainId, run: list[Entry]) -> list[Entry]:
        self.check_not_forked(chain.author)
        self.policy.rule(chain.feed)
        checked = await self.read(lambda connection: self._check(connection, chain, run))
        if checked.proof is not None:
            await self.shut_out(checked.proof)
            self.check_not_forked(chain.author)
        if not checked.entries:
            return []
        return await self.database.write(
            lambda transaction: self._store(transaction, chain, checked)
        )

    def _check(self, connection: sqlite3.Connection, chain: ChainId, run: list[Entry]) -> _Checked:
        row = tables.find_chain(connection, chain)
        head = None if row is None else tables.head_of(connection, row)
        known = -1 if head is None else head.sequence
        new = [entry for entry in run if entry.sequence > known]
        if row is not None:
            proof = self.find_fork(connection, row, run[: len(run) - len(new)])
            if proof is not None:
                return _Checked([], proof=proof)
        if not new:
            return _Checked([])
        self.check_not_mine(chain)
        self.chain_rules.check_run(new, head, now=self._clock.now())
        if row is None:
            self.check_room(connection, chain)
            expires_at = self.epoch_rules.check_opening(new[0]).expires_at
        else:
            expires_at = row.expires_at
        for entry in new:
            self.epoch_rules.check_within(entry, expires_at)
            self.check_not_revoked(entry)
        return _Checked(new, expires_at)

    def find_fork(
        self, connection: sqlite3.Connection, chain: tables.ChainRow, run: Sequence[Entry]
    ) -> ForkProof | None:
        """Hold entries against those that are stored with the same numbers."""
        for entry in run:
            if tables.header_at(connection, chain, entry.sequence) in {None, entry.raw.header}:
                continue
            held = tables.entry_at(connection, chain, entry.sequence)
            if held is not None:
                return ForkProof.of(held, entry)  # its signatures are checked with it
        return None

    def check_not_revoked(self, entry: Entry) -> None:
        """Refuse what an author signed after it was revoked."""
        revoked_at = self.revoked_at(entry.author)
        if revoked_at is not None and entry.time_s >= revoked_at:
            raise TrustError(f"{entry.id} was signed after its author was revoked")

    def check_not_mine(self, chain: ChainId) -> None:
        """Refuse entries of an epoch that this very object writes."""
        if self.opened_here(chain):
            raise TrustError(
                f"somebody else signs entries of {chain} with this worker's key: stop every copy "
                "of it, revoke the key, and join again with a new one"
            )

    def check_room(self, connection: sqlite3.Connection, chain: ChainId) -> None:
        """Refuse an author that opens epochs without end."""
        if len(tables.chains(connection, chain.feed, chain.author)) >= MAX_EPOCHS:
            raise TrustError(f"{chain.author.short} has opened too many epochs of {chain.feed!r}")

    def _store(self, transaction: Transaction, chain: ChainId, checked: _Checked) -> list[Entry]:
        connection = transaction.connection
        row = tables.find_chain(connection, chain)
        if row is None:
            row = tables.add_chain(connection, chain, checked.expires_at)
        head = tables.head_of(connection, row)
        # Another peer may have brought the same meanwhile.
        known = -1 if head is None else head.sequence
        new = [entry for entry in checked.entries if entry.sequence > known]
        if not new:
            return []
        self.chain_rules.check_follows(new[0], head)
        self._write_forks(transaction)
        tables.add_entries(connection, row, new)
        latest = max(self._latest.get(chain.feed, 0), new[-1].header.time)
        self._latest[chain.feed] = latest
        if chain.author == self.peer_id and chain.feed in self._own:
            self._own[chain.feed].forget()
        self._stored(transaction, new)
        return new

    def _stored(
        self, transaction: Transaction, entries: Sequence[Entry], at_once: bool = True
    ) -> None:
        feed = entries[0].header.feed
        transaction.after_commit.append(lambda: self._tell(feed, entries, at_once))

    def _tell(self, feed: str, entries: Sequence[Entry], at_once: bool) -> None:
        """Queue the callbacks; they run before whoever appended goes on."""
        for now, later in tuple(self._subscribers.get(feed, ())):
            self.call_soon(partial(now if at_once else later, entries))

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Have the event loop call it; from any thread."""
        assert self._loop is not None
        if self._inline:
            callback()
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
            self._loop.call_soon_threadsafe(callback)

    def _past_changed(self, feed: str, author: PeerId) -> None:
        for callback in tuple(self._on_rebase):
            callback(feed, author)

    def _load(self, connection: sqlite3.Connection) -> None:
        self.check_file(connection)
        self._forks.update(tables.forks(connection))
        self._latest.update(tables.latest_times(connection))
        self._snapshot_times.update(saved.snapshot_times(connection))


def _by_chain(entries: Sequence[Entry]) -> list[tuple[ChainId, list[Entry]]]:
    runs: dict[ChainId, list[Entry]] = {}
    for entry in entries:
        chain = entry.chain
        run = runs.setdefault(chain, [])
        if run and run[-1].sequence >= entry.sequence:
            raise PeerProtocolError(f"entries of {chain} came out of order")
        run.append(entry)
    return list(runs.items())
