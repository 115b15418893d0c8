"""The mathematics of a loss of the caller's own."""

from __future__ import annotations

import numpy as np
import pytest

from tinkex.client import custom_loss
from tinkex.errors import InputError, MissingPackageError
from tinkex.types import Datum, ForwardBackwardOutput, ModelInput, TensorData

torch = pytest.importorskip("torch")


def datum(targets, **inputs):
    return Datum(ModelInput.from_ints([1] * len(targets)), {"target_tokens": targets, **inputs})


def output(*rows):
    tensors = [{"logprobs": TensorData(np.asarray(row, np.float32))} for row in rows]
    return ForwardBackwardOutput("ArrayRecord", tensors, {"loss:sum": 9.0, "n:sum": 2.0})


def test_forward_data_carry_targets_and_weights_and_nothing_else():
    full = datum([2, 3], weights=[0.5, 1.0], advantages=[1.0, 1.0])
    bare = datum([2, 3])
    first, second = custom_loss.forward_data([full, bare])
    assert set(first.loss_fn_inputs) == set(second.loss_fn_inputs) == {"target_tokens", "weights"}
    assert first.loss_fn_inputs["weights"].data == [0.5, 1.0]
    assert second.loss_fn_inputs["weights"].data == [0.0, 0.0]


def test_weights_of_a_batch_of_targets_have_their_shape():
    (row,) = custom_loss.forward_data([datum(np.asarray([[2, 3], [4, 5]]))])
    assert row.loss_fn_inputs["weights"].dimensions == (2, 2)


def test_datum_without_targets_is_named():
    with pytest.raises(InputError, match="Datum 1"):
        custom_loss.forward_data([datum([1]), Datum(ModelInput.from_ints([1]), {})])


def test_weights_are_the_negative_gradient():
    def loss(data, logprobs):
        assert [len(one) for one in logprobs] == [2, 1]
        assert all(one.dtype == torch.float32 for one in logprobs)
        return (logprobs[0] * torch.tensor([2.0, -3.0])).sum() + logprobs[1].exp().sum(), {"m": 1.0}

    data = [datum([2, 3]), datum([4])]
    found = custom_loss.evaluate(loss, data, output([-1.0, -2.0], [0.0]))
    weights = [row.loss_fn_inputs["weights"].data for row in found.backward_data]
    assert weights == [[-2.0, 3.0], [-1.0]]
    assert found.value == pytest.approx(-2.0 + 6.0 + 1.0)
    assert found.metrics == {"m": 1.0}


def test_datum_the_loss_leaves_out_has_no_weight():
    found = custom_loss.evaluate(
        lambda _, logprobs: (logprobs[0].sum(), {}),
        [datum([2]), datum([3])],
        output([-1.0], [-1.0]),
    )
    assert found.backward_data[1].loss_fn_inputs["weights"].data == [0.0]


def test_loss_of_something_else_alone_is_refused():
    """It can be differentiated, and yet nothing would be trained."""
    other = torch.ones((), requires_grad=True)
    with pytest.raises(InputError, match="does not depend on the log-probabilities"):
        custom_loss.evaluate(lambda *_: (other * 2, {}), [datum([2])], output([-1.0]))


@pytest.mark.parametrize("metrics", [None, ["m"], 3.0])
def test_metrics_of_another_form_are_refused_before_the_gradient_is_sent(metrics):
    """Afterwards the call would fail with its gradient on the server."""
    with pytest.raises(InputError, match=f"metrics.*not {type(metrics).__name__}"):
        custom_loss.evaluate(
            lambda _, logprobs: (logprobs[0].sum(), metrics), [datum([2])], output([-1.0])
        )


def test_gradient_that_is_no_number_is_told_as_one():
    """The server would refuse it as the datum's weights, with the optim_step on its way."""
    with pytest.raises(InputError, match=r"gradient.*datum 1 is (nan|-?inf) at position 0"):
        custom_loss.evaluate(
            lambda _, logprobs: (logprobs[0].sum() + logprobs[1].log().sum(), {}),
            [datum([2]), datum([3])],
            output([-1.0], [0.0]),
        )


def test_loss_of_shape_one_is_a_number():
    found = custom_loss.evaluate(
        lambda _, logprobs: (logprobs[0].sum().reshape(1), {}), [datum([2])], output([-4.0])
    )
    assert found.value == -4.0


def test_surrogate_keeps_its_loss_under_another_name():
    loss = custom_loss.CustomLoss([], {"mine": 3.0}, 7.0)
    assert custom_loss.finish(output([0.0]), loss).metrics == {
        "n:sum": 2.0,
        "mine": 3.0,
        "loss:sum": 7.0,
        "surrogate_loss:sum": 9.0,
    }
    silent = ForwardBackwardOutput("ArrayRecord", [], {})
    assert custom_loss.finish(silent, loss).metrics == {"mine": 3.0, "loss:sum": 7.0}


def test_missing_torch_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match="pip install torch"):
        custom_loss.require_torch()
