"""Views over feeds: folding, saving, folding again, pruning."""

import asyncio
import shutil
import sqlite3
import threading
from contextlib import asynccontextmanager

import msgspec
import pytest
from mesh_feeds import KeyValues, copy_all, key, member, payloads, settle, store

from tinkex.errors import (
    LogForkError,
    PeerProtocolError,
    StorageError,
    TrustError,
    UnsupportedError,
)
from tinkex.mesh.feeds.pruning import prune
from tinkex.mesh.feeds.snapshot import Snapshot, decode_snapshot
from tinkex.mesh.feeds.view import View
from tinkex.testing import VirtualClock

FEED = "accounts-public"
ONE, TWO = key(1).peer_id, key(2).peer_id


class Words(KeyValues):
    """`name=value` sets, `-name` deletes; each value tells its history, so order shows."""

    def fold(self, entry):
        text = entry.payload.decode()
        if text.startswith("-"):
            self.values.pop(text[1:], None)
            return
        name, _, value = text.partition("=")
        if not value:
            raise ValueError("no value")
        self.values[name] = self.values.get(name, b"") + value.encode()


class Views:
    """Views that are closed when the test ends."""

    def __init__(self):
        self.errors = []
        self.opened = []

    async def __call__(self, held, restore=Words, **options):
        view = View(held, FEED, restore, name="words", on_error=self.errors.append, **options)
        self.opened.append(view)
        await view.open()
        return view


@pytest.fixture
async def views():
    made = Views()
    yield made
    for view in made.opened:
        await view._tasks.stop()


async def write(held, *texts):
    for text in texts:
        await held.own(FEED).append(text.encode())


async def test_view_holds_what_was_appended_before_and_after_it_opened(tmp_path, views):
    async with store(tmp_path, inline=False) as held:
        await write(held, "a=1", "b=2")
        view = await views(held)
        assert view.state(ONE).values == {"a": b"1", "b": b"2"}
        await write(held, "a=3", "-b", "c=4")
        assert view.state(ONE).values == {"a": b"13", "c": b"4"}
        assert view.authors() == [ONE]
        assert view.state(TWO).values == {}
        await view.close()


async def test_entry_that_cannot_be_folded_is_reported_and_skipped(tmp_path, views):
    async with store(tmp_path) as held:
        view = await views(held)
        await write(held, "nonsense", "a=1")
        assert view.state(ONE).values == {"a": b"1"}
        assert view.skipped == 1
        assert [str(error) for error in views.errors] == ["no value"]


async def test_saved_view_folds_only_what_came_after(tmp_path, views):
    folded = []

    class Counting(Words):
        def fold(self, entry):
            folded.append(entry.payload)
            super().fold(entry)

    async with store(tmp_path) as held:
        await write(held, "a=1", "b=2")
        view = await views(held, Counting)
        await view.close()
        await view.close()
        await write(held, "c=3")
        folded.clear()
        view = await views(held, Counting)
        assert folded == [b"c=3"]
        assert view.state(ONE).values == {"a": b"1", "b": b"2", "c": b"3"}
        await view.close()
        folded.clear()
        await views(held, Counting, version=2)
        assert folded == [b"a=1", b"b=2", b"c=3"]


async def test_long_views_are_saved_now_and_then(tmp_path, views, monkeypatch):
    monkeypatch.setattr("tinkex.mesh.feeds.view.SAVE_EVERY", 3)
    async with store(tmp_path) as held:
        view = await views(held)
        await write(held, "a=1", "b=2", "c=3")
        await view.current()
        again = await views(held)
        assert again.state(ONE).values == view.state(ONE).values


async def test_saved_view_of_entries_that_are_gone_is_not_believed(tmp_path, views):
    async with store(tmp_path / "1") as held:
        await write(held, "a=1")
    shutil.copytree(tmp_path / "1", tmp_path / "old")
    async with store(tmp_path / "1") as held:
        await write(held, "a=2")
        view = await views(held)
        await view.close()
        kept = await held.read(lambda c: c.execute("SELECT * FROM views").fetchall())
    async with store(tmp_path / "old") as held:
        await held.database.write(
            lambda t: t.connection.executemany("INSERT INTO views VALUES (?, ?, ?, ?)", kept)
        )
        view = await views(held)
        assert view.state(ONE).values == {"a": b"1"}


@asynccontextmanager
async def restored_backup(folder, clock, **reading):
    """A store that has written `a=1`, the same of its restored backup, and who reads both."""
    async with store(folder / "1", clock=clock) as one:
        await write(one, "a=1")
    shutil.copytree(folder / "1", folder / "2")
    async with (
        store(folder / "1", clock=clock) as one,
        store(folder / "2", clock=clock) as restored,
        store(folder / "3", member(3), clock=clock, **reading) as reader,
    ):
        yield one, restored, reader


async def test_line_of_a_restored_backup_is_folded_into_its_place(tmp_path, views):
    clock = VirtualClock()
    async with restored_backup(tmp_path, clock) as (one, restored, reader):
        clock.advance(1)
        await write(one, "a=2")
        clock.advance(1)
        await write(restored, "a=3")
        await copy_all(restored, reader, FEED)
        view = await views(reader)
        assert view.state(ONE).values == {"a": b"13"}
        await copy_all(one, reader, FEED)
        await view.current()
        assert view.state(ONE).values == {"a": b"123"}
        assert views.errors == []


async def test_joint_view_folds_all_authors_in_the_one_order(tmp_path, views):
    clock = VirtualClock()
    async with (
        store(tmp_path / "1", clock=clock) as one,
        store(tmp_path / "2", member(2), clock=clock) as two,
    ):
        first = await views(one, by_author=False)
        second = await views(two, by_author=False)
        for n in range(6):
            clock.advance(1)
            await write((one, two)[n % 2], f"a={n}")
        await copy_all(one, two, FEED)
        await copy_all(two, one, FEED)
        await first.current()
        await second.current()
        assert first.state().values == second.state().values == {"a": b"012345"}
        assert first.authors() == sorted([ONE, TWO])
        await first.close()
        reopened = await views(one, by_author=False)
        assert reopened.state().values == {"a": b"012345"}


async def test_forked_authors_entries_leave_the_views(tmp_path, views):
    clock = VirtualClock()
    same = {"clock": clock, "new_epoch": lambda: b"same" * 4}
    async with (
        store(tmp_path / "1", **same) as one,
        store(tmp_path / "copy", **same) as twin,
        store(tmp_path / "2", member(2), clock=clock) as held,
    ):
        await write(one, "a=1")
        await write(held, "b=2")
        await copy_all(one, held, FEED)
        parted, joint = await views(held), await views(held, by_author=False)
        assert joint.state().values == {"a": b"1", "b": b"2"}
        clock.advance(1)
        await write(twin, "a=9")
        with pytest.raises(Exception, match="signed two entries"):
            await copy_all(twin, held, FEED)
        assert parted.state(ONE).values == {}
        await joint.current()
        assert joint.state().values == {"b": b"2"}
        assert parted.authors() == [TWO]


async def test_entries_that_come_while_a_view_folds_again_are_not_lost(tmp_path, views):
    clock = VirtualClock()
    async with restored_backup(tmp_path, clock, inline=False) as (one, restored, reader):
        clock.advance(1)
        await write(one, *(f"a={n}" for n in range(20)))
        clock.advance(1)
        await write(restored, "a=x")
        await copy_all(restored, reader, FEED)
        view = await views(reader)
        await copy_all(one, reader, FEED)
        await write(restored, "a=y", "a=z")
        await copy_all(restored, reader, FEED)
        await view.current()
        expected = "1" + "".join(map(str, range(20))) + "xyz"
        assert view.state(ONE).values == {"a": expected.encode()}


# --- pruning -----------------------------------------------------------------


async def test_pruned_feed_has_the_same_view_here_and_at_a_new_peer(tmp_path, views):
    clock = VirtualClock()
    async with (
        store(tmp_path / "1", clock=clock) as one,
        store(tmp_path / "2", member(2), clock=clock) as late,
        store(tmp_path / "3", member(3), clock=clock) as early,
    ):
        await write(one, "a=1", "secret=word", "-secret")
        await copy_all(one, early, FEED)
        behind = await views(early)
        view = await views(one)
        snapshot = await prune(one, FEED, clock=clock)
        await view.current()
        assert await payloads(one, FEED) == []
        assert view.state(ONE).values == {"a": b"1"}
        await write(one, "a=2")
        assert view.state(ONE).values == {"a": b"12"}
        for target in (late, early):
            assert await target.adopt(decode_snapshot(snapshot.encoded()))
            assert not await target.adopt(snapshot)
            for held in await one.held(FEED):
                run = await one.run(held.chain, after=held.base, limit=100)
                await target.ingest([entry.encoded() for entry in run])
            await target.verify()
        fresh = await views(late)
        await behind.current()
        assert fresh.state(ONE).values == behind.state(ONE).values == {"a": b"12"}
        assert views.errors == []
    data = b"".join(path.read_bytes() for path in (tmp_path / "1").iterdir())
    assert b"secret" not in data
    async with store(tmp_path / "1", clock=clock) as again:
        view = await views(again)
        assert view.state(ONE).values == {"a": b"12"}
        await write(again, "a=3")
        assert view.state(ONE).values == {"a": b"123"}
        assert await prune(again, FEED, clock=clock) is not None
        await view.current()
        assert view.state(ONE).values == {"a": b"123"}
        await view.close()
        view = await views(again)
        assert view.state(ONE).values == {"a": b"123"}


async def test_pruning_needs_the_view_that_takes_the_entries_place(tmp_path, views):
    clock = VirtualClock()
    async with store(tmp_path, clock=clock) as held:
        await write(held, "a=1")
        with pytest.raises(UnsupportedError, match="no view"):
            await prune(held, FEED, clock=clock)
        view = await views(held)
        await prune(held, FEED, clock=clock)
        with pytest.raises(UnsupportedError, match="keep the view"):
            await views(held, version=2)
        await view.current()


async def test_joint_view_of_several_authors_cannot_be_pruned(tmp_path, views):
    clock = VirtualClock()
    async with (
        store(tmp_path / "1", clock=clock) as one,
        store(tmp_path / "2", member(2), clock=clock) as two,
    ):
        await write(one, "a=1")
        await write(two, "a=2")
        await copy_all(two, one, FEED)
        await views(one, by_author=False)
        with pytest.raises(UnsupportedError, match="one author's"):
            await prune(one, FEED, clock=clock)
        empty = await views(two, by_author=True)
        assert empty.covered(ONE) == ({}, Words().dump())


async def snapshot_of_one(tmp_path, views, clock):
    async with store(tmp_path / "1", clock=clock) as one:
        await write(one, "a=1")
        view = await views(one)
        snapshot = await prune(one, FEED, clock=clock)
        await view.current()
        return snapshot


async def test_snapshot_with_another_state_than_was_signed_is_refused(tmp_path, views):
    clock = VirtualClock()
    snapshot = await snapshot_of_one(tmp_path, views, clock)
    async with store(tmp_path / "2", member(2), clock=clock) as held:
        forged = msgspec.structs.replace(snapshot, states={"words@1": b"\x81\xa1a\xc4\x019"})
        with pytest.raises(TrustError, match="another state"):
            await held.adopt(forged)
        forged = msgspec.structs.replace(snapshot, signature=bytes(64))
        with pytest.raises(TrustError, match="signature"):
            await held.adopt(forged)


async def test_snapshot_by_a_role_that_may_not_write_the_feed_is_refused(tmp_path, views):
    clock = VirtualClock()
    snapshot = await snapshot_of_one(tmp_path, views, clock)
    from tinkex.mesh.feeds.policy import MESH_FEEDS, FeedPolicy, FeedRule

    nobody = FeedPolicy({**MESH_FEEDS, FEED: FeedRule(frozenset(), frozenset())})
    async with store(tmp_path / "2", member(2), clock=clock, policy=nobody) as held:
        with pytest.raises(TrustError, match="may not write"):
            await held.adopt(snapshot)


async def test_snapshot_that_contradicts_what_is_held_is_refused(tmp_path, views):
    from tinkex.mesh.feeds.snapshot import CoveredHead, sign_snapshot

    clock = VirtualClock()
    who = member(1)
    async with store(tmp_path / "1", clock=clock) as one, store(tmp_path / "2", member(2)) as two:
        await write(one, "a=1", "a=2")
        await copy_all(one, two, FEED)
        ((head, _),) = await two.heads(FEED)
        (row,) = await two.read(lambda c: __import__("tinkex").mesh.feeds.tables.chains(c, FEED))
        good = CoveredHead(head.chain.epoch, 2, head.hash, head.time, row.expires_at)
        for wrong in (
            {"hash": bytes(32)},
            {"time": head.time - 1},
            {"expires_at": 0.0},
            {"sequence": 1},
        ):
            snapshot = sign_snapshot(
                who.key_pair,
                feed=FEED,
                certificate=who.certificate,
                signed_at=clock.now(),
                covered=(msgspec.structs.replace(good, **wrong),),
                states={},
            )
            with pytest.raises(TrustError):
                await two.adopt(snapshot)
        assert await payloads(two, FEED) == [b"a=1", b"a=2"]
        await two.verify()


async def test_snapshot_from_the_future_is_refused(tmp_path, views):
    ahead = VirtualClock(start=VirtualClock().now() + 3600)
    snapshot = await snapshot_of_one(tmp_path, views, ahead)
    async with store(tmp_path / "2", member(2)) as held:
        with pytest.raises(TrustError, match="future"):
            await held.adopt(snapshot)


async def test_views_in_threads_follow_many_writers(tmp_path, views):
    async with store(tmp_path, inline=False) as held:
        view = await views(held)
        await asyncio.gather(*(write(held, f"k{n}={n}") for n in range(50)))
        assert len(view.state(ONE).values) == 50


async def test_view_that_cannot_be_folded_again_says_so_instead_of_giving_what_it_had(
    tmp_path, views
):
    clock = VirtualClock()
    async with (
        store(tmp_path / "1", clock=clock) as one,
        store(tmp_path / "2", member(2), clock=clock) as reader,
    ):
        await write(one, "a=1", "a=2")
        await copy_all(one, reader, FEED)
        theirs = await views(reader, version=2)
        assert theirs.state(ONE).values == {"a": b"12"}
        own = await views(one)
        snapshot = await prune(one, FEED, clock=clock)
        await own.current()
        assert await reader.adopt(snapshot)
        await theirs.current()
        with pytest.raises(UnsupportedError, match="keep the view"):
            theirs.state(ONE)
        assert [type(error) for error in views.errors] == [UnsupportedError]
        await write(one, "a=3")
        await copy_all_after(one, reader)
        with pytest.raises(UnsupportedError):
            theirs.state(ONE)
        await theirs.close()


def unreadable(*_, **__):
    raise StorageError("feeds.db could not be read or written: disk I/O error")


@pytest.mark.parametrize("by", ["asking", "waiting", "entry"])
async def test_view_that_failed_once_to_fold_again_does_so_when_it_can(
    tmp_path, views, monkeypatch, by
):
    async with store(tmp_path) as held:
        await write(held, "a=1", "a=2")
        view = await views(held)
        with monkeypatch.context() as patch:
            patch.setattr(held, "history", unreadable)
            view.refold()
            await view._tasks.finished()
            with pytest.raises(StorageError):
                view.state(ONE)
            await view._tasks.finished()
        told = []
        view.on_refold(lambda: told.append(dict(view.state(ONE).values)))
        if by == "entry":
            await write(held, "a=3")
            await view._tasks.finished()
        elif by == "waiting":
            await view.current()
        else:
            with pytest.raises(StorageError):
                view.state(ONE)
            await view._tasks.finished()
        assert view.state(ONE).values == {"a": b"123" if by == "entry" else b"12"}
        assert len(told) == 1
        assert {type(error) for error in views.errors} == {StorageError}
        await view.close()


async def test_snapshot_is_made_of_no_view_that_could_not_be_folded_again(
    tmp_path, views, monkeypatch
):
    async with store(tmp_path) as held:
        await write(held, "a=1", "a=2")
        view = await views(held)
        with monkeypatch.context() as patch:
            patch.setattr(held, "history", unreadable)
            view.refold()
            await view._tasks.finished()
            with pytest.raises(StorageError):
                view.covered(ONE)
        assert view.state(TWO).values == {}, "others' entries are not of it"
        await view.close()


async def copy_all_after(source, target):
    for held in await source.held(FEED):
        run = await source.run(held.chain, after=held.base, limit=100)
        await target.ingest([entry.encoded() for entry in run])


class Even:
    """Counts the even ones, or the odd ones; it may change its mind in the middle of folding."""

    wanted = 0
    turns_at = b""

    def counts(self, entry):
        if entry.payload == self.turns_at:
            self.wanted, self.turns_at = 1, b""
        return int(entry.payload[-1:]) % 2 == self.wanted

    def mark(self):
        return self.wanted


async def test_refolding_gives_what_counts_now(tmp_path, views):
    only = Even()
    async with store(tmp_path) as held:
        await write(held, "a=1", "a=2", "a=3", "a=4")
        view = await views(held, only=only)
        assert view.state(ONE).values == {"a": b"24"}
        await view.close()
        only.wanted = 1
        view = await views(held, only=only)  # what was saved under another mark is not used
        assert view.state(ONE).values == {"a": b"13"}
        only.wanted = 0
        view.refold()
        await view.current()
        assert view.state(ONE).values == {"a": b"24"}


async def test_mind_that_changed_unheard_is_noticed_at_the_next_entry_and_the_next_start(
    tmp_path, views
):
    only = Even()
    async with store(tmp_path) as held:
        await write(held, "a=1", "a=2", "a=3")
        view = await views(held, only=only)
        only.wanted = 1
        await view.close()
        view = await views(held, only=only)
        assert view.state(ONE).values == {"a": b"13"}, "what was saved was folded by another mind"
        only.wanted = 0
        await write(held, "a=4")
        await view.current()
        assert view.state(ONE).values == {"a": b"24"}


async def test_mind_that_changes_while_all_is_folded_again_is_heeded(tmp_path, views):
    only, told = Even(), []
    async with store(tmp_path) as held:
        await write(held, "a=1", "a=2", "a=3", "a=4")
        view = await views(held, only=only)
        view.on_refold(lambda: told.append(dict(view.state(ONE).values)))
        only.turns_at = b"a=3"
        view.refold()
        await view.current()
        assert told == [{"a": b"13"}]
        only.wanted, only.turns_at = 0, b"a=2"
        opened = await views(held, only=only, version=2)
        assert opened.state(ONE).values == {"a": b"13"}


class Paused:
    """Lets a view read no more than `pages` pages of a store, until `go` is set."""

    def __init__(self, held, monkeypatch, pages):
        self.go, self.reached = asyncio.Event(), asyncio.Event()
        self._left, self._read = pages, held.read
        monkeypatch.setattr("tinkex.mesh.feeds.reading._PAGE", 1)
        monkeypatch.setattr(held, "read", self._one)

    async def _one(self, work):
        self._left -= 1
        if self._left < 0:
            self.reached.set()
            await self.go.wait()
        return await self._read(work)


@pytest.mark.parametrize("by_author", [True, False])
@pytest.mark.parametrize("opening", [True, False])
async def test_author_shut_out_while_a_view_folds_leaves_it(
    tmp_path, views, monkeypatch, by_author, opening
):
    clock = VirtualClock()
    async with store(tmp_path / "2", member(2), clock=clock) as held:
        await write(held, "b=2")
        proof = await forked(tmp_path, clock, held)
        if not opening:
            view = await views(held, by_author=by_author)
        paused = Paused(held, monkeypatch, 8)
        if opening:
            running = asyncio.create_task(views(held, by_author=by_author))
        else:
            view.refold()
            running = asyncio.create_task(view.current())
        await paused.reached.wait()
        assert await held.shut_out(proof)
        paused.go.set()
        done = await running
        view = done if opening else view
        await view.current()
        found = [view.state(who).values for who in ((ONE, TWO) if by_author else (None,))]
        assert found == ([{}, {"b": b"2"}] if by_author else [{"b": b"2"}])
        assert view.authors() == [TWO]


async def forked(folder, clock, held):
    """Give a store the entries of an author that forked; returns the proof, which it lacks."""
    same = {"clock": clock, "new_epoch": lambda: b"same" * 4}
    async with (
        store(folder / "1", **same) as one,
        store(folder / "copy", **same) as twin,
        store(folder / "3", member(3), clock=clock) as other,
    ):
        await write(one, *(f"a={n}" for n in range(9)))
        clock.advance(1)
        await write(twin, "a=x")
        await copy_all(one, held, FEED)
        await copy_all(one, other, FEED)
        with pytest.raises(LogForkError):
            await copy_all(twin, other, FEED)
        (proof,) = other.forks()
        return proof


async def test_author_is_shut_out_though_whoever_proved_the_fork_has_gone(tmp_path, views):
    begun, held_up = threading.Event(), threading.Event()

    def hold_up(_):
        begun.set()
        held_up.wait()

    clock = VirtualClock()
    async with store(tmp_path / "2", member(2), clock=clock, inline=False) as held:
        proof = await forked(tmp_path, clock, held)
        view = await views(held)
        busy = asyncio.create_task(held.database.write(hold_up))
        await asyncio.to_thread(begun.wait)
        telling = asyncio.create_task(held.shut_out(proof))
        await settle()
        telling.cancel()  # its link was lost
        held_up.set()
        await busy
        await held.database.write(lambda _: None)
        await view.current()
        assert view.state(ONE).values == {}


async def test_author_is_shut_out_though_the_disk_has_no_room_for_the_proof(
    tmp_path, views, monkeypatch
):
    clock = VirtualClock()
    async with store(tmp_path / "2", member(2), clock=clock) as held:
        proof = await forked(tmp_path, clock, held)
        view = await views(held, by_author=False)
        with monkeypatch.context() as patch:
            patch.setattr(held.database, "commit", disk_full)
            with pytest.raises(StorageError, match="disk is full"):
                await held.shut_out(proof)
        await view.current()
        assert view.state().values == {}
        assert held.forks() == [proof]
        await held.shut_out(proof)
    async with store(tmp_path / "2", member(2), clock=clock) as held:
        assert held.forks() == [proof]


def disk_full(_):
    raise sqlite3.OperationalError("disk is full")


async def test_nonsense_is_no_snapshot():
    with pytest.raises(PeerProtocolError, match="no snapshot"):
        decode_snapshot(b"nonsense")
    for body in (b"nonsense", msgspec.msgpack.encode([b"", "", 0, b"", 0.0, [], {}])):
        made = Snapshot(body, b"", {})
        with pytest.raises(PeerProtocolError, match="snapshot"):
            decode_snapshot(made.encoded()).read()
