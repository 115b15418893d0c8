"""Links: one to a peer, made when needed, chosen alike at both ends, lost in time, bounded."""

import asyncio
from dataclasses import replace

import pytest
from mesh_rpc import Answer, Ask, Echo, World, caught, settled, until

from tinkex.errors import (
    InputError,
    LinkClosedError,
    PeerProtocolError,
    PeerUnreachableError,
    TrustError,
)
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc import outbox
from tinkex.mesh.rpc.config import RpcConfig
from tinkex.mesh.rpc.messages import VERSION, Hello, encode_greeting
from tinkex.mesh.transport.base import Contact


def say(caller, callee, text="x", timeout_s=30.0):
    return caller.call(callee.contact, Echo.rpc_say, Ask(text), timeout_s=timeout_s)


class Cut:
    """A transport whose links can be made to carry nothing any more, without a word."""

    def __init__(self, inner):
        self.inner = inner
        self.dials = 0
        self.silent = False
        self.pace = None
        self.links = []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def dial(self, contact):
        self.dials += 1
        return self._kept(await self.inner.dial(contact))

    async def accept(self):
        return self._kept(await self.inner.accept())

    def _kept(self, link):
        self.links.append(link)
        send, send_now = link.send, link.send_now

        async def send_or_not(frame):
            if self.pace is not None:
                await self.pace(len(frame))
            if not self.silent:
                await send(frame)

        def send_now_or_not(frame):
            if self.pace is not None:
                return False
            return self.silent or send_now(frame)

        link.send, link.send_now = send_or_not, send_now_or_not
        return link


async def cut_peer(world, role=Role.GATEWAY, *services):
    """A peer over a `Cut` transport."""
    original = world.memory.transport
    made = []

    def transport(key_pair, **options):
        made.append(Cut(original(key_pair, **options)))
        return made[-1]

    world.memory.transport = transport
    try:
        peers = await world.peer(role, *services)
    finally:
        world.memory.transport = original
    return peers, made[0]


async def test_many_first_calls_share_one_dial():
    async with World() as world:
        server = await world.peer(Role.AUTH, Echo())
        client, cut = await cut_peer(world)
        await asyncio.gather(*(say(client, server) for _ in range(20)))
        assert cut.dials == 1


async def test_who_stops_waiting_for_a_dial_does_not_stop_the_others():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        first = asyncio.create_task(say(client, server))
        second = asyncio.create_task(say(client, server))
        await asyncio.sleep(0)  # noqa: TID251 - no time passes
        first.cancel()
        assert await second == Answer("x")


@pytest.mark.parametrize("round_", range(6))
async def test_links_dialled_from_both_sides_at_once_become_one(round_):
    async with World() as world:
        one, other = await world.peer(Role.AUTH, Echo()), await world.peer(Role.GATEWAY, Echo())
        replies = await asyncio.gather(
            *(say(one, other) for _ in range(5)), *(say(other, one) for _ in range(5))
        )
        assert len(replies) == 10
        await until(lambda: len(one.links()) == len(other.links()) == 1)
        await asyncio.gather(say(one, other), say(other, one))
        assert len(one.links()) == len(other.links()) == 1


async def test_calls_on_the_link_that_loses_come_to_their_end():
    async with World() as world:
        echoes = Echo(), Echo()
        one, other = await world.peer(Role.AUTH, echoes[0]), await world.peer(Role.AUTH, echoes[1])
        waiting = [
            asyncio.create_task(a.call(b.contact, Echo.rpc_wait, Ask("end"), timeout_s=60))
            for a, b in ((one, other), (other, one))
        ]
        await until(lambda: echoes[0].started == echoes[1].started == 1)
        await world.pass_time(3)
        for echo in echoes:
            echo.gate.set()
        assert [await task for task in waiting] == [Answer("end")] * 2


async def test_killed_peer_is_noticed_in_mid_stream_within_the_configured_time():
    async with World() as world:
        server, cut = await cut_peer(world, Role.PROCESSOR, Echo())
        client = await world.peer()
        lost = []
        client.on_lost(lost.append)
        replies = client.stream(
            server.contact, Echo.rpc_count_then_wait, Ask(count=2), timeout_s=60
        )
        assert (await anext(replies)).number == 0
        assert (await anext(replies)).number == 1
        await world.pass_time(2.0)
        failing = asyncio.create_task(caught(anext(replies)))
        cut.silent = True
        began = world.clock.monotonic()
        while not failing.done():
            await world.pass_time(0.05)
        assert isinstance(await failing, LinkClosedError)
        assert world.clock.monotonic() - began <= 1.5 + 0.1
        assert lost == [server.peer_id]


async def test_answering_peer_is_not_lost_however_long_it_works():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        waiting = asyncio.create_task(
            client.call(server.contact, Echo.rpc_wait, Ask("late"), timeout_s=600)
        )
        await until(lambda: echo.started == 1)
        await world.pass_time(30.0, step=0.1)
        echo.gate.set()
        assert await waiting == Answer("late")
        assert client.rtt(server.peer_id) is not None


@pytest.mark.parametrize("parts", [True, False])
async def test_parts_keep_a_link_alive_while_a_long_body_goes_over_a_slow_line(parts, monkeypatch):
    if not parts:
        monkeypatch.setattr(outbox, "PART_BYTES", 1 << 30)
    async with World() as world:
        server = await world.peer(Role.AUTH, Echo())
        client, cut = await cut_peer(world)
        await client.ping(server.contact)
        cut.pace = lambda size: world.clock.sleep(size / 100_000)
        calling = asyncio.create_task(
            caught_or_reply(
                client.call(server.contact, Echo.rpc_say, Ask("x" * 500_000), timeout_s=60)
            )
        )
        await world.pass_time(7)
        outcome = await calling
        # The whole of it in one frame would be silence for longer than a link may be silent.
        assert isinstance(outcome, Answer if parts else LinkClosedError)


async def caught_or_reply(awaitable):
    try:
        return await awaitable
    except LinkClosedError as error:
        return error


async def test_idle_peer_that_died_is_noticed_by_a_ping():
    async with World() as world:
        server, cut = await cut_peer(world, Role.AUTH, Echo())
        client = await world.peer()
        await say(client, server)
        lost = []
        forget = client.on_lost(lost.append)
        client.on_lost(lambda peer: 1 / 0)
        cut.silent = True
        await world.pass_time(8.0, step=0.1)
        assert lost == [server.peer_id]
        forget()
        assert client.links() == ()


async def test_link_that_nobody_needs_is_closed_after_a_time():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        lost = []
        client.on_lost(lost.append)
        server.on_lost(lost.append)
        await say(client, server)
        await world.pass_time(58, step=0.2)
        assert len(client.links()) == 1
        await world.pass_time(12, step=0.2)
        assert client.links() == server.links() == ()
        assert lost == []
        assert await say(client, server) == Answer("x")


async def test_peer_that_starts_again_is_called_over_a_new_link():
    async with World() as world:
        credentials = world.credentials(Role.AUTH)
        first = await world.peer(Role.AUTH, Echo(), credentials=credentials)
        client = await world.peer(Role.GATEWAY, Echo())
        await say(client, first)
        # The first hangs, and its link with it: the second is heard all the same.
        second = await world.peer(
            Role.AUTH, Echo(), credentials=credentials, address="memory:elsewhere"
        )
        await say(second, client)
        assert await say(client, second) == Answer("x")
        await until(lambda: len(client.links()) == 1)


async def test_failed_dial_is_not_repeated_at_once_but_soon():
    async with World() as world:
        client, cut = await cut_peer(world)
        nobody = Contact(KeyPair.generate().peer_id, ("memory:nowhere",))
        for _ in range(5):
            error = await caught(client.call(nobody, Echo.rpc_say, Ask(), timeout_s=5))
            assert isinstance(error, PeerUnreachableError)
        assert cut.dials == 1
        assert 0 < error.retry_after_ms <= 50
        await world.pass_time(0.1)
        await caught(client.call(nobody, Echo.rpc_say, Ask(), timeout_s=5))
        assert cut.dials == 2
        for _ in range(20):
            await world.pass_time(1.05)
            await caught(client.call(nobody, Echo.rpc_say, Ask(), timeout_s=5))
        assert cut.dials == 22


async def test_peer_with_other_addresses_is_dialled_at_once():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        wrong = replace(server.contact, addresses=("memory:nowhere",))
        await caught(client.call(wrong, Echo.rpc_say, Ask(), timeout_s=5))
        assert await say(client, server) == Answer("x")


async def test_who_knows_a_new_address_does_not_wait_for_a_dial_to_the_old_one():
    async with World() as world:
        credentials = world.credentials(Role.AUTH)
        silent = world.memory.transport(credentials.key_pair, address="memory:old")
        await silent.start()
        client = await world.peer()
        before = asyncio.create_task(
            client.call(silent.contact, Echo.rpc_say, Ask("before"), timeout_s=60)
        )
        await settled()
        server = await world.peer(Role.AUTH, Echo(), credentials=credentials, address="memory:new")
        assert await say(client, server) == Answer("x")
        # Who had the old address has the link, too.
        assert await before == Answer("before")
        assert len(client.links()) == 1
        await silent.stop()


async def test_peer_that_never_greets_is_given_up():
    async with World() as world:
        silent = world.memory.transport(KeyPair.generate())
        await silent.start()
        client = await world.peer()
        failing = asyncio.create_task(
            caught(client.call(silent.contact, Echo.rpc_say, Ask(), timeout_s=60))
        )
        await world.pass_time(5.2)
        assert isinstance(await failing, PeerUnreachableError)
        await silent.stop()


async def test_stranger_that_never_greets_is_closed():
    async with World() as world:
        server = await world.peer(Role.AUTH)
        silent = world.memory.transport(KeyPair.generate())
        await silent.start()
        link = await silent.dial(server.contact)
        await world.pass_time(3.2)
        await settled()
        # It is told why, and has as long again to hang up.
        await world.pass_time(3.2)
        assert link.closed
        await silent.stop()


async def greeted(world, server, **changes):
    """Dial by hand with a changed greeting; returns what comes back."""
    credentials = world.credentials(Role.GATEWAY)
    raw = world.memory.transport(credentials.key_pair)
    await raw.start()
    link = await raw.dial(server.contact)
    hello = Hello(VERSION, world.trust.network.raw, credentials.certificate, bytes(8), 10, 1000)
    fields = {name: getattr(hello, name) for name in hello.__struct_fields__} | changes
    await link.send(encode_greeting(Hello(**fields)))
    try:
        return credentials.check_hello(
            await link.receive(), server.peer_id, dialled=True, now=world.clock.now()
        )
    finally:
        await raw.stop()


async def test_greeting_is_answered_with_the_limits():
    async with World() as world:
        server = await world.peer(Role.AUTH)
        peer = await greeted(world, server)
        assert peer.certificate.role is Role.AUTH
        assert peer.granted.calls == RpcConfig().max_calls
        guest = await greeted(world, server, certificate=None)
        assert guest.granted.calls == RpcConfig().guest_max_calls


async def test_other_version_is_refused_by_name():
    async with World() as world:
        server = await world.peer(Role.AUTH)
        with pytest.raises(PeerProtocolError, match="version 99"):
            await greeted(world, server, version=99)


@pytest.mark.parametrize("broken", ["network", "stolen", "expired", "garbage", "revoked"])
async def test_greeting_of_no_member_is_refused_by_name(broken):
    async with World() as world:
        server = await world.peer(Role.AUTH)
        changes = {
            "network": {"network": bytes(32)},
            "stolen": {"certificate": world.credentials(Role.AUTH).certificate},
            "garbage": {"certificate": b"garbage"},
        }.get(broken, {})
        if broken == "expired":
            changes = {"certificate": world.credentials().certificate}
            world.clock.advance(100_000)
        if broken == "revoked":
            server.renew(replace(server.credentials, is_revoked=lambda peer: True))
        with pytest.raises(TrustError):
            await greeted(world, server, **changes)


async def test_guest_that_is_dialled_is_no_member():
    async with World() as world:
        guest, client = await world.peer(None, Echo()), await world.peer()
        error = await caught(say(client, guest))
        assert isinstance(error, TrustError)
        assert "joined" in str(error)


async def test_member_that_is_thrown_out_is_refused_at_its_next_call():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        await say(client, server)
        world.trust.revoked.add(client.peer_id)
        server.renew(server.credentials)
        error = await caught(say(client, server))
        assert isinstance(error, TrustError)


async def test_link_of_a_member_that_is_thrown_out_is_closed_without_a_call():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        await say(client, server)
        world.trust.revoked.add(client.peer_id)
        await world.pass_time(8, step=0.2)
        assert server.links() == client.links() == ()


@pytest.mark.parametrize("who", ["caller", "callee"])
async def test_call_over_an_old_link_with_a_revoked_peer_is_refused_on_either_side(who):
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        await say(client, server)
        revoked = client.peer_id if who == "caller" else server.peer_id
        world.trust.revoked.add(revoked)
        assert isinstance(await caught(say(client, server)), TrustError)
        await world.pass_time(2)
        assert server.links() == client.links() == ()


async def test_member_whose_auth_worker_is_thrown_out_has_to_join_again():
    async with World() as world:
        # an auth worker's own certificate is the root's
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        await say(client, server)
        world.trust.revoked.add(world.trust.auth.peer_id)
        assert isinstance(await caught(say(client, server)), TrustError)
        with pytest.raises(TrustError, match="join again"):
            await greeted(world, server)


async def test_call_with_a_certificate_that_ran_out_is_refused():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        await say(client, server)
        world.clock.set_wall(86_400 + 61)
        assert isinstance(await caught(say(client, server)), TrustError)


async def test_guest_that_joined_is_a_member_on_new_links():
    async with World() as world:
        server, guest = await world.peer(Role.AUTH, Echo()), await world.peer(None)
        await guest.call(server.contact, Echo.rpc_guests, Ask(), timeout_s=5)
        key_pair = guest.credentials.key_pair
        guest.renew(world.credentials(Role.GATEWAY, key_pair))
        assert await say(guest, server) == Answer("x")
        await until(lambda: len(server.links()) == 1)
        assert server.links()[0].role is Role.GATEWAY


async def test_calls_that_run_come_to_their_end_when_credentials_change():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        waiting = asyncio.create_task(
            client.call(server.contact, Echo.rpc_wait, Ask("end"), timeout_s=60)
        )
        await until(lambda: echo.started == 1)
        client.renew(world.credentials(Role.GATEWAY, client.credentials.key_pair))
        assert await say(client, server) == Answer("x")
        await world.pass_time(4)
        echo.gate.set()
        assert await waiting == Answer("end")
        await until(lambda: len(server.links()) == 1)


async def test_link_that_is_idle_for_longest_makes_room():
    async with World(config=RpcConfig(max_links=2)) as world:
        server = await world.peer(Role.AUTH, Echo())
        clients = [await world.peer() for _ in range(3)]
        for client in clients:
            await say(client, server)
            world.clock.advance(0.1)
        await until(lambda: len(server.links()) == 2)
        assert {link.peer_id for link in server.links()} == {c.peer_id for c in clients[1:]}


async def test_links_that_are_all_in_use_leave_no_room():
    async with World(config=RpcConfig(max_links=1)) as world:
        echo = Echo()
        server = await world.peer(Role.AUTH, echo)
        one, two = await world.peer(), await world.peer()
        waiting = asyncio.create_task(
            one.call(server.contact, Echo.rpc_wait, Ask("end"), timeout_s=60)
        )
        await until(lambda: echo.started == 1)
        error = await caught(say(two, server))
        assert isinstance(error, PeerUnreachableError)
        assert error.retry_after_ms is not None
        echo.gate.set()
        assert await waiting == Answer("end")


async def test_guests_take_no_room_from_members():
    async with World(config=RpcConfig(max_guest_links=2)) as world:
        server, member = await world.peer(Role.AUTH, Echo()), await world.peer()
        await say(member, server)
        for _ in range(5):
            guest = await world.peer(None)
            await guest.call(server.contact, Echo.rpc_guests, Ask(), timeout_s=5)
            world.clock.advance(0.01)
        await until(lambda: len(server.links()) == 3)
        assert [link.role for link in server.links()].count(None) == 2


async def test_peer_that_dials_again_and_again_has_few_links():
    async with World() as world:
        server = await world.peer(Role.AUTH, Echo())
        credentials = world.credentials(Role.GATEWAY)
        raw = world.memory.transport(credentials.key_pair)
        await raw.start()
        hello = Hello(VERSION, world.trust.network.raw, credentials.certificate, bytes(8), 9, 999)
        for _ in range(20):
            link = await raw.dial(server.contact)
            await link.send(encode_greeting(hello))
            await link.receive()
            await settled()
        assert len(server.links()) <= 3
        await raw.stop()


async def test_too_many_that_do_not_greet_are_closed_at_once():
    async with World(config=RpcConfig(max_greetings=2)) as world:
        server = await world.peer(Role.AUTH, Echo())
        raw = world.memory.transport(KeyPair.generate())
        await raw.start()
        links = [await raw.dial(server.contact) for _ in range(5)]
        await settled()
        assert [link.closed for link in links] == [False, False, True, True, True]
        await raw.stop()


async def test_peer_that_closes_after_every_greeting_is_given_up():
    async with World() as world:
        credentials = world.credentials(Role.AUTH)
        raw = world.memory.transport(credentials.key_pair)
        await raw.start()
        client, cut = await cut_peer(world)

        async def greet_and_close():
            hello = Hello(VERSION, world.trust.network.raw, credentials.certificate, bytes(8), 9, 9)
            while True:
                link = await raw.accept()
                await link.receive()
                await link.send(encode_greeting(hello))
                await link.close()

        task = asyncio.create_task(greet_and_close())
        error = await caught(client.call(raw.contact, Echo.rpc_say, Ask(), timeout_s=60))
        assert isinstance(error, LinkClosedError | PeerUnreachableError)
        assert cut.dials <= 3
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await raw.stop()


async def test_peer_does_not_call_itself():
    async with World() as world:
        server = await world.peer(Role.AUTH, Echo())
        with pytest.raises(InputError, match="itself"):
            await say(server, server)
