"""Trains `tinkex/sprout` from nothing and exports it as a folder for transformers.

Owns the model's shape, the optimiser and the schedule. Muon moves the matrices of the layers, AdamW
the embedding and the norms. Everything is seeded; the result still differs in the last bits between
machines and thread counts.

    python tools/sprout/train.py FOLDER [--steps N] [--work FOLDER]
"""

import argparse
import time
from pathlib import Path

import numpy as np
import tokenizer as sprout_tokenizer
import torch
from data import Rows, test_rows, training_rows
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

BATCH = 24
SEED = 7
CHATS = 260_000
PROSE_EPOCHS = 5
MUON_LR, ADAM_LR = 0.04, 6e-3
WARM_UP, DECAY = 50, 0.6


def new_model(vocabulary: Tokenizer) -> Qwen3ForCausalLM:
    """Build the model with fresh weights."""
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=sprout_tokenizer.VOCAB_SIZE,
        hidden_size=256,
        num_hidden_layers=6,
        intermediate_size=768,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=sprout_tokenizer.MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        eos_token_id=vocabulary.token_to_id(sprout_tokenizer.IM_END),
        pad_token_id=vocabulary.token_to_id(sprout_tokenizer.END_OF_TEXT),
        bos_token_id=None,
        use_cache=True,
    )
    return Qwen3ForCausalLM(config)


def row_losses(model: nn.Module, rows: Rows, index: np.ndarray) -> tuple[torch.Tensor, float]:
    """Return the weighted sum of the targets' losses over some rows, and the sum of weights."""
    tokens = torch.from_numpy(rows.tokens[index].astype(np.int64))
    positions = torch.from_numpy(rows.positions[index].astype(np.int64))
    weights = torch.from_numpy(rows.weights[index].astype(np.float32))[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(
            input_ids=tokens, position_ids=positions, attention_mask=_mask(positions)
        ).last_hidden_state[:, :-1]
        counts = weights > 0
        logits = model.lm_head(hidden[counts])
    losses = F.cross_entropy(logits.float(), tokens[:, 1:][counts], reduction="none")
    return (losses * weights[counts]).sum(), float(weights.sum())


def train(model: Qwen3ForCausalLM, rows: Rows, steps: int, save: Path) -> None:
    """Run the schedule, printing the loss and writing a checkpoint every few hundred steps."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.1, adjust_lr_fn="original"),
        torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    base = [MUON_LR, ADAM_LR]
    started, running = time.perf_counter(), 0.0
    for step in range(steps):
        index = np.arange(step * BATCH, (step + 1) * BATCH) % len(rows.tokens)
        loss, weight = row_losses(model, rows, index)
        (loss / weight).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, lr in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = lr * _schedule(step, steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        running += loss.item() / weight
        if step % 50 == 49:
            elapsed = time.perf_counter() - started
            print(f"step {step + 1} loss {running / 50:.4f} {elapsed:.0f} s", flush=True)
            running = 0.0
        if step % 250 == 249:
            torch.save(model.state_dict(), save)


@torch.no_grad()
def held_out_losses(model: nn.Module, vocabulary: Tokenizer) -> dict[str, float]:
    """Return the mean loss per token on the held-out chat and prose."""
    losses = {}
    for name, rows in test_rows(vocabulary).items():
        parts = [row_losses(model, rows, i) for i in np.array_split(np.arange(len(rows.tokens)), 9)]
        losses[name] = sum(part.item() for part, _ in parts) / sum(weight for _, weight in parts)
    return losses


def export(model: Qwen3ForCausalLM, vocabulary: Tokenizer, folder: Path) -> None:
    """Write weights in bfloat16, configuration and tokenizer."""
    model.generation_config = GenerationConfig(
        eos_token_id=[model.config.eos_token_id, model.config.pad_token_id],
        pad_token_id=model.config.pad_token_id,
        do_sample=True,
        temperature=1.0,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    sprout_tokenizer.save(vocabulary, folder)
    (folder / "model.safetensors").chmod(0o644)


def _mask(positions: torch.Tensor) -> torch.Tensor:
    """Return [rows, 1, ROW, ROW]: true where a token may see another of its own document."""
    document = (positions == 0).cumsum(1)
    same = document[:, :, None] == document[:, None, :]
    return torch.tril(same)[:, None]


def _schedule(step: int, steps: int) -> float:
    """Warm up, hold, then fall linearly to zero over the last part."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    left = (steps - step) / (steps * DECAY)
    return min(1.0, max(0.0, left))


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--work", type=Path, default=Path("sprout-work"))
    parser.add_argument("--export-only", action="store_true", help="only export the checkpoint")
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True)
    checkpoint = arguments.work / "model.pt"
    vocabulary = _tokenizer(arguments.work / "tokenizer.json")
    model = new_model(vocabulary)
    if arguments.export_only:
        model.load_state_dict(torch.load(checkpoint))
    else:
        rows = training_rows(vocabulary, SEED, CHATS, PROSE_EPOCHS)
        count = sum(p.numel() for p in model.parameters())
        epochs = arguments.steps * BATCH / len(rows.tokens)
        print(f"{count} parameters, {len(rows.tokens)} rows, {epochs:.2f} epochs", flush=True)
        train(model, rows, arguments.steps, checkpoint)
    print({name: round(loss, 4) for name, loss in held_out_losses(model, vocabulary).items()})
    export(model, vocabulary, arguments.folder)


def _tokenizer(path: Path) -> Tokenizer:
    if not path.exists():
        sprout_tokenizer.train().save(str(path))
    return Tokenizer.from_file(str(path))


if __name__ == "__main__":
    main()
