"""Protobuf: forward_backward requests and outputs, and sample responses.

Bytes that are no message raise `WireDecodeError`; a message whose content does not fit raises
`InputError` with the place. A raw protobuf exception never leaves this module.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from tinkex.errors import InputError, WireDecodeError
from tinkex.types import (
    Datum,
    DmelChunk,
    EncodedTextChunk,
    ForwardBackwardOutput,
    ForwardBackwardRequest,
    ImageChunk,
    LossFnOutput,
    ModelInput,
    ModelInputChunk,
    PromptAltTokens,
    PromptProvenanceSpan,
    SampledProvenanceSpan,
    SampledSequence,
    SampleResponse,
    StopReason,
    TensorData,
    TopkLogprobs,
)
from tinkex.wire import arrays
from tinkex.wire import tinkex_public_pb2 as pb
from tinkex.wire.envelope import ForwardBackwardEnvelope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

M = TypeVar("M", bound=Message)

_STOP_CODES: dict[StopReason, pb.StopReason] = {
    "stop": pb.STOP_REASON_STOP,
    "length": pb.STOP_REASON_LENGTH,
}
_IMAGE_FORMATS: Mapping[str, Literal["png", "jpeg"]] = {"png": "png", "jpeg": "jpeg"}
_MAX_SEQ_ID = 2**31 - 1
_DATA_TAG = bytes([pb.ForwardBackwardRequest.DATA_FIELD_NUMBER << 3 | 2])
"""Of one entry of `ForwardBackwardRequest.data`: length-delimited."""


def _parse(cls: type[M], body: bytes) -> M:
    try:
        return cls.FromString(body)
    except DecodeError as error:
        raise WireDecodeError(
            f"{len(body)} bytes are no protobuf message {cls.DESCRIPTOR.name}: {error}"
        ) from None


# --- forward_backward requests ------------------------------------------------------------------


def encode_forward_backward_request(request: ForwardBackwardRequest) -> bytes:
    """Encode a request.

    Raises:
        InputError: for a chunk or a text that protobuf cannot carry, a sequence id beyond 32 bits,
            or provenance spans for only one side of a datum.
    """
    if request.seq_id is not None and not 0 <= request.seq_id <= _MAX_SEQ_ID:
        raise InputError(f"The sequence id {request.seq_id} does not fit into 31 bits.")
    try:
        return _written(request)
    except UnicodeEncodeError as error:  # a lone surrogate, as in the name of a file
        raise InputError(f"The request has text that cannot be sent: {error}.") from None


def _written(request: ForwardBackwardRequest) -> bytes:
    inner = request.forward_backward_input
    message = pb.ForwardBackwardRequest(
        model_id=request.model_id,
        seq_id=request.seq_id or 0,
        loss_fn=inner.loss_fn,
        forward_only=request.forward_only,
    )
    for name, value in (inner.loss_fn_config or {}).items():
        # Numbers stand in both maps, for servers that know only the first; text in the second.
        if isinstance(value, str):
            message.loss_fn_config_v2[name].text = value
        else:
            message.loss_fn_config[name] = value
            message.loss_fn_config_v2[name].number = value
    # Each datum by itself, in a buffer that the cache holds: one large message is grown, and
    # copied, again and again. A repeated field may stand anywhere in a message.
    parts = [message.SerializeToString()]
    for datum in inner.data:
        encoded = _encode_datum(datum)
        parts += (_DATA_TAG, _varint(len(encoded)), encoded)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    """Encode a length as protobuf does: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _encode_datum(datum: Datum) -> bytes:
    message = pb.Datum()
    for chunk in datum.model_input.chunks:
        _encode_chunk(chunk, message.model_input.add())
    for key, tensor in datum.loss_fn_inputs.items():
        arrays.encode_tensor(tensor, message.loss_fn_inputs[key])
    if (datum.model_input_spans is None) != (datum.loss_fn_input_spans is None):
        raise InputError("A datum has provenance spans for its input and its loss, or for neither.")
    _encode_spans(datum.model_input_spans or [], message.model_input_spans)
    _encode_spans(datum.loss_fn_input_spans or [], message.loss_fn_input_spans)
    return message.SerializeToString()


def _encode_chunk(chunk: ModelInputChunk, message: pb.Chunk) -> None:
    if isinstance(chunk, EncodedTextChunk):
        message.encoded_text.tokens = arrays.int32_bytes(chunk.tokens_np)
    elif isinstance(chunk, ImageChunk):
        message.image.data = chunk.data
        message.image.format = chunk.format
        if chunk.expected_tokens is not None:
            message.image.expected_tokens = chunk.expected_tokens
    elif isinstance(chunk, DmelChunk):
        message.dmel.dmel = chunk.dmel
    else:
        raise InputError(
            f"A chunk of type {chunk.type!r} cannot be trained on, only sampled from. "
            "Pass the image itself as an ImageChunk."
        )


def _encode_spans(spans: Iterable[Any], messages: Any) -> None:
    for span in spans:
        message = messages.add()
        kind = isinstance(span, PromptProvenanceSpan)
        target = message.prompt_tokens if kind else message.sampled_tokens
        target.sequence_id, target.offset, target.length = (
            span.sequence_id,
            span.offset,
            span.length,
        )


def decode_forward_backward_envelope(body: bytes) -> ForwardBackwardEnvelope:
    """Read the outer fields of a request; its data are read when asked for.

    Raises:
        WireDecodeError: when the bytes are no such message.
    """
    message = _parse(pb.ForwardBackwardRequest, body)
    config: dict[str, float | str] = dict(message.loss_fn_config)
    for name, value in message.loss_fn_config_v2.items():
        config[name] = value.text if value.WhichOneof("value") == "text" else value.number

    def decode_data() -> list[Datum]:
        _check_config(message)
        message.DiscardUnknownFields()
        if message.ByteSize() != len(body):  # equal for every known encoder of known fields alone
            _refuse_unknown_fields(_parse(pb.ForwardBackwardRequest, body), "The request")
        return [_decode_datum(index, datum) for index, datum in enumerate(message.data)]

    return ForwardBackwardEnvelope(
        model_id=message.model_id,
        seq_id=message.seq_id,
        loss_fn=message.loss_fn,
        loss_fn_config=config or None,
        forward_only=message.forward_only,
        datum_count=len(message.data),
        decode_data=decode_data,
    )


def _check_config(message: pb.ForwardBackwardRequest) -> None:
    """Refuse settings without a value, or with two."""
    for name, value in message.loss_fn_config_v2.items():
        kind = value.WhichOneof("value")
        if kind is None:
            raise InputError(f"loss_fn_config_v2[{name!r}] has no value: give a number or a text.")
        if name in message.loss_fn_config and (
            kind == "text" or not _same_number(message.loss_fn_config[name], value.number)
        ):
            raise InputError(
                f"loss_fn_config[{name!r}] and loss_fn_config_v2[{name!r}] differ: give one of "
                "them, or the same value twice."
            )


def _same_number(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)  # noqa: PLR0124 - NaN is not itself


def _refuse_unknown_fields(message: Message, place: str) -> None:
    """Raise for the first field, here or further in, that has no meaning here."""
    fields: Any = UnknownFieldSet(message)
    unknown = {field.field_number for field in fields}
    if unknown:
        numbers = ", ".join(map(str, sorted(unknown)))
        name = message.DESCRIPTOR.name
        raise InputError(f"{place}: a {name} has no field of number {numbers} on this server.")
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key, entry in value.items():
                    _refuse_unknown_fields(entry, f"{place}, {field.name}[{key!r}]")
        else:
            inner = [value] if isinstance(value, Message) else value
            for index, entry in enumerate(inner):
                _refuse_unknown_fields(entry, f"{place}, {field.name}[{index}]")


def decode_forward_backward_request(body: bytes) -> ForwardBackwardRequest:
    """Read a whole request.

    Raises:
        WireDecodeError: when the bytes are no such message.
        InputError: naming the index of a datum that cannot be read.
    """
    return decode_forward_backward_envelope(body).request()


def _decode_datum(index: int, message: pb.Datum) -> Datum:
    place = f"Datum {index}"
    inputs = {
        key: arrays.decode_tensor(tensor, f"{place}, loss_fn_inputs[{key!r}]")
        for key, tensor in message.loss_fn_inputs.items()
    }
    chunks = [_decode_chunk(place, chunk) for chunk in message.model_input]
    spans = [list(map(_decode_span, message.model_input_spans))]
    spans.append(list(map(_decode_span, message.loss_fn_input_spans)))
    return Datum(ModelInput(chunks), inputs, spans[0] or None, spans[1] or None)


def _decode_chunk(place: str, message: pb.Chunk) -> ModelInputChunk:
    kind = message.WhichOneof("chunk")
    if kind == "encoded_text":
        tokens = arrays.int32_array(message.encoded_text.tokens, f"{place}, model_input")
        return EncodedTextChunk.from_array(tokens)
    if kind == "image":
        image = message.image
        image_format = _IMAGE_FORMATS.get(image.format)
        if image_format is None:
            raise InputError(f"{place}: an image of format {image.format!r} is not known.")
        expected = image.expected_tokens if image.HasField("expected_tokens") else None
        return ImageChunk(image.data, image_format, expected)
    if kind == "dmel":
        return DmelChunk(message.dmel.dmel)
    raise InputError(f"{place}: a chunk of the model input is of no known type.")


def _decode_span(message: pb.ProvenanceSpan) -> PromptProvenanceSpan | SampledProvenanceSpan:
    is_prompt = message.WhichOneof("span") == "prompt_tokens"
    cls = PromptProvenanceSpan if is_prompt else SampledProvenanceSpan
    span = message.prompt_tokens if is_prompt else message.sampled_tokens
    return cls(sequence_id=span.sequence_id, offset=span.offset, length=span.length)


# --- forward_backward outputs -------------------------------------------------------------------


def encode_forward_backward_output(output: ForwardBackwardOutput) -> bytes:
    """Encode an output; datums in a row with the same fields share one record."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type=output.loss_fn_output_type)
    message.metrics.update(output.metrics)
    for _, group in itertools.groupby(output.loss_fn_outputs, key=_record_key):
        _encode_record(list(group), message.loss_fn_outputs.add(type_tag="ArrayRecord"))
    return message.SerializeToString(deterministic=True)


def _record_key(fields: LossFnOutput) -> tuple[Any, ...]:
    return tuple(
        (name, tensor.dtype, tensor.dimensions[1:]) for name, tensor in sorted(fields.items())
    )


def _encode_record(rows: Sequence[LossFnOutput], message: pb.ArrayRecord) -> None:
    message.num_datums = len(rows)
    for name, first in rows[0].items():
        tensors = [row[name] for row in rows]
        sizes = [tensor.values.nbytes for tensor in tensors]
        field = message.fields[name]
        field.data = b"".join(tensor.values.tobytes() for tensor in tensors)
        field.offsets = np.cumsum([0, *sizes], dtype="<i8").tobytes()
        field.dtype = arrays.DTYPE_CODES[first.dtype]
        field.trailing_shape.extend(first.dimensions[1:])


def decode_forward_backward_output(body: bytes) -> ForwardBackwardOutput:
    """Read an output.

    Raises:
        WireDecodeError: when the bytes are no such message or its parts do not fit.
    """
    message = _parse(pb.ForwardBackwardOutput, body)
    try:
        rows = [row for record in message.loss_fn_outputs for row in _decode_record(record)]
    except InputError as error:
        raise WireDecodeError(f"A ForwardBackwardOutput cannot be read: {error}") from error
    kind = message.loss_fn_output_type.rpartition(":")[2]
    return ForwardBackwardOutput(kind, rows, dict(message.metrics))


def _decode_record(message: pb.ArrayRecord) -> list[LossFnOutput]:
    columns = {
        name: list(_decode_column(name, field, message.num_datums))
        for name, field in message.fields.items()
    }
    return [
        {name: column[row] for name, column in columns.items()} for row in range(message.num_datums)
    ]


def _decode_column(name: str, message: pb.BatchedTensor, count: int) -> Iterator[TensorData]:
    offsets = arrays.from_bytes(message.offsets, np.dtype("<i8"), name)
    ends_fit = len(offsets) == count + 1 and (offsets[0], offsets[-1]) == (0, len(message.data))
    if not ends_fit or np.any(np.diff(offsets) < 0):
        raise InputError(f"{name}: the offsets do not cut {len(message.data)} bytes into {count}.")
    trailing = list(message.trailing_shape)
    width = int(np.prod(trailing)) if trailing else 1
    values = arrays.decode_values(message.data, message.dtype, name)
    # offsets are in bytes of the wire's dtype, which may be narrower than that of the values
    size = len(message.data) // values.size if values.size else 1
    if width == 0 or np.any(np.diff(offsets) % (size * width)):
        raise InputError(f"{name}: the offsets do not cut whole rows of shape {trailing}.")
    if not values.flags.writeable:
        values = values.copy()  # programs work on what they get in place; no two rows overlap
    for start, end in itertools.pairwise((offsets // size).tolist()):
        yield TensorData.of_checked(values[start:end], [(end - start) // width, *trailing])


# --- sample responses ---------------------------------------------------------------------------


def encode_sample_response(response: SampleResponse) -> bytes:
    """Encode a sample response. Sequence ids travel with the future, not here."""
    message = pb.SampleResponse(prompt_cache_hit_tokens=response.prompt_cache_hit_tokens)
    for sequence in response.sequences:
        _encode_sequence(sequence, message.sequences.add())
    if response.prompt_logprobs_np is not None:
        message.prompt_logprobs = arrays.float32_bytes(response.prompt_logprobs_np)
    if response.topk_prompt_logprobs_np is not None:
        _encode_topk(response.topk_prompt_logprobs_np, message.topk_prompt_logprobs)
    if response.target_prompt_logprobs is not None:
        arrays.encode_tensor(response.target_prompt_logprobs, message.target_prompt_logprobs)
    if response.prompt_alt_tokens is not None:
        alternatives = response.prompt_alt_tokens
        arrays.encode_tensor(alternatives.tokens, message.prompt_alt_tokens.tokens)
        arrays.encode_tensor(alternatives.logprobs, message.prompt_alt_tokens.logprobs)
    return message.SerializeToString()


def _encode_sequence(sequence: SampledSequence, message: pb.SampledSequence) -> None:
    message.stop_reason = _STOP_CODES[sequence.stop_reason]
    if sequence.tokens_np is not None:
        message.tokens = arrays.int32_bytes(sequence.tokens_np)
    if sequence.logprobs_np is not None:
        message.logprobs = arrays.float32_bytes(sequence.logprobs_np)
    if sequence.topk_logprobs_np is not None:
        _encode_topk(sequence.topk_logprobs_np, message.topk_sampled_logprobs)


def _encode_topk(topk: TopkLogprobs, message: pb.TopkLogprobs) -> None:
    message.token_ids = arrays.int32_bytes(topk.token_ids)
    message.logprobs = arrays.float32_bytes(topk.logprobs)
    message.length, message.k = topk.token_ids.shape


def decode_sample_response(
    body: bytes, sequence_ids: Sequence[str] | None = None
) -> SampleResponse:
    """Read a sample response.

    Args:
        body: the bytes.
        sequence_ids: the ids that came with the future, one for each sequence.

    Raises:
        WireDecodeError: when the bytes are no such message, or its parts or the ids do not fit.
    """
    message = _parse(pb.SampleResponse, body)
    if sequence_ids is not None and len(sequence_ids) != len(message.sequences):
        raise WireDecodeError(
            f"{len(message.sequences)} sequences came back for {len(sequence_ids)} asked for."
        )
    names = sequence_ids if sequence_ids is not None else [""] * len(message.sequences)
    try:
        return _decode_sample_response(message, names)
    except InputError as error:
        raise WireDecodeError(f"A SampleResponse cannot be read: {error}") from error


def _decode_sample_response(message: pb.SampleResponse, names: Sequence[str]) -> SampleResponse:
    pairs = zip(message.sequences, names, strict=True)
    present: Mapping[str, bool] = {
        name: message.HasField(name)
        for name in (
            "prompt_logprobs",
            "topk_prompt_logprobs",
            "target_prompt_logprobs",
            "prompt_alt_tokens",
        )
    }
    prompt_logprobs: npt.NDArray[np.float32] | None = None
    if present["prompt_logprobs"]:
        prompt_logprobs = arrays.own_float32_array(message.prompt_logprobs, "prompt_logprobs")
    target = alternatives = None
    if present["target_prompt_logprobs"]:
        target = arrays.own_tensor(message.target_prompt_logprobs, "target_prompt_logprobs")
    if present["prompt_alt_tokens"]:
        alternatives = PromptAltTokens(
            arrays.own_tensor(message.prompt_alt_tokens.tokens, "prompt_alt_tokens.tokens"),
            arrays.own_tensor(message.prompt_alt_tokens.logprobs, "prompt_alt_tokens.logprobs"),
        )
    return SampleResponse(
        sequences=[_decode_sequence(sequence, name) for sequence, name in pairs],
        prompt_logprobs_np=prompt_logprobs,
        topk_prompt_logprobs_np=(
            _decode_topk(message.topk_prompt_logprobs) if present["topk_prompt_logprobs"] else None
        ),
        target_prompt_logprobs=target,
        prompt_cache_hit_tokens=message.prompt_cache_hit_tokens,
        prompt_alt_tokens=alternatives,
    )


def _decode_sequence(message: pb.SampledSequence, name: str) -> SampledSequence:
    # A stop reason of a later version becomes "length": the sequence did not end by itself as far
    # as this client knows, and a run is not lost over it (A1.1).
    reason: StopReason = "stop" if message.stop_reason == pb.STOP_REASON_STOP else "length"
    logprobs = topk = None
    if message.HasField("logprobs"):
        logprobs = arrays.own_float32_array(message.logprobs, "logprobs")
    if message.HasField("topk_sampled_logprobs"):
        topk = _decode_topk(message.topk_sampled_logprobs)
    tokens = arrays.own_int32_array(message.tokens, "tokens")
    if logprobs is not None and len(logprobs) != len(tokens):
        raise InputError(f"{len(tokens)} tokens have {len(logprobs)} logprobs.")
    return SampledSequence(reason, name, tokens, logprobs, topk)


def _decode_topk(message: pb.TopkLogprobs) -> TopkLogprobs:
    ids = arrays.own_int32_array(message.token_ids, "topk token_ids")
    logprobs = arrays.own_float32_array(message.logprobs, "topk logprobs")
    shape = (message.length, message.k)
    if ids.size != message.length * message.k or ids.size != logprobs.size:
        raise InputError(f"{ids.size} ids and {logprobs.size} logprobs do not fill {shape}.")
    return TopkLogprobs(ids.reshape(shape), logprobs.reshape(shape))
