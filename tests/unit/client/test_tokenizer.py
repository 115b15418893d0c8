"""Which tokenizer a model has, and that each is loaded once (A5.1, A5.2)."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from tinkex.client.tokenizer import (
    LLAMA_3_TOKENIZER,
    TokenizerCache,
    TokenizerSource,
    load_tokenizer,
    resolve_tokenizer,
)
from tinkex.errors import TokenizerError


@pytest.mark.parametrize(
    ("model", "tokenizer_id", "location"),
    [
        ("Qwen/Qwen3-8B", None, "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B:peft:131072", None, "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B", "other/tokenizer", "other/tokenizer"),
        ("meta-llama/Llama-3.1-8B-Instruct", None, LLAMA_3_TOKENIZER),
        ("meta-llama/Llama-3.3-70B", None, LLAMA_3_TOKENIZER),
        ("meta-llama/Llama-2-7b", None, "meta-llama/Llama-2-7b"),
        ("org/model/variant", None, "org/model"),
        ("/models/one", None, "/models/one"),
        ("moonshotai/Kimi-K2.5-Text-Only", None, "moonshotai/Kimi-K2.5"),
    ],
)
def test_name_leads_to_the_tokenizer(model, tokenizer_id, location):
    assert resolve_tokenizer(model, tokenizer_id).location == location


def test_tokenizers_that_are_code_are_pinned_and_no_other_runs_code():
    assert resolve_tokenizer("moonshotai/Kimi-K2-Thinking").runs_code
    assert len(resolve_tokenizer("moonshotai/Kimi-K2.6").revision) == 40
    assert not resolve_tokenizer("moonshotai/Kimi-unknown").runs_code
    assert not resolve_tokenizer("Qwen/Qwen3-8B").runs_code


def test_tokenizer_of_the_shipped_model_is_a_folder_of_the_package():
    folder = Path(resolve_tokenizer("tinkex/sprout").location)
    assert (folder / "tokenizer.json").is_file()


def test_tokenizer_of_the_shipped_model_is_the_one_that_transformers_would_choose():
    transformers = pytest.importorskip("transformers")
    source = resolve_tokenizer("tinkex/sprout")
    ours = load_tokenizer(source)
    theirs = transformers.AutoTokenizer.from_pretrained(source.location)
    assert type(ours) is type(theirs)
    assert repr(ours) == repr(theirs)
    assert ours.chat_template == theirs.chat_template
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


def test_table_agrees_with_the_official_sdk():
    pytest.importorskip("tinker")
    from tinker.lib.public_interfaces import sampling_client

    source = Path(sampling_client.__file__).read_text()
    for model in ("moonshotai/Kimi-K2-Thinking", "moonshotai/Kimi-K2.6", "moonshotai/Kimi-K3"):
        assert resolve_tokenizer(model).revision in source
    assert LLAMA_3_TOKENIZER in source


def test_fifty_threads_load_a_tokenizer_once():
    """Bug row: tokenizer loaded many times at once."""
    loads: list[TokenizerSource] = []
    barrier = threading.Barrier(50)
    found = []

    def load(source):
        loads.append(source)
        return object()

    cache = TokenizerCache(load)

    def ask() -> None:
        barrier.wait()
        found.append(cache.get(TokenizerSource("one")))

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(set(map(id, found))) == 1
    assert cache.get(TokenizerSource("two")) is not found[0]


def test_failed_load_is_tried_again():
    answers = iter([TokenizerError("the hub is away"), "tokenizer"])

    def load(_):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cache = TokenizerCache(load)
    with pytest.raises(TokenizerError):
        cache.get(TokenizerSource("one"))
    assert cache.get(TokenizerSource("one")) == "tokenizer"


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TokenizerError, match="pip install transformers"):
        load_tokenizer(TokenizerSource("any"))


@pytest.mark.parametrize("name", ["TML/secret", "thinkingmachines/secret"])
def test_private_tokenizer_needs_its_package(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "tml_tokenizers", None)
    with pytest.raises(TokenizerError, match="tml_tokenizers"):
        load_tokenizer(TokenizerSource(name))
