"""What is refused before anything is computed, and how data is packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_support import VOCAB, datum

from tinkex.engine.training.batching import (
    BatchLimits,
    microbatches,
    pack,
    prompt_tokens,
    training_sequences,
)
from tinkex.engine.training.losses import loss_call
from tinkex.errors import InputError
from tinkex.types import (
    Datum,
    DmelChunk,
    EncodedTextChunk,
    ImageAssetPointerChunk,
    ImageChunk,
    ModelInput,
    TensorData,
)

LIMITS = BatchLimits(vocab_size=VOCAB, context_length=32, request_tokens=100)


def check(*data, loss_fn="cross_entropy", config=None):
    return training_sequences(data, loss_call(loss_fn, config), LIMITS)


def floats(*values):
    return np.array(values, dtype=np.float32)


def test_good_data_is_taken_as_sent():
    one = datum(5, seed=1)
    (sequence,) = check(one)
    assert sequence.tokens.tolist() == one.model_input.to_ints()
    assert sequence.targets[:, 0].tolist() == one.loss_fn_inputs["target_tokens"].tolist()
    assert sequence.target_shape == (5,)


def test_several_text_chunks_are_joined():
    chunks = [EncodedTextChunk(tokens=[1, 2]), EncodedTextChunk(tokens=[3])]
    one = Datum(model_input=ModelInput(chunks=chunks), loss_fn_inputs={"target_tokens": [2, 3, 4]})
    assert check(one)[0].tokens.tolist() == [1, 2, 3]


def test_absent_weights_are_one():
    assert check(datum(3, weights=None))[0].fields["weights"].tolist() == [[1.0]] * 3


def test_absent_thresholds_of_some_data_take_the_configuration():
    given = datum(2, loss_fn="ppo", clip_low_threshold=floats(0.1, 0.2))
    first, second = check(given, datum(2, loss_fn="ppo"), loss_fn="ppo")
    assert first.fields["clip_low_threshold"][:, 0].tolist() == pytest.approx([0.1, 0.2])
    assert second.fields["clip_low_threshold"][:, 0].tolist() == pytest.approx([0.8, 0.8])
    assert "clip_high_threshold" not in first.fields


@pytest.mark.parametrize(
    "limits",
    [
        {"clip_low_threshold": floats(0.1, 1.3)},
        {"clip_high_threshold": floats(1.3, 0.7)},
        {"clip_low_threshold": floats(0.5, 1.1), "clip_high_threshold": floats(1.5, 1.0)},
    ],
)
def test_thresholds_that_cross_at_a_token_are_refused(limits):
    bad = datum(2, loss_fn="ppo", **limits)
    with pytest.raises(
        InputError, match="datum 1: clip_low_threshold is above clip_high_threshold at 1"
    ):
        check(datum(2, loss_fn="ppo"), bad, loss_fn="ppo")


def test_empty_batch_is_refused():
    with pytest.raises(InputError, match="batch is empty"):
        check()


IMAGE = ModelInput(
    chunks=[EncodedTextChunk(tokens=[1]), ImageChunk(data=b"x", format="png", expected_tokens=2)]
)
BAD = {
    "no token": (Datum(ModelInput.empty(), {"target_tokens": [1]}), "model_input is empty"),
    "image": (Datum(IMAGE, {"target_tokens": [1, 2, 3]}), "chunk 1 is of type 'image'"),
    "token above": (datum(3, target_tokens=[1, VOCAB, 2]), rf"token id {VOCAB} at \[1\]"),
    "token below": (datum(3, target_tokens=[1, 2, -1]), "token id -1"),
    "too long": (datum(33), "at most 32"),
    "target longer": (datum(3, target_tokens=[1, 2, 3, 4]), "4 positions, its model_input 3"),
    "target shorter": (datum(3, target_tokens=[1, 2]), "2 positions"),
    "float target": (datum(3, target_tokens=floats(1, 2, 3)), "target_tokens must be int64"),
    "three axes": (datum(3, target_tokens=np.ones((3, 1, 1), np.int64)), "shape"),
    "no column": (datum(3, target_tokens=np.ones((3, 0), np.int64)), "shape"),
    "no target": (datum(3, target_tokens=None), "needs the input 'target_tokens'"),
    "unknown key": (datum(3, mask=floats(1, 1, 1)), "takes no input 'mask'"),
    "nan": (datum(3, weights=floats(1, np.nan, 1)), r"weights has a value.*at \[1\]"),
    "infinite": (datum(3, weights=floats(1, np.inf, 1)), "not finite"),
    "int weights": (datum(3, weights=np.array([1, 1, 1])), "weights must be float32"),
    "short weights": (datum(3, weights=floats(1, 1)), "shape"),
}


@pytest.mark.parametrize(
    "chunk",
    [
        ImageChunk(data=b"x", format="png", expected_tokens=2),
        ImageAssetPointerChunk(location="a", format="png", expected_tokens=2),
        DmelChunk(b"x"),
    ],
    ids=lambda chunk: chunk.type,
)
def test_chunk_that_is_no_text_is_refused_with_the_reason_and_the_way_out(chunk):
    given = ModelInput(chunks=[EncodedTextChunk(tokens=[1]), chunk])
    pattern = f"prompt: chunk 1 is of type '{chunk.type}'; .* text only .*into words"
    with pytest.raises(InputError, match=pattern):
        prompt_tokens(given, LIMITS, "prompt")
    with pytest.raises(InputError, match="datum 0: model_input: chunk 1 is of type"):
        check(Datum(given, {"target_tokens": [1, 2, 3]}))


@pytest.mark.parametrize("case", BAD)
def test_bad_datum_is_refused_by_place_and_key(case):
    bad, message = BAD[case]
    with pytest.raises(InputError, match=rf"datum 1: .*{message}"):
        check(datum(3), bad)


def test_input_token_outside_the_vocabulary_is_refused():
    bad = Datum(ModelInput.from_ints([1, VOCAB]), {"target_tokens": [1, 2]})
    with pytest.raises(InputError, match="datum 0: model_input has the token id"):
        check(bad)


@pytest.mark.parametrize("key", ["advantages", "logprobs"])
def test_missing_input_of_a_loss_is_refused(key):
    bad = datum(3, loss_fn="importance_sampling", **{key: None})
    with pytest.raises(InputError, match=f"needs the input '{key}'"):
        check(bad, loss_fn="importance_sampling")


def test_soft_targets_are_for_cross_entropy_alone():
    soft = datum(
        3, loss_fn="ppo", target_tokens=np.ones((3, 2), np.int64), logprobs=np.ones((3, 2), "f")
    )
    with pytest.raises(InputError, match=r"shape \[T\] for ppo"):
        check(soft, loss_fn="ppo")


def test_request_too_large_is_refused_with_the_way_out():
    with pytest.raises(InputError, match="several forward_backward calls"):
        check(*[datum(30)] * 4)


def test_sparse_tensors_are_read():
    targets = TensorData.from_numpy(np.array([[0, 5], [0, 0], [7, 0]])).to_sparse()
    weights = TensorData.from_numpy(np.array([[0, 0.5], [0, 0], [1, 0]], np.float32)).to_sparse()
    (sequence,) = check(datum(3, target_tokens=targets, weights=weights))
    assert sequence.targets.tolist() == [[0, 5], [0, 0], [7, 0]]
    assert sequence.fields["weights"].tolist() == [[0, 0.5], [0, 0], [1, 0]]


def test_microbatches_keep_the_budget_and_every_datum():
    sequences = check(*(datum(n, seed=n) for n in (9, 3, 20, 3, 9, 12)))
    groups = microbatches(sequences, 20)
    assert sorted(s.index for g in groups for s in g) == list(range(6))
    assert all(sum(len(s.tokens) for s in g) <= 20 for g in groups)


def test_sequence_above_the_budget_goes_alone():
    groups = microbatches(check(datum(30), datum(3)), 10)
    assert [len(g) for g in groups] == [1, 1]


def test_packing_is_end_to_end_without_padding():
    batch = pack(check(datum(3, seed=1), datum(2, seed=2)), torch.device("cpu"))
    assert batch.lengths == (3, 2)
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.ids.shape == (5,)


def test_narrow_soft_targets_are_widened_without_weight():
    wide = datum(2, target_tokens=np.full((2, 3), 5), weights=None)
    batch = pack(check(datum(2, weights=None), wide), torch.device("cpu"))
    assert batch.targets.shape == (4, 3)
    assert batch.fields["weights"].tolist() == [[1, 0, 0]] * 2 + [[1, 1, 1]] * 2
