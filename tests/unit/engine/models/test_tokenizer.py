"""Text of token ids."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec

import pytest
from engine_support import job, tokens

from tinkex.engine.engine import Engine
from tinkex.engine.models.loader import _ASSETS, SPROUT, load_base_model
from tinkex.engine.models.tokenizer import load_decoder, load_fast_tokenizer
from tinkex.errors import EngineError
from tinkex.server.completer.texts import load_text
from tinkex.testing.clock import VirtualClock


def test_folder_with_a_tokenizer_file_is_read(tmp_path):
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    decoder = load_decoder(str(tmp_path))
    assert decoder.decode([2, 0], skip_special_tokens=False) == "aba"


def test_nothing_there_is_no_tokenizer(tmp_path):
    assert load_decoder(str(tmp_path)) is None
    assert load_decoder("") is None
    assert load_fast_tokenizer(str(tmp_path)) is None
    assert load_fast_tokenizer("") is None


def test_special_tokens_have_text_when_asked_for():
    decoder = load_base_model(SPROUT).tokenizer
    end = load_base_model(SPROUT).eos_token_ids[0]
    assert decoder.decode([end], skip_special_tokens=False)
    assert decoder.decode([end], skip_special_tokens=True) == ""


def test_tokenizer_without_the_fast_file_is_read_by_transformers(tmp_path):
    import json

    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    settings = {"tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    decoder = load_decoder(str(tmp_path))
    assert decoder.decode([2, 0], skip_special_tokens=False) == "aba"


def test_unreadable_tokenizer_is_told_to_who_gives_stop_strings_without_the_folder(tmp_path):
    (tmp_path / "vocab.json").write_text("not json")
    with pytest.raises(EngineError, match=r"cannot be loaded.*stop as token ids") as error:
        load_decoder(str(tmp_path))
    assert str(tmp_path) not in str(error.value)


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="the package is there")
def test_package_that_reads_sentencepiece_files_is_named(tmp_path):
    folder = shutil.copytree(_ASSETS / "sprout", tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    for load in (load_decoder, load_fast_tokenizer):
        with pytest.raises(EngineError, match="`pip install sentencepiece`"):
            load(str(folder))


@pytest.mark.parametrize("file", ["tokenizer_config.json", "added_tokens.json"])
def test_tokens_that_are_added_beside_the_tokenizers_own_file_have_text(tmp_path, file):
    folder = shutil.copytree(_ASSETS / "sprout", tmp_path / "model")
    added = {"content": "<|done|>", "special": True, "lstrip": False, "normalized": False}
    added |= {"rstrip": False, "single_word": False}
    path = folder / file
    settings = json.loads(path.read_text()) if path.exists() else {}
    new = {"added_tokens_decoder": {"2048": added}} if path.exists() else {"<|done|>": 2048}
    path.write_text(json.dumps({**settings, **new}))
    decoder = load_decoder(str(folder))
    plain = load_decoder(str(_ASSETS / "sprout"))
    assert decoder.decode([2048], skip_special_tokens=False) == "<|done|>"
    some = list(range(300, 310))
    assert decoder.decode(some) == plain.decode(some)


def test_tokenizer_with_code_of_its_own_is_loaded_where_the_model_is_trusted(tmp_path, monkeypatch):
    modules = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(modules, str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = shutil.copytree(_ASSETS / "sprout", tmp_path / "model")
    shutil.move(folder / "tokenizer.json", folder / "mine.json")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {
        "tokenizer_class": "MineTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_mine.MineTokenizer"]},
    }
    path.write_text(json.dumps(settings))
    (folder / "tokenization_mine.py").write_text(
        "from tokenizers import Tokenizer\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class MineTokenizer(PreTrainedTokenizerFast):\n"
        "    vocab_files_names = {'vocab_file': 'mine.json'}\n"
        "    def __init__(self, vocab_file, **options):\n"
        "        super().__init__(tokenizer_object=Tokenizer.from_file(vocab_file), **options)\n"
    )
    for load in (load_decoder, load_fast_tokenizer):
        with pytest.raises(EngineError, match="cannot be loaded"):
            load(str(folder))
        found = load(str(folder), trust_remote_code=True)
        assert found.decode([2], skip_special_tokens=False) == "<|im_end|>"
    base = load_base_model(str(folder), trust_remote_code=True)
    assert base.tokenizer.decode([2], skip_special_tokens=False) == "<|im_end|>"
    assert load_text("some/model", str(folder), VirtualClock(), trust_remote_code=True)


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}'])
def test_damaged_tokenizer_is_told_to_who_gives_stop_strings(tmp_path, text):
    folder = shutil.copytree(_ASSETS / "sprout", tmp_path / "model")
    (folder / "tokenizer.json").write_text(text)
    engine = Engine(load_base_model(str(folder)))
    with pytest.raises(EngineError, match=r"tokenizer.json cannot be read.*stop as token ids"):
        engine.add_sample(job("j", tokens(3), stop=["a"]))
    engine.add_sample(job("j", tokens(3), stop=[1]))
    with pytest.raises(EngineError, match=f"{folder} cannot be loaded: "):
        load_fast_tokenizer(str(folder))
