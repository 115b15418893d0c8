"""Each loss against its formula, written again in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from loss_reference import CASES, CLIPPED, EDGES, THRESHOLDS, random_inputs, reference

from tinkex.engine.training.losses import HIGH, LOSSES, LOW, LossInputs, loss_call
from tinkex.errors import InputError

FLOAT32_MAX = torch.finfo(torch.float32).max


def both(name, config, lp, fields):
    """The engine's (losses, gradient) in float32, and the reference's in float64."""
    call = loss_call(name, config)
    taken = {k: v for k, v in fields.items() if k in {*call.loss.required, *call.loss.optional}}
    leaf = lp.clone().requires_grad_()
    loss = call.loss.compute(LossInputs(leaf, taken, call.config)).elementwise
    loss.sum().backward()
    exact = lp.double().requires_grad_()
    expected = reference(name, exact, {k: v.double() for k, v in taken.items()}, config)
    expected.sum().backward()
    return (loss.detach().double(), leaf.grad.double()), (expected.detach(), exact.grad)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "config"), CASES)
def test_value_and_gradient_equal_the_double_precision_reference(name, config, seed):
    found, expected = both(name, config, *random_inputs(seed))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(("name", "config"), CASES)
def test_edges_equal_the_double_precision_reference(name, config, edge):
    found, expected = both(name, config, *EDGES[edge])
    for one, exact in zip(found, expected, strict=True):
        fits = exact.abs() < FLOAT32_MAX
        assert not one[~fits].isfinite().any()  # the engine refuses these by name
        torch.testing.assert_close(one[fits], exact[fits], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CLIPPED)
def test_thresholds_of_each_token_equal_the_reference(name):
    lp, fields = random_inputs(5)
    g = torch.Generator().manual_seed(6)
    fields["clip_high_threshold"] = 1 + torch.rand(lp.shape, generator=g)
    if name != "stable_reinforce":
        fields["clip_low_threshold"] = 1 - torch.rand(lp.shape, generator=g)
    found, expected = both(name, {"gspo": THRESHOLDS}.get(name, {}), lp, fields)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_ratio_beyond_double_precision_is_clipped_without_a_gradient():
    lp, fields = random_inputs(count=3)
    fields |= {"logprobs": torch.full_like(lp, -1e4), "advantages": torch.ones_like(lp)}
    for name, config in (("ppo", {}), ("gspo", THRESHOLDS)):
        call = loss_call(name, config)
        leaf = lp.clone().requires_grad_()
        inputs = LossInputs(leaf, fields | {"weights": torch.ones_like(lp)}, call.config)
        losses = call.loss.compute(inputs).elementwise
        losses.sum().backward()
        assert losses.tolist() == [[pytest.approx(-call.config["clip_high_threshold"])]] * 3
        assert leaf.grad.abs().max() == 0


HELD_FIXED = {"cispo", "gspo", "stable_reinforce"}
"""A ratio in them has no gradient, on purpose: theirs is not that of their value."""


@pytest.mark.parametrize(("name", "config"), [one for one in CASES if one[0] not in HELD_FIXED])
def test_gradcheck(name, config):
    call = loss_call(name, config)
    lp, fields = random_inputs(seed=3, spread=0.3)
    exact = {k: v.double() for k, v in fields.items()}

    def total(x):
        return call.loss.compute(LossInputs(x, exact, call.config)).elementwise.sum()

    assert torch.autograd.gradcheck(total, lp.double().requires_grad_())


@pytest.mark.parametrize("name", ["cispo", "stable_reinforce"])
def test_gradcheck_with_the_ratio_as_a_constant(name):
    """Unclipped, theirs is the gradient of lp A, each token times its ratio."""
    wide = {"clip_high_threshold": 1e9}
    call = loss_call(name, wide)
    lp, fields = random_inputs(seed=3, spread=0.3)
    exact = {k: v.double() for k, v in fields.items()}
    leaf = lp.double().requires_grad_()
    call.loss.compute(LossInputs(leaf, exact, call.config)).elementwise.sum().backward()
    ratio = (lp.double() - exact["logprobs"]).exp()

    def held(x):
        return -(ratio * x * exact["advantages"] * exact["weights"]).sum()

    assert torch.autograd.gradcheck(held, lp.double().requires_grad_())
    x = lp.double().requires_grad_()
    held(x).backward()
    torch.testing.assert_close(leaf.grad, x.grad, rtol=1e-12, atol=0)


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
    lp, fields = random_inputs()
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
    lp, fields = random_inputs()
    fields["sequence_ratio_mask"] = torch.zeros_like(lp)
    found = call.loss.compute(LossInputs(lp, fields, call.config)).elementwise
    torch.testing.assert_close(found, -fields["advantages"] * fields["weights"])


def test_gspo_has_the_thresholds_of_its_paper_unless_others_are_given():
    assert loss_call("gspo", None).config == {LOW: 0.9997, HIGH: 1.0004}
    assert loss_call("gspo", {HIGH: 2.0}).config == {LOW: 0.9997, HIGH: 2.0}


def test_dro_needs_its_beta():
    with pytest.raises(InputError, match="dro needs beta"):
        loss_call("dro", None)


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
