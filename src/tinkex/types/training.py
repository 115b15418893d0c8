"""Training: creating an adapter, forward and backward, the optimiser's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tinkex.types._model import Bool, Int, NotBoolean, WireRequest, WireResponse, absent
from tinkex.types.datum import Datum
from tinkex.types.tensor_data import TensorData

ModelID = str

LossFnType = Literal[
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "dro",
    "gspo",
    "stable_reinforce",
    "custom",
]

LossFnOutput = dict[str, TensorData]
LossFnConfig = Mapping[str, float | str]


class LoraConfig(WireRequest):
    """Which adapter to train."""

    rank: Int
    """Rank r of each LoRA pair."""
    seed: Int | None = absent()
    """Seeds the initial values; None draws a fresh seed."""
    train_unembed: Bool = True
    """Whether the unembedding (`lm_head`) has an adapter."""
    train_mlp: Bool = True
    """Whether the MLP projections have one."""
    train_attn: Bool = True
    """Whether the attention projections have one."""


class AdamOptimizerConfig(WireRequest):
    """Adam with decoupled weight decay."""

    type: Literal["adamw"] = "adamw"


class DimuonOptimizerConfig(WireRequest):
    """DiMuon."""

    type: Literal["dimuon"] = "dimuon"
    version: Annotated[Literal[1], NotBoolean] = 1


OptimizerConfig = Annotated[
    AdamOptimizerConfig | DimuonOptimizerConfig, Field(discriminator="type")
]


class AdamParams(WireRequest):
    """Hyperparameters of one Adam step; each step may have others."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    """Decoupled; 0 is none."""
    grad_clip_norm: float = 0.0
    """Largest global norm of the gradient; 0 does not clip."""


class DimuonParams(WireRequest):
    """Hyperparameters of one DiMuon step."""

    type: Literal["dimuon"] = "dimuon"
    learning_rate: float = Field(ge=0)
    grad_clip_norm: float = 0.0
    beta1: float = Field(default=0.9, ge=0, lt=1)


OptimParams = AdamParams | DimuonParams


class CreateModelRequest(WireRequest):
    """Make an adapter to train."""

    session_id: str
    model_seq_id: Int
    base_model: str
    user_metadata: dict[str, Any] | None = absent()
    lora_config: LoraConfig | None = absent()
    optimizer_config: OptimizerConfig = AdamOptimizerConfig()
    type: Literal["create_model"] = "create_model"


class CreateModelResponse(WireResponse):
    """The adapter's id."""

    model_id: ModelID
    type: Literal["create_model"] = "create_model"


class GetInfoRequest(WireRequest):
    """Ask what a training run trains."""

    model_id: ModelID
    type: Literal["get_info"] = "get_info"


class ModelData(WireResponse):
    """The base model behind a training run."""

    arch: str | None = absent()
    model_name: str | None = absent()
    tokenizer_id: str | None = absent()


class GetInfoResponse(WireResponse):
    """What a training run trains."""

    type: Literal["get_info"] | None = absent()
    model_data: ModelData
    model_id: ModelID
    optimizer_config: OptimizerConfig = AdamOptimizerConfig()
    is_lora: bool | None = absent()
    lora_rank: int | None = absent()
    model_name: str | None = absent()


@dataclass(frozen=True)
class ForwardBackwardInput:
    """A batch and its loss."""

    data: list[Datum]
    loss_fn: str
    loss_fn_config: LossFnConfig | None = None


@dataclass(frozen=True)
class ForwardBackwardRequest:
    """A batch for one training run, as protobuf (or JSON for SDKs up to 0.23)."""

    forward_backward_input: ForwardBackwardInput
    model_id: ModelID
    seq_id: int | None = None
    forward_only: bool = False
    """Compute the outputs and leave the gradients alone."""


@dataclass(frozen=True)
class ForwardRequest:
    """A forward pass as SDKs up to 0.23 ask for it."""

    forward_input: ForwardBackwardInput
    model_id: ModelID
    seq_id: int | None = None


@dataclass(frozen=True)
class ForwardBackwardOutput:
    """What a forward or forward_backward gives: a record of tensors for each datum, and metrics.

    Metric names end in `:sum`, `:mean`, `:min`, `:max`, `:slack`, `:unique` or `:hash2`, which says
    how the values of several chunks combine.
    """

    loss_fn_output_type: str
    loss_fn_outputs: list[LossFnOutput]
    metrics: dict[str, float] = field(default_factory=dict)


class OptimStepRequest(WireRequest):
    """Apply the accumulated gradients.

    `optim_params` may be given instead of the field that belongs to its type.
    """

    model_id: ModelID
    seq_id: Int | None = absent()
    type: Literal["optim_step"] = "optim_step"
    adam_params: AdamParams | None = absent()
    optimizer_params: DimuonParams | None = absent()

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            model_id: ModelID,
            seq_id: int | None = None,
            type: Literal["optim_step"] = "optim_step",  # noqa: A002 - the wire's name
            adam_params: AdamParams | None = None,
            optimizer_params: DimuonParams | None = None,
            optim_params: OptimParams | None = None,
        ) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _place_optim_params(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "optim_params" not in value:
            return value
        rest = {name: field for name, field in value.items() if name != "optim_params"}
        params = value["optim_params"]
        if params is None:
            return rest
        kind = params.get("type") if isinstance(params, Mapping) else getattr(params, "type", None)
        name = "optimizer_params" if kind == "dimuon" else "adam_params"
        if rest.get(name) is not None:
            raise ValueError(f"optim_params and {name} are the same field: give one of them.")
        return {**rest, name: params}

    @model_validator(mode="after")
    def _check_one_optimizer(self) -> Self:
        if self.adam_params is not None and self.optimizer_params is not None:
            raise ValueError("adam_params and optimizer_params are for two optimisers: give one.")
        return self

    @property
    def optim_params(self) -> OptimParams:
        """The hyperparameters, whichever optimiser they are for; Adam's defaults when absent."""
        return self.adam_params or self.optimizer_params or AdamParams()


class OptimStepResponse(WireResponse):
    """Figures of the step."""

    metrics: dict[str, float] | None = None


class UnloadModelRequest(WireRequest):
    """Free an adapter's memory."""

    model_id: ModelID
    type: Literal["unload_model"] = "unload_model"


class UnloadModelResponse(WireResponse):
    """The adapter that was freed."""

    model_id: ModelID
    type: Literal["unload_model"] | None = absent()
