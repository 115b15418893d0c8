from __future__ import annotations

import math
import random

import pytest

from tinkex.client.metrics import combine_outputs, reduce_metrics
from tinkex.types import ForwardBackwardOutput, TensorData

KNOWN = ("sum", "min", "max", "mean", "slack", "hash2", "unique")


def test_reduction_equals_the_official_one_on_random_inputs():
    """A3.6."""
    tinker = pytest.importorskip("tinker")
    helpers = pytest.importorskip("tinker.lib.chunked_fwdbwd_helpers")
    rng = random.Random(7)
    for _ in range(200):
        keys = [f"m{index}:{rng.choice([*KNOWN, 'p99'])}" for index in range(rng.randint(0, 6))]
        chunks, weights = [], []
        for _ in range(rng.randint(1, 5)):
            present = [key for key in keys if rng.random() < 0.9]
            chunks.append({key: rng.uniform(-1e6, 1e6) for key in present})
            weights.append(rng.randint(1, 4))
        results = [
            tinker.ForwardBackwardOutput(
                loss_fn_output_type="ArrayRecord",
                loss_fn_outputs=[{} for _ in range(weight)],
                metrics=chunk,
            )
            for chunk, weight in zip(chunks, weights, strict=True)
        ]
        expected = helpers.combine_fwd_bwd_output_results(results).metrics

        ours = reduce_metrics(chunks, weights)

        assert ours.keys() == expected.keys()
        for key, value in expected.items():
            assert ours[key] == pytest.approx(value, rel=1e-12, abs=1e-9), key


@pytest.mark.parametrize(
    ("key", "values", "weights", "expected"),
    [
        ("x:mean", [1.0, 3.0], [0, 0], 2.0),
        ("x:slack", [1.0, 3.0], [0, 0], 1.0),
        ("a:b:sum", [1.0, 3.0], [1, 1], 4.0),
        ("x:hash2", [2.0**63, 2.0**63], [1, 1], 0),
        ("x:hash_unordered", [3.0, 4.0], [1, 1], 7),
    ],
)
def test_reduction_is_defined_where_the_official_one_crashes(key, values, weights, expected):
    assert reduce_metrics([{key: value} for value in values], weights) == {key: expected}


def test_hash_of_a_value_that_is_no_number_is_nan():
    assert math.isnan(reduce_metrics([{"x:hash2": math.nan}], [1])["x:hash2"])


def test_key_without_fold_stays_for_one_chunk_and_goes_for_several():
    assert reduce_metrics([{"plain": 1.0}], [1]) == {"plain": 1.0}
    assert reduce_metrics([{"plain": 1.0}, {"plain": 1.0}], [1, 1]) == {}


def test_no_chunks_reduce_to_nothing():
    assert reduce_metrics([], []) == {}
    assert combine_outputs([]).metrics == {}


def test_outputs_are_joined_in_chunk_order():
    def output(value, kind):
        tensor = TensorData(data=[value], dtype="float32", shape=[1])
        return ForwardBackwardOutput(
            loss_fn_output_type=kind,
            loss_fn_outputs=[{"logprobs": tensor}],
            metrics={"loss:sum": value},
        )

    combined = combine_outputs([output(1.0, "ArrayRecord"), output(2.0, "Other")])

    assert [row["logprobs"].data[0] for row in combined.loss_fn_outputs] == [1.0, 2.0]
    assert combined.loss_fn_output_type == "ArrayRecord"
    assert combined.metrics == {"loss:sum": 3.0}
