"""Copies of feeds at other workers: who gets what, when, and from whom after a loss."""

import asyncio
import shutil
from collections import Counter

import pytest
from mesh_feeds import KeyValues
from mesh_replication import FeedWorld
from mesh_rpc import caught, settled

from tinkex.errors import (
    ConfigurationError,
    LogForkError,
    NotFoundError,
    PermissionDeniedError,
    TrustError,
    UnsupportedError,
)
from tinkex.mesh.api.feeds import (
    EntriesRequest,
    FeedApi,
    ForksRequest,
    HeadsRequest,
    Key,
    KeysRequest,
    Push,
    SnapshotRequest,
)
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.feeds.epoch import read_opening
from tinkex.mesh.feeds.policy import (
    ACCOUNTS_PRIVATE,
    ACCOUNTS_PUBLIC,
    ERASURES,
    MESH_FEEDS,
    PERMITS,
    USAGE,
)
from tinkex.mesh.feeds.pruning import prune
from tinkex.mesh.feeds.pushing import LATER_S
from tinkex.mesh.feeds.replication import PARTING_S
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.view import View
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import method_of, methods_of
from tinkex.testing import VirtualClock

GATHER_S = MESH_FEEDS[USAGE].gather_s


async def has(node, feed, *texts):
    return await node.holds(feed) == list(texts)


def having(node, feed, *texts):
    return lambda: has(node, feed, *texts)


async def test_gateway_gets_what_was_there_and_is_told_of_what_comes_without_a_poll(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        await auth.write(ACCOUNTS_PUBLIC, "key 1")
        gateway.follow(auth)
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, "key 1"))
        await auth.write(ACCOUNTS_PUBLIC, "revoked: key 1")
        await settled(200)  # no time passes
        assert await gateway.holds(ACCOUNTS_PUBLIC) == ["key 1", "revoked: key 1"]
        (state,) = gateway.replicator.sources()
        assert (state.peer_id, state.failures, state.behind) == (auth.peer_id, 0, 0)
        assert state.age_s <= 2.0


async def test_entry_that_is_not_flushed_is_told_of_with_the_next_that_is_or_later(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        await gateway.write(USAGE, "1")
        gateway.follow(auth)
        await world.wait(having(auth, USAGE, "1"))
        for text in (b"2", b"3"):
            await gateway.store.own(USAGE).append(text, flush=False)
        await settled(200)  # no time passes
        assert await auth.holds(USAGE) == ["1"]
        assert await gateway.holds(USAGE) == ["1", "2", "3"]
        await gateway.write(USAGE, "4")
        await world.pass_time(0.6 * GATHER_S, 0.6 * GATHER_S)
        await settled(200)
        assert await auth.holds(USAGE) == ["1"]
        await gateway.write(USAGE, "5")  # does not put it off
        await world.pass_time(0.6 * GATHER_S, 0.6 * GATHER_S)
        await settled(200)
        assert await auth.holds(USAGE) == ["1", "2", "3", "4", "5"]
        await gateway.store.own(USAGE).append(b"6", flush=False)
        await world.pass_time(LATER_S - 0.1)
        assert await auth.holds(USAGE) == ["1", "2", "3", "4", "5"]
        await world.wait(having(auth, USAGE, "1", "2", "3", "4", "5", "6"))


async def test_what_waits_to_be_told_is_told_before_the_end(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        await gateway.write(USAGE, "1")
        gateway.follow(auth)
        await world.wait(having(auth, USAGE, "1"))
        await gateway.write(USAGE, "2")
        await gateway.store.own(USAGE).append(b"3", flush=False)
        await gateway.replicator.stop()  # no time passes
        assert await auth.holds(USAGE) == ["1", "2", "3"]


async def test_end_does_not_wait_for_who_did_not_answer_when_it_was_last_asked(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        await gateway.write(USAGE, "1")
        gateway.follow(auth)
        await world.wait(having(auth, USAGE, "1"))
        await auth.peers.stop()
        gateway.peers._transport.dial = lambda _: asyncio.Event().wait()  # as into the dark
        await world.pass_time(30)
        (state,) = gateway.replicator.sources()
        assert state.failures > 0
        await gateway.write(USAGE, "2")
        stopping = asyncio.ensure_future(gateway.replicator.stop())
        await settled(200)
        assert stopping.done()  # no time has passed


@pytest.mark.parametrize("gone", [True, False])
async def test_end_does_not_wait_for_who_cannot_be_told(tmp_path, gone, monkeypatch):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        await gateway.write(USAGE, "1")
        gateway.follow(auth)
        await world.wait(having(auth, USAGE, "1"))
        if gone:
            await auth.peers.stop()
        else:
            never = asyncio.Event()
            monkeypatch.setattr(auth.store, "ingest", lambda *_, **__: never.wait())
        await gateway.write(USAGE, "2")
        stopping = asyncio.ensure_future(gateway.replicator.stop())
        await settled(200)
        assert stopping.done() is gone
        await world.pass_time(PARTING_S + 0.1)
        assert stopping.done()


async def test_entry_that_is_not_flushed_is_found_by_who_asks(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        await auth.write(ACCOUNTS_PUBLIC, "1")
        gateway.follow(auth)
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, "1"))
        await auth.store.own(ACCOUNTS_PUBLIC).append(b"2", flush=False)
        await settled(200)
        assert await gateway.holds(ACCOUNTS_PUBLIC) == ["1"]
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, "1", "2"))
        await auth.write(ACCOUNTS_PUBLIC, "3")
        await settled(200)
        assert await gateway.holds(ACCOUNTS_PUBLIC) == ["1", "2", "3"]


async def test_private_accounts_reach_auth_workers_alone(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, second = await world.node(), await world.node()
        gateway = await world.node(Role.GATEWAY)
        await auth.write(ACCOUNTS_PRIVATE, "password hash")
        await auth.write(ACCOUNTS_PUBLIC, "key 1")
        for node in (second, gateway):
            node.follow(auth)
        await world.wait(having(second, ACCOUNTS_PRIVATE, "password hash"))
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, "key 1"))
        assert await gateway.holds(ACCOUNTS_PRIVATE) == []
        (entry,) = [e async for e in auth.store.entries(ACCOUNTS_PRIVATE)]
        request = EntriesRequest(entry.author.raw, ACCOUNTS_PRIVATE, entry.id.epoch, -1)
        stream = gateway.peers.stream(auth.contact, FeedApi.rpc_entries, request, timeout_s=1)
        assert isinstance(await caught(anext(stream)), PermissionDeniedError)
        asked = HeadsRequest((ACCOUNTS_PRIVATE, ACCOUNTS_PUBLIC), b"", 0)
        heads = await gateway.peers.call(auth.contact, FeedApi.rpc_heads, asked, timeout_s=1)
        assert len(heads.chains) == 1
        snapshot = SnapshotRequest(entry.author.raw, ACCOUNTS_PRIVATE)
        stream = gateway.peers.stream(auth.contact, FeedApi.rpc_snapshot, snapshot, timeout_s=1)
        assert isinstance(await caught(anext(stream)), PermissionDeniedError)


async def test_usage_reaches_the_auth_worker_that_its_gateway_follows_and_no_other_gateway(
    tmp_path,
):
    async with FeedWorld(tmp_path) as world:
        auth = await world.node()
        one, two = await world.node(Role.GATEWAY), await world.node(Role.GATEWAY)
        await one.write(USAGE, "10 tokens, before it met the auth worker")
        await one.write(PERMITS, "a nonce")
        one.follow(auth)
        two.follow(auth)
        await world.wait(having(auth, USAGE, "10 tokens, before it met the auth worker"))
        await one.write(USAGE, "20 tokens")
        await world.pass_time(GATHER_S, GATHER_S)
        await settled(200)
        assert (await auth.holds(USAGE))[1:] == ["20 tokens"]
        await world.pass_time(3)
        assert await two.holds(USAGE) == []
        assert await auth.holds(PERMITS) == []


async def test_news_pass_through_a_worker_between(tmp_path):
    async with FeedWorld(tmp_path) as world:
        first, middle, last = await world.node(), await world.node(), await world.node()
        middle.follow(first)
        last.follow(middle)
        await world.pass_time(0.5)
        await first.write(ACCOUNTS_PRIVATE, "a")
        await settled(400)
        assert await last.holds(ACCOUNTS_PRIVATE) == ["a"]


async def test_worker_that_was_away_catches_up(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        gateway.follow(auth)
        await auth.write(ACCOUNTS_PUBLIC, "1")
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, "1"))
        credentials, folder = gateway.peers.credentials, gateway.store.database.path.parent
        await world.stop(gateway)
        await auth.write(ACCOUNTS_PUBLIC, *"23456")
        again = await world.node(Role.GATEWAY, credentials=credentials, folder=folder)
        again.follow(auth)
        await world.wait(having(again, ACCOUNTS_PUBLIC, *"123456"))


async def test_source_that_is_away_is_asked_ever_more_rarely_and_then_found_again(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        await auth.write(ACCOUNTS_PUBLIC, "1")
        credentials, folder = auth.peers.credentials, auth.store.database.path.parent
        contact = auth.contact
        await world.stop(auth)
        gateway.replicator.follow(contact, Role.AUTH)
        await world.pass_time(60, step=0.5)
        (state,) = gateway.replicator.sources()
        assert 5 <= state.failures <= 14
        assert state.age_s is None
        auth = await world.node(credentials=credentials, folder=folder)
        gateway.follow(auth)
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, "1"))
        gateway.replicator.unfollow(auth.peer_id)
        gateway.replicator.unfollow(auth.peer_id)
        assert gateway.replicator.sources() == []


async def test_long_feed_comes_in_batches(tmp_path):
    config = ReplicationConfig(batch_bytes=2000)
    async with FeedWorld(tmp_path, config=config, inline=False) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        texts = [f"{n}" * 50 for n in range(600)]
        await auth.store.own(ACCOUNTS_PUBLIC).append_many([text.encode() for text in texts])
        await gateway.replicator.sync(auth.contact)
        assert await gateway.holds(ACCOUNTS_PUBLIC) == texts


async def test_many_at_once_are_pushed_in_order(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        gateway.follow(auth)
        await world.pass_time(0.5)
        texts = [f"{n}" * 300 for n in range(300)]
        for text in texts:
            await auth.write(ACCOUNTS_PUBLIC, text)
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, *texts))


async def test_more_than_can_wait_to_be_pushed_is_asked_for(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        gateway.follow(auth)
        await world.pass_time(0.5)
        texts = [f"{n}" * 200_000 for n in range(6)]
        await auth.store.own(ACCOUNTS_PUBLIC).append_many([text.encode() for text in texts])
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, *texts))


async def test_pusher_that_is_told_to_wait_waits_and_what_it_left_out_is_asked_for(tmp_path):
    config = ReplicationConfig(push_entries_per_s=2, push_burst_s=2)
    async with FeedWorld(tmp_path, config=config) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        gateway.follow(auth)
        await world.pass_time(0.5)
        texts = [str(n) for n in range(30)]
        for text in texts:
            await auth.write(ACCOUNTS_PUBLIC, text)
            await settled(10)
        assert 0 < len(await gateway.holds(ACCOUNTS_PUBLIC)) < 10
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, *texts), seconds=4)


async def test_unknown_feed_and_snapshot_are_refused_by_name(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        author = auth.peer_id.raw
        for request, kind in (
            (EntriesRequest(author, "gossip", bytes(16), -1), UnsupportedError),
            (EntriesRequest(author, ACCOUNTS_PUBLIC, b"short", -1), Exception),
        ):
            stream = gateway.peers.stream(auth.contact, FeedApi.rpc_entries, request, timeout_s=1)
            assert isinstance(await caught(anext(stream)), kind)
        request = SnapshotRequest(author, ACCOUNTS_PUBLIC)
        stream = gateway.peers.stream(auth.contact, FeedApi.rpc_snapshot, request, timeout_s=1)
        assert isinstance(await caught(anext(stream)), NotFoundError)


# --- recovery ----------------------------------------------------------------


async def test_deleted_data_come_back_from_peers_alone_and_a_new_epoch_joins_them(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, second = await world.node(), await world.node()
        gateway = await world.node(Role.GATEWAY)
        second.follow(auth)
        gateway.follow(auth)
        (last,) = await auth.write(ACCOUNTS_PRIVATE, "ada")
        sealed = await auth.vault.seal("u1", b"ada@example.org", field="email")
        await auth.write(ACCOUNTS_PUBLIC, "key of ada")
        await gateway.write(USAGE, "10 tokens")
        await world.wait(having(second, ACCOUNTS_PRIVATE, "ada"))
        await second.write(ACCOUNTS_PRIVATE, "bob")
        await world.wait(having(auth, USAGE, "10 tokens"))
        await world.wait(having(second, ACCOUNTS_PRIVATE, "ada", "bob"))
        await world.pass_time(2.5)
        credentials, folder = auth.peers.credentials, auth.store.database.path.parent
        await world.stop(auth)
        shutil.rmtree(folder)
        auth = await world.node(credentials=credentials, folder=folder)
        assert await auth.holds(ACCOUNTS_PRIVATE) == []
        auth.follow(second, gateway)
        assert await auth.replicator.recover(5) == [second.peer_id, gateway.peer_id]
        assert await auth.holds(ACCOUNTS_PRIVATE) == ["ada", "bob"]
        assert await auth.holds(ACCOUNTS_PUBLIC) == ["key of ada"]
        assert await auth.holds(USAGE) == ["10 tokens"]
        assert auth.vault.unseal("u1", sealed, field="email") == b"ada@example.org"
        (again,) = await auth.write(ACCOUNTS_PRIVATE, "eve")
        opening = read_opening((await auth.store.run(again.chain, after=-1, limit=1))[0])
        assert [(under.epoch, under.sequence) for under in opening.builds_on] == [(last.epoch, 1)]
        await world.wait(having(second, ACCOUNTS_PRIVATE, "ada", "bob", "eve"))
        assert second.store.forks() == []


async def test_gateways_own_usage_comes_back_from_the_auth_worker(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        gateway.follow(auth)
        await gateway.write(USAGE, "10", "20")
        await world.wait(having(auth, USAGE, "10", "20"))
        credentials, folder = gateway.peers.credentials, gateway.store.database.path.parent
        await world.stop(gateway)
        shutil.rmtree(folder)
        gateway = await world.node(Role.GATEWAY, credentials=credentials, folder=folder)
        gateway.follow(auth)
        assert await gateway.replicator.recover(5) == [auth.peer_id]
        assert await gateway.holds(USAGE) == ["10", "20"]


async def test_recovery_says_that_nobody_was_there(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, second = await world.node(), await world.node()
        second.follow(auth)
        await world.stop(auth)
        assert await second.replicator.recover(5) == []


class Last(KeyValues):
    def fold(self, entry):
        self.values["last"] = entry.payload


async def test_snapshot_takes_the_place_of_pruned_entries_at_a_new_gateway(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        view = View(auth.store, ACCOUNTS_PUBLIC, Last, name="last", on_error=world.errors.append)
        await view.open()
        await auth.write(ACCOUNTS_PUBLIC, *"123")
        await prune(auth.store, ACCOUNTS_PUBLIC, clock=world.clock)
        await auth.write(ACCOUNTS_PUBLIC, "4")
        gateway.follow(auth)
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, "4"))
        theirs = View(
            gateway.store, ACCOUNTS_PUBLIC, Last, name="last", on_error=world.errors.append
        )
        await theirs.open()
        assert theirs.state(auth.peer_id).values == {"last": b"4"}
        await prune(auth.store, ACCOUNTS_PUBLIC, clock=world.clock)
        third = await world.node(Role.GATEWAY)
        await third.replicator.sync(auth.contact)
        fresh = View(third.store, ACCOUNTS_PUBLIC, Last, name="last", on_error=world.errors.append)
        await fresh.open()
        assert fresh.state(auth.peer_id).values == {"last": b"4"}
        for each in (view, theirs, fresh):
            await each.close()


async def test_snapshot_that_was_refused_for_a_clock_is_taken_once_the_clocks_agree(tmp_path):
    async with FeedWorld(tmp_path) as world:
        credentials = world.rpc.credentials(Role.AUTH, KeyPair.generate())
        ahead = VirtualClock(start=world.clock.now() + 120)
        path = tmp_path / "auth" / "feeds.db"
        async with FeedStore(path, credentials, clock=ahead, inline=True) as store:
            view = View(store, ACCOUNTS_PUBLIC, Last, name="last", on_error=world.errors.append)
            await view.open()
            await store.own(ACCOUNTS_PUBLIC).append_many([b"1", b"2"])
            await prune(store, ACCOUNTS_PUBLIC, clock=ahead)
            await view.close()
        auth = await world.node(credentials=credentials, folder=path.parent)
        await auth.write(ACCOUNTS_PUBLIC, "3")
        gateway = await world.node(Role.GATEWAY)
        gateway.follow(auth)
        await world.pass_time(10)
        assert await gateway.store.snapshot(ACCOUNTS_PUBLIC, auth.peer_id) is None
        await world.wait(having(gateway, ACCOUNTS_PUBLIC, "3"), 200, step=1.0)
        assert await gateway.store.snapshot(ACCOUNTS_PUBLIC, auth.peer_id) is not None


async def test_log_that_is_ahead_of_the_clock_is_warned_of_once_a_minute_however_it_grows(
    tmp_path, caplog
):
    async with FeedWorld(tmp_path) as world:
        credentials = world.rpc.credentials(Role.AUTH, KeyPair.generate())
        ahead = VirtualClock(start=world.clock.now() + 3600)
        path = tmp_path / "auth" / "feeds.db"
        async with FeedStore(path, credentials, clock=ahead, inline=True) as store:
            await store.own(ACCOUNTS_PUBLIC).append(b"1")
        auth = await world.node(credentials=credentials, folder=path.parent)
        gateway = await world.node(Role.GATEWAY)
        gateway.follow(auth)
        for number in range(5):
            await auth.write(ACCOUNTS_PUBLIC, f"{number}")
            await world.pass_time(2.0, 1.0)
        said = Counter(one.getMessage() for one in caplog.records if "future" in one.getMessage())
        assert set(said.values()) == {1}, "not with each entry"


# --- persons' keys and erasure ------------------------------------------------


async def test_persons_keys_go_to_auth_workers_alone_and_an_erasure_reaches_them(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, second = await world.node(), await world.node()
        gateway = await world.node(Role.GATEWAY)
        sealed = await auth.vault.seal("u1", b"ada", field="name")
        second.follow(auth)
        gateway.follow(auth)
        await world.pass_time(0.5)
        assert second.vault.unseal("u1", sealed, field="name") == b"ada"
        request = KeysRequest(b"", 0)
        for asker, asked in ((gateway, auth), (auth, gateway)):
            error = await caught(
                asker.peers.call(asked.contact, FeedApi.rpc_keys, request, timeout_s=1)
            )
            assert isinstance(error, PermissionDeniedError)
        await auth.vault.erase("u1")
        await settled(200)
        assert await second.holds(ERASURES) == ["u1"]
        with pytest.raises(NotFoundError, match="erased"):
            second.vault.unseal("u1", sealed, field="name")


async def test_persons_key_is_there_before_the_entry_that_needs_it(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, second = await world.node(), await world.node()
        second.follow(auth)
        await world.pass_time(0.5)
        readable = []

        def told(entries):
            said = [entry.payload for entry in entries if not entry.opens_epoch]
            readable.extend(second.vault.unseal("u1", each, field="name") for each in said)

        second.store.subscribe(ACCOUNTS_PRIVATE, told)
        sealed = await auth.vault.seal("u1", b"ada", field="name")
        await auth.store.own(ACCOUNTS_PRIVATE).append(sealed)
        await settled(200)  # no time passes: it was pushed
        assert readable == [b"ada"]


async def test_keys_that_a_gateway_pushes_are_refused(tmp_path):
    async with FeedWorld(tmp_path) as world:
        auth, gateway = await world.node(), await world.node(Role.GATEWAY)
        push = Push((), keys=(Key("u1", bytes(8), bytes(32)),))
        for asker, asked in ((gateway, auth), (auth, gateway)):
            error = await caught(
                asker.peers.call(asked.contact, FeedApi.rpc_push, push, timeout_s=1)
            )
            assert isinstance(error, PermissionDeniedError)
        assert "0000" not in repr(push).replace("Key(0000000000000000)", "")


# --- forks -------------------------------------------------------------------


async def test_proof_of_a_fork_spreads_to_everybody_at_once(tmp_path):
    async with FeedWorld(tmp_path) as world:
        nodes = [await world.node() for _ in range(4)]
        first, middle, last, thief_victim = nodes
        middle.follow(first)
        last.follow(middle)
        await world.pass_time(0.5)
        same = {"new_epoch": lambda: b"same" * 4}
        twin_a = await twin_of(world, thief_victim, tmp_path / "a", **same)
        twin_b = await twin_of(world, thief_victim, tmp_path / "b", **same)
        await twin_a.own(ACCOUNTS_PRIVATE).append(b"pay 1")
        world.clock.advance(0.001)
        await twin_b.own(ACCOUNTS_PRIVATE).append(b"pay 9")
        await give(twin_a, first.store)
        await settled(200)
        assert await last.holds(ACCOUNTS_PRIVATE) == ["pay 1"]
        with pytest.raises(LogForkError):
            await give(twin_b, first.store)
        await settled(400)
        for node in (first, middle, last):
            assert node.store.forked(thief_victim.peer_id)
            assert await node.holds(ACCOUNTS_PRIVATE) == []
        late = await world.node()
        await late.replicator.sync(last.contact)
        assert late.store.forked(thief_victim.peer_id)
        for twin in (twin_a, twin_b):
            await twin.close()


async def test_two_copies_that_differ_are_found_out_by_comparing_heads(tmp_path):
    async with FeedWorld(tmp_path) as world:
        one, two, victim = [await world.node() for _ in range(3)]
        same = {"new_epoch": lambda: b"same" * 4}
        for node, texts in ((one, [b"1", b"2"]), (two, [b"9", b"8", b"7"])):
            folder = tmp_path / node.peer_id.short
            twin = await twin_of(world, victim, folder, **same)
            for text in texts:
                await twin.own(ACCOUNTS_PRIVATE).append(text)
            await give(twin, node.store)
            await twin.close()
            world.clock.advance(0.001)
        # the one with more entries asks, and finds another entry in the other's head's place
        await two.replicator.sync(one.contact)
        assert two.store.forked(victim.peer_id)
        # the one with fewer asks, and what it gets does not continue what it holds
        three = await world.node()
        twin = await twin_of(world, victim, tmp_path / "third", **same)
        await twin.own(ACCOUNTS_PRIVATE).append(b"5")
        await give(twin, three.store)
        await twin.close()
        await three.replicator.sync(one.contact)
        assert three.store.forked(victim.peer_id)


async def twin_of(world, node, folder, **options):
    from tinkex.mesh.feeds.store import FeedStore

    twin = FeedStore(
        folder / "feeds.db", node.peers.credentials, clock=world.clock, inline=True, **options
    )
    await twin.open()
    return twin


async def give(source, target):
    for head, _ in await source.heads():
        run = await source.run(head.chain, after=-1, limit=1000)
        await target.ingest([entry.encoded() for entry in run])


# --- settings ----------------------------------------------------------------


def test_settings_that_cannot_be_are_refused_all_at_once():
    with pytest.raises(ConfigurationError) as caught_error:
        ReplicationConfig(poll_s=0, follower_s=-1, backoff_max_s=0.1)
    text = str(caught_error.value)
    assert all(name in text for name in ("poll_s", "follower_s", "backoff_max_s"))


REQUESTS = {
    FeedApi.rpc_heads: HeadsRequest((), b"", 0),
    FeedApi.rpc_entries: EntriesRequest(bytes(32), ACCOUNTS_PUBLIC, bytes(16), -1),
    FeedApi.rpc_snapshot: SnapshotRequest(bytes(32), ACCOUNTS_PUBLIC),
    FeedApi.rpc_forks: ForksRequest(),
    FeedApi.rpc_push: Push(()),
    FeedApi.rpc_keys: KeysRequest(b"", 0),
}


def test_every_method_is_tried_as_a_guest():
    assert set(REQUESTS) == set(methods_of(FeedApi).values())


@pytest.mark.parametrize("method", REQUESTS, ids=lambda method: method.__name__)
async def test_guest_gets_nothing(tmp_path, method):
    async with FeedWorld(tmp_path) as world:
        auth = await world.node()
        guest = await world.rpc.peer(None)
        if method_of(method).streamed:
            stream = guest.stream(auth.contact, method, REQUESTS[method], timeout_s=1)
            error = await caught(anext(stream))
        else:
            error = await caught(guest.call(auth.contact, method, REQUESTS[method], timeout_s=1))
        assert isinstance(error, PermissionDeniedError | TrustError), error
