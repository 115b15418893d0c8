"""What the engine samples is distributed as it should be, and would not pass if it were not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_support import VOCAB, job, sample, shake, tiny_engine, tiny_model, tokens
from peft import PeftModel
from sampling_reference import chi_squared, distribution

from tinkex.engine.sampling import generation
from tinkex.engine.sampling.uniform import UniformStream
from tinkex.types import LoraConfig

PROMPT = tokens(5)
COUNT = 2000
SETTINGS = {
    "plain": {},
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 1.8},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.75},
    "all three": {"temperature": 1.3, "top_k": 12, "top_p": 0.8},
}


def logits_after(*prompt):
    with torch.no_grad():
        return tiny_model()(torch.tensor([prompt])).logits[0, -1]


def draws(count, length=1, **options):
    """Sample `count` sequences of a prompt: a tuple of tokens each."""
    found = sample(
        tiny_engine(),
        *(
            job(str(n), PROMPT, num_samples=500, seed=n, max_tokens=length, stop=[], **options)
            for n in range(count // 500)
        ),
    )
    return [tuple(s.tokens) for r in found.values() for s in r.sequences]


@pytest.mark.parametrize("name", SETTINGS)
def test_first_token_follows_the_filtered_softmax(name):
    expected = distribution(logits_after(*PROMPT), **SETTINGS[name])
    statistic, limit = chi_squared([t for (t,) in draws(COUNT, **SETTINGS[name])], expected)
    assert statistic < limit


PAIRS = {"temperature": 1.5, "top_k": 4}


def distribution_of_pairs():
    first = distribution(logits_after(*PROMPT), **PAIRS)
    return {
        (one, two): p * q
        for one, p in first.items()
        for two, q in distribution(logits_after(*PROMPT, one), **PAIRS).items()
    }


def test_pairs_of_tokens_follow_the_chain_of_softmaxes():
    """A step's number must not tell of the one before."""
    statistic, limit = chi_squared(draws(COUNT, 2, **PAIRS), distribution_of_pairs())
    assert statistic < limit


def ignores_temperature(choice):
    return replace(choice, temperature=1.0)


def warms_a_little(choice):
    return replace(choice, temperature=choice.temperature * 1.15)


def keeps_one_more(choice):
    return replace(choice, top_k=choice.top_k + 1)


def forgets_top_p(choice):
    return replace(choice, top_p=1.0)


def leans_to_the_start(choice):
    return replace(choice, uniform=choice.uniform**1.2)


WRONG = [
    ("cold", ignores_temperature),
    ("cold", warms_a_little),
    ("hot", ignores_temperature),
    ("top-k", keeps_one_more),
    ("top-p", forgets_top_p),
    ("all three", forgets_top_p),
    ("plain", leans_to_the_start),
]


@pytest.mark.parametrize(("name", "mistake"), WRONG)
def test_sampler_with_a_mistake_would_be_found(monkeypatch, name, mistake):
    right = generation.choose_tokens
    monkeypatch.setattr(
        generation, "choose_tokens", lambda z, choices: right(z, [mistake(c) for c in choices])
    )
    expected = distribution(logits_after(*PROMPT), **SETTINGS[name])
    statistic, limit = chi_squared([t for (t,) in draws(COUNT, **SETTINGS[name])], expected)
    assert statistic > limit


def test_numbers_that_repeat_from_step_to_step_would_be_found(monkeypatch):
    class Stuck:
        def __init__(self, seed, index, _start=0):
            first = UniformStream(seed, index).draw()
            self.draw = lambda: first

    monkeypatch.setattr(generation, "UniformStream", Stuck)
    statistic, limit = chi_squared(draws(COUNT, 2, **PAIRS), distribution_of_pairs())
    assert statistic > limit


# --- against transformers and PEFT ---------------------------------------------------------------

peft_warns = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
tied_warns = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")


@pytest.fixture(params=["qwen3", "llama"])
def adapted(request, tmp_path):
    """An engine with a sampler, and plain PEFT with the same weights."""
    engine = tiny_engine(request.param)
    engine.create_adapter("a", LoraConfig(rank=4, seed=0))
    shake(engine, "a")
    engine.snapshot_sampler("s", "a")
    engine.save_adapter("a", tmp_path / "c", optimizer=False)
    return engine, PeftModel.from_pretrained(tiny_model(request.param), tmp_path / "c").eval()


@peft_warns
@tied_warns
@pytest.mark.parametrize("stop", [None, []])
def test_greedy_with_an_adapter_equals_generate_with_peft(adapted, stop):
    engine, twin = adapted
    prompts = [tokens(3 + n, seed=n) for n in range(6)]
    jobs = [
        job(str(n), p, "s", temperature=0.0, max_tokens=40, stop=stop)
        for n, p in enumerate(prompts)
    ]
    found = sample(engine, *jobs)
    for n, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = twin.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=40,
                do_sample=False,
                eos_token_id=1 if stop is None else None,
                pad_token_id=0,
            )[0, len(prompt) :]
        assert found[str(n)].sequences[0].tokens == expected.tolist()


@peft_warns
@tied_warns
def test_logprobs_are_the_log_softmax_of_the_plain_forward(adapted):
    engine, twin = adapted
    settings = [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 5}, {"top_p": 0.6}]
    prompts = [tokens(4 + 3 * n, seed=n) for n in range(4)]
    jobs = [
        job(
            str(n),
            prompts[n],
            "s",
            seed=n,
            num_samples=2,
            max_tokens=30,
            stop=[],
            prompt_logprobs=True,
            topk_sample_logprobs=3,
            **settings[n],
        )
        for n in range(4)
    ]
    for name, response in sample(engine, *jobs).items():
        prompt = prompts[int(name)]
        for one in response.sequences:
            ids = torch.tensor([*prompt, *one.tokens])
            with torch.no_grad():
                exact = twin(ids[None]).logits[0].double().log_softmax(-1)
            scored = exact[:-1].gather(1, ids[1:, None])[:, 0].numpy()
            np.testing.assert_allclose(
                np.concatenate([response.prompt_logprobs_np[1:], one.logprobs_np]),
                scored,
                atol=1e-5,
            )
            best = exact[len(prompt) - 1 : -1].topk(3).values.numpy()
            np.testing.assert_allclose(one.topk_logprobs_np.logprobs, best, atol=1e-5)


def test_reference_of_these_tests_is_itself_right():
    z = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert distribution(z) == pytest.approx({0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1})
    assert distribution(z, top_k=2) == pytest.approx({0: 4 / 7, 1: 3 / 7})
    assert distribution(z, top_p=0.65) == pytest.approx({0: 4 / 7, 1: 3 / 7})
    assert distribution(z, temperature=0.5, top_k=2) == pytest.approx({0: 16 / 25, 1: 9 / 25})
    statistic, limit = chi_squared([0] * 60 + [1] * 40, {0: 0.5, 1: 0.5})
    assert statistic == pytest.approx(4)
    assert limit == pytest.approx(10.83, abs=0.5)  # the tables' value for one degree of freedom
    assert chi_squared([7], {0: 1.0})[0] == np.inf
    assert sum(distribution(torch.randn(VOCAB)).values()) == pytest.approx(1)
