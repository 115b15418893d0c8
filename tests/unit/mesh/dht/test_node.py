"""Whole nodes over memory links: announcing, looking up, leaving, coming back."""

import asyncio

import pytest
from mesh_dht_world import DhtWorld, node_with
from mesh_rpc import SkewedClock, caught, settled

from tinkex.errors import (
    InputError,
    LinkClosedError,
    PeerProtocolError,
    PermissionDeniedError,
    TrustError,
)
from tinkex.mesh.dht.api import (
    DhtApi,
    FindAuth,
    FindNode,
    FindValue,
    FoundAuth,
    HandedOver,
    HandOver,
    Held,
    Store,
)
from tinkex.mesh.dht.config import DhtConfig
from tinkex.mesh.dht.joining import auth_contacts
from tinkex.mesh.dht.node import DhtNode
from tinkex.mesh.dht.records import Offer, make_record
from tinkex.mesh.dht.service import DhtService
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import methods_of


async def found(world, node, topic):
    records = await world.finish(node.lookup(topic))
    return {record.contact.peer_id for record in records}


def peer_ids(*nodes):
    return {node._peers.peer_id for node in nodes}


async def test_what_one_announces_every_other_finds():
    async with DhtWorld() as world:
        first, *others = await world.network(6)
        await world.finish(first.announce("model:a", Offer(models=("a",), free_slots=2)))
        for node in (first, *others):
            (record,) = await world.finish(node.lookup("model:a"))
            assert record.contact == first._peers.contact
            assert record.free_slots == 2


async def test_all_who_announce_a_topic_are_found_once():
    async with DhtWorld() as world:
        nodes = await world.network(5)
        for node in nodes:
            await world.finish(node.announce("processor", Offer()))
        assert await found(world, nodes[0], "processor") == peer_ids(*nodes)


async def test_topic_that_nobody_announces_finds_nobody():
    async with DhtWorld() as world:
        first, _ = await world.network(2)
        assert await world.finish(first.lookup("model:none")) == ()


async def test_announcement_is_renewed_for_as_long_as_it_stands():
    async with DhtWorld() as world:
        first, second = await world.network(2)
        await world.finish(first.announce("processor", Offer()))
        await world.pass_time(100)
        (record,) = await world.finish(second.lookup("processor"))
        assert record.expires_at > world.clock.now() + 25


async def test_stopping_node_withdraws_what_it_announced():
    async with DhtWorld() as world:
        nodes = await world.network(4)
        await world.finish(nodes[1].announce("processor", Offer()))
        await world.finish(nodes[1].stop())
        assert await found(world, nodes[2], "processor") == set()


@pytest.mark.parametrize("back", [False, True])
async def test_stopping_node_waits_for_none_that_is_gone_but_tells_one_that_is_back(back):
    async with DhtWorld() as world:
        first, other, gone = await world.network(3)
        await world.finish(first.announce("processor", Offer()))
        for channel in gone._peers._links.all:
            channel.end(LinkClosedError("cut"), lost=True)
        await settled()
        if back:
            await world.finish(gone._peers.ping(first._peers.contact))
        first._peers._transport.dial = lambda _: asyncio.Event().wait()  # as into the dark
        stopping = asyncio.ensure_future(first.stop())
        await settled()
        assert stopping.done()  # no time has passed
        for node in (other, gone) if back else (other,):
            assert [record.withdrawn for record in node._service.held("processor")] == [True]


async def test_withdrawn_topic_is_not_found_and_may_be_announced_again():
    async with DhtWorld() as world:
        first, second = await world.network(2)
        await world.finish(first.announce("processor", Offer()))
        await world.finish(first.withdraw("processor"))
        await world.finish(first.withdraw("processor"))
        assert await found(world, second, "processor") == set()
        await world.finish(first.announce("processor", Offer()))
        await world.pass_time(1)
        assert await found(world, second, "processor") == peer_ids(first)


async def test_withdrawal_during_a_renewal_stands():
    async with DhtWorld() as world:
        first, second, third = await world.network(3)
        await world.finish(first.announce("processor", Offer()))
        first._announcer.forget_holders()
        renewal = asyncio.ensure_future(first._announcer.renew())
        await settled(1)
        await world.finish(first.withdraw("processor"))
        await world.finish(renewal)
        assert await found(world, second, "processor") == set()
        assert await found(world, third, "processor") == set()


async def test_record_of_a_crashed_node_is_gone_after_its_time():
    async with DhtWorld() as world:
        first, second, third = await world.network(3)
        await world.finish(second.announce("processor", Offer()))
        await world.crash(second)
        assert await found(world, first, "processor") == peer_ids(second)
        await world.pass_time(46)
        assert await found(world, first, "processor") == set()
        assert await found(world, third, "processor") == set()


async def test_changed_models_are_told_at_once_and_changed_load_with_the_renewal():
    async with DhtWorld() as world:
        first, second = await world.network(2)
        await world.finish(first.announce("processor", Offer(models=("a",), free_slots=4)))
        await world.finish(first.announce("processor", Offer(models=("a",), free_slots=1)))
        (record,) = await world.finish(second.lookup("processor"))
        assert record.free_slots == 4
        await world.pass_time(16)
        (record,) = await world.finish(second.lookup("processor"))
        assert record.free_slots == 1
        await world.finish(first.announce("processor", Offer(models=("a", "b"))))
        await world.pass_time(2.1)
        (record,) = await world.finish(second.lookup("processor"))
        assert record.models == ("a", "b")


async def test_adapters_that_are_used_by_turns_are_no_news_and_another_one_is():
    """They come latest used first; a processor says what it has every second, for each topic."""
    one, two, three = (name * 32 for name in ("aa", "bb", "cc"))
    async with DhtWorld() as world:
        first, second = await world.network(2)
        await world.finish(first.announce("processor", Offer(adapters=(one, two))))
        before = first.counts["stores"]
        for adapters in ((two, one), (one, two)) * 5:
            await world.finish(first.announce("processor", Offer(adapters=adapters)))
        assert first.counts["stores"] == before > 0
        await world.finish(first.announce("processor", Offer(adapters=(three, one, two))))
        assert first.counts["stores"] > before
        await world.pass_time(2.1)
        (record,) = await world.finish(second.lookup("processor"))
        assert len(record.adapters) == 3


async def test_answer_is_remembered_for_two_seconds():
    async with DhtWorld() as world:
        first, second = await world.network(2)
        await world.finish(first.announce("processor", Offer()))
        await world.finish(second.lookup("processor"))
        before = second.counts["requests"]
        await asyncio.gather(*(second.lookup("processor") for _ in range(100)))
        assert second.counts["requests"] == before
        await world.pass_time(2.1)
        await world.finish(second.lookup("processor"))
        assert second.counts["requests"] > before


async def test_those_who_look_up_at_once_share_the_requests_and_none_stops_another():
    async with DhtWorld() as world:
        first, second = await world.network(2)
        await world.finish(first.announce("processor", Offer()))
        before = second.counts["requests"]
        tasks = [asyncio.ensure_future(second.lookup("processor")) for _ in range(20)]
        await settled(1)
        tasks[0].cancel()
        answers = await world.finish(asyncio.gather(*tasks, return_exceptions=True))
        assert isinstance(answers[0], asyncio.CancelledError)
        assert all(len(answer) == 1 for answer in answers[1:])
        assert second.counts["requests"] - before <= 2


async def test_lookup_finds_what_is_there_with_a_third_dead():
    async with DhtWorld() as world:
        nodes = await world.network(9)
        for node in nodes[:2]:
            await world.finish(node.announce("processor", Offer()))
        for node in nodes[6:]:
            await world.crash(node)
        for reader in nodes[2:6]:
            assert await found(world, reader, "processor") == peer_ids(*nodes[:2])


async def test_nodes_may_start_before_the_one_that_they_know():
    async with DhtWorld() as world:
        late = await world.peer(Role.BOOTSTRAP)
        await world.crash_peers(late)
        early = await world.node(bootstrap=[late.contact])
        await world.finish(early.announce("processor", Offer()))
        assert early.known == 0
        back = await world.peer(credentials=late.credentials)
        first = await world.node_of(back, bootstrap=[])
        await world.pass_time(6)
        assert early.known == first.known == 1
        assert await found(world, first, "processor") == peer_ids(early)


async def test_restarted_publisher_is_believed_again():
    async with DhtWorld() as world:
        _, second, third = await world.network(3)
        await world.finish(second.announce("processor", Offer(free_slots=1)))
        await world.crash(second)
        await world.finish(second.stop())
        world.nodes.remove(second)
        await world.pass_time(1)
        peers = await world.peer(credentials=second._peers.credentials)
        again = await world.node_of(peers)
        await world.finish(again.announce("processor", Offer(free_slots=7)))
        (record,) = await world.finish(third.lookup("processor"))
        assert record.free_slots == 7


@pytest.mark.parametrize(("earlier_s", "later_s"), [(0, -60), (60, -60)])
async def test_publisher_whose_clock_was_set_back_is_believed_again_at_once(earlier_s, later_s):
    async with DhtWorld() as world:
        _, second = await world.network(2)
        peers = await world.peer(Role.PROCESSOR)
        ahead = SkewedClock(world.clock, earlier_s)
        first = await world.node_of(peers, clock=ahead)
        await world.finish(first.announce("processor", Offer(free_slots=1)))
        await world.finish(first.stop())
        world.nodes.remove(first)
        await world.crash_peers(peers)
        peers = await world.peer(credentials=peers.credentials)
        again = await world.node_of(peers, clock=SkewedClock(world.clock, later_s))
        await world.finish(again.announce("processor", Offer(free_slots=7)))
        await world.pass_time(3)  # so long nodes remember their own answers
        (record,) = await world.finish(second.lookup("processor"))
        assert record.free_slots == 7
        await world.finish(again.withdraw("processor"))
        await world.pass_time(3)
        assert await found(world, second, "processor") == set()


async def test_node_that_comes_has_at_once_what_its_neighbours_hold():
    async with DhtWorld() as world:
        nodes = await world.network(3)
        for node in nodes:
            await world.finish(node.announce("processor", Offer()))
        await world.finish(nodes[0].withdraw("processor"))
        late = await world.node()
        held = {r.contact.peer_id: r.withdrawn for r in late._service.held("processor")}
        assert held == dict(
            zip([n._peers.peer_id for n in nodes], [True, False, False], strict=True)
        )


async def test_node_that_comes_is_told_of_renewals_before_what_it_took_over_ends():
    async with DhtWorld() as world:
        nodes = await world.network(3)
        for node in nodes:
            await world.finish(node.announce("processor", Offer()))
        late = await world.node()
        for _ in range(30):
            await world.pass_time(2)
            held = {record.contact.peer_id for record in late._service.held("processor")}
            assert held == peer_ids(*nodes)


async def test_node_shows_nothing_before_it_has_what_its_neighbours_hold():
    async with DhtWorld() as world:
        first, second = await world.network(2)
        await world.finish(first.announce("processor", Offer()))
        second._service.complete = False
        reply = await world.finish(
            first._peers.call(
                second._peers.contact, DhtApi.rpc_find_value, FindValue("processor"), timeout_s=5
            )
        )
        assert reply.records == ()


async def test_forged_records_of_a_neighbour_are_not_taken_over():
    class Forger(DhtService):
        async def rpc_hand_over(self, request, call):
            return HandedOver((Held(b"nonsense", 30.0), Held(b"", -1.0)))

    async with DhtWorld() as world:
        await world.node(kind=node_with(Forger))
        late = await world.node()
        assert late.holding == 0
        assert late.counts["handed_invalid"] == 2


async def test_client_is_handed_nothing():
    async with DhtWorld() as world:
        first = await world.node()
        client = await world.peer(Role.CLIENT)
        error = await caught(
            client.call(first._peers.contact, DhtApi.rpc_hand_over, HandOver(), timeout_s=5)
        )
        assert isinstance(error, PermissionDeniedError)


async def test_silent_neighbour_delays_a_start_by_its_time_out_alone():
    class Silent(DhtService):
        async def rpc_hand_over(self, request, call):
            await asyncio.Event().wait()

    async with DhtWorld() as world:
        await world.node(kind=node_with(Silent))
        began = world.clock.monotonic()
        late = await world.node()
        assert world.clock.monotonic() - began < 1.2
        assert late._service.complete


REQUESTS = {
    DhtApi.rpc_find_node: FindNode(bytes(32)),
    DhtApi.rpc_find_value: FindValue("processor"),
    DhtApi.rpc_store: Store(()),
    DhtApi.rpc_hand_over: HandOver(),
    DhtApi.rpc_find_auth: FindAuth(),
}


async def test_guest_may_call_one_method():
    assert {f"dht.{m.__name__.removeprefix('rpc_')}" for m in REQUESTS} == set(methods_of(DhtApi))
    async with DhtWorld() as world:
        node = await world.node()
        guest = await world.peer(None)
        allowed = set()
        for method, request in REQUESTS.items():
            answer = guest.call(node._peers.contact, method, request, timeout_s=5)
            try:
                await world.finish(answer)
            except PermissionDeniedError:
                continue
            allowed.add(method)
        assert allowed == {DhtApi.rpc_find_auth}


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        (DhtApi.rpc_find_node, FindNode(b"short")),
        (DhtApi.rpc_find_node, FindNode(bytes(32), ("x" * 129,))),
        (DhtApi.rpc_find_node, FindNode(bytes(32), ("x",) * 9)),
        (DhtApi.rpc_find_value, FindValue("")),
        (DhtApi.rpc_find_value, FindValue("x" * 129)),
        (DhtApi.rpc_store, Store((b"",) * 65)),
    ],
)
async def test_senseless_request_is_refused_before_anything_is_made_of_it(method, request_):
    async with DhtWorld() as world:
        node = await world.node()
        caller = await world.peer(Role.PROCESSOR)
        error = await caught(caller.call(node._peers.contact, method, request_, timeout_s=5))
        assert isinstance(error, PeerProtocolError)


async def test_offer_that_is_too_long_changes_nothing():
    async with DhtWorld() as world:
        first, second = await world.network(2)
        await world.finish(first.announce("processor", Offer(models=("a",))))
        with pytest.raises(InputError, match="fewer"):
            await first.announce("processor", Offer(models=tuple(map(str, range(2000)))))
        await world.pass_time(16)
        (record,) = await world.finish(second.lookup("processor"))
        assert record.models == ("a",)


async def test_record_that_no_longer_fits_stops_no_other_renewal():
    async with DhtWorld() as world:
        first, second = await world.network(2)
        await world.finish(first.announce("processor", Offer()))
        await world.finish(first.announce("model:a", Offer()))
        grown = first._announcer._announcements["processor"]
        grown.offer = Offer(models=tuple(map(str, range(2000))))
        await world.pass_time(60)
        assert first.counts["records_too_long"] > 0
        assert await found(world, second, "model:a") == peer_ids(first)


async def test_answers_that_are_remembered_are_bounded():
    async with DhtWorld() as world:
        node = await world.node()
        for number in range(1500):
            node._remember(f"model:{number}", ())
        assert len(node._remembered) <= 1024


async def test_client_looks_up_and_is_nobodys_contact():
    async with DhtWorld() as world:
        first, second = await world.network(2)
        await world.finish(first.announce("processor", Offer()))
        client = await world.node(Role.CLIENT)
        assert await found(world, client, "processor") == peer_ids(first)
        assert client._peers.contact not in first.contacts + second.contacts
        assert client.known == 2


async def test_client_may_announce_an_adapter_whose_files_it_has():
    async with DhtWorld() as world:
        first, _ = await world.network(2)
        client = await world.node(Role.CLIENT)
        await world.finish(client.announce("adapter:" + "ab" * 32, Offer()))
        assert await found(world, first, "adapter:" + "ab" * 32) == peer_ids(client)


async def test_role_may_not_announce_what_is_anothers():
    async with DhtWorld() as world:
        node = await world.node(Role.PROCESSOR)
        with pytest.raises(TrustError, match="may not announce"):
            await node.announce("gateway", Offer())
        with pytest.raises(InputError, match="characters"):
            await node.announce("model:" + "x" * 200, Offer())
        with pytest.raises(InputError, match="fewer"):
            await node.announce("processor", Offer(models=tuple(map(str, range(2000)))))
        assert node._announcer.topics == ()


async def test_lookup_of_no_topic_is_refused():
    async with DhtWorld() as world:
        node = await world.node()
        with pytest.raises(InputError):
            await node.lookup("")


async def test_guest_learns_where_auth_workers_are_and_nothing_else():
    async with DhtWorld() as world:
        auth = await world.node(Role.AUTH)
        other = await world.node(Role.PROCESSOR)
        await world.finish(auth.announce("auth", Offer()))
        guest = await world.peer(None)
        contact = other._peers.contact
        found = await world.finish(auth_contacts(guest, [contact], clock=world.clock))
        assert found == (auth._peers.contact,)
        error = await caught(
            guest.call(contact, DhtApi.rpc_find_node, FindNode(bytes(32)), timeout_s=5)
        )
        assert isinstance(error, PermissionDeniedError)


async def test_guest_believes_no_forged_auth_worker():
    class Impostor(DhtService):
        async def rpc_find_auth(self, request, call):
            return FoundAuth((fake, b"nonsense"))

    async with DhtWorld() as world:
        liar = await world.node(Role.PROCESSOR, kind=node_with(Impostor))
        own = liar._peers.credentials
        fake = make_record(
            own.key_pair,
            topic="auth",
            offer=Offer(),
            addresses=("memory:x",),
            certificate=own.certificate,
            sequence=1,
            expires_at=world.clock.now() + 30,
            ttl_s=30.0,
        )
        guest = await world.peer(None)
        known = [liar._peers.contact, guest.contact]
        assert await world.finish(auth_contacts(guest, known, clock=world.clock)) == ()


async def test_guest_has_no_node():
    async with DhtWorld() as world:
        guest = await world.peer(None)
        with pytest.raises(TrustError, match="invitation"):
            await world.node_of(guest)


async def test_peer_that_was_shut_out_disappears_from_lookups():
    async with DhtWorld() as world:
        first, second, third = await world.network(3)
        await world.finish(second.announce("processor", Offer()))
        assert await found(world, first, "processor") == peer_ids(second)
        world.trust.revoked.add(second._peers.peer_id)
        await world.pass_time(2.1)
        assert await found(world, first, "processor") == set()
        assert third._service.held("processor") == []


async def test_node_starts_once_and_stops_harmlessly_twice():
    async with DhtWorld() as world:
        node = await world.node()
        with pytest.raises(RuntimeError, match="started already"):
            await node.start()
        await world.finish(node.stop())
        await world.finish(node.stop())
        await world.finish(node.start())


async def test_start_that_is_given_up_leaves_nothing_behind():
    async with DhtWorld() as world:
        silent = await world.peer(Role.BOOTSTRAP)
        peers = await world.peer(Role.PROCESSOR)
        node = DhtNode(peers, clock=world.clock)
        starting = asyncio.ensure_future(node.start([silent.contact]))
        await settled(1)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        assert starting.cancelled()
        assert len(node._tasks) == 0
        await settled()


async def test_node_that_does_not_run_says_so():
    async with DhtWorld() as world:
        node = await world.node()
        await world.finish(node.stop())
        for work in (node.lookup("processor"), node.announce("processor", Offer())):
            with pytest.raises(LinkClosedError, match="start it first"):
                await work
        await node.withdraw("processor")


async def test_stopping_ends_what_is_being_looked_up_announced_and_started():
    async with DhtWorld() as world:
        silent = await world.peer(Role.BOOTSTRAP)
        first = await world.node()
        await world.network(2)
        for other in world.nodes[1:]:
            await world.crash(other)
        node = DhtNode(await world.peer(Role.PROCESSOR), clock=world.clock)
        work = [
            first.lookup("processor"),
            first.announce("processor", Offer()),
            node.start([silent.contact]),
        ]
        tasks = [asyncio.ensure_future(one) for one in work]
        await settled(2)
        await world.finish(asyncio.gather(first.stop(), node.stop()))
        for task in tasks:
            with pytest.raises(LinkClosedError):
                await world.finish(task, within=0.1)


async def test_stop_before_any_start_is_harmless():
    async with DhtWorld() as world:
        node = DhtNode(await world.peer(Role.PROCESSOR), clock=world.clock)
        await node.stop()
        await world.finish(node.start())
        await world.finish(node.stop())


async def test_halves_of_a_network_find_together_again():
    async with DhtWorld() as world:
        nodes = await world.network(6)
        left, right = nodes[:3], nodes[3:]
        for mine, theirs in ((left, right), (right, left)):
            for node in mine:
                for other in theirs:
                    node._lost_link(other._peers.peer_id)
        await world.finish(right[0].announce("processor", Offer()))
        await world.pass_time(60)
        for node in nodes:
            assert await found(world, node, "processor") == peer_ids(right[0])
            assert node.known == 5


async def test_far_nodes_are_looked_up_again_when_their_bucket_was_idle():
    async with DhtWorld() as world:
        first = await world.node(config=DhtConfig(refresh_s=30, probe_s=10))
        await world.network(2)
        before = first.counts["searches"]
        await world.pass_time(45)
        assert first.counts["searches"] > before
