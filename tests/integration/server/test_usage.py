"""What requests use is counted on their run, session and key, once, by the real engine."""

import asyncio

from server_support import OTHER_KEY, batch_json, sample_json


async def used(api, key_id=None):
    return await api.services.ledger.used(key_id or api.owner)


async def test_tokens_of_training_are_counted_by_kind(api):
    model = await api.model()
    before = await used(api)
    forward = batch_json(model, 1, tokens=(5, 6, 7))
    forward["forward_input"] = forward.pop("forward_backward_input")
    await api.result(await api.ok("/forward", forward))
    await api.result(await api.ok("/forward_backward", batch_json(model, 2)))
    await api.result(await api.ok("/optim_step", {"model_id": model, "seq_id": 3}))
    after = await used(api)
    assert (after.forward_tokens, after.forward_backward_tokens) == (2, 4)
    assert after.requests - before.requests == 3
    assert after.training_s > before.training_s > 0
    assert after.sampling_s == 0


async def test_tokens_of_samples_are_counted_and_cached_ones_apart(api):
    sampler = await api.sampler()
    prompt = list(range(5, 105))
    for number in range(2):
        body = sample_json(sampler, number, prompt, max_tokens=3, stop=[], num_samples=2)
        await api.result(await api.ok("/asample", body))
    after = await used(api)
    assert after.sampled_tokens == 2 * 2 * 3
    assert after.prefilled_tokens + after.cached_tokens == 2 * len(prompt)
    assert after.cached_tokens == len(prompt)
    assert after.sampling_s > 0


async def test_a_repeated_request_is_counted_once(api):
    model = await api.model()
    body = batch_json(model, 1)
    answers = await asyncio.gather(*(api.ok("/forward_backward", body) for _ in range(3)))
    assert len({answer["request_id"] for answer in answers}) == 1
    await api.result(answers[0])
    assert (await used(api)).forward_backward_tokens == 4


async def test_a_failed_request_uses_no_tokens(api):
    model = await api.model()
    body = batch_json(model, 1, tokens=(5, 6, 100_000))
    await api.failure(await api.ok("/forward_backward", body))
    after = await used(api)
    assert (after.forward_backward_tokens, after.failed_requests) == (0, 1)


async def test_checkpoints_are_counted(api):
    model = await api.model()
    for number, (path, name) in enumerate(
        [
            ("/save_weights", "a"),
            ("/save_weights_for_sampler", "b"),
            ("/save_weights_external", "c"),
        ],
        start=1,
    ):
        body = {"model_id": model, "seq_id": number, "path": name}
        await api.result(await api.ok(path, body))
    assert (await used(api)).checkpoints == 3


async def test_another_key_has_used_nothing(api):
    await api.model()
    other = api.other_owner
    assert (await used(api, other)).requests == 0
    await api.model(key=OTHER_KEY)
    assert (await used(api, other)).requests == 1


async def test_what_was_used_is_there_after_a_stop(make_config, serve):
    async with serve(make_config()) as first:
        model = await first.model()
        await first.result(await first.ok("/forward_backward", batch_json(model, 1)))
    async with serve(make_config()) as second:
        assert (await used(second)).forward_backward_tokens == 4


async def test_a_sample_without_a_session_is_counted_on_the_key_that_sent_it(api):
    body = sample_json(None, None, max_tokens=2, stop=[])
    del body["sampling_session_id"], body["seq_id"]
    await api.result(await api.ok("/asample", {**body, "base_model": "tiny/qwen3"}))
    after = await used(api)
    assert (after.prefilled_tokens, after.sampled_tokens) == (3, 2)


async def test_the_tokens_of_a_stream_are_counted(api):
    body = sample_json(await api.sampler(), max_tokens=3, stop=[])
    del body["seq_id"]
    response = await api.post("/sample_stream", body)
    assert '"finished"' in response.text
    assert (await used(api)).sampled_tokens == 3


async def test_many_at_once_are_counted_exactly_and_their_seconds_are_the_engines(api):
    sessions = [await api.session() for _ in range(3)]
    models = [await api.model(session) for session in sessions]
    samplers = [await api.sampler(session) for session in sessions]
    before, start = await used(api), api.services.clock.monotonic()
    calls = [
        *(
            api.ok("/forward_backward", batch_json(model, seq_id))
            for model in models
            for seq_id in range(1, 6)
        ),
        *(
            api.ok("/asample", sample_json(sampler, number, max_tokens=4, stop=[]))
            for sampler in samplers
            for number in range(10)
        ),
    ]
    for future in await asyncio.gather(*calls):
        await api.result(future)
    after, seconds = await used(api), api.services.clock.monotonic() - start
    assert after.forward_backward_tokens == 3 * 5 * 4
    assert after.sampled_tokens == 3 * 10 * 4
    assert after.prefilled_tokens + after.cached_tokens == 3 * 10 * 3
    assert after.requests - before.requests == 45
    # one thread works for all of them: together they cannot have had more than it had
    spent = after.training_s + after.sampling_s - before.training_s - before.sampling_s
    assert 0 < spent <= seconds
    rows = (await api.get("/usage?by=source")).json()["rows"]
    tokens = {
        row["source"]: (row["forward_backward_tokens"], row["sampled_tokens"]) for row in rows
    }
    assert {tokens[model] for model in models} == {(20, 0)}
    assert {tokens[sampler] for sampler in samplers} == {(0, 40)}
