"""Datums -> checked arrays -> packed tensors. Nothing is computed before everything is checked.

Owns the checks of what a caller sent (types, lengths, ranges, finiteness, size) and the packing of
one run's data into microbatches. A microbatch holds one run's data only, so no other user's request
can change a bit of its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tinkex.engine.training.losses import HIGH, LOW, TARGETS, WEIGHTS, LossCall
from tinkex.errors import InputError
from tinkex.types import Datum, EncodedTextChunk, ModelInput, TensorData

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds that a request must keep."""

    vocab_size: int
    context_length: int
    request_tokens: int


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One checked datum."""

    index: int
    """Its place in the request."""
    tokens: NDArray[np.int64]
    """[T]."""
    targets: NDArray[np.int64]
    """[T, K]; K is 1 but for soft targets."""
    fields: Mapping[str, NDArray[np.float32]]
    """Float inputs of the loss, [T, K] each."""
    target_shape: tuple[int, ...]
    """(T,) or (T, K), as the caller sent it."""
    graph_inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What a user's own loss reads, as it was sent: any shape, float32 or int64."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One microbatch: sequences end to end, without padding."""

    sequences: tuple[TrainingSequence, ...]
    lengths: tuple[int, ...]
    ids: Tensor
    """[N] int64."""
    positions: Tensor
    """[N] int64."""
    targets: Tensor
    """[N, K] int64."""
    fields: Mapping[str, Tensor]
    """[N, K] float32 each."""


def prompt_tokens(model_input: ModelInput, limits: BatchLimits, where: str) -> NDArray[np.int64]:
    """Check a model input and give its tokens [T].

    Raises:
        InputError: a chunk that is not text, no token, a token outside the vocabulary, or too many.
    """
    parts = []
    for number, chunk in enumerate(model_input.chunks):
        if not isinstance(chunk, EncodedTextChunk):
            raise InputError(
                f"{where}: chunk {number} is of type {chunk.type!r}; tinkex runs the language "
                "model of a base model alone, so it takes text only (encoded_text). Leave the "
                "chunk out, or put what it shows into words"
            )
        parts.append(chunk.tokens_np.astype(np.int64))
    tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if tokens.size == 0:
        raise InputError(f"{where} is empty; send at least one token")
    _check_ids(tokens, limits.vocab_size, where)
    if tokens.size > limits.context_length:
        raise InputError(
            f"{where} has {tokens.size} tokens; this model takes at most {limits.context_length}. "
            "Shorten it"
        )
    return tokens


def training_sequences(
    data: Sequence[Datum], call: LossCall, limits: BatchLimits
) -> list[TrainingSequence]:
    """Check a whole request.

    Raises:
        InputError: naming the datum and the key at fault.
    """
    if not data:
        raise InputError("the batch is empty; send at least one datum")
    sent = {key for datum in data for key in datum.loss_fn_inputs}
    filled = {WEIGHTS: 1.0} | {k: call.config[k] for k in (LOW, HIGH) if k in sent & {*call.config}}
    sequences = [_sequence(i, datum, call, filled, limits) for i, datum in enumerate(data)]
    total = sum(len(s.tokens) for s in sequences)
    if total > limits.request_tokens:
        raise InputError(
            f"the batch has {total} tokens; one request takes at most {limits.request_tokens}. "
            "Send it as several forward_backward calls: their gradients add up"
        )
    return sequences


def microbatches(
    sequences: Sequence[TrainingSequence], budget: int
) -> list[tuple[TrainingSequence, ...]]:
    """Split into groups of at most `budget` tokens (one long sequence goes alone).

    Sorted by length, so that equal lengths meet and share one attention call.
    """
    groups: list[list[TrainingSequence]] = []
    used = budget
    for sequence in sorted(sequences, key=lambda s: len(s.tokens)):
        if used + len(sequence.tokens) > budget:
            groups.append([])
            used = 0
        groups[-1].append(sequence)
        used += len(sequence.tokens)
    return [tuple(group) for group in groups]


def pack(sequences: Sequence[TrainingSequence], device: torch.device) -> PackedBatch:
    """Lay sequences end to end. Narrower soft targets are widened with weightless columns."""
    width = max(s.targets.shape[1] for s in sequences)
    lengths = tuple(len(s.tokens) for s in sequences)

    def rows(arrays: Sequence[NDArray[Any]]) -> Tensor:
        wide = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays]
        return torch.from_numpy(np.concatenate(wide)).to(device)

    return PackedBatch(
        sequences=tuple(sequences),
        lengths=lengths,
        ids=torch.from_numpy(np.concatenate([s.tokens for s in sequences])).to(device),
        positions=torch.cat([torch.arange(n) for n in lengths]).to(device),
        targets=rows([s.targets for s in sequences]),
        fields={key: rows([s.fields[key] for s in sequences]) for key in sequences[0].fields},
    )


def _sequence(
    index: int, datum: Datum, call: LossCall, filled: Mapping[str, float], limits: BatchLimits
) -> TrainingSequence:
    where = f"datum {index}"
    tokens = prompt_tokens(datum.model_input, limits, f"{where}: model_input")
    inputs = datum.loss_fn_inputs
    _check_keys(inputs, call, where)
    targets = _targets(inputs[TARGETS], len(tokens), call, where)
    _check_ids(targets, limits.vocab_size, f"{where}: {TARGETS}")
    column = targets.reshape(len(tokens), -1)
    if call.graph is not None:
        read = {key: inputs[key].to_numpy() for key in call.graph.input_names}
        return TrainingSequence(index, tokens, column, {}, targets.shape, read)
    fields = {key: np.full(column.shape, value, np.float32) for key, value in filled.items()}
    for key in inputs:
        if key != TARGETS:
            sent = _field(inputs[key], targets.shape, f"{where}: {key}")
            fields[key] = sent.reshape(column.shape)
    _check_thresholds(fields, call, where)
    return TrainingSequence(index, tokens, column, fields, targets.shape)


def _check_thresholds(
    fields: Mapping[str, NDArray[np.float32]], call: LossCall, where: str
) -> None:
    if LOW not in fields and HIGH not in fields:
        return  # those of the configuration are checked
    low, high = (fields.get(key, call.config.get(key)) for key in (LOW, HIGH))
    if low is None or high is None:
        return
    crossed = np.flatnonzero(low > high)
    if crossed.size:
        raise InputError(f"{where}: {LOW} is above {HIGH} at {int(crossed[0])}")


def _check_keys(inputs: Mapping[str, TensorData], call: LossCall, where: str) -> None:
    required = (TARGETS, *call.loss.required)
    known = (*required, *call.loss.optional)
    for key in () if call.graph is not None else inputs:  # a graph takes what it names
        if key not in known:
            raise InputError(
                f"{where}: {call.name} takes no input {key!r}; it takes {', '.join(known)}"
            )
    for key in required:
        if key not in inputs:
            raise InputError(f"{where}: {call.name} needs the input {key!r}")


def _targets(data: TensorData, length: int, call: LossCall, where: str) -> NDArray[np.int64]:
    """Check target tokens [T] or [T, K] for a model input of `length` tokens."""
    where = f"{where}: {TARGETS}"
    if data.dtype != "int64":
        raise InputError(f"{where} must be int64, got {data.dtype}")
    targets: NDArray[np.int64] = np.ascontiguousarray(data.to_numpy(), dtype=np.int64)
    allowed = (1, 2) if call.loss.soft_targets else (1,)
    if targets.ndim not in allowed or targets.shape[-1] == 0:
        shape = "[T] or [T, K]" if call.loss.soft_targets else "[T]"
        raise InputError(
            f"{where} must have the shape {shape} for {call.name}, got {targets.shape}"
        )
    if targets.shape[0] != length:
        raise InputError(
            f"{where} has {targets.shape[0]} positions, its model_input {length} tokens; send one "
            "target for each input token"
        )
    return targets


def _field(data: TensorData, shape: tuple[int, ...], where: str) -> NDArray[np.float32]:
    """Check one float input against the shape of its targets."""
    if data.dtype != "float32":
        raise InputError(f"{where} must be float32, got {data.dtype}")
    values: NDArray[np.float32] = np.ascontiguousarray(data.to_numpy(), dtype=np.float32)
    if values.shape != shape:
        raise InputError(f"{where} has the shape {values.shape}, target_tokens {shape}; make equal")
    if not np.isfinite(values).all():
        at = np.argwhere(~np.isfinite(values))[0].tolist()
        raise InputError(f"{where} has a value that is not finite at {at}")
    return values


def _check_ids(ids: NDArray[np.int64], vocab_size: int, where: str) -> None:
    bad = (ids < 0) | (ids >= vocab_size)
    if bad.any():
        at = np.argwhere(bad)[0]
        raise InputError(
            f"{where} has the token id {ids[tuple(at)]} at {at.tolist()}, outside the vocabulary "
            f"of {vocab_size}; use this model's tokenizer"
        )
