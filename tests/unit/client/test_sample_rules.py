"""What a sample may ask for, and what its answer must have."""

from __future__ import annotations

import numpy as np
import pytest

from tinkex.client import operations, sample_rules
from tinkex.errors import APIResponseValidationError, InputError
from tinkex.types import (
    ModelInput,
    SampledSequence,
    SampleRequest,
    SampleResponse,
    SamplingParams,
    TensorData,
)


def request(**fields):
    fields.setdefault("prompt_logprobs", True)
    return SampleRequest(
        prompt=ModelInput.from_ints([1, 2, 3]), sampling_params=SamplingParams(), **fields
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs"),
        ({"topk_sample_logprobs": -1}, "topk_sample_logprobs"),
        ({"prompt_alt_tokens_k": -1}, "prompt_alt_tokens_k"),
        ({"prompt_logprobs_last_n": 0}, "at least 1"),
        ({"prompt_logprobs_last_n": 2, "prompt_logprobs": False}, "include_prompt_logprobs"),
        ({"target_prompt_logprobs": TensorData([1.0, 2.0])}, "int64"),
        ({"target_prompt_logprobs": TensorData([1, 2])}, "int64 of shape"),
        ({"target_prompt_logprobs": [[1, 2]]}, "target_prompt_logprobs does not fit: .*tensor"),
    ],
)
def test_impossible_request_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        sample_rules.check_request(operations.checked(lambda: request(**fields)))


def test_possible_request_passes():
    targets = TensorData([1, -1], shape=[2, 1])
    sample_rules.check_request(request(prompt_logprobs_last_n=2, target_prompt_logprobs=targets))


def response(count=1, **fields):
    sequence = SampledSequence("stop", "", np.asarray([1], np.int32))
    return SampleResponse([sequence] * count, **fields)


@pytest.mark.parametrize(
    ("fields", "answer", "words"),
    [
        ({"num_samples": 2}, response(1), "1 sequences instead of 2"),
        ({"prompt_alt_tokens_k": 1}, response(), "prompt_alt_tokens"),
        (
            {"prompt_logprobs_last_n": 1},
            response(prompt_logprobs_np=np.asarray([np.nan, -1, -1], np.float32)),
            "last 1",
        ),
    ],
)
def test_answer_of_a_server_that_ignores_the_request_is_refused(fields, answer, words):
    with pytest.raises(APIResponseValidationError, match=words):
        sample_rules.check_response(request(**fields), answer)


def test_answer_with_what_was_asked_for_passes():
    logprobs = np.asarray([np.nan, np.nan, -1], np.float32)
    sample_rules.check_response(
        request(prompt_logprobs_last_n=1), response(prompt_logprobs_np=logprobs)
    )
    sample_rules.check_response(request(prompt_logprobs_last_n=9), response())
