"""What the forms of frozen weights cost and save: products, error, memory, speed.

    python benchmarks/weights.py                  # every part, printed as tables
    python benchmarks/weights.py error speed      # some parts

The forms: float32 packed for oneDNN; float16, from which nothing is rounded (weights as they are
published, with bfloat16's precision); int8. products: CPU milliseconds of one product over matrices
that do not fit into the cache together. error: `tinkex/sprout` over held-out text, against itself
with no form but torch's. memory: a random model of 110 million parameters, each row a process of
its own. speed: the same model's decode and training step, each side in turns in one process, one
thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tools" / "sprout")]

import engine as bench
import torch
from torch import Tensor

from tinkex.engine.attention.packed import PrefillAttention
from tinkex.engine.engine import Engine, EngineConfig, load_base_model, load_for_engine
from tinkex.engine.matrices.half import HalfMatrix
from tinkex.engine.matrices.matrix import Matrix
from tinkex.engine.matrices.quantized import QuantizedMatrix, quantize
from tinkex.engine.models.loader import SPROUT, wrap_model
from tinkex.engine.models.support import linear_modules
from tinkex.types import LoraConfig

MIB = 2**20
FORMS: dict[str, dict[str, Any]] = {
    "float32 plain": {"pack_weights": False},
    "float32 packed": {"pack_weights": True},
    "float16": {},
    "int8": {"weight_dtype": "int8"},
}


# --- products -----------------------------------------------------------------------------------


def products() -> None:
    print(
        "| matrix | rows | float32 packed, ms | float16 | its gradient | int8 exact | its gradient "
        "| int8 in blocks |\n|" + "---|" * 8
    )
    for out, width in ((2048, 768), (768, 2048), (32_000, 256)):
        count = max(2, 200_000_000 // (4 * out * width))
        weights = [(torch.randn(out, width) * 0.02).bfloat16().float() for _ in range(count)]
        halves = [HalfMatrix(weight) for weight in weights]
        packed = [Matrix(weight, packed=True) for weight in weights]
        exact = [QuantizedMatrix(weight, exact=True) for weight in weights]
        blocks = [QuantizedMatrix(weight, exact=False) for weight in weights]
        del weights
        for rows in (1, 4, 8, 32, 128, 512, 2048):
            x, g = torch.randn(rows, width), torch.randn(rows, out)
            work = {
                "packed": over(packed, lambda m, x=x: m.rows_times(x), rows),
                "half": over(halves, lambda m, x=x: m.rows_times(x), rows),
                "half times": over(halves, lambda m, g=g: m.times(g), rows),
                "exact": over(exact, lambda m, x=x: m.rows_times(x), rows),
                "times": over(exact, lambda m, g=g: m.times(g), rows),
                "blocks": over(blocks, lambda m, x=x: m.rows_times(x), rows),
            }
            turns = times(rows)
            found = {k: 1000 * v / turns for k, v in bench.least(work, rounds=3).items()}
            print(f"| {out} x {width} | {rows} |" + "".join(f" {v:.3f} |" for v in found.values()))


def times(rows: int) -> int:
    return max(2, 200 // rows)


def over(matrices: list[Any], run: Callable[[Any], Tensor], rows: int) -> Callable[[], None]:
    cycle = itertools.cycle(matrices)

    def work() -> None:
        for _ in range(times(rows)):
            run(next(cycle))

    return work


# --- error --------------------------------------------------------------------------------------


def error() -> None:
    print(
        "| weights | text | tokens | perplexity | in float32 | mean abs difference of logprobs | "
        "99% | max | KL, nats | same likeliest token |\n|" + "---|" * 10
    )
    plain = Engine(load_base_model(SPROUT), EngineConfig(threads=1, pack_weights=False))
    others: dict[str, Callable[[], Engine]] = {
        "float16": lambda: Engine(load_base_model(SPROUT), EngineConfig()),
        "int8": lambda: Engine(load_base_model(SPROUT), EngineConfig(weight_dtype="int8")),
        "int8, unembedding float32": lambda: with_head("int8"),
        "int8, unembedding alone": lambda: with_head(None),
        "int8 in groups of 64": lambda: grouped(64),
        "bfloat16 throughout": lambda: Engine(
            load_base_model(SPROUT, dtype="bfloat16"), EngineConfig(dtype="bfloat16")
        ),
    }
    texts = held_out()
    exact = {name: logprobs(plain, documents) for name, documents in texts.items()}
    for name, make in others.items():
        made = make()
        for text, documents in texts.items():
            compare(f"{name} | {text}", documents, exact[text], logprobs(made, documents))


def held_out() -> dict[str, list[list[int]]]:
    """The sprout's own held-out conversations and paragraphs, as token ids."""
    from chat import conversations
    from data import chat_documents, prose_documents
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(f"{load_base_model(SPROUT).tokenizer_id}/tokenizer.json")
    chats = list(itertools.islice(conversations(seed=99, test=True), 300))
    found = {
        "chat": chat_documents(vocabulary, chats),
        "prose": prose_documents(vocabulary, test=True),
    }
    return {name: [ids for ids, _ in documents] for name, documents in found.items()}


@torch.no_grad()
def logprobs(made: Engine, documents: list[list[int]]) -> Tensor:
    """Log-probabilities [tokens, V] of what follows each token of the documents."""
    found = []
    for start in range(0, len(documents), 16):
        batch = documents[start : start + 16]
        lengths = [len(ids) for ids in batch]
        ids = torch.tensor([i for one in batch for i in one])
        positions = torch.cat([torch.arange(n) for n in lengths])
        hidden = made._runner.hidden(ids, positions, PrefillAttention(lengths), [])
        found.append(made._runner.head.logits(hidden, ()).log_softmax(1))
    return torch.cat(found)


def compare(name: str, documents: list[list[int]], exact: Tensor, found: Tensor) -> None:
    starts = list(itertools.accumulate((len(ids) for ids in documents), initial=0))
    rows = torch.cat([torch.arange(a, b - 1) for a, b in itertools.pairwise(starts)])
    targets = torch.tensor([i for ids in documents for i in ids[1:]])
    a, b = exact[rows, targets], found[rows, targets]
    off = (a - b).abs()
    kl = (exact[rows].exp() * (exact[rows] - found[rows])).sum(1).mean()
    same = exact[rows].argmax(1).eq(found[rows].argmax(1)).float().mean()
    print(
        f"| {name} | {len(rows)} | {math.exp(-b.mean()):.4f} | {math.exp(-a.mean()):.4f} | "
        f"{off.mean():.4f} | {off.quantile(0.99):.3f} | {off.max():.3f} | {kl:.2e} | {same:.4f} |",
        flush=True,
    )


def with_head(weight_dtype: str | None) -> Engine:
    """An engine whose unembedding alone is in the other form than the rest."""
    made = Engine(load_base_model(SPROUT), EngineConfig(weight_dtype=weight_dtype))
    weight = made.base.model.get_input_embeddings().weight.detach()
    head = made._runner.head
    head.matrix = Matrix(weight, packed=True) if weight_dtype else QuantizedMatrix(weight)
    return made


@torch.no_grad()
def grouped(size: int) -> Engine:
    """A float32 engine over weights rounded with a scale for each `size` inputs of a channel."""
    base = load_base_model(SPROUT)

    def rounded(weight: Tensor) -> Tensor:
        values, scales = quantize(weight.reshape(-1, size))
        return (values * scales[:, None]).view(weight.shape)

    for linear in linear_modules(base.model).values():
        linear.weight.copy_(rounded(linear.weight))
    made = Engine(base, EngineConfig())
    weight = base.model.get_input_embeddings().weight.detach()
    made._runner.head.matrix = Matrix(rounded(weight), packed=True)
    return made


# --- memory -------------------------------------------------------------------------------------


def memory() -> None:
    print(
        "| files | weights | model loaded, MiB | its peak | after 8 tokens | after 512 trained | "
        "peak of that |\n|" + "---|" * 7
    )
    with tempfile.TemporaryDirectory() as temporary:
        for dtype in ("float32", "bfloat16"):
            folder = Path(temporary) / dtype
            bench.model("mid").to(getattr(torch, dtype)).save_pretrained(folder)
            for form in FORMS:
                command = [sys.executable, __file__, "one", str(folder), form]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                print(f"| {dtype} | {form} | {done.stdout.strip()} |", flush=True)


def one(folder: str, form: str) -> None:
    """Load, sample and train in this process; print what each takes over the bare process."""
    load_base_model(SPROUT)  # the libraries; not the model's own
    before = _resident()
    bench._peak_mib(reset=True)
    config = EngineConfig(threads=1, **FORMS[form])
    made = Engine(load_for_engine(folder, config), config)
    found = [_resident(), bench._peak_mib()]
    bench._peak_mib(reset=True)
    made.create_adapter("a0", LoraConfig(rank=16, seed=0))
    made.snapshot_sampler("a0", "a0")
    bench.drain(made, bench.jobs(1, 8, ["a0"]))()
    found.append(_resident())
    made.forward_backward("a0", bench.data([256, 256]), "cross_entropy")
    found += [_resident(), bench._peak_mib()]
    print(" | ".join(f"{value - before:.0f}" for value in found))


def _resident() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell the resident memory")


# --- speed --------------------------------------------------------------------------------------


def speed() -> None:
    engines = {
        "float32 packed": mid(pack_weights=True),
        "float16": mid(),
        "int8": mid(weight_dtype="int8"),
        "bfloat16": mid(dtype="bfloat16"),
    }
    print(
        "| 110M | float32 packed | float16 | int8 | bfloat16 | float16 / float32 | int8 / float32 "
        "|\n|" + "---|" * 7
    )
    for rows, tokens in ((1, 32), (8, 16), (32, 8)):
        work = {
            name: bench.drain(made, bench.jobs(rows, tokens, ["a0"], prompt=4))
            for name, made in engines.items()
        }
        found = {k: rows * tokens / v for k, v in bench.least(work, rounds=8).items()}
        row(f"decode, batch {rows}, tokens/s", found)
    batch = bench.data([256] * 4)
    work = {
        name: lambda made=made: made.forward_backward("a0", batch, "cross_entropy")
        for name, made in engines.items()
    }
    found = {k: 1024 / v for k, v in bench.least(work, rounds=4).items()}
    row("training, tokens/s", found)
    work = {
        name: lambda made=made: made.forward_backward(
            "a0", batch, "cross_entropy", forward_only=True
        )
        for name, made in engines.items()
    }
    found = {k: 1024 / v for k, v in bench.least(work, rounds=4).items()}
    row("forward alone, tokens/s", found)


def row(name: str, found: dict[str, float]) -> None:
    ratios = [found[form] / found["float32 packed"] for form in ("float16", "int8")]
    cells = [f"{v:,.0f}" for v in found.values()] + [f"{ratio:.2f}" for ratio in ratios]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def mid(dtype: str = "float32", **settings: Any) -> Engine:
    base = wrap_model(bench.model("mid").to(getattr(torch, dtype)), name="mid")
    made = Engine(base, EngineConfig(threads=1, dtype=dtype, **settings))
    made.create_adapter("a0", LoraConfig(rank=16, seed=0))
    made.snapshot_sampler("a0", "a0")
    return made


PARTS: dict[str, Callable[[], None]] = {
    "products": products,
    "error": error,
    "memory": memory,
    "speed": speed,
}


def main() -> int:
    if sys.argv[1:2] == ["one"]:
        one(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which parts; all if none")
    parts = parser.parse_args().parts or list(PARTS)
    torch.set_num_threads(1)
    print(json.dumps(Engine(load_base_model(SPROUT), EngineConfig(weight_dtype="int8")).numerics()))
    for part in parts:
        print(f"\n{part}\n")
        PARTS[part]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
