"""What is accepted as a base model."""

from __future__ import annotations

import json

import pytest
import torch
from engine_support import CONTEXT, VOCAB, quantized_by, stored_in_mxfp4, tiny_model
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


def without(folder, name):
    """Take one tensor out of a model's file, as of another kind of model or a broken copy."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.down_proj.weight"])
def test_weights_that_the_files_lack_are_named_and_not_made_up(folder, name):
    without(folder, name)
    with pytest.raises(ConfigurationError, match=rf"lacks 1 of the weights.*{name}"):
        load_base_model(str(folder))


def test_tied_unembedding_need_not_be_in_the_files(tmp_path):
    tiny_model(tie_word_embeddings=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load_base_model(str(tmp_path)).vocab_size == VOCAB


def test_weights_of_another_shape_are_named(folder):
    changed = json.loads((folder / "config.json").read_text()) | {"num_key_value_heads": 4}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigurationError, match=r"k_proj\.weight of shape \[32, 32\].*\[64, 32\]"):
        load_base_model(str(folder))


def test_file_that_was_cut_off_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigurationError, match=r"cannot load the base model.*incomplete"):
        load_base_model(str(folder))


def test_name_that_is_neither_a_folder_nor_a_hub_id_says_both(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match=r"'models/qwen': there is no such folder.*Hub"):
        load_base_model("models/qwen")


def test_shard_that_is_not_there_is_named(tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("model-*"))[1].unlink()
    with pytest.raises(ConfigurationError, match=r"No such file.*model-00002-of-"):
        load_base_model(str(tmp_path))


def test_configuration_that_contradicts_itself_is_refused_with_the_reason(folder):
    changed = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": "two"}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigurationError, match=r"num_hidden_layers.*expected int"):
        load_base_model(str(folder))


def test_adapter_beside_a_model_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="holds an adapter"):
        load_base_model(str(folder))


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
