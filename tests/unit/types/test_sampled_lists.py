"""Samples that a stand-in of a server makes of lists, as tests of programs do."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np

from tinkex.types import SampledSequence, SampleResponse, TopkLogprobs

ROWS = [[(3, -0.25), (1, -2.0)], None, [(2, -1.5)]]


def test_lists_come_back_as_they_are_and_are_arrays_too():
    sequence = SampledSequence(
        stop_reason="stop",
        sequence_id="s",
        _tokens_list=[1, 2, 3],
        _logprobs_list=[-0.1, -0.2, -0.3],
        _topk_logprobs_list=ROWS,
    )
    for one in (sequence, copy.deepcopy(sequence), pickle.loads(pickle.dumps(sequence))):
        assert one == sequence
        assert (one.tokens, one.logprobs, one.topk_logprobs) == (
            [1, 2, 3],
            [-0.1, -0.2, -0.3],
            ROWS,
        )
        assert one.tokens_np.dtype == np.int32
        assert one.logprobs_np.tolist() == np.float32([-0.1, -0.2, -0.3]).tolist()
        assert one.topk_logprobs_np.to_list() == ROWS
    assert replace(sequence, stop_reason="length").tokens == [1, 2, 3]
    assert SampledSequence("stop", "s").logprobs is None


def test_prompt_figures_of_lists_are_arrays_too():
    response = SampleResponse(
        [], _prompt_logprobs_list=[None, -0.5], _topk_prompt_logprobs_list=ROWS
    )
    assert response.prompt_logprobs == [None, -0.5]
    assert math.isnan(response.prompt_logprobs_np[0])
    assert response.topk_prompt_logprobs == response.topk_prompt_logprobs_np.to_list() == ROWS
    assert response == SampleResponse([], np.float32([math.nan, -0.5]), TopkLogprobs.of_list(ROWS))


def test_arrays_that_are_given_besides_stay():
    tokens = np.asarray([7], np.int32)
    sequence = SampledSequence("stop", "s", tokens_np=tokens, _tokens_list=[7])
    assert sequence.tokens_np is tokens
    assert TopkLogprobs.of_list([]).to_list() == []
    assert TopkLogprobs.of_list([None]).to_list() == [None]
