"""Sampling: sessions, requests, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from tinkex.errors import InputError
from tinkex.types._model import Bool, Int, WireRequest, WireResponse, absent
from tinkex.types.model_input import ModelInput
from tinkex.types.tensor_data import TENSOR_SCHEMA, TensorData

StopReason = Literal["length", "stop"]

SamplingClientKind = Literal["snapshot", "inflight"]

EMPTY_TOPK_LOGPROB = -99999.0
"""The logprob of a cell of `TopkLogprobs` that holds no token."""


def _tensor_from_wire(value: Any) -> Any:
    if isinstance(value, Mapping):
        return TensorData.from_wire(value)
    if value is None or isinstance(value, TensorData):
        return value
    raise InputError(f"A tensor is an object with data and dtype, not {type(value).__name__}.")


def tensor_to_wire(tensor: TensorData) -> dict[str, Any]:
    """Return the JSON form of a tensor; what is None is absent."""
    fields = {
        "data": tensor.data,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "sparse_crow_indices": tensor.sparse_crow_indices,
        "sparse_col_indices": tensor.sparse_col_indices,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _plain_stop(value: Any) -> Any:
    """Make a list of a tuple or an array, and Python numbers of NumPy's."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [item.item() if isinstance(item, np.generic) else item for item in value]
    return value


class SamplingParams(WireRequest):
    """How to choose tokens."""

    max_tokens: Int | None = absent()
    """Most tokens to sample; None goes to the end of the context."""
    seed: Int | None = absent()
    """Equal seeds and prompts give equal tokens."""
    stop: Annotated[str | list[str] | list[int], BeforeValidator(_plain_stop)] | None = absent()
    """Strings or token ids that end a sequence; None is the model's own, [] is none at all."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: Int = -1
    """Choose among the k likeliest tokens; -1 among all. A server takes 0 for that too, as vLLM and
    transformers do; the official documentation says nothing of it."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together have this probability."""


class SampleRequest(WireRequest):
    """Sample sequences from a prompt."""

    num_samples: Int = 1
    prompt: ModelInput
    sampling_params: SamplingParams
    base_model: str | None = absent()
    model_path: str | None = absent()
    sampling_session_id: str | None = absent()
    seq_id: Int | None = absent()
    prompt_logprobs: Bool | None = absent()
    topk_prompt_logprobs: Int = 0
    topk_sample_logprobs: Int = 0
    target_prompt_logprobs: (
        Annotated[
            Any,
            BeforeValidator(_tensor_from_wire),
            PlainSerializer(tensor_to_wire),
            WithJsonSchema(TENSOR_SCHEMA),
        ]
        | None
    ) = absent()
    prompt_alt_tokens_k: Int = 0
    prompt_logprobs_last_n: Int | None = absent()
    record_stability_info: Bool | None = absent()
    type: Literal["sample"] = "sample"


class CreateSamplingSessionRequest(WireRequest):
    """Make a sampling session on a base model or on saved sampler weights."""

    session_id: str
    sampling_session_seq_id: Int
    base_model: str | None = absent()
    model_path: str | None = absent()
    type: Literal["create_sampling_session"] = "create_sampling_session"


class CreateSamplingSessionResponse(WireResponse):
    """The sampling session's id."""

    sampling_session_id: str
    type: Literal["create_sampling_session"] = "create_sampling_session"


class JoinSamplingSessionRequest(WireRequest):
    """Sample along in a sampling session that another client made."""

    sampling_session_id: str
    type: Literal["join_sampling_session"] = "join_sampling_session"


class JoinSamplingSessionResponse(WireResponse):
    """The number of the client in the session; the one that made it has 0."""

    client_counter: int
    type: Literal["join_sampling_session"] = "join_sampling_session"


class GetSamplerResponse(WireResponse):
    """What a sampling session samples from."""

    sampler_id: str
    base_model: str
    model_path: str | None = absent()


@dataclass(frozen=True, eq=False)
class TopkLogprobs:
    """The k likeliest tokens of each position.

    Shape:
        token_ids int32 [N, k]; logprobs float32 [N, k]. An empty cell has id 0 and logprob -99999.
    """

    token_ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]

    @classmethod
    def of_list(cls, rows: Sequence[Sequence[tuple[int, float]] | None]) -> Self:
        """Make them of (token, logprob) pairs for each position; None where there are none."""
        width = max((len(row or ()) for row in rows), default=0)
        ids = np.zeros((len(rows), width), np.int32)
        logprobs = np.full((len(rows), width), EMPTY_TOPK_LOGPROB, np.float32)
        for position, row in enumerate(rows):
            for rank, (token, logprob) in enumerate(row or ()):
                ids[position, rank], logprobs[position, rank] = token, logprob
        return cls(ids, logprobs)

    def to_list(self) -> list[list[tuple[int, float]] | None]:
        """Return (token, logprob) pairs for each position; None where there are none."""
        rows: list[list[tuple[int, float]] | None] = []
        for ids, logprobs in zip(self.token_ids.tolist(), self.logprobs.tolist(), strict=True):
            pairs = [
                (token, logprob)
                for token, logprob in zip(ids, logprobs, strict=True)
                if logprob > EMPTY_TOPK_LOGPROB
            ]
            rows.append(pairs or None)
        return rows

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        if not isinstance(other, TopkLogprobs):
            return NotImplemented
        return np.array_equal(self.token_ids, other.token_ids) and np.array_equal(
            self.logprobs, other.logprobs
        )

    __hash__ = None  # type: ignore[assignment]  # equality by value, over arrays


@dataclass(frozen=True)
class PromptAltTokens:
    """Alternative tokens for each prompt position, and their logprobs."""

    tokens: TensorData
    logprobs: TensorData


def _keep_list(response: Any, name: str, given: Any, as_array: Callable[[Any], Any]) -> None:
    """Take a list for what is otherwise an array: it is given back as it is."""
    if given is None:
        return
    response.__dict__[name] = given  # where the cached property looks
    if getattr(response, f"{name}_np") is None:
        object.__setattr__(response, f"{name}_np", as_array(given))


def _as_tokens(tokens: Sequence[int]) -> npt.NDArray[np.int32]:
    return np.asarray(tokens, np.int32)


def _as_logprobs(logprobs: Sequence[float | None]) -> npt.NDArray[np.float32]:
    return np.asarray([math.nan if one is None else one for one in logprobs], np.float32)


def _same(a: npt.NDArray[Any] | None, b: npt.NDArray[Any] | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@dataclass(frozen=True, eq=False)
class SampledSequence:
    """One sampled sequence.

    Stand-ins of a server may give lists instead of arrays, in the arguments that begin with `_`.

    Shape:
        tokens_np int32 [T]; logprobs_np float32 [T], natural logarithms; T is at most max_tokens.
    """

    stop_reason: StopReason
    sequence_id: str = ""
    tokens_np: npt.NDArray[np.int32] | None = None
    logprobs_np: npt.NDArray[np.float32] | None = None
    topk_logprobs_np: TopkLogprobs | None = None
    _tokens_list: InitVar[list[int] | None] = None
    _logprobs_list: InitVar[list[float] | None] = None
    _topk_logprobs_list: InitVar[list[list[tuple[int, float]] | None] | None] = None

    def __post_init__(
        self,
        _tokens_list: list[int] | None,
        _logprobs_list: list[float] | None,
        _topk_logprobs_list: list[list[tuple[int, float]] | None] | None,
    ) -> None:
        _keep_list(self, "tokens", _tokens_list, _as_tokens)
        _keep_list(self, "logprobs", _logprobs_list, _as_logprobs)
        _keep_list(self, "topk_logprobs", _topk_logprobs_list, TopkLogprobs.of_list)

    @cached_property
    def tokens(self) -> list[int]:
        """The sampled token ids, the stop token included."""
        return [] if self.tokens_np is None else self.tokens_np.tolist()

    @cached_property
    def logprobs(self) -> list[float] | None:
        """The logprob of each sampled token, or None where the server sent none."""
        return None if self.logprobs_np is None else self.logprobs_np.tolist()

    @cached_property
    def topk_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        """The likeliest tokens of each position, or None when not asked for."""
        return None if self.topk_logprobs_np is None else self.topk_logprobs_np.to_list()

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        if not isinstance(other, SampledSequence):
            return NotImplemented
        return (
            self.stop_reason == other.stop_reason
            and self.sequence_id == other.sequence_id
            and _same(self.tokens_np, other.tokens_np)
            and _same(self.logprobs_np, other.logprobs_np)
            and self.topk_logprobs_np == other.topk_logprobs_np
        )

    __hash__ = None  # type: ignore[assignment]  # equality by value, over arrays


@dataclass(frozen=True, eq=False)
class SampleResponse:
    """The sampled sequences, and figures of the prompt where they were asked for.

    Stand-ins of a server may give lists instead of arrays, in the arguments that begin with `_`.

    Shape:
        prompt_logprobs_np float32 [P], NaN where a position has none (the first one).
    """

    sequences: Sequence[SampledSequence]
    prompt_logprobs_np: npt.NDArray[np.float32] | None = None
    topk_prompt_logprobs_np: TopkLogprobs | None = None
    target_prompt_logprobs: TensorData | None = None
    prompt_cache_hit_tokens: int = 0
    prompt_alt_tokens: PromptAltTokens | None = None
    _prompt_logprobs_list: InitVar[list[float | None] | None] = None
    _topk_prompt_logprobs_list: InitVar[list[list[tuple[int, float]] | None] | None] = None

    def __post_init__(
        self,
        _prompt_logprobs_list: list[float | None] | None,
        _topk_prompt_logprobs_list: list[list[tuple[int, float]] | None] | None,
    ) -> None:
        _keep_list(self, "prompt_logprobs", _prompt_logprobs_list, _as_logprobs)
        _keep_list(self, "topk_prompt_logprobs", _topk_prompt_logprobs_list, TopkLogprobs.of_list)

    @cached_property
    def prompt_logprobs(self) -> list[float | None] | None:
        """The logprob of each prompt token; None for a position that has none."""
        if self.prompt_logprobs_np is None:
            return None
        missing = np.isnan(self.prompt_logprobs_np)
        values = self.prompt_logprobs_np.tolist()
        return [
            None if gone else value for gone, value in zip(missing.tolist(), values, strict=True)
        ]

    @cached_property
    def topk_prompt_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        """The likeliest tokens of each prompt position, or None when not asked for."""
        if self.topk_prompt_logprobs_np is None:
            return None
        return self.topk_prompt_logprobs_np.to_list()

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        if not isinstance(other, SampleResponse):
            return NotImplemented
        return (
            list(self.sequences) == list(other.sequences)
            and _same(self.prompt_logprobs_np, other.prompt_logprobs_np)
            and self.topk_prompt_logprobs_np == other.topk_prompt_logprobs_np
            and self.target_prompt_logprobs == other.target_prompt_logprobs
            and self.prompt_cache_hit_tokens == other.prompt_cache_hit_tokens
            and self.prompt_alt_tokens == other.prompt_alt_tokens
        )

    __hash__ = None  # type: ignore[assignment]  # equality by value, over arrays
