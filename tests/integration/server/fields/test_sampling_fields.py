"""Fields of sampling requests: each changes what comes, or is refused by name."""

import numpy as np
import pytest
from field_support import covers, refused, sampled, tokens, trained
from server_support import BASE_MODEL, sample_json

from tinkex.types import TensorData


@covers("SampleRequest.num_samples")
async def test_number_of_samples(api):
    assert len((await sampled(api, num_samples=3)).sequences) == 3


@covers("SampleRequest.prompt", "ModelInput.chunks", "EncodedTextChunk.tokens")
async def test_prompt(api):
    one = await sampled(api, prompt=(5, 6, 7, 8), prompt_logprobs=True)
    other = await sampled(api, prompt=(5, 6, 9, 8), prompt_logprobs=True)
    assert one.prompt_logprobs != other.prompt_logprobs
    chunks = [{"type": "encoded_text", "tokens": part} for part in ([5, 6], [7, 8])]
    joined = await sampled(api, chunks=chunks, prompt_logprobs=True)
    assert joined.prompt_logprobs == one.prompt_logprobs


IMAGE = {"type": "image", "data": "AAAA", "format": "png", "expected_tokens": 3}
POINTER = {"type": "image_asset_pointer", "location": "x", "format": "png", "expected_tokens": 3}


@covers("ImageChunk.data", "ImageChunk.expected_tokens", "ImageChunk.format", "ImageChunk.type")
@covers("ImageAssetPointerChunk.expected_tokens", "ImageAssetPointerChunk.format")
@covers("ImageAssetPointerChunk.location", "ImageAssetPointerChunk.type")
@covers("DmelChunk.dmel", "DmelChunk.type", "EncodedTextChunk.type")
@pytest.mark.parametrize(
    ("chunk", "word"),
    [
        (IMAGE, "image"),
        ({**IMAGE, "expected_tokens": -1}, "expected_tokens"),
        ({**IMAGE, "format": "gif"}, "gif"),
        (POINTER, "image_asset_pointer"),
        ({"type": "dmel", "dmel": "AAAA"}, "dmel"),
        ({"type": "video", "tokens": [1]}, "video"),
        ({"type": "encoded_text", "tokens": [1], "weight": 1}, "weight"),
    ],
)
async def test_other_chunks_are_refused(api, chunk, word):
    body = sample_json(await api.sampler())
    body["prompt"]["chunks"].append(chunk)
    response = await api.post("/asample", body)
    if response.status_code == 200:
        error, category = await api.failure(response.json())
        assert category == "user"
    else:
        assert response.status_code in {400, 422}
        error = response.json()["detail"]
    assert word in error


@covers("SampleRequest.sampling_params", "SamplingParams.max_tokens", "SamplingParams.seed")
@covers("SamplingParams.stop", "SamplingParams.temperature", "SamplingParams.top_k")
@covers("SamplingParams.top_p")
async def test_sampling_parameters(api):
    plain = await tokens(api)
    assert await tokens(api) == plain
    assert len(await tokens(api, params={"max_tokens": 2})) == 2
    assert await tokens(api, params={"seed": 4}) != plain
    greedy = await tokens(api, params={"temperature": 0.0})
    assert greedy != plain
    assert await tokens(api, params={"top_k": 1}) == greedy
    assert await tokens(api, params={"top_p": 1e-6}) == greedy
    assert await tokens(api, params={"stop": [plain[0]]}) == plain[:1]
    assert (await sampled(api, params={"stop": [plain[0]]})).sequences[0].stop_reason == "stop"


@covers("SampleRequest.base_model", "SampleRequest.model_path", "SampleRequest.sampling_session_id")
async def test_what_is_sampled_from(api):
    session = await api.session()
    model, _ = await trained(api, session)
    body = {"model_id": model, "seq_id": 5, "path": "x"}
    saved = await api.result(await api.ok("/save_weights_for_sampler", body))
    base = await sampled(api, prompt_logprobs=True)
    path = await sampled(api, model_path=saved["path"], prompt_logprobs=True)
    assert path.prompt_logprobs != base.prompt_logprobs
    sampler = await api.sampler(session, model_path=saved["path"])
    again = await sampled(api, sampling_session_id=sampler, prompt_logprobs=True)
    assert again.prompt_logprobs == path.prompt_logprobs
    body = sample_json(None)
    del body["sampling_session_id"], body["seq_id"]
    await refused(api, "/asample", {**body, "base_model": "none"}, "none", status=400)
    await refused(api, "/asample", body, "base_model")


@covers("SampleRequest.seq_id")
async def test_sequence_id_of_a_sample(api):
    sampler = await api.sampler()
    first = await api.ok("/asample", sample_json(sampler, 5))
    assert await api.ok("/asample", sample_json(sampler, 5)) == first
    assert await api.ok("/asample", sample_json(sampler, 6)) != first


@covers("SampleRequest.prompt_logprobs", "SampleRequest.prompt_logprobs_last_n")
@covers("SampleRequest.topk_prompt_logprobs", "SampleRequest.topk_sample_logprobs")
@covers("SampleRequest.prompt_alt_tokens_k")
async def test_what_comes_along(api):
    plain = await sampled(api)
    assert plain.prompt_logprobs is None
    assert len((await sampled(api, prompt_logprobs=True)).prompt_logprobs) == 4
    last = (await sampled(api, prompt_logprobs=True, prompt_logprobs_last_n=1)).prompt_logprobs
    assert [value is None for value in last] == [True, True, True, False]
    topk = (await sampled(api, topk_prompt_logprobs=2)).topk_prompt_logprobs
    assert [len(row or ()) for row in topk] == [0, 2, 2, 2]
    topk = (await sampled(api, topk_sample_logprobs=3)).sequences[0].topk_logprobs
    assert {len(row) for row in topk} == {3}
    assert plain.prompt_alt_tokens is None
    assert (await sampled(api, prompt_alt_tokens_k=2)).prompt_alt_tokens.tokens.dimensions[1] == 2


@covers("SampleRequest.target_prompt_logprobs", "TensorData.data", "TensorData.dtype")
@covers("TensorData.shape", "TensorData.sparse_col_indices", "TensorData.sparse_crow_indices")
async def test_logprobs_of_given_targets(api):
    wanted = TensorData(np.asarray([[6, 9], [7, -1], [8, 2]]))
    dense = {"data": wanted.data, "dtype": "int64", "shape": [3, 2]}
    found = (await sampled(api, target_prompt_logprobs=dense)).target_prompt_logprobs
    logprobs = (await sampled(api, prompt_logprobs=True)).prompt_logprobs
    assert found.to_numpy()[:, 0].tolist() == logprobs[1:]
    other = {**dense, "data": [9, 6, 7, -1, 8, 2]}
    swapped = (await sampled(api, target_prompt_logprobs=other)).target_prompt_logprobs
    assert swapped.to_numpy()[0].tolist() == found.to_numpy()[0].tolist()[::-1]
    sparse = {
        "data": [6, 7, 8],
        "dtype": "int64",
        "shape": [3, 2],
        "sparse_crow_indices": [0, 1, 2, 3],
        "sparse_col_indices": [0, 0, 0],
    }
    first = (await sampled(api, target_prompt_logprobs=sparse)).target_prompt_logprobs
    assert first.values.tolist() == logprobs[1:]
    body = {**sample_json(await api.sampler()), "prompt": {"chunks": [{"tokens": [5, 6, 7, 8]}]}}
    for wrong, word in (
        ({**dense, "shape": [2, 2]}, "shape"),
        ({**dense, "dtype": "int7"}, "int7"),
        ({**sparse, "sparse_col_indices": [0, 0, 5]}, "col"),
        ({**sparse, "sparse_crow_indices": [0, 1, 2]}, "crow"),
        ({**dense, "colour": 1}, "colour"),
        ([1, 2], "tensor"),
        ("text", "tensor"),
    ):
        response = await api.post("/asample", {**body, "target_prompt_logprobs": wrong})
        assert response.status_code in {400, 422}, response.text
        assert word in response.json()["detail"]


@covers("SampleRequest.record_stability_info")
async def test_recording(api):
    sampler = await api.sampler()
    await sampled(api, sampling_session_id=sampler, seq_id=0, record_stability_info=False)
    assert len(api.services.recordings) == 0
    await sampled(api, sampling_session_id=sampler, seq_id=1, record_stability_info=True)
    assert len(api.services.recordings) == 1


@covers("CreateSamplingSessionRequest.session_id", "CreateSamplingSessionRequest.model_path")
@covers("CreateSamplingSessionRequest.sampling_session_seq_id")
@covers("CreateSamplingSessionRequest.base_model", "JoinSamplingSessionRequest.sampling_session_id")
async def test_sampling_session(api):
    session = await api.session()
    body = {"session_id": session, "sampling_session_seq_id": 7, "base_model": BASE_MODEL}
    made = await api.ok("/create_sampling_session", body)
    assert made["sampling_session_id"] == f"{session}:sample:7"
    path = "/create_sampling_session"
    await refused(api, path, {**body, "session_id": "none"}, "none", status=404)
    body["sampling_session_seq_id"] = 8
    await refused(api, path, {**body, "base_model": "none"}, "none", status=400)
    await refused(api, path, {**body, "model_path": "tinker://a/weights/b"}, "a", status=400)
    join = {"sampling_session_id": made["sampling_session_id"]}
    assert (await api.ok("/join_sampling_session", join))["client_counter"] == 1
    join = {"sampling_session_id": "none"}
    await refused(api, "/join_sampling_session", join, "none", status=404)
