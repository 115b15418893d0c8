"""Dimuon: a direction of Frobenius norm sqrt(rank) for each factor, all or nothing."""

import math

import pytest
import torch
from engine_support import tiny_engine

import tinkex as tinker
from tinkex.engine.lora.weights import LoraShape, initial_weights, parameter_count
from tinkex.engine.training.dimuon import dimuon_step, new_dimuon_state, polar
from tinkex.errors import EngineError, InputError
from tinkex.types import AdamParams, DimuonParams, LoraConfig

SHAPES = (LoraShape("x", 12, 20), LoraShape("y", 9, 7))
RANK = 4


def weights():
    return initial_weights(SHAPES, RANK, 32.0, 0, torch.device("cpu"))


def gradient(seed=1, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(parameter_count(SHAPES, RANK), generator=g)


@pytest.mark.parametrize("shape", [(4, 12), (20, 4), (4, 4), (1, 9), (9, 1)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e18])
def test_polar_factor_is_the_one_of_the_singular_values(shape, scale):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * scale
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    torch.testing.assert_close(polar(matrix).double(), u @ v, rtol=1e-5, atol=1e-5)
    assert polar(matrix).norm() == pytest.approx(math.sqrt(min(shape)), rel=1e-5)


def test_directions_without_gradient_are_left_out():
    row = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    low_rank = torch.cat([row, 2 * row, torch.zeros(2, 12)])
    assert polar(low_rank).norm() == pytest.approx(1.0, rel=1e-5)
    assert polar(torch.zeros(4, 12)).abs().max() == 0


def test_first_step_moves_each_factor_by_the_rate_times_sqrt_rank():
    one = weights()
    before = one.flat.clone()
    state = new_dimuon_state(one.flat)
    metrics = dimuon_step(one, gradient(), state, DimuonParams(learning_rate=0.1))
    for factor in one.over(one.flat - before).parameters:
        assert factor.norm() == pytest.approx(0.1 * math.sqrt(min(factor.shape)), rel=1e-5)
    assert metrics == {
        "grad_norm": pytest.approx(gradient().norm().item(), rel=1e-5),
        "learning_rate": 0.1,
    }
    assert state.step == 1


def test_each_expert_has_a_direction_of_its_own():
    shapes = (LoraShape("x", 12, 20, b_experts=3), LoraShape("y", 9, 7, a_experts=3))
    moved = initial_weights(shapes, RANK, 32.0, 0, torch.device("cpu"))
    before = moved.frozen_copy()
    g = torch.Generator().manual_seed(1)
    slope = moved.over(torch.randn(moved.flat.shape, generator=g))
    slope.pairs["x"].b[1] = 0  # an expert without rows
    dimuon_step(moved, slope.flat, new_dimuon_state(moved.flat), DimuonParams(learning_rate=1e-2))
    for expert in range(3):
        step = before.pairs["x"].b[expert] - moved.pairs["x"].b[expert]
        expected = 1e-2 * polar(slope.pairs["x"].b[expert])
        torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)
    shared = before.pairs["y"].b - moved.pairs["y"].b
    torch.testing.assert_close(shared, 1e-2 * polar(slope.pairs["y"].b), rtol=1e-4, atol=1e-6)


def test_scale_of_the_gradient_changes_nothing_and_momentum_does():
    small, large, without = weights(), weights(), weights()
    states = [new_dimuon_state(small.flat) for _ in range(3)]
    for step in range(3):
        for one, scale, state, beta in (
            (small, 1e-3, states[0], 0.9),
            (large, 1e3, states[1], 0.9),
            (without, 1.0, states[2], 0.0),
        ):
            params = DimuonParams(learning_rate=0.1, beta1=beta)
            dimuon_step(one, gradient(step, scale), state, params)
    torch.testing.assert_close(small.flat, large.flat, rtol=1e-4, atol=1e-6)
    assert (small.flat - without.flat).abs().max() > 1e-3


def test_clipping_weighs_a_large_gradient_less():
    clipped, plain = weights(), weights()
    for one, clip in ((clipped, 1.0), (plain, 0.0)):
        state = new_dimuon_state(one.flat)
        for scale in (1.0, 100.0):
            params = DimuonParams(learning_rate=0.1, grad_clip_norm=clip)
            metrics = dimuon_step(one, gradient(int(scale), scale), state, params)
        assert metrics["grad_norm"] == pytest.approx(gradient(100, 100.0).norm().item(), rel=1e-5)
    assert not torch.allclose(clipped.flat, plain.flat)
    negative, zero = weights(), weights()
    for one, clip in ((negative, -1.0), (zero, 0.0)):
        state = new_dimuon_state(one.flat)
        dimuon_step(one, gradient(), state, DimuonParams(learning_rate=1.0, grad_clip_norm=clip))
    assert torch.equal(negative.flat, zero.flat)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_step_that_cannot_be_taken_changes_nothing(value):
    one = weights()
    before, state = one.flat.clone(), new_dimuon_state(one.flat)
    with pytest.raises(InputError, match="not finite"):
        dimuon_step(one, gradient() * value, state, DimuonParams(learning_rate=0.1))
    with pytest.raises(InputError, match="infinite or NaN"):
        dimuon_step(one, gradient(), state, DimuonParams(learning_rate=1e300))
    with pytest.raises(EngineError, match="does not fit"):
        dimuon_step(
            one, gradient(), new_dimuon_state(torch.zeros(3)), DimuonParams(learning_rate=0.1)
        )
    assert torch.equal(one.flat, before)
    assert (state.step, state.momentum.abs().max()) == (0, 0)


# --- in the engine -------------------------------------------------------------------------------


def batch():
    tokens = [5, 6, 7, 8, 9, 10]
    inputs = {"target_tokens": [*tokens[1:], 11], "weights": [1.0] * 6}
    return [tinker.Datum(tinker.ModelInput.from_ints(tokens), inputs)]


def train(engine, name, steps):
    losses = []
    for _ in range(steps):
        losses.append(engine.forward_backward(name, batch(), "cross_entropy").metrics["loss:sum"])
        engine.optim_step(name, DimuonParams(learning_rate=0.02))
    return losses


def test_dimuon_learns_and_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    engine = tiny_engine()
    engine.create_adapter("a", LoraConfig(rank=4, seed=0), "dimuon")
    losses = train(engine, "a", 6)
    assert losses[-1] < losses[0]
    engine.save_adapter("a", tmp_path / "c", optimizer=True)
    engine.load_adapter("b", tmp_path / "c", optimizer=True)
    assert train(engine, "a", 3) == train(engine, "b", 3)
    assert torch.equal(
        engine._pool.adapter("a").weights.flat, engine._pool.adapter("b").weights.flat
    )


def test_optimizer_of_a_run_is_fixed(tmp_path):
    engine = tiny_engine()
    with pytest.raises(InputError, match="unknown optimizer 'sgd'; this server has adamw, dimuon"):
        engine.create_adapter("x", LoraConfig(rank=4), "sgd")
    engine.create_adapter("a", LoraConfig(rank=4, seed=0), "dimuon")
    with pytest.raises(InputError, match="'dimuon', so optim_step takes DimuonParams"):
        engine.optim_step("a", AdamParams())
    engine.create_adapter("b", LoraConfig(rank=4, seed=0))
    with pytest.raises(InputError, match="'adamw', so optim_step takes AdamParams"):
        engine.optim_step("b", DimuonParams(learning_rate=0.1))
    engine.save_adapter("a", tmp_path / "c", optimizer=True)
    with pytest.raises(InputError, match="state of the optimizer 'dimuon', not of 'adamw'"):
        engine.load_adapter("b", tmp_path / "c", optimizer=True)
    engine.load_adapter("b", tmp_path / "c", optimizer=False)  # keeps its own
    engine.optim_step("b", AdamParams())
    engine.load_adapter("n", tmp_path / "c", optimizer=False)  # a new one takes the checkpoint's
    engine.optim_step("n", DimuonParams(learning_rate=0.1))
    engine.load_adapter("o", tmp_path / "c", optimizer=False, optimizer_type="adamw")
    engine.optim_step("o", AdamParams())
