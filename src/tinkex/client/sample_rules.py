"""What a sample request may ask for, and what its answer must then have. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tinkex.errors import APIResponseValidationError, InputError
from tinkex.types import EncodedTextChunk, ModelInput, TensorData

if TYPE_CHECKING:
    from tinkex.types import SampleRequest, SampleResponse, SamplingParams


def own(prompt: Any) -> Any:
    """Return a prompt whose list of chunks nobody else has: the caller may add to theirs."""
    return prompt.model_copy() if isinstance(prompt, ModelInput) else prompt


def check_request(request: SampleRequest) -> None:
    """Refuse what no server can answer, before it is sent.

    Raises:
        InputError: naming the argument.
    """
    chunks = request.prompt.chunks
    if all(isinstance(chunk, EncodedTextChunk) and not chunk.length for chunk in chunks):
        raise InputError("The prompt is empty: give the model at least one token to read.")
    if request.num_samples < 1:
        raise InputError(f"num_samples must be at least 1, not {request.num_samples}.")
    _check_params(request.sampling_params)
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        if getattr(request, name) < 0:
            raise InputError(f"{name} must not be negative, not {getattr(request, name)}.")
    last_n = request.prompt_logprobs_last_n
    if last_n is not None and last_n < 1:
        raise InputError(f"prompt_logprobs_last_n must be at least 1, not {last_n}.")
    if last_n is not None and not request.prompt_logprobs:
        raise InputError("prompt_logprobs_last_n needs include_prompt_logprobs=True.")
    if request.target_prompt_logprobs is not None:
        _check_targets(request.target_prompt_logprobs)


def check_response(request: SampleRequest, response: SampleResponse) -> None:
    """See that the answer has what was asked for: an older server ignores what it does not know.

    Raises:
        APIResponseValidationError: naming what is missing.
    """
    if len(response.sequences) != request.num_samples:
        raise APIResponseValidationError(
            f"The server sent {len(response.sequences)} sequences instead of {request.num_samples}."
        )
    if request.prompt_alt_tokens_k > 0 and response.prompt_alt_tokens is None:
        raise APIResponseValidationError(
            "The server sent no prompt_alt_tokens: it is too old for prompt_alt_tokens_k."
        )
    last_n, logprobs = request.prompt_logprobs_last_n, response.prompt_logprobs
    if last_n is None or logprobs is None:
        return
    if any(logprob is not None for logprob in logprobs[: max(len(logprobs) - last_n, 0)]):
        raise APIResponseValidationError(
            "The server computed more prompt logprobs than the last "
            f"{last_n}: it is too old for prompt_logprobs_last_n."
        )


def _check_params(params: SamplingParams) -> None:
    if params.max_tokens is not None and params.max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, not {params.max_tokens}.")
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        raise InputError(
            f"temperature must be 0 (greedy) or a positive number, not {params.temperature}."
        )
    if not 0 < params.top_p <= 1:
        raise InputError(f"top_p must be above 0 and at most 1, not {params.top_p}.")
    if params.top_k < -1:
        raise InputError(f"top_k must be -1 (all) or a number of tokens, not {params.top_k}.")


def _check_targets(targets: TensorData) -> None:
    if targets.dtype != "int64" or len(targets.dimensions) != 2:
        raise InputError(
            "target_prompt_logprobs must be int64 of shape [prompt tokens - 1, K], not "
            f"{targets.dtype} of shape {list(targets.dimensions)}."
        )
