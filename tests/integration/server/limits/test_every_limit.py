"""Every limit of a server, set low and run into: refused by name, and the next is served."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest
from server_support import CONTEXT, batch_json, sample_json

from tinkex.server.config import Limits
from tinkex.server.files.layout import SNAPSHOTS_NAME
from tinkex.types import Datum, ForwardBackwardInput, ForwardBackwardRequest, ModelInput
from tinkex.wire.proto import encode_forward_backward_request

TESTS = Path(__file__).parents[3]
PROTOBUF = {"Content-Type": "application/x-protobuf"}

# Told to clients, who keep to them by themselves (test_routes.py).
ADVERTISED = {"fwdbwd_max_chunk_len", "fwdbwd_max_chunk_bytes", "sample_max_concurrent_requests"}
# Tested under other names: the engine's memory (tests/unit/engine, tests/e2e/test_small_memory.py),
# the table of past requests (tests/unit/server/records).
OTHERWISE = {"device_adapter_bytes", "host_adapter_bytes", "max_spilled_bytes", "max_request_rows"}


def test_every_limit_is_run_into_by_some_test():
    used = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                used |= {keyword.arg for keyword in node.keywords}
    limits = {field.name for field in fields(Limits)} - ADVERTISED - OTHERWISE
    assert sorted(limits - used) == []


@pytest.fixture
def limited(make_config, serve):
    def start(**limits):
        settings = {"sequence_gap_timeout_s": 0.05} if limits.pop("quick", False) else {}
        return serve(make_config(limits=Limits(max_rank=64, **limits), **settings))

    return start


def batch(model, seq_id, count, length=10):
    tokens = [5] * length
    datum = Datum(
        ModelInput.from_ints(tokens), {"target_tokens": tokens, "weights": [1.0] * length}
    )
    inner = ForwardBackwardInput([datum] * count, "cross_entropy")
    return encode_forward_backward_request(ForwardBackwardRequest(inner, model, seq_id))


async def send(api, body):
    return await api.post("/forward_backward", content=body, headers=PROTOBUF)


async def test_small_messages_have_a_limit_of_their_own(limited):
    async with limited(max_message_bytes=5000) as api:
        model = await api.model()
        body = {"tags": ["x" * 6000], "sdk_version": "1"}
        response = await api.post("/create_session", body)
        assert response.status_code == 413
        assert "5000" in response.json()["detail"]
        large = batch(model, 1, 40)
        assert len(large) > 6000
        assert "metrics" in await api.result((await send(api, large)).json())


async def test_oversize_batch_fails_its_future_until_it_is_not_even_read(limited):
    async with limited(max_body_bytes=5000, max_drained_bytes=20_000) as api:
        model = await api.model()
        for count, status in ((40, 200), (400, 413)):
            response = await send(api, batch(model, 1, count))
            assert response.status_code == status
        error, category = await api.failure((await send(api, batch(model, 2, 40))).json())
        assert (category, "5000 bytes" in error) == ("user", True)
        assert "metrics" in await api.result((await send(api, batch(model, 3, 1))).json())


async def test_batch_of_too_many_datums_fails_its_future(limited):
    async with limited(max_datums=3) as api:
        model = await api.model()
        for seq_id, count in ((1, 4), (2, 3)):
            answer = await api.result((await send(api, batch(model, seq_id, count))).json())
            assert ("3 datums" in answer.get("error", "")) == (count == 4)


async def test_sequence_longer_than_the_context_fails_its_future(limited):
    async with limited() as api:
        model, sampler = await api.model(), await api.sampler()
        future = (await send(api, batch(model, 1, 1, CONTEXT + 1))).json()
        assert (await api.failure(future))[1] == "user"
        long = sample_json(sampler, 0, [5] * (CONTEXT + 1))
        response = await api.post("/asample", long)
        error, category = await api.failure(response.json())
        assert category == "user"
        assert str(CONTEXT) in error


async def test_number_of_samples_is_bounded(limited):
    async with limited(max_num_samples=2) as api:
        sampler = await api.sampler()
        response = await api.post("/asample", sample_json(sampler, num_samples=3))
        assert response.status_code == 422
        assert "1..2" in response.json()["detail"]


async def test_data_that_waits_is_bounded(limited):
    async with limited(max_queued_bytes=1500) as api:
        model = await api.model()
        held = (await send(api, batch(model, 2, 5))).json()
        response = await send(api, batch(model, 3, 5))
        assert response.status_code == 429
        assert "bytes" in response.json()["detail"]
        assert "metrics" in await api.result((await send(api, batch(model, 1, 5))).json())
        assert "metrics" in await api.result(held)


async def test_requests_that_wait_for_an_earlier_one_are_bounded(limited):
    async with limited(max_held_requests=1, quick=True) as api:
        model = await api.model()
        first = await api.ok("/forward_backward", batch_json(model, 3))
        error, category = await api.failure(await api.ok("/forward_backward", batch_json(model, 4)))
        assert (category, "already wait" in error) == ("server", True)
        assert "did not arrive" in (await api.failure(first))[0]


async def test_results_that_nobody_fetches_are_bounded(limited):
    async with limited(max_result_bytes=100) as api:
        model = await api.model()
        futures = [(await send(api, batch(model, seq_id, 1))).json() for seq_id in (1, 2)]
        assert "metrics" in await api.result(futures[1])
        response = await api.post("/retrieve_future", futures[0])
        assert response.status_code == 410


async def test_client_hears_of_samples_whose_results_were_dropped_before_it_asked(limited):
    """It would wait for ever: nothing else tells it that they are done."""
    async with limited(max_result_bytes=100) as api:
        sampler = await api.sampler()
        sent = [
            (await api.ok("/asample", sample_json(sampler, seq_id)))["request_id"]
            for seq_id in range(4)
        ]
        assert await api.services.futures.drain(60.0)
        question = {
            "target": {"type": "sampling_session", "sampling_session_id": sampler},
            "prev_cursor": 0,
            "retrieved_request_ids": [],
        }
        answer = await api.ok("/retrieve_futures", question)
        assert sorted(one["request_id"] for one in answer["completions"]) == sorted(sent)
        codes = [
            (await api.post("/retrieve_future", {"request_id": one})).status_code for one in sent
        ]
        assert 410 in codes


async def test_recorded_sequences_are_bounded(limited):
    async with limited(max_recorded_bytes=4000) as api:
        sampler = await api.sampler()
        for seq_id in range(20):
            body = sample_json(sampler, seq_id) | {"record_stability_info": True}
            await api.result(await api.ok("/asample", body))
        assert api.services.recordings.used_bytes(api.owner) <= 4000
        assert 0 < len(api.services.recordings) < 20


async def test_journal_of_a_run_is_bounded_by_snapshots(limited):
    for limit, taken in ((10**9, False), (1, True)):
        async with limited(max_journal_bytes=limit) as api:
            model = await api.model()
            step = {"model_id": model, "seq_id": 2}
            await send(api, batch(model, 1, 1))
            await api.result(await api.ok("/optim_step", step))
            await api.quiet()
            await api.services.tasks.finished()
            folder = api.services.config.data_dir / SNAPSHOTS_NAME
            assert any(path.is_file() for path in folder.rglob("*")) is taken
