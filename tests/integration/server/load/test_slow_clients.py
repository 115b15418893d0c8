"""Clients that are slow on purpose, or many, cannot hold the server. Time is the test's."""

import asyncio
import re
import socket
from contextlib import asynccontextmanager

import pytest
from server_support import BASE_MODEL, KEY, settle

from tinkex.server.app import build_app
from tinkex.server.config import Limits
from tinkex.server.run import serve_app
from tinkex.testing.clock import VirtualClock

BEAT = b'{"session_id": "sess-none", "type": "session_heartbeat"}'
HEAD = (
    b"POST /api/v1/session_heartbeat HTTP/1.1\r\nHost: localhost\r\nX-API-Key: "
    + KEY.encode()
    + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)


class Served:
    def __init__(self, app, clock, port):
        self.services = app.state.services
        self.clock = clock
        self.port = port

    async def connect(self, **options):
        return await asyncio.open_connection("127.0.0.1", self.port, **options)

    async def turn(self, rounds=8):
        """Let what was sent arrive; sockets need the selector, not only the loop's turns."""
        loop = asyncio.get_running_loop()
        for _ in range(rounds):
            await settle(3)
            mine, other = socket.socketpair()
            with mine, other:
                mine.setblocking(False)
                other.send(b"x")
                await loop.sock_recv(mine, 1)

    async def advance(self, seconds):
        await self.turn()
        self.clock.advance(seconds)
        await self.turn()

    def answered(self, route):
        found = re.findall(
            rf'http_request_duration_seconds_count{{route="{route}"}} (\d+)',
            self.services.metrics.render().decode(),
        )
        return int(found[0]) if found else 0

    async def refusals(self, limit):
        await self.turn()
        text = self.services.metrics.render().decode()
        return f'tinkex_refusals_total{{limit="{limit}"}} 1.0' in text


@pytest.fixture
def served(make_config, make_engine):
    @asynccontextmanager
    async def start(**settings):
        config = make_config(port=0, shutdown_grace_s=2, **settings)
        clock, stop = VirtualClock(), asyncio.Event()
        app = build_app(config, {BASE_MODEL: make_engine()}, clock=clock)
        ready = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve_app(app, config, on_ready=ready.set_result, stop=stop))
        url = await ready
        try:
            yield Served(app, clock, int(url.rpartition(":")[2]))
        finally:
            stop.set()
            while not task.done():
                await settle(3)
                clock.advance(0.1)
            await task

    return start


async def hung_up(reader):
    try:
        return await asyncio.wait_for(reader.read(), 5) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"POST /api/v1/asample HTTP/1.1\r\nHost: local"])
async def test_head_that_does_not_come_is_not_waited_for(served, sent):
    async with served() as server:
        reader, writer = await server.connect()
        writer.write(sent)
        await server.advance(19)
        assert not reader.at_eof()
        await server.advance(2)
        assert await hung_up(reader)
        assert await server.refusals("slow_head")
        writer.close()


async def test_head_that_trickles_gains_no_time_by_it(served):
    async with served() as server:
        reader, writer = await server.connect()
        for letter in b"GET /healthz HTTP/1.1\r\n"[:21]:
            writer.write(bytes([letter]))
            await server.advance(1)
        assert await hung_up(reader)
        writer.close()


async def test_second_request_of_a_connection_is_held_to_the_same(served):
    async with served() as server:
        reader, writer = await server.connect()
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        reply = await reader.readuntil(b"}")
        assert b" 200 " in reply
        await server.advance(40)  # between two requests it may be idle for longer
        assert not reader.at_eof()
        writer.write(b"GET /he")
        await server.advance(21)
        assert await hung_up(reader)
        writer.close()


async def test_body_that_stops_is_answered_408_and_one_that_goes_on_is_read(served):
    async with served() as server:
        reader, writer = await server.connect()
        writer.write(HEAD % len(BEAT) + BEAT[:10])
        await server.advance(29)
        writer.write(BEAT[10:])
        assert b" 410 " in await reader.readuntil(b"}")
        writer.write(HEAD % len(BEAT) + BEAT[:10])
        await server.advance(31)
        reply = await reader.read()
        assert b" 408 " in reply
        assert b"too slowly" in reply
        assert await server.refusals("slow_body")
        assert server.services.intake.reading_bytes == 0
        writer.close()


async def test_body_that_trickles_gains_no_time_by_it(served):
    async with served() as server:
        reader, writer = await server.connect()
        writer.write(HEAD % 1000)
        for _ in range(16):
            writer.write(b"x")
            await server.advance(2)
        assert b" 408 " in await reader.read()
        writer.close()


async def test_client_that_does_not_read_is_hung_up_on(served):
    async with served() as server:
        loop = asyncio.get_running_loop()
        reader, writer = await server.connect()  # the document is made for the first who asks
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            asking = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
            await loop.sock_sendall(client, asking * 400)  # more than the kernel takes in
            answered = -1
            while answered < (answered := server.answered("/openapi.json")):
                await server.turn(50)
            assert 1 < answered < 400
            await server.advance(59)
            assert not await server.refusals("slow_reader")
            await server.advance(2)
            assert await server.refusals("slow_reader")


async def test_more_connections_than_the_server_takes_are_hung_up_on(served):
    async with served(limits=Limits(max_rank=64, max_connections=2)) as server:
        kept = [await server.connect() for _ in range(2)]
        await server.turn()
        reader, writer = await server.connect()
        assert await hung_up(reader)
        writer.close()
        for reader, writer in kept:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b" 200 " in await reader.readuntil(b"}")
            writer.close()


async def test_large_bodies_at_once_are_bounded_and_small_ones_get_through(served):
    limits = Limits(max_rank=64, max_reading_bytes=200_000)
    async with served(limits=limits) as server:
        first_reader, first = await server.connect()
        first.write(HEAD % 150_001 + b"x" * 150_000)
        await server.turn(30)
        assert server.services.intake.reading_bytes == 150_000
        reader, writer = await server.connect()
        writer.write(HEAD % 100_000 + b"x" * 100_000)
        reply = await reader.readuntil(b"}")
        assert b" 429 " in reply
        writer.close()
        reader, writer = await server.connect()
        writer.write(HEAD % len(BEAT) + BEAT)
        assert b" 410 " in await reader.readuntil(b"}")
        writer.close()
        first.close()
        await first_reader.read()
        await server.turn(30)
        assert server.services.intake.reading_bytes == 0
