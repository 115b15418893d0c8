"""Samples as streams, from a real server over a socket."""

import asyncio
import threading

import httpx
import orjson
import pytest
from server_support import BASE_MODEL, KEY, OTHER_KEY, sample_json

import tinkex as tinker
from tinkex.errors import InputError

PROMPT = tinker.ModelInput.from_ints([5, 6, 7])


@pytest.fixture
def sampler(server):
    with tinker.ServiceClient(**server.login) as service:
        yield service.create_sampling_client(base_model=BASE_MODEL).result(20)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_stream_is_the_sample_piece_by_piece(sampler, num_samples):
    params = tinker.SamplingParams(max_tokens=20, seed=3)
    whole = sampler.sample(PROMPT, num_samples, params, topk_sample_logprobs=2).result(20)
    stream = sampler.sample_stream(PROMPT, params, num_samples, topk_sample_logprobs=2)
    tokens = [[] for _ in range(num_samples)]
    logprobs = [[] for _ in range(num_samples)]
    for piece in stream:
        tokens[piece.index] += piece.tokens
        logprobs[piece.index] += piece.logprobs
    assert tokens == [sequence.tokens for sequence in whole.sequences]
    assert logprobs == [pytest.approx(sequence.logprobs) for sequence in whole.sequences]
    for streamed, sampled in zip(stream.response.sequences, whole.sequences, strict=True):
        assert streamed.tokens == sampled.tokens
        assert streamed.topk_logprobs == sampled.topk_logprobs
        assert streamed.stop_reason == sampled.stop_reason
        assert streamed.sequence_id.endswith(f":{streamed.sequence_id[-1]}")


def test_streamed_sequences_are_recorded_under_their_names_too(server):
    params = tinker.SamplingParams(max_tokens=6, seed=3, stop=[])
    with tinker.ServiceClient(**server.login) as service:
        sampler = service.create_sampling_client(
            base_model=BASE_MODEL, record_stability_info=True
        ).result(20)
        stream = sampler.sample_stream(PROMPT, params, 2)
        list(stream)
        session_id = next(iter(server.services.sessions._sessions))
        for sequence in stream.response.sequences:
            kept = server.services.recordings.find(session_id, sequence.sequence_id)
            assert kept.tokens.tolist() == sequence.tokens
            assert kept.logprobs.tolist() == sequence.logprobs


def test_tokens_come_while_the_server_still_samples(server, sampler):
    stream = sampler.sample_stream(PROMPT, tinker.SamplingParams(max_tokens=100, stop=[]))
    first = next(iter(stream))
    open_now = server.services.futures.open_count
    rest = sum(len(piece.tokens) for piece in stream)
    assert len(first.tokens) < 100
    assert open_now == 1
    assert len(first.tokens) + rest == 100


def test_reader_that_goes_away_ends_the_sample(server, sampler):
    stream = sampler.sample_stream(PROMPT, tinker.SamplingParams(max_tokens=120, stop=[]), 8)
    next(iter(stream))
    futures = server.services.futures
    (future,) = (one for one in list(futures._futures.values()) if not one.done)
    stream.close()
    ended = threading.Event()

    async def wait():
        with futures.waiter(future, 20) as waiter:
            await waiter
        assert future.done
        ended.set()

    asyncio.run_coroutine_threadsafe(wait(), server.loop).result(20)
    assert ended.is_set()
    # the engine is free for the next one
    params = tinker.SamplingParams(max_tokens=2)
    assert len(sampler.sample(PROMPT, 1, params).result(20).sequences[0].tokens) <= 2


def test_bad_request_is_refused_and_a_bad_sample_fails_in_the_stream(sampler):
    with pytest.raises(tinker.RequestFailedError, match="max_tokens") as caught:
        list(sampler.sample_stream(PROMPT, tinker.SamplingParams(max_tokens=10_000)))
    assert caught.value.category == "user"
    with pytest.raises(InputError):
        sampler.sample_stream(tinker.ModelInput.empty(), tinker.SamplingParams())


def test_wire_of_a_stream(server, sampler):
    url = f"{server.url}/api/v1/sample_stream"
    body = sample_json(sampler.sampling_session_id, None, max_tokens=5)
    with httpx.stream("POST", url, json=body, headers={"x-api-key": KEY}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [
            orjson.loads(line.removeprefix("data: "))
            for line in response.iter_lines()
            if line.startswith("data: ")
        ]
    assert [event["type"] for event in events if event["type"] != "tokens"] == [
        "started",
        "finished",
    ]
    assert len(events[0]["sequence_ids"]) == 1
    assert events[-1]["stop_reasons"][0] in {"stop", "length"}
    for changed, key, status in (
        ({**body, "seq_id": 3}, KEY, 422),
        (body, OTHER_KEY, 404),
        ({**body, "num_samples": 0}, KEY, 422),
    ):
        assert httpx.post(url, json=changed, headers={"x-api-key": key}).status_code == status
