"""The local HTTP server of a worker, and who may talk to it."""

import asyncio
import socket

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tinkex._clock import SystemClock
from tinkex.errors import ConfigurationError
from tinkex.mesh.tasks import let_others_run
from tinkex.mesh.workers.http import HttpServer, LocalOnly

CLOCK = SystemClock()


def hello(gate=None):
    async def answer(_request):
        if gate is not None:
            gate["came"].set()
            await gate["go"].wait()
        return PlainTextResponse("hello")

    return LocalOnly(Starlette(routes=[Route("/", answer)]))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_application_is_served_until_the_end_and_no_longer(host):
    async with (
        HttpServer(hello(), host=host, port=0, clock=CLOCK) as server,
        httpx.AsyncClient() as client,
    ):
        assert (await client.get(server.url)).text == "hello"
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(server.url)


async def test_address_in_use_is_told_with_what_to_do():
    async with HttpServer(hello(), host="127.0.0.1", port=0, clock=CLOCK) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match=f"port {port}.*port 0 for a free one"):
            await HttpServer(hello(), host="127.0.0.1", port=port, clock=CLOCK).__aenter__()


async def test_request_in_progress_is_answered_before_the_end():
    gate = {"came": asyncio.Event(), "go": asyncio.Event()}
    async with httpx.AsyncClient() as client:
        server = HttpServer(hello(gate), host="127.0.0.1", port=0, clock=CLOCK, grace_s=20)
        await server.__aenter__()
        reply = asyncio.create_task(client.get(server.url))
        await gate["came"].wait()
        stopping = asyncio.create_task(server.__aexit__())
        gate["go"].set()
        assert (await reply).text == "hello"
        await stopping


@pytest.mark.parametrize("known", [0, 3])
async def test_end_waits_for_no_time_where_nothing_is_in_progress(known):
    server = HttpServer(hello(), host="127.0.0.1", port=0, clock=CLOCK, grace_s=20)
    await server.__aenter__()
    async with httpx.AsyncClient() as client:
        # kept open by the client, each for its next request
        await asyncio.gather(*(client.get(server.url) for _ in range(known)))
        stopping = asyncio.create_task(server.__aexit__())
        for _ in range(100):
            await let_others_run()
        assert stopping.done()
        await stopping


async def test_connection_that_was_just_accepted_does_not_hold_up_the_end():
    server = HttpServer(hello(), host="127.0.0.1", port=0, clock=CLOCK, grace_s=20)
    await server.__aenter__()
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as program:
        await let_others_run()  # it is accepted, and handed over in a turn to come
        stopping = asyncio.create_task(server.__aexit__())
        for _ in range(100):
            await let_others_run()
        assert stopping.done()
        await stopping
        program.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(program, 1) == b""


async def test_request_is_cut_off_after_its_grace():
    gate = {"came": asyncio.Event(), "go": asyncio.Event()}
    async with httpx.AsyncClient() as client:
        server = HttpServer(hello(gate), host="127.0.0.1", port=0, clock=CLOCK)
        await server.__aenter__()
        reply = asyncio.create_task(client.get(server.url))
        await gate["came"].wait()
        await server.stop(0.01)
        assert (await reply).status_code == 500


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "LocalHost"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": ""}, 403),
    ],
)
async def test_pages_of_others_are_refused(headers, status):
    async with (
        HttpServer(hello(), host="127.0.0.1", port=0, clock=CLOCK) as server,
        httpx.AsyncClient() as http,
    ):
        assert (await http.get(server.url, headers=headers)).status_code == status


async def test_program_that_hangs_up_while_it_sends_is_no_fault_of_the_worker(caplog):
    hung_up = asyncio.Event()

    async def answer(request):
        try:
            return PlainTextResponse(await request.body())
        finally:
            hung_up.set()

    app = LocalOnly(Starlette(routes=[Route("/", answer, methods=["POST"])]))
    async with HttpServer(app, host="127.0.0.1", port=0, clock=CLOCK) as server:
        _, program = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        program.write(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nhal")
        await program.drain()
        program.close()
        await hung_up.wait()
    assert caplog.records == []
