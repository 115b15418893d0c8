"""An adapter merged into its base gives the logits of the two together."""

import json
import shutil

import pytest
import torch
from engine_support import job, sample, shake, stored_in_mxfp4, tiny_model, tokens
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, dynamic_module_utils

from tinkex.engine.engine import Engine, load_base_model
from tinkex.engine.files.merge import merge_adapter
from tinkex.errors import ConfigurationError, EngineError, InputError
from tinkex.types import LoraConfig as TinkexLora

# PEFT asks transformers what transformers calls
# deprecated, and warns of what is merged here on purpose: an adapter of a tied unembedding
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

IDS = torch.tensor([[3, 9, 27, 4, 11]])


def give_tokenizer(folder):
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path):
    """A saved base model, with a tokenizer."""
    folder = tmp_path / "base"
    model = tiny_model(tie_word_embeddings=request.param)
    model.save_pretrained(folder)
    give_tokenizer(folder)
    return folder


def adapter_of(base, folder, modules, rank=3, start=True):
    """An adapter that PEFT itself saved, with weights that are not zero."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(
        r=rank,
        lora_alpha=8,
        target_modules=modules,
        task_type="CAUSAL_LM",
        lora_dropout=0.0,
        init_lora_weights=start,
    )
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    return folder


def logits_of(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("modules", [["q_proj", "down_proj"], ["q_proj", "lm_head"]])
def test_merged_model_has_the_logits_of_base_and_adapter(base, tmp_path, modules):
    adapter = adapter_of(base, tmp_path / "adapter", modules)
    merged = merge_adapter(adapter, tmp_path / "out" / "merged", base_model=str(base))
    together = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    alone = AutoModelForCausalLM.from_pretrained(merged.folder)
    torch.testing.assert_close(logits_of(alone), logits_of(together), atol=1e-5, rtol=1e-5)
    plain = logits_of(AutoModelForCausalLM.from_pretrained(base))
    assert (logits_of(alone) - plain).abs().max() > 1e-3
    tied = AutoModelForCausalLM.from_pretrained(base).config.tie_word_embeddings
    assert merged.untied == (tied and "lm_head" in modules)
    assert (merged.folder / "tokenizer.json").exists()
    assert [one.name for one in merged.folder.parent.iterdir()] == ["merged"]


def test_base_stored_in_mxfp4_is_merged_as_what_it_stands_for(tmp_path):
    folder, prompt = tmp_path / "base", tokens(9)
    stored_in_mxfp4(folder)
    give_tokenizer(folder)
    engine = Engine(load_base_model(str(folder)))
    engine.create_adapter("a", TinkexLora(rank=2, seed=0))
    shake(engine, "a")
    engine.save_adapter("a", tmp_path / "adapter", optimizer=False)
    engine.snapshot_sampler("a", "a")
    asked = job("j", prompt, "a", max_tokens=1, prompt_logprobs=True)
    expected = sample(engine, asked)["j"].prompt_logprobs_np
    merged = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    whole = Engine(load_base_model(str(merged.folder)))
    asked = job("j", prompt, max_tokens=1, prompt_logprobs=True)
    found = sample(whole, asked)["j"].prompt_logprobs_np
    assert found[1:] == pytest.approx(expected[1:], abs=1e-4)


def test_base_without_a_tokenizer_is_merged_without_one(base, tmp_path):
    for file in base.glob("tokenizer*"):
        file.unlink()
    adapter = adapter_of(base, tmp_path / "adapter", ["q_proj"])
    merged = merge_adapter(adapter, tmp_path / "merged", base_model=str(base))
    assert not [*merged.folder.glob("tokenizer*")]
    assert (merged.folder / "model.safetensors").is_file()


def test_tokenizer_with_code_of_its_own_is_refused_with_the_flag_and_loaded_with_it(
    tmp_path, monkeypatch
):
    modules, base = str(tmp_path / "modules"), tmp_path / "base"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    tiny_model("smollm3").save_pretrained(base)  # transformers has no tokenizer of this family
    give_tokenizer(base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    (base / "own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "class Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    adapter, out = adapter_of(base, tmp_path / "adapter", ["q_proj"]), tmp_path / "merged"
    with pytest.raises(ConfigurationError, match=r"tokenizer of .*--trust-remote-code"):
        merge_adapter(adapter, out, base_model=str(base))
    assert not out.exists()
    merge_adapter(adapter, out, base_model=str(base), trust_remote_code=True)
    assert (out / "tokenizer.json").is_file()


def test_cut_off_adapter_and_a_place_that_cannot_be_written_are_told(base, tmp_path):
    adapter = adapter_of(base, tmp_path / "adapter", ["q_proj"])
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot write"):
        merge_adapter(adapter, tmp_path / "file" / "merged", base_model=str(base))
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(InputError, match="is no adapter"):
        merge_adapter(adapter, tmp_path / "merged", base_model=str(base))


def test_dtype_is_the_one_asked_for(base, tmp_path):
    adapter = adapter_of(base, tmp_path / "adapter", ["q_proj"])
    merged = merge_adapter(adapter, tmp_path / "m", base_model=str(base), dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(merged.folder, dtype="auto")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("start", ["gaussian", "orthogonal"])
def test_adapter_that_was_begun_in_another_way_is_merged_if_its_base_is_as_it_was(
    base, tmp_path, start
):
    adapter = adapter_of(base, tmp_path / "adapter", ["q_proj"], rank=4, start=start)
    merged = merge_adapter(adapter, tmp_path / "merged", base_model=str(base))
    expected = logits_of(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    )
    found = logits_of(AutoModelForCausalLM.from_pretrained(merged.folder))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_2", "olora"])
def test_adapter_whose_start_changed_the_base_is_refused(base, tmp_path, start):
    """PEFT subtracts the first product from the base, when it begins and when it loads it."""
    adapter = adapter_of(base, tmp_path / "adapter", ["q_proj"], start=start)
    with pytest.raises(InputError, match=f"init_lora_weights='{start}'.*let PEFT merge it"):
        merge_adapter(adapter, tmp_path / "merged", base_model=str(base))


def test_what_is_no_adapter_or_does_not_fit_is_refused_and_leaves_nothing(base, tmp_path):
    adapter = adapter_of(base, tmp_path / "adapter", ["q_proj"])
    out = tmp_path / "merged"
    with pytest.raises(InputError, match="no adapter"):
        merge_adapter(base, out, base_model=str(base))
    other = tmp_path / "other"
    tiny_model(hidden_size=64).save_pretrained(other)
    with pytest.raises(InputError, match="does not fit"):
        merge_adapter(adapter, out, base_model=str(other))
    config = json.loads((adapter / "adapter_config.json").read_text())
    for change in (
        {"use_dora": True},
        {"layer_replication": [[0, 1], [0, 1]]},
        {"peft_type": "IA3"},
        {"bias": "all"},
    ):
        changed = tmp_path / "changed"
        shutil.copytree(adapter, changed, dirs_exist_ok=True)
        (changed / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError):
            merge_adapter(changed, out, base_model=str(base))
    assert not out.exists()
    out.mkdir()
    with pytest.raises(InputError, match="already"):
        merge_adapter(adapter, out, base_model=str(base))
