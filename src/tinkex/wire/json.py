"""The JSON twins of the protobuf messages, which SDKs up to 0.23 send and read.

Owns the bulk messages alone; the small ones are pydantic models that read and write themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from tinkex.errors import InputError, WireDecodeError
from tinkex.types import (
    Datum,
    ForwardBackwardOutput,
    ModelInput,
    PromptProvenanceSpan,
    SampledProvenanceSpan,
    SampledSequence,
    SampleResponse,
    TensorData,
)
from tinkex.types.sampling import tensor_to_wire
from tinkex.wire.envelope import ForwardBackwardEnvelope

_MAX_SEQ_ID = 2**63 - 1
_OUTER = {"model_id", "seq_id", "type"}
_TYPES = {None, "forward_backward", "forward"}
_BODIES = {"forward_backward_input": False, "forward_input": True}
_INNER = {"data", "loss_fn", "loss_fn_config"}
_DATUM = {"model_input", "loss_fn_inputs", "model_input_spans", "loss_fn_input_spans"}
_SPANS: Mapping[str, type[PromptProvenanceSpan | SampledProvenanceSpan]] = {
    "prompt_tokens": PromptProvenanceSpan,
    "sampled_tokens": SampledProvenanceSpan,
}


def decode_json(body: bytes) -> Any:
    """Decode JSON.

    Raises:
        WireDecodeError: when the bytes are none.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise WireDecodeError(f"The body is not valid JSON: {error}") from None


def decode_forward_backward_json_envelope(body: bytes) -> ForwardBackwardEnvelope:
    """Read the outer fields of a JSON request; its data are read when asked for.

    Raises:
        WireDecodeError: when the bytes are no JSON, or have missing, unknown or wrong outer fields.
    """
    message = _object(decode_json(body), "The request")
    names = [name for name in _BODIES if name in message]
    if len(names) != 1:
        raise WireDecodeError(f"The request needs exactly one of {', '.join(_BODIES)}.")
    _no_unknown(message, _OUTER | {names[0]}, "The request")
    inner = _object(message[names[0]], names[0])
    _no_unknown(inner, _INNER, names[0])
    data = inner.get("data")
    if not isinstance(data, list):
        raise WireDecodeError(f"{names[0]}.data must be a list of datums.")
    model_id, seq_id = message.get("model_id"), message.get("seq_id")
    if not isinstance(model_id, str):
        raise WireDecodeError("model_id must be a string.")
    if seq_id is not None and (
        not isinstance(seq_id, int) or isinstance(seq_id, bool) or abs(seq_id) > _MAX_SEQ_ID
    ):
        raise WireDecodeError("seq_id must be a whole number of 64 bits.")
    kind = message.get("type")
    if not isinstance(kind, str | None) or kind not in _TYPES:
        raise WireDecodeError("type must be forward_backward, or forward.")
    loss_fn = inner.get("loss_fn")
    if not isinstance(loss_fn, str):
        raise WireDecodeError(f"{names[0]}.loss_fn must be a string.")
    return ForwardBackwardEnvelope(
        model_id=model_id,
        seq_id=seq_id,
        loss_fn=loss_fn,
        loss_fn_config=_loss_config(inner.get("loss_fn_config")),
        forward_only=_BODIES[names[0]],
        datum_count=len(data),
        decode_data=lambda: [_decode_datum(index, datum) for index, datum in enumerate(data)],
    )


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise WireDecodeError(f"{what} must be a JSON object.")
    return value


def _no_unknown(value: Mapping[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(set(value) - known)
    if unknown:
        raise WireDecodeError(f"{what} has fields this server does not know: {', '.join(unknown)}.")


def _loss_config(value: Any) -> dict[str, float | str] | None:
    if value is None:
        return None
    config = dict(_object(value, "loss_fn_config"))
    for name, setting in config.items():
        if isinstance(setting, bool) or not isinstance(setting, int | float | str):
            raise WireDecodeError(f"loss_fn_config[{name!r}] must be a number or a string.")
    return config


def _decode_datum(index: int, value: Any) -> Datum:
    place = f"Datum {index}"
    if not isinstance(value, Mapping) or not set(value) <= _DATUM:
        raise InputError(f"{place} must be an object with the keys {', '.join(sorted(_DATUM))}.")
    inputs = value.get("loss_fn_inputs", {})
    if not isinstance(inputs, Mapping):
        raise InputError(f"{place}, loss_fn_inputs must be an object of tensors.")
    try:
        return Datum(
            ModelInput.model_validate(value.get("model_input")),
            {key: _decode_tensor(tensor) for key, tensor in inputs.items()},
            _decode_spans(value.get("model_input_spans")),
            _decode_spans(value.get("loss_fn_input_spans")),
        )
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{place}: {error}") from error


def _decode_tensor(value: Any) -> TensorData:
    if not isinstance(value, Mapping):
        raise InputError("a tensor must be an object with data and dtype.")
    data = value.get("data")
    if isinstance(data, list):
        # A JSON client has no other way to write NaN than null.
        data = [np.nan if item is None else item for item in data]
    return TensorData.from_wire({**value, "data": data})


def _decode_spans(values: Any) -> list[PromptProvenanceSpan | SampledProvenanceSpan] | None:
    if not values:
        return None
    spans: list[PromptProvenanceSpan | SampledProvenanceSpan] = []
    for value in values:
        fields = dict(value)
        kind = fields.pop("type", None)
        if kind not in _SPANS:
            raise InputError(f"a provenance span is of type {' or '.join(_SPANS)}, not {kind!r}.")
        spans.append(_SPANS[kind](**fields))
    return spans


def forward_backward_output_to_json(output: ForwardBackwardOutput) -> dict[str, Any]:
    """Return the JSON form of an output."""
    return {
        "loss_fn_output_type": output.loss_fn_output_type,
        "loss_fn_outputs": [
            {name: tensor_to_wire(tensor) for name, tensor in fields.items()}
            for fields in output.loss_fn_outputs
        ],
        "metrics": output.metrics,
    }


def sample_response_to_json(response: SampleResponse) -> dict[str, Any]:
    """Return the JSON form of a sample response."""
    fields: dict[str, Any] = {
        "sequences": [_sequence_to_json(sequence) for sequence in response.sequences],
        "type": "sample",
    }
    if response.prompt_logprobs is not None:
        fields["prompt_logprobs"] = response.prompt_logprobs
    if response.topk_prompt_logprobs is not None:
        fields["topk_prompt_logprobs"] = response.topk_prompt_logprobs
    return fields


def _sequence_to_json(sequence: SampledSequence) -> dict[str, Any]:
    fields: dict[str, Any] = {"stop_reason": sequence.stop_reason, "tokens": sequence.tokens}
    if sequence.logprobs is not None:
        fields["logprobs"] = sequence.logprobs
    if sequence.topk_logprobs is not None:
        fields["topk_logprobs"] = sequence.topk_logprobs
    return fields
