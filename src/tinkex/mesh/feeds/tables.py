"""The store's tables, and every statement on entries, chains and forks.

Owns SQL and the check of what is read: rows are never trusted, a run of them is believed because it
chains and its last signature holds. Decides nothing about what may be stored.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tinkex.errors import MeshError, TrustError
from tinkex.mesh.feeds.chain import ForkProof, Head
from tinkex.mesh.feeds.entry import ENTRY, FIRST, ChainId, Entry, Raw, read_entry
from tinkex.mesh.feeds.epoch import expiry_of
from tinkex.mesh.identity import PeerId

SCHEMA = """
CREATE TABLE IF NOT EXISTS chains (
    id INTEGER PRIMARY KEY,
    author BLOB NOT NULL,
    feed TEXT NOT NULL,
    epoch BLOB NOT NULL,
    expires REAL NOT NULL,
    base INTEGER NOT NULL DEFAULT -1,
    base_hash BLOB NOT NULL,
    base_time INTEGER NOT NULL DEFAULT -1,
    UNIQUE (author, feed, epoch)
);
CREATE TABLE IF NOT EXISTS entries (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    chain INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    header BLOB NOT NULL,
    signature BLOB NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE (chain, sequence)
);
CREATE TABLE IF NOT EXISTS forks (author BLOB PRIMARY KEY, proof BLOB NOT NULL);
"""
_RUN = 256
"""Rows that are checked together: one signature vouches for all of them."""


class RowError(MeshError):
    """What the tables hold does not check; the store makes a DamagedDataError of it."""


@dataclass(frozen=True, slots=True)
class ChainRow:
    """A chain that is held, from its base on."""

    row: int
    id: ChainId
    expires_at: float
    """Unix seconds."""
    base: int
    """The number of the last entry that was pruned; -1: none."""
    base_hash: bytes
    base_time: int

    @property
    def base_head(self) -> Head | None:
        """The head that the first entry held chains to; None where that is the opening."""
        if self.base < 0:
            return None
        return Head(self.id, self.base, self.base_hash, self.base_time)


_CHAIN = "SELECT id, author, feed, epoch, expires, base, base_hash, base_time FROM chains"


def chains(
    connection: sqlite3.Connection, feed: str | None = None, author: PeerId | None = None
) -> list[ChainRow]:
    """Every chain that is held, of one feed, of one author."""
    rows = connection.execute(
        _CHAIN + " WHERE (?1 IS NULL OR feed = ?1) AND (?2 IS NULL OR author = ?2) ORDER BY id",
        (feed, None if author is None else author.raw),
    )
    return [_chain(row) for row in rows]


def find_chain(connection: sqlite3.Connection, chain: ChainId) -> ChainRow | None:
    """One chain, where it is held."""
    row = connection.execute(
        _CHAIN + " WHERE author = ? AND feed = ? AND epoch = ?",
        (chain.author.raw, chain.feed, chain.epoch),
    ).fetchone()
    return None if row is None else _chain(row)


def _chain(row: tuple[int, bytes, str, bytes, float, int, bytes, int]) -> ChainRow:
    try:
        chain = ChainId(PeerId(row[1]), row[2], row[3])
        return ChainRow(row[0], chain, *row[4:])
    except (TypeError, ValueError) as error:
        raise RowError(f"row {row[0]} of the table of chains makes no sense") from error


def add_chain(connection: sqlite3.Connection, chain: ChainId, expires_at: float) -> ChainRow:
    """Begin a chain; its opening is to be added next."""
    cursor = connection.execute(
        "INSERT INTO chains (author, feed, epoch, expires, base_hash) VALUES (?, ?, ?, ?, ?)",
        (chain.author.raw, chain.feed, chain.epoch, expires_at, FIRST),
    )
    assert cursor.lastrowid is not None
    return ChainRow(cursor.lastrowid, chain, expires_at, -1, FIRST, -1)


def add_entries(connection: sqlite3.Connection, chain: ChainRow, entries: Sequence[Entry]) -> None:
    """Store entries that were checked."""
    connection.executemany(
        "INSERT INTO entries (chain, sequence, header, signature, payload) VALUES (?, ?, ?, ?, ?)",
        [(chain.row, e.sequence, e.raw.header, e.raw.signature, e.raw.payload) for e in entries],
    )


def prune(
    connection: sqlite3.Connection, chain: ChainRow, sequence: int, base_hash: bytes, time: int
) -> None:
    """Take a chain's entries away up to a number.

    Raises:
        TrustError: the entry that is held with that number is another.
    """
    held = entry_at(connection, chain, sequence)
    if held is not None and (held.hash, held.header.time) != (base_hash, time):
        raise TrustError(f"a snapshot has another entry {sequence} of {chain.id} than is held")
    connection.execute(
        "DELETE FROM entries WHERE chain = ? AND sequence <= ?", (chain.row, sequence)
    )
    connection.execute(
        "UPDATE chains SET base = ?, base_hash = ?, base_time = ? WHERE id = ?",
        (sequence, base_hash, time, chain.row),
    )


def header_at(connection: sqlite3.Connection, chain: ChainRow, sequence: int) -> bytes | None:
    """The header that is stored under a number; not checked."""
    row = connection.execute(
        "SELECT header FROM entries WHERE chain = ? AND sequence = ?", (chain.row, sequence)
    ).fetchone()
    return None if row is None else row[0]


def entry_at(connection: sqlite3.Connection, chain: ChainRow, sequence: int) -> Entry | None:
    """One entry, its signature checked."""
    row = connection.execute(
        "SELECT sequence, header, signature, payload FROM entries WHERE chain = ? AND sequence = ?",
        (chain.row, sequence),
    ).fetchone()
    return None if row is None else _checked_run(chain, None, [row])[0]


def last_entry(connection: sqlite3.Connection, chain: ChainRow) -> Entry | None:
    """The last entry of a chain, its signature checked; None where all was pruned."""
    row = connection.execute(
        "SELECT sequence, header, signature, payload FROM entries WHERE chain = ?"
        " ORDER BY sequence DESC LIMIT 1",
        (chain.row,),
    ).fetchone()
    return None if row is None else _checked_run(chain, None, [row])[0]


def head_of(connection: sqlite3.Connection, chain: ChainRow) -> Head | None:
    """The head of a chain; its row was checked when it was stored, its signature is not again."""
    row = connection.execute(
        "SELECT sequence, header, signature, payload FROM entries WHERE chain = ?"
        " ORDER BY sequence DESC LIMIT 1",
        (chain.row,),
    ).fetchone()
    return chain.base_head if row is None else Head.of(_read(chain, row))


def head_at(connection: sqlite3.Connection, chain: ChainRow, sequence: int) -> Head | None:
    """The head that a chain had when a number was its last."""
    if sequence == chain.base:
        return chain.base_head
    entry = entry_at(connection, chain, sequence)
    return None if entry is None else Head.of(entry)


def run_of(connection: sqlite3.Connection, chain: ChainRow, after: int = -1) -> Iterator[Entry]:
    """A chain's entries in order, each checked: they chain, and the signature of each run holds."""
    cursor = connection.execute(
        "SELECT sequence, header, signature, payload FROM entries WHERE chain = ? AND sequence > ?"
        " ORDER BY sequence",
        (chain.row, after),
    )
    head = chain.base_head if after <= chain.base else None
    first = True
    while rows := cursor.fetchmany(_RUN):
        start = max(after, chain.base) + 1
        if first and rows[0][0] != start:
            raise RowError(f"entry {start} of {chain.id} is missing")
        run = _checked_run(chain, head, rows)
        first, head = False, Head.of(run[-1])
        yield from run


def readable(connection: sqlite3.Connection, chain: ChainRow) -> Iterator[Entry]:
    """A chain's entries as far as their rows can be read; they are still to be checked."""
    cursor = connection.execute(
        "SELECT sequence, header, signature, payload FROM entries WHERE chain = ?"
        " ORDER BY sequence",
        (chain.row,),
    )
    return (_read(chain, row) for row in cursor)


def _checked_run(
    chain: ChainRow, head: Head | None, rows: list[tuple[int, bytes, bytes, bytes]]
) -> list[Entry]:
    # A start waits for this loop over all entries: it makes nothing that it can do without.
    run: list[Entry] = []
    before = None if head is None else (head.hash, head.sequence + 1)
    for row in rows:
        entry = _read(chain, row)
        header = entry.header
        if before is not None and (header.previous, header.sequence) != before:
            raise RowError(f"{entry.id} does not follow the one before it")
        before = (entry.hash, header.sequence + 1)
        run.append(entry)
    last = run[-1]
    if not chain.id.author.signed(ENTRY, last.raw.header, last.raw.signature):
        raise RowError(f"the signature of {last.id} does not hold")
    return run


def _read(chain: ChainRow, row: tuple[int, bytes, bytes, bytes]) -> Entry:
    try:
        entry = read_entry(Raw(*row[1:]))
    except (MeshError, TypeError) as error:
        raise RowError(f"entry {row[0]} of {chain.id} is not what was written ({error})") from error
    header, expected = entry.header, chain.id
    if (header.author, header.feed, header.epoch, header.sequence) != (
        expected.author.raw,
        expected.feed,
        expected.epoch,
        row[0],
    ):
        raise RowError(f"entry {row[0]} of {chain.id} is in another's place")
    return entry


def in_order(
    connection: sqlite3.Connection,
    chain_rows: Sequence[ChainRow],
    beyond: Mapping[ChainId, int],
) -> Iterator[Entry]:
    """The entries of these chains in the order that is the same everywhere, openings included.

    Args:
        connection: reads.
        chain_rows: the chains.
        beyond: numbers up to which they are left out.
    """
    runs = [run_of(connection, chain, beyond.get(chain.id, -1)) for chain in chain_rows]
    return heapq.merge(*runs, key=lambda entry: entry.order)


def chains_since(
    connection: sqlite3.Connection, after: int, limit: int
) -> list[tuple[int, ChainRow]]:
    """Chains that grew after an arrival number, with the number of each one's newest entry."""
    newest = connection.execute(
        "SELECT chain, max(arrival) FROM entries WHERE arrival > ? GROUP BY chain"
        " ORDER BY max(arrival) LIMIT ?",
        (after, limit),
    ).fetchall()
    rows = [connection.execute(_CHAIN + " WHERE id = ?", chain[:1]).fetchone() for chain in newest]
    return [(arrival, _chain(row)) for (_, arrival), row in zip(newest, rows, strict=True) if row]


def latest_times(connection: sqlite3.Connection) -> dict[str, int]:
    """The latest time held of each feed, in microseconds."""
    latest: dict[str, int] = {}
    for chain in chains(connection):
        head = head_of(connection, chain)
        if head is not None:
            latest[chain.id.feed] = max(latest.get(chain.id.feed, 0), head.time)
    return latest


def add_fork(connection: sqlite3.Connection, author: PeerId, proof: ForkProof) -> None:
    """Remember the first proof that an author forked."""
    connection.execute(
        "INSERT OR IGNORE INTO forks (author, proof) VALUES (?, ?)", (author.raw, proof.encoded())
    )


def forks(connection: sqlite3.Connection) -> dict[PeerId, ForkProof]:
    """Every proof that is held, checked again."""
    found: dict[PeerId, ForkProof] = {}
    for author, encoded in connection.execute("SELECT author, proof FROM forks"):
        try:
            proof = ForkProof.decode(encoded)
            at = proof.check()
        except MeshError as error:
            raise RowError(f"a proof of a fork is not what was written ({error})") from error
        if at.author.raw != author:
            raise RowError("a proof of a fork is of another author")
        found[at.author] = proof
    return found


def check_all(connection: sqlite3.Connection) -> None:
    """Check the whole file: its pages, every chain, every proof.

    Raises:
        RowError: something is not what was written; the message names it.
    """
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    if problems != ["ok"]:
        raise RowError("; ".join(problems))
    held = chains(connection)
    stray = connection.execute(
        "SELECT count(*) FROM entries WHERE chain NOT IN (SELECT id FROM chains)"
    ).fetchone()[0]
    if stray:
        raise RowError(f"{stray} entries belong to no chain")
    for chain in held:
        _check_chain(connection, chain)
    forks(connection)


def _check_chain(connection: sqlite3.Connection, chain: ChainRow) -> None:
    empty = True
    for entry in run_of(connection, chain):
        empty = False
        if entry.sequence == 0 and expiry_of(entry) != chain.expires_at:
            raise RowError(f"the expiry of {chain.id} is not what its opening says")
    if empty and chain.base < 0:
        raise RowError(f"{chain.id} has lost its entries")
