"""Prompts that share a beginning, with the prefix cache and without it.

    python benchmarks/prefix.py [shared] [chat] [turns] [bits] [agree]

CPU seconds of this process, one thread, both sides in one run: least of two rounds, on engines made
anew, so that nothing is left of the round before. Tokens computed and reused are counted by the
engine. The model is `tiny` of benchmarks/engine.py, the adapter has rank 16.

shared: one prompt of 2,000 tokens, 64 samples of 16 tokens, sent as 64 requests and as one.
chat: a first turn of 2,000 tokens and an answer of 64; the second turn adds 64 tokens to both.
turns: steps until a short prompt of one user is answered, behind 200 prompts of another.
bits: 1,000 requests on 3 adapters and the base model, prompts of up to 400 tokens that share
beginnings, all at once with the cache, against each alone without it.
agree: log-probabilities of 10,240 tokens sampled after prompts of 260 to 1,560 tokens that share
beginnings, against the trainer's.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

import numpy as np
import torch
from engine import VOCAB, engine

from tinkex.engine.engine import Engine, SampleJob
from tinkex.types import Datum, ModelInput, SamplingParams, TensorData

PROMPT = 2_000
ROUNDS = 2


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def request(
    name: str, ids: list[int], tokens: int, sampler: str | None = "a0", **options: Any
) -> SampleJob:
    return SampleJob(
        job_id=name,
        sampler_id=sampler,
        prompt=ModelInput.from_ints(ids),
        sampling_params=SamplingParams(max_tokens=tokens, temperature=1.0, seed=1, stop=[]),
        **options,
    )


def run(made: Engine, *work: SampleJob) -> tuple[float, dict[str, Any]]:
    """Sample requests to their ends; gives CPU seconds and the responses."""
    done: dict[str, Any] = {}
    gc.collect()
    start = time.process_time()
    for job in work:
        made.add_sample(job)
    while made.has_sampling_work():
        for ended in made.step():
            assert ended.error is None, ended.error
            done[ended.job_id] = ended.response
    return time.process_time() - start, done


def computed(made: Engine) -> int:
    return made._generator.prefilled_tokens


def least(measure: Callable[[], tuple[float, int]]) -> tuple[float, int]:
    """Repeat a measurement; gives the least seconds, and the tokens computed."""
    found = [measure() for _ in range(ROUNDS)]
    assert len({tokens for _, tokens in found}) == 1
    return min(found)


def shared() -> None:
    ids = prompt(PROMPT)

    def measure(work: list[SampleJob], kept: int) -> tuple[float, int]:
        made = engine(adapters=1, prefix_cache_tokens=kept)
        run(made, request("warm", prompt(64, seed=1), 2))
        before = computed(made)
        seconds, _ = run(made, *work)
        return seconds, computed(made) - before

    many = [request(f"j{i}", ids, 16) for i in range(64)]
    one = [request("j", ids, 16, num_samples=64)]
    without = least(lambda: measure(many, 0))
    row("64 requests of one prompt, no cache", without, without)
    row("64 requests of one prompt", least(lambda: measure(many, 32_768)), without)
    row("1 request of 64 samples", least(lambda: measure(one, 32_768)), without)


def chat() -> None:
    first = prompt(PROMPT)

    def measure(kept: int) -> tuple[float, int]:
        made = engine(adapters=1, prefix_cache_tokens=kept)
        _, done = run(made, request("first", first, 64))
        answer = done["first"].sequences[0].tokens_np.tolist()
        before = computed(made)
        second = request("second", first + answer + prompt(64, seed=2), 1)
        seconds, _ = run(made, second)
        return seconds, computed(made) - before

    without = least(lambda: measure(0))
    row("second turn to its first token, no cache", without, without)
    row("second turn to its first token", least(lambda: measure(32_768)), without)


def turns() -> None:
    def steps(owner: str) -> tuple[float, int]:
        made = engine(adapters=1)
        for number in range(200):
            made.add_sample(request(f"j{number}", prompt(64, number), 32, owner="many"))
        for _ in range(8):
            made.step()
        made.add_sample(request("mine", prompt(64, 1000), 8, owner=owner))
        start, taken = time.process_time(), 0
        while True:
            taken += 1
            if any(ended.job_id == "mine" for ended in made.step()):
                return time.process_time() - start, taken

    queued = steps("many")
    row("8 tokens behind 200 requests of one's own (steps)", queued, queued)
    row("8 tokens behind 200 requests of another (steps)", steps("one"), queued)


def bits() -> None:
    rng = np.random.default_rng(0)
    stems = [prompt(300, seed) for seed in range(5)]
    work = [
        request(
            f"j{number}",
            stems[number % 5][: rng.integers(0, 301)] + prompt(rng.integers(1, 101), number % 50),
            16,
            ("a0", "a1", "a2", None)[number % 4],
        )
        for number in range(1_000)
    ]
    made, plain = engine(adapters=3), engine(adapters=3, prefix_cache_tokens=0)
    seconds, together = run(made, *work)
    start, same = time.process_time(), 0
    for job in work:
        _, done = run(plain, job)
        pairs = zip(done[job.job_id].sequences, together[job.job_id].sequences, strict=True)
        same += all(
            np.array_equal(a.tokens_np, b.tokens_np)
            and np.array_equal(a.logprobs_np, b.logprobs_np)
            for a, b in pairs
        )
    alone = time.process_time() - start, computed(plain)
    row("1,000 requests, each alone, no cache", alone, alone)
    row("1,000 requests at once", (seconds, computed(made)), alone)
    print(f"\n{same:,} of 1,000 have the same tokens and log-probabilities, bit for bit")


def agree() -> None:
    rng = np.random.default_rng(0)
    stems = [prompt(1_500, seed) for seed in range(2)]
    made = engine(adapters=2)
    work = [
        request(
            f"j{number}",
            stems[number % 2][: rng.integers(200, 1_500)] + prompt(60, number),
            256,
            f"a{number % 2}",
        )
        for number in range(40)
    ]
    _, done = run(made, *work)
    worst = 0.0
    for job in work:
        sampled = done[job.job_id].sequences[0]
        ids = [*job.prompt.to_ints(), *sampled.tokens]
        datum = Datum(
            ModelInput.from_ints(ids[:-1]), {"target_tokens": TensorData(np.array(ids[1:]))}
        )
        assert job.sampler_id is not None
        output = made.forward_backward(job.sampler_id, [datum], "cross_entropy", forward_only=True)
        trained = output.loss_fn_outputs[0]["logprobs"].to_numpy()[job.prompt.length - 1 :]
        worst = max(worst, float(np.abs(trained - sampled.logprobs_np).max()))
    total = sum(job.prompt.length for job in work)
    print(
        f"\ntrainer / sampler logprobs, worst of 10,240 tokens: {worst:.2e}; of {total:,} prompt "
        f"tokens {computed(made):,} were computed"
    )


def row(name: str, found: tuple[float, int], without: tuple[float, int]) -> None:
    """Print one row: what was found, and how many times better than `without` it is."""
    seconds, count = found
    print(f"| {name} | {seconds:.3f} | {count:,} | {without[0] / seconds:.1f} |", flush=True)


PARTS = {"shared": shared, "chat": chat, "turns": turns, "bits": bits, "agree": agree}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which parts; all if none")
    parts = parser.parse_args().parts or list(PARTS)
    torch.set_num_threads(1)
    print("| measure | CPU s | tokens computed | times faster |\n|---|---|---|---|")
    for part in parts:
        PARTS[part]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
