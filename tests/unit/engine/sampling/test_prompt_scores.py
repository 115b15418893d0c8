"""What is asked about a prompt, against log-probabilities of the training forward."""

from __future__ import annotations

import numpy as np
import pytest
from engine_support import (
    VOCAB,
    job,
    sample,
    shake,
    tiny_engine,
    tiny_model,
    tokens,
    trained_engine,
)

from tinkex.engine.sampling.sequence import MAX_TARGET_CELLS
from tinkex.errors import InputError
from tinkex.types import Datum, LoraConfig, ModelInput, TensorData

PROMPT = tokens(9)


@pytest.fixture(scope="module")
def expected():
    """Log-probabilities [T - 1, V] of all tokens at each prompt position after the first."""
    engine = trained_engine()
    every = np.tile(np.arange(VOCAB), (len(PROMPT) - 1, 1))
    datum = Datum(ModelInput.from_ints(PROMPT[:-1]), {"target_tokens": every})
    found = engine.forward_backward("a", [datum], "cross_entropy", forward_only=True)
    return found.loss_fn_outputs[0]["logprobs"].to_numpy()


def ask(**options):
    options = {"max_tokens": 1, "seed": 3, **options}
    return sample(trained_engine(), job("j", PROMPT, "a", **options))["j"]


def test_targets_are_scored_in_their_shape_and_none_is_zero(expected):
    cells = np.random.default_rng(0).integers(0, VOCAB, (8, 3))
    cells[2, 1] = cells[5] = -1
    found = ask(target_prompt_logprobs=TensorData(cells)).target_prompt_logprobs
    assert found.dimensions == (8, 3)
    wanted = np.where(cells < 0, 0, np.take_along_axis(expected, cells.clip(0), axis=1))
    np.testing.assert_allclose(found.to_numpy(), wanted, atol=1e-5)


def test_sparse_targets_keep_their_layout(expected):
    crow, columns = [0, 0, 2, 2, 3, 3, 3, 3, 6], [1, 4, 0, 0, 2, 3]
    values = [7, 8, 9, 10, 11, 12]
    asked = TensorData(values, "int64", [8, 5], crow, columns)
    found = ask(target_prompt_logprobs=asked).target_prompt_logprobs
    assert found.is_sparse
    assert (found.sparse_crow_indices, found.sparse_col_indices) == (crow, columns)
    rows = np.repeat(np.arange(8), np.diff(crow))
    np.testing.assert_allclose(found.values, expected[rows, values], atol=1e-5)


@pytest.mark.parametrize(
    "asked", [TensorData([], "int64", [8, 0]), TensorData(np.array([[-1]] * 8))]
)
def test_nothing_asked_is_nothing_found(asked):
    found = ask(target_prompt_logprobs=asked).target_prompt_logprobs
    assert found.dimensions == asked.dimensions
    assert not found.values.any()


def test_prompt_of_one_token_has_no_position_to_score():
    one = job(
        "j",
        PROMPT[:1],
        "a",
        max_tokens=1,
        prompt_alt_tokens_k=2,
        target_prompt_logprobs=TensorData([], "int64", [0, 3]),
    )
    found = sample(trained_engine(), one)["j"]
    assert found.target_prompt_logprobs.dimensions == (0, 3)
    assert found.prompt_alt_tokens.tokens.dimensions == (0, 2)


def test_few_cells_of_one_full_row_cannot_ask_for_all_memory():
    width = MAX_TARGET_CELLS // 8 + 1
    asked = TensorData([1] * width, "int64", [8, width], [0, *[width] * 8], list(range(width)))
    with pytest.raises(InputError, match="the fullest counts for all"):
        trained_engine().add_sample(job("j", PROMPT, "a", target_prompt_logprobs=asked))


def test_draws_follow_the_distribution_at_the_temperature_of_the_request(expected):
    counts = np.zeros((8, VOCAB))
    k = 250
    for seed in range(12):
        found = ask(prompt_alt_tokens_k=k, temperature=0.7, seed=seed).prompt_alt_tokens
        drawn = found.tokens.to_numpy()
        for row in range(8):
            counts[row] += np.bincount(drawn[row], minlength=VOCAB)
        np.testing.assert_allclose(
            found.logprobs.to_numpy(), np.take_along_axis(expected, drawn, axis=1), atol=1e-5
        )
    p = np.exp(expected.astype(float) / 0.7)
    p /= p.sum(axis=1, keepdims=True)
    wanted = 12 * k * p
    common = wanted > 5
    chi = (((counts - wanted) ** 2 / wanted)[common]).sum()
    freedom = common.sum() - 8
    assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom)


def test_draws_depend_on_the_seed_alone_and_greedy_ones_are_the_likeliest(expected):
    engine = trained_engine()
    alone = ask(prompt_alt_tokens_k=4).prompt_alt_tokens
    jobs = [job(f"o{i}", tokens(5 + i), "b", max_tokens=3) for i in range(3)]
    mine = job("j", PROMPT, "a", prompt_alt_tokens_k=4, max_tokens=1, seed=3)
    assert sample(engine, *jobs, mine)["j"].prompt_alt_tokens == alone
    assert ask(prompt_alt_tokens_k=4, seed=4).prompt_alt_tokens != alone
    greedy = ask(prompt_alt_tokens_k=2, temperature=0.0).prompt_alt_tokens.tokens.to_numpy()
    assert (greedy == expected.argmax(axis=1)[:, None]).all()


def test_sampled_tokens_are_the_same_whatever_is_asked_about_the_prompt():
    plain = ask(max_tokens=6).sequences[0].tokens
    assert ask(max_tokens=6, prompt_alt_tokens_k=3).sequences[0].tokens == plain


def long_engine():
    """Its head takes no more than 128 rows at once."""
    model = tiny_model(max_position_embeddings=1024)
    engine = tiny_engine(model=model, head_chunk_elements=1)
    engine.create_adapter("a", LoraConfig(rank=4, seed=1))
    shake(engine, "a")
    engine.snapshot_sampler("a", "a")
    return engine


def test_scores_of_a_long_prompt_hold_up_no_stream():
    engine = long_engine()
    heard = []
    stream = job("s", PROMPT, max_tokens=60, stop=[], on_token=heard.append)
    engine.add_sample(stream)
    engine.step()
    cells = np.random.default_rng(0).integers(-1, VOCAB, (599, 2))
    options = {
        "prompt_logprobs": True,
        "topk_prompt_logprobs": 3,
        "target_prompt_logprobs": TensorData(cells),
        "prompt_alt_tokens_k": 2,
    }
    prompt = tokens(600)
    engine.add_sample(job("j", prompt, "a", max_tokens=1, **options))
    rows, ends = [], []
    while not ends:
        ends = [end for end in engine.step() if end.job_id == "j"]
        if "j" in engine.served:
            rows.append((engine.served["j"], len(heard)))
    # the prompt with its first rows, then the rest; the stream has a token between any two
    first = rows[0][1]
    counts = [600 + 128, 128, 128, 128, 599 - 512]
    assert rows == [(count, first + i) for i, count in enumerate(counts)]
    found = ends[0].response
    every = np.tile(np.arange(VOCAB), (599, 1))
    datum = Datum(ModelInput.from_ints(prompt[:-1]), {"target_tokens": every})
    trained = engine.forward_backward("a", [datum], "cross_entropy", forward_only=True)
    expected = trained.loss_fn_outputs[0]["logprobs"].to_numpy()
    own = np.take_along_axis(expected, np.array(prompt[1:])[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(found.prompt_logprobs_np[1:], own, atol=1e-4)
    assert np.isnan(found.prompt_logprobs_np[0])
    top = found.topk_prompt_logprobs_np
    np.testing.assert_allclose(top.logprobs[1:], -np.sort(-expected)[:, :3], atol=1e-4)
    wanted = np.where(cells < 0, 0, np.take_along_axis(expected, cells.clip(0), axis=1))
    np.testing.assert_allclose(found.target_prompt_logprobs.to_numpy(), wanted, atol=1e-4)
    drawn = found.prompt_alt_tokens.tokens.to_numpy()
    wanted = np.take_along_axis(expected, drawn, axis=1)
    np.testing.assert_allclose(found.prompt_alt_tokens.logprobs.to_numpy(), wanted, atol=1e-4)


def test_prompt_that_is_cancelled_between_its_scores_leaves_nothing():
    engine = long_engine()
    engine.add_sample(job("j", tokens(600), "a", max_tokens=1, prompt_logprobs=True))
    engine.step()
    assert engine.has_sampling_work()
    engine.cancel_sample("j")
    assert not engine.has_sampling_work()
    assert engine._generator._cache.open_rows == 0
    assert engine._generator._scheduler._reserved == 0
    again = sample(engine, job("j", tokens(600), "a", max_tokens=1, prompt_logprobs=True))["j"]
    assert np.isfinite(again.prompt_logprobs_np[1:]).all()


def test_scores_have_the_same_bits_in_any_company():
    def scored(engine, *others):
        options = {"prompt_logprobs": True, "prompt_alt_tokens_k": 2, "seed": 3}
        one = job("j", tokens(300), "a", max_tokens=1, **options)
        return sample(engine, *others, one)["j"]

    others = [
        job(f"o{i}", tokens(90 + 50 * i, seed=i), max_tokens=3, topk_prompt_logprobs=2)
        for i in range(4)
    ]
    alone, together = scored(long_engine()), scored(long_engine(), *others)
    assert alone.prompt_logprobs_np.tobytes() == together.prompt_logprobs_np.tobytes()
    assert alone.prompt_alt_tokens == together.prompt_alt_tokens
