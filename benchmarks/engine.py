"""What the engine costs beside what it must cost, and beside transformers with PEFT.

    python benchmarks/engine.py                 # every part, printed as a table
    python benchmarks/engine.py train decode    # some parts

Both sides of a row run in one process, in turns, several times; the least time of each counts.
Times are CPU seconds of one thread, so other load on the machine disturbs them least. The floor of
a training step is the frozen base: forward and input gradient of the same tokens, log-probabilities
by the same head. PEFT's step trains the same layers (no unembedding), and so does ours beside it.

tiny: 4 layers, width 256, 32,000 tokens; mid: 12 layers, width 768 (110 million parameters). Random
weights, of bfloat16's precision as published ones are: the work is that of trained ones.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Qwen3Config

from tinkex.engine.attention.packed import PrefillAttention
from tinkex.engine.config import EngineConfig
from tinkex.engine.engine import Engine, SampleJob
from tinkex.engine.lora.weights import lora_weights
from tinkex.engine.matrices.half import HalfMatrix
from tinkex.engine.models.head import HeadPart
from tinkex.engine.models.loader import load_base_model, wrap_model
from tinkex.engine.models.rms_norm import RmsNorm
from tinkex.types import Datum, LoraConfig, ModelInput, SamplingParams, TensorData

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4},
    "mid": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12},
}
VOCAB = 32_000
RANK = 16


def model(size: str, vocab: int = VOCAB, kind: type = Qwen3Config, *, context: int = 4096) -> Any:
    shape = SIZES[size]
    config = kind(
        **shape,
        vocab_size=vocab,
        num_attention_heads=shape["hidden_size"] // 64,
        num_key_value_heads=max(1, shape["hidden_size"] // 128),
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=context,
    )
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return made.bfloat16().float()  # the precision in which weights are published


def engine(
    size: str = "tiny",
    adapters: int = 0,
    vocab: int = VOCAB,
    *,
    unembed: bool = True,
    context: int = 4096,
    **settings: Any,
) -> Engine:
    base = wrap_model(model(size, vocab, context=context), name=size)
    made = Engine(base, EngineConfig(threads=1, **settings))
    for number in range(adapters):
        made.create_adapter(f"a{number}", LoraConfig(rank=RANK, seed=number, train_unembed=unembed))
        flat = made._pool.adapter(f"a{number}").weights.flat
        with torch.no_grad():
            flat.add_(torch.randn(flat.shape) * 0.01)
        made.snapshot_sampler(f"a{number}", f"a{number}")
    return made


def data(lengths: list[int], seed: int = 0, vocab: int = VOCAB) -> list[Datum]:
    rng = np.random.default_rng(seed)
    found = []
    for length in lengths:
        tokens = rng.integers(0, vocab, length + 1)
        inputs = {
            "target_tokens": TensorData(tokens[1:]),
            "weights": TensorData(np.ones(length, np.float32)),
        }
        found.append(Datum(ModelInput.from_ints(tokens[:-1]), inputs))
    return found


def least(work: dict[str, Callable[[], Any]], rounds: int = 4) -> dict[str, float]:
    """Run each piece of work in turn, `rounds` times; give the least CPU seconds of each."""
    found: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, run in work.items():
            gc.collect()
            start = time.process_time()
            run()
            seconds = time.process_time() - start
            if turn:  # the first warms up
                found[name] = min(seconds, found.get(name, seconds))
    return found


def floor_step(made: Engine, lengths: list[int]) -> Callable[[], None]:
    """Forward and input gradient of the frozen base, on packed tokens."""
    runner = made._runner
    nothing = lora_weights(torch.zeros(0), (), 1, 1.0, trainable=False)
    ids = torch.randint(VOCAB, (sum(lengths),))
    targets = torch.randint(VOCAB, (sum(lengths), 1))
    positions = torch.cat([torch.arange(n) for n in lengths])

    def run() -> None:
        embedded: list[torch.Tensor] = []
        embed = F.embedding

        def keep(*args: Any) -> torch.Tensor:
            embedded.append(embed(*args).detach().requires_grad_())
            return embedded[0]

        with patch.object(F, "embedding", keep):
            hidden = runner.hidden(ids, positions, PrefillAttention(lengths), [])
        part = HeadPart(0, targets, nothing, None, lambda _rows, found: -torch.ones_like(found))
        slopes = runner.head.backward(hidden.detach(), [part])
        torch.autograd.grad(hidden, embedded[0], slopes)

    return run


def peft_step(size: str, rows: list[list[int]]) -> Callable[[], None]:
    """The same training step in transformers and PEFT: one adapter, padded batches."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    wrapped = get_peft_model(
        model(size),
        PeftConfig(r=RANK, lora_alpha=32, target_modules="all-linear", init_lora_weights=True),
    )
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    labels = ids.masked_fill(mask == 0, -100)

    def run() -> None:
        for start in range(0, len(rows), 4):
            at = slice(start, start + 4)
            wrapped(input_ids=ids[at], attention_mask=mask[at], labels=labels[at]).loss.backward()

    return run


def rows_of(lengths: list[int]) -> list[list[int]]:
    return [list(datum.model_input.to_ints()) for datum in data(lengths)]


def train(report: Report) -> None:
    made = engine(adapters=8)

    def step(groups: list[list[int]], by: Engine = made) -> Callable[[], None]:
        batches = [data(group, seed) for seed, group in enumerate(groups)]

        def run() -> None:
            tasks = [
                by.begin_forward_backward(f"a{number}", batch, "cross_entropy")
                for number, batch in enumerate(batches)
            ]
            budget = by.config.microbatch_tokens
            while waiting := [task for task in tasks if task.joins]:  # as the server does
                chosen = [waiting.pop(0)]
                for task in waiting:
                    if sum(one.next_tokens for one in chosen) + task.next_tokens <= budget:
                        chosen.append(task)
                by.run_together(chosen)
            for task in tasks:
                task.result()

        return run

    even = [[256, 256]] * 4
    small = [[32]] * 8
    ragged = np.random.default_rng(1).integers(32, 513, 8).tolist()
    equal = [sum(ragged) // 8] * 8
    found = least(
        {
            "floor": floor_step(made, [256] * 8),
            "ours": step(even),
            "peft": peft_step("tiny", rows_of([256] * 8)),
            "like peft": step([[256] * 8], engine(adapters=1, unembed=False)),
            "small floor": floor_step(made, [32] * 8),
            "small": step(small),
            "ragged": step([ragged]),
            "equal": step([equal]),
        }
    )
    report.row(
        "training step, 4 adapters x 512 tokens / floor", found["ours"] / found["floor"], "<= 1.30"
    )
    report.row("8 users x 32 tokens / floor", found["small"] / found["small floor"], "<= 1.5")
    per_token = (found["ragged"] / sum(ragged)) / (found["equal"] / sum(equal))
    report.row("ragged batch 32..512 / its packed tokens", per_token, "<= 1.05")
    report.row("PEFT's step / ours", found["peft"] / found["like peft"], ">= 1.3")


def memory(report: Report) -> None:
    vocab = 151_936
    made = engine(adapters=1, vocab=vocab)
    made.forward_backward("a0", data([64], vocab=vocab), "cross_entropy")  # what stays
    made._pool.adapter("a0").gradient = None
    gc.collect()
    base = _peak_mib(reset=True)
    made.forward_backward("a0", data([512, 512], vocab=vocab), "cross_entropy")
    report.row("peak memory of 1,024 tokens, V = 151,936, MiB", _peak_mib() - base, "< 200")


def _peak_mib(*, reset: bool = False) -> float:
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def jobs(
    count: int, tokens: int, samplers: list[str | None], prompt: int = 64, vocab: int = VOCAB
) -> list[SampleJob]:
    rng = np.random.default_rng(0)
    params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=1, stop=[])
    return [
        SampleJob(
            job_id=f"j{number}",
            sampler_id=samplers[number % len(samplers)],
            prompt=ModelInput.from_ints(rng.integers(0, vocab, prompt)),
            sampling_params=params,
        )
        for number in range(count)
    ]


def drain(made: Engine, work: list[SampleJob]) -> Callable[[], None]:
    def run() -> None:
        for job in work:
            made.add_sample(job)
        while made.has_sampling_work():
            for done in made.step():
                assert done.error is None, done.error

    return run


def generate(size: str, count: int, tokens: int, folder: Path) -> Callable[[], None]:
    """`generate` of transformers, with a PEFT adapter."""
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(model(size), folder).eval()
    prompts = torch.tensor(np.random.default_rng(0).integers(0, VOCAB, (count, 64)))
    mask = torch.ones_like(prompts)

    def run() -> None:
        with torch.no_grad():
            wrapped.generate(
                input_ids=prompts,
                attention_mask=mask,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=True,
                pad_token_id=0,
            )

    return run


def decode(report: Report) -> None:
    tokens = 64
    # Prompts come again in every round, and `generate` computes them each time.
    made = engine(adapters=8, prefix_cache_tokens=0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "a"
        made.save_adapter("a0", folder, optimizer=False)
        work: dict[str, Callable[[], None]] = {}
        for count in (1, 8, 32):
            work[f"ours {count}"] = drain(made, jobs(count, tokens, ["a0"]))
            work[f"generate {count}"] = generate("tiny", count, tokens, folder)
        for count in (8, 32):
            work[f"base {count}"] = drain(made, jobs(count, tokens, [None]))
            eight = [f"a{number}" for number in range(8)]
            work[f"eight {count}"] = drain(made, jobs(count, tokens, eight))
        many = jobs(16, tokens, ["a0"])
        one = jobs(1, tokens, ["a0"])
        one = [SampleJob(**{**_fields(one[0]), "num_samples": 16})]
        work["16 x 1"], work["1 x 16"] = drain(made, many), drain(made, one)
        found = least(work, rounds=3)
    for count, goal in ((1, ">= 2"), (8, ">= 2.5"), (32, ">= 4")):
        ratio = found[f"generate {count}"] / found[f"ours {count}"]
        rate = count * tokens / found[f"ours {count}"]
        report.row(
            f"decode / generate with PEFT, batch {count}", ratio, goal, f"{rate:,.0f} tokens/s"
        )
    for count in (8, 32):
        ratio = found[f"eight {count}"] / found[f"base {count}"]
        report.row(f"decode, 8 adapters / none, batch {count}", ratio, "<= 1.5")
    report.row(
        "16 prompts x 1 / 1 prompt x 16, tokens/s", found["1 x 16"] / found["16 x 1"], ">= 0.8"
    )


def _fields(job: SampleJob) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__dataclass_fields__}


def bandwidth(report: Report) -> None:
    """One sequence of the mid model against reading its weights once for each token."""
    made = engine("mid", adapters=1)
    weights = torch.randn(made.base.parameter_count)  # the engine may have packed its own
    tokens = 16

    def read() -> None:
        for _ in range(tokens):
            weights.sum()

    found = least({"read": read, "ours": drain(made, jobs(1, tokens, ["a0"], prompt=2))}, rounds=3)
    report.row("110M model, batch 1 / reading its weights", found["ours"] / found["read"], "<= 1.4")


def norm(report: Report) -> None:
    """Decode with the shipped model, with its norm and with torch's, by turns in one process."""
    tokens = 32
    base = load_base_model("tinkex/sprout")
    made = Engine(base, EngineConfig(threads=1, prefix_cache_tokens=0))
    own = RmsNorm.__call__

    def torchs(norm: Any, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], None, norm._eps) * norm._weight

    for count in (1, 8):
        run = drain(made, jobs(count, tokens, [None], prompt=4, vocab=base.vocab_size))

        def with_norm(chosen: Any, run: Callable[[], None] = run) -> None:
            with patch.object(RmsNorm, "__call__", chosen):
                run()

        found = least({"own": lambda: with_norm(own), "torch's": lambda: with_norm(torchs)}, 20)
        step = f"{found['own'] / tokens * 1000:.2f} ms a step"
        ratio = found["own"] / found["torch's"]
        report.row(f"shipped model, batch {count} / the same with torch's norm", ratio, "< 1", step)


def few(report: Report) -> None:
    """Decode few sequences with the mid model, and with its batches filled up to four rows."""
    tokens = 16
    made = engine("mid", adapters=1)
    for count in (1, 2, 3):
        for name, sampler in (("base model", None), ("an adapter", "a0")):
            run = drain(made, jobs(count, tokens, [sampler], prompt=2))

            def filled(run: Callable[[], None] = run) -> None:
                with patch.object(HalfMatrix, "steady_from", 4):
                    run()

            found = least({"as it is": run, "filled": filled})
            report.row(
                f"110M model, {name}, batch {count} / filled up to 4 rows",
                found["as it is"] / found["filled"],
                "< 1",
                f"{count * tokens / found['as it is']:.0f} tokens/s",
            )


def unlimited(report: Report) -> None:
    """Sample without `max_tokens` from a long context; and where that takes all memory there is."""
    vocab = 3200
    stop = list(range(0, vocab, 100))  # so a sample has a hundred tokens in the mean

    def ends_early(most: int | None) -> list[SampleJob]:
        params = SamplingParams(max_tokens=most, temperature=1.0, seed=3, stop=stop)
        return [
            SampleJob(**{**_fields(job), "owner": job.job_id, "sampling_params": params})
            for job in jobs(8, 1, [None], vocab=vocab)
        ]

    made = engine(vocab=vocab, context=40_960)
    found = least({str(most): drain(made, ends_early(most)) for most in (None, 2048)})
    report.row(
        "8 samples without max_tokens, context 40,960 / with max_tokens 2,048",
        found["None"] / found["2048"],
        "<= 1.1",
    )
    scarce = {"context": 1024, "kv_cache_tokens": 2048}
    ahead, whole = (engine(**scarce, kv_ahead_tokens=tokens) for tokens in (128, 1024))
    long = jobs(6, 960, [None])
    found = least({"ahead": drain(ahead, long), "whole": drain(whole, long)}, rounds=1)
    report.row(
        "6 samples that fill their context, room for 2: memory as it comes / reserved",
        found["ahead"] / found["whole"],
        "<= 1.2",
        f"{ahead.preemptions // 2} preemptions",
    )


def agree(report: Report) -> None:
    """The sampler's log-probabilities against the trainer's; tokens alone and in company."""
    made = engine(adapters=4)
    work = jobs(100, 100, ["a0", "a1", "a2", "a3", None])
    together: dict[str, Any] = {}
    for job in work:
        made.add_sample(SampleJob(**{**_fields(job), "sampling_params": _seeded(job)}))
    while made.has_sampling_work():
        for done in made.step():
            together[done.job_id] = done.response.sequences[0]
    worst = 0.0
    for job in work:
        if job.sampler_id is None:
            continue
        sequence = together[job.job_id]
        ids = [*job.prompt.to_ints(), *sequence.tokens]
        datum = Datum(
            ModelInput.from_ints(ids[:-1]), {"target_tokens": TensorData(np.array(ids[1:]))}
        )
        output = made.forward_backward(job.sampler_id, [datum], "cross_entropy", forward_only=True)
        trained = output.loss_fn_outputs[0]["logprobs"].to_numpy()[job.prompt.length - 1 :]
        worst = max(worst, float(np.abs(trained - sequence.logprobs_np).max()))
    report.row("trainer / sampler logprobs, worst of 8,000 tokens", worst, "< 1e-5")
    same = 0
    for job in work:
        alone = SampleJob(**{**_fields(job), "sampling_params": _seeded(job)})
        drained: dict[str, Any] = {}
        made.add_sample(alone)
        while made.has_sampling_work():
            for done in made.step():
                drained[done.job_id] = done.response.sequences[0]
        same += drained[job.job_id].tokens == together[job.job_id].tokens
    report.row("sequences equal alone and in company, of 100", same, "100")


def _seeded(job: SampleJob) -> SamplingParams:
    return job.sampling_params.model_copy(update={"seed": int(job.job_id[1:])})


class Report:
    """Prints the rows of the table as they come."""

    def row(self, name: str, value: float, goal: str, note: str = "") -> None:
        """Print one row: what was found, and the goal."""
        shown = f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:.2f}"
        print(f"| {name} | {shown} | {goal} | {note} |", flush=True)


PARTS: dict[str, Callable[[Report], None]] = {
    "train": train,
    "memory": memory,
    "decode": decode,
    "bandwidth": bandwidth,
    "few": few,
    "unlimited": unlimited,
    "norm": norm,
    "agree": agree,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which parts; all if none")
    parts = parser.parse_args().parts or list(PARTS)
    torch.set_num_threads(1)
    print("| measure | found | goal | |\n|---|---|---|---|")
    for part in parts:
        with contextlib.redirect_stderr(io.StringIO()):
            PARTS[part](Report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
