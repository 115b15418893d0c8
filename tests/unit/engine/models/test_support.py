"""Which models are driven, and that packed tokens give transformers' own logits."""

from __future__ import annotations

import pytest
import torch
import transformers
from engine_support import (
    CONTEXT,
    FAMILIES,
    VOCAB,
    datum,
    job,
    sample,
    tiny_engine,
    tiny_model,
    tokens,
)

from tinkex.engine.attention.packed import PrefillAttention
from tinkex.engine.lora.weights import LoraShape
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


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [3.0, 4.0, 5.0, 6.0],
}


def assert_equals_transformers(family, length=40, **settings):
    """Compare packed logits of two sequences, and what decodes after them, with transformers."""
    plain = tiny_model(family, **settings)
    plain.set_attn_implementation("eager")
    sequences = [torch.tensor(tokens(n, seed=n)) for n in (length, 7)]
    with torch.no_grad():
        expected = torch.cat([plain(s[None], use_cache=False).logits[0] for s in sequences])
        greedy = plain.generate(
            sequences[1][None],
            attention_mask=torch.ones(1, 7, dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, 7:]
    found = packed_logits(tiny_model(family, **settings), sequences)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    engine = tiny_engine(model=tiny_model(family, **settings))
    one = job("j", sequences[1].tolist(), temperature=0.0, stop=[], max_tokens=12)
    assert sample(engine, one)["j"].sequences[0].tokens_np.tolist() == greedy.tolist()


@pytest.mark.parametrize("rope", sorted(ROPES))
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe"])
def test_rope_scaling_is_honoured(family, rope):
    assert_equals_transformers(family, rope_parameters={"rope_theta": 1e4, **ROPES[rope]})


def test_each_kind_of_layer_has_its_own_rope():
    rope = {"full_attention": ROPES["linear"], "sliding_attention": {"rope_type": "default"}}
    rope = {kind: {"rope_theta": 1e4, **one} for kind, one in rope.items()}
    kinds = ["sliding_attention", "full_attention"]
    assert_equals_transformers("gemma3_text", rope_parameters=rope, layer_types=kinds)


def test_longrope_is_driven_within_its_original_context():
    """Beyond it transformers changes the frequencies of whatever else is in the batch."""
    settings = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 48}
    assert_equals_transformers("phi3", **settings)
    base = wrap_model(tiny_model("phi3", **settings), name="tiny")
    assert base.max_context_length == 48


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
        ("qwen3_moe", {"mlp_only_layers": [0], "norm_topk_prob": False}),
        ("mistral", {"sliding_window": None}),
        ("phi3", {"sliding_window": 6, "partial_rotary_factor": 0.5}),
        ("mixtral", {"sliding_window": 6}),
        ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"]}),
        ("gpt_oss", {"layer_types": ["full_attention", "full_attention"]}),
    ],
)
def test_variants_of_a_family_equal_transformers(family, settings):
    assert_equals_transformers(family, **settings)


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
UNLISTED = {
    "olmo": {},
    "glm4": {},
    "starcoder2": {},
    "olmoe": MOE,
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 16},
    "glm4_moe": {**MOE, "n_routed_experts": 4, "first_k_dense_replace": 1},
}


@pytest.mark.parametrize("family", sorted(UNLISTED))
def test_family_that_is_compared_at_load_equals_transformers_and_trains(family):
    assert_equals_transformers(family, **UNLISTED[family])
    engine = tiny_engine(model=tiny_model(family, **UNLISTED[family]))
    engine.create_adapter("a", LoraConfig(rank=2, seed=0))
    assert engine.forward_backward("a", [datum(5)], "cross_entropy").metrics["loss:sum"]
    trained = {name.rsplit(".", 1)[-1] for name in engine._pool.adapter("a").weights.pairs}
    assert trained.isdisjoint({"gate", "router", "shared_expert_gate"})


def test_decoding_that_differs_is_refused():
    with pytest.raises(ConfigurationError, match="other logits on cached tokens"):
        wrap_model(tiny_model("diffllama"), name="tiny")


def test_untested_family_is_accepted_when_its_logits_agree():
    model = tiny_model("olmo")
    assert wrap_model(model, name="tiny").architecture == "OlmoForCausalLM"


def test_scaled_logits_are_refused_by_comparison():
    with pytest.raises(ConfigurationError, match="other logits on packed tokens"):
        wrap_model(tiny_model("granite", logits_scaling=3.0), name="tiny")


def test_softcapping_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="caps its logits"):
        wrap_model(tiny_model("gemma2", head_dim=16), name="tiny")


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("phimoe", {"sliding_window": 60, "num_local_experts": 4}),
        (
            "qwen2_moe",
            {
                **UNLISTED["qwen2_moe"],
                "use_sliding_window": True,
                "sliding_window": 60,
                "max_window_layers": 2,
            },
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_window_that_a_family_keeps_to_itself_is_refused(family, settings, dtype):
    """It is in transformers' mask alone, and longer than what models are compared on."""
    with pytest.raises(ConfigurationError, match="other logits on packed tokens"):
        wrap_model(tiny_model(family, **settings).to(dtype), name="tiny")


DEEP_MOE = {
    **UNLISTED["glm4_moe"],
    "num_experts": 8,
    "n_routed_experts": 8,
    "num_local_experts": 8,
    "num_hidden_layers": 6,
    "num_dense_layers": 1,
    "head_dim": 8,
}


@pytest.mark.parametrize(("family", "seed"), [("phimoe", 0), ("afmoe", 6), ("glm4_moe", 5)])
def test_rounding_that_sends_a_token_to_another_expert_refuses_no_model(family, seed):
    model = tiny_model(family, seed=seed, **DEEP_MOE).to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    wrap_model(model, name="tiny")
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_model_that_fails_when_it_is_compared_again_is_left_as_it_was(dtype):
    model = tiny_model("cohere", logit_scale=0.5).to(dtype)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}

    def fails_in_float32(module, _inputs, _output):
        if module.weight.dtype == torch.float32:
            raise RuntimeError("not enough memory")

    model.model.layers[1].mlp.up_proj.register_forward_hook(fails_in_float32)
    with pytest.raises(ConfigurationError, match="not enough memory"):
        wrap_model(model, name="tiny")
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_window_beyond_the_context_harms_nobody():
    model = tiny_model("phimoe", sliding_window=CONTEXT, num_local_experts=4)
    assert wrap_model(model, name="tiny").architecture == "PhimoeForCausalLM"
    assert model.config.sliding_window == CONTEXT


@pytest.mark.parametrize("family", ["exaone4", "olmo3", "starcoder2"])
def test_window_of_a_family_that_is_compared_at_load_equals_transformers(family):
    assert_equals_transformers(family, sliding_window=6)


@pytest.mark.parametrize(
    ("family", "settings"),
    [("gemma3_text", {"use_bidirectional_attention": True}), ("llama", {"is_causal": False})],
)
def test_attention_in_both_directions_is_refused_by_name(family, settings):
    with pytest.raises(ConfigurationError, match="attention in both directions"):
        wrap_model(tiny_model(family, **settings), name="tiny")


def test_model_without_layers_for_an_adapter_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="GPT2LMHeadModel has no linear layers"):
        wrap_model(tiny_model("gpt2", n_embd=32, n_layer=1, n_head=4), name="tiny")


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
    with pytest.raises(InputError, match=r"experts.gate_up_proj holds.*train_mlp=False"):
        engine.create_adapter("a", LoraConfig(rank=2))
    engine.create_adapter("a", LoraConfig(rank=2, train_mlp=False))


def test_encoder_decoder_is_refused():
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
