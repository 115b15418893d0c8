"""What to do with a damaged file: set it aside, keep what checks; the rest comes from peers.

Owns the saving from a file that `FeedStore.open` refused. Fetching from peers is `replication`'s:
a worker that lost its data asks for its own feeds like for others', before it writes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tinkex.errors import DamagedDataError, TinkerError
from tinkex.mesh.feeds import saved, tables
from tinkex.mesh.feeds.entry import Entry
from tinkex.mesh.feeds.snapshot import Snapshot
from tinkex.mesh.feeds.store import FeedStore

_SUFFIXES = ("", "-wal", "-shm")
_RUN = 256


@dataclass(frozen=True, slots=True)
class Salvage:
    """What could be kept of a damaged file."""

    reason: str
    """What was damaged."""
    set_aside: Path
    """Where the damaged file is now."""
    entries: int
    """Entries that were kept; from the first damaged one on, a chain has to come from peers."""


async def open_or_salvage(make: Callable[[], FeedStore]) -> tuple[FeedStore, Salvage | None]:
    """Open a store; where its file is damaged, set that aside and begin with what still checks.

    Args:
        make: makes the store, not open yet; called again for the new file.

    Raises:
        ConfigurationError: another process uses the file.
    """
    store = make()
    try:
        await store.open()
    except DamagedDataError as error:
        reason = str(error)
    else:
        return store, None
    aside = _set_aside(store.database.path)
    store = make()
    await store.open()
    kept = await _keep(aside, store)
    return store, Salvage(reason, aside, kept)


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{aside}{suffix}")
    return aside


async def _keep(damaged: Path, store: FeedStore) -> int:
    kept = 0
    with contextlib.closing(sqlite3.connect(f"file:{damaged}?mode=ro", uri=True)) as connection:
        for snapshot in _readable_snapshots(connection, store):
            with contextlib.suppress(TinkerError):
                await store.adopt(snapshot)
        for run in _readable_runs(connection):
            with contextlib.suppress(TinkerError):
                kept += len(await store.ingest([entry.encoded() for entry in run]))
        with contextlib.suppress(sqlite3.Error, TinkerError):
            for proof in tables.forks(connection).values():
                await store.shut_out(proof)
        with contextlib.suppress(sqlite3.Error, TinkerError):
            await store.database.write(saved.copy_vault(connection))
    return kept


def _readable_snapshots(connection: sqlite3.Connection, store: FeedStore) -> Iterator[Snapshot]:
    for feed in sorted(store.policy.names()):
        with contextlib.suppress(sqlite3.Error, TinkerError, ValueError, TypeError):
            yield from [snapshot for _, snapshot in saved.snapshots_of(connection, feed)]


def _readable_runs(connection: sqlite3.Connection) -> Iterator[list[Entry]]:
    chains: list[tables.ChainRow] = []
    with contextlib.suppress(sqlite3.Error, TinkerError, ValueError, TypeError):
        chains = tables.chains(connection)
    for chain in chains:
        entries: list[Entry] = []
        with contextlib.suppress(sqlite3.Error, TinkerError, ValueError, TypeError):
            for entry in tables.readable(connection, chain):
                entries.append(entry)  # noqa: PERF402 - what came before an error is kept
        for start in range(0, len(entries), _RUN):
            yield entries[start : start + _RUN]
