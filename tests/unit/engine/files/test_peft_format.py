"""Adapters in PEFT's layout: PEFT itself loads them and gives our logits."""

from __future__ import annotations

import pytest
import torch
from engine_support import shake, tiny_engine, tiny_model, tokens
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tinkex.engine.files.merge import merge_adapter
from tinkex.engine.files.peft_format import peft_config, peft_tensors, read_peft_tensors
from tinkex.errors import EngineError
from tinkex.types import Datum, LoraConfig, ModelInput

# PEFT asks transformers what transformers calls deprecated; it also says that patterns for
# parameters are ignored, where it uses them: the ranks below would not fit otherwise
pytestmark = [
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
FAMILIES = ["qwen3_moe", "gpt_oss", "llama"]
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXED = {
    "qwen3_moe": {"mlp_only_layers": [0]},
    "glm4_moe": {**MOE, "n_routed_experts": 4, "first_k_dense_replace": 1},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 16},
    "mixtral": {},
}
"""Settings of models that have layers without experts, or experts that every token visits."""


def engine_with_adapter(family, settings=None, **lora):
    engine = tiny_engine(model=tiny_model(family, **(settings or {})))
    engine.create_adapter("a", LoraConfig(rank=3, seed=1, **lora))
    shake(engine, "a")
    return engine


def saved_base(family, folder, settings=None):
    """A base model on disk, with a tokenizer."""
    tiny_model(family, **(settings or {})).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def our_logprobs(engine, ids):
    one = Datum(ModelInput.from_ints(ids), {"target_tokens": [*ids[1:], 0]})
    output = engine.forward_backward("a", [one], "cross_entropy", forward_only=True)
    return torch.tensor(output.loss_fn_outputs[0]["logprobs"].to_numpy())


def logprobs_of(model, ids):
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    return logits.gather(1, torch.tensor([[*ids[1:], 0]]).T)[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [{}, {"train_attn": False, "train_unembed": False}])
def test_peft_loads_what_we_save_and_gives_our_logprobs(tmp_path, family, lora):
    engine = engine_with_adapter(family, **lora)
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    loaded = PeftModel.from_pretrained(tiny_model(family), tmp_path / "c")
    ids = tokens(14)
    found = logprobs_of(loaded, ids)
    torch.testing.assert_close(our_logprobs(engine, ids), found, rtol=1e-5, atol=1e-5)
    plain = logprobs_of(tiny_model(family), ids)
    assert (found - plain).abs().max() > 1e-2


@pytest.mark.parametrize("family", sorted(MIXED))
def test_models_that_mix_experts_and_dense_layers_are_saved_and_merged_whole(tmp_path, family):
    engine = engine_with_adapter(family, MIXED[family])
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    ids = tokens(14)
    ours = our_logprobs(engine, ids)
    loaded = PeftModel.from_pretrained(tiny_model(family, **MIXED[family]), tmp_path / "c")
    torch.testing.assert_close(logprobs_of(loaded, ids), ours, rtol=1e-5, atol=1e-5)
    base = saved_base(family, tmp_path / "base", MIXED[family])
    merged = merge_adapter(tmp_path / "c", tmp_path / "merged", base_model=str(base))
    found = logprobs_of(AutoModelForCausalLM.from_pretrained(merged.folder), ids)
    torch.testing.assert_close(found, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_back_gives_the_same_bits(family):
    engine = engine_with_adapter(family)
    weights = engine._pool.adapter("a").weights
    again = weights.over(torch.zeros_like(weights.flat))
    read_peft_tensors(peft_tensors(weights), again)
    assert torch.equal(again.flat, weights.flat)


def test_unembedding_has_the_name_that_the_model_gives_it(tmp_path):
    engine = engine_with_adapter("biogpt")
    engine.save_adapter("a", tmp_path / "c", optimizer=True)
    ids = tokens(14)
    ours = our_logprobs(engine, ids)
    loaded = PeftModel.from_pretrained(tiny_model("biogpt"), tmp_path / "c")
    torch.testing.assert_close(logprobs_of(loaded, ids), ours, rtol=1e-5, atol=1e-5)
    base = saved_base("biogpt", tmp_path / "base")
    merged = merge_adapter(tmp_path / "c", tmp_path / "merged", base_model=str(base))
    found = logprobs_of(AutoModelForCausalLM.from_pretrained(merged.folder), ids)
    torch.testing.assert_close(found, ours, rtol=1e-4, atol=1e-5)
    engine.load_adapter("a", tmp_path / "c", optimizer=True)
    assert torch.equal(our_logprobs(engine, ids), ours)


def test_file_that_calls_every_unembedding_lm_head_is_read():
    weights = engine_with_adapter("biogpt")._pool.adapter("a").weights
    old = {k.replace("output_projection", "lm_head"): t for k, t in peft_tensors(weights).items()}
    assert "base_model.model.lm_head.lora_A.weight" in old
    again = weights.over(torch.zeros_like(weights.flat))
    read_peft_tensors(old, again)
    assert torch.equal(again.flat, weights.flat)


def test_shared_factor_that_differs_between_experts_is_refused():
    weights = engine_with_adapter("qwen3_moe")._pool.adapter("a").weights
    name = "base_model.model.model.layers.1.mlp.experts.lora_B.weight"
    tensors = peft_tensors(weights)
    tensors[name][0, 0] += 1
    with pytest.raises(EngineError, match="share a factor"):
        read_peft_tensors(tensors, weights.frozen_copy())


def test_rank_of_a_parameter_with_two_maps_is_doubled_and_its_scale_kept():
    engine = engine_with_adapter("qwen3_moe")
    config = peft_config("tiny", LoraConfig(rank=3), engine._pool.adapter("a").weights)
    assert config["target_modules"] == ["k_proj", "lm_head", "o_proj", "q_proj", "v_proj"]
    assert config["target_parameters"] == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    assert config["rank_pattern"] == {"mlp.experts.gate_up_proj": 6}
    assert config["alpha_pattern"] == {"mlp.experts.gate_up_proj": 64}


def test_adapter_without_experts_names_no_parameters():
    engine = engine_with_adapter("qwen3_moe", train_mlp=False)
    config = peft_config("tiny", LoraConfig(rank=3), engine._pool.adapter("a").weights)
    assert "target_parameters" not in config


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_merged_model_has_the_logprobs_of_base_and_adapter(tmp_path, family):
    base = saved_base(family, tmp_path / "base")
    engine = engine_with_adapter(family)
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    merged = merge_adapter(tmp_path / "c", tmp_path / "merged", base_model=str(base))
    ids = tokens(14)
    found = logprobs_of(AutoModelForCausalLM.from_pretrained(merged.folder), ids)
    torch.testing.assert_close(found, our_logprobs(engine, ids), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize(
    "parameters",
    [["mlp.experts.gate_up_proj"], ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]],
)
def test_experts_that_peft_trained_are_merged(tmp_path, family, parameters):
    """Another tool shares no factor, and may adapt one parameter alone."""
    base = saved_base(family, tmp_path / "base")
    config = PeftConfig(
        r=2,
        lora_alpha=8,
        target_modules=["q_proj"],
        target_parameters=parameters,
        rank_pattern={"experts.gate_up_proj": 3},
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(tmp_path / "c")
    merged = merge_adapter(tmp_path / "c", tmp_path / "merged", base_model=str(base))
    ids = tokens(14)
    found = logprobs_of(AutoModelForCausalLM.from_pretrained(merged.folder), ids)
    torch.testing.assert_close(found, logprobs_of(model, ids), rtol=1e-4, atol=1e-5)
