"""What is accepted as a base model."""

from __future__ import annotations

import json

import pytest
import torch
from engine_support import CONTEXT, VOCAB, tiny_model

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
