"""While a server is not there yet: it lives, is not ready, and who waits is told to come again."""

import asyncio
import contextlib
import threading

import httpx
import pytest
from server_support import settle

from tinkex._clock import SystemClock
from tinkex.engine import engine as engine_module
from tinkex.server.config import ServerConfig
from tinkex.server.load.waiting_room import WaitingRoom
from tinkex.server.observe.health import Phase
from tinkex.server.run import bound_socket, serve
from tinkex.testing.clock import VirtualClock


@pytest.fixture
async def room(tmp_path):
    clock = VirtualClock()
    room = WaitingRoom(clock=clock)
    with bound_socket(ServerConfig(data_dir=tmp_path, port=0)) as listener:
        await room.open(listener, None)
        room.clock = clock
        room.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield room
        await room.close()


@pytest.fixture
async def client(room):
    async with httpx.AsyncClient(base_url=room.url, timeout=10) as client:
        yield client


async def held(room, count=1):
    while len(room._guests) < count:
        await settle(3)


async def test_process_that_loads_lives_and_is_not_ready(room, client):
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/api/v1/healthz")).status_code == 200
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {
        "status": "loading",
        "detail": "The base models are being loaded.",
    }
    room.state = lambda: (Phase.REPLAYING, "runs are brought back")
    assert (await client.get("/readyz")).json()["status"] == "replaying"


async def test_request_is_held_until_the_server_is_there_and_then_sent_again(room, client):
    poll = asyncio.create_task(client.post("/api/v1/retrieve_future", content=b"x" * 200_000))
    await held(room)
    assert not poll.done()
    await room.close()
    answer = await poll
    assert answer.status_code == 503
    assert "send the request again" in answer.json()["detail"]
    assert answer.headers["retry-after-ms"] == "200"


async def test_nobody_is_held_for_longer_than_a_client_waits(room, client):
    poll = asyncio.create_task(client.get("/api/v1/training_runs"))
    await held(room)
    await settle(50)
    room.clock.advance(26)
    answer = await poll
    assert (answer.status_code, answer.json()["status"]) == (503, "loading")


async def test_client_that_goes_away_or_says_nothing_is_not_waited_for(room):
    port = int(room.url.rpartition(":")[2])
    _, gone = await asyncio.open_connection("127.0.0.1", port)
    gone.write(b"GET /api/v1/training_runs HTTP/1.1\r\nHost: localhost\r\n\r\n")
    silent_reader, silent = await asyncio.open_connection("127.0.0.1", port)
    await held(room, 2)
    gone.close()
    while len(room._guests) > 1:
        await settle(3)
    await settle(50)
    room.clock.advance(11)
    assert await silent_reader.read() == b""
    silent.close()


async def test_what_is_no_http_is_hung_up_on(room):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(room.url.rpartition(":")[2]))
    writer.write(b"\x00" * 100_000)
    with contextlib.suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()


async def test_server_answers_while_its_models_load(tmp_path, tiny_for_module, monkeypatch):
    folder = tmp_path / "tiny"
    tiny_for_module().save_pretrained(folder)
    load, go_on, loading = engine_module.load_for_engine, threading.Event(), threading.Event()

    def slow(*args, **options):
        loading.set()
        assert go_on.wait(20)
        return load(*args, **options)

    monkeypatch.setattr(engine_module, "load_for_engine", slow)
    with bound_socket(ServerConfig(data_dir=tmp_path, port=0)) as free:
        port = free.getsockname()[1]
    config = ServerConfig(
        data_dir=tmp_path / "data",
        base_models=(str(folder),),
        port=port,
        device="cpu",
        log_level="error",
        shutdown_grace_s=2,
    )
    ready, stop = asyncio.get_running_loop().create_future(), asyncio.Event()
    task = asyncio.create_task(
        serve(config, on_ready=ready.set_result, clock=SystemClock(), stop=stop)
    )
    await asyncio.to_thread(loading.wait, 20)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        assert (await client.get("/readyz")).json()["status"] == "loading"
        early = asyncio.create_task(client.get("/api/v1/get_server_capabilities"))
        go_on.set()
        info = await ready
        assert (await early).status_code in {401, 503}
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        headers = {"X-API-Key": info.api_key}
        found = await client.get("/api/v1/get_server_capabilities", headers=headers)
        assert found.status_code == 200
    stop.set()
    await task
