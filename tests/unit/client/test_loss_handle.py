"""Losses by handle: what is refused when they are made, and what they compute here."""

import math
import operator

import numpy as np
import pytest

import tinkex as tinker
from tinkex.client.loss_handle import trace
from tinkex.errors import InputError

torch = pytest.importorskip("torch")

RANKS = {"logprobs": 1, "weights": 1}


def nll(logprobs, weights):
    loss = -(logprobs * weights).sum()
    return loss, {"custom/nll:sum": loss, "custom/size:mean": weights.sum()}


def datum(length=3, **inputs):
    values = {"target_tokens": [1] * length, "weights": [1.0] * length, **inputs}
    return tinker.Datum(tinker.ModelInput.from_ints([1] * length), values)


def test_loss_sums_over_the_data_and_metrics_by_their_suffix():
    handle = trace(nll, RANKS, "s")
    logprobs = [torch.full((n,), -0.5, requires_grad=True) for n in (3, 5)]
    loss, metrics = handle.run([datum(3), datum(5)], logprobs)
    assert loss.item() == pytest.approx(4.0)
    assert metrics == {"custom/nll:sum": pytest.approx(4.0), "custom/size:mean": 4.0}
    loss.backward()
    assert logprobs[1].grad.tolist() == [-1.0] * 5
    assert handle.input_names == ("weights",)


def test_same_loss_has_the_same_key_and_another_one_has_not():
    def other(logprobs, weights):
        return (logprobs * weights).mean(), {}

    assert trace(nll, RANKS, "a").key == trace(nll, RANKS, "b").key
    assert trace(nll, RANKS).key != trace(other, RANKS).key
    assert trace(nll, RANKS).key != trace(nll, {"logprobs": 2, "weights": 1}).key
    assert trace(nll, RANKS, "a") == trace(nll, RANKS, "a")


def no_logprobs(weights):
    return weights.sum(), {}


def with_default(logprobs, weights=None):
    return logprobs.sum(), {}


def with_star(logprobs, *weights):
    return logprobs.sum(), {}


def upper(logprobs, Weights):  # noqa: N803
    return logprobs.sum(), {}


def many(logprobs, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p):  # noqa: E741
    return logprobs.sum(), {}


def branches(logprobs, weights):
    return (logprobs.sum() if logprobs.sum() > 0 else weights.sum()), {}


def calls_numpy(logprobs, weights):
    return logprobs.sum() + np.float64(np.random.default_rng().random()).sum(), {}


def calls_item(logprobs, weights):
    return logprobs.sum(), {"custom/a:sum": logprobs.sum().item()}


def calls_backward(logprobs, weights):
    loss = logprobs.sum()
    loss.backward()
    return loss, {}


def no_such_method(logprobs, weights):
    return logprobs.nosuch(), {}


OUTSIDE = torch.ones(3)


def captures(logprobs, weights):
    return (logprobs * OUTSIDE).sum(), {}


def one_value(logprobs, weights):
    return logprobs.sum()


def constant(logprobs, weights):
    return 3.0, {}


def metric_list(logprobs, weights):
    return logprobs.sum(), [1]


def metric_name(logprobs, weights):
    return logprobs.sum(), {"loss:sum": logprobs.sum()}


def metric_number(logprobs, weights):
    return logprobs.sum(), {"custom/a:sum": 1.0}


def passes_object(logprobs, weights):
    return torch.sum(logprobs, dim=range(1)), {}


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (with_default, "default"),
        (with_star, "positional"),
        (upper, "lower-case"),
        (many, "17 parameters"),
        (branches, "traced"),
        (calls_item, "item"),
        (calls_backward, "backward"),
        (no_such_method, "nosuch"),
        (captures, "outside"),
        (one_value, "two things"),
        (constant, "tensor"),
        (metric_list, "dict"),
        (metric_name, "custom/<name>"),
        (metric_number, "tensor"),
        (passes_object, "range"),
        (no_logprobs, "logprobs"),
    ],
)
def test_loss_that_breaks_a_rule_is_refused_with_the_rule(loss, words):
    import inspect

    ranks = dict.fromkeys(inspect.signature(loss).parameters, 1)
    with pytest.raises(InputError, match=words):
        trace(loss, ranks)


def test_module_and_what_is_no_function_are_refused():
    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Identity()

        def forward(self, logprobs):
            return self.inner(logprobs).sum(), {}

    with pytest.raises(InputError, match="parameter"):
        trace(Loss(), {"logprobs": 1})
    inner = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="traced"):
        trace(lambda logprobs: (inner(logprobs).sum(), {}), {"logprobs": 1})
    with pytest.raises(InputError, match="function"):
        trace(3, {"logprobs": 1})


@pytest.mark.parametrize(
    "ranks",
    [{}, {"logprobs": 1}, {"logprobs": 0, "weights": 1}, {"logprobs": 3, "weights": 1}, None],
)
def test_ranks_that_do_not_fit_are_refused(ranks):
    with pytest.raises(InputError, match="rank"):
        trace(nll, ranks)


def test_data_that_do_not_fit_are_refused_by_index():
    handle = trace(nll, RANKS)
    bare = tinker.Datum(tinker.ModelInput.from_ints([1]), {"target_tokens": [1]})
    with pytest.raises(InputError, match=r"Datum 1 has no .*weights"):
        handle.check([datum(), bare])
    flat = tinker.TensorData.from_numpy(np.ones((3, 2), np.float32))
    with pytest.raises(InputError, match=r"Datum 0.*rank 2.*rank 1"):
        handle.check([datum(weights=flat)])


def test_loss_that_is_no_scalar_is_refused_when_it_runs():
    def vector(logprobs, weights):
        return logprobs * weights, {}

    with pytest.raises(InputError, match="scalar"):
        trace(vector, RANKS).run([datum()], [torch.ones(3)])


def test_arguments_are_written_as_data():
    def loss(logprobs, weights):
        clipped = torch.clamp(logprobs, min=-math.inf, max=float("inf"))
        part = clipped[..., 0:2].to(torch.float32)
        doubled = operator.mul(part, 2) + weights.sum(dim=(0,), keepdim=True)
        return doubled.sum(), {}

    nodes = trace(loss, RANKS).encode().nodes
    arguments = [node.args for node in nodes] + [list(node.kwargs.values()) for node in nodes]
    written = str(arguments)
    for piece in ("'float': '-inf'", "'float': 'inf'", "'ellipsis': True", "'slice': [0, 2, None]"):
        assert piece in written
    assert "'dtype': 'float32'" in written
    targets = {node.target for node in nodes if node.op == "call_function"}
    assert {"torch.clamp", "operator.getitem", "operator.mul", "operator.add"} <= targets
