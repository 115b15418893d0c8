"""What is accepted as a base model."""

from __future__ import annotations

import json

import pytest
import torch
from engine_support import CONTEXT, VOCAB, tiny_model
from safetensors.torch import load_file, save_file

from tinkex.engine.models.loader import load_base_model
from tinkex.errors import ConfigurationError


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_folder_is_loaded_and_described(folder):
    base = load_base_model(str(folder), name="mine")
    assert base.name == "mine"
    assert base.architecture == "Qwen3ForCausalLM"
    assert (base.vocab_size, base.max_context_length) == (VOCAB, CONTEXT)
    assert base.eos_token_ids == (1,)
    assert base.parameter_count == sum(p.numel() for p in tiny_model().parameters())
    assert base.tokenizer_id == str(folder)
    assert not any(p.requires_grad for p in base.model.parameters())


def test_name_defaults_to_the_source(folder):
    assert load_base_model(str(folder)).name == str(folder)


def test_dtype_is_applied(folder):
    base = load_base_model(str(folder), dtype="bfloat16")
    assert base.model.dtype == torch.bfloat16


def test_several_end_tokens_are_kept(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert load_base_model(str(folder)).eos_token_ids == (3, 4)


def test_pickled_weights_are_refused_with_the_way_out(folder):
    weights = torch.nn.Module.state_dict(tiny_model())
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin.*--allow-pickle"):
        load_base_model(str(folder))
    assert load_base_model(str(folder), allow_pickle=True).vocab_size == VOCAB


def test_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="no weights"):
        load_base_model(str(folder))


def test_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        load_base_model(str(tmp_path))


def test_code_of_the_models_own_is_refused_with_the_flag(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ConfigurationError, match="--trust-remote-code"):
        load_base_model(str(folder))


def test_unknown_architecture_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such"}))
    with pytest.raises(ConfigurationError, match="cannot load the base model"):
        load_base_model(str(folder))


def test_folder_without_a_tokenizer_has_none(folder):
    assert load_base_model(str(folder)).tokenizer is None


@pytest.mark.parametrize("source", ["/no/such/model", "./nowhere", "~/nowhere"])
def test_missing_folder_is_named_and_not_asked_of_a_hub(source):
    with pytest.raises(ConfigurationError, match=f"no folder {source}"):
        load_base_model(source)


def stored_in_mxfp4(folder):
    """Save a tiny GPT-OSS with random experts in MXFP4; gives the numbers that they stand for."""
    tiny_model("gpt_oss", intermediate_size=64).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    halves = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12]) / 2
    values = torch.cat((halves, -halves))
    expected = {}
    for name in [k for k in tensors if k.endswith(("gate_up_proj", "down_proj"))]:
        experts, rows, columns = tensors.pop(name).shape
        blocks = torch.randint(256, (experts, columns, rows // 32, 16), dtype=torch.uint8)
        scales = torch.randint(120, 126, blocks.shape[:-1], dtype=torch.uint8)
        pairs = torch.stack((values[(blocks & 15).long()], values[(blocks >> 4).long()]), dim=-1)
        scaled = pairs.flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
        expected[name] = scaled.flatten(-2).mT
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    quantized_by(folder, "mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])
    return expected


def quantized_by(folder, method, **settings):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **settings}
    (folder / "config.json").write_text(json.dumps(config))


def test_experts_in_mxfp4_are_expanded_exactly(tmp_path):
    expected = stored_in_mxfp4(tmp_path)
    base = load_base_model(str(tmp_path))
    assert len(expected) == 4
    for name, values in expected.items():
        assert torch.equal(base.model.get_parameter(name), values)


def test_weights_quantised_in_another_way_are_refused_by_name(folder):
    quantized_by(folder, "gptq", bits=4)
    with pytest.raises(ConfigurationError, match=r"quantised by gptq.*weight_dtype int8"):
        load_base_model(str(folder))
