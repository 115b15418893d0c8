"""Models that also take images: their language model is driven, saved, loaded and merged."""

from __future__ import annotations

import pytest
import torch
from engine_support import CONTEXT, FAMILIES, SIZES, datum, job, sample, shake, tokens
from peft import PeftModel
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from tinkex.engine.engine import Engine, EngineConfig
from tinkex.engine.files.merge import merge_adapter
from tinkex.engine.models.loader import load_base_model
from tinkex.types import Datum, LoraConfig, ModelInput

# PEFT asks transformers what transformers calls deprecated, and warns of tied embeddings
pytestmark = [
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": 32,
}
TEXTS = {
    "gemma3": {**FAMILIES["gemma3_text"], "layer_types": ["sliding_attention", "full_attention"]},
    "smolvlm": {"model_type": "llama"},
    "qwen2_5_vl": {"rope_parameters": MROPE},
    "qwen3_vl_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "rope_parameters": {**MROPE, "mrope_interleaved": True},
    },
}
TOWERS = {
    "gemma3": TOWER,
    "smolvlm": TOWER,
    "qwen2_5_vl": QWEN_TOWER,
    "qwen3_vl_moe": {**QWEN_TOWER, "deepstack_visual_indexes": [0]},
}


@pytest.fixture(params=sorted(TEXTS))
def folder(request, tmp_path):
    """A tiny random model that takes images, on disk."""
    text = {**SIZES, **TEXTS[request.param], "tie_word_embeddings": False}
    config = AutoConfig.for_model(
        request.param, text_config=text, vision_config=TOWERS[request.param]
    )
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "base")
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text("{}")
    return tmp_path / "base"


def plain(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.set_attn_implementation("eager")
    return model.eval()


def logprobs_of(model, ids):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return logits.gather(1, torch.tensor([[*ids[1:], 0]]).T)[:, 0]


def our_logprobs(engine, ids):
    one = Datum(ModelInput.from_ints(ids), {"target_tokens": [*ids[1:], 0]})
    output = engine.forward_backward("a", [datum(5), one], "cross_entropy", forward_only=True)
    return torch.tensor(output.loss_fn_outputs[1]["logprobs"].to_numpy())


def test_text_is_computed_trained_saved_and_merged_as_in_transformers(folder, tmp_path):
    base = load_base_model(str(folder))
    assert base.max_context_length == CONTEXT
    engine = Engine(base, EngineConfig())
    engine.create_adapter("a", LoraConfig(rank=2, seed=0))
    ids = tokens(20)
    expected = logprobs_of(plain(folder), ids)
    torch.testing.assert_close(our_logprobs(engine, ids), expected, rtol=1e-5, atol=1e-5)
    names = set(engine._pool.adapter("a").weights.pairs)
    assert not any("vision" in name or "visual" in name for name in names)
    shake(engine, "a")
    engine.save_adapter("a", tmp_path / "a", optimizer=False)
    loaded = PeftModel.from_pretrained(plain(folder), tmp_path / "a").eval()
    found = logprobs_of(loaded, ids)
    torch.testing.assert_close(our_logprobs(engine, ids), found, rtol=1e-5, atol=1e-5)
    assert (found - expected).abs().max() > 1e-2
    merged = merge_adapter(tmp_path / "a", tmp_path / "merged", base_model=str(folder))
    torch.testing.assert_close(logprobs_of(plain(merged.folder), ids), found, rtol=1e-4, atol=1e-5)
    assert (merged.folder / "preprocessor_config.json").exists()


def test_greedy_equals_generate(folder):
    ids = tokens(9)
    expected = plain(folder).generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, 9, dtype=torch.long),
        max_new_tokens=15,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 9:]
    engine = Engine(load_base_model(str(folder)), EngineConfig())
    response = sample(engine, job("j", ids, temperature=0.0, stop=[], max_tokens=15))["j"]
    assert response.sequences[0].tokens_np.tolist() == expected.tolist()
