"""Which models are driven, and that packed tokens give transformers' own logits."""

from __future__ import annotations

import pytest
import torch
from engine_support import FAMILIES, VOCAB, tiny_engine, tiny_model

from tinkex.engine.attention import PrefillAttention
from tinkex.engine.lora import LoraShape
from tinkex.engine.models.loader import wrap_model
from tinkex.engine.models.support import TESTED, adapter_shapes
from tinkex.errors import ConfigurationError, InputError
from tinkex.types import LoraConfig

LENGTHS = (9, 9, 14, 1)
UNEMBED = LoraShape("lm_head", 4, 9)


def packed_logits(model, sequences):
    engine = tiny_engine(model=model)
    with torch.no_grad():
        hidden = engine._runner.hidden(
            torch.cat(sequences),
            torch.cat([torch.arange(len(s)) for s in sequences]),
            PrefillAttention([len(s) for s in sequences]),
            [],
        )
        return engine._runner.head.logits(hidden, [])


def test_every_tested_family_has_a_tiny_model():
    assert set(FAMILIES) == set(TESTED)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [False, True])
def test_packed_logits_equal_plain_transformers(family, tied):
    sequences = [torch.randint(0, VOCAB, (n,)) for n in LENGTHS]
    plain = tiny_model(family, tie_word_embeddings=tied)
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        expected = torch.cat([plain(s[None], use_cache=False).logits[0] for s in sequences])
    found = packed_logits(tiny_model(family, tie_word_embeddings=tied), sequences)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_rope_scaling_is_honoured():
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    sequences = [torch.randint(0, VOCAB, (20,))]
    plain = tiny_model("llama", rope_parameters=rope)
    with torch.no_grad():
        expected = plain(sequences[0][None]).logits[0]
    found = packed_logits(tiny_model("llama", rope_parameters=rope), sequences)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_untested_family_is_accepted_when_its_logits_agree():
    model = tiny_model("olmo")
    assert wrap_model(model, name="tiny").architecture == "OlmoForCausalLM"


def test_scaled_logits_are_refused_by_comparison():
    with pytest.raises(ConfigurationError, match="other logits on packed tokens"):
        wrap_model(tiny_model("granite", logits_scaling=3.0), name="tiny")


def test_softcapping_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="caps its logits"):
        wrap_model(tiny_model("gemma2", head_dim=16), name="tiny")


def test_layers_of_another_kind_are_refused_by_name():
    model = tiny_model()
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ConfigurationError, match="layers of type linear_attention"):
        wrap_model(model, name="tiny")


def test_model_that_fails_on_packed_tokens_is_refused(monkeypatch):
    model = tiny_model("olmo")

    def plain_only(self, *args, packed_attention=None, **options):
        if packed_attention is not None:
            raise RuntimeError("shape mismatch")
        return original(self, *args, **options)

    original = type(model.model).forward
    monkeypatch.setattr(type(model.model), "forward", plain_only)
    with pytest.raises(ConfigurationError, match=r"fails on packed tokens.*shape mismatch"):
        wrap_model(model, name="tiny")


def test_fused_experts_of_an_unknown_kind_are_left_to_transformers():
    model = tiny_model("qwen3_moe")
    for layer in model.model.layers:
        layer.mlp.experts.has_post_expert_norm = True
    engine = tiny_engine(model=model)
    with pytest.raises(InputError, match="train_mlp=False"):
        engine.create_adapter("a", LoraConfig(rank=2))
    engine.create_adapter("a", LoraConfig(rank=2, train_mlp=False))


def test_encoder_decoder_is_refused():
    import transformers

    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(ConfigurationError, match="decoder-only"):
        wrap_model(model, name="tiny")


def test_chosen_layers_follow_the_flags():
    names = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj")
    linears = {name: LoraShape(name, 4, 4) for name in names}

    def chosen(**flags):
        return [s.name for s in adapter_shapes(linears, UNEMBED, **flags)]

    assert chosen(attn=True, mlp=False, with_unembed=False) == [names[0]]
    assert chosen(attn=False, mlp=True, with_unembed=True) == [names[1], "lm_head"]
    assert chosen(attn=True, mlp=True, with_unembed=True) == [*names, "lm_head"]


def test_no_layer_chosen_is_refused():
    with pytest.raises(InputError, match="at least one"):
        adapter_shapes({}, UNEMBED, attn=False, mlp=False, with_unembed=False)


def test_layers_that_the_model_lacks_are_refused():
    with pytest.raises(InputError, match="train_mlp=False"):
        adapter_shapes({}, UNEMBED, attn=False, mlp=True, with_unembed=True)
