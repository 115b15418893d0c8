"""Tiny random models and short ways to train and sample, for the engine's tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from tinkex.engine.engine import Engine, EngineConfig, SampleJob
from tinkex.engine.models.loader import wrap_model
from tinkex.types import (
    AdamParams,
    Datum,
    LoraConfig,
    ModelInput,
    SampleResponse,
    SamplingParams,
    TensorData,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

VOCAB = 97
CONTEXT = 128

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 6, "head_dim": 8},
    "gemma3_text": {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16},
    "phi3": {"tie_word_embeddings": True},
    "phi": {"partial_rotary_factor": 0.5},
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gpt_oss": {
        "head_dim": 8,
        "sliding_window": 6,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 32,
            "truncate": False,
        },
    },
}


def tiny_model(family: str = "qwen3", *, seed: int = 0, **changes: Any) -> Any:
    """Make a random causal LM of a family; its logits are spread enough to tell tokens apart."""
    settings = {**SIZES, **FAMILIES.get(family, {}), **changes}
    config = transformers.AutoConfig.for_model(family, **settings)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.2)
            elif name.endswith(".sinks"):
                parameter.normal_()
    return model.eval()


def stored_in_mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """Save a tiny GPT-OSS with random experts in MXFP4; gives the numbers that they stand for."""
    tiny_model("gpt_oss", intermediate_size=64).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    halves = torch.tensor([0, 1, 2, 3, 4, 6, 8, 12]) / 2
    values = torch.cat((halves, -halves))
    expected = {}
    for name in [k for k in tensors if k.endswith(("gate_up_proj", "down_proj"))]:
        experts, rows, columns = tensors.pop(name).shape
        blocks = torch.randint(256, (experts, columns, rows // 32, 16), dtype=torch.uint8)
        scales = torch.randint(120, 126, blocks.shape[:-1], dtype=torch.uint8)
        pairs = torch.stack((values[(blocks & 15).long()], values[(blocks >> 4).long()]), dim=-1)
        scaled = pairs.flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
        expected[name] = scaled.flatten(-2).mT
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    quantized_by(folder, "mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])
    return expected


def quantized_by(folder: Path, method: str, **settings: Any) -> None:
    """Say in a saved model's configuration that its weights are quantised."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **settings}
    (folder / "config.json").write_text(json.dumps(config))


def tiny_engine(family: str = "qwen3", *, model: Any = None, **settings: Any) -> Engine:
    """Make an engine over a tiny model; `settings` are EngineConfig's."""
    model = tiny_model(family) if model is None else model
    return Engine(wrap_model(model, name="tiny"), EngineConfig(**settings))


def trained_engine(*, unembed: bool = True, **settings: Any) -> Engine:
    """Make an engine whose adapters "a" and "b" are not zero, and samplers of the same names."""
    engine = tiny_engine(**settings)
    for i, name in enumerate(("a", "b")):
        engine.create_adapter(name, LoraConfig(rank=4 + 4 * i, seed=i, train_unembed=unembed))
        shake(engine, name, seed=i)
        engine.snapshot_sampler(name, name)
    return engine


def shake(engine: Engine, adapter_id: str, *, seed: int = 0, scale: float = 0.05) -> None:
    """Add noise to all weights of an adapter, so that B is not zero."""
    flat = engine._pool.adapter(adapter_id).weights.flat
    noise = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        flat.add_(noise * scale)


def tokens(count: int, *, seed: int = 0) -> list[int]:
    """Draw token ids."""
    return np.random.default_rng(seed).integers(2, VOCAB, count).tolist()


def datum(count: int, *, seed: int = 0, loss_fn: str = "cross_entropy", **inputs: Any) -> Datum:
    """Make a datum of `count` tokens with what `loss_fn` needs; `inputs` replace or add."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, VOCAB, count + 1)
    fields: dict[str, Any] = {"target_tokens": ids[1:]}
    if loss_fn == "cross_entropy":
        fields["weights"] = rng.normal(size=count).astype(np.float32)
    else:
        fields["logprobs"] = rng.uniform(-6, -2, count).astype(np.float32)
        fields["advantages"] = rng.normal(size=count).astype(np.float32)
    fields.update(inputs)
    made = {
        key: value if isinstance(value, TensorData) else TensorData.from_numpy(np.asarray(value))
        for key, value in fields.items()
        if value is not None
    }
    return Datum(model_input=ModelInput.from_ints(ids[:-1].tolist()), loss_fn_inputs=made)


def job(
    job_id: str,
    prompt: Sequence[int],
    sampler_id: str | None = None,
    *,
    num_samples: int = 1,
    **options: Any,
) -> SampleJob:
    """Make a sampling job; sampling parameters and job options by name."""
    params = {k: options.pop(k) for k in list(options) if k in SamplingParams.model_fields}
    return SampleJob(
        job_id=job_id,
        sampler_id=sampler_id,
        prompt=ModelInput.from_ints(list(prompt)),
        num_samples=num_samples,
        sampling_params=SamplingParams(**params),
        **options,
    )


def sample(engine: Engine, *jobs: SampleJob) -> dict[str, SampleResponse]:
    """Run jobs together to their ends; the first error is raised."""
    for one in jobs:
        engine.add_sample(one)
    done = {}
    while engine.has_sampling_work():
        for finished in engine.step():
            if finished.error is not None:
                raise finished.error
            done[finished.job_id] = finished.response
    return done


def flat(engine: Engine, adapter_id: str) -> torch.Tensor:
    """Copy an adapter's weights."""
    return engine._pool.adapter(adapter_id).weights.flat.detach().clone()


def gradient(engine: Engine, adapter_id: str) -> torch.Tensor:
    """Copy an adapter's accumulated gradient."""
    found = engine._pool.adapter(adapter_id).gradient
    assert found is not None
    return found.clone()


@torch.no_grad()
def diverge(engine, sampler_id, values=torch.nan):
    """Put other values, NaN for one, in the place of a sampler's weights, also where they run."""
    flat = engine._pool.sampler(sampler_id).flat
    flat.copy_(torch.as_tensor(values).expand_as(flat))
    stack = engine._runner._stack
    stack._pages.clear()
    stack._latest = None


def trained_logprobs(engine: Engine, ids: list[int]) -> np.ndarray[Any, Any]:
    """Ask the trainer what adapter "a" gives each token but the first: float32 [len(ids) - 1]."""
    one = Datum(ModelInput.from_ints(ids[:-1]), {"target_tokens": TensorData(np.array(ids[1:]))})
    output = engine.forward_backward("a", [one], "cross_entropy", forward_only=True)
    return output.loss_fn_outputs[0]["logprobs"].to_numpy()


def losses_and_tokens(engine: Engine) -> tuple[list[float], list[int]]:
    """Train a new adapter "a" for three steps, and sample from it greedily."""
    engine.create_adapter("a", LoraConfig(rank=4, seed=0))
    losses = []
    for _ in range(3):
        output = engine.forward_backward("a", [datum(12)], "cross_entropy")
        losses.append(output.metrics["loss:sum"])
        engine.optim_step("a", AdamParams(learning_rate=1e-2))
    engine.snapshot_sampler("a", "a")
    found = sample(engine, job("j", tokens(6), "a", temperature=0.0, max_tokens=12, stop=[]))
    return losses, list(found["j"].sequences[0].tokens)


def check_company_changes_no_bit(engine: Engine) -> None:
    """Assert that samples have the same bits alone and in company.

    Of adapters "a" and "b" and of the base model, whose rows alone make the smallest batches.
    """
    whose = ("a", None, "b", None)
    work = [
        job(f"j{n}", tokens(3 + 5 * n, seed=n), whose[n % 4], seed=n, max_tokens=12, stop=[])
        for n in range(8)
    ]
    together = sample(engine, *work)
    for one in work:
        alone = sample(engine, one)[one.job_id].sequences[0]
        company = together[one.job_id].sequences[0]
        assert alone.tokens == company.tokens
        assert np.array_equal(alone.logprobs_np, company.logprobs_np)
