"""Given the same call, our client sends what the official SDK sent, and reads the same from it.

The peer plays the recordings back; the requests are compared as decoded values (A0.2, A8.2).
"""

from __future__ import annotations

import dataclasses
import json

import pytest
from playback import POLL, Playback, recorded_data
from recordings import load

import tinkex as tinker
from tinkex import errors
from tinkex.testing.server import PeerResponse
from tinkex.types import (
    AdamOptimizerConfig,
    AdamParams,
    ClientDynamicConfigResponse,
    DimuonOptimizerConfig,
    DimuonParams,
    ForwardBackwardOutput,
    ImageAssetPointerChunk,
    ImageChunk,
    ModelInput,
    SampleResponse,
    SamplingParams,
    TensorData,
)

STATE = "tinker://r/weights/0001"
PROMPT = ModelInput.from_ints([10, 11, 12, 13])
THREE = SamplingParams(max_tokens=3)
ONE = SamplingParams(max_tokens=1)


def plain(result):
    """Render a result as the recorder rendered the official one."""
    if isinstance(result, TensorData):
        fields = ("dtype", "shape", "data", "sparse_crow_indices", "sparse_col_indices")
        return {"TensorData": {name: getattr(result, name) for name in fields}}
    if isinstance(result, ForwardBackwardOutput):
        rows = [
            {name: plain(tensor) for name, tensor in row.items()} for row in result.loss_fn_outputs
        ]
        return {
            "loss_fn_output_type": result.loss_fn_output_type,
            "metrics": result.metrics,
            "loss_fn_outputs": rows,
        }
    if isinstance(result, SampleResponse):
        names = ("stop_reason", "sequence_id", "tokens", "logprobs", "topk_logprobs")
        alternatives = result.prompt_alt_tokens
        if alternatives is not None:
            alternatives = {
                field: plain(getattr(alternatives, field)) for field in ("tokens", "logprobs")
            }
        targets = result.target_prompt_logprobs
        return {
            "sequences": [
                {name: getattr(sequence, name) for name in names} for sequence in result.sequences
            ],
            "prompt_logprobs": result.prompt_logprobs,
            "topk_prompt_logprobs": result.topk_prompt_logprobs,
            "prompt_cache_hit_tokens": result.prompt_cache_hit_tokens,
            "target_prompt_logprobs": None if targets is None else plain(targets),
            "prompt_alt_tokens": alternatives,
        }
    return result.model_dump() if hasattr(result, "model_dump") else result


def check(player, result=None):
    """Compare what was asked, and what came of it, with the recording."""
    assert player.asked() == player.recorded()
    assert not player.left
    if result is not None:
        expected = load(player.case)["sdk_result"]
        if isinstance(expected, dict):
            (expected,) = expected.values()
        assert comparable(plain(result)) == comparable(expected)


def comparable(result):
    """Leave out what the recorder cut (rows after the second) or what only names the class."""
    if not isinstance(result, dict):
        return result
    kept = {name: v for name, v in result.items() if name not in {"n_outputs", "type"}}
    if "loss_fn_outputs" in kept:
        kept["loss_fn_outputs"] = kept["loss_fn_outputs"][:2]
    return json.loads(json.dumps(kept))


# --- training ------------------------------------------------------------------------------------

LOSSES = [
    "forward_backward_cispo",
    "forward_backward_cross_entropy",
    "forward_backward_dro",
    "forward_backward_gspo",
    "forward_backward_importance_sampling",
    "forward_backward_ppo",
    "forward_backward_provenance",
    "forward_backward_string_config",
    "image_chunk_forward_backward",
    "image_chunk_no_expected_tokens_forward_backward",
]


def recorded_config(case):
    body = load(case)["exchanges"][0]["request"]["body_decoded"]
    texts = {
        name: value["text"]
        for name, value in body["loss_fn_config_v2"].items()
        if isinstance(value, dict) and "text" in value
    }
    return body["loss_fn"], {**body["loss_fn_config"], **texts} or None


@pytest.mark.parametrize("case", LOSSES)
def test_forward_backward(case):
    loss_fn, config = recorded_config(case)
    player = Playback(case)
    with player.server, player.training() as client:
        result = client.forward_backward(recorded_data(case), loss_fn, config).result(20)
    check(player, result)


def test_forward():
    player = Playback("forward_cross_entropy")
    with player.server, player.training() as client:
        result = client.forward(recorded_data(player.case), "cross_entropy").result(20)
    check(player, result)


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("forward_backward_chunked_serial", {}),
        ("forward_backward_zstd_chunked_parallel", {"proto_compress_fwdbwd": True}),
    ],
)
def test_forward_backward_in_chunks(case, config):
    player = Playback(case, {"fwdbwd_max_chunk_len": 2, **config})
    with player.server, player.training() as client:
        result = client.forward_backward(recorded_data(case), "cross_entropy").result(20)
    check(player, result)


def squares(_, logprobs):
    loss = sum((one**2).sum() for one in logprobs)
    return loss, {"my_metric": loss.item()}


def plain_sum(_, logprobs):
    return sum(one.sum() for one in logprobs), {}


@pytest.mark.parametrize(
    ("case", "loss_fn", "config"),
    [
        ("forward_backward_custom", squares, {}),
        ("forward_backward_custom_no_weights", squares, {}),
        (
            "forward_backward_custom_chunked",
            plain_sum,
            {"fwdbwd_max_chunk_len": 2, "proto_compress_fwdbwd": True},
        ),
    ],
)
def test_forward_backward_custom(case, loss_fn, config):
    pytest.importorskip("torch")
    data = recorded_data(case, forward_only=True)
    if case.endswith("no_weights"):
        data = [
            dataclasses.replace(
                datum,
                loss_fn_inputs={"target_tokens": datum.loss_fn_inputs["target_tokens"]},
            )
            for datum in data
        ]
    player = Playback(case, config)
    with player.server, player.training() as client:
        result = client.forward_backward_custom(data, loss_fn).result(20)
    check(player, result)


@pytest.mark.parametrize(
    ("case", "params"),
    [
        ("optim_step_defaults", AdamParams()),
        (
            "optim_step_full",
            AdamParams(
                learning_rate=3e-4,
                beta1=0.8,
                beta2=0.99,
                eps=1e-8,
                weight_decay=0.01,
                grad_clip_norm=1.0,
            ),
        ),
        ("optim_step_dimuon", DimuonParams(learning_rate=1e-3)),
        ("behaviour_optim_503_429", AdamParams()),
    ],
)
def test_optim_step(case, params):
    player = Playback(case)
    with player.server, player.training() as client:
        check(player, client.optim_step(params).result(20))


CHECKPOINTS = {
    "save_state": lambda client: client.save_state("0001"),
    "save_state_full": lambda client: client.save_state(
        "0001", ttl_seconds=7200, overwrite=True, user_metadata={"a": "b"}
    ),
    "load_state": lambda client: client.load_state(STATE),
    "load_state_with_optimizer": lambda client: client.load_state_with_optimizer(
        STATE, weights_access_token="tok"
    ),
    "save_weights_for_sampler": lambda client: client.save_weights_for_sampler("s1"),
    "save_weights_for_sampler_full": lambda client: client.save_weights_for_sampler(
        "s1", ttl_seconds=3600, user_metadata={"a": "b"}
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoint(case):
    player = Playback(case)
    with player.server, player.training() as client:
        check(player, CHECKPOINTS[case](client).result(20))


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        ("save_weights_and_get_sampling_client", "snapshot"),
        ("save_weights_and_get_sampling_client_inflight", "inflight"),
    ],
)
def test_ephemeral_sampling_client(case, kind):
    player = Playback(case)
    recorded = load(case)["exchanges"]
    with player.server, player.training() as client:
        number = recorded[0]["request"]["body"]["sampling_session_seq_id"]
        client._session._samplers = iter([number])
        sampler = client.save_weights_and_get_sampling_client(kind=kind).result(20)
        assert (
            sampler.sampling_session_id == recorded[-1]["response"]["body"]["sampling_session_id"]
        )
        assert sampler.get_base_model() == "Qwen/Qwen3-8B"
    check(player)


# --- losses by handle ----------------------------------------------------------------------------


def nll(logprobs, weights):
    loss = -(logprobs * weights).sum()
    return loss, {"custom/nll:sum": loss}


RANKS = {"logprobs": 1, "weights": 1}


def test_create_custom_loss():
    pytest.importorskip("torch")
    player = Playback("create_custom_loss", {"custom_loss_server_side": True})
    with player.server, player.service("sess-9") as service:
        handle = service.create_custom_loss(nll, RANKS).result(20)
        assert service.create_custom_loss(nll, RANKS).result(20) is handle
    assert (handle.name, handle.session_id, handle.loss_id) == ("nll", "sess-9", "loss-1")
    assert [(one.name, one.rank) for one in handle.inputs] == list(RANKS.items())
    check(player)


def test_forward_backward_custom_with_a_loss_of_the_server():
    pytest.importorskip("torch")
    from tinkex.client.loss_handle import trace

    player = Playback("forward_backward_custom_loss_handle")
    handle = trace(nll, RANKS, "sess-9").uploaded("loss-1")
    with player.server, player.training() as client:
        result = client.forward_backward_custom(recorded_data(player.case), handle).result(20)
    check(player, result)


# --- clients -------------------------------------------------------------------------------------

LORA = {
    "create_model_lora_defaults": {},
    "create_model_lora_all_flags": {
        "rank": 8,
        "seed": 7,
        "train_mlp": True,
        "train_attn": False,
        "train_unembed": False,
        "user_metadata": {"run": "a"},
        "optimizer": AdamOptimizerConfig(),
    },
    "create_model_dimuon": {"optimizer": DimuonOptimizerConfig()},
    "create_model_only_train_mlp": {"rank": 4, "train_attn": False, "train_unembed": False},
    "create_model_only_train_attn": {"rank": 4, "train_mlp": False, "train_unembed": False},
    "create_model_only_train_unembed": {"rank": 4, "train_mlp": False, "train_attn": False},
}


@pytest.mark.parametrize("case", LORA)
def test_create_lora_training_client(case):
    player = Playback(case)
    body = load(case)["exchanges"][0]["request"]["body"]
    settings = {"rank": body["lora_config"]["rank"], **LORA[case]}
    with (
        player.server,
        player.service(body["session_id"], models=body["model_seq_id"]) as service,
    ):
        client = service.create_lora_training_client("Qwen/Qwen3-8B", **settings).result(20)
        assert client.model_id == f"{body['session_id']}:train:{body['model_seq_id']}"
        assert client.get_info().lora_rank == settings["rank"]
    check(player)


FROM_STATE = {
    "create_training_client_from_state": lambda service: service.create_training_client_from_state(
        STATE, user_metadata={"a": "b"}
    ),
    "create_training_client_from_state_with_optimizer": lambda service: (
        service.create_training_client_from_state_with_optimizer(
            recorded_path("create_training_client_from_state_with_optimizer"),
            base_model="Qwen/Qwen3-8B",
            weights_access_token="tok",
        )
    ),
}


def recorded_path(case):
    return load(case)["exchanges"][0]["request"]["body"]["path"]


@pytest.mark.parametrize("case", FROM_STATE)
def test_create_training_client_from_state(case):
    player = Playback(case)
    body = load(case)["exchanges"][0]["request"]["body"]
    with (
        player.server,
        player.service(body["session_id"], models=body["model_seq_id"]) as service,
    ):
        client = FROM_STATE[case](service).result(20)
        assert client.model_id == f"{body['session_id']}:train:{body['model_seq_id']}"
    check(player)


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("create_sampling_session_base_model", {"base_model": "Qwen/Qwen3-8B"}),
        ("create_sampling_session_model_path", {"model_path": "tinker://r/sampler_weights/s1"}),
    ],
)
def test_create_sampling_client(case, arguments):
    player = Playback(case)
    body = load(case)["exchanges"][0]["request"]["body"]
    with (
        player.server,
        player.service(body["session_id"], samplers=body["sampling_session_seq_id"]) as service,
    ):
        client = service.create_sampling_client(**arguments).result(20)
        assert client.get_base_model() == "Qwen/Qwen3-8B"
    check(player)


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        (
            "create_session",
            {"user_metadata": {"k": "v"}, "project_id": "proj-1", "display_name": "demo"},
        ),
        ("create_session_minimal", {}),
        ("behaviour_dynamic_config_404", {}),
    ],
)
def test_create_session(case, arguments, monkeypatch):
    player = Playback(case)
    player.server.always("/api/v1/sessions/sess/finish", None)
    monkeypatch.setenv("TINKER_TAGS", "tag-a")
    runtime = player.connection().runtime
    with player.server:
        service = tinker.ServiceClient(
            base_url=player.server.url, api_key="tml-golden", runtime=runtime, **arguments
        )
        found = service._connection.submit(service._session.id).result(20)
        service._connection.close()
    assert found == load(case)["sdk_result"]
    check(player)


def test_finish_session():
    player = Playback("session_finish")
    with player.server, player.service("sess-2") as service:
        service.close("success", detail="done").result(20)
    check(player)


def test_server_that_is_none_is_a_typed_error():
    player = Playback("behaviour_client_config_404")
    with player.server:
        connection = player.connection()
        with pytest.raises(errors.NotFoundError, match="no Tinker API"):
            connection.submit(connection.server).result(20)
        connection.close()
    check(player)


# --- sampling ------------------------------------------------------------------------------------


def recorded_prompt(case):
    body = load(case)["exchanges"][0]["request"]["body"]
    return ModelInput.model_validate(body["prompt"])


SAMPLES = {
    "sample_minimal": (1, THREE, {}),
    "sample_default_params": (1, SamplingParams(), {}),
    "sample_full_params": (
        3,
        SamplingParams(max_tokens=3, seed=5, stop=None, temperature=0.0, top_k=50, top_p=0.9),
        {},
    ),
    "sample_prompt_logprobs_false": (1, THREE, {"include_prompt_logprobs": False}),
    "sample_prompt_logprobs_true": (1, THREE, {"include_prompt_logprobs": True}),
    "sample_prompt_logprobs_none": (1, THREE, {"include_prompt_logprobs": None}),
    "sample_prompt_logprobs_last_n": (
        1,
        ONE,
        {"include_prompt_logprobs": True, "prompt_logprobs_last_n": 2},
    ),
    "sample_topk_prompt_logprobs": (
        1,
        THREE,
        {"include_prompt_logprobs": True, "topk_prompt_logprobs": 2},
    ),
    "sample_topk_sample_logprobs": (1, THREE, {"topk_sample_logprobs": 2}),
    "sample_prompt_alt_tokens_k": (1, ONE, {"prompt_alt_tokens_k": 2}),
    "sample_stop_empty": (1, SamplingParams(max_tokens=3, stop=[]), {}),
    "sample_stop_list_int": (1, SamplingParams(max_tokens=3, stop=[151645]), {}),
    "sample_stop_list_str": (1, SamplingParams(max_tokens=3, stop=["A", "B"]), {}),
    "sample_stop_str": (1, SamplingParams(max_tokens=3, stop="END"), {}),
    "sample_image_chunk": (1, THREE, {}),
    "sample_image_chunk_no_expected": (1, THREE, {}),
    "sample_image_asset_pointer": (1, THREE, {}),
    "behaviour_asample_429": (1, ONE, {}),
    "behaviour_asample_500": (1, ONE, {}),
    "behaviour_metadata_only": (1, ONE, {}),
    "behaviour_retrieve_408": (1, ONE, {}),
    "behaviour_retrieve_410_sampling": (1, ONE, {}),
    "behaviour_retrieve_429": (1, ONE, {}),
    "behaviour_retrieve_503": (1, ONE, {}),
    "behaviour_try_again": (1, ONE, {}),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_sample(case):
    count, params, arguments = SAMPLES[case]
    player = Playback(case)
    with player.server, player.sampling() as client:
        result = client.sample(recorded_prompt(case), count, params, **arguments).result(20)
    check(player, result)


@pytest.mark.parametrize(
    "case", ["sample_target_prompt_logprobs_dense", "sample_target_prompt_logprobs_sparse"]
)
def test_sample_with_target_logprobs(case):
    targets = TensorData(**load(case)["exchanges"][0]["request"]["body"]["target_prompt_logprobs"])
    player = Playback(case)
    with player.server, player.sampling() as client:
        result = client.sample(
            recorded_prompt(case), 1, ONE, target_prompt_logprobs=targets
        ).result(20)
    check(player, result)


@pytest.mark.parametrize(
    ("case", "last_n"), [("compute_logprobs", None), ("compute_logprobs_last_n", 2)]
)
def test_compute_logprobs(case, last_n):
    player = Playback(case)
    with player.server, player.sampling() as client:
        result = client.compute_logprobs(recorded_prompt(case), last_n).result(20)
    assert result == load(case)["sdk_result"]
    check(player)


def test_chunks_of_a_recorded_prompt_are_the_classes_users_write():
    (chunk,) = {
        type(chunk)
        for chunk in recorded_prompt("sample_image_chunk").chunks
        if isinstance(chunk, ImageChunk)
    }
    assert chunk is ImageChunk
    pointers = recorded_prompt("sample_image_asset_pointer").chunks
    assert any(isinstance(pointer, ImageAssetPointerChunk) for pointer in pointers)


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("category", ["user", "server", "unknown"])
def test_failed_request_has_its_category(category):
    player = Playback(f"behaviour_request_failed_{category}")
    with (
        player.server,
        player.sampling() as client,
        pytest.raises(errors.RequestFailedError, match="boom") as caught,
    ):
        client.sample(recorded_prompt(player.case), 1, ONE).result(20)
    assert caught.value.category == category
    check(player)


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("behaviour_retrieve_400_x4", errors.BadRequestError),
        ("behaviour_retrieve_404", errors.NotFoundError),
        ("behaviour_json_sample_response", errors.APIResponseValidationError),
    ],
)
def test_sample_that_cannot_be_fetched(case, error):
    player = Playback(case)
    with player.server, player.sampling() as client, pytest.raises(error):
        client.sample(recorded_prompt(case), 1, ONE).result(20)
    check(player)


@pytest.mark.parametrize(
    ("case", "error", "call"),
    [
        (
            "behaviour_fb_415",
            errors.APIStatusError,
            lambda client: client.forward_backward(
                recorded_data("behaviour_fb_415"), "cross_entropy"
            ),
        ),
        (
            "behaviour_json_fb_response",
            errors.APIResponseValidationError,
            lambda client: client.forward_backward(
                recorded_data("behaviour_json_fb_response"), "cross_entropy"
            ),
        ),
        (
            "behaviour_optim_400",
            errors.BadRequestError,
            lambda client: client.optim_step(AdamParams()),
        ),
        (
            "behaviour_retrieve_410_training",
            errors.FutureExpiredError,
            lambda client: client.optim_step(AdamParams()),
        ),
    ],
)
def test_training_call_that_fails(case, error, call):
    player = Playback(case)
    with player.server, player.training() as client, pytest.raises(error):
        call(client).result(20)
    check(player)


# --- sampling, many at once ----------------------------------------------------------------------


def test_results_of_a_sampling_session_are_asked_for_together():
    player = Playback("retrieve_futures_batched", {"sample_use_retrieve_futures": True})
    empty = without_the_empty_question(player)
    with player.server, player.sampling() as client:
        result = client.sample(PROMPT, 1, ONE).result(20)
        player.server.wait_for("/api/v1/retrieve_futures", 2)  # the second one tells
    assert result.sequences[0].tokens == [100]
    assert player.asked() == empty


def test_unpickled_client_joins_the_sampling_session():
    config = {"sample_use_retrieve_futures": True, "sample_join_sampling_session": True}
    player = Playback("join_sampling_session", config)
    empty = without_the_empty_question(player)
    with player.server, player.clone(None) as client:
        result = client.sample(PROMPT, 1, ONE).result(20)
        player.server.wait_for("/api/v1/retrieve_futures", 2)  # the second one tells
    check_equal = load(player.case)["sdk_result"]["SampleResponse"]
    assert comparable(plain(result)) == comparable(check_equal)
    assert player.asked() == empty


def without_the_empty_question(player):
    """What was recorded, less the official client's question that tells and asks nothing."""
    exchanges = [e for e in player.left if not _tells_and_asks_nothing(e.request.get("body") or {})]
    assert len(exchanges) == len(player.left) - 1
    player.left = exchanges
    recorded = player.recorded()
    kept = [one for one in recorded if not _tells_and_asks_nothing(json.loads(one[3]) or {})]
    assert len(kept) == len(recorded) - 1
    return kept


def _tells_and_asks_nothing(body):
    return body.get("timeout") == 0.0 and body.get("retrieved_request_ids") == []


def test_unpickled_client_numbers_its_requests_apart():
    player = Playback("sample_from_unpickled_client")
    with player.server, player.clone(964041541) as client:
        check(player, client.sample(PROMPT, 1, ONE).result(20))


def test_cancelled_sample_is_cancelled_on_the_server():
    player = Playback("cancel_future")
    with player.server, player.sampling() as client:
        client._connection.dynamic = ClientDynamicConfigResponse(sample_cancel_enabled=True)
        waiting = {"type": "try_again", "request_id": "x", "queue_state": "active"}
        player.otherwise[POLL] = PeerResponse.of_json(waiting)
        future = client.sample(PROMPT, 1, ONE)
        player.server.wait_for(POLL, 3)
        future.cancel()
        player.server.wait_for("/api/v1/cancel_future", 1)
    asked, recorded = (
        [one for one in found if one[1] != POLL] for found in (player.asked(), player.recorded())
    )
    assert asked == recorded
