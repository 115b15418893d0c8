"""Pruning: an author's entries give way to a signed snapshot of what they came to.

Owns when that is done, the making of a snapshot, and its comparison with the entries it replaces.

A feed whose views fold each author alone ("usage") keeps its newest entries whole. A feed with a
view that folds several authors together can be pruned while there is one author, and then wholly;
with two there is no state that is one author's to sign, and the feed stays as it is.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping

from tinkex._clock import Clock
from tinkex.errors import TinkerError, TrustError, UnsupportedError
from tinkex.mesh.feeds import tables
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.feeds.entry import ChainId
from tinkex.mesh.feeds.snapshot import CoveredHead, Snapshot, sign_snapshot
from tinkex.mesh.feeds.store import FeedStore, Folded
from tinkex.mesh.identity import PeerId

_LOG = logging.getLogger("tinkex.mesh.feeds")


async def prune(store: FeedStore, feed: str, *, clock: Clock, keep: int = 0) -> Snapshot | None:
    """Prune this worker's own entries of a feed; peers that lack them start from the snapshot.

    The snapshot and the pruning are one transaction: a crash leaves both or neither.

    Args:
        store: an open one, in which every view of the feed is registered: one that is not would
            never get the pruned entries again.
        feed: its name.
        clock: the time of the signature.
        keep: so many of the newest entries stay, where each author is folded alone.

    Returns:
        The snapshot; None where there is nothing to prune.

    Raises:
        UnsupportedError: no view takes the entries' place, or one folds other authors' entries too.
        TrustError: this worker has no certificate.
    """
    views = store.views(feed)
    if not views:
        raise UnsupportedError(
            f"{feed!r} cannot be pruned: no view of it is open to take its place"
        )
    before = store.snapshot_times().get((store.peer_id, feed))
    positions: Mapping[ChainId, int]
    if all(view.by_author for view in views):
        positions = await _first(store, feed, keep)
        states = {view.name: await view.state_at(store.peer_id, positions) for view in views}
    else:
        positions, states = await _now(store, views)
    covered = await _heads(store, positions)
    if not covered:
        return None
    certificate = store.member.certificate
    if certificate is None:
        raise TrustError("only a certified worker may sign a snapshot: join the network first")
    snapshot = sign_snapshot(
        store.member.key_pair,
        feed=feed,
        certificate=certificate,
        signed_at=clock.now(),
        covered=covered,
        states=states,
    )
    if store.snapshot_times().get((store.peer_id, feed)) != before:
        return None  # one of an earlier life came from a peer meanwhile: these states lack it
    if not await store.adopt(snapshot, same=True):
        return None
    await store.database.checkpoint()
    return snapshot


async def take(store: FeedStore, snapshot: Snapshot) -> bool:
    """Take another author's snapshot in the place of its entries.

    Where all of these are held, they are folded first: an author that says anything else than they
    come to is not followed, and they stay, for they prove it. Where some are not, the author is
    believed, as it is for entries.

    Returns:
        Whether it took their place.

    Raises:
        PeerProtocolError, UnsupportedError, LogForkError: as `FeedStore.adopt`.
        TrustError: so too, or it says something else.
    """
    body = snapshot.read()
    author, feed = PeerId(body.author), body.feed
    upto = {ChainId(author, feed, head.epoch): head.sequence for head in body.covered}
    held = {each.chain: each.last for each in await store.held(feed, author)}
    if any(number > held.get(chain, -1) for chain, number in upto.items()):
        return await store.adopt(snapshot)
    store.check_snapshot(snapshot)
    views = store.views(feed)
    names = {view.name for view in views}
    if not views or not names <= snapshot.states.keys() or not all(v.by_author for v in views):
        return False  # the entries are needed, or do no harm
    for view in views:
        if await view.state_at(author, upto) != snapshot.states[view.name]:
            raise TrustError(
                f"the snapshot of {feed!r} by {author.short} says something else than its entries "
                "come to: they are kept"
            )
    return await store.adopt(snapshot, same=True)


class Pruning:
    """Prunes when there is enough to prune.

    Args:
        store: an open one.
        clock: tells and waits for time.
        config: how much stays, and how often to look.
        ready: whether peers gave back what this worker's disk may have lost. Before, a restored
            backup could sign another past than the one that they hold.
        pruned: called after each pruning; peers are to be told.
    """

    def __init__(
        self,
        store: FeedStore,
        *,
        clock: Clock,
        config: ReplicationConfig,
        ready: Callable[[], bool],
        pruned: Callable[[], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._config = config
        self._ready = ready
        self._pruned = pruned

    async def run(self, feed: str) -> None:
        """Look after one of this worker's own feeds, for ever."""
        while True:
            await self._clock.sleep(self._config.prune_check_s)
            try:
                await self.look(feed)
            except TinkerError as error:
                _LOG.info("%r is not pruned: %s", feed, error)

    async def look(self, feed: str) -> Snapshot | None:
        """Prune a feed if it has grown enough.

        Raises:
            UnsupportedError, TrustError: as `prune`.
        """
        held = await self._store.held(feed, self._store.peer_id)
        surplus = sum(each.last - each.base for each in held) - self._config.keep_entries
        if surplus < self._config.prune_entries or not self._ready():
            return None
        snapshot = await prune(self._store, feed, clock=self._clock, keep=self._config.keep_entries)
        if snapshot is not None:
            _LOG.info("%d or more entries of %r gave way to a snapshot", surplus, feed)
            self._pruned()
        return snapshot


async def _first(store: FeedStore, feed: str, keep: int) -> dict[ChainId, int]:
    """Where each own chain ends if the newest entries of all of them are left out."""
    held = await store.held(feed, store.peer_id)
    positions = {each.chain: each.base for each in held if each.base >= 0}
    surplus = sum(each.last - each.base for each in held) - keep
    if surplus <= 0:
        return {}
    async for entry in store.history(feed, author=store.peer_id):
        positions[entry.chain] = entry.sequence
        surplus -= 1
        if not surplus:
            break
    return positions


async def _now(
    store: FeedStore, views: list[Folded]
) -> tuple[Mapping[ChainId, int], dict[str, bytes]]:
    for view in views:
        await view.current()
    taken = {view.name: view.covered(store.peer_id) for view in views}
    positions = [numbers for numbers, _ in taken.values()]
    if any(numbers != positions[0] for numbers in positions):
        return {}, {}
    return positions[0], {name: state for name, (_, state) in taken.items()}


async def _heads(store: FeedStore, numbers: Mapping[ChainId, int]) -> tuple[CoveredHead, ...]:
    def find(connection: sqlite3.Connection) -> tuple[CoveredHead, ...]:
        covered = []
        for chain, number in sorted(numbers.items()):
            row = tables.find_chain(connection, chain)
            head = None if row is None else tables.head_at(connection, row, number)
            if row is not None and head is not None:
                covered.append(
                    CoveredHead(chain.epoch, number, head.hash, head.time, row.expires_at)
                )
        return tuple(covered)

    return await store.read(find)
