"""A worker's feeds on disk: appending, epochs, copies, forks, damage."""

import asyncio
import shutil
import threading

import msgspec
import pytest
from mesh_feeds import all_entries, copy_all, key, member, payloads, settle, store

from tinkex.errors import (
    ClientClosedError,
    ConfigurationError,
    InputError,
    LogForkError,
    PeerProtocolError,
    StorageError,
    TrustError,
    UnsupportedError,
)
from tinkex.mesh.feeds.chain import ForkProof
from tinkex.mesh.feeds.entry import FIRST, MAX_PAYLOAD_BYTES, sign_entry
from tinkex.mesh.feeds.epoch import open_epoch, read_opening
from tinkex.mesh.roles import Role
from tinkex.testing import VirtualClock

FEED = "accounts-public"


async def test_what_was_appended_is_read_again_after_a_restart(tmp_path):
    async with store(tmp_path) as one:
        first = await one.own(FEED).append(b"a")
        second = await one.own(FEED).append(b"b")
        assert (first.sequence, second.sequence) == (1, 2)
        assert first.author == key(1).peer_id
    async with store(tmp_path) as again:
        assert await payloads(again, FEED) == [b"a", b"b"]
        assert (await again.entry(first)).payload == b"a"
        third = await again.own(FEED).append(b"c")
        assert third.epoch != first.epoch
        assert third.sequence == 1
        assert await payloads(again, FEED) == [b"a", b"b", b"c"]


async def test_appends_at_once_share_a_flush_and_lose_nothing(tmp_path):
    async with store(tmp_path, inline=False) as held:
        feed = held.own(FEED)
        ids = await asyncio.gather(*(feed.append(b"%d" % n) for n in range(100)))
        assert [entry.sequence for entry in ids] == list(range(1, 101))
        assert await payloads(held, FEED) == [b"%d" % n for n in range(100)]
        await held.verify()


async def test_the_disk_is_flushed_where_anybody_asks_for_it(tmp_path):
    def level(transaction):
        return transaction.execute("PRAGMA synchronous").fetchone()[0]

    async with store(tmp_path, inline=False) as held:
        write = held.database.write
        assert [await write(level, flush=asked) for asked in (False, True, False)] == [1, 2, 1]
    async with held:
        assert await held.database.write(level) == 2


@pytest.mark.parametrize("inline", [True, False])
async def test_write_ahead_log_is_emptied_once_a_history_that_is_read_has_ended(tmp_path, inline):
    async with store(tmp_path, inline=inline) as held:
        feed = held.own(FEED)
        await feed.append_many([b"%d" % n for n in range(1000)])
        history = held.entries(FEED)
        await anext(history)
        assert await held.database.checkpoint() is False
        assert len([entry async for entry in history]) == 999
        assert (tmp_path / "feeds.db-wal").stat().st_size == 0
        assert await held.database.checkpoint() is True


async def test_what_waits_for_no_flush_shares_one_with_what_does(tmp_path):
    held_up = threading.Event()

    def level(transaction):
        return transaction.execute("PRAGMA synchronous").fetchone()[0]

    async with store(tmp_path, inline=False) as held:
        write = held.database.write
        first = asyncio.ensure_future(write(lambda _: held_up.wait(30)))
        others = [asyncio.ensure_future(write(level, flush=flush)) for flush in (False, True)]
        await asyncio.sleep(0)  # noqa: TID251 - lets them begin
        held_up.set()
        assert await first
        assert await asyncio.gather(*others) == [2, 2]


async def test_append_many_writes_all_or_none(tmp_path):
    async with store(tmp_path) as held:
        with pytest.raises(InputError, match="divide"):
            await held.own(FEED).append_many([b"a", bytes(MAX_PAYLOAD_BYTES + 1)])
        assert await payloads(held, FEED) == []
        assert len(await held.own(FEED).append_many([b"a", b"b"])) == 2
        assert await payloads(held, FEED) == [b"a", b"b"]


async def test_each_start_opens_an_epoch_that_builds_on_the_one_before(tmp_path):
    async with store(tmp_path) as one:
        last = await one.own(FEED).append(b"a")
    async with store(tmp_path) as two:
        entry = await two.own(FEED).append(b"b")
        opening = read_opening((await two.run(entry.chain, after=-1, limit=1))[0])
        assert [(b.epoch, b.sequence) for b in opening.builds_on] == [(last.epoch, 1)]


async def test_second_owner_of_the_file_is_refused_by_name(tmp_path):
    async with store(tmp_path):
        with pytest.raises(ConfigurationError, match=r"another process \(pid \d+\)"):
            await store(tmp_path).open()
    async with store(tmp_path) as held:
        with pytest.raises(ConfigurationError, match="open already"):
            await held.open()


async def test_closed_store_says_so(tmp_path):
    held = store(tmp_path)
    with pytest.raises(ClientClosedError):
        await held.own(FEED).append(b"a")
    await held.close()


async def test_unknown_feed_is_refused_by_name(tmp_path):
    async with store(tmp_path) as held:
        for use in (held.own, lambda name: held.subscribe(name, print)):
            with pytest.raises(UnsupportedError, match="'gossip'"):
                use("gossip")


async def test_worker_without_a_certificate_writes_nothing(tmp_path):
    who = member()
    who.certificate = None
    async with store(tmp_path, who) as held:
        with pytest.raises(TrustError, match="join"):
            await held.own(FEED).append(b"a")


async def test_folder_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "feeds.db.lock").mkdir()
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        await store(tmp_path).open()


async def test_renewed_certificate_opens_a_new_epoch(tmp_path):
    clock = VirtualClock()
    who = member(lasts=3600)
    async with store(tmp_path, who, clock=clock) as held:
        first = await held.own(FEED).append(b"a")
        clock.advance(3590)
        who.certificate = member(start=clock.now()).certificate
        second = await held.own(FEED).append(b"b")
        assert first.epoch != second.epoch


async def test_entries_are_told_to_subscribers_once_they_are_stored(tmp_path):
    async with store(tmp_path, inline=False) as held:
        told = asyncio.Queue()
        stop = held.subscribe(FEED, told.put_nowait)
        await held.own(FEED).append(b"a")
        assert [entry.payload for entry in await told.get()][1:] == [b"a"]
        stop()
        stop()
        await held.own(FEED).append(b"b")
        await settle()
        assert told.empty()


async def test_time_never_goes_back_when_the_clock_does(tmp_path):
    clock = VirtualClock()
    async with store(tmp_path, clock=clock) as held:
        await held.own(FEED).append(b"a")
        clock.set_wall(-3600)
        await held.own(FEED).append(b"b")
    async with store(tmp_path, clock=clock) as held:
        await held.own(FEED).append(b"c")
        times = [entry.header.time for entry in await all_entries(held, FEED)]
        assert times == sorted(set(times))
        assert await payloads(held, FEED) == [b"a", b"b", b"c"]


# --- copies ------------------------------------------------------------------


async def test_copy_is_equal_and_taking_it_twice_changes_nothing(tmp_path):
    async with store(tmp_path / "1") as one, store(tmp_path / "2", member(2)) as two:
        for n in range(10):
            await one.own(FEED).append(b"%d" % n)
        await copy_all(one, two, FEED)
        await copy_all(one, two, FEED)
        assert await all_entries(two, FEED) == await all_entries(one, FEED)
        assert await two.heads(FEED) == await one.heads(FEED)
        assert await payloads(two, FEED, author=key(1).peer_id) == [b"%d" % n for n in range(10)]
        assert await payloads(two, FEED, author=key(2).peer_id) == []


async def test_entries_of_several_authors_have_one_order_everywhere(tmp_path):
    clock = VirtualClock()
    async with (
        store(tmp_path / "1", clock=clock) as one,
        store(tmp_path / "2", member(2), clock=clock) as two,
        store(tmp_path / "3", member(3), clock=clock) as three,
    ):
        await one.own(FEED).append(b"1")
        await copy_all(one, two, FEED)
        clock.set_wall(-50)
        await two.own(FEED).append(b"2 after 1, though its clock is behind")
        await copy_all(two, one, FEED)
        await one.own(FEED).append(b"3")
        await copy_all(one, three, FEED)
        expected = await payloads(one, FEED)
        assert [text[:1] for text in expected] == [b"1", b"2", b"3"]
        assert await payloads(three, FEED) == expected


async def test_head_of_what_is_not_held_is_none(tmp_path):
    async with store(tmp_path) as held:
        written = await held.own(FEED).append(b"a")
        assert (await held.head(written.chain)).sequence == 1
        elsewhere = sign(2, 1).id
        assert await held.head(elsewhere.chain) is None
        assert await held.entry(elsewhere) is None
        assert await held.run(elsewhere.chain, after=-1, limit=5) == []


async def test_author_whose_role_may_not_write_the_feed_is_refused(tmp_path):
    gateway = member(2, Role.GATEWAY)
    async with store(tmp_path / "1", gateway) as one, store(tmp_path / "2") as two:
        await one.own(FEED).append(b"I revoke everything")
        with pytest.raises(TrustError, match="may not write"):
            await copy_all(one, two, FEED)
        assert await payloads(two, FEED) == []


async def test_author_of_another_network_is_refused(tmp_path):
    stranger = member(2, root=key(77))
    async with store(tmp_path / "1", stranger) as one, store(tmp_path / "2") as two:
        await one.own(FEED).append(b"a")
        with pytest.raises(TrustError, match="another network"):
            await copy_all(one, two, FEED)


async def test_anothers_certificate_opens_no_epoch(tmp_path):
    thief = member(2)
    thief.certificate = member(1).certificate
    async with store(tmp_path / "1", thief) as one, store(tmp_path / "2", member(3)) as two:
        await one.own(FEED).append(b"a")
        with pytest.raises(TrustError, match="another peer's certificate"):
            await copy_all(one, two, FEED)


async def test_expired_certificate_carries_no_more_entries(tmp_path):
    clock = VirtualClock()
    who = member(2, lasts=100)
    async with store(tmp_path, clock=clock) as held:
        opening = open_epoch(
            who, feed=FEED, epoch=bytes(16), time=int(clock.now() * 1e6), builds_on=[]
        )
        await held.ingest([opening.encoded()])
        clock.advance(161)
        late = sign(2, 1, after=opening, time=clock.now())
        with pytest.raises(TrustError, match="certificate lasted"):
            await held.ingest([late.encoded()])


async def test_entries_signed_after_a_revocation_are_refused(tmp_path):
    clock = VirtualClock()
    async with store(tmp_path / "1", clock=clock) as one, store(tmp_path / "2", member(2)) as two:
        await one.own(FEED).append(b"a")
        await copy_all(one, two, FEED)
        two.revoked_at = {key(1).peer_id: clock.now() + 5}.get
        clock.advance(10)
        await one.own(FEED).append(b"b")
        with pytest.raises(TrustError, match="revoked"):
            await copy_all(one, two, FEED)
        assert await payloads(two, FEED) == [b"a"]


async def test_opening_that_is_none_is_refused(tmp_path):
    async with store(tmp_path) as held:
        with pytest.raises(PeerProtocolError, match="opening"):
            await held.ingest([sign(2, 0).encoded()])
        with pytest.raises(PeerProtocolError, match="before the opening"):
            await held.ingest([sign(2, 1).encoded()])


@pytest.mark.parametrize(
    "said",
    [b"", bytes(20_000), msgspec.msgpack.encode([b"", [[b"", 0, b""]] * 65])],
    ids=["nothing", "too long", "too many heads"],
)
async def test_opening_that_makes_no_sense_is_refused(tmp_path, said):
    async with store(tmp_path) as held:
        with pytest.raises(PeerProtocolError):
            await held.ingest([sign(2, 0, payload=said).encoded()])


async def test_entries_of_one_chain_must_come_in_order(tmp_path):
    async with store(tmp_path) as held:
        with pytest.raises(PeerProtocolError, match="out of order"):
            await held.ingest([sign(2, 2).encoded(), sign(2, 1).encoded()])


def sign(who, sequence, *, after=None, time=0.0, payload=b"x"):
    return sign_entry(
        key(who),
        feed=FEED,
        epoch=bytes(16),
        sequence=sequence,
        previous=FIRST if after is None else after.hash,
        time=int(time * 1e6),
        payload=payload,
    )


# --- forks -------------------------------------------------------------------


async def test_fork_shuts_the_author_out_and_the_proof_convinces_others(tmp_path):
    clock = VirtualClock()
    async with (
        store(tmp_path / "1", clock=clock, new_epoch=lambda: b"same" * 4) as one,
        store(tmp_path / "2", clock=clock, new_epoch=lambda: b"same" * 4) as twin,
        store(tmp_path / "3", member(3), clock=clock) as reader,
        store(tmp_path / "4", member(4), clock=clock) as other,
    ):
        await one.own(FEED).append(b"pay 1")
        clock.advance(1)
        await twin.own(FEED).append(b"pay 9")
        await copy_all(one, reader, FEED)
        await copy_all(one, other, FEED)
        with pytest.raises(LogForkError, match="signed two entries"):
            await copy_all(twin, reader, FEED)
        assert reader.forked(key(1).peer_id)
        assert await payloads(reader, FEED) == []
        with pytest.raises(LogForkError):
            await payloads(reader, FEED, author=key(1).peer_id)
        with pytest.raises(LogForkError):
            await copy_all(one, reader, FEED)
        (proof,) = reader.forks()
        assert await other.shut_out(ForkProof.decode(proof.encoded()))
        assert not await other.shut_out(proof)
        with pytest.raises(LogForkError):
            await copy_all(one, other, FEED)
        await one.shut_out(proof)
        with pytest.raises(LogForkError):
            await one.own(FEED).append(b"more")
    async with store(tmp_path / "3", member(3)) as again:
        assert again.forked(key(1).peer_id)


async def test_entries_that_somebody_else_signed_with_this_workers_key_are_refused(tmp_path):
    clock = VirtualClock()
    async with store(tmp_path, clock=clock, new_epoch=lambda: bytes(16)) as held:
        await held.own(FEED).append(b"a")
        head = (await held.run(sign(1, 1).chain, after=0, limit=1))[0]
        clock.advance(1)
        with pytest.raises(TrustError, match="this worker's key"):
            await held.ingest([sign(1, 2, after=head, time=clock.now()).encoded()])


# --- restored backups --------------------------------------------------------


async def test_restored_backup_neither_forks_nor_loses_what_peers_hold(tmp_path):
    clock = VirtualClock()
    mine, peer = tmp_path / "mine", store(tmp_path / "peer", member(2), clock=clock)
    await peer.open()
    async with store(mine, clock=clock) as one:
        await one.own(FEED).append(b"before the backup")
    shutil.copytree(mine, tmp_path / "backup")
    async with store(mine, clock=clock) as one:
        clock.advance(10)
        await one.own(FEED).append(b"after the backup")
        await copy_all(one, peer, FEED)
    shutil.rmtree(mine)
    shutil.copytree(tmp_path / "backup", mine)
    async with store(mine, clock=clock) as restored:
        clock.advance(10)
        alone = await restored.own(FEED).append(b"restored, no peer in reach")
        await copy_all(restored, peer, FEED)
        await copy_all(peer, restored, FEED)
        joined = await restored.own(FEED).append(b"joined")
        opening = read_opening((await restored.run(joined.chain, after=-1, limit=1))[0])
        assert len(opening.builds_on) == 2
        assert alone.epoch in {under.epoch for under in opening.builds_on}
        await copy_all(restored, peer, FEED)
        for held in (restored, peer):
            assert await payloads(held, FEED) == [
                b"before the backup",
                b"after the backup",
                b"restored, no peer in reach",
                b"joined",
            ]
            assert held.forks() == []
    await peer.close()


async def test_after_a_write_that_failed_a_new_epoch_is_opened(tmp_path, monkeypatch):
    async with store(tmp_path) as held:
        feed = held.own(FEED)
        first = await feed.append(b"a")
        with monkeypatch.context() as patch:
            patch.setattr(held.database, "commit", disk_full)
            with pytest.raises(StorageError, match="disk is full"):
                await feed.append(b"lost")
        second = await feed.append(b"b")
        assert second.epoch != first.epoch
        assert await payloads(held, FEED) == [b"a", b"b"]


async def test_a_write_that_fills_the_disk_leaves_no_hole_in_its_chain(tmp_path):
    async with store(tmp_path) as held:
        feed = held.own(FEED)
        await feed.append(b"a")
        await held.database.write(grow_by(4))
        with pytest.raises(StorageError, match="disk is full"):
            await feed.append(bytes(MAX_PAYLOAD_BYTES))
        await held.database.write(grow_by(1000))
        await feed.append(b"b")
        await held.verify()
        assert await payloads(held, FEED) == [b"a", b"b"]


async def test_a_write_that_fills_the_disk_has_others_refused_for_that_and_not_for_damage(tmp_path):
    begun, held_up = threading.Event(), threading.Event()

    def hold_up(_):
        begun.set()
        held_up.wait()

    async with store(tmp_path, inline=False) as held:
        feed = held.own(FEED)
        await feed.append(b"a")
        await held.database.write(grow_by(4))
        first = asyncio.ensure_future(held.database.write(hold_up))
        await asyncio.to_thread(begun.wait)
        together = [b"before", bytes(MAX_PAYLOAD_BYTES), b"after"]
        appending = [asyncio.ensure_future(feed.append(each)) for each in together]
        await asyncio.sleep(0)  # noqa: TID251 - lets them begin
        held_up.set()
        await first
        answers = await asyncio.gather(*appending, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StorageError}
        await held.database.write(grow_by(1000))
        await feed.append(b"b")
        assert await payloads(held, FEED) == [b"a", b"b"]


def grow_by(pages):
    """A write after which the file may grow by no more than so many pages."""

    def limit(transaction):
        now = transaction.execute("PRAGMA page_count").fetchone()[0]
        transaction.execute(f"PRAGMA max_page_count = {now + pages}").fetchone()

    return limit


def disk_full(connection):
    import sqlite3

    raise sqlite3.OperationalError("disk is full")
