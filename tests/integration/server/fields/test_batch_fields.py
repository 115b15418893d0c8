"""Fields of a batch, as protobuf: each has an effect, or fails its future by name."""

import numpy as np
import pytest
from field_support import covers
from server_support import sample_json

from tinkex.types import LossFnType
from tinkex.wire import tinkex_public_pb2 as pb

HEADERS = {"Content-Type": "application/x-protobuf"}
LOSSES = {
    "cross_entropy": ((), {}),
    "importance_sampling": (("advantages", "logprobs"), {}),
    "ppo": (
        ("advantages", "logprobs"),
        {"clip_low_threshold": 0.9999, "clip_high_threshold": 1.0001},
    ),
    "cispo": (
        ("advantages", "logprobs"),
        {"clip_low_threshold": 2.0, "clip_high_threshold": 0.01},
    ),
    "dro": (("advantages", "logprobs"), {"beta": 3.0}),
    "gspo": (
        ("advantages", "logprobs", "sequence_ratio_mask"),
        {"clip_low_threshold": 0.7, "clip_high_threshold": 2.0},
    ),
    "stable_reinforce": (("advantages",), {"clip_high_threshold": 0.1, "kl_coeff": 2.0}),
}
"""Inputs that each needs, and its settings with values that change the outcome."""
NEEDED = {"dro": {"beta": 0.1}, "gspo": {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5}}
TOKENS = (5, 6, 7, 8)


def dense(tensor, values, kind="<f4"):
    tensor.dense = np.asarray(values, kind).tobytes()
    tensor.dtype = pb.DTYPE_FLOAT32 if kind == "<f4" else pb.DTYPE_INT64
    del tensor.shape[:]
    tensor.shape.append(len(values))


def request(model, loss="cross_entropy", tokens=TOKENS, **config):
    message = pb.ForwardBackwardRequest(model_id=model, loss_fn=loss, forward_only=True)
    # One sequence that has become likelier and was good, one the other way: both bounds matter.
    for advantage, logprob in ((1.5, -20.0), (-1.5, -0.1)):
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = np.asarray(tokens, "<i4").tobytes()
        inputs = datum.loss_fn_inputs
        dense(inputs["target_tokens"], [6, 7, 8, 9], "<i8")
        values = {"advantages": advantage, "logprobs": logprob, "sequence_ratio_mask": 1.0}
        for name in LOSSES.get(loss, ((), {}))[0]:
            dense(inputs[name], [values[name]] * 4)
    for name, value in {**NEEDED.get(loss, {}), **config}.items():
        message.loss_fn_config[name] = value
    return message


class Batches:
    """Sends batches to one run, in order."""

    def __init__(self, api, model):
        self.api = api
        self.model = model
        self.number = 0

    async def send(self, message):
        self.number += 1
        message.seq_id = self.number
        body = message.SerializeToString()
        return await self.api.ok("/forward_backward", content=body, headers=HEADERS)

    async def loss(self, message):
        answer = await self.api.result(await self.send(message))
        assert "metrics" in answer, answer
        return answer["metrics"]["loss:sum"]

    async def failure(self, message):
        error, category = await self.api.failure(await self.send(message))
        assert category == "user"
        return error


@pytest.fixture
async def batches(api):
    return Batches(api, await api.model())


@covers("pb.ForwardBackwardRequest.data", "pb.Datum.model_input", "pb.Chunk.encoded_text")
@covers("pb.EncodedTextChunk.tokens", "pb.Datum.loss_fn_inputs", "pb.Tensor.dense")
async def test_data(batches):
    plain = await batches.loss(request(batches.model))
    assert await batches.loss(request(batches.model)) == plain
    assert await batches.loss(request(batches.model, tokens=(9, 9, 9, 9))) != plain
    weighted = request(batches.model)
    for datum in weighted.data:
        dense(datum.loss_fn_inputs["weights"], [2.0] * 4)
    assert await batches.loss(weighted) == pytest.approx(2 * plain, rel=1e-5)
    double = request(batches.model)
    double.data.extend(request(batches.model).data)
    assert await batches.loss(double) == pytest.approx(2 * plain, rel=1e-5)
    halves = request(batches.model)
    del halves.data[0].model_input[:]
    for part in (TOKENS[:2], TOKENS[2:]):
        halves.data[0].model_input.add().encoded_text.tokens = np.asarray(part, "<i4").tobytes()
    assert await batches.loss(halves) == plain
    odd = request(batches.model)
    dense(odd.data[0].loss_fn_inputs["colour"], [1.0] * 4)
    assert "colour" in await batches.failure(odd)


@covers("pb.ForwardBackwardRequest.model_id", "pb.ForwardBackwardRequest.seq_id")
@covers("pb.ForwardBackwardRequest.forward_only")
async def test_run_place_and_direction(api, batches):
    assert "none" in await batches.failure(request("none"))
    batches.number = 0
    first = await batches.send(request(batches.model))
    batches.number = 0
    assert await batches.send(request(batches.model)) == first
    batches.number = -1
    assert "seq_id" in await batches.failure(request(batches.model))

    async def grad_norm(number):
        step = {"model_id": batches.model, "seq_id": number}
        return (await api.result(await api.ok("/optim_step", step)))["metrics"]["grad_norm"]

    assert await grad_norm(2) == 0
    backward = request(batches.model)
    backward.forward_only = False
    batches.number = 2
    await batches.loss(backward)
    assert await grad_norm(4) > 0


@covers("pb.Tensor.dtype", "pb.Tensor.shape", "pb.Tensor.sparse_csr", "pb.SparseCsr.values")
@covers("pb.SparseCsr.crow_indices", "pb.SparseCsr.col_indices")
async def test_tensors(batches):
    plain = await batches.loss(request(batches.model))
    single = request(batches.model)
    del single.data[1:]
    one = await batches.loss(single)
    whole = request(batches.model)
    tensor = whole.data[0].loss_fn_inputs["target_tokens"]
    dense(tensor, [6, 7, 8, 9], "<i8")
    tensor.dense, tensor.dtype = np.asarray([6, 7, 8, 9], "<i4").tobytes(), pb.DTYPE_INT32
    assert await batches.loss(whole) == plain
    for dtype in (0, 99):
        wrong = request(batches.model)
        wrong.data[0].loss_fn_inputs["target_tokens"].dtype = dtype
        assert "dtype" in await batches.failure(wrong)
    wrong = request(batches.model)
    wrong.data[0].loss_fn_inputs["target_tokens"].shape[0] = 5
    assert "shape" in await batches.failure(wrong)

    def sparse(columns, rows, values):
        message = request(batches.model)
        for name, kind, content in (
            ("target_tokens", "<i8", [6, 7, 8, 9]),
            ("weights", "<f4", values),
        ):
            tensor = message.data[0].loss_fn_inputs[name]
            dense(tensor, content, kind)
            del message.data[1:]
            csr = tensor.sparse_csr
            csr.values = np.asarray(content, kind).tobytes()
            csr.crow_indices = np.asarray(rows, "<i8").tobytes()
            csr.col_indices = np.asarray(columns, "<i8").tobytes()
            del tensor.shape[:]
            tensor.shape.extend([4, 2])
        return message

    first = await batches.loss(sparse([0, 0, 0, 0], [0, 1, 2, 3, 4], [1.0] * 4))
    assert first == pytest.approx(one, rel=1e-5)
    doubled = await batches.loss(sparse([0, 0, 0, 0], [0, 1, 2, 3, 4], [2.0] * 4))
    assert doubled == pytest.approx(2 * one, rel=1e-5)
    assert "col" in await batches.failure(sparse([0, 0, 0, 2], [0, 1, 2, 3, 4], [1.0] * 4))
    assert "crow" in await batches.failure(sparse([0, 0, 0, 0], [0, 1, 2, 3], [1.0] * 4))


@covers("pb.Chunk.image", "pb.Chunk.dmel", "pb.DmelChunk.dmel", "pb.ImageChunk.data")
@covers("pb.ImageChunk.expected_tokens", "pb.ImageChunk.format", "pb.ImageDimensions.height")
@covers("pb.ImageChunk.override_dimensions", "pb.ImageDimensions.width")
async def test_images_and_sound_are_refused(batches):
    image = request(batches.model)
    chunk = image.data[0].model_input.add().image
    chunk.data, chunk.format, chunk.expected_tokens = b"x", "png", 2
    chunk.override_dimensions.width = chunk.override_dimensions.height = 5
    assert "image" in await batches.failure(image)
    sound = request(batches.model)
    sound.data[0].model_input.add().dmel.dmel = b"x"
    assert "dmel" in await batches.failure(sound)


@pytest.fixture
async def recorded(api):
    """A run, and what its session recorded: (batches, prompt, the sequence's id, its tokens)."""
    session = await api.session()
    batches = Batches(api, await api.model(session))
    sampler = await api.sampler(session)
    body = sample_json(sampler, tokens=(5, 6), stop=[]) | {"record_stability_info": True}
    future = await api.ok("/asample", body)
    (sequence,) = (await api.result(future))["sequences"]
    return batches, [5, 6], future["sample_sequence_ids"][0], sequence["tokens"]


def on_policy(recorded, **config):
    """A batch of what was recorded, with its provenance."""
    batches, prompt, name, tokens = recorded
    whole = [*prompt, *tokens]
    message = request(batches.model, "stable_reinforce", whole[:-1], **config)
    del message.data[1:]
    (datum,) = message.data
    dense(datum.loss_fn_inputs["target_tokens"], whole[1:], "<i8")
    dense(datum.loss_fn_inputs["advantages"], [1.5] * (len(whole) - 1))
    for side, context, sampled in (
        (datum.model_input_spans, (0, len(prompt)), (0, len(tokens) - 1)),
        (datum.loss_fn_input_spans, (1, len(prompt) - 1), (0, len(tokens))),
    ):
        for kind, (offset, length) in (("prompt_tokens", context), ("sampled_tokens", sampled)):
            span = getattr(side.add(), kind)
            span.sequence_id, span.offset, span.length = name, offset, length
    return message


@covers("pb.Datum.model_input_spans", "pb.Datum.loss_fn_input_spans")
@covers("pb.ProvenanceSpan.prompt_tokens", "pb.ProvenanceSpan.sampled_tokens")
@covers("pb.PromptProvenanceSpan.sequence_id", "pb.SampledProvenanceSpan.sequence_id")
@covers("pb.PromptProvenanceSpan.offset", "pb.SampledProvenanceSpan.offset")
@covers("pb.PromptProvenanceSpan.length", "pb.SampledProvenanceSpan.length")
async def test_provenance(recorded):
    batches = recorded[0]
    await batches.loss(on_policy(recorded))
    for side in ("model_input_spans", "loss_fn_input_spans"):
        for place, kind in enumerate(("prompt_tokens", "sampled_tokens")):
            for name, value, word in (
                ("sequence_id", "none", "'none'"),
                ("sequence_id", "", "sequence"),
                ("offset", -1, "offset"),
                ("offset", 3, ""),
                ("length", 77, ""),
                ("length", -1, "length"),
            ):
                message = on_policy(recorded)
                setattr(getattr(getattr(message.data[0], side)[place], kind), name, value)
                assert word in await batches.failure(message), (side, kind, name, value)
        message = on_policy(recorded)
        message.data[0].ClearField(side)
        assert await batches.failure(message)
        message = on_policy(recorded)
        getattr(message.data[0], side).add()
        assert "span" in await batches.failure(message)


async def test_settings_of_stable_reinforce(recorded):
    batches = recorded[0]
    plain = await batches.loss(on_policy(recorded))
    for name, value in (("clip_high_threshold", 0.1), ("kl_coeff", 1000.0)):
        changed = await batches.loss(on_policy(recorded, **{name: value}))
        assert (changed != plain) == (name == "clip_high_threshold")  # nothing to hold back yet
        for odd in (float("nan"), float("inf")):
            assert name in await batches.failure(on_policy(recorded, **{name: odd}))
    for name in ("beta", "clip_low_threshold", "loss_id"):
        assert repr(name) in await batches.failure(on_policy(recorded, **{name: 1.0}))


@covers("pb.ForwardBackwardRequest.loss_fn", "pb.ForwardBackwardRequest.loss_fn_config")
@covers("pb.ForwardBackwardRequest.loss_fn_config_v2", "pb.LossConfigValue.number")
@covers("pb.LossConfigValue.text")
@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"stable_reinforce"}))
async def test_losses_and_their_settings(batches, loss):
    plain = await batches.loss(request(batches.model, loss))
    settings = LOSSES[loss][1]
    for name, value in settings.items():
        changed = {**NEEDED.get(loss, {}), name: value}
        if changed.get("clip_low_threshold", 0) > changed.get("clip_high_threshold", 9):
            changed["clip_high_threshold"] = changed["clip_low_threshold"] + 1
        assert await batches.loss(request(batches.model, loss, **changed)) != plain, name
        newer = request(batches.model, loss, **changed)
        newer.loss_fn_config.clear()
        for key, number in changed.items():
            newer.loss_fn_config_v2[key].number = number
        assert await batches.loss(newer) != plain
        text = request(batches.model, loss)
        text.loss_fn_config.clear()
        text.loss_fn_config_v2[name].text = "much"
        assert name in await batches.failure(text)
        for odd in (float("nan"), float("inf")):
            assert name in await batches.failure(request(batches.model, loss, **{name: odd}))
    every = {name for _, known in LOSSES.values() for name in known} | {"colour", "loss_id", ""}
    for name in every - set(settings):
        assert repr(name) in await batches.failure(request(batches.model, loss, **{name: 1.0}))


async def test_every_loss_of_the_api_is_known_and_no_other(batches):
    from tinkex.engine.training.losses import LOSSES as KNOWN

    assert set(LossFnType.__args__) == {*KNOWN, "custom"} == {*LOSSES, "custom"}
    for name in ("mse", "CROSS_ENTROPY", "", "cross_entropy "):
        assert "unknown loss_fn" in await batches.failure(request(batches.model, name))
    assert "loss_id" in await batches.failure(request(batches.model, "custom"))
