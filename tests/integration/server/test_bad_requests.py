"""What is refused on the spot: a 4xx with JSON that says what to do."""

import gzip

import pytest
import zstandard
from server_support import BASE_MODEL, CONTEXT, KEY, batch_json, sample_json

from tinkex.server.config import Limits


async def refused(response, status, *words):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    detail = response.json()["detail"]
    for word in words:
        assert word in detail
    return detail


def model_body(session_id, **changes):
    body = {
        "session_id": session_id,
        "model_seq_id": 0,
        "base_model": BASE_MODEL,
        "lora_config": {"rank": 4},
    }
    return {**body, **changes}


async def test_unknown_base_model_is_refused_with_the_names_there_are(api):
    session = await api.session()
    response = await api.post("/create_model", model_body(session, base_model="no/such"))
    await refused(response, 400, "no/such", BASE_MODEL, "Qwen/Qwen3-8B")
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "no/such"}
    await refused(await api.post("/create_sampling_session", body), 400, "no/such", BASE_MODEL)


@pytest.mark.parametrize("rank", [0, -1, 65, 10**9])
async def test_rank_out_of_bounds_is_refused(api, rank):
    body = model_body(await api.session(), lora_config={"rank": rank})
    await refused(await api.post("/create_model", body), 422, "rank", "1..64")


async def test_model_without_lora_is_refused(api):
    body = model_body(await api.session())
    del body["lora_config"]
    await refused(await api.post("/create_model", body), 422, "lora_config")


async def test_other_optimizer_is_refused_by_name(api):
    session = await api.session()
    body = model_body(session, optimizer_config={"type": "sgd"})
    await refused(await api.post("/create_model", body), 422, "optimizer_config", "sgd")
    body = model_body(session, optimizer_config={"type": "dimuon", "version": 2})
    await refused(await api.post("/create_model", body), 422, "version")


async def test_refused_model_can_be_created_under_the_same_number(api):
    session = await api.session()
    await api.post("/create_model", model_body(session, base_model="no/such"))
    future = await api.ok("/create_model", model_body(session))
    assert (await api.result(future))["model_id"] == f"{session}:train:0"


@pytest.mark.parametrize("key", [None, "", "tml-wrong", KEY[:-1], KEY + "x"])
async def test_missing_or_wrong_key_is_refused_everywhere_but_health(api, key):
    for method, path in [
        ("POST", "/create_session"),
        ("POST", "/client/config"),
        ("POST", "/telemetry"),
        ("GET", "/sessions"),
        ("GET", "/no/such/path"),
        ("DELETE", "/training_runs/a/checkpoints/weights/b"),
    ]:
        detail = await refused(await api.request(method, path, key=key), 401, "key")
        assert not key or key not in detail
    assert (await api.get("/healthz", key=key)).json() == {"status": "ok"}


async def test_malformed_json_is_refused(api):
    for body in (b"", b"{", b"\xff\xfe", b'{"session_id": }'):
        response = await api.post("/session_heartbeat", content=body)
        await refused(response, 400, "JSON")


async def test_json_of_another_form_is_refused(api):
    await refused(await api.post("/session_heartbeat", [1, 2]), 422)
    await refused(await api.post("/session_heartbeat", {}), 422, "session_id")


async def test_unknown_and_wrong_fields_are_refused_by_name(api):
    session = await api.session()
    body = {"session_id": session, "colour": "blue", "session_idd": 1}
    await refused(await api.post("/session_heartbeat", body), 422, "colour", "session_idd")
    body = model_body(session, lora_config={"rank": 4, "alpha": 3})
    await refused(await api.post("/create_model", body), 422, "lora_config.alpha")
    body = model_body(session, model_seq_id="zero")
    await refused(await api.post("/create_model", body), 422, "model_seq_id")


async def test_malformed_protobuf_is_refused(api):
    headers = {"Content-Type": "application/x-protobuf"}
    response = await api.post("/forward_backward", content=b"\xff" * 50, headers=headers)
    await refused(response, 400, "forward_backward body")


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"{}", b'{"forward_backward_input": {"data": 3}}', b'{"model_id": "x"}'],
)
async def test_malformed_json_batch_is_refused(api, body):
    headers = {"Content-Type": "application/json"}
    response = await api.post("/forward_backward", content=body, headers=headers)
    await refused(response, 400, "forward_backward body")


async def test_unknown_path_is_named(api):
    await refused(await api.get("/no/such/path"), 404, "GET", "/api/v1/no/such/path")
    response = await api.client.get("/elsewhere", headers={"X-API-Key": KEY})
    await refused(response, 404, "/elsewhere")


async def test_wrong_method_is_answered_with_the_right_one(api):
    await refused(await api.get("/create_session"), 405, "POST", "/api/v1/create_session")


async def test_weights_of_another_account_are_refused_by_name(api):
    model = await api.model()
    body = {
        "model_id": model,
        "seq_id": 1,
        "path": "tinker://a/weights/b",
        "optimizer": False,
        "weights_access_token": "tok",
    }
    error, category = await api.failure(await api.ok("/load_weights", body))
    assert category == "user"
    assert "weights_access_token" in error


@pytest.mark.parametrize(
    "address", [{}, {"session_id": "s"}, {"model_id": "m", "session_id": "s", "model_seq_id": 1}]
)
async def test_load_that_names_no_run_is_refused(api, address):
    body = {"path": "tinker://a/weights/b", "optimizer": False, **address}
    await refused(await api.post("/load_weights", body), 422, "model_id", "session_id")


@pytest.mark.parametrize("count", [0, -1, 5000])
async def test_number_of_samples_out_of_bounds_is_refused(api, count):
    sampler = await api.sampler()
    response = await api.post("/asample", sample_json(sampler, num_samples=count))
    await refused(response, 422, "num_samples", "1..1024")


async def test_unknown_sampling_session_is_refused(api):
    await refused(await api.post("/asample", sample_json("sess-x:sample:0")), 404, "sess-x")


async def test_bad_checkpoint_path_for_a_sampler_is_refused(api):
    session = await api.session()
    for path in ("nonsense", "tinker://a/b/c", "tinker://../weights/x", "tinker://r/weights/none"):
        body = {"session_id": session, "sampling_session_seq_id": 0, "model_path": path}
        await refused(await api.post("/create_sampling_session", body), 400, path[9:11])


async def test_sampler_of_nothing_is_refused(api):
    body = {"session_id": await api.session(), "sampling_session_seq_id": 0}
    await refused(await api.post("/create_sampling_session", body), 422, "base_model")


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "offset=-1", "limit=99999999"])
async def test_bad_page_is_refused(api, query):
    await refused(await api.get(f"/training_runs?{query}"), 422, query.split("=")[0])


async def test_body_above_the_limit_is_refused_for_what_is_no_batch(make_config, serve):
    config = make_config(limits=Limits(max_rank=64, max_body_bytes=10_000))
    async with serve(config) as api:
        body = {"tags": ["x" * 20_000], "sdk_version": "1"}
        await refused(await api.post("/create_session", body), 413, "10000")
        for encoding, compress in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
            response = await api.post(
                "/create_session",
                content=compress(b" " * 1_000_000),
                headers={"Content-Encoding": encoding},
            )
            await refused(response, 413, "10000")


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip), ("zstd", zstandard)])
async def test_compressed_request_is_read(api, encoding, compress):
    body = b'{"tags": [], "sdk_version": "1"}'
    response = await api.post(
        "/create_session",
        content=compress.compress(body),
        headers={"Content-Encoding": encoding},
    )
    assert response.status_code == 200


async def test_full_server_asks_to_come_back_later(make_config, serve):
    config = make_config(limits=Limits(max_rank=64, max_open_futures=1, max_sessions=2))
    async with serve(config) as api:
        sampler = await api.sampler()
        model = await api.model(model_seq_id=1)
        held = await api.ok("/optim_step", {"model_id": model, "seq_id": 2})
        response = await api.post("/asample", sample_json(sampler))
        await refused(response, 429, "pending")
        assert int(response.headers["retry-after-ms"]) > 0
        await refused(await api.post("/forward_backward", batch_json(model, 3)), 429)
        # The request that the others wait for is never refused: it is the way out.
        first = await api.ok("/forward_backward", batch_json(model, 1))
        assert "metrics" in await api.result(first)
        assert "metrics" in await api.result(held)
        body = {"tags": [], "sdk_version": "1"}
        await refused(await api.post("/create_session", body), 429, "sessions")


async def test_prompt_of_images_is_refused(api):
    sampler = await api.sampler()
    body = sample_json(sampler)
    body["prompt"]["chunks"].append({"type": "image", "data": "AAAA", "format": "png"})
    response = await api.post("/asample", body)
    assert response.status_code == 400


async def test_context_is_advertised(api):
    models = (await api.get("/get_server_capabilities")).json()["supported_models"]
    assert [model["model_name"] for model in models] == [BASE_MODEL, "Qwen/Qwen3-8B"]
    assert {model["max_context_length"] for model in models} == {CONTEXT}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"path": "a", "sampling_session_seq_id": 1},
        {"path": "a", "kind": "inflight"},
        {"sampling_session_seq_id": 1, "ttl_seconds": 5000},
        {"sampling_session_seq_id": 1, "kind": "frozen"},
    ],
)
async def test_contradictory_sampler_save_is_refused(api, fields):
    body = {"model_id": await api.model(), "seq_id": 1, **fields}
    await refused(await api.post("/save_weights_for_sampler", body), 422)


async def test_result_that_cannot_be_encoded_fails_and_is_not_asked_for_again(api, monkeypatch):
    """A 5xx here would be repeated at once and for ever."""
    from tinkex.server.routes import futures

    def fail(_result):
        raise RuntimeError("cannot encode")

    future = await api.ok("/forward_backward", batch_json(await api.model(), 1))
    monkeypatch.setattr(futures, "BULK_ENCODERS", {futures.Operation.FORWARD_BACKWARD: (fail,) * 2})
    body = await api.result(future)
    assert body["category"] == "server"


async def test_large_json_request_is_read(api):
    sampler = await api.sampler()
    body = sample_json(sampler)
    body["sampling_params"]["stop"] = ["x" * 100] * 1000
    future = await api.ok("/asample", body)
    assert "request_id" in future
