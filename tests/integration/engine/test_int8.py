"""The model that ships, with int8 weights: how far from float32, and what of it leaves a server."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_support import shake
from transformers import AutoModelForCausalLM

from tinkex.demo import arithmetic, translation
from tinkex.engine.attention.packed import PrefillAttention
from tinkex.engine.engine import Engine, EngineConfig, load_base_model
from tinkex.engine.files.merge import merge_adapter
from tinkex.engine.models.loader import SPROUT
from tinkex.types import AdamParams, Datum, LoraConfig, ModelInput


@pytest.fixture(scope="module")
def documents():
    """Held-out questions with their answers, as token ids."""
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(f"{load_base_model(SPROUT).tokenizer_id}/tokenizer.json")
    pairs = [(p.question, str(p.answer)) for p in arithmetic.held_out(40)]
    pairs += [(e.prompt, e.reply) for e in translation.load()[1][:40]]
    text = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"
    return [vocabulary.encode(text.format(*pair)).ids for pair in pairs]


def engine(weight_dtype=None):
    dtype = "auto" if weight_dtype else "float32"
    return Engine(load_base_model(SPROUT, dtype=dtype), EngineConfig(weight_dtype=weight_dtype))


@torch.no_grad()
def logprobs(made, documents):
    """[tokens, V] of what follows each token, and where the next token of the text is [tokens]."""
    ids = torch.tensor([i for one in documents for i in one])
    positions = torch.cat([torch.arange(len(one)) for one in documents])
    attention = PrefillAttention([len(one) for one in documents])
    hidden = made._runner.hidden(ids, positions, attention, [])
    known = positions.roll(-1) > 0
    known[-1] = False
    return made._runner.head.logits(hidden, ()).log_softmax(1)[known], ids.roll(-1)[known]


def test_int8_is_as_near_to_float32_as_the_documentation_says(documents):
    exact, targets = logprobs(engine(), documents)
    found, _ = logprobs(engine("int8"), documents)
    rows = torch.arange(len(targets))
    off = (found - exact)[rows, targets]
    assert len(rows) > 2000
    assert off.abs().max() < 0.4
    assert off.abs().mean() < 0.02
    assert abs(off.mean()) < 0.005  # the logarithm of the perplexity
    divergence = (exact.exp() * (exact - found)).sum(1)
    assert divergence.mean() < 5e-4
    assert exact.argmax(1).eq(found.argmax(1)).float().mean() > 0.98


def test_training_with_int8_weights_learns_as_in_float32(documents):
    losses = {}
    data = [
        Datum(
            ModelInput.from_ints(ids[:-1]),
            {"target_tokens": ids[1:], "weights": np.ones(len(ids) - 1, np.float32)},
        )
        for ids in documents[40:46]
    ]
    for weight_dtype in (None, "int8"):
        made = engine(weight_dtype)
        made.create_adapter("a", LoraConfig(rank=8, seed=0))
        losses[weight_dtype] = []
        for _ in range(5):
            output = made.forward_backward("a", data, "cross_entropy")
            losses[weight_dtype].append(output.metrics["loss:sum"])
            made.optim_step("a", AdamParams(learning_rate=3e-3))
    assert losses["int8"][-1] < 0.6 * losses["int8"][0]
    assert losses["int8"] == pytest.approx(losses[None], rel=0.01)


def test_adapter_merges_into_the_weights_on_disk_not_the_rounded_ones(tmp_path):
    made = engine("int8")
    made.create_adapter("a", LoraConfig(rank=4, seed=0, train_unembed=False))
    shake(made, "a")
    made.save_adapter("a", tmp_path / "adapter", optimizer=False)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    plain = load_base_model(SPROUT).model
    weights = made._pool.adapter("a").weights
    for name, pair in weights.pairs.items():
        original = plain.get_submodule(name).weight
        found = (
            merged.get_submodule(name).weight - weights.scale * pair.b.detach() @ pair.a.detach()
        )
        torch.testing.assert_close(found, original, rtol=0, atol=1e-6)
