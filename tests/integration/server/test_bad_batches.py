"""What is wrong with a request for a run comes through its future, and harms nobody else."""

import asyncio
import re

import pytest
from server_support import BASE_MODEL, CONTEXT, VOCAB, batch_json

from tinkex.server.config import Limits
from tinkex.types import Datum, ForwardBackwardInput, ForwardBackwardRequest, ModelInput
from tinkex.wire import tinkex_public_pb2 as pb
from tinkex.wire.proto import encode_forward_backward_request

PROTOBUF = {"Content-Type": "application/x-protobuf"}


def tensor(data, dtype="float32"):
    return {"data": data, "dtype": dtype, "shape": [len(data)]}


def without_data(body):
    body["forward_backward_input"]["data"] = []
    return body


BAD_BATCHES = {
    "unknown loss": (lambda m: batch_json(m, 1, loss_fn="no_such_loss"), "no_such_loss"),
    "target longer than input": (
        lambda m: batch_json(m, 1, target_tokens=tensor([1, 2, 3, 4, 5], "int64")),
        "target_tokens",
    ),
    "target shorter than input": (
        lambda m: batch_json(m, 1, target_tokens=tensor([1, 2], "int64")),
        "target_tokens",
    ),
    "token outside the vocabulary": (lambda m: batch_json(m, 1, tokens=[5, VOCAB, 6]), "vocab"),
    "negative token": (lambda m: batch_json(m, 1, tokens=[5, -1, 6]), "vocab"),
    "empty batch": (lambda m: without_data(batch_json(m, 1)), "empty"),
    "NaN weights": (lambda m: batch_json(m, 1, weights=tensor([1.0, None, 1.0, 1.0])), "weights"),
    "unknown input": (lambda m: batch_json(m, 1, colour=tensor([1.0] * 4)), "colour"),
    "too long": (lambda m: batch_json(m, 1, tokens=[5] * (CONTEXT + 2)), "128|context|long"),
    "undecodable tensor": (
        lambda m: batch_json(m, 1, weights={"data": [1.0], "dtype": "float32", "shape": [4]}),
        "Datum 0",
    ),
    "unknown dtype": (
        lambda m: batch_json(m, 1, weights={"data": [1.0] * 4, "dtype": "int7"}),
        "Datum 0",
    ),
}


@pytest.mark.parametrize("case", list(BAD_BATCHES))
async def test_bad_batch_fails_its_future_and_nothing_else(api, case):
    make, message = BAD_BATCHES[case]
    model = await api.model()
    bad = await api.ok("/forward_backward", make(model))
    good = await api.ok("/forward_backward", batch_json(model, 2))
    step = await api.ok("/optim_step", {"model_id": model, "seq_id": 3})
    error, category = await api.failure(bad)
    assert category == "user"
    assert re.search(message, error)
    assert (await api.result(good))["metrics"]["num_tokens:sum"] == 4
    assert "metrics" in await api.result(step)


async def test_bad_batch_leaves_no_gradient(api):
    model = await api.model()
    bad = batch_json(model, 1)
    bad["forward_backward_input"]["data"] *= 3
    bad["forward_backward_input"]["data"].append(
        batch_json(model, 1, tokens=[1, VOCAB])["forward_backward_input"]["data"][0]
    )
    await api.failure(await api.ok("/forward_backward", bad))
    step = await api.result(await api.ok("/optim_step", {"model_id": model, "seq_id": 2}))
    assert step["metrics"]["grad_norm"] == 0


async def test_unknown_model_fails_through_the_future(api):
    await api.session()
    for path, body in [
        ("/forward_backward", batch_json("sess-x:train:0", 1)),
        ("/optim_step", {"model_id": "sess-x:train:0", "seq_id": 1}),
        ("/save_weights", {"model_id": "sess-x:train:0", "seq_id": 1, "path": "a"}),
        ("/save_weights_for_sampler", {"model_id": "x", "seq_id": 1, "path": "a"}),
        (
            "/load_weights",
            {"model_id": "x", "seq_id": 1, "path": "tinker://a/weights/b", "optimizer": False},
        ),
        ("/unload_model", {"model_id": "x"}),
    ]:
        error, category = await api.failure(await api.ok(path, body))
        assert category == "user"
        assert "not loaded" in error


async def test_model_of_an_ended_session_fails_through_the_future(api):
    session = await api.session()
    model = await api.model(session)
    await api.ok(f"/sessions/{session}/finish", {"reason": {"type": "success"}, "detail": None})
    error, category = await api.failure(await api.ok("/forward_backward", batch_json(model, 1)))
    assert category == "user"
    assert "session" in error


async def test_undecodable_protobuf_datum_fails_through_the_future(api):
    model = await api.model()
    message = pb.ForwardBackwardRequest(model_id=model, seq_id=1, loss_fn="cross_entropy")
    message.data.add().model_input.add().encoded_text.tokens = b"123"
    body = message.SerializeToString()
    future = await api.ok("/forward_backward", content=body, headers=PROTOBUF)
    error, category = await api.failure(future)
    assert category == "user"
    assert "Datum 0" in error


async def test_image_in_a_text_model_fails_through_the_future(api):
    model = await api.model()
    message = pb.ForwardBackwardRequest(model_id=model, seq_id=1, loss_fn="cross_entropy")
    image = message.data.add().model_input.add().image
    image.data, image.format = b"x", "png"
    future = await api.ok(
        "/forward_backward", content=message.SerializeToString(), headers=PROTOBUF
    )
    assert (await api.failure(future))[1] == "user"


@pytest.mark.parametrize("encoding", ["", "zstd"])
async def test_batch_above_the_body_limit_fails_through_the_future(make_config, serve, encoding):
    import zstandard

    config = make_config(limits=Limits(max_rank=64, max_body_bytes=100_000))
    async with serve(config) as api:
        model = await api.model()
        tokens = [5] * 100
        datum = Datum(
            ModelInput.from_ints(tokens), {"target_tokens": tokens, "weights": [1.0] * 100}
        )
        inner = ForwardBackwardInput([datum] * 200, "cross_entropy")
        body = encode_forward_backward_request(ForwardBackwardRequest(inner, model, 1))
        assert len(body) > 100_000
        headers = PROTOBUF | ({"Content-Encoding": encoding} if encoding else {})
        if encoding:
            body = zstandard.compress(body)
        future = await api.ok("/forward_backward", content=body, headers=headers)
        error, category = await api.failure(future)
        assert category == "user"
        assert "100000 bytes" in error
        after = await api.ok("/forward_backward", batch_json(model, 2))
        assert "metrics" in await api.result(after)


async def test_oversize_json_batch_is_refused_on_the_spot(make_config, serve):
    config = make_config(limits=Limits(max_rank=64, max_body_bytes=10_000))
    async with serve(config) as api:
        body = batch_json("m", 1, tokens=[5] * 10_000)
        assert (await api.post("/forward_backward", body)).status_code == 413


@pytest.mark.parametrize(
    "params",
    [
        {"adam_params": {"learning_rate": -1.0}},
        {"adam_params": {"beta1": 1.5}},
        {"adam_params": {"eps": -1.0}},
        {"optimizer_params": {"type": "dimuon", "learning_rate": 0.1}},
    ],
)
async def test_bad_hyperparameters_fail_through_the_future(api, params):
    model = await api.model()
    body = {"model_id": model, "seq_id": 1, **params}
    _, category = await api.failure(await api.ok("/optim_step", body))
    assert category == "user"
    step = await api.result(await api.ok("/optim_step", {"model_id": model, "seq_id": 2}))
    assert "metrics" in step


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "x" * 300])
async def test_bad_checkpoint_name_fails_through_the_future(api, name):
    model = await api.model()
    for path in ("/save_weights", "/save_weights_for_sampler"):
        seq_id = 1 if path == "/save_weights" else 2
        future = await api.ok(path, {"model_id": model, "seq_id": seq_id, "path": name})
        error, category = await api.failure(future)
        assert category == "user"
        assert "checkpoint name" in error


@pytest.mark.parametrize("ttl", [0, -5, 10**12])
async def test_bad_expiry_fails_through_the_future(api, ttl):
    body = {"model_id": await api.model(), "seq_id": 1, "path": "a", "ttl_seconds": ttl}
    error, category = await api.failure(await api.ok("/save_weights", body))
    assert category == "user"
    assert "ttl_seconds" in error


@pytest.mark.parametrize(
    "path", ["nonsense", "tinker://r/weights/none", "tinker://../weights/x", "tinker://a/b/c"]
)
async def test_bad_checkpoint_path_fails_through_the_future(api, path):
    session = await api.session()
    model = await api.model(session)
    existing = {"model_id": model, "seq_id": 1}
    fresh = {"session_id": session, "model_seq_id": 7}
    for address in (existing, fresh):
        future = await api.ok("/load_weights", {**address, "path": path, "optimizer": False})
        assert (await api.failure(future))[1] == "user"
    # The failed run can be made after all, under the same number.
    again = {
        "session_id": session,
        "model_seq_id": 7,
        "base_model": BASE_MODEL,
        "lora_config": {"rank": 2},
    }
    assert "model_id" in await api.result(await api.ok("/create_model", again))


async def test_id_used_for_another_request_fails_that_one(api):
    model = await api.model()
    first = await api.ok("/forward_backward", batch_json(model, 1))
    other = await api.ok("/forward_backward", batch_json(model, 1, tokens=[9, 8, 7]))
    assert other != first
    error, category = await api.failure(other)
    assert category == "user"
    assert "seq_id 1" in error
    assert "metrics" in await api.result(first)


async def test_server_goes_on_serving_others_in_the_middle_of_bad_input(api):
    good, bad = await api.model(), await api.model()
    futures = []
    for seq_id in range(1, 11):
        futures.append(await api.ok("/forward_backward", batch_json(good, seq_id)))
        await api.ok("/forward_backward", batch_json(bad, seq_id, loss_fn="nonsense"))
    results = await asyncio.gather(*(api.result(future) for future in futures))
    losses = {result["metrics"]["loss:sum"] for result in results}
    assert len(losses) == 1


async def test_no_room_for_another_adapter_is_the_servers_doing(make_config, make_engine, serve):
    async with serve(make_config(), engine=make_engine(max_adapters=1)) as api:
        await api.model()
        session = await api.session()
        body = {
            "session_id": session,
            "model_seq_id": 0,
            "base_model": BASE_MODEL,
            "lora_config": {"rank": 2},
        }
        _, category = await api.failure(await api.ok("/create_model", body))
        assert category == "server"
        assert (await api.post("/get_info", {"model_id": f"{session}:train:0"})).status_code == 404
