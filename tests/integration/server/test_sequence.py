"""Order, repetition and gaps of a run's requests."""

import asyncio

from server_support import batch_json, settle


async def start(api, path, body):
    """Wait for a result in the background."""
    return asyncio.create_task(api.result(await api.ok(path, body)))


async def test_chunks_run_in_order_though_the_first_comes_last(api):
    model = await api.model()
    futures = {}
    for seq_id in (2, 3, 1):
        futures[seq_id] = await api.ok("/forward_backward", batch_json(model, seq_id))
    step = await api.result(await api.ok("/optim_step", {"model_id": model, "seq_id": 4}))
    assert step["metrics"]["grad_norm"] > 0
    for future in futures.values():
        assert "metrics" in await api.result(future)


async def test_step_waits_for_the_batch_before_it(api):
    first, second = await api.model(), await api.model()
    step = {"adam_params": {"learning_rate": 0.1}}
    ahead = await api.ok("/optim_step", {"model_id": first, "seq_id": 2, **step})
    await api.ok("/forward_backward", batch_json(first, 1))
    await api.ok("/forward_backward", batch_json(second, 1))
    inorder = await api.ok("/optim_step", {"model_id": second, "seq_id": 2, **step})
    assert await api.result(ahead) == await api.result(inorder)


async def test_repeated_request_gets_the_same_future_and_runs_once(api):
    model = await api.model()
    first = await api.ok("/forward_backward", batch_json(model, 1))
    assert await api.ok("/forward_backward", batch_json(model, 1)) == first
    await api.result(first)
    assert await api.ok("/forward_backward", batch_json(model, 1)) == first
    step = {"model_id": model, "seq_id": 2, "adam_params": {"learning_rate": 0.1}}
    future = await api.ok("/optim_step", step)
    assert await api.ok("/optim_step", step) == future
    once = await api.result(future)

    other = await api.model()
    await api.ok("/forward_backward", batch_json(other, 1))
    plain = await api.result(await api.ok("/optim_step", {**step, "model_id": other}))
    assert once == plain


async def test_repeated_creation_gets_the_same_future(api):
    session = await api.session()
    body = {
        "session_id": session,
        "model_seq_id": 0,
        "base_model": "tiny/qwen3",
        "lora_config": {"rank": 4},
    }
    first = await api.ok("/create_model", body)
    assert await api.ok("/create_model", body) == first
    await api.result(first)
    assert await api.ok("/create_model", body) == first
    assert len(api.pool.adapter_ids) == 1
    other = await api.post("/create_model", {**body, "lora_config": {"rank": 2}})
    assert other.status_code == 400
    assert "model_seq_id 0" in other.json()["detail"]


async def test_gap_fails_what_waits_after_its_time_and_the_run_goes_on(virtual, advance):
    api = virtual
    model = await api.model()
    held = [
        await start(api, "/forward_backward", batch_json(model, 2)),
        await start(api, "/optim_step", {"model_id": model, "seq_id": 3}),
    ]
    await advance(29)
    await advance(30)
    assert not any(task.done() for task in held)
    await advance(2)
    for task in held:
        body = await asyncio.wait_for(task, 5)
        assert body["category"] == "server"
        assert "seq_id 1" in body["error"]
    after = await api.ok("/forward_backward", batch_json(model, 4))
    assert "metrics" in await api.result(after)


async def test_gap_of_one_run_does_not_hold_up_another(virtual):
    api = virtual
    stuck, free = await api.model(), await api.model()
    await api.ok("/forward_backward", batch_json(stuck, 2))
    for seq_id in range(1, 4):
        future = await api.ok("/forward_backward", batch_json(free, seq_id))
        assert "metrics" in await api.result(future)


async def test_missing_request_that_comes_in_time_closes_the_gap(virtual, advance):
    api = virtual
    model = await api.model()
    held = await start(api, "/forward_backward", batch_json(model, 2))
    await advance(59)
    first = await api.ok("/forward_backward", batch_json(model, 1))
    assert "metrics" in await api.result(first)
    assert "metrics" in await asyncio.wait_for(held, 5)
    await advance(100)
    after = await api.ok("/forward_backward", batch_json(model, 3))
    assert "metrics" in await api.result(after)


async def test_missing_request_that_comes_too_late_is_not_run(virtual, advance):
    api = virtual
    model = await api.model()
    held = await api.ok("/forward_backward", batch_json(model, 2))
    await advance(61)
    assert (await api.failure(held))[1] == "server"
    late = await api.ok("/forward_backward", batch_json(model, 1))
    assert (await api.failure(late))[1] == "server"


async def test_long_poll_comes_back_to_try_again(virtual, advance):
    api = virtual
    model = await api.model()
    held = await api.ok("/forward_backward", batch_json(model, 2))
    poll = asyncio.create_task(api.ok("/retrieve_future", held))
    await advance(29)
    assert not poll.done()
    await advance(2)
    body = await poll
    assert "seq_id 1 of this run" in body.pop("queue_state_reason")
    assert body == {**held, "type": "try_again", "queue_state": "active"}


async def test_poll_of_a_client_that_hung_up_leaves_nothing(virtual):
    api = virtual
    model = await api.model()
    held = await api.ok("/forward_backward", batch_json(model, 2))
    poll = asyncio.create_task(api.ok("/retrieve_future", held))
    await settle(50)
    future = api.services.futures.known(held["request_id"])
    assert len(future._waiters) == 1
    poll.cancel()
    await settle(50)
    assert len(future._waiters) == 0


async def test_result_can_be_fetched_twice_and_expires(virtual, advance):
    api = virtual
    model = await api.model()
    future = await api.ok("/optim_step", {"model_id": model, "seq_id": 1})
    first = await api.result(future)
    assert await api.result(future) == first
    await advance(121)
    response = await api.post("/retrieve_future", future)
    assert response.status_code == 410
    repeated = await api.ok("/optim_step", {"model_id": model, "seq_id": 1})
    assert "no longer kept" in (await api.failure(repeated))[0]


async def test_request_without_a_sequence_id_runs_in_order_of_arrival(api):
    model = await api.model()
    body = batch_json(model, 1)
    del body["seq_id"]
    batch = await api.ok("/forward_backward", body)
    step = await api.ok("/optim_step", {"model_id": model})
    assert "metrics" in await api.result(batch)
    assert (await api.result(step))["metrics"]["grad_norm"] > 0
