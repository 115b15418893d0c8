"""Text of token ids."""

from __future__ import annotations

from tinkex.engine.models.loader import SPROUT, load_base_model
from tinkex.engine.models.tokenizer import load_decoder


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


def test_special_tokens_have_text_when_asked_for():
    decoder = load_base_model(SPROUT).tokenizer
    end = load_base_model(SPROUT).eos_token_ids[0]
    assert decoder.decode([end], skip_special_tokens=False)
    assert decoder.decode([end], skip_special_tokens=True) == ""
