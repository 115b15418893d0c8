"""Each loss against its formula, written again in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from tinkex.engine.losses import LOSSES, LossInputs, loss_call
from tinkex.errors import InputError

N = 60


def inputs(seed=0, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    lp = -3 + spread * torch.randn(N, 1, generator=g)
    fields = {
        "weights": torch.randn(N, 1, generator=g),
        "logprobs": -3 + spread * torch.randn(N, 1, generator=g),
        "advantages": torch.randn(N, 1, generator=g),
    }
    fields["weights"][:7] = 0
    fields["sequence_ratio_mask"] = (torch.rand(N, 1, generator=g) > 0.4).float()
    return lp, fields


def reference(name, lp, fields, config):
    """The formulas of the module's docstring; a second writing of them on purpose."""
    w, q, adv = fields["weights"], fields["logprobs"], fields["advantages"]
    ratio = (lp - q).exp()
    low, high = config.get("clip_low_threshold"), config.get("clip_high_threshold")
    if name == "cross_entropy":
        return -lp * w
    if name == "importance_sampling":
        return -ratio * adv * w
    if name == "ppo":
        return -torch.min(ratio * adv, ratio.clamp(low, high) * adv) * w
    if name == "cispo":
        return -ratio.clamp(low, high).detach() * lp * adv * w
    if name == "gspo":
        chosen = fields["sequence_ratio_mask"] != 0
        mean = sum(float(one) for one in (lp.detach() - q)[chosen]) / int(chosen.sum())
        own = math.exp(mean) * lp.exp() / lp.exp().detach()
        return -torch.min(own * adv, own.clamp(low, high) * adv) * w
    if name == "stable_reinforce":
        rho = ratio.clamp(max=high).detach()
        return -rho * (lp * adv - config["kl_coeff"] / 2 * (lp - q) ** 2) * w
    return -(lp * adv - 0.5 * config["beta"] * (lp - q) ** 2) * w


THRESHOLDS = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
CASES = [
    ("cross_entropy", {}),
    ("importance_sampling", {}),
    ("ppo", {}),
    ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.05}),
    ("cispo", {}),
    ("cispo", {"clip_high_threshold": 1.5}),
    ("dro", {"beta": 0.05}),
    ("stable_reinforce", {}),
    ("stable_reinforce", {"clip_high_threshold": 1.0, "kl_coeff": 0.3}),
    ("gspo", THRESHOLDS),
    ("gspo", {"clip_low_threshold": 0.0, "clip_high_threshold": 9.0}),
]


@pytest.mark.parametrize(("name", "config"), CASES)
def test_value_and_gradient_equal_the_double_precision_reference(name, config):
    call = loss_call(name, config)
    lp, fields = inputs()
    leaf = lp.clone().requires_grad_()
    taken = {k: fields[k] for k in ("weights", *call.loss.required)}
    loss = call.loss.compute(LossInputs(leaf, taken, call.config)).elementwise
    loss.sum().backward()
    exact = lp.double().requires_grad_()
    expected = reference(name, exact, {k: v.double() for k, v in fields.items()}, dict(call.config))
    expected.sum().backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "config"), CASES)
def test_gradcheck(name, config):
    call = loss_call(name, config)
    lp, fields = inputs(seed=3, spread=0.3)
    exact = {k: v.double() for k, v in fields.items()}

    def total(x):
        return call.loss.compute(LossInputs(x, exact, call.config)).elementwise.sum()

    if name in {
        "cispo",
        "gspo",
        "stable_reinforce",
    }:  # their gradient is not their value's: a ratio is held fixed
        return
    assert torch.autograd.gradcheck(total, lp.double().requires_grad_())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_zero_weight_silences_a_ratio_that_overflows(name):
    call = loss_call(name, {"dro": {"beta": 0.1}, "gspo": THRESHOLDS}.get(name))
    lp = torch.full((2, 1), -1.0).requires_grad_()
    fields = {
        "weights": torch.tensor([[0.0], [1.0]]),
        "logprobs": torch.tensor([[-5000.0], [-1.1]]),
        "advantages": torch.ones(2, 1),
        "sequence_ratio_mask": torch.tensor([[0.0], [1.0]]),
    }
    loss = call.loss.compute(LossInputs(lp, fields, call.config)).elementwise
    loss.sum().backward()
    assert loss[0].item() == 0
    assert lp.grad[0].item() == 0
    assert name == "gspo" or lp.grad[1].item() != 0  # gspo clips the ratio of 1.1


@pytest.mark.parametrize("name", ["ppo", "cispo"])
def test_per_token_thresholds_win_over_the_configuration(name):
    call = loss_call(name, None)
    lp, fields = inputs()
    low, high = torch.full_like(lp, 0.5), torch.full_like(lp, 0.7)
    found = call.loss.compute(
        LossInputs(
            lp, {**fields, "clip_low_threshold": low, "clip_high_threshold": high}, call.config
        )
    )
    same = loss_call(name, {"clip_low_threshold": 0.5, "clip_high_threshold": 0.7})
    expected = same.loss.compute(LossInputs(lp, fields, same.config))
    assert torch.equal(found.elementwise, expected.elementwise)


def test_ppo_gives_no_gradient_where_everything_is_clipped():
    call = loss_call("ppo", None)
    lp = torch.zeros(4, 1).requires_grad_()
    fields = {"logprobs": torch.full((4, 1), -2.0), "advantages": torch.ones(4, 1)}
    call.loss.compute(LossInputs(lp, fields, call.config)).elementwise.sum().backward()
    assert lp.grad.abs().max() == 0


def test_gspo_without_marked_tokens_has_a_ratio_of_one():
    call = loss_call("gspo", THRESHOLDS)
    lp, fields = inputs()
    fields["sequence_ratio_mask"] = torch.zeros_like(lp)
    found = call.loss.compute(LossInputs(lp, fields, call.config)).elementwise
    torch.testing.assert_close(found, -fields["advantages"] * fields["weights"])


def test_gspo_needs_its_thresholds():
    with pytest.raises(InputError, match="clip_high_threshold, clip_low_threshold"):
        loss_call("gspo", None)


def test_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown loss_fn 'mse'.*cross_entropy"):
        loss_call("mse", None)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("cross_entropy", {"beta": 1.0}, "no key 'beta'"),
        ("ppo", {"clip_low": 0.8}, "no key 'clip_low'"),
        ("ppo", {"clip_low_threshold": "0.8"}, "finite number"),
        ("ppo", {"clip_low_threshold": math.nan}, "finite number"),
        ("ppo", {"clip_low_threshold": 2.0}, "above"),
        ("dro", {}, "needs beta"),
    ],
)
def test_bad_configuration_is_refused(name, config, message):
    with pytest.raises(InputError, match=message):
        loss_call(name, config)
