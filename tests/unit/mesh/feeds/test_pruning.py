"""Pruning at any moment: what entries come to stays the same, through crashes and losses."""

import asyncio
import itertools
import shutil
import sqlite3
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_feeds import all_entries, member, store

from tinkex.errors import StorageError, TrustError, UnsupportedError
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.feeds.epoch import read_opening
from tinkex.mesh.feeds.policy import ACCOUNTS_PRIVATE, USAGE
from tinkex.mesh.feeds.pruning import Pruning, prune, take
from tinkex.mesh.feeds.snapshot import sign_snapshot
from tinkex.mesh.feeds.view import View
from tinkex.mesh.purse import Purse
from tinkex.mesh.roles import Role
from tinkex.mesh.usage import FORGET_S, GatewayUsage, decode_usage, encode_usage
from tinkex.mesh.workers.authority.books import UsageBook, usage_view
from tinkex.testing import VirtualClock

GATEWAY, AUTH = member(1, Role.GATEWAY), member(2)
AUTHOR = GATEWAY.key_pair.peer_id


async def sync(source, target):
    """Give `target` what `source` has of the gateway's usage, as replication does."""
    snapshot = await source.snapshot(USAGE, AUTHOR)
    times = target.snapshot_times()
    if snapshot is not None and snapshot.read().time > times.get((AUTHOR, USAGE), -1):
        await take(target, snapshot)
    held = {one.chain: one.last for one in await target.held(USAGE, AUTHOR)}
    for one in await source.held(USAGE, AUTHOR):
        after = held.get(one.chain, -1)
        if after < one.last and one.base <= after:
            run = await source.run(one.chain, after=after, limit=100_000)
            await target.ingest([entry.encoded() for entry in run])


class Books:
    """A gateway that writes usage, and an auth worker that holds a copy."""

    def __init__(self, folder):
        self.folder, self.clock = folder, VirtualClock()
        self.numbers = itertools.count(1)
        self.life = 0
        self.purse = Purse()
        self.written, self.open, self.lease = [], [], None
        self.errors = []

    def path(self, name):
        return self.folder / name

    async def start(self):
        self.gateway = store(
            self.path("gateway"),
            GATEWAY,
            clock=self.clock,
            new_epoch=lambda: next(self.numbers).to_bytes(16, "big"),
        )
        self.auth = store(self.path("auth"), AUTH, clock=self.clock)
        await self.gateway.open()
        await self.auth.open()
        self.own = usage_view(self.gateway, on_error=self.errors.append)
        self.gateway.register(self.own)
        self.view = usage_view(self.auth, on_error=self.errors.append)
        await self.view.open()

    async def stop(self):
        await self.view.close()
        await self.auth.close()
        await self.gateway.close()

    async def append(self, *events):
        for event in events:
            await self.gateway.own(USAGE).append(encode_usage(event))
            self.written.append(event)

    async def serve(self, requests):
        """Some requests, of which the last is not settled yet."""
        now = self.clock.now()
        if self.lease is None:
            self.lease = f"lease{len(self.written)}"
            self.purse.put_in(self.lease, "ann", "k", 10_000, now + 1e9)
        for _ in range(requests):
            if self.open:
                name = self.open.pop()
                await self.append(
                    self.purse.settle(name, prompt_tokens=2, completion_tokens=3, now=now)
                )
            self.open.append(f"r{len(self.written)}")
            await self.append(self.purse.reserve(self.open[-1], "ann", "k", "m", 9, now))

    async def close_lease(self, _):
        now = self.clock.now()
        while self.open:
            name = self.open.pop()
            await self.append(
                self.purse.settle(name, prompt_tokens=1, completion_tokens=1, now=now)
            )
        await self.append(*self.purse.close_all(now))
        self.lease = None

    async def wait(self, days):
        self.clock.advance(days * 86400.0)

    async def prune(self, keep):
        await prune(self.gateway, USAGE, clock=self.clock, keep=keep)

    async def crash(self, keep):
        """The machine goes down at the moment at which the pruning is to be on the disk."""
        database = self.gateway.database

        def power_is_cut(_):
            raise sqlite3.OperationalError("disk I/O error")

        database.commit = power_is_cut
        with_entries = await self.gateway.held(USAGE)
        try:
            await prune(self.gateway, USAGE, clock=self.clock, keep=keep)
        except StorageError:
            pass
        finally:
            del database.commit
        await self.restart(0)
        assert await self.gateway.held(USAGE) == with_entries

    async def copy(self, _):
        await sync(self.gateway, self.auth)

    async def restart(self, _):
        await self.stop()
        await self.start()

    async def lose(self, _):
        """The gateway's disk is gone; it gets back what the auth worker has, then writes on."""
        await self.copy(0)
        await self.stop()
        shutil.rmtree(self.path("gateway"))
        await self.start()
        await sync(self.auth, self.gateway)

    async def replace_auth(self, _):
        """The auth worker's disk is gone; a new one starts from what the gateway has."""
        await self.stop()
        shutil.rmtree(self.path("auth"))
        await self.start()
        await self.copy(0)

    def expected(self):
        own = GatewayUsage()
        for event in self.written:
            own.apply(event, epoch=b"", sequence=0)
        return own

    async def check(self):
        await self.copy(0)
        await self.copy(0)
        await self.view.current()
        await self.gateway.verify()
        await self.auth.verify()
        assert self.errors == []
        here = self.view.state(AUTHOR)
        due = self.expected()
        assert tidy(here) == tidy(due)
        gateway = {one.chain: one.last for one in await self.gateway.held(USAGE)}
        assert await self.own.state_at(AUTHOR, gateway) == here.dump()
        bases = [{one.chain: one.base for one in await held.held(USAGE)} for held in self.stores()]
        assert bases[0] == bases[1]

    def stores(self):
        return self.gateway, self.auth


def tidy(usage):
    """All that a fold says, but for where its entries are."""
    requests = [(one.settled, one.countersigned) for one in usage.requests()]
    leases = {name: (use.tokens, use.settled_tokens) for name, use in usage.open_leases()}
    sums = [usage.lease(f"lease{n}").settled_tokens for n in range(200)]
    return requests, leases, sums, usage.seen_until, usage.forgot_until, [*usage.earlier("ann")]


actions = st.lists(
    st.one_of(
        st.tuples(st.just("serve"), st.integers(1, 4)),
        st.tuples(st.just("serve"), st.integers(1, 4)),
        st.tuples(st.just("prune"), st.integers(0, 6)),
        st.tuples(st.just("prune"), st.integers(0, 6)),
        st.tuples(st.just("copy"), st.just(0)),
        st.tuples(st.just("close_lease"), st.just(0)),
        st.tuples(st.just("crash"), st.integers(0, 3)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("lose"), st.just(0)),
        st.tuples(st.just("replace_auth"), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 9)),
    ),
    max_size=20,
)


async def live(folder, steps):
    books = Books(folder)
    await books.start()
    for name, what in steps:
        books.clock.advance(0.5)
        await getattr(books, name)(what)
    await books.check()
    await books.stop()


def run(steps):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(Path(folder), steps))


@settings(max_examples=15)
@given(actions)
def test_pruning_at_any_moment_changes_nothing_that_entries_come_to(steps):
    run(steps)


@pytest.mark.soak
@settings(max_examples=600)
@given(actions)
def test_pruning_at_any_moment_long(steps):
    run(steps)


@pytest.fixture
async def books(tmp_path):
    made = Books(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def test_newest_entries_stay_and_the_copy_is_pruned_by_the_same_snapshot(books):
    await books.serve(6)
    await books.copy(0)
    before = await all_entries(books.gateway, USAGE)
    state = books.view.state(AUTHOR)
    await books.prune(4)
    await books.copy(0)
    for held in books.stores():
        assert await all_entries(held, USAGE) == before[-4:]
    assert books.view.state(AUTHOR) is state, "nothing was folded again"
    await books.serve(1)
    assert len(await books.gateway.held(USAGE)) == 1, "pruning opens no epoch"


async def test_snapshot_that_says_else_than_the_entries_is_refused_and_they_are_kept(books):
    await books.serve(6)
    await books.copy(0)
    entries = await all_entries(books.auth, USAGE)
    await books.prune(2)
    told = await books.gateway.snapshot(USAGE, AUTHOR)
    (name,) = told.states
    lie = GatewayUsage(told.states[name])
    lie.apply(decode_usage(entries[1].payload), epoch=b"", sequence=0)
    lie.seen_until += 1
    body = told.read()
    forged = sign_snapshot(
        GATEWAY.key_pair,
        feed=USAGE,
        certificate=GATEWAY.certificate,
        signed_at=body.signed_at,
        covered=body.covered,
        states={name: lie.dump()},
    )
    with pytest.raises(TrustError, match="they are kept"):
        await take(books.auth, forged)
    assert await all_entries(books.auth, USAGE) == entries
    assert await take(books.auth, told)


async def test_snapshot_that_lacks_the_view_of_a_holder_leaves_its_entries(books):
    await books.serve(3)
    await books.copy(0)
    await books.prune(1)
    told = await books.gateway.snapshot(USAGE, AUTHOR)
    newer = View(books.auth, USAGE, UsageBook, name="newer", on_error=books.errors.append)
    end = books.auth.register(newer)
    assert not await take(books.auth, told)
    end()
    assert await take(books.auth, told)


async def test_snapshot_that_the_disk_refuses_is_taken_when_it_has_room(books, monkeypatch):
    await books.serve(6)
    await books.prune(0)
    told = await books.gateway.snapshot(USAGE, AUTHOR)

    def disk_full(_):
        raise sqlite3.OperationalError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(books.auth.database, "commit", disk_full)
        with pytest.raises(StorageError, match="disk is full"):
            await take(books.auth, told)
    assert books.auth.snapshot_times() == {}
    await sync(books.gateway, books.auth)
    await books.view.current()
    assert books.view.state(AUTHOR).dump() == told.states[books.view.name]


async def test_nothing_is_signed_over_a_snapshot_that_came_from_a_peer_meanwhile(books):
    """A restored backup: its earlier life pruned too, and that snapshot comes while this folds."""
    await books.serve(4)
    backup = books.path("backup")
    await books.stop()
    shutil.copytree(books.path("gateway"), backup)
    await books.start()
    await books.prune(1)
    await books.copy(0)
    await books.stop()
    shutil.rmtree(books.path("gateway"))
    shutil.copytree(backup, books.path("gateway"))
    await books.start()
    await books.serve(4)
    begin = books.own._begin

    async def begin_slowly(author):
        books.own._begin = begin
        part = await begin(author)
        await sync(books.auth, books.gateway)
        return part

    books.own._begin = begin_slowly
    assert await prune(books.gateway, USAGE, clock=books.clock) is None
    assert await prune(books.gateway, USAGE, clock=books.clock) is not None
    await books.check()


async def test_an_opening_names_no_head_that_a_snapshot_stands_for(books):
    await books.serve(2)
    await books.prune(0)
    await books.restart(0)
    await books.serve(1)
    await books.restart(0)
    await books.serve(1)
    openings = [
        read_opening(run[0])
        for one in await books.gateway.held(USAGE)
        if one.base < 0
        for run in [await books.gateway.run(one.chain, after=-1, limit=1)]
    ]
    assert [len(opening.builds_on) for opening in openings] == [0, 1]


async def test_leases_are_forgotten_a_week_after_they_were_closed_and_requests_are_not(books):
    await books.serve(3)
    await books.close_lease(0)
    await books.wait(FORGET_S / 86400.0 + 1)
    await books.serve(1)
    await books.copy(0)
    usage = books.view.state(AUTHOR)
    assert not usage.knows("lease0")
    assert usage.forgot_until > 0
    assert len(list(usage.of_account("ann"))) == 3


async def test_schedule_prunes_when_there_is_enough_and_peers_gave_back_what_was_lost(books):
    ready, told = [False], []
    config = ReplicationConfig(keep_entries=5, prune_entries=3, prune_check_s=60.0)
    pruning = Pruning(
        books.gateway,
        clock=books.clock,
        config=config,
        ready=lambda: ready[0],
        pruned=lambda: told.append(1),
    )
    await books.serve(3)
    assert await pruning.look(USAGE) is None, "six entries: one too many, and three are worth it"
    await books.serve(3)
    assert await pruning.look(USAGE) is None, "not ready"
    assert told == []
    ready[0] = True
    assert await pruning.look(USAGE) is not None
    assert told == [1]
    assert len([one async for one in books.gateway.history(USAGE)]) == 5


async def test_schedule_goes_on_after_a_feed_that_cannot_be_pruned(books, caplog):
    config = ReplicationConfig(keep_entries=1, prune_entries=1, prune_check_s=60.0)
    pruning = Pruning(
        books.auth, clock=books.clock, config=config, ready=lambda: True, pruned=lambda: None
    )
    for _ in range(3):
        await books.auth.own(ACCOUNTS_PRIVATE).append(b"x")
    with pytest.raises(UnsupportedError, match="no view"):
        await pruning.look(ACCOUNTS_PRIVATE)
    caplog.set_level("INFO")
    running = asyncio.create_task(pruning.run(ACCOUNTS_PRIVATE))
    for _ in range(400):
        await asyncio.sleep(0)  # noqa: TID251 - lets the task run, waits for nothing
        books.clock.advance(1.0)
    running.cancel()
    assert caplog.text.count("is not pruned") > 1


def test_state_is_the_same_from_any_dump_on():
    usage = GatewayUsage(remembered=3)
    purse = Purse()
    purse.put_in("l", "ann", "k", 10_000, 1e9)
    for number in range(8):
        now = number * 20 * 86400.0
        for event in (
            purse.reserve(str(number), "ann", "k", "m", 9, now),
            purse.settle(str(number), prompt_tokens=1, completion_tokens=2, now=now, receipt=b"r"),
        ):
            usage.apply(event, epoch=b"e", sequence=number)
            again = GatewayUsage(usage.dump(), remembered=3)
            assert again.dump() == usage.dump()
            usage = again
    months = {month: msgspec.to_builtins(use) for month, use in usage.earlier("ann")}
    assert months == {"1970-01": [2, 2, 4], "1970-02": [1, 1, 2], "1970-03": [2, 2, 4]}
    assert usage.earlier_until == 4 * 20 * 86400.0
