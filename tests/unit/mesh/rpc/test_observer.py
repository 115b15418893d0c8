"""What an observer is told of calls and links, and what it cannot break."""

import asyncio

import pytest
from mesh_rpc import Ask, Echo, World, caught, not_found, until

from tinkex.mesh.roles import Role


class Watch:
    def __init__(self):
        self.calls, self.links = [], []

    def call_ended(self, report):
        self.calls.append(report)

    def link_opened(self, peer):
        self.links.append(("opened", peer))

    def link_ended(self, peer, reason, lost):
        self.links.append(("lost" if lost else "closed", peer))


@pytest.fixture
async def watched():
    async with World() as world:
        echo, at_server, at_client = Echo(), Watch(), Watch()
        server = await world.peer(Role.AUTH, echo, observer=at_server)
        client = await world.peer(observer=at_client)
        yield world, echo, server, client, at_server, at_client


def summary(watch):
    return [(r.method, r.incoming, r.error, r.items) for r in watch.calls]


async def test_calls_are_counted_at_both_ends(watched):
    _, echo, server, client, at_server, at_client = watched
    await client.call(server.contact, Echo.rpc_say, Ask("secret"), timeout_s=5)
    echo.error = not_found()
    await caught(client.call(server.contact, Echo.rpc_fail, Ask(), timeout_s=5))
    async for _ in client.stream(server.contact, Echo.rpc_count, Ask(count=3), timeout_s=5):
        pass
    wanted = [("echo.say", None, 1), ("echo.fail", "NotFoundError", 0), ("echo.count", None, 3)]
    assert summary(at_client) == [(m, False, e, i) for m, e, i in wanted]
    assert summary(at_server) == [(m, True, e, i) for m, e, i in wanted]
    assert at_client.calls[0].request_bytes == at_server.calls[0].request_bytes > 6
    assert at_client.calls[2].reply_bytes == at_server.calls[2].reply_bytes > 30
    assert at_client.calls[0].peer == server.peer_id
    assert "secret" not in repr(at_server.calls)


async def test_cancels_losses_and_time_are_told(watched):
    world, echo, server, client, at_server, at_client = watched
    waiting = asyncio.create_task(client.call(server.contact, Echo.rpc_wait, Ask(), timeout_s=60))
    await until(lambda: echo.started == 1)
    await world.pass_time(1.0)
    waiting.cancel()
    await until(lambda: at_server.calls)
    assert summary(at_client) == [("echo.wait", False, "Cancelled", 0)]
    assert at_client.calls[0].seconds == pytest.approx(1.0, abs=0.01)
    lost = asyncio.create_task(
        caught(client.call(server.contact, Echo.rpc_wait, Ask(), timeout_s=60))
    )
    await until(lambda: echo.started == 2)
    await server.stop()
    await lost
    assert at_client.calls[1].error == "LinkClosedError"
    assert [what for what, _ in at_client.links] == ["opened", "lost"]
    assert [what for what, _ in at_server.links] == ["opened", "closed"]


async def test_method_that_is_not_offered_makes_no_name_of_the_peers_choice(watched):
    world, _, _, client, _, _ = watched
    watch = Watch()
    other = await world.peer(Role.AUTH, observer=watch)
    await caught(client.call(other.contact, Echo.rpc_say, Ask(), timeout_s=5))
    assert summary(watch) == [("unknown", True, "PeerUnreachableError", 0)]


async def test_observer_that_raises_breaks_no_call(caplog):
    class Broken:
        def __getattr__(self, name):
            raise ValueError("broken observer")

    async with World() as world:
        server = await world.peer(Role.AUTH, Echo(), observer=Broken())
        client = await world.peer(observer=Broken())
        reply = await client.call(server.contact, Echo.rpc_say, Ask("on"), timeout_s=5)
        assert reply.text == "on"
    assert "ValueError" in caplog.text
    assert "broken observer" not in caplog.text
