"""What the result of each kind of accepted work is, and the JSON of the bulk messages, as types.

Owns these for the document alone: `wire/json.py` reads and writes the bulk messages, by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, WithJsonSchema, with_config
from typing_extensions import TypedDict

from tinkex.server.futures import Operation
from tinkex.server.openapi.describe import JSON, Media
from tinkex.types import (
    CreateCustomLossResponse,
    CreateModelResponse,
    LoadWeightsResponse,
    ModelInput,
    OptimStepResponse,
    RequestFailedResponse,
    SaveWeightsExternalResponseInternal,
    SaveWeightsForSamplerResponseInternal,
    SaveWeightsResponse,
    TryAgainResponse,
    UnloadModelResponse,
)
from tinkex.types.tensor_data import TENSOR_SCHEMA
from tinkex.wire.headers import PROTOBUF

if TYPE_CHECKING:
    from collections.abc import Mapping

_WHOLE = with_config(ConfigDict(extra="forbid"))

Tensor = Annotated[Any, WithJsonSchema(TENSOR_SCHEMA)]
LossInput = Annotated[
    Any,
    WithJsonSchema(
        TENSOR_SCHEMA
        | {
            "properties": {
                **TENSOR_SCHEMA["properties"],
                "data": {"type": "array", "items": {"type": ["number", "null"]}},
            }
        }
    ),
]
"""A tensor whose NaN is written as null."""


@_WHOLE
class Span(TypedDict):
    """Which tokens of a recorded sequence stand here."""

    type: Literal["prompt_tokens", "sampled_tokens"]
    sequence_id: str
    offset: int
    length: int


@_WHOLE
class DatumJson(TypedDict):
    """One training example."""

    model_input: ModelInput
    loss_fn_inputs: NotRequired[dict[str, LossInput]]
    model_input_spans: NotRequired[list[Span] | None]
    loss_fn_input_spans: NotRequired[list[Span] | None]


@_WHOLE
class BatchJson(TypedDict):
    """A batch and its loss."""

    data: list[DatumJson]
    loss_fn: str
    loss_fn_config: NotRequired[dict[str, float | str] | None]


@_WHOLE
class ForwardBackwardJson(TypedDict):
    """A batch for a training run."""

    forward_backward_input: BatchJson
    model_id: str
    seq_id: NotRequired[int | None]
    type: NotRequired[Literal["forward_backward", "forward"] | None]


@_WHOLE
class ForwardJson(TypedDict):
    """A batch to run forward only."""

    forward_input: BatchJson
    model_id: str
    seq_id: NotRequired[int | None]
    type: NotRequired[Literal["forward_backward", "forward"] | None]


@_WHOLE
class ForwardBackwardOutputJson(TypedDict):
    """Tensors for each datum, and metrics."""

    loss_fn_output_type: str
    loss_fn_outputs: list[dict[str, LossInput]]
    metrics: dict[str, float | None]


TopK = list[list[tuple[int, float]] | None]


@_WHOLE
class SequenceJson(TypedDict):
    """One sampled sequence."""

    stop_reason: Literal["stop", "length"]
    tokens: list[int]
    logprobs: NotRequired[list[float]]
    topk_logprobs: NotRequired[TopK]


@_WHOLE
class SampleResponseJson(TypedDict):
    """Sampled sequences."""

    type: Literal["sample"]
    sequences: list[SequenceJson]
    prompt_logprobs: NotRequired[list[float | None]]
    topk_prompt_logprobs: NotRequired[TopK]


RESULTS: Mapping[Operation, Any] = {
    Operation.CREATE_MODEL: CreateModelResponse,
    Operation.FORWARD_BACKWARD: ForwardBackwardOutputJson,
    Operation.OPTIM_STEP: OptimStepResponse,
    Operation.SAVE_WEIGHTS: SaveWeightsResponse,
    Operation.LOAD_WEIGHTS: LoadWeightsResponse,
    Operation.SAVE_WEIGHTS_FOR_SAMPLER: SaveWeightsForSamplerResponseInternal,
    Operation.SAVE_WEIGHTS_EXTERNAL: SaveWeightsExternalResponseInternal,
    Operation.UNLOAD_MODEL: UnloadModelResponse,
    Operation.SAMPLE: SampleResponseJson,
    Operation.CREATE_CUSTOM_LOSS: CreateCustomLossResponse,
}
"""The JSON form of each kind's result."""

FUTURE_REPLIES = (
    Media(
        JSON,
        TryAgainResponse
        | RequestFailedResponse
        | CreateModelResponse
        | ForwardBackwardOutputJson
        | OptimStepResponse
        | SaveWeightsResponse
        | LoadWeightsResponse
        | SaveWeightsForSamplerResponseInternal
        | SaveWeightsExternalResponseInternal
        | UnloadModelResponse
        | SampleResponseJson
        | CreateCustomLossResponse,
        "Not there yet; failed; or the result, whose form is that of the request.",
    ),
    Media(
        PROTOBUF,
        about="ForwardBackwardOutput or SampleResponse, where Accept names this type.",
    ),
)
BATCH_FORMS = (
    Media(PROTOBUF, about="ForwardBackwardRequest."),
    Media(JSON, ForwardBackwardJson, "As SDKs up to 0.23 send it."),
)
FORWARD_FORMS = (
    Media(JSON, ForwardJson),
    Media(PROTOBUF, about="ForwardBackwardRequest; its forward_only does not matter."),
)
