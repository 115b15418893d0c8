"""Pruning: this worker's own entries give way to a signed snapshot of what they came to.

Owns the making of a snapshot from the views that are open.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from tinkex._clock import Clock
from tinkex.errors import TrustError, UnsupportedError
from tinkex.mesh.feeds import tables
from tinkex.mesh.feeds.entry import ChainId
from tinkex.mesh.feeds.snapshot import CoveredHead, Snapshot, sign_snapshot
from tinkex.mesh.feeds.store import FeedStore


async def prune(store: FeedStore, feed: str, *, clock: Clock) -> Snapshot | None:
    """Prune this worker's own entries of a feed; peers that lack them start from the snapshot.

    Every view of the feed must be open: one that is not would never get the pruned entries again.

    Returns:
        The snapshot; None where there is nothing to prune.

    Raises:
        UnsupportedError: no view is open, or one folds other authors' entries too.
        TrustError: this worker has no certificate.
    """
    views = store.views(feed)
    if not views:
        raise UnsupportedError(
            f"{feed!r} cannot be pruned: no view of it is open to take its place"
        )
    for view in views:
        await view.current()
    taken = {view.name: view.covered(store.peer_id) for view in views}
    positions = [numbers for numbers, _ in taken.values()]
    covered = await _heads(store, positions[0])
    if not covered or any(numbers != positions[0] for numbers in positions):
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
        states={name: state for name, (_, state) in taken.items()},
    )
    await store.adopt(snapshot)
    await store.database.checkpoint()
    return snapshot


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
