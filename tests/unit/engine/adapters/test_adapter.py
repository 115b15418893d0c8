"""One adapter, one sampler: what a step does, and how they are taken apart."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.adapters.adapter import Adapter, Sampler
from tinkex.engine.lora.weights import LoraShape, initial_weights
from tinkex.engine.training.optimizers import find_optimizer
from tinkex.errors import InputError
from tinkex.types import AdamParams, LoraConfig


def adapter(kind="adamw"):
    weights = initial_weights([LoraShape("layer", 4, 6)], 2, 32.0, 0, torch.device("cpu"))
    return Adapter(LoraConfig(rank=2), weights, kind)


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


@pytest.mark.parametrize("kind", ["adamw", "dimuon"])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("summed", [False, True])
def test_adapter_made_again_from_its_tensors_is_the_same(kind, steps, summed):
    a = adapter(kind)
    for _ in range(steps):
        a.accumulate(torch.randn(a.weights.flat.shape))
        a.step(find_optimizer(kind).params(learning_rate=0.1))
    if summed:
        a.accumulate(torch.randn(a.weights.flat.shape))
    again = a.plan()({name: tensor.clone() for name, tensor in a.tensors().items()})
    assert again.tensors().keys() == a.tensors().keys()
    for name, tensor in a.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
    assert (again.lora, again.optimizer_type, again.nbytes) == (a.lora, a.optimizer_type, a.nbytes)
    assert (again.optimizer and again.optimizer.step) == (a.optimizer and a.optimizer.step)
    assert again.weights.scale == a.weights.scale
    assert all(factor.requires_grad for factor in again.weights.parameters)


@pytest.mark.parametrize("kind", ["adamw", "dimuon"])
def test_adapter_never_takes_more_than_it_says(kind):
    a = adapter(kind)
    a.accumulate(torch.randn(a.weights.flat.shape))
    a.step(find_optimizer(kind).params(learning_rate=0.1))
    a.accumulate(torch.randn(a.weights.flat.shape))
    assert sum(tensor.nbytes for tensor in a.tensors().values()) == a.nbytes


def test_sampler_made_again_from_its_tensors_is_the_same():
    one = Sampler(adapter().weights.frozen_copy())
    again = one.plan()({name: tensor.clone() for name, tensor in one.tensors().items()})
    assert torch.equal(again.weights.flat, one.weights.flat)
    assert again.weights.pairs.keys() == one.weights.pairs.keys()
    assert again.nbytes == one.nbytes == one.weights.flat.nbytes
