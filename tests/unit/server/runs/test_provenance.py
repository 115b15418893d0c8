"""Spans of a datum resolve to recorded log-probabilities, or say what is wrong with them."""

import numpy as np
import pytest

from tinkex.errors import InputError
from tinkex.server.runs.provenance import named_sequences, with_recorded_logprobs
from tinkex.server.sampling.recordings import RecordedSequence
from tinkex.types import Datum, ModelInput, PromptProvenanceSpan, SampledProvenanceSpan

RECORDED = {
    "a": RecordedSequence(
        np.array([1, 2, 3], np.int32),
        np.array([10, 11, 12], np.int32),
        np.array([-0.5, -1.0, -2.0], np.float32),
    ),
    "b": RecordedSequence(  # the second turn: the first one and an observation are its prompt
        np.array([1, 2, 3, 10, 11, 12, 4], np.int32),
        np.array([20, 21], np.int32),
        np.array([-3.0, -4.0], np.float32),
    ),
}


def prompt(name, length, offset=0):
    return PromptProvenanceSpan(sequence_id=name, offset=offset, length=length)


def sampled(name, length, offset=0):
    return SampledProvenanceSpan(sequence_id=name, offset=offset, length=length)


ONE_TURN = ([prompt("a", 3), sampled("a", 2)], [prompt("a", 2, 1), sampled("a", 3)])


def datum(tokens=(1, 2, 3, 10, 11, 12), spans=ONE_TURN, **inputs):
    inputs = {
        "target_tokens": list(tokens[1:]),
        "advantages": [1.0] * (len(tokens) - 1),
        **inputs,
    }
    inputs = {key: value for key, value in inputs.items() if value is not None}
    return Datum(ModelInput.from_ints(list(tokens[:-1])), inputs, *spans)


def resolve(one):
    (found,) = with_recorded_logprobs([one], RECORDED.get)
    return {key: value.tolist() for key, value in found.loss_fn_inputs.items()}


def test_sampled_targets_get_their_recorded_logprobs_and_the_others_no_weight():
    found = resolve(datum())
    assert found["logprobs"] == [0, 0, -0.5, -1.0, -2.0]
    assert found["weights"] == [0, 0, 1, 1, 1]
    assert found["advantages"] == [1.0] * 5
    assert found["target_tokens"] == [2, 3, 10, 11, 12]


def test_every_sequence_that_is_named_is_found():
    spans = ([prompt("b", 5)], [sampled("c", 5)])
    assert named_sequences([datum(), datum(spans=spans), datum(spans=(None, None))]) == set("abc")


def test_two_turns_in_one_datum_name_both_sequences():
    tokens = (1, 2, 3, 10, 11, 12, 4, 20, 21)
    spans = (
        [prompt("b", 7), sampled("b", 1)],
        [prompt("a", 2, 1), sampled("a", 3), prompt("b", 1, 6), sampled("b", 2)],
    )
    found = resolve(datum(tokens, spans))
    assert found["logprobs"] == [0, 0, -0.5, -1.0, -2.0, 0, -3.0, -4.0]
    assert found["weights"] == [0, 0, 1, 1, 1, 0, 1, 1]


def test_weights_that_were_sent_stay_where_targets_were_sampled():
    assert resolve(datum(weights=[9.0, 9.0, 0.5, 0.0, -1.0]))["weights"] == [0, 0, 0.5, 0, -1]


def test_targets_that_were_not_sampled_may_be_placeholders():
    found = resolve(datum(target_tokens=[0, 0, 10, 11, 12]))
    assert found["target_tokens"] == [0, 0, 10, 11, 12]
    assert found["weights"] == [0, 0, 1, 1, 1]


def test_part_of_a_sequence_is_named_by_its_offset():
    spans = (
        [prompt("a", 3), sampled("a", 1)],
        [prompt("a", 2, 1), sampled("a", 1), sampled("a", 1, 1)],
    )
    assert resolve(datum((1, 2, 3, 10, 11), spans))["logprobs"] == [0, 0, -0.5, -1.0]


def test_recorded_logprobs_may_be_sent_along_and_no_others():
    assert resolve(datum(logprobs=[7.0, 7, -0.5, -1, -2]))["logprobs"] == [0, 0, -0.5, -1, -2]
    with pytest.raises(InputError, match=r"logprobs is -1\.5 at 3, and -1\.0 was recorded"):
        resolve(datum(logprobs=[0.0, 0, -0.5, -1.5, -2]))
    with pytest.raises(InputError, match="logprobs is nan at 3"):
        resolve(datum(logprobs=[0.0, 0, -0.5, np.nan, -2]))


TARGETS = ONE_TURN[1]
REFUSED = {
    "no provenance": (datum(spans=(None, None)), "datum 0: .*with_provenance"),
    "only for the input": (datum(spans=(ONE_TURN[0], None)), "with_provenance"),
    "unknown sequence": (
        datum(spans=(ONE_TURN[0], [prompt("a", 2, 1), sampled("z", 3)])),
        "nothing is recorded for sequence 'z'",
    ),
    "unknown prompt": (datum(spans=([prompt("z", 3), sampled("a", 2)], TARGETS)), "'z'"),
    "other target": (
        datum((1, 2, 3, 10, 99, 12), ([prompt("a", 3), sampled("a", 2)], TARGETS)),
        r"model_input has the token 99 at 4, .*sampled tokens of sequence 'a' has 11",
    ),
    "other target alone": (
        datum((1, 2, 3, 10, 11, 99)),
        r"target_tokens has the token 99 at 4, .*has 12",
    ),
    "other prompt": (datum((1, 5, 3, 10, 11, 12)), r"token 5 at 1, .*prompt of sequence 'a' has 2"),
    "shifted": (
        datum(spans=([prompt("a", 2, 1), sampled("a", 3)], TARGETS)),
        "token 1 at 0, where the prompt",
    ),
    "beyond the end": (
        datum(spans=(ONE_TURN[0], [prompt("a", 2, 1), sampled("a", 3, 1)])),
        "tokens 1 to 4 of the sampled tokens of sequence 'a'; it has 3",
    ),
    "too few": (datum(spans=(ONE_TURN[0], [prompt("a", 2, 1), sampled("a", 2)])), "cover 4 of 5"),
    "too many": (
        datum(spans=([prompt("a", 3), sampled("a", 3)], TARGETS)),
        "3 positions from 3.*this has 5",
    ),
    "overlap": (
        datum(
            (1, 2, 3, 10, 11, 11),
            (ONE_TURN[0], [prompt("a", 2, 1), sampled("a", 2), sampled("a", 1, 1)]),
        ),
        "two spans overlap: both name token 1 sampled in sequence 'a'",
    ),
    "no targets": (datum(target_tokens=None), "needs target_tokens"),
    "soft targets": (datum(target_tokens=np.ones((5, 2), np.int64)), "needs target_tokens"),
    "logprobs of another length": (datum(logprobs=[0.0]), "logprobs has the shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case):
    one, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        with_recorded_logprobs([one], RECORDED.get)


def test_error_names_the_datum():
    with pytest.raises(InputError, match="datum 1: target_tokens has the token 99"):
        with_recorded_logprobs([datum(), datum((1, 2, 3, 10, 11, 99))], RECORDED.get)


def test_weights_of_another_shape_or_dtype_are_left_for_the_engine_to_refuse():
    sent = np.ones(3, np.float32)
    (found,) = with_recorded_logprobs([datum(weights=sent)], RECORDED.get)
    assert found.loss_fn_inputs["weights"].dimensions == (3,)
