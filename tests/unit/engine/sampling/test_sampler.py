"""Choosing tokens: supports, distributions, determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tinkex.engine.sampling.sampler import NextTokens, RowChoice, choose_tokens, draw_alternatives

V = 40


def row(**changes):
    return RowChoice(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "uniform": 0.5, **changes})


def logits(count=1, size=V, seed=0):
    return 2 * torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def many(one, count, **settings):
    """Sample one row of logits with evenly spread uniforms."""
    choices = [row(uniform=(i + 0.5) / count, **settings) for i in range(count)]
    return choose_tokens(NextTokens(one.expand(count, -1)), choices).numpy()


def shares(one, count=5_000, **settings):
    return np.bincount(many(one, count, **settings), minlength=one.shape[1]) / count


def test_temperature_zero_takes_the_likeliest():
    z = logits(5)
    found = choose_tokens(NextTokens(z), [row(temperature=0.0, top_k=3, top_p=0.1)] * 5)
    assert torch.equal(found, z.argmax(1))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_shares_are_the_softmax(temperature):
    """Evenly spread uniforms give each token its probability to within one of the steps."""
    z = logits()
    exact = (z.double() / temperature).softmax(1)[0].numpy()
    assert np.abs(shares(z, temperature=temperature) - exact).max() < 4.1e-4


def test_random_uniforms_pass_a_chi_squared_test():
    """39 degrees of freedom: 72.1 is one in a thousand."""
    z = logits(seed=3) * 0.3
    uniforms = np.random.default_rng(0).random(20_000)
    found = choose_tokens(
        NextTokens(z.expand(20_000, -1)), [row(uniform=u) for u in uniforms]
    ).numpy()
    counts = np.bincount(found, minlength=V)
    expected = 20_000 * z.double().softmax(1)[0].numpy()
    assert ((counts - expected) ** 2 / expected).sum() < 72.1


@pytest.mark.parametrize("k", [1, 2, 7, V, V + 5])
def test_top_k_keeps_the_k_likeliest_in_proportion(k):
    z = logits()
    found = shares(z, top_k=k)
    kept = z[0].topk(min(k, V)).indices.numpy()
    exact = np.zeros(V)
    exact[kept] = z[0, kept].double().softmax(0).numpy()
    assert set(np.nonzero(found)[0]) <= set(kept)
    assert np.abs(found - exact).max() < 4.1e-4


@pytest.mark.parametrize("p", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("size", [V, 500])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, size):
    z = logits(size=size) * 0.5
    probabilities, order = z[0].double().softmax(0).sort(descending=True)
    count = int((probabilities.cumsum(0) < p).sum()) + 1
    exact = np.zeros(size)
    exact[order[:count].numpy()] = (probabilities[:count] / probabilities[:count].sum()).numpy()
    assert np.abs(shares(z, top_p=p) - exact).max() < 4.1e-4


def test_top_p_applies_to_what_top_k_left():
    z = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    found = shares(z, top_k=2, top_p=0.55)
    assert set(np.nonzero(found)[0]) == {0}  # 0.4 / 0.7 reaches 0.55 alone


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("settings", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_extreme_uniforms_stay_inside_the_support(uniform, settings):
    z = torch.full((1, V), -torch.inf)
    z[0, 10:13] = torch.tensor([0.0, 1.0, -1.0])
    token = choose_tokens(NextTokens(z), [row(uniform=uniform, **settings)]).item()
    assert 10 <= token <= 12


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_every_vocabulary_size_is_covered_to_its_ends(size):
    z = logits(size=size) * 0.2
    exact = z.double().softmax(1)[0].numpy()
    assert np.abs(shares(z) - exact).max() < 4.1e-4
    assert choose_tokens(NextTokens(z), [row(uniform=0.0)]).item() == 0
    assert choose_tokens(NextTokens(z), [row(uniform=1 - 2**-53)]).item() == size - 1


@pytest.mark.parametrize("temperature", [1e-6, 1e-45, 2**-150, 5e-324])
def test_tiny_temperature_neither_overflows_nor_wanders(temperature):
    z = logits(3) * 1000
    found = choose_tokens(NextTokens(z), [row(temperature=temperature)] * 3)
    assert torch.equal(found, z.argmax(1))


def test_row_does_not_depend_on_its_company():
    z = logits(12)
    settings = [{}, {"top_k": 5}, {"top_p": 0.8}, {"temperature": 0.0}, {"temperature": 0.5}]
    choices = [row(uniform=(i + 1) / 14, **settings[i % 5]) for i in range(12)]
    together = choose_tokens(NextTokens(z), choices)
    alone = [choose_tokens(NextTokens(z[i : i + 1]), [choices[i]]).item() for i in range(12)]
    assert together.tolist() == alone


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("settings", [{"top_p": 0.7}, {"top_k": 20}, {"top_k": 90, "top_p": 0.8}])
def test_equally_likely_tokens_are_told_apart_alike_in_any_company(settings, seed):
    """Logits of bfloat16 have many ties; a flat neighbour needs far more candidates than 64."""
    size = 5000
    peaked = (logits(3, size, seed) * 6).round() / 4
    flat = logits(3, size, seed + 100) * 0.01
    z = torch.stack([peaked, flat], dim=1).view(6, size)
    choices = [row(uniform=(i + 0.5) / 6, **settings) for i in range(6)]
    together = choose_tokens(NextTokens(z), choices)
    alone = [choose_tokens(NextTokens(z[i : i + 1]), [choices[i]]).item() for i in range(6)]
    assert together.tolist() == alone


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("size", [1, 63, 64, 700])
def test_alternatives_are_what_one_draw_after_the_other_gives(size, temperature):
    distributions = NextTokens(logits(5, size))
    uniforms = torch.rand(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    uniforms[0, :2] = torch.tensor([0.0, 1 - 2**-53])
    found = draw_alternatives(distributions, temperature, uniforms)
    for column in range(9):
        choices = [row(temperature=temperature, uniform=u) for u in uniforms[:, column].tolist()]
        assert torch.equal(found[:, column], choose_tokens(distributions, choices))


def test_logprobs_are_those_of_the_plain_softmax():
    z = logits(6)
    chosen = torch.arange(6)
    expected = z.log_softmax(1)[torch.arange(6), chosen]
    torch.testing.assert_close(NextTokens(z).logprobs(chosen), expected)
