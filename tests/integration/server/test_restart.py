"""A server that ends at any moment, and another on what it left on disk.

The end is a copy of the data folder, taken while the first server runs: what a kill would leave.
Real kills, of real processes, are in tests/e2e/durability.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import asynccontextmanager, closing

import orjson
import pytest
import torch
from server_support import BASE_MODEL, KEY, OTHER_KEY, batch_json, sample_json, serving

from tinkex._clock import SystemClock
from tinkex.server.durable.entries import JSON, Entry, sum_of_request
from tinkex.server.futures import Operation

STEP = {"type": "optim_step", "adam_params": {"learning_rate": 0.01}}


@pytest.fixture
def serve(make_config, make_engine, tmp_path):
    """Serve from a folder of this name, with settings that take no snapshot by themselves."""

    @asynccontextmanager
    async def make(name="first", **settings):
        settings = {"snapshot_steps": 1000, "snapshot_quiet_s": 1000.0, **settings}
        config = make_config(data_dir=tmp_path / name, **settings)
        async with serving(config, make_engine(), SystemClock()) as api:
            yield api

    return make


@pytest.fixture
def kill(tmp_path):
    """Copy a folder as it is now, for a server that finds what a killed one left."""

    async def copy(api, name="second", source="first"):
        await api.quiet()
        await api.services.tasks.finished()
        await api.services.journal.flush()
        shutil.copytree(
            tmp_path / source, tmp_path / name, ignore=shutil.ignore_patterns("spill", "lock")
        )

    return copy


async def train(api, model, first, steps):
    """Take steps from sequence id `first` on; give every answer."""
    answers = []
    for i in range(steps):
        seq_id = first + 2 * i
        batch = batch_json(model, seq_id, tokens=[5 + seq_id, 6, 7, 8, 9 + seq_id])
        futures = [
            await api.ok("/forward_backward", batch),
            await api.ok("/optim_step", {"model_id": model, "seq_id": seq_id + 1, **STEP}),
        ]
        answers += [(await api.result(one))["metrics"] for one in futures]
    return answers


async def replayed(api):
    """Wait until what is carried out once more is done."""
    await api.services.tasks.finished()
    assert api.services.recovery.replaying == 0


def weights(api, model):
    return {name: t.clone() for name, t in api.pool.adapter(model).tensors().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def rows(tmp_path, name, query):
    with closing(sqlite3.connect(tmp_path / name / "tinkex.sqlite3")) as connection:
        return connection.execute(query).fetchall()


@pytest.mark.parametrize("snapshot_steps", [1000, 2])
async def test_run_goes_on_bit_for_bit(serve, kill, snapshot_steps):
    async with serve("whole", snapshot_steps=1000) as api:
        model = await api.model(seed=7)
        whole = await train(api, model, 1, 5)
        final = weights(api, model)
    async with serve(snapshot_steps=snapshot_steps) as api:
        model = await api.model(seed=7)
        begun = await train(api, model, 1, 3)
        await kill(api)
    async with serve("second") as api:
        rest = await train(api, model, 7, 2)
        assert begun + rest == whole
        assert same(weights(api, model), final)


async def test_gradient_that_was_not_applied_is_still_there(serve, kill):
    async with serve() as api:
        model = await api.model()
        await api.result(await api.ok("/forward_backward", batch_json(model, 1)))
        before = weights(api, model)
        assert "gradient" in before
        await kill(api)
    async with serve("second") as api:
        await replayed(api)
        assert same(weights(api, model), before)


async def test_results_are_there_and_a_repetition_is_the_same_request(serve, kill):
    async with serve() as api:
        model = await api.model()
        batch = batch_json(model, 1)
        future = await api.ok("/forward_backward", batch)
        answer = await api.result(future)
        await kill(api)
    async with serve("second") as api:
        assert await api.result(future) == answer
        assert await api.ok("/forward_backward", batch) == future
        other = await api.ok("/forward_backward", batch_json(model, 1, tokens=(1, 2, 3)))
        assert (await api.failure(other))[1] == "user"


async def test_what_waits_for_an_earlier_request_waits_on(serve, kill):
    async with serve() as api:
        model = await api.model()
        held = await api.ok("/forward_backward", batch_json(model, 2))
        await kill(api)
    async with serve("second") as api:
        first = await api.ok("/forward_backward", batch_json(model, 1))
        assert (await api.result(first))["metrics"]
        assert (await api.result(held))["metrics"]


async def test_gap_that_was_given_up_stays_behind(serve, kill):
    async with serve(sequence_gap_timeout_s=0.05) as api:
        model = await api.model()
        held = await api.ok("/forward_backward", batch_json(model, 2))
        assert "seq_id 1" in (await api.failure(held))[0]
        done = await train(api, model, 3, 1)
        state = weights(api, model)
        await kill(api)
    async with serve("second") as api:
        assert len(done) == 2
        await replayed(api)
        assert same(weights(api, model), state)
        assert "seq_id 1" in (await api.failure(held))[0]
        assert await train(api, model, 5, 1)


async def test_gap_that_was_given_up_but_not_told_fails_what_it_held_back(serve, kill, tmp_path):
    """Killed between the two rows, whoever waits would wait for ever."""
    async with serve(sequence_gap_timeout_s=0.05) as api:
        model = await api.model()
        held = await api.ok("/forward_backward", batch_json(model, 2))
        error = await api.failure(held)
        await kill(api)
    with closing(sqlite3.connect(tmp_path / "second" / "tinkex.sqlite3")) as connection, connection:
        connection.execute(
            "UPDATE journal SET outcome = '', message = NULL, finished_at = NULL"
            " WHERE request_id = ?",
            (held["request_id"],),
        )
    async with serve("second") as api:
        message, category = await api.failure(held)
        assert "seq_id 1 of the same run did not arrive" in message
        assert category == error[1]
        assert await train(api, model, 3, 1)


async def test_requests_that_a_gap_held_back_leave_the_journal(serve, tmp_path):
    async with serve(sequence_gap_timeout_s=0.05, snapshot_steps=1, delivered_ttl_s=0.01) as api:
        model = await api.model()
        held = await api.ok("/forward_backward", batch_json(model, 2))
        await api.failure(held)
        for first in (3, 5, 7):
            await train(api, model, first, 1)
            await api.services.tasks.finished()
        await api.services.journal.flush()
        query = "SELECT seq_id FROM journal WHERE seq_id < 5 AND body IS NOT NULL"
        assert rows(tmp_path, "first", query) == []


async def test_step_that_dropped_its_gradient_drops_it_again(serve, kill):
    async with serve() as api:
        model = await api.model()
        await api.result(await api.ok("/forward_backward", batch_json(model, 1)))
        huge = {"model_id": model, "seq_id": 2, **STEP, "adam_params": {"learning_rate": 1e38}}
        failed = await api.ok("/optim_step", huge)
        error = await api.failure(failed)
        answers = await train(api, model, 3, 1)
        state = weights(api, model)
        await kill(api)
    async with serve("second") as api:
        await replayed(api)
        assert same(weights(api, model), state)
        assert await api.failure(failed) == error
        assert len(answers) == 2


async def test_samplers_give_the_same_and_their_weights_are_the_same(serve, kill):
    async with serve() as api:
        session = await api.session()
        model = await api.model(session)
        await train(api, model, 1, 1)
        saved = await api.ok(
            "/save_weights_for_sampler", {"model_id": model, "path": "named", "seq_id": 3}
        )
        path = (await api.result(saved))["path"]
        kinds = []
        for number, kind in enumerate(("snapshot", "inflight", "inflight")):
            await train(api, model, 4 + 3 * number, 1)
            made = await api.ok(
                "/save_weights_for_sampler",
                {
                    "model_id": model,
                    "sampling_session_seq_id": number,
                    "kind": kind,
                    "seq_id": 6 + 3 * number,
                },
            )
            kinds.append((await api.result(made))["sampling_session_id"])
        kinds.append(await api.sampler(session, 3, model_path=path))
        kinds.append(await api.sampler(session, 4, base_model=BASE_MODEL))
        await api.ok("/join_sampling_session", {"sampling_session_id": kinds[0]})
        before = [await api.result(await api.ok("/asample", sample_json(s, 0))) for s in kinds]
        await kill(api)
    async with serve("second") as api:
        after = [await api.result(await api.ok("/asample", sample_json(s, 1))) for s in kinds]
        assert after == before
        joined = await api.ok("/join_sampling_session", {"sampling_session_id": kinds[0]})
        assert joined["client_counter"] == 2
        # The next number is free, those before are not.
        assert await api.sampler(session, 5, base_model=BASE_MODEL)
        row = (await api.get(f"/samplers/{kinds[0]}")).json()
        assert row["base_model"] == BASE_MODEL


async def test_unfinished_sample_is_made_and_told_to_its_client(serve, kill):
    async with serve() as api:
        sampler = await api.sampler()
        body = sample_json(sampler, 0, max_tokens=100, num_samples=20, stop=[], seed=None)
        body["sampling_params"].pop("seed")
        future = await api.ok("/asample", body)
        await api.services.journal.flush()
        await kill_while_busy(api, kill)
        answer = await api.result(future)
    async with serve("second") as api:
        target = {"type": "sampling_session", "sampling_session_id": sampler}
        poll = {"target": target, "prev_cursor": 0, "retrieved_request_ids": []}
        told = await api.ok("/retrieve_futures", {**poll, "timeout": 20.0})
        assert [one["request_id"] for one in told["completions"]] == [future["request_id"]]
        # Drawn without a seed, and still the same: the seed was kept.
        assert await api.result(future) == answer


async def kill_while_busy(api, kill):
    """Copy without waiting for the engine."""
    quiet, api.quiet = api.quiet, lambda: asyncio.sleep(0)  # noqa: TID251 - waits for nothing
    try:
        await kill(api)
    finally:
        api.quiet = quiet


async def test_snapshot_lets_go_of_what_it_covers(serve, kill, tmp_path):
    async with serve(snapshot_steps=1) as api:
        model = await api.model()
        for i in range(4):
            await train(api, model, 1 + 2 * i, 1)
            await api.services.tasks.finished()
        await kill(api)
    bodies = rows(
        tmp_path,
        "second",
        "SELECT operation, seq_id FROM journal WHERE body IS NOT NULL ORDER BY number",
    )
    # What the last snapshot covers stays for the case that it is damaged.
    assert [one for one in bodies if one[0] != "create_model"] == [
        ("forward_backward", 7),
        ("optim_step", 8),
    ]
    folders = sorted(path.name for path in (tmp_path / "second" / "snapshots" / model).iterdir())
    assert folders == ["3", "4"]


@pytest.mark.parametrize("damaged", [1, 2])
async def test_damaged_snapshot(serve, kill, tmp_path, damaged):
    """The one before serves as well; without any the run ends, by name."""
    async with serve(snapshot_steps=2) as api:
        session = await api.session()
        model = await api.model(session)
        save = {"model_id": model, "seq_id": 1, "path": "before"}
        await api.result(await api.ok("/save_weights", save))
        for first in (2, 6, 10):
            await train(api, model, first, 2)
            await api.services.tasks.finished()
        state = weights(api, model)
        other = await api.model(session, 1)
        await train(api, other, 1, 1)
        await kill(api)
    snapshots = tmp_path / "second" / "snapshots" / model
    for name in sorted(path.name for path in snapshots.iterdir())[-damaged:]:
        file = snapshots / name / "state.safetensors"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    async with serve("second") as api:
        if damaged == 1:
            await replayed(api)
            assert same(weights(api, model), state)
            assert await train(api, model, 14, 1)
        else:
            lost = await api.ok("/forward_backward", batch_json(model, 14))
            message, category = await api.failure(lost)
            assert "its snapshots are damaged. Go on from its last checkpoint, " in message
            assert f"tinker://{model}/weights/before" in message
            assert category == "server"
            told = await api.post("/get_info", {"model_id": model})
            assert told.status_code == 404
            assert "snapshots are damaged" in told.text
            hidden = await api.post("/get_info", {"model_id": model}, key=OTHER_KEY)
            assert "snapshots are damaged" not in hidden.text
        assert await train(api, other, 3, 1)


async def test_finished_session_leaves_nothing(serve, kill, tmp_path):
    async with serve(snapshot_steps=1, delivered_ttl_s=0.01) as api:
        session = await api.session()
        model = await api.model(session)
        await train(api, model, 1, 2)
        made = await api.ok(
            "/save_weights_for_sampler",
            {"model_id": model, "sampling_session_seq_id": 0, "seq_id": 5},
        )
        await api.result(made)
        body = {"reason": {"type": "success"}, "detail": None}
        await api.ok(f"/sessions/{session}/finish", body)
        await kill(api)
    assert rows(tmp_path, "second", "SELECT * FROM journal WHERE body IS NOT NULL") == []
    assert rows(tmp_path, "second", "SELECT * FROM run_snapshots") == []
    assert list((tmp_path / "second" / "snapshots").iterdir()) == []
    async with serve("second") as api:
        gone = await api.post("/session_heartbeat", {"session_id": session})
        assert gone.status_code == 410


async def test_heartbeat_and_owner_hold_after_a_restart(serve, kill):
    async with serve() as api:
        session = await api.session()
        model = await api.model(session)
        future = await api.ok("/forward_backward", batch_json(model, 1))
        await api.result(future)
        await kill(api)
    async with serve("second") as api:
        assert (await api.post("/session_heartbeat", {"session_id": session})).status_code == 200
        other = "tml-other-key-012345678"
        hidden = await api.post("/session_heartbeat", {"session_id": session}, key=other)
        assert hidden.status_code == 410
        body = {"request_id": future["request_id"]}
        assert (await api.post("/retrieve_future", body, key=other)).status_code == 404
        assert (await api.post("/retrieve_future", body, key=KEY)).status_code == 200


def again(owner, save, model, future):
    """The body of a save as the journal has it, and its sum."""
    entry = Entry(
        request_id=future["request_id"],
        owner=owner,
        session_id=model.partition(":")[0],
        target=model,
        operation=Operation.SAVE_WEIGHTS,
        seq_id=3,
        digest=b"",
        dialect=JSON,
        body=orjson.dumps(save),
    )
    return entry.body, sum_of_request(entry)


async def test_checkpoint_that_was_saved_and_not_told_is_told(serve, kill, tmp_path):
    """Killed between the row of a checkpoint and the end of its request: saved once, told once."""
    async with serve() as api:
        model = await api.model()
        await train(api, model, 1, 1)
        save = {"model_id": model, "path": "kept", "seq_id": 3}
        future = await api.ok("/save_weights", save)
        path = (await api.result(future))["path"]
        owner = api.owner
        await kill(api)
    folder = tmp_path / "second"
    with closing(sqlite3.connect(folder / "tinkex.sqlite3")) as connection:
        # As it was a moment before: the request has not ended.
        connection.execute(
            "UPDATE journal SET outcome = '', result = NULL, body = ?, body_sum = ?"
            " WHERE request_id = ?",
            (*again(owner, save | {"overwrite": False}, model, future), future["request_id"]),
        )
        connection.commit()
    async with serve("second") as api:
        assert (await api.result(future))["path"] == path


async def test_second_restart_finds_what_the_first_left(serve, kill):
    async with serve() as api:
        model = await api.model(seed=3)
        first = await train(api, model, 1, 2)
        await kill(api)
    async with serve("second") as api:
        second = await train(api, model, 5, 1)
        state = weights(api, model)
        await kill(api, "third", "second")
    async with serve("third", snapshot_steps=1) as api:
        await replayed(api)
        assert same(weights(api, model), state)
        third = await train(api, model, 7, 1)
    assert len(first + second + third) == 8


@pytest.mark.parametrize("operation", ["forward_backward", "optim_step"])
async def test_damaged_request_ends_its_run_by_name(serve, kill, tmp_path, operation):
    async with serve() as api:
        session = await api.session()
        model = await api.model(session)
        await train(api, model, 1, 2)
        other = await api.model(session, 1)
        await train(api, other, 1, 1)
        await kill(api)
    with closing(sqlite3.connect(tmp_path / "second" / "tinkex.sqlite3")) as connection:
        query = "SELECT number, body FROM journal WHERE target = ? AND operation = ?"
        number, body = connection.execute(query, (model, operation)).fetchone()
        changed = body[:-6] + bytes([body[-6] ^ 1]) + body[-5:]
        connection.execute("UPDATE journal SET body = ? WHERE number = ?", (changed, number))
        connection.commit()
    async with serve("second") as api:
        lost = await api.ok("/forward_backward", batch_json(model, 5))
        message, _ = await api.failure(lost)
        assert "what it was asked is damaged in the database. It had saved no state" in message
        assert await train(api, other, 3, 1)


async def test_damaged_result_is_told_as_lost(serve, kill, tmp_path):
    async with serve() as api:
        future = await api.ok("/asample", sample_json(await api.sampler()))
        await api.result(future)
        await kill(api)
    with closing(sqlite3.connect(tmp_path / "second" / "tinkex.sqlite3")) as connection:
        (body,) = connection.execute("SELECT result FROM journal").fetchone()
        connection.execute("UPDATE journal SET result = ?", (body[:-1] + b"?",))
        connection.commit()
    async with serve("second") as api:
        error, category = await api.failure(future)
        assert "lost" in error
        assert category == "server"


async def test_request_that_cannot_be_read_any_more_ends_its_run_by_name(serve, kill, tmp_path):
    """What was done must be done again: to leave it out would be another run."""
    async with serve() as api:
        model = await api.model()
        await train(api, model, 1, 2)
        await kill(api)
    with closing(sqlite3.connect(tmp_path / "second" / "tinkex.sqlite3")) as connection:
        connection.row_factory = sqlite3.Row
        row = connection.execute("SELECT * FROM journal WHERE operation = 'optim_step'").fetchone()
        entry = Entry(
            request_id=row["request_id"],
            owner=row["owner"],
            session_id=row["session_id"],
            target=row["target"],
            operation=Operation.OPTIM_STEP,
            seq_id=row["seq_id"],
            digest=row["digest"],
            dialect=row["dialect"],
            body=b'{"model_id": 1}',
        )
        connection.execute(
            "UPDATE journal SET body = ?, body_sum = ? WHERE number = ?",
            (entry.body, sum_of_request(entry), row["number"]),
        )
        connection.commit()
    async with serve("second") as api:
        lost = await api.ok("/forward_backward", batch_json(model, 5))
        assert "seq_id 2" in (await api.failure(lost))[0]
