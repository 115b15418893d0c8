"""Feeds: entries appended, replicated and read in a second, beside what they cannot go below.

    python benchmarks/mesh_feeds.py [--entries 4000] [--payload 300]

Both sides of each ratio are measured in this run, in turn, three times; the median is printed. An
append costs at least a signature and its share of a flush of the disk; a copied entry at least the
check of a signature. `alone` is one append after another, each durable before the next; `at once`
is many, which share flushes.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from tinkex._clock import SystemClock
from tinkex.mesh.feeds.entry import Entry
from tinkex.mesh.feeds.policy import USAGE
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.view import View
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Credentials
from tinkex.mesh.trust.certificates import Chain, make_certificate, make_grant

ROUNDS = 3
IN_FLIGHT = 64
BATCH = 512


def network() -> Callable[[Role], Credentials]:
    """Makes members of a new network."""
    import msgspec

    root, auth = KeyPair.generate(), KeyPair.generate()
    now, lasts = time.time(), 86_400.0

    def certified(pair: KeyPair, role: Role, signer: KeyPair, issuer: Chain | None) -> bytes:
        grant = make_grant(
            root,
            network=root.peer_id,
            key=KeyPair.generate().peer_id,
            role=role,
            join_before=now + lasts,
            certificate_s=lasts,
        )
        return make_certificate(
            signer,
            grant=grant,
            peer=pair.peer_id,
            not_before=now,
            expires_at=now + lasts,
            issuer=issuer,
        )

    chain = msgspec.msgpack.decode(certified(auth, Role.AUTH, root, None), type=Chain)

    def member(role: Role) -> Credentials:
        pair = KeyPair.generate()
        if role is Role.AUTH:
            encoded = certified(pair, role, root, None)
        else:
            encoded = certified(pair, role, auth, chain)
        return Credentials(pair, root.peer_id, frozenset({root.peer_id}), encoded)

    return member


class Sums:
    """Bytes by the first letter: a fold that does next to nothing."""

    def __init__(self, data: bytes | None = None) -> None:
        """Begin with nothing, or with what `dump` gave."""
        self.values = {} if data is None else msgspec.msgpack.decode(data, type=dict[str, bytes])

    def dump(self) -> bytes:
        """The sums."""
        return msgspec.msgpack.encode(self.values, order="sorted")

    def fold(self, entry: Entry) -> None:
        """Count an entry."""
        name = entry.payload[:1].hex()
        total = int.from_bytes(self.values.get(name, b""), "big") + len(entry.payload)
        self.values[name] = total.to_bytes(8, "big")


def bare_signatures(count: int) -> tuple[float, float]:
    """Signatures and checks in a second, of messages as long as an entry's header."""
    pair, message = KeyPair.generate(), bytes(190)
    began = time.perf_counter()
    for _ in range(count):
        signature = pair.sign("benchmark", message)
    signed = count / (time.perf_counter() - began)
    began = time.perf_counter()
    for _ in range(count):
        pair.peer_id.signed("benchmark", message, signature)
    return signed, count / (time.perf_counter() - began)


def bare_commits(folder: Path, count: int, size: int, each: int) -> float:
    """Rows that bare SQLite makes durable in a second, `each` of them in a transaction."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, data BLOB)")
    began = time.perf_counter()
    for _ in range(count // each):
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO rows (data) VALUES (?)", [(bytes(size),)] * each)
        connection.execute("COMMIT")
    rate = count / (time.perf_counter() - began)
    connection.close()
    return rate


async def timed(count: int, work: Awaitable[object]) -> float:
    """What was done in a second."""
    began = time.perf_counter()
    await work
    return count / (time.perf_counter() - began)


async def append_alone(store: FeedStore, count: int, size: int) -> None:
    feed = store.own(USAGE)
    for _ in range(count):
        await feed.append(bytes(size))


async def append_at_once(store: FeedStore, count: int, size: int) -> None:
    feed = store.own(USAGE)

    async def writer() -> None:
        for _ in range(count // IN_FLIGHT):
            await feed.append(bytes(size))

    await asyncio.gather(*(writer() for _ in range(IN_FLIGHT)))


async def copy(source: FeedStore, target: FeedStore) -> int:
    count = 0
    for head, _ in await source.heads(USAGE):
        run = [entry.encoded() for entry in await source.run(head.chain, after=-1, limit=10**6)]
        for start in range(0, len(run), BATCH):
            count += len(await target.ingest(run[start : start + BATCH]))
    return count


async def one_round(folder: Path, count: int, size: int) -> dict[str, float]:
    """Every figure once."""
    member, clock = network(), SystemClock()
    found: dict[str, float] = {}
    found["sign"], found["check"] = bare_signatures(count)
    alone = max(count // 8, 1)
    for name, each in (("commit 1", 1), ("commit 64", IN_FLIGHT)):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            found[name] = bare_commits(Path(place), alone if each == 1 else count, size, each)
    gateway, auth = member(Role.GATEWAY), member(Role.AUTH)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source = FeedStore(Path(place) / "one.db", gateway, clock=clock)
        target = FeedStore(Path(place) / "two.db", auth, clock=clock)
        async with source, target:
            found["append alone"] = await timed(alone, append_alone(source, alone, size))
            found["append at once"] = await timed(count, append_at_once(source, count, size))
            began = time.perf_counter()
            copied = await copy(source, target)
            found["copy"] = copied / (time.perf_counter() - began)
        began = time.perf_counter()
        async with target:
            found["open"] = copied / (time.perf_counter() - began)
            view = View(target, USAGE, Sums, name="sums", on_error=print)
            found["fold"] = await timed(copied, view.open())
            await view.close()
    return found


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=4000)
    parser.add_argument("--payload", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        rounds = [
            await one_round(Path(place), options.entries, options.payload) for _ in range(ROUNDS)
        ]
    median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    least = 1 / (1 / median["sign"] + 1 / median["commit 64"])
    least_alone = 1 / (1 / median["sign"] + 1 / median["commit 1"])
    print(f"payloads of {options.payload} bytes; medians of {ROUNDS} rounds, in a second")
    rows = [
        ("append, one after another", "append alone", "signature + commit", least_alone),
        (f"append, {IN_FLIGHT} at once", "append at once", "signature + share of commit", least),
        ("replicate: check and store", "copy", "signature check", median["check"]),
        ("check a file at its opening", "open", "signature check", median["check"]),
        ("read back and fold", "fold", "signature check", median["check"]),
    ]
    for label, name, beside, floor in rows:
        rate = median[name]
        print(f"{label:28} {rate:8.0f}   {beside:28} {floor:8.0f}   ratio {rate / floor:5.2f}")


if __name__ == "__main__":
    asyncio.run(main())
