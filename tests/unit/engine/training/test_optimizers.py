"""Adam against torch's own, and steps that are refused."""

from __future__ import annotations

import pytest
import torch

from tinkex.engine.training.optimizers import adam_step, check_adam_params, new_adam_state
from tinkex.errors import EngineError, InputError
from tinkex.types import AdamParams

P = 500


def start(seed=0):
    return torch.randn(P, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_equal_torch_adamw_with_changing_hyperparameters(decay):
    weights, state = start(), None
    state = new_adam_state(weights)
    theirs = torch.nn.Parameter(start())
    optimizer = torch.optim.AdamW([theirs], lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    for i in range(6):
        gradient = start(i + 10) * 10.0 ** (i - 3)
        rate = 0.01 * (i + 1)
        optimizer.param_groups[0].update(lr=rate, weight_decay=decay)
        theirs.grad = gradient.clone()
        optimizer.step()
        params = AdamParams(learning_rate=rate, eps=1e-8, weight_decay=decay)
        metrics = adam_step(weights, gradient, state, params)
        assert metrics["grad_norm"] == pytest.approx(gradient.norm().item(), rel=1e-5)
    torch.testing.assert_close(weights, theirs.detach(), rtol=1e-5, atol=1e-6)
    assert state.step == 6


def test_first_step_moves_by_the_learning_rate():
    weights = torch.zeros(3)
    gradient = torch.tensor([1e-6, -5.0, 0.0])
    adam_step(weights, gradient, new_adam_state(weights), AdamParams(learning_rate=0.5))
    torch.testing.assert_close(weights, torch.tensor([-0.5, 0.5, 0.0]))


def test_global_norm_is_clipped_and_reported_before_clipping():
    gradient = torch.full((P,), 3.0)
    norm = gradient.norm().item()
    results = []
    for scale, clip in ((1.0, 1.0), (1 / norm, 0.0)):
        weights = start()
        params = AdamParams(learning_rate=0.1, grad_clip_norm=clip, eps=1.0)
        metrics = adam_step(weights, gradient * scale, new_adam_state(weights), params)
        results.append((weights, metrics["grad_norm"]))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1] == pytest.approx(norm, rel=1e-6)


def test_small_gradient_is_not_clipped():
    gradient = torch.full((P,), 1e-3)
    one, two = start(), start()
    adam_step(one, gradient, new_adam_state(one), AdamParams(grad_clip_norm=1.0))
    adam_step(two, gradient, new_adam_state(two), AdamParams())
    assert torch.equal(one, two)


def test_zero_gradient_and_zero_eps_leave_a_weight_alone():
    weights = torch.ones(2)
    adam_step(weights, torch.zeros(2), new_adam_state(weights), AdamParams(eps=0.0))
    assert weights.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("gradient", "params", "message"),
    [
        (float("inf"), AdamParams(), "gradient is not finite"),
        (float("nan"), AdamParams(), "gradient is not finite"),
        (1e30, AdamParams(), "step would make weights"),  # its square overflows
        (1.0, AdamParams(learning_rate=1e39), "step would make weights"),
    ],
)
def test_refused_step_changes_nothing(gradient, params, message):
    weights = start()
    state = new_adam_state(weights)
    adam_step(weights, start(5), state, AdamParams())
    before = (weights.clone(), state.exp_avg.clone(), state.exp_avg_sq.clone(), state.step)
    with pytest.raises(InputError, match=message):
        adam_step(weights, torch.full((P,), gradient), state, params)
    assert torch.equal(weights, before[0])
    assert torch.equal(state.exp_avg, before[1])
    assert torch.equal(state.exp_avg_sq, before[2])
    assert state.step == before[3]


def test_state_of_another_adapter_is_refused():
    with pytest.raises(EngineError, match="does not fit"):
        adam_step(start(), start(), new_adam_state(torch.zeros(3)), AdamParams())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("eps", -1e-9),
        ("weight_decay", -1.0),
        ("grad_clip_norm", float("nan")),
    ],
)
def test_hyperparameter_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=name):
        check_adam_params(AdamParams(**{name: value}))


def test_every_bad_hyperparameter_is_named():
    with pytest.raises(InputError, match=r"beta1.*eps"):
        check_adam_params(AdamParams(beta1=2.0, eps=-1.0))
