"""The random numbers of sampling."""

from __future__ import annotations

import numpy as np
import pytest

from tinkex.engine.sampling.uniform import UniformStream


def draws(seed, sample, count=200):
    stream = UniformStream(seed, sample)
    return [stream.draw() for _ in range(count)]


def test_numbers_depend_on_seed_and_sample_only():
    assert draws(1, 0) == draws(1, 0)
    assert draws(1, 0) != draws(1, 1)
    assert draws(1, 0) != draws(2, 0)


@pytest.mark.parametrize("seed", [0, -1, 2**63, -(2**70)])
def test_any_integer_is_a_seed(seed):
    assert all(0 <= u < 1 for u in draws(seed, 0))


def test_numbers_are_uniform_over_streams():
    """Chi-squared over ten bins of first draws: 9 degrees of freedom, 27.9 is one in a thousand."""
    first = [draws(seed, 0, 1)[0] for seed in range(2000)]
    counts = np.histogram(first, bins=10, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9


def test_numbers_given_at_once_are_those_of_the_steps():
    assert UniformStream(1, 0).first(200).tolist() == draws(1, 0)
