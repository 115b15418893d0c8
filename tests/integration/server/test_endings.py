"""The end of sessions and of the server: memory is freed, and nobody is left waiting."""

import asyncio
import contextlib
import socket
import threading

import pytest
from server_support import OTHER_KEY, batch_json, sample_json, settle

from tinkex.testing.clock import VirtualClock


async def finish(api, session, **kwargs):
    body = {"reason": {"type": "success"}, "detail": None}
    return await api.post(f"/sessions/{session}/finish", body, **kwargs)


async def furnished(api):
    """A session with a run, an ephemeral, an in-flight and a base-model sampler."""
    session = await api.session()
    model = await api.model(session)
    samplers = [await api.sampler(session, 0)]
    for number, kind in ((1, "snapshot"), (2, "inflight")):
        body = {
            "model_id": model,
            "seq_id": number,
            "sampling_session_seq_id": number,
            "kind": kind,
        }
        saved = await api.result(await api.ok("/save_weights_for_sampler", body))
        samplers.append(saved["sampling_session_id"])
    return session, model, samplers


async def assert_gone(api, session, model, samplers):
    await api.quiet()
    assert api.pool.adapter_ids == frozenset()
    assert api.pool.sampler_ids == frozenset()
    assert len(api.services.runs) == 0
    assert len(api.services.samplers) == 0
    beat = await api.post("/session_heartbeat", {"session_id": session})
    assert beat.status_code == 410
    assert (await finish(api, session)).status_code == 404
    info = await api.post("/get_info", {"model_id": model})
    assert info.status_code == 404
    assert "session" in info.json()["detail"]
    for path, body in [
        ("/forward_backward", batch_json(model, 50)),
        ("/optim_step", {"model_id": model, "seq_id": 51}),
        ("/save_weights", {"model_id": model, "seq_id": 52, "path": "a"}),
    ]:
        assert (await api.failure(await api.ok(path, body)))[1] == "user"
    for sampler in samplers:
        response = await api.post("/asample", sample_json(sampler, 50))
        assert response.status_code == 404
        assert "session" in response.json()["detail"]
        assert (await api.get(f"/samplers/{sampler}")).status_code == 200


async def test_finished_session_frees_everything(api):
    session, model, samplers = await furnished(api)
    assert len(api.pool.adapter_ids) == 1
    assert len(api.pool.sampler_ids) == 2
    assert (await finish(api, session)).status_code == 200
    await assert_gone(api, session, model, samplers)


async def test_silent_session_frees_everything(virtual, advance):
    api = virtual
    session, model, samplers = await furnished(api)
    for _ in range(30):
        await advance(10)
        await api.ok("/session_heartbeat", {"session_id": session})
    assert len(api.pool.adapter_ids) == 1
    await advance(151)
    await assert_gone(api, session, model, samplers)


async def test_client_that_waits_for_a_result_keeps_its_session(make_config, serve):
    """Who polls is there, with a heartbeat or without."""
    clock = VirtualClock()
    config = make_config(sequence_gap_timeout_s=100_000.0)
    async with serve(config, clock=clock) as api:
        model = await api.model()
        step = {"model_id": model, "seq_id": 2}
        waiting = await api.ok("/optim_step", step)  # for the one before it
        for _ in range(20):
            poll = api.ok("/retrieve_future", {"request_id": waiting["request_id"]})
            asking = asyncio.create_task(poll)
            await settle(50)
            clock.advance(config.long_poll_s)
            assert (await asking)["type"] == "try_again"
        await api.result(await api.ok("/forward_backward", batch_json(model, 1)))
        assert "metrics" in await api.result(waiting)


async def test_end_of_one_session_leaves_the_others(api):
    first, second = await furnished(api), await furnished(api)
    await finish(api, first[0])
    future = await api.ok("/forward_backward", batch_json(second[1], 3))
    assert "metrics" in await api.result(future)
    assert "sequences" in await api.result(await api.ok("/asample", sample_json(second[2][1])))


async def test_what_waits_in_an_ended_session_fails_at_once(api):
    session = await api.session()
    model = await api.model(session)
    sampler = await api.sampler(session)
    futures = [
        await api.ok("/forward_backward", batch_json(model, 2)),
        await api.ok("/asample", sample_json(sampler, max_tokens=100, num_samples=500, stop=[])),
    ]
    waits = [asyncio.create_task(api.result(future)) for future in futures]
    await settle()
    await finish(api, session)
    for wait in waits:
        body = await asyncio.wait_for(wait, 20)
        assert body["category"] == "user"
        assert "session" in body["error"]


async def test_ending_is_recorded(api):
    session = await api.session()
    body = {"reason": {"type": "errored"}, "detail": "boom"}
    await api.ok(f"/sessions/{session}/finish", body)
    await settle(200)
    row = await api.services.store.session(api.owner, session)
    while row["status"] == "active":
        row = await api.services.store.session(api.owner, session)
    assert (row["status"], row["reason"], row["detail"]) == ("finished", "errored", "boom")
    assert (await api.get(f"/sessions/{session}")).status_code == 200


async def test_unloaded_run_is_freed_after_its_earlier_requests(api):
    session = await api.session()
    model = await api.model(session)
    batch = await api.ok("/forward_backward", batch_json(model, 1))
    future = await api.ok("/unload_model", {"model_id": model})
    assert "metrics" in await api.result(batch)
    assert await api.result(future) == {"model_id": model}
    await api.quiet()
    assert api.pool.adapter_ids == frozenset()
    assert (await api.failure(await api.ok("/optim_step", {"model_id": model})))[1] == "user"
    assert (await api.ok("/session_heartbeat", {"session_id": session}))["type"]


async def test_no_engine_memory_is_left_by_many_clients(api):
    for _ in range(5):
        session, _, _ = await furnished(api)
        await finish(api, session)
    await api.quiet()
    assert api.pool.adapter_ids == frozenset()
    assert api.pool.sampler_ids == frozenset()
    assert len(api.services.sessions) == 0
    assert api.services.futures.open_count == 0
    assert api.services.futures.open_bytes == 0


async def test_stopping_server_sends_long_polls_home(make_config, serve):
    async with serve(make_config()) as api:
        model = await api.model()
        held = await api.ok("/forward_backward", batch_json(model, 2))
        poll = asyncio.create_task(api.ok("/retrieve_future", held))
        await settle(50)
        assert not poll.done()
        api.services.begin_stop()
        assert (await asyncio.wait_for(poll, 5))["type"] == "try_again"
        assert (await api.ok("/retrieve_future", held))["type"] == "try_again"


@pytest.mark.parametrize("work", ["training", "sampling"])
async def test_server_stops_in_the_middle_of_work(make_config, serve, work):
    async with serve(make_config()) as api:
        if work == "training":
            model = await api.model()
            for seq_id in range(1, 30):
                await api.ok("/forward_backward", batch_json(model, seq_id))
        else:
            body = sample_json(await api.sampler(), num_samples=500, max_tokens=100, stop=[])
            await api.ok("/asample", body)
    assert api.services.futures.open_count == 0


async def test_one_key_never_sees_anothers(api):
    session, model, samplers = await furnished(api)
    saved = await api.result(
        await api.ok("/save_weights", {"model_id": model, "seq_id": 3, "path": "mine"})
    )
    future = await api.ok("/forward_backward", batch_json(model, 4))
    await api.result(future)
    path = saved["path"]
    mine = await api.session(key=OTHER_KEY)
    other = {"key": OTHER_KEY}
    refusals = [
        await api.post("/retrieve_future", {"request_id": future["request_id"]}, **other),
        await api.post("/cancel_future", {"request_id": future["request_id"]}, **other),
        await api.post("/get_info", {"model_id": model}, **other),
        await api.post("/weights_info", {"tinker_path": path}, **other),
        await finish(api, session, **other),
        await api.get(f"/sessions/{session}", **other),
        await api.get(f"/training_runs/{model}", **other),
        await api.get(f"/training_runs/{model}/checkpoints", **other),
        await api.request(
            "DELETE", f"/training_runs/{model}/checkpoints/weights/mine", **other
        ),
        await api.post(
            "/create_model",
            {"session_id": session, "model_seq_id": 9, "base_model": "tiny/qwen3",
             "lora_config": {"rank": 2}},
            **other,
        ),
        await api.post(
            "/create_sampling_session",
            {"session_id": session, "sampling_session_seq_id": 9, "base_model": "tiny/qwen3"},
            **other,
        ),
        *[await api.get(f"/samplers/{sampler}", **other) for sampler in samplers],
        *[await api.post("/asample", sample_json(s, 9), **other) for s in samplers],
    ]  # fmt: skip
    assert {response.status_code for response in refusals} == {404}
    beat = await api.post("/session_heartbeat", {"session_id": session}, **other)
    assert beat.status_code == 410
    body = {"session_id": mine, "sampling_session_seq_id": 0, "model_path": path}
    assert (await api.post("/create_sampling_session", body, **other)).status_code == 400
    for path_, body in [
        ("/forward_backward", batch_json(model, 5)),
        ("/optim_step", {"model_id": model, "seq_id": 5}),
        ("/save_weights", {"model_id": model, "seq_id": 5, "path": "stolen"}),
        ("/unload_model", {"model_id": model}),
        ("/load_weights", {"session_id": mine, "model_seq_id": 0, "path": path,
                           "optimizer": False}),
    ]:  # fmt: skip
        stolen = await api.ok(path_, body, **other)
        assert (await api.failure(stolen, **other))[1] == "user"
    for listing, key in (("/training_runs", "training_runs"), ("/checkpoints", "checkpoints")):
        assert (await api.get(listing, **other)).json()[key] == []
    assert (await api.get("/sessions", **other)).json() == {"sessions": [mine]}
    untouched = await api.ok("/forward_backward", batch_json(model, 5))
    assert "metrics" in await api.result(untouched)


def test_connection_that_came_as_the_server_stopped_is_closed(make_server):
    with make_server() as server:
        busy, stopping = threading.Event(), threading.Event()

        def hold_the_loop():
            busy.set()
            stopping.wait(5)
            server._stop.set()

        server.loop.call_soon_threadsafe(hold_the_loop)
        assert busy.wait(5)
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        late = [socket.create_connection(address, 5) for _ in range(20)]
        stopping.set()
    for connection in late:
        connection.settimeout(5)
        with connection, contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


async def test_server_whose_engine_broke_down_says_so_everywhere(api):
    model = await api.model()
    (base,) = api.services.bases
    faults = []
    base.jobs._on_fault = faults.append

    def broken():
        raise RuntimeError("a bug in the turn-taking")

    base.jobs._engine.has_sampling_work = broken
    first = await api.ok("/forward_backward", batch_json(model, 1))
    second = await api.ok("/forward_backward", batch_json(model, 2))
    for future in (first, second):
        error, category = await api.failure(future)
        assert "broke down (RuntimeError)" in error
        assert category == "server"
    health = await api.get("/healthz", key=None)
    assert health.status_code == 503
    assert health.json()["status"] == "failed"
    later, category = await api.failure(await api.ok("/forward_backward", batch_json(model, 3)))
    assert "Restart the server" in later
    assert category == "server"
    assert [str(fault) for fault in faults] == ["a bug in the turn-taking"]
