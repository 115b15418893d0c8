"""What adapters of experts cost: training and decoding on models of experts.

    python benchmarks/experts.py             # both families
    python benchmarks/experts.py qwen3_moe   # one

4 layers, width 512, 32 experts of width 256, 4 for each token; random weights, rank 16; a step of 4
sequences of 256 tokens. As in `benchmarks/engine.py`: CPU seconds of one thread, the pieces in
turns, the least of each; the floor is the frozen base's forward and input gradient on our own
products. PEFT adapts the same layers, with factors that no experts share.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from engine import RANK, VOCAB, data, drain, floor_step, jobs, least
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from tinkex.engine.config import EngineConfig
from tinkex.engine.engine import Engine
from tinkex.engine.models.loader import wrap_model
from tinkex.types import LoraConfig

if TYPE_CHECKING:
    from collections.abc import Callable

FAMILIES: dict[str, dict[str, int]] = {
    "qwen3_moe": {"num_experts": 32, "moe_intermediate_size": 256},
    "gpt_oss": {"num_local_experts": 32, "intermediate_size": 256, "sliding_window": 128},
}
LENGTHS = [256] * 4
TOKENS = 24


def model(family: str) -> Any:
    config = AutoConfig.for_model(
        family,
        **FAMILIES[family],
        vocab_size=VOCAB,
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        num_experts_per_tok=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def engine(family: str) -> Engine:
    made = Engine(wrap_model(model(family), name=family), EngineConfig(threads=1))
    for number in range(8):
        for kind, mlp in (("experts", True), ("attention", False)):
            name = f"{kind}{number}"
            made.create_adapter(name, LoraConfig(rank=RANK, seed=number, train_mlp=mlp))
            flat = made._pool.adapter(name).weights.flat
            with torch.no_grad():
                flat.add_(torch.randn(flat.shape) * 0.01)
            made.snapshot_sampler(name, name)
    return made


def step(made: Engine, names: list[str]) -> Callable[[], None]:
    share = len(LENGTHS) // len(names)
    batches = [data(LENGTHS[:share], seed) for seed in range(len(names))]

    def run() -> None:
        tasks = [
            made.begin_forward_backward(name, batch, "cross_entropy")
            for name, batch in zip(names, batches, strict=True)
        ]
        made.run_together(tasks)
        for task in tasks:
            task.result()

    return run


def peft_step(family: str) -> Callable[[], None]:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    wrapped = get_peft_model(
        model(family),
        PeftConfig(
            r=RANK,
            lora_alpha=32,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    )
    ids = torch.tensor([list(datum.model_input.to_ints()) for datum in data(LENGTHS)])

    def run() -> None:
        wrapped(input_ids=ids, labels=ids).loss.backward()

    return run


def report(family: str) -> None:
    made = engine(family)
    found = least(
        {
            "floor": floor_step(made, LENGTHS),
            "attention and unembedding, 1 adapter": step(made, ["attention0"]),
            "experts too, 1 adapter": step(made, ["experts0"]),
            "experts too, 4 adapters": step(made, [f"experts{n}" for n in range(4)]),
            "PEFT, experts too, 1 adapter": peft_step(family),
        }
    )
    for name, seconds in found.items():
        print(f"| {family} | {name} | {seconds:.3f} | {seconds / found['floor']:.2f} |", flush=True)
    found = least(
        {
            f"decode, batch {count}, {adapters} adapters": drain(
                made, jobs(count, TOKENS, [f"experts{n}" for n in range(adapters)] or [None], 2)
            )
            for count, adapters in ((1, 0), (1, 1), (8, 0), (8, 1), (8, 8))
        },
        rounds=2,
    )
    for name, seconds in found.items():
        without = found[f"{name.rsplit(', ', 1)[0]}, 0 adapters"]
        print(f"| {family} | {name} | {seconds:.3f} | {seconds / without:.2f} |", flush=True)


def main() -> int:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    print("| model | what | CPU s | to the floor, or to no adapter |\n|---|---|---|---|")
    for family in sys.argv[1:] or FAMILIES:
        report(family)
    return 0


if __name__ == "__main__":
    sys.exit(main())
