"""The written-out decoder against transformers' modules: the same numbers, forward and backward."""

from __future__ import annotations

import pytest
import torch
from engine_support import datum, shake, tiny_engine, tiny_model

from tinkex.engine.attention.packed import PrefillAttention
from tinkex.engine.models.dense_decoder import FAMILIES, DenseDecoder, fits
from tinkex.types import LoraConfig

LENGTHS = (9, 9, 14)
LORAS = (LoraConfig(rank=4, seed=0), LoraConfig(rank=3, seed=1, train_attn=False))
BIASED = {"llama": {"attention_bias": True, "mlp_bias": True}, "qwen3": {"attention_bias": True}}


def engines(family, **changes):
    """One by each path, with the same adapters."""
    made = []
    for dense in (True, False):
        model = tiny_model(family, **changes)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                    parameter.add_(noise, alpha=0.1 if name.endswith("weight") else 0.3)
        engine = tiny_engine(model=model, dense_path=dense)
        for number, lora in enumerate(LORAS):
            engine.create_adapter(f"a{number}", lora)
            shake(engine, f"a{number}", seed=number)
        made.append(engine)
    assert isinstance(made[0]._runner._dense, DenseDecoder)
    assert made[1]._runner._dense is None
    return made


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("biased", [False, True])
def test_hidden_states_equal_those_of_the_modules(family, biased):
    found = []
    for engine in engines(family, **(BIASED.get(family, {}) if biased else {})):
        ids = torch.arange(sum(LENGTHS))
        positions = torch.cat([torch.arange(n) for n in LENGTHS])
        with torch.no_grad():
            found.append(engine._runner.hidden(ids, positions, PrefillAttention(LENGTHS), []))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("adapter", ["a0", "a1"])
def test_gradients_equal_those_through_the_modules(family, adapter):
    found = []
    for engine in engines(family):
        data = [datum(9), datum(14, seed=1)]
        output = engine.forward_backward(adapter, data, "cross_entropy")
        found.append((output, engine._pool.adapter(adapter).gradient))
    for key in found[0][0].metrics:
        assert found[0][0].metrics[key] == pytest.approx(found[1][0].metrics[key], rel=1e-5)
    scale = float(found[1][1].abs().max())
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5 * scale)


def test_adapter_files_fit_both_paths(tmp_path):
    first, second = engines("qwen3")
    first.save_adapter("a0", tmp_path / "a", optimizer=False)
    second.load_adapter("b", tmp_path / "a", optimizer=False)
    kept, loaded = (e._pool.adapter(n).weights for e, n in ((first, "a0"), (second, "b")))
    assert torch.equal(kept.flat, loaded.flat)
    assert list(kept.pairs) == list(loaded.pairs)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma3_text", {}),
        ("phi3", {}),
        ("qwen3_moe", {}),
        ("llama", {"hidden_act": "gelu"}),
    ],
)
def test_other_models_take_the_general_path(family, changes):
    assert not fits(tiny_model(family, **changes))
