"""The calls behind the recordings, written for the official SDK.

Each function gets a `Stage` and returns what the official package returned; `CASES` names them.
The data of a call come from its recording, so that a new recording differs only where the SDK does.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import zstandard

from tinkex.wire import proto

if TYPE_CHECKING:
    from collections.abc import Callable

    from wire_peer import Peer

KEY = "tml-fixture-key"
BASE = "Qwen/Qwen3-8B"
RUN = "sess-1:train:0"
CHECKPOINT = f"tinker://{RUN}/weights/0001"
STATE = "tinker://r/weights/0001"
PATIENCE_S = 15.0


def finished(value: Any) -> Any:
    """Wait for a value that may be a future."""
    return value.result(PATIENCE_S) if hasattr(value, "result") else value


class Stage:
    """Clients of the official package, set up to speak to the peer of one case."""

    def __init__(self, tinker: Any, peer: Peer) -> None:
        self.tinker = tinker
        self.peer = peer
        self.key = KEY

    @functools.cached_property
    def service(self) -> Any:
        """A service client."""
        return self.tinker.ServiceClient(base_url=self.peer.url, api_key=self.key)

    @functools.cached_property
    def training(self) -> Any:
        """A training client, its model made by the peer's set-up."""
        return finished(self.service.create_lora_training_client(BASE))

    @functools.cached_property
    def sampling(self) -> Any:
        """A sampling client of the base model."""
        return finished(self.service.create_sampling_client(base_model=BASE))

    @functools.cached_property
    def rest(self) -> Any:
        """A client without a session."""
        return self.tinker.RestClient(base_url=self.peer.url, api_key=self.key)

    @functools.cached_property
    def admin(self) -> Any:
        """A client of the account's calls."""
        return self.tinker.AdminClient(base_url=self.peer.url, api_key=self.key)

    @property
    def body(self) -> dict[str, Any]:
        """The first recorded JSON request."""
        body: dict[str, Any] = self.peer.recording["exchanges"][0]["request"]["body"]
        return body

    @property
    def prompt(self) -> Any:
        """The recorded prompt."""
        return self.tinker.ModelInput.model_validate(self.body["prompt"])

    def data(self, *, forward_only: bool = False) -> list[Any]:
        """The recorded data, as the official package's types, in the order of the call."""
        bodies = []
        for exchange in self.peer.recording["exchanges"]:
            if "protobuf" in exchange["request"]["body_kind"]:
                raw = base64.b64decode(exchange["request"]["body_raw_base64"])
                if "Content-Encoding" in exchange["request"]["headers"]:
                    raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
                bodies.append(proto.decode_forward_backward_request(raw))
        return [
            self.datum(datum)
            for request in sorted(bodies, key=lambda request: request.seq_id or 0)
            if request.forward_only or not forward_only
            for datum in request.forward_backward_input.data
        ]

    def datum(self, datum: Any) -> Any:
        """Rebuild one of our data with the official types."""
        t = self.tinker
        chunks = []
        for chunk in datum.model_input.chunks:
            if chunk.type == "encoded_text":
                chunks.append(t.EncodedTextChunk(tokens=list(map(int, chunk.tokens))))
            else:
                chunks.append(
                    t.types.ImageChunk(
                        data=chunk.data,
                        format=chunk.format,
                        expected_tokens=chunk.expected_tokens,
                    )
                )
        inputs = {
            name: t.TensorData(
                data=tensor.data,
                dtype=tensor.dtype,
                shape=tensor.shape,
                sparse_crow_indices=tensor.sparse_crow_indices,
                sparse_col_indices=tensor.sparse_col_indices,
            )
            for name, tensor in datum.loss_fn_inputs.items()
        }
        return t.Datum(model_input=t.ModelInput(chunks=chunks), loss_fn_inputs=inputs)

    def five_data(self) -> list[Any]:
        """Texts of three to seven tokens: three chunks of at most two."""
        t = self.tinker
        return [
            t.Datum(
                model_input=t.ModelInput.from_ints(list(range(1, length + 1))),
                loss_fn_inputs={
                    "target_tokens": list(range(2, length + 2)),
                    "weights": [1.0] * length,
                },
            )
            for length in range(3, 8)
        ]

    def sample(self, count: int = 1, max_tokens: int | None = 3, **arguments: Any) -> Any:
        """Sample from the recorded prompt."""
        params = arguments.pop("params", None) or self.tinker.SamplingParams(max_tokens=max_tokens)
        return self.sampling.sample(self.prompt, count, params, **arguments)

    def short_sample(self) -> Any:
        """The sample of the recordings that are about what a server answers."""
        prompt = self.tinker.ModelInput.from_ints([10, 11, 12, 13])
        params = self.tinker.SamplingParams(max_tokens=1)
        return self.sampling.sample(prompt, 1, params)

    def forward_backward(self) -> Any:
        """The recorded call: its data, and its settings as they were sent."""
        body = self.peer.recording["exchanges"][0]["request"]["body_decoded"]
        config = dict(body["loss_fn_config"])
        for name, value in body["loss_fn_config_v2"].items():
            if isinstance(value, dict) and "text" in value:
                config[name] = value["text"]
        return self.training.forward_backward(self.data(), body["loss_fn"], config or None)

    def tensor(self, value: Any) -> Any:
        """One datum with a tensor under `target_tokens`."""
        datum = self.tinker.Datum(
            model_input=self.tinker.ModelInput.from_ints([1, 2, 3]),
            loss_fn_inputs={"target_tokens": value},
        )
        return self.training.forward_backward([datum], "cross_entropy")


@dataclass(frozen=True)
class Case:
    """One call, and what the server of the recording said of itself."""

    run: Callable[[Stage], Any]
    config: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Case] = {}


def case(
    *names: str, config: dict[str, Any] | None = None
) -> Callable[[Callable[[Stage], Any]], Callable[[Stage], Any]]:
    """Register a function as one or more cases."""

    def register(run: Callable[[Stage], Any]) -> Callable[[Stage], Any]:
        for name in names:
            CASES[name] = Case(run, config or {})
        return run

    return register


def table(rows: dict[str, Callable[[Stage], Any]]) -> None:
    """Register short cases."""
    for name, run in rows.items():
        CASES[name] = Case(run)


def _on(client: str, calls: dict[str, Callable[[Any], Any]]) -> None:
    """Register calls of one client of the stage."""
    for name, call in calls.items():
        CASES[name] = Case(lambda s, call=call: call(getattr(s, client)))  # type: ignore[misc]


# --- sessions ------------------------------------------------------------------------------------


@case("create_session")
def create_session(stage: Stage) -> Any:
    service = stage.tinker.ServiceClient(
        user_metadata={"k": "v"},
        project_id="proj-1",
        display_name="demo",
        base_url=stage.peer.url,
        api_key=stage.key,
    )
    return service.holder.get_session_id()


@case("create_session_minimal", "behaviour_client_config_404", "behaviour_dynamic_config_404")
def create_session_minimal(stage: Stage) -> Any:
    return stage.service.holder.get_session_id()


@case("session_finish")
def session_finish(stage: Stage) -> Any:
    stage.service.holder.get_session_id()
    return stage.service.close("success", detail="done")


@case("session_heartbeat")
def session_heartbeat(stage: Stage) -> Any:
    stage.service.holder.get_session_id()
    stage.peer.wait_until_played(PATIENCE_S)


@case("auth_jwt_exchange", config={"pjwt_auth_enabled": True})
def auth_jwt_exchange(stage: Stage) -> Any:
    stage.key = "tml-jwt-key"
    stage.service.holder.get_session_id()
    return stage.rest.whoami()


# --- clients -------------------------------------------------------------------------------------


@case(
    "create_model_lora_all_flags",
    "create_model_only_train_mlp",
    "create_model_only_train_attn",
    "create_model_only_train_unembed",
)
def create_model(stage: Stage) -> Any:
    lora = stage.body["lora_config"]
    flags = {name: lora[name] for name in lora if name.startswith("train_")}
    if "seed" in lora:
        flags |= {"seed": lora["seed"], "user_metadata": stage.body["user_metadata"]}
        flags["optimizer"] = stage.tinker.types.AdamOptimizerConfig()
    return stage.service.create_lora_training_client(BASE, rank=lora["rank"], **flags)


table(
    {
        "create_model_lora_defaults": lambda s: s.service.create_lora_training_client(BASE),
        "create_model_dimuon": lambda s: s.service.create_lora_training_client(
            BASE, rank=4, optimizer=s.tinker.types.DimuonOptimizerConfig()
        ),
        "create_model_no_train_flags": lambda s: s.service.create_lora_training_client(
            BASE, train_mlp=False, train_attn=False, train_unembed=False
        ),
        "create_training_client_from_state": lambda s: s.service.create_training_client_from_state(
            STATE, user_metadata={"a": "b"}
        ),
        "create_training_client_from_state_with_optimizer": lambda s: (
            s.service.create_training_client_from_state_with_optimizer(
                s.body["path"], base_model=BASE, weights_access_token="tok"
            )
        ),
        "create_sampling_session_base_model": lambda s: s.service.create_sampling_client(
            base_model=BASE
        ),
        "create_sampling_session_model_path": lambda s: s.service.create_sampling_client(
            model_path="tinker://r/sampler_weights/s1"
        ),
        "create_sampling_session_bad_path": lambda s: s.service.create_sampling_client(
            model_path="/local/x"
        ),
        "get_info": lambda s: s.training.get_info(),
    }
)


# --- training ------------------------------------------------------------------------------------

table(
    dict.fromkeys(
        (
            "forward_backward_cispo",
            "forward_backward_cross_entropy",
            "forward_backward_dro",
            "forward_backward_gspo",
            "forward_backward_importance_sampling",
            "forward_backward_ppo",
            "forward_backward_string_config",
            "image_chunk_forward_backward",
            "image_chunk_no_expected_tokens_forward_backward",
        ),
        Stage.forward_backward,
    )
)
CASES["forward_backward_chunked_serial"] = Case(
    Stage.forward_backward, {"fwdbwd_max_chunk_len": 2, "parallel_fwdbwd_chunks": False}
)
CASES["forward_backward_zstd_chunked_parallel"] = Case(
    Stage.forward_backward,
    {"fwdbwd_max_chunk_len": 2, "parallel_fwdbwd_chunks": True, "proto_compress_fwdbwd": True},
)


@case("forward_backward_provenance")
def provenance(stage: Stage) -> Any:
    t = stage.tinker
    (datum,) = stage.data()
    spans = [
        [
            t.PromptProvenanceSpan(sequence_id="s:0:0", offset=0, length=prompt),
            t.SampledProvenanceSpan(sequence_id="s:0:0", offset=0, length=4 - prompt),
        ]
        for prompt in (2, 1)
    ]
    marked = datum.with_provenance(*spans)
    return stage.training.forward_backward([marked], "stable_reinforce")


def squares(_: Any, logprobs: Any) -> Any:
    loss = sum((one**2).sum() for one in logprobs)
    return loss, {"my_metric": loss.item()}


def plain_sum(_: Any, logprobs: Any) -> Any:
    return sum(one.sum() for one in logprobs), {}


def nll(logprobs: Any, weights: Any) -> Any:
    loss = -(logprobs * weights).sum()
    return loss, {"custom/nll:sum": loss}


def _custom(stage: Stage, data: list[Any], loss: Any) -> Any:
    return stage.training.forward_backward_custom(data, loss)


@case("forward_backward_custom_no_weights")
def custom_without_weights(stage: Stage) -> Any:
    data = stage.data(forward_only=True)
    for datum in data:
        del datum.loss_fn_inputs["weights"]
    return _custom(stage, data, squares)


CASES["forward_backward_custom"] = Case(lambda s: _custom(s, s.data(forward_only=True), squares))
CASES["forward_backward_custom_chunked"] = Case(
    lambda s: _custom(s, s.data(forward_only=True), plain_sum),
    {"fwdbwd_max_chunk_len": 2, "parallel_fwdbwd_chunks": True, "proto_compress_fwdbwd": True},
)
RANKS = {"logprobs": 1, "weights": 1}
CASES["create_custom_loss"] = Case(
    lambda s: s.service.create_custom_loss(nll, input_ranks=RANKS),
    {"custom_loss_server_side": True},
)


@case("forward_backward_custom_loss_handle", config={"custom_loss_server_side": True})
def custom_by_handle(stage: Stage) -> Any:
    stage.peer.also["/create_custom_loss"] = {"request_id": "loss"}
    stage.peer.futures["loss"] = {"loss_id": "loss-1", "type": "create_custom_loss"}
    handle = finished(stage.service.create_custom_loss(nll, input_ranks=RANKS))
    return _custom(stage, stage.data(), handle)


def _optim(stage: Stage, **settings: Any) -> Any:
    return stage.training.optim_step(stage.tinker.AdamParams(**settings))


FULL_ADAM = {
    "learning_rate": 3e-4,
    "beta1": 0.8,
    "beta2": 0.99,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "grad_clip_norm": 1.0,
}
PATHS: dict[str, Callable[[Any], Any]] = {
    "save_state": lambda t: t.save_state("0001"),
    "save_state_full": lambda t: t.save_state(
        "0001", ttl_seconds=7200, overwrite=True, user_metadata={"a": "b"}
    ),
    "load_state": lambda t: t.load_state(STATE),
    "load_state_with_optimizer": lambda t: t.load_state_with_optimizer(
        STATE, weights_access_token="tok"
    ),
    "save_weights_for_sampler": lambda t: t.save_weights_for_sampler("s1"),
    "save_weights_for_sampler_full": lambda t: t.save_weights_for_sampler(
        "s1", ttl_seconds=3600, user_metadata={"a": "b"}
    ),
    "save_weights_external": lambda t: t.save_weights_external("e1", ttl_seconds=3600),
}
_on("training", PATHS)
table(
    {
        "forward_cross_entropy": lambda s: s.training.forward(s.data(), "cross_entropy").result(
            PATIENCE_S
        ),
        "forward_backward_empty_data": lambda s: s.training.forward_backward([], "cross_entropy"),
        "optim_step_defaults": _optim,
        "optim_step_full": lambda s: _optim(s, **FULL_ADAM),
        "optim_step_dimuon": lambda s: s.training.optim_step(
            s.tinker.types.DimuonParams(learning_rate=1e-3)
        ),
        "optim_step_no_params": lambda s: s.training.optim_step(),
        "save_weights_and_get_sampling_client": lambda s: (
            s.training.save_weights_and_get_sampling_client()
        ),
        "save_weights_and_get_sampling_client_inflight": lambda s: (
            s.training.save_weights_and_get_sampling_client(kind="inflight")
        ),
        "behaviour_optim_400": _optim,
        "behaviour_optim_503_429": _optim,
        "behaviour_retrieve_410_training": _optim,
        "behaviour_fb_415": Stage.forward_backward,
        "behaviour_json_fb_response": Stage.forward_backward,
    }
)


@case("image_asset_pointer_forward_backward")
def image_asset_pointer(stage: Stage) -> Any:
    t = stage.tinker
    pointer = t.types.ImageAssetPointerChunk(
        location="tinker://x/y.png", format="png", expected_tokens=5
    )
    datum = t.Datum(
        model_input=t.ModelInput(chunks=[pointer, t.EncodedTextChunk(tokens=[1])]),
        loss_fn_inputs={"target_tokens": [1] * 6, "weights": [1.0] * 6},
    )
    return stage.training.forward_backward([datum], "cross_entropy")


CHUNKED = {"fwdbwd_max_chunk_len": 2, "parallel_fwdbwd_chunks": True}


@case("behaviour_multi_chunk_submit_400", config=CHUNKED)
def a_chunk_is_refused(stage: Stage) -> Any:
    stage.peer.first_seq_id = 2  # the first chunk goes last, so never
    return stage.training.forward_backward(stage.five_data(), "cross_entropy")


@case("behaviour_after_multi_chunk_400", config=CHUNKED)
def a_step_after_a_refused_chunk(stage: Stage) -> Any:
    stage.peer.refused = "/forward_backward"
    try:
        finished(stage.training.forward_backward(stage.five_data(), "cross_entropy"))
    except stage.tinker.BadRequestError:
        return stage.training.optim_step(stage.tinker.AdamParams()).result(5)
    raise AssertionError("the refused chunk went unseen")


# --- tensors -------------------------------------------------------------------------------------


def _torch(values: Any, dtype: str) -> Any:
    import torch

    return torch.tensor(values, dtype=getattr(torch, dtype))


for kind in ("float16", "float32", "float64"):
    value = np.array([1.5, 2.5, 3.5], kind)
    CASES[f"tensor_numpy_{kind}"] = Case(lambda s, value=value: s.tensor(value))  # type: ignore[misc]
for kind in ("bool", "int32", "int64", "uint8"):
    value = np.array([1, 2, 3], kind)
    CASES[f"tensor_numpy_{kind}"] = Case(lambda s, value=value: s.tensor(value))  # type: ignore[misc]
for kind in ("bfloat16", "bool", "float32", "float64", "int32", "int64", "uint8"):
    CASES[f"tensor_torch_{kind}"] = Case(
        lambda s, kind=kind: s.tensor(_torch([1, 2, 3], kind))  # type: ignore[misc]
    )
table(
    {
        "tensor_numpy_int64_2d": lambda s: s.tensor(np.array([[1, 2], [3, 0], [5, 6]])),
        "tensor_torch_2d_dense": lambda s: s.tensor(_torch([[1, 2], [3, 4], [5, 6]], "int64")),
        "tensor_torch_2d_sparse_auto": lambda s: s.tensor(
            _torch([[0, 0, 0, 0, 9, 0], [0] * 6, [0, 3, 0, 0, 0, 0]], "int64")
        ),
        "tensor_explicit_sparse_csr": lambda s: s.tensor(
            s.tinker.TensorData(
                data=[7, 8],
                dtype="int64",
                shape=[3, 4],
                sparse_crow_indices=[0, 1, 1, 2],
                sparse_col_indices=[2, 0],
            )
        ),
        "tensor_python_list_float_in_target_tokens": lambda s: s.tensor([1.0, 2.9, 3.0]),
        "tensor_python_list_unknown_key": lambda s: s.tinker.Datum(
            model_input=s.tinker.ModelInput.from_ints([1, 2]), loss_fn_inputs={"foo": [1, 2]}
        ),
    }
)


# --- sampling ------------------------------------------------------------------------------------


def _params(stage: Stage, **settings: Any) -> Any:
    return stage.tinker.SamplingParams(**settings)


def _targets(stage: Stage) -> Any:
    return stage.tinker.TensorData(**stage.body["target_prompt_logprobs"])


table(
    {
        "sample_minimal": lambda s: s.sample(),
        "sample_default_params": lambda s: s.sample(params=_params(s)),
        "sample_full_params": lambda s: s.sample(
            3,
            params=_params(
                s, max_tokens=3, seed=5, stop=None, temperature=0.0, top_k=50, top_p=0.9
            ),
        ),
        "sample_prompt_logprobs_false": lambda s: s.sample(include_prompt_logprobs=False),
        "sample_prompt_logprobs_true": lambda s: s.sample(include_prompt_logprobs=True),
        "sample_prompt_logprobs_none": lambda s: s.sample(include_prompt_logprobs=None),
        "sample_prompt_logprobs_last_n": lambda s: s.sample(
            max_tokens=1, include_prompt_logprobs=True, prompt_logprobs_last_n=2
        ),
        "sample_topk_prompt_logprobs": lambda s: s.sample(
            include_prompt_logprobs=True, topk_prompt_logprobs=2
        ),
        "sample_topk_sample_logprobs": lambda s: s.sample(topk_sample_logprobs=2),
        "sample_prompt_alt_tokens_k": lambda s: s.sample(max_tokens=1, prompt_alt_tokens_k=2),
        "sample_stop_empty": lambda s: s.sample(params=_params(s, max_tokens=3, stop=[])),
        "sample_stop_list_int": lambda s: s.sample(params=_params(s, max_tokens=3, stop=[151645])),
        "sample_stop_list_str": lambda s: s.sample(
            params=_params(s, max_tokens=3, stop=["A", "B"])
        ),
        "sample_stop_str": lambda s: s.sample(params=_params(s, max_tokens=3, stop="END")),
        "sample_image_chunk": lambda s: s.sample(),
        "sample_image_chunk_no_expected": lambda s: s.sample(),
        "sample_image_asset_pointer": lambda s: s.sample(),
        "sample_target_prompt_logprobs_dense": lambda s: s.sample(
            max_tokens=1, target_prompt_logprobs=_targets(s)
        ),
        "sample_target_prompt_logprobs_sparse": lambda s: s.sample(
            max_tokens=1, target_prompt_logprobs=_targets(s)
        ),
        "compute_logprobs": lambda s: s.sampling.compute_logprobs(s.prompt),
        "compute_logprobs_last_n": lambda s: s.sampling.compute_logprobs(
            s.prompt, prompt_logprobs_last_n=2
        ),
    }
)
table(
    {
        f"behaviour_{name}": Stage.short_sample
        for name in (
            "asample_429",
            "asample_500",
            "json_sample_response",
            "metadata_only",
            "request_failed_server",
            "request_failed_unknown",
            "request_failed_user",
            "retrieve_400_x4",
            "retrieve_404",
            "retrieve_408",
            "retrieve_410_sampling",
            "retrieve_429",
            "retrieve_503",
            "try_again",
        )
    }
)


@case("sample_record_stability_info")
def stability(stage: Stage) -> Any:
    sampling = finished(
        stage.service.create_sampling_client(base_model=BASE, record_stability_info=True)
    )
    prompt = stage.tinker.ModelInput.from_ints([10, 11, 12, 13])
    return sampling.sample(prompt, 1, _params(stage, max_tokens=1))


def _clone(stage: Stage) -> Any:
    return pickle.loads(pickle.dumps(stage.sampling))


def _short(stage: Stage, sampling: Any) -> Any:
    prompt = stage.tinker.ModelInput.from_ints([10, 11, 12, 13])
    return sampling.sample(prompt, 1, _params(stage, max_tokens=1))


CASES["sample_from_unpickled_client"] = Case(lambda s: _short(s, _clone(s)))


@case(
    "join_sampling_session",
    config={"sample_use_retrieve_futures": True, "sample_join_sampling_session": True},
)
def joined(stage: Stage) -> Any:
    result = finished(_short(stage, _clone(stage)))
    stage.peer.wait_until_played(PATIENCE_S)
    return result


@case("retrieve_futures_batched", config={"sample_use_retrieve_futures": True})
def batched(stage: Stage) -> Any:
    finished(_short(stage, stage.sampling))
    stage.peer.wait_until_played(PATIENCE_S)


@case("cancel_future")
def cancelled(stage: Stage) -> Any:
    stage.peer.dynamic = {"sample_cancel_enabled": True}
    stage.sampling  # noqa: B018 - made before its requests are counted
    prompt = stage.tinker.ModelInput.from_ints([10, 11, 12, 13])
    future = stage.sampling.sample(prompt, 1, _params(stage, max_tokens=1))
    stage.peer.wait_until_played(PATIENCE_S, but=1)
    # cancelled as an answer arrives, the SDK may lose the cancellation and poll on
    assert stage.peer.waited_for.wait(PATIENCE_S)
    future.cancel()
    stage.peer.wait_until_played(PATIENCE_S)


# --- REST ----------------------------------------------------------------------------------------

REST: dict[str, Callable[[Any], Any]] = {
    "rest_client_construct_and_capabilities": lambda r: r.get_server_capabilities(),
    "get_server_capabilities": lambda r: r.get_server_capabilities(),
    "rest_get_training_run": lambda r: r.get_training_run(RUN),
    "rest_get_training_run_by_tinker_path": lambda r: r.get_training_run_by_tinker_path(CHECKPOINT),
    "rest_get_weights_info": lambda r: r.get_weights_info_by_tinker_path(CHECKPOINT),
    "rest_list_training_runs": lambda r: r.list_training_runs(),
    "rest_list_training_runs_paged": lambda r: r.list_training_runs(
        limit=5, offset=10, access_scope="accessible", project_id="p"
    ),
    "rest_list_checkpoints": lambda r: r.list_checkpoints(RUN),
    "rest_list_user_checkpoints": lambda r: r.list_user_checkpoints(),
    "rest_delete_checkpoint": lambda r: r.delete_checkpoint_from_tinker_path(CHECKPOINT),
    "rest_publish": lambda r: r.publish_checkpoint_from_tinker_path(CHECKPOINT),
    "rest_unpublish": lambda r: r.unpublish_checkpoint_from_tinker_path(CHECKPOINT),
    "rest_set_ttl": lambda r: r.set_checkpoint_ttl_from_tinker_path(CHECKPOINT, 86400),
    "rest_remove_ttl": lambda r: r.set_checkpoint_ttl_from_tinker_path(CHECKPOINT, None),
    "rest_copy_weights": lambda r: r.copy_weights(
        CHECKPOINT, "proj-2", ttl_seconds=3600, weights_access_token="tok"
    ),
    "rest_external_weights_urls": lambda r: r.get_external_weights_urls(
        f"tinker://{RUN}/external_weights/e1"
    ),
    "rest_get_session": lambda r: r.get_session("sess-1"),
    "rest_list_sessions": lambda r: r.list_sessions(),
    "rest_assign_session_project": lambda r: r.assign_session_project("sess-1", "proj-2"),
    "rest_export_session_trace": lambda r: r.export_session_trace("sess-1"),
    "rest_get_sampler": lambda r: r.get_sampler("sess-1:sample:0"),
    "rest_whoami_without_jwt": lambda r: r.whoami(),
}
ADMIN: dict[str, Callable[[Any], Any]] = {
    "admin_audit_log": lambda a: a.get_audit_log(),
    "admin_billing_usage": lambda a: a.get_billing_usage(
        dt.datetime(2026, 7, 13, tzinfo=dt.UTC),
        dt.datetime(2026, 7, 14, tzinfo=dt.UTC),
    ),
    "admin_checkpoint_storage": lambda a: a.get_current_checkpoint_storage_usage("p"),
}


_on("rest", REST)
_on("admin", ADMIN)
CASES["rest_search_sessions"] = Case(
    lambda s: s.rest.search_sessions(s.tinker.types.SessionSearchRequest())
)


# --- what no public call sends -------------------------------------------------------------------


def _low_level(stage: Stage, call: Callable[[Any], Any]) -> Any:
    """Call one of the SDK's resources itself, for bodies that only its older clients send."""
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

    holder = stage.service.holder

    async def ask() -> Any:
        with holder.aclient(ClientConnectionPoolType.TRAIN) as client:
            return await call(client)

    return holder.run_coroutine_threadsafe(ask())


def _older_sample(stage: Stage, **address: str) -> Any:
    request = stage.tinker.types.SampleRequest(
        num_samples=1,
        prompt=stage.tinker.ModelInput.from_ints([10, 11, 12, 13]),
        sampling_params=_params(stage, max_tokens=1),
        seq_id=0,
        **address,
    )
    return _low_level(stage, lambda client: client.sampling.asample(request=request))


def _own_key(stage: Stage, method: str) -> Any:
    from tinker.cli.auth_api import TinkerAuthApi

    with httpx.Client() as http:
        return getattr(TinkerAuthApi(http, base_url=stage.peer.url), method)(stage.key)


table(
    {
        "healthz": lambda s: _low_level(s, lambda client: client.service.health_check()),
        "sample_by_base_model": lambda s: _older_sample(s, base_model=BASE),
        "sample_by_model_path": lambda s: _older_sample(
            s, model_path="tinker://r/sampler_weights/s1"
        ),
        "auth_own_key": lambda s: _own_key(s, "get_self_api_key"),
        "auth_delete_own_key": lambda s: _own_key(s, "delete_self_api_key"),
    }
)

NOT_DRIVEN = {
    "telemetry": "events of a background task, each with its own time and id",
    "unload_model": "a pair of types that no method of the SDK sends",
}
