"""Whatever happens, in any order: nothing that is still anywhere is lost, no honest peer forks."""

import asyncio
import itertools
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_feeds import KeyValues, all_entries, copy_all, member

from tinkex.errors import StorageError
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.view import View
from tinkex.testing import VirtualClock

FEED = "accounts-private"
WORKERS = 3
worker = st.integers(0, WORKERS - 1)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("append"), worker, st.integers(1, 3)),
        st.tuples(st.just("append"), worker, st.integers(1, 3)),
        st.tuples(st.just("copy"), worker, worker),
        st.tuples(st.just("copy"), worker, worker),
        st.tuples(st.just("restart"), worker, st.just(0)),
        st.tuples(st.just("fail"), worker, st.just(0)),
        st.tuples(st.just("lose"), worker, st.just(0)),
        st.tuples(st.just("back up"), worker, st.just(0)),
        st.tuples(st.just("restore"), worker, st.just(0)),
        st.tuples(st.just("clock"), worker, st.integers(-40, 40)),
    ),
    max_size=24,
)


class History(KeyValues):
    """Everything in the order in which it was folded."""

    def fold(self, entry):
        self.values["all"] = self.values.get("all", b"") + b" " + entry.payload


class Life:
    """Some workers, their disks and backups, and what each must hold."""

    def __init__(self, folder):
        self.folder = folder
        self.clocks = [VirtualClock() for _ in range(WORKERS)]
        self.members = [member(number + 1) for number in range(WORKERS)]
        self.numbers = itertools.count(1)
        self.stores = [None] * WORKERS
        self.views = [None] * WORKERS
        self.held = [set() for _ in range(WORKERS)]
        self.backups = [None] * WORKERS
        self.errors = []

    async def start(self, who):
        held = FeedStore(
            self.disk(who) / "feeds.db",
            self.members[who],
            clock=self.clocks[who],
            inline=True,
            new_epoch=lambda: next(self.numbers).to_bytes(16, "big"),
        )
        await held.open()
        view = View(
            held, FEED, History, name="history", by_author=False, on_error=self.errors.append
        )
        await view.open()
        self.stores[who], self.views[who] = held, view

    async def stop(self, who):
        await self.views[who].close()
        await self.stores[who].close()

    def disk(self, who):
        return self.folder / f"disk-{who}"

    def backup(self, who):
        return self.folder / f"backup-{who}"

    async def append(self, who, count):
        for _ in range(count):
            text = b"%d:%d" % (who, next(self.numbers))
            await self.stores[who].own(FEED).append(text)
            self.held[who].add(text)

    async def copy(self, source, target):
        if source != target:
            await copy_all(self.stores[source], self.stores[target], FEED)
            self.held[target] |= self.held[source]

    async def restart(self, who, _):
        await self.stop(who)
        await self.start(who)

    async def fail(self, who, _):
        database = self.stores[who].database

        def disk_full(_):
            raise sqlite3.OperationalError("database or disk is full")

        database.commit = disk_full
        with pytest.raises(StorageError):
            await self.stores[who].own(FEED).append(b"never acknowledged")
        del database.commit

    async def lose(self, who, _):
        await self.stop(who)
        shutil.rmtree(self.disk(who))
        self.held[who] = set()
        await self.start(who)

    async def back_up(self, who, _):
        shutil.rmtree(self.backup(who), ignore_errors=True)
        shutil.copytree(self.disk(who), self.backup(who))
        self.backups[who] = set(self.held[who])

    async def restore(self, who, _):
        if self.backups[who] is None:
            return
        await self.stop(who)
        shutil.rmtree(self.disk(who))
        shutil.copytree(self.backup(who), self.disk(who))
        self.held[who] = set(self.backups[who])
        await self.start(who)

    async def set_clock(self, who, seconds):
        """Clocks differ by less than a minute, and jump."""
        offset = self.clocks[who].now() - VirtualClock().now() - self.clocks[who].monotonic()
        self.clocks[who].set_wall(seconds / 2 - offset)

    async def heal(self):
        """Everybody tells everybody."""
        for clock in self.clocks:
            clock.advance(120)
        for _ in range(2):
            for source, target in itertools.permutations(range(WORKERS), 2):
                await self.copy(source, target)


async def live(folder, steps):
    life = Life(folder)
    does = {"back up": life.back_up, "clock": life.set_clock}
    for who in range(WORKERS):
        await life.start(who)
    for name, who, what in steps:
        for clock in life.clocks:
            clock.advance(0.5)
        await (does.get(name) or getattr(life, name))(who, what)
    everything = set().union(*life.held)
    await life.heal()
    orders, histories = [], []
    for who in range(WORKERS):
        entries = await all_entries(life.stores[who], FEED)
        assert {entry.payload for entry in entries} == everything
        assert life.stores[who].forks() == []
        await life.stores[who].verify()
        orders.append([entry.id for entry in entries])
        await life.views[who].current()
        histories.append(life.views[who].state().values)
        await life.stop(who)
    assert orders[0] == orders[1] == orders[2]
    assert histories[0] == histories[1] == histories[2]
    assert life.errors == []
    if everything:
        folded = histories[0]["all"].split()
        assert len(folded) == len(everything)


def run(steps):
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(live(Path(folder), steps))


@settings(max_examples=8)
@given(actions)
def test_any_order_of_appends_copies_losses_and_restores_ends_equal_everywhere(steps):
    run(steps)


@pytest.mark.soak
@settings(max_examples=400)
@given(actions)
def test_any_order_ends_equal_everywhere_long(steps):
    run(steps)
