"""Adapters and samplers by name."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.adapters import Adapter, AdapterPool
from tinkex.engine.lora import LoraShape, initial_weights
from tinkex.errors import EngineError, InputError
from tinkex.types import AdamParams, LoraConfig


def adapter():
    weights = initial_weights([LoraShape("layer", 4, 6)], 2, 32.0, 0, torch.device("cpu"))
    return Adapter(LoraConfig(rank=2), weights)


def test_step_applies_and_drops_the_sum_of_gradients():
    one, two = adapter(), adapter()
    gradient = torch.randn(one.weights.flat.shape)
    one.accumulate(gradient / 2)
    one.accumulate(gradient / 2)
    two.accumulate(gradient.clone())
    for a in (one, two):
        a.step(AdamParams(learning_rate=0.1))
        assert a.gradient is None
    torch.testing.assert_close(one.weights.flat, two.weights.flat)


def test_step_without_a_gradient_counts_and_moves_nothing_at_first():
    a = adapter()
    before = a.weights.flat.clone()
    assert a.step(AdamParams())["grad_norm"] == 0
    assert torch.equal(a.weights.flat, before)
    assert a.optimizer.step == 1


def test_bad_hyperparameters_keep_the_gradient():
    a = adapter()
    a.accumulate(torch.ones_like(a.weights.flat))
    with pytest.raises(InputError):
        a.step(AdamParams(beta1=1.0))
    assert a.gradient is not None
    assert a.optimizer is None


def test_step_that_is_not_finite_drops_the_gradient():
    a = adapter()
    a.accumulate(torch.full_like(a.weights.flat, 1e30))
    before = a.weights.flat.clone()
    with pytest.raises(InputError):
        a.step(AdamParams())
    assert a.gradient is None
    assert a.optimizer is None
    assert torch.equal(a.weights.flat, before)


def test_pool_holds_so_many_adapters():
    pool = AdapterPool.empty(1, 1)
    pool.put_adapter("a", adapter())
    pool.put_adapter("a", adapter())
    with pytest.raises(EngineError, match="at most 1 adapters"):
        pool.put_adapter("b", adapter())
    pool.remove_adapter("a")
    pool.remove_adapter("a")
    pool.put_adapter("b", adapter())


def test_pool_holds_so_many_samplers():
    pool = AdapterPool.empty(1, 1)
    pool.put_sampler("a", adapter().weights)
    with pytest.raises(EngineError, match="at most 1 samplers"):
        pool.put_sampler("b", adapter().weights)
    pool.remove_sampler("a")
    pool.remove_sampler("a")


def test_unknown_names_are_refused():
    pool = AdapterPool.empty(1, 1)
    with pytest.raises(InputError, match="unknown adapter 'x'"):
        pool.adapter("x")
    with pytest.raises(InputError, match="unknown sampler 'x'"):
        pool.sampler("x")
