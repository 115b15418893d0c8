"""What lies beside the entries in a store's file: snapshots, views' saved states, persons' keys.

Owns their tables and the check of what is read from them. Pruning happens here, in one transaction
with the snapshot that takes the entries' place.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable

import msgspec

from tinkex.errors import MeshError, TrustError
from tinkex.mesh.feeds import tables
from tinkex.mesh.feeds.database import Transaction
from tinkex.mesh.feeds.entry import FIRST, ChainId
from tinkex.mesh.feeds.snapshot import SNAPSHOT, Snapshot, SnapshotBody
from tinkex.mesh.identity import PeerId

SCHEMA = """
CREATE TABLE IF NOT EXISTS snapshots (
    author BLOB NOT NULL,
    feed TEXT NOT NULL,
    snapshot BLOB NOT NULL,
    PRIMARY KEY (author, feed)
);
CREATE TABLE IF NOT EXISTS views (
    view TEXT NOT NULL,
    part BLOB NOT NULL,
    data BLOB NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (view, part)
);
CREATE TABLE IF NOT EXISTS vault_keys (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    person TEXT NOT NULL,
    key_id BLOB NOT NULL,
    wrapped BLOB NOT NULL,
    digest BLOB NOT NULL,
    UNIQUE (person, key_id)
);
"""

_VAULT = "SELECT person, key_id, wrapped, digest FROM vault_keys ORDER BY arrival"


def snapshot_of(connection: sqlite3.Connection, author: PeerId, feed: str) -> Snapshot | None:
    """The snapshot that is held of an author's feed; checked."""
    row = connection.execute(
        "SELECT snapshot FROM snapshots WHERE author = ? AND feed = ?", (author.raw, feed)
    ).fetchone()
    return None if row is None else _read(row[0], author.raw, feed)[0]


def snapshots_of(connection: sqlite3.Connection, feed: str) -> list[tuple[SnapshotBody, Snapshot]]:
    """Every author's snapshot of a feed; checked."""
    rows = connection.execute(
        "SELECT author, snapshot FROM snapshots WHERE feed = ? ORDER BY author", (feed,)
    )
    found = []
    for author, encoded in rows:
        snapshot, body = _read(encoded, author, feed)
        found.append((body, snapshot))
    return found


def snapshot_times(connection: sqlite3.Connection) -> dict[tuple[PeerId, str], int]:
    """When the newest entry was that each snapshot covers, in microseconds."""
    feeds = connection.execute("SELECT DISTINCT feed FROM snapshots").fetchall()
    return {
        (PeerId(body.author), feed): body.time
        for (feed,) in feeds
        for body, _ in snapshots_of(connection, feed)
    }


def _read(encoded: bytes, author: bytes, feed: str) -> tuple[Snapshot, SnapshotBody]:
    try:
        snapshot = msgspec.msgpack.decode(encoded, type=Snapshot)
        body = snapshot.read()
    except (MeshError, ValueError, TypeError) as error:
        raise tables.RowError(f"a snapshot of {feed!r} cannot be read ({error})") from error
    signed = PeerId(body.author).signed(SNAPSHOT, snapshot.body, snapshot.signature)
    digests = {name: hashlib.sha256(state).digest() for name, state in snapshot.states.items()}
    if not signed or digests != body.states or (body.author, body.feed) != (author, feed):
        raise tables.RowError(f"a snapshot of {feed!r} is not what its author signed")
    return snapshot, body


def put_snapshot(connection: sqlite3.Connection, snapshot: Snapshot, body: SnapshotBody) -> None:
    """Store a checked snapshot in the place of the entries that it covers.

    Raises:
        TrustError: it contradicts the chains that are held, or covers less than one before.
    """
    author = PeerId(body.author)
    _check_goes_on(connection, author, body)
    for head in body.covered:
        chain = ChainId(author, body.feed, head.epoch)
        row = tables.find_chain(connection, chain)
        if row is None:
            row = tables.add_chain(connection, chain, head.expires_at)
        if row.base < head.sequence:
            tables.prune(connection, row, head.sequence, head.hash, head.time)
    connection.execute(
        "INSERT OR REPLACE INTO snapshots (author, feed, snapshot) VALUES (?, ?, ?)",
        (author.raw, body.feed, snapshot.encoded()),
    )


def _check_goes_on(connection: sqlite3.Connection, author: PeerId, body: SnapshotBody) -> None:
    covered = {head.epoch: head for head in body.covered}
    goes_on = len(covered) == len(body.covered)
    for row in tables.chains(connection, body.feed, author):
        head = covered.get(row.id.epoch)
        if head is None:
            goes_on &= row.base < 0
            continue
        goes_on &= head.expires_at == row.expires_at and head.sequence >= row.base
        if head.sequence == row.base:
            goes_on &= (head.hash, head.time) == (row.base_hash, row.base_time)
    if not goes_on:
        raise TrustError(
            f"a snapshot of {body.feed!r} by {author.short} contradicts what is held of it"
        )


def put_view(connection: sqlite3.Connection, view: str, part: bytes, data: bytes) -> None:
    """Keep a view's state."""
    connection.execute(
        "INSERT OR REPLACE INTO views (view, part, data, digest) VALUES (?, ?, ?, ?)",
        (view, part, data, _digest(view, part, data)),
    )


def views(connection: sqlite3.Connection, view: str) -> dict[bytes, bytes]:
    """The states that were kept of a view, by part."""
    found = {}
    for part, data, digest in connection.execute(
        "SELECT part, data, digest FROM views WHERE view = ?", (view,)
    ):
        if _digest(view, part, data) != digest:
            raise tables.RowError(f"the saved state of the view {view!r} is not what was written")
        found[part] = data
    return found


def drop_view(connection: sqlite3.Connection, view: str) -> None:
    """Forget the states of a view."""
    connection.execute("DELETE FROM views WHERE view = ?", (view,))


def _digest(view: str, part: bytes, data: bytes) -> bytes:
    try:
        key = msgspec.msgpack.encode((view, part))
        return hashlib.sha256(key + data).digest()
    except (TypeError, ValueError) as error:
        raise tables.RowError("the table of views makes no sense") from error


def copy_vault(source: sqlite3.Connection) -> Callable[[Transaction], None]:
    """Read persons' keys from a damaged file; gives what writes them into another."""
    keys = [row for row in source.execute(_VAULT) if _vault_digest(*row[:3]) == row[3]]

    def put(transaction: Transaction) -> None:
        for key in keys:
            put_key(transaction.connection, *key[:3])

    return put


def put_key(connection: sqlite3.Connection, person: str, key_id: bytes, wrapped: bytes) -> None:
    """Keep a person's key, which is encrypted."""
    connection.execute(
        "INSERT OR IGNORE INTO vault_keys (person, key_id, wrapped, digest) VALUES (?, ?, ?, ?)",
        (person, key_id, wrapped, _vault_digest(person, key_id, wrapped)),
    )


def _vault_digest(person: str, key_id: bytes, wrapped: bytes) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode((person, key_id.hex())) + wrapped).digest()


def check_all(connection: sqlite3.Connection) -> None:
    """Check every snapshot, what was pruned under it, and every saved state.

    Raises:
        RowError: something is not what was written.
    """
    bases = {}
    feeds = connection.execute("SELECT DISTINCT feed FROM snapshots").fetchall()
    for (feed,) in feeds:
        for body, _ in snapshots_of(connection, feed):
            for head in body.covered:
                chain = ChainId(PeerId(body.author), feed, head.epoch)
                bases[chain] = (head.sequence, head.hash, head.time, head.expires_at)
    for row in tables.chains(connection):
        pruned = (row.base, row.base_hash, row.base_time, row.expires_at)
        whole = (-1, FIRST, -1, row.expires_at)
        if pruned != bases.get(row.id, whole):
            raise tables.RowError(f"the base of {row.id} is not what its snapshot says")
    for (view,) in connection.execute("SELECT DISTINCT view FROM views").fetchall():
        views(connection, view)
    for *key, digest in connection.execute(_VAULT):
        if _vault_digest(*key) != digest:
            raise tables.RowError("a person's key is not what was written")
