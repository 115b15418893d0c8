"""What ended without a result, or was given up, before a server was killed."""

from server_support import sample_json

LOSS = {
    "custom_loss_seq_id": 0,
    "name": "unknown",
    "inputs": [{"name": "logprobs", "rank": 1}],
    "graph": {"nodes": []},
}


async def test_loss_that_was_refused_does_not_keep_the_next_server_from_starting(life, crashed):
    async with life() as api:
        session = await api.session()
        future = await api.ok("/create_custom_loss", {"session_id": session, **LOSS})
        told = await api.failure(future)
        await api.services.journal.flush()
        found = crashed(api)
    async with life(data_dir=found) as api:
        assert await api.failure(future) == told
        again = await api.ok("/create_custom_loss", {"session_id": session, **LOSS})
        assert await api.failure(again) == told


async def test_cancelled_sample_stays_cancelled(life, crashed, rows):
    async with life() as api:
        sampler = await api.sampler()
        body = sample_json(sampler, 0, max_tokens=100, num_samples=8, stop=[])
        future = await api.ok("/asample", body)
        await api.ok("/cancel_future", {"request_id": future["request_id"]})
        told = await api.failure(future)
        await api.services.journal.flush()
        found = crashed(api)
    async with life(data_dir=found) as api:
        assert await api.failure(future) == told
        assert await api.ok("/asample", body) == future
        assert rows(api, "SELECT body FROM journal WHERE operation = 'sample'") == [(None,)]


async def test_results_that_a_client_has_are_let_go_of_also_by_the_next_server(life, crashed, rows):
    async with life() as api:
        sampler = await api.sampler()
        first = await api.ok("/asample", sample_json(sampler, 0))
        second = await api.ok("/asample", sample_json(sampler, 1))
        answers = [await api.result(first), await api.result(second)]
        await api.services.journal.flush()
        found = crashed(api)
    async with life(data_dir=found) as api:
        target = {"type": "sampling_session", "sampling_session_id": sampler}
        poll = {"target": target, "prev_cursor": 0, "retrieved_request_ids": [], "timeout": 0.0}
        told = await api.ok("/retrieve_futures", poll)
        names = {one["request_id"] for one in told["completions"]}
        assert names == {first["request_id"], second["request_id"]}
        assert [await api.result(first), await api.result(second)] == answers
        poll.update(prev_cursor=told["cursor"], retrieved_request_ids=[first["request_id"]])
        assert (await api.ok("/retrieve_futures", poll))["completions"] == []
        await api.services.journal.flush()
        kept = rows(api, "SELECT request_id FROM journal WHERE kept")
        assert kept == [(second["request_id"],)]


async def test_files_of_what_outlives_the_server_are_its_users_alone(life, trainer):
    async with life(snapshot_steps=1) as api:
        run = await trainer(api)
        await run.train()
        await api.services.tasks.finished()
        folder = api.services.config.data_dir
        snapshots = folder / "snapshots"
        files = [*folder.glob("tinkex.sqlite3*"), snapshots, *snapshots.rglob("*")]
        assert {path.name for path in files} >= {"tinkex.sqlite3-wal", "state.safetensors"}
        modes = {path.name: path.stat().st_mode & 0o777 for path in files}
        assert {name for name, mode in modes.items() if mode & 0o077} == set()


async def test_cursor_of_an_earlier_server_hides_nothing(life, crashed):
    """Completions are numbered anew at each start, also when nothing was asked in between."""
    async with life() as api:
        sampler = await api.sampler()
        futures = [await api.ok("/asample", sample_json(sampler, number)) for number in (0, 1)]
        for future in futures:
            await api.result(future)
        await api.services.journal.flush()
        folder = crashed(api)
    target = {"type": "sampling_session", "sampling_session_id": sampler}
    cursor = 0
    for _ in range(3):
        async with life(data_dir=folder) as api:
            poll = {"target": target, "prev_cursor": cursor, "retrieved_request_ids": []}
            told = await api.ok("/retrieve_futures", {**poll, "timeout": 0.0})
            names = [one["request_id"] for one in told["completions"]]
            assert names == [future["request_id"] for future in futures]
            cursor = told["cursor"]
            folder = crashed(api)
