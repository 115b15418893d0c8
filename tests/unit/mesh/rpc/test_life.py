"""Start and stop of `Peers`: in any order, twice, too early, and in the middle of work."""

import asyncio

import pytest
from mesh_rpc import Answer, Ask, Echo, World, caught, settled, until

from tinkex.errors import ConfigurationError, LinkClosedError, PeerUnreachableError
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Peers
from tinkex.testing import VirtualClock


async def test_stop_before_start_and_twice_is_harmless():
    async with World() as world:
        peers = await world.peer(Role.AUTH)
        await asyncio.gather(peers.stop(grace_s=1), peers.stop())
        await peers.stop()
        fresh = Peers(
            world.memory.transport(world.credentials().key_pair),
            world.credentials(),
            clock=VirtualClock(),
        )
        await fresh.stop()


async def test_second_start_is_refused():
    async with World() as world:
        peers = await world.peer(Role.AUTH)
        with pytest.raises(RuntimeError):
            await peers.start()


async def test_start_that_fails_leaves_nothing_behind():
    async with World() as world:
        running = await world.peer(Role.AUTH)
        before = asyncio.all_tasks()
        second = world.memory.transport(
            world.credentials().key_pair, address=running.contact.addresses[0]
        )
        peers = Peers(second, world.credentials(), clock=world.clock)
        with pytest.raises(ConfigurationError):
            await peers.start()
        assert asyncio.all_tasks() == before
        assert isinstance(
            await caught(peers.call(running.contact, Echo.rpc_say, Ask(), timeout_s=1)),
            LinkClosedError,
        )


async def test_nothing_runs_after_stop():
    before = asyncio.all_tasks()
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        calls = [
            asyncio.create_task(
                caught(client.call(server.contact, Echo.rpc_wait, Ask(), timeout_s=60))
            )
            for _ in range(5)
        ]
        await until(lambda: echo.started == 5)
    await asyncio.gather(*calls)
    assert asyncio.all_tasks() == before
    assert echo.cancelled == 5


async def test_calls_before_start_and_after_stop_are_refused_by_name():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        await client.stop()
        for broken in (
            client.call(server.contact, Echo.rpc_say, Ask(), timeout_s=5),
            anext(client.stream(server.contact, Echo.rpc_count, Ask(), timeout_s=5)),
            client.ping(server.contact),
        ):
            assert isinstance(await caught(broken), LinkClosedError)


async def test_call_as_what_it_is_not_is_a_programmers_error():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        assert isinstance(
            await caught(client.call(server.contact, Echo.rpc_count, Ask(), timeout_s=5)), TypeError
        )
        assert isinstance(
            await caught(anext(client.stream(server.contact, Echo.rpc_say, Ask(), timeout_s=5))),
            TypeError,
        )


async def test_service_is_offered_once():
    async with World() as world:
        server = await world.peer(Role.AUTH, Echo())
        with pytest.raises(ValueError, match=r"echo\.say"):
            server.serve(Echo())


async def test_draining_ends_after_the_grace_time():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        calling = asyncio.create_task(
            caught(client.call(server.contact, Echo.rpc_wait, Ask(), timeout_s=60))
        )
        await until(lambda: echo.started == 1)
        stopping = asyncio.create_task(server.stop(grace_s=3))
        await world.pass_time(2.8)
        assert not stopping.done()
        await world.pass_time(0.4)
        await stopping
        assert isinstance(await calling, LinkClosedError)


async def test_handler_may_call_others_while_its_peer_is_draining():
    async with World() as world:
        echo = Echo()
        auth = await world.peer(Role.AUTH, echo)

        class Gateway(Echo):
            async def rpc_wait(self, request, call):
                await self.gate.wait()
                return await gateway.call(auth.contact, Echo.rpc_say, Ask("settled"), timeout_s=5)

        front = Gateway()
        gateway = await world.peer(Role.GATEWAY, front)
        client = await world.peer(Role.CLIENT)
        await gateway.ping(auth.contact)
        calling = asyncio.create_task(
            client.call(gateway.contact, Echo.rpc_wait, Ask(), timeout_s=60)
        )
        await until(lambda: any(link.incoming for link in gateway.links()))
        stopping = asyncio.create_task(gateway.stop(grace_s=30))
        await settled()
        front.gate.set()
        assert await calling == Answer("settled")
        await stopping


async def test_stopping_peer_takes_no_new_links():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        calling = asyncio.create_task(
            client.call(server.contact, Echo.rpc_wait, Ask("x"), timeout_s=60)
        )
        await until(lambda: echo.started == 1)
        stopping = asyncio.create_task(server.stop(grace_s=30))
        await settled()
        late = await world.peer()
        error = await caught(late.call(server.contact, Echo.rpc_say, Ask(), timeout_s=5))
        assert isinstance(error, PeerUnreachableError)
        assert "stopping" in str(error)
        echo.gate.set()
        assert await calling == Answer("x")
        await stopping


async def test_request_that_crosses_the_stop_is_refused_and_may_be_tried_elsewhere():
    async with World() as world:
        echo = Echo()
        server, client = await world.peer(Role.AUTH, echo), await world.peer()
        await client.ping(server.contact)
        # The server's word is on its way: the client does not know yet, and calls.
        stopping = asyncio.create_task(server.stop(grace_s=30))
        error = await caught(client.call(server.contact, Echo.rpc_say, Ask(), timeout_s=5))
        assert isinstance(error, PeerUnreachableError)
        assert error.retry_after_ms is not None
        await stopping


async def test_stop_ends_a_dial_that_has_not_begun():
    async with World() as world:
        server, client = await world.peer(Role.AUTH, Echo()), await world.peer()
        calling = asyncio.create_task(
            caught(client.call(server.contact, Echo.rpc_say, Ask(), timeout_s=60))
        )
        await asyncio.sleep(0)  # noqa: TID251 - the call begins, its dial does not
        await client.stop()
        assert isinstance(await calling, LinkClosedError)


async def test_stop_ends_a_dial_in_progress():
    async with World() as world:
        silent = world.memory.transport(world.credentials().key_pair)
        await silent.start()
        client = await world.peer()
        calling = asyncio.create_task(
            caught(client.call(silent.contact, Echo.rpc_say, Ask(), timeout_s=60))
        )
        await settled()
        await client.stop()
        assert isinstance(await calling, PeerUnreachableError)
        await silent.stop()
