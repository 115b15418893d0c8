"""Rotary positions from a table: the module's own angles, and it is never asked too far."""

from __future__ import annotations

import pytest
import torch
from engine_support import tiny_model
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from tinkex.engine.models import rotary
from tinkex.engine.models.rotary import Rotation

HEADS = 3


class Counted:
    """A model's module, and the positions that it was asked for."""

    def __init__(self, **settings):
        self.module = tiny_model("llama", **settings).model.rotary_emb
        self.asked = []

    def __call__(self, x, positions):
        self.asked.append(positions[0].tolist())
        return self.module(x, positions)


def assert_rotates(rotation, module, positions, **options):
    positions = torch.tensor(positions)
    width = 2 * len(module.inv_freq)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(positions), HEADS, width, generator=generator).to(**options)
    found = rotation.rotate(x, *rotation.at(positions, x))
    cos, sin = module(x, positions[None])
    wanted, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)
    assert found.dtype == x.dtype
    off = 2 * torch.finfo(x.dtype).eps * float(x.abs().max())  # of sums that nearly cancel
    torch.testing.assert_close(found, wanted[0].transpose(0, 1), atol=off, rtol=1.6e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotates_as_transformers_does(dtype):
    asked = Counted(max_position_embeddings=4096)
    rotation = Rotation(asked, 4096)
    for positions in ([0], [5, 0, 3], [255], [300, 2], [4095, 0]):
        assert_rotates(rotation, asked.module, positions, dtype=dtype)


def test_angles_of_a_position_never_change(monkeypatch):
    monkeypatch.setattr(rotary, "_MOST", 1024)
    rotation = Rotation(Counted(max_position_embeddings=4096), 4096)
    like = torch.zeros(1)
    first = rotation.at(torch.tensor([7]), like)
    for other in (700, 1023, 1024, 4000):  # the table grows, and at last is not used
        both = rotation.at(torch.tensor([7, other]), like)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, both, strict=True))


def test_module_is_asked_once_for_what_the_table_has():
    asked = Counted()
    rotation = Rotation(asked, 64)
    for position in range(64):
        rotation.at(torch.tensor([position]), torch.zeros(1))
    assert asked.asked == [list(range(64))]


def test_module_is_not_asked_beyond_the_models_context():
    """A dynamic one would give other angles from then on, for every position."""
    asked = Counted(rope_parameters={"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.0})
    rotation = Rotation(asked, 64)
    before = rotation.at(torch.tensor([63]), torch.zeros(1))
    assert max(map(max, asked.asked)) == 63
    plain = Rotation(Counted(), 64).at(torch.tensor([63]), torch.zeros(1))
    assert all(torch.equal(a, b) for a, b in zip(before, plain, strict=True))


def test_table_made_while_sampling_serves_training_too():
    rotation = Rotation(Counted(), 64)
    with torch.inference_mode():
        rotation.at(torch.tensor([1]), torch.zeros(1))
    width = rotation.at(torch.tensor([1, 2]), torch.zeros(1))[0].shape[-1]
    x = torch.randn(2, HEADS, width, requires_grad=True)
    turned = rotation.rotate(x, *rotation.at(torch.tensor([1, 2]), x))
    slope = torch.randn_like(turned)
    turned.backward(slope)
    # A rotation's gradient is the rotation back: lengths stay.
    assert x.grad is not None
    torch.testing.assert_close(x.grad.norm(dim=-1), slope.norm(dim=-1))
