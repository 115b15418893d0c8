"""Samplers and samples: named, ephemeral, in flight, shared, repeated, cancelled."""

import asyncio

import pytest
from server_support import BASE_MODEL, KEY, OTHER_KEY, batch_json, sample_json, settle

PROTOBUF = {"Accept": "application/x-protobuf"}


async def sample(api, sampler, seq_id=0, **kwargs):
    kwargs.setdefault("temperature", 0.0)
    kwargs.setdefault("stop", [])
    future = await api.ok("/asample", sample_json(sampler, seq_id, **kwargs))
    result = await api.result(future)
    assert "sequences" in result, result
    return result


async def tokens(api, sampler, seq_id=0, **kwargs):
    result = await sample(api, sampler, seq_id, **kwargs)
    return [sequence["tokens"] for sequence in result["sequences"]]


async def train(api, model, first_seq_id, *, steps=3, learning_rate=0.1):
    for step in range(steps):
        seq_id = first_seq_id + 2 * step
        await api.ok("/forward_backward", batch_json(model, seq_id))
        body = {
            "model_id": model,
            "seq_id": seq_id + 1,
            "adam_params": {"learning_rate": learning_rate},
        }
        future = await api.ok("/optim_step", body)
    await api.result(future)
    return first_seq_id + 2 * steps


async def test_reply_names_every_sequence_that_will_come(api):
    sampler = await api.sampler()
    future = await api.ok("/asample", sample_json(sampler, 5, num_samples=3))
    assert future["sample_sequence_ids"] == [f"{sampler}:5:{index}" for index in range(3)]
    assert len((await api.result(future))["sequences"]) == 3


async def test_sequence_ids_of_clones_reach_far(api):
    sampler = await api.sampler()
    seq_id = 10**18 + 7
    assert len(await tokens(api, sampler, seq_id)) == 1


async def test_repeated_sample_gets_the_same_future(api):
    sampler = await api.sampler()
    first = await api.ok("/asample", sample_json(sampler))
    assert await api.ok("/asample", sample_json(sampler)) == first
    await api.result(first)
    assert await api.ok("/asample", sample_json(sampler)) == first
    other = await api.ok("/asample", sample_json(sampler, tokens=[9, 9]))
    assert other["request_id"] != first["request_id"]
    assert len(other["sample_sequence_ids"]) == 1
    error, category = await api.failure(other)
    assert category == "user"
    assert "seq_id 0" in error


async def test_same_seed_gives_the_same_tokens_alone_or_among_others(api):
    sampler = await api.sampler()
    alone = await tokens(api, sampler, 0, seed=9, temperature=1.0, max_tokens=8)
    crowd = [
        tokens(api, sampler, seq_id, seed=9 if seq_id == 4 else seq_id, temperature=1.0,
               max_tokens=8)
        for seq_id in range(1, 9)
    ]  # fmt: skip
    together = await asyncio.gather(*crowd)
    assert together[3] == alone


async def test_snapshot_keeps_its_weights_while_training_goes_on(api):
    session = await api.session()
    model = await api.model(session)
    seq_id = await train(api, model, 1)
    body = {"model_id": model, "seq_id": seq_id, "sampling_session_seq_id": 0}
    saved = await api.result(await api.ok("/save_weights_for_sampler", body))
    assert saved == {"sampling_session_id": f"{session}:sample:0"}
    before = await sample(api, saved["sampling_session_id"], 0)
    await train(api, model, seq_id + 1)
    after = await sample(api, saved["sampling_session_id"], 1)
    assert before["sequences"][0]["logprobs"] == after["sequences"][0]["logprobs"]


async def test_inflight_samplers_follow_every_later_save(api):
    session = await api.session()
    model = await api.model(session)
    samplers, seq_id = [], 1
    for number in range(2):
        seq_id = await train(api, model, seq_id)
        body = {
            "model_id": model,
            "seq_id": seq_id,
            "sampling_session_seq_id": number,
            "kind": "inflight",
        }
        saved = await api.result(await api.ok("/save_weights_for_sampler", body))
        samplers.append(saved["sampling_session_id"])
        seq_id += 1
    results = [await sample(api, sampler) for sampler in samplers]
    logprobs = [result["sequences"][0]["logprobs"] for result in results]
    assert logprobs[0] == logprobs[1]
    await api.quiet()
    assert len(api.pool.sampler_ids) == 1


async def test_named_sampler_samples_what_was_saved(api):
    session = await api.session()
    model = await api.model(session)
    seq_id = await train(api, model, 1)
    body = {"model_id": model, "seq_id": seq_id, "path": "one"}
    saved = await api.result(await api.ok("/save_weights_for_sampler", body))
    assert saved == {"path": f"tinker://{model}/sampler_weights/one"}
    named = await api.sampler(session, 0, model_path=saved["path"])
    body = {"model_id": model, "seq_id": seq_id + 1, "sampling_session_seq_id": 1}
    ephemeral = await api.result(await api.ok("/save_weights_for_sampler", body))
    assert await tokens(api, named) == await tokens(api, ephemeral["sampling_session_id"])
    assert await tokens(api, named, 1) != await tokens(api, await api.sampler(session, 2))


async def test_samplers_of_one_checkpoint_share_its_weights_and_free_them_together(api):
    model = await api.model()
    body = {"model_id": model, "seq_id": 1, "path": "one"}
    path = (await api.result(await api.ok("/save_weights_for_sampler", body)))["path"]
    sessions = [await api.session() for _ in range(3)]
    await asyncio.gather(*(api.sampler(session, 0, model_path=path) for session in sessions))
    assert len(api.pool.sampler_ids) == 1
    for session in sessions:
        assert len(api.pool.sampler_ids) == 1
        await api.ok(f"/sessions/{session}/finish", {"reason": {"type": "success"}})
        await api.quiet()
    assert len(api.pool.sampler_ids) == 0
    again = await api.sampler(model_path=path)
    assert len(await tokens(api, again)) == 1


async def test_sampler_is_described(api):
    session = await api.session()
    model = await api.model(session)
    body = {"model_id": model, "seq_id": 1, "path": "one"}
    path = (await api.result(await api.ok("/save_weights_for_sampler", body)))["path"]
    sampler = await api.sampler(session, 0, model_path=path)
    described = (await api.get(f"/samplers/{sampler}")).json()
    assert described == {"sampler_id": sampler, "base_model": BASE_MODEL, "model_path": path}


async def test_repeated_sampling_session_is_the_same_and_another_is_refused(api):
    session = await api.session()
    first = await api.sampler(session, 3)
    assert await api.sampler(session, 3) == first
    body = {
        "session_id": session,
        "sampling_session_seq_id": 3,
        "model_path": "tinker://r/weights/x",
    }
    response = await api.post("/create_sampling_session", body)
    assert response.status_code == 400
    assert "sampling_session_seq_id 3" in response.json()["detail"]


async def test_older_clients_sample_without_a_session(api):
    model = await api.model()
    body = {"model_id": model, "seq_id": 1, "path": "one"}
    path = (await api.result(await api.ok("/save_weights_for_sampler", body)))["path"]
    for address in ({"base_model": BASE_MODEL}, {"model_path": path}):
        request = sample_json("x")
        del request["sampling_session_id"], request["seq_id"]
        future = await api.ok("/asample", {**request, **address})
        assert len(future["sample_sequence_ids"]) == 1
        assert len((await api.result(future))["sequences"]) == 1
    await api.quiet()
    assert len(api.pool.sampler_ids) == 0


async def test_prompt_logprobs_come_when_asked_for(api):
    sampler = await api.sampler()
    for asked, seq_id in ((None, 0), (False, 1), (True, 2)):
        body = sample_json(sampler, seq_id)
        if asked is not None:
            body["prompt_logprobs"] = asked
        result = await api.result(await api.ok("/asample", body))
        assert ("prompt_logprobs" in result) is bool(asked)
    assert result["prompt_logprobs"][0] is None
    assert all(value < 0 for value in result["prompt_logprobs"][1:])


async def test_empty_stop_differs_from_absent(api):
    sampler = await api.sampler()
    body = sample_json(sampler, temperature=1.0, max_tokens=100, num_samples=20, seed=1)
    default = await api.result(await api.ok("/asample", body))
    endless = {**body, "seq_id": 1, "sampling_params": {**body["sampling_params"], "stop": []}}
    result = await api.result(await api.ok("/asample", endless))
    assert {sequence["stop_reason"] for sequence in result["sequences"]} == {"length"}
    assert "stop" in {sequence["stop_reason"] for sequence in default["sequences"]}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sampling_params": {"temperature": -1.0}}, "temperature"),
        ({"sampling_params": {"top_p": 2.0}}, "top_p"),
        ({"sampling_params": {"max_tokens": -1}}, "max_tokens"),
        ({"prompt": {"chunks": []}}, "prompt"),
        ({"prompt": {"chunks": [{"type": "encoded_text", "tokens": [5] * 200}]}}, "128"),
        ({"prompt": {"chunks": [{"type": "encoded_text", "tokens": [999]}]}}, "vocab"),
        ({"prompt_alt_tokens_k": -3}, "prompt_alt_tokens_k"),
        (
            {"target_prompt_logprobs": {"data": [1, 2], "dtype": "int64", "shape": [1, 2]}},
            "target_prompt_logprobs",
        ),
    ],
)
async def test_bad_or_unsupported_sample_fails_by_name(api, change, word):
    sampler = await api.sampler()
    future = await api.ok("/asample", {**sample_json(sampler), **change})
    error, category = await api.failure(future)
    assert category == "user"
    assert word in error
    assert len(await tokens(api, sampler, 1)) == 1


async def test_size_of_a_result_counts_all_that_was_asked_along(api):
    """It bounds what the server keeps, and says which results are written off the event loop."""
    body = sample_json(await api.sampler(), tokens=(5, 6, 7, 8), num_samples=2, stop=[])
    asked = {"topk_sample_logprobs": 9, "topk_prompt_logprobs": 3, "prompt_logprobs": True}
    future = await api.ok("/asample", {**body, **asked, "prompt_alt_tokens_k": 2})
    await api.result(future)
    sampled = 2 * 4 * (4 + 4 + 9 * 8)
    prompt = 4 * (4 + 3 * 8) + 3 * 2 * (8 + 4)
    assert api.services.futures.known(future["request_id"]).result_bytes == sampled + prompt


async def test_cancelled_sample_stops_and_says_so(api):
    sampler = await api.sampler()
    future = await api.ok("/asample", sample_json(sampler, max_tokens=100, stop=[]))
    await api.ok("/cancel_future", {"request_id": future["request_id"]})
    body = await api.result(future)
    assert "cancelled" in body.get("error", "cancelled")
    await api.quiet()
    await settle()
    assert not api.services.samplers.find(api.owner, sampler).pending


async def test_cancelling_training_changes_nothing(api):
    model = await api.model()
    future = await api.ok("/forward_backward", batch_json(model, 1))
    await api.ok("/cancel_future", {"request_id": future["request_id"]})
    assert "metrics" in await api.result(future)


async def test_result_is_protobuf_for_who_asks_for_it(api):
    from tinkex.wire.proto import decode_forward_backward_output, decode_sample_response

    sampler = await api.sampler()
    future = await api.ok("/asample", sample_json(sampler))
    plain = await api.result(future)
    for accept in ("application/x-protobuf", "application/x-protobuf, application/json"):
        response = await api.post(
            "/retrieve_future", future_body(future), headers={"Accept": accept}
        )
        assert response.headers["content-type"] == "application/x-protobuf"
        decoded = decode_sample_response(response.content)
        assert decoded.sequences[0].tokens == plain["sequences"][0]["tokens"]
    future = await api.ok("/forward_backward", batch_json(await api.model(), 1))
    response = await api.post("/retrieve_future", future_body(future), headers=PROTOBUF)
    output = decode_forward_backward_output(response.content)
    plain = await api.result(future)
    assert output.metrics == plain["metrics"]
    assert output.loss_fn_outputs[0]["logprobs"].data == pytest.approx(
        plain["loss_fn_outputs"][0]["logprobs"]["data"]
    )


def future_body(future):
    return {"request_id": future["request_id"], "allow_metadata_only": True}


async def test_sampled_logprobs_equal_the_training_forward(api):
    session = await api.session()
    model = await api.model(session)
    seq_id = await train(api, model, 1)
    body = {"model_id": model, "seq_id": seq_id, "sampling_session_seq_id": 0}
    saved = await api.result(await api.ok("/save_weights_for_sampler", body))
    request = sample_json(saved["sampling_session_id"], temperature=1.0, max_tokens=10, stop=[])
    sequence = (await api.result(await api.ok("/asample", request)))["sequences"][0]
    whole = [5, 6, 7, *sequence["tokens"]]
    future = await api.ok("/forward_backward", batch_json(model, seq_id + 1, tokens=whole))
    output = (await api.result(future))["loss_fn_outputs"][0]["logprobs"]["data"]
    assert output[2:] == pytest.approx(sequence["logprobs"], abs=1e-4)


async def test_prompt_is_reused_for_its_own_user_alone(api):
    """Another user of the base model cannot tell from time or counts what was asked before."""
    from tinkex.wire.proto import decode_sample_response

    hits = []
    for key in (KEY, KEY, OTHER_KEY, OTHER_KEY):
        body = {"session_id": await api.session(key=key), "sampling_session_seq_id": 0}
        made = await api.ok("/create_sampling_session", {**body, "base_model": BASE_MODEL}, key=key)
        asked = sample_json(made["sampling_session_id"], tokens=[5, 6, 7])
        future = await api.ok("/asample", asked, key=key)
        await api.result(future, key=key)
        response = await api.post(
            "/retrieve_future", future_body(future), headers=PROTOBUF, key=key
        )
        hits.append(decode_sample_response(response.content).prompt_cache_hit_tokens)
    assert hits == [0, 3, 0, 3]
