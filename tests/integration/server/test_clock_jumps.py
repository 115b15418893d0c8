"""A wall clock that is set forwards or back by a day: what measures time does not notice."""

import pytest
from server_support import batch_json, sample_json, settle

DAY = 86_400.0


async def saved(api, model, number, **fields):
    body = {"model_id": model, "seq_id": number, "path": f"n{number}", **fields}
    return (await api.result(await api.ok("/save_weights", body)))["path"]


async def listed(api):
    return {one["tinker_path"] for one in (await api.get("/checkpoints")).json()["checkpoints"]}


@pytest.mark.parametrize("jump", [DAY, -DAY])
async def test_jump_ends_no_session_drops_no_result_and_stops_no_work(virtual, advance, jump):
    api = virtual
    session = await api.session()
    model = await api.model(session)
    sampler = await api.sampler(session)
    waiting = await api.ok("/asample", sample_json(sampler, 0))
    await api.quiet()
    api.clock.set_wall(jump)
    await settle()
    assert "sequences" in await api.result(waiting)
    assert (await api.post("/session_heartbeat", {"session_id": session})).status_code == 200
    assert "loss_fn_outputs" in await api.result(
        await api.ok("/forward_backward", batch_json(model, 1))
    )
    again = await api.ok("/retrieve_future", {"request_id": waiting["request_id"]})
    assert "sequences" in again
    for _ in range(3):  # a lease still has its length
        await advance(100)
        assert (await api.post("/session_heartbeat", {"session_id": session})).status_code == 200
    await advance(151)
    assert (await api.post("/session_heartbeat", {"session_id": session})).status_code == 410


async def test_held_sequence_id_waits_its_time_whatever_the_wall_clock_says(virtual, advance):
    api = virtual
    model = await api.model()
    held = await api.ok("/optim_step", {"model_id": model, "seq_id": 2})
    api.clock.set_wall(DAY)
    await advance(59)
    await api.ok("/forward_backward", batch_json(model, 1))
    assert "error" not in await api.result(held)


async def test_checkpoint_ends_by_the_wall_clock_and_is_back_when_that_is_set_right(virtual):
    api = virtual
    model = await api.model()
    kept, ends = await saved(api, model, 1), await saved(api, model, 2, ttl_seconds=3600)
    api.clock.set_wall(DAY)
    assert await listed(api) == {kept}
    assert (await api.post("/weights_info", {"tinker_path": ends})).status_code == 404
    api.clock.set_wall(-DAY)  # the sweep measures its wait: it did not come by
    assert await listed(api) == {kept, ends}


async def test_clock_set_back_lengthens_an_end_and_the_sweep_looks_again(virtual, advance):
    api = virtual
    model = await api.model()
    ends = await saved(api, model, 1, ttl_seconds=3600)
    api.clock.set_wall(-DAY)
    await advance(3601)
    await api.services.tasks.finished()
    assert await listed(api) == {ends}
    for _ in range(2):  # at most a day later it looks again
        await advance(DAY)
        await api.services.tasks.finished()
    assert await listed(api) == set()
    root = api.services.config.data_dir / "checkpoints"
    assert [path for path in root.rglob("*") if path.is_file()] == []


async def test_signed_address_ends_by_the_wall_clock(virtual):
    api = virtual
    path = await saved(api, await api.model(), 1)
    run, rest = path.removeprefix("tinker://").split("/", 1)
    url = (await api.get(f"/training_runs/{run}/checkpoints/{rest}/archive")).json()["url"]
    assert (await api.client.get(url)).status_code == 200
    api.clock.set_wall(DAY)
    assert (await api.client.get(url)).status_code == 401
