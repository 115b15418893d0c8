"""What vLLM's LoRA loader takes, written down as checks of a folder.

After vLLM's public sources (`lora/peft_helper.py`, `lora/lora_model.py`, `lora/utils.py`,
`config/lora.py`) and its page on LoRA adapters. vLLM itself is not run: it needs a GPU build.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from safetensors import safe_open

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be; an adapter's rank may be anything up to it."""
DENSE = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
"""The linear layers of Llama, Qwen2, Qwen3, Mistral: vLLM packs q, k, v and gate, up by itself."""
EMBEDDINGS = frozenset({"embed_tokens", "lm_head"})
"""Taken where the model's class in vLLM names them in its `embedding_modules`."""
PREFIX = "base_model.model."


def problems(folder: Path, modules: Collection[str] = DENSE, max_lora_rank: int = 64) -> list[str]:
    """Give what vLLM would refuse, one line each; nothing if it loads.

    Args:
        folder: an adapter: `adapter_config.json` and `adapter_model.safetensors`.
        modules: names of the layers that the model's class takes LoRA on.
        max_lora_rank: as vLLM is started with.
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    found = [
        f"{key} is missing" for key in ("r", "lora_alpha", "target_modules") if key not in config
    ]
    found += [f"{key} is set" for key in ("modules_to_save", "use_dora") if config.get(key)]
    if config.get("bias", "none") != "none":
        found.append("bias is not none")
    if config.get("r", 0) > max_lora_rank:
        found.append(f"rank {config['r']} is above {max_lora_rank}")
    # A rank or scale of a layer's own is PEFT's; vLLM reads `r` and `lora_alpha` alone.
    found += [f"{key} is not read" for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        return [*found, "there is no adapter_model.safetensors"]
    with safe_open(weights, framework="np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return found + _of_tensors(shapes, modules, config.get("r", 0))


def _of_tensors(shapes: dict[str, list[int]], modules: Collection[str], rank: int) -> list[str]:
    found = set()
    for name, shape in shapes.items():
        layer, _, factor = name.removesuffix(".weight").rpartition(".")
        if not name.startswith(PREFIX) or factor not in {"lora_A", "lora_B"}:
            found.add(f"{name} is no LoRA weight")
        elif layer.rpartition(".")[2] not in modules:
            found.add(f"{layer.rpartition('.')[2]} takes no LoRA")
        elif shape[0 if factor == "lora_A" else 1] != rank or len(shape) != 2:
            found.add(f"{name} is not of rank {rank}")
        elif f"{layer}.lora_A.weight" not in shapes or f"{layer}.lora_B.weight" not in shapes:
            found.add(f"{layer} has one factor alone")
    return sorted(found)
