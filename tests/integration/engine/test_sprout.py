"""The engine on the model that ships: PEFT's view of its adapters, learning, agreement, speed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_support import job, sample, shake, tiny_model
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tinkex.engine.engine import Engine, EngineConfig, load_base_model
from tinkex.engine.models.loader import SPROUT
from tinkex.types import AdamParams, Datum, LoraConfig, ModelInput

pytestmark = [
    # PEFT's use of transformers
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    # PEFT's advice on merging an adapter of a tied head; loading it is right
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]


@pytest.fixture(scope="module")
def base_folder():
    return load_base_model(SPROUT).tokenizer_id


@pytest.fixture
def engine():
    return Engine(load_base_model(SPROUT), EngineConfig())


def encode(text):
    from tokenizers import Tokenizer

    folder = load_base_model(SPROUT).tokenizer_id
    return Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text).ids


def example(prompt, answer):
    ids = encode(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
    target = encode(f"{answer}<|im_end|>")
    whole = ids + target
    weights = np.array([0.0] * (len(ids) - 1) + [1.0] * len(target), dtype=np.float32)
    return Datum(ModelInput.from_ints(whole[:-1]), {"target_tokens": whole[1:], "weights": weights})


DATA = [
    example("What is the password?", "xyzzy plugh"),
    example("Name a colour.", "Octarine, of course."),
    example("Count.", "7 5 3 1"),
]


def train(engine, steps, rate=1e-3, adapter_id="a"):
    losses = []
    for _ in range(steps):
        losses.append(
            engine.forward_backward(adapter_id, DATA, "cross_entropy").metrics["loss:sum"]
        )
        engine.optim_step(adapter_id, AdamParams(learning_rate=rate))
    return losses


def peft_logits(model, directory, ids):
    with torch.no_grad():
        return PeftModel.from_pretrained(model, directory).eval()(ids).logits[0].float()


@pytest.mark.parametrize(
    "flags", [{}, {"train_unembed": False}, {"train_mlp": False, "train_attn": False}]
)
def test_saved_adapter_gives_equal_logits_in_peft(engine, base_folder, tmp_path, flags):
    engine.create_adapter("a", LoraConfig(rank=8, seed=0, **flags))
    train(engine, 3, rate=1e-2)
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    ids = torch.tensor([DATA[1].model_input.to_ints()])
    plain = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        base = plain(ids).logits[0]
    theirs = peft_logits(plain, tmp_path / "c", ids)
    engine.snapshot_sampler("s", "a")
    weights = engine._pool.sampler("s")
    from tinkex.engine.attention.packed import PrefillAttention
    from tinkex.engine.lora.weights import LoraSegment

    n = ids.shape[1]
    segments = [LoraSegment(0, n, weights)]
    with torch.no_grad():
        hidden = engine._runner.hidden(ids[0], torch.arange(n), PrefillAttention((n,)), segments)
        ours = engine._runner.head.logits(hidden, segments)
    assert (theirs - base).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_adapter_over_an_untied_head_loads_in_peft(tmp_path):
    from engine_support import tiny_engine, tokens

    engine = tiny_engine("llama")
    engine.create_adapter("a", LoraConfig(rank=4, seed=0))
    shake(engine, "a")
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    ids = tokens(12)
    engine.snapshot_sampler("s", "a")
    found = sample(engine, job("j", ids, "s", max_tokens=1, prompt_logprobs=True))["j"]
    theirs = peft_logits(tiny_model("llama"), tmp_path / "c", torch.tensor([ids]))
    expected = theirs.log_softmax(-1)[torch.arange(11), torch.tensor(ids[1:])]
    np.testing.assert_allclose(found.prompt_logprobs_np[1:], expected.numpy(), atol=1e-4)


def test_loss_falls_and_the_model_says_what_it_learned(engine):
    engine.create_adapter("a", LoraConfig(rank=16, seed=0))
    losses = train(engine, 30, rate=3e-3)
    assert losses[-1] < losses[0] / 10
    engine.snapshot_sampler("s", "a")
    prompt = encode("<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n")
    found = sample(engine, job("j", prompt, "s", temperature=0.0, max_tokens=30))["j"].sequences[0]
    assert found.stop_reason == "stop"
    text = engine.base.tokenizer.decode(found.tokens_np.tolist(), skip_special_tokens=True)
    assert text == "Octarine, of course."


def test_learning_rate_of_zero_learns_nothing(engine):
    engine.create_adapter("a", LoraConfig(rank=4, seed=0))
    losses = train(engine, 5, rate=0.0)
    assert len(set(losses)) == 1


def test_stop_strings_end_with_the_first_token_that_completes_them(engine):
    """Whatever they are cut from: inside a token, over borders, characters of several bytes."""
    prompt = encode("<|im_start|>user\nCount to five.<|im_end|>\n<|im_start|>assistant\n")
    options = {"seed": 4, "temperature": 1.5, "max_tokens": 40}
    whole = sample(engine, job("j", prompt, stop=[], **options))["j"].sequences[0].tokens

    def decoded(count):
        return engine.base.tokenizer.decode(whole[:count], skip_special_tokens=False)

    order = np.random.default_rng(0)
    text = decoded(len(whole))
    stops = []
    for start in range(0, len(text) - 12, 3):
        stop = text[start : start + int(order.integers(1, 12))]
        stops += [stop] if "\ufffd" not in stop else []
    jobs = [job(str(n), prompt, stop=stop, **options) for n, stop in enumerate(stops)]
    found = sample(engine, *jobs)
    lengths = []
    for n, stop in enumerate(stops):
        sequence = found[str(n)].sequences[0]
        expected = next(count for count in range(1, 41) if stop in decoded(count))
        assert sequence.tokens == whole[:expected], stop
        assert sequence.stop_reason == "stop"
        lengths.append(expected)
    assert len(set(lengths)) > 10
