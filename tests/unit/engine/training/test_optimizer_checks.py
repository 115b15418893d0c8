"""What every optimiser refuses, in the same words."""

from __future__ import annotations

import math

import pytest
import torch

from tinkex.engine.training.optimizer_checks import check_bounds, check_fits, check_step, clipped
from tinkex.engine.training.optimizers import OPTIMIZERS
from tinkex.errors import EngineError, InputError
from tinkex.types import AdamParams, DimuonParams


def test_all_values_out_of_bounds_are_named():
    params = AdamParams(learning_rate=-1.0, beta1=2.0)
    with pytest.raises(InputError) as caught:
        check_bounds("adam_params", params, {"learning_rate": (0, 1), "beta1": (0, 1)})
    assert str(caught.value) == (
        "adam_params: learning_rate must be in [0, 1), got -1.0; beta1 must be in [0, 1), got 2.0"
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["learning_rate", "beta1", "grad_clip_norm"])
@pytest.mark.parametrize("kind", [AdamParams, DimuonParams])
def test_what_is_not_finite_is_refused_by_every_optimiser(kind, name, bad):
    (optimizer,) = (one for one in OPTIMIZERS.values() if one.params is kind)
    params = kind.model_construct(**{**kind(learning_rate=0.1).model_dump(), name: bad})
    with pytest.raises(InputError, match=name):
        optimizer.check(params)


def test_gradient_is_clipped_to_its_global_norm_only_where_it_is_longer():
    gradient = torch.tensor([3.0, 4.0])
    for limit in (0.0, -1.0, 5.0, 6.0):
        same, norm = clipped(gradient, limit)
        assert same is gradient
        assert norm == 5.0
    shorter, norm = clipped(gradient, 1.0)
    torch.testing.assert_close(shorter, torch.tensor([0.6, 0.8]))
    assert norm == 5.0
    assert gradient.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_taken(bad):
    with pytest.raises(InputError, match="gradient is not finite"):
        clipped(torch.tensor([1.0, bad]), 0.0)
    with pytest.raises(InputError, match="infinite or NaN"):
        check_step(torch.ones(2), torch.tensor([bad]))
    check_step(torch.ones(2))


def test_state_of_another_adapter_is_refused():
    check_fits(torch.ones(2), torch.ones(2))
    with pytest.raises(EngineError, match="does not fit"):
        check_fits(torch.ones(2), torch.ones(3))
