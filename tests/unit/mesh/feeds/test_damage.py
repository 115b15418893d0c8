"""A damaged file is never believed: it is refused by name, or nothing that matters was hit."""

import contextlib
import random
import shutil
import sqlite3

import pytest
from mesh_feeds import KeyValues, copy_all, key, member, payloads, store

from tinkex.errors import ConfigurationError, DamagedDataError, StorageError
from tinkex.mesh.feeds import recovery
from tinkex.mesh.feeds.chain import ForkProof
from tinkex.mesh.feeds.database import Database
from tinkex.mesh.feeds.entry import FIRST, sign_entry
from tinkex.mesh.feeds.pruning import prune
from tinkex.mesh.feeds.recovery import open_or_salvage
from tinkex.mesh.feeds.vault import Vault
from tinkex.mesh.feeds.view import View
from tinkex.testing import VirtualClock

FEEDS = ("accounts-public", "accounts-private")
FLIPS = 120


class Last(KeyValues):
    def fold(self, entry):
        self.values[entry.payload.decode()[:1]] = entry.payload


async def fill(folder, clock):
    """A file with something in every table."""
    async with store(folder, clock=clock) as held:
        view = View(held, FEEDS[0], Last, name="last", on_error=print)
        await view.open()
        await held.own(FEEDS[0]).append_many([b"a%d" % n for n in range(8)])
        await prune(held, FEEDS[0], clock=clock)
        await view.current()
        for feed in FEEDS:
            await held.own(feed).append_many([b"b%d" % n + bytes(300) for n in range(8)])
        await view.close()
        forked = [
            sign_entry(
                key(9),
                feed=FEEDS[0],
                epoch=bytes(16),
                sequence=0,
                previous=FIRST,
                time=1,
                payload=p,
            )
            for p in (b"1", b"2")
        ]
        await held.shut_out(ForkProof.of(*forked))
        vault = Vault(held, on_error=print)
        await vault.open()
        sealed = await vault.seal("u1", b"ada", field="name")
        await vault.close()
    return sealed


async def read(folder, clock, sealed):
    """All that a worker would ever see of the file."""
    async with store(folder, clock=clock) as held:
        found = [await held.heads(), [proof.encoded() for proof in held.forks()]]
        found += [await payloads(held, feed) for feed in FEEDS]
        found += [await held.held(feed) for feed in FEEDS]
        view = View(held, FEEDS[0], Last, name="last", on_error=print)
        await view.open()
        found.append(view.state(key(1).peer_id).values)
        await view.close()
        vault = Vault(held, on_error=print)
        await vault.open()
        found.append(vault.unseal("u1", sealed, field="name"))
        await vault.close()
        return found


async def flip_and_read(tmp_path, seed, flips):
    clock = VirtualClock()
    sealed = await fill(tmp_path / "good", clock)
    expected = await read(shutil.copytree(tmp_path / "good", tmp_path / "copy"), clock, sealed)
    good = (tmp_path / "good" / "feeds.db").read_bytes()
    rng = random.Random(seed)
    refused = 0
    for number in range(flips):
        data = bytearray(good)
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "feeds.db").write_bytes(data)
        try:
            assert await read(folder, clock, sealed) == expected, f"byte {at}, seed {seed}"
        except DamagedDataError:
            refused += 1
        shutil.rmtree(folder)
    return refused


async def test_flipped_bit_anywhere_is_refused_or_changes_nothing(tmp_path):
    seed = random.SystemRandom().randrange(1 << 32)
    assert await flip_and_read(tmp_path, seed, FLIPS) > 0, f"seed {seed}"


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
async def test_flipped_bit_anywhere_is_refused_or_changes_nothing_long(tmp_path, seed):
    assert await flip_and_read(tmp_path, seed, 500) > 0


async def change(folder, statement, values=()):
    async with store(folder) as held:
        await held.database.write(lambda t: t.connection.execute(statement, values))


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE entries SET payload = x'00' WHERE sequence = 2", "entry 2"),
        ("UPDATE entries SET signature = zeroblob(64) WHERE sequence = 2", "entry 3"),
        ("UPDATE entries SET signature = zeroblob(64) WHERE sequence = 4", "signature"),
        ("DELETE FROM entries WHERE sequence = 2", "entry 3"),
        ("DELETE FROM entries WHERE sequence = 0", "entry 0"),
        ("DELETE FROM entries", "lost its entries"),
        ("DELETE FROM chains", "no chain"),
        ("UPDATE chains SET author = x'00'", "chains"),
        ("UPDATE chains SET author = zeroblob(32)", "place"),
        ("UPDATE chains SET expires = expires + 1e9", "expiry"),
        ("UPDATE chains SET base = 1, base_hash = zeroblob(32)", "entry 2"),
        ("UPDATE entries SET header = 'text' WHERE sequence = 1", "entry 1"),
        ("CREATE TABLE other (x)", "tables"),
        ("INSERT INTO forks VALUES (zeroblob(32), x'00')", "fork"),
        ("INSERT INTO snapshots VALUES (zeroblob(32), 'usage', x'00')", "snapshot"),
        ("INSERT INTO views VALUES ('a', x'', x'', x'00')", "view"),
        ("INSERT INTO views VALUES (x'ff', 'a', 'a', x'00')", "views"),
        ("INSERT INTO vault_keys VALUES (1, 'u', x'00', x'00', x'00')", "key"),
    ],
)
async def test_tampered_table_is_refused_by_name(tmp_path, statement, named):
    async with store(tmp_path) as held:
        await held.own(FEEDS[0]).append_many([b"1", b"2", b"3", b"4"])
    await change(tmp_path, statement)
    with pytest.raises(DamagedDataError, match=named):
        await store(tmp_path).open()


async def test_entry_that_is_changed_while_the_store_is_open_is_not_given_out(tmp_path):
    async with store(tmp_path) as held:
        await held.own(FEEDS[0]).append_many([b"1", b"2", b"3", b"4"])
        await held.database.write(
            lambda t: t.connection.execute("UPDATE entries SET payload = x'39' WHERE sequence = 2")
        )
        with pytest.raises(DamagedDataError, match="entry 2"):
            await payloads(held, FEEDS[0])
        with pytest.raises(DamagedDataError, match="entry 2"):
            await held.verify()


async def test_file_that_is_no_database_is_refused_by_name(tmp_path):
    (tmp_path / "feeds.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(DamagedDataError, match=r"feeds\.db is damaged"):
        await store(tmp_path).open()
    # and the refusal let go of the lock
    with pytest.raises(DamagedDataError):
        await store(tmp_path).open()


async def test_damaged_chain_keeps_what_checks_and_gets_the_rest_from_a_peer(tmp_path):
    clock = VirtualClock()
    mine = tmp_path / "mine"
    async with store(mine, clock=clock) as one, store(tmp_path / "2", member(2)) as peer:
        await one.own(FEEDS[0]).append_many([b"%d" % n for n in range(10)])
        await one.own(FEEDS[1]).append(b"private")
        await copy_all(one, peer, FEEDS[0])
        await change_open(one, "UPDATE entries SET payload = x'39' WHERE sequence = 6")
        await one.close()
        restored, salvage = await open_or_salvage(lambda: store(mine, clock=clock))
        assert "entry 6" in salvage.reason
        assert salvage.set_aside.name == "feeds.db.damaged-1"
        assert salvage.entries == 8
        assert await payloads(restored, FEEDS[0]) == [b"%d" % n for n in range(5)]
        assert await payloads(restored, FEEDS[1]) == [b"private"]
        await copy_all(peer, restored, FEEDS[0])
        assert await payloads(restored, FEEDS[0]) == [b"%d" % n for n in range(10)]
        await restored.own(FEEDS[0]).append(b"on it goes")
        await copy_all(restored, peer, FEEDS[0])
        assert peer.forks() == []
        await restored.close()
    again, salvage = await open_or_salvage(lambda: store(mine, clock=clock))
    assert salvage is None
    await again.close()


async def change_open(held, statement):
    await held.database.write(lambda t: t.connection.execute(statement))


async def test_salvage_keeps_snapshots_forks_and_keys(tmp_path):
    clock = VirtualClock()
    sealed = await fill(tmp_path, clock)
    expected = await read(shutil.copytree(tmp_path, tmp_path / "copy"), clock, sealed)
    await change(tmp_path, "INSERT INTO views VALUES ('a', x'', x'', x'00')")
    for number in (1, 2):
        restored, salvage = await open_or_salvage(lambda: store(tmp_path, clock=clock))
        assert salvage.set_aside.name == f"feeds.db.damaged-{number}"
        await restored.close()
        assert await read(shutil.copytree(tmp_path, tmp_path / f"c{number}"), clock, sealed) == (
            expected
        )
        await change(tmp_path, "INSERT INTO views VALUES ('a', x'', x'', x'00')")


async def test_of_a_file_that_cannot_be_read_nothing_is_kept(tmp_path):
    (tmp_path / "feeds.db").write_bytes(b"not a database" * 1000)
    restored, salvage = await open_or_salvage(lambda: store(tmp_path))
    assert salvage.entries == 0
    assert await restored.heads() == []
    await restored.close()


async def damaged_log(folder, clock):
    """Two chains, of which one is damaged near its end."""
    async with store(folder, clock=clock) as held:
        await held.own(FEEDS[0]).append_many([b"%d" % n for n in range(10)])
        await held.own(FEEDS[1]).append_many([b"private", b"too"])
        await change_open(held, "UPDATE entries SET payload = x'39' WHERE sequence = 9")


async def saved_of_it(folder, clock):
    restored, salvage = await open_or_salvage(lambda: store(folder, clock=clock))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(restored.close)
        assert salvage.set_aside.name == "feeds.db.damaged-1"
        return [await payloads(restored, feed) for feed in FEEDS]


SAVED = [[b"%d" % n for n in range(8)], [b"private", b"too"]]


@pytest.mark.parametrize("writes", range(3))
async def test_salvage_for_which_the_disk_has_no_room_is_no_start_with_half_of_it(
    tmp_path, monkeypatch, writes
):
    clock, folder = VirtualClock(), tmp_path / "50%25 #1?"
    await damaged_log(folder, clock)
    left, commit = [writes], Database.commit

    def disk_full(self, connection):
        if not left[0]:
            raise sqlite3.OperationalError("disk is full")
        left[0] -= 1
        commit(self, connection)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "commit", disk_full)
        with pytest.raises(StorageError, match="disk is full"):
            await open_or_salvage(lambda: store(folder, clock=clock))
    assert not [*folder.glob("*.salvaging"), *folder.glob("*.damaged-*")]
    assert await saved_of_it(folder, clock) == SAVED


@pytest.mark.parametrize("at", ["set aside", "opened", "kept"])
async def test_salvage_that_a_kill_cut_off_begins_anew(tmp_path, monkeypatch, at):
    clock, folder, killed = VirtualClock(), tmp_path / "1", tmp_path / "killed"
    await damaged_log(folder, clock)
    moves, move, keep = [], recovery._move, recovery._keep

    def moved(path, target):
        if at == "set aside" and not moves:
            shutil.copytree(folder, killed)
        moves.append(path)
        move(path, target)

    async def kept(*parts):
        if at == "opened":
            shutil.copytree(folder, killed)
        found = await keep(*parts)
        if at == "kept":
            shutil.copytree(folder, killed)
        return found

    monkeypatch.setattr(recovery, "_move", moved)
    monkeypatch.setattr(recovery, "_keep", kept)
    assert await saved_of_it(folder, clock) == SAVED
    monkeypatch.undo()
    assert await saved_of_it(killed, clock) == SAVED
    assert not list(killed.glob("*.salvaging"))


async def test_salvage_waits_for_no_other_process(tmp_path):
    async with store(tmp_path):
        with pytest.raises(ConfigurationError):
            await open_or_salvage(lambda: store(tmp_path))
