"""The engine's settings. Owns their meaning, defaults and bounds; imports no torch.

Checked when made, with every fault reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

_DTYPES = frozenset({"float32", "bfloat16", "float16"})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine, fixed for its life."""

    device: str = "cpu"
    """Torch device that holds the base model, the adapters and the KV cache."""
    dtype: str = "float32"
    """Of the base weights and activations; adapters and optimiser state are always float32."""
    weight_dtype: str | None = None
    """`int8` keeps the frozen linear layers and the unembedding as int8 with a float32 scale for
    each output channel (`quantized`), on a CPU in float32; None keeps them as `dtype`."""
    threads: int | None = None
    """CPU threads for torch, set when the engine is built; None leaves torch's own choice."""
    max_rank: int = 256
    """Largest LoRA rank accepted."""
    lora_alpha: float = 32.0
    """LoRA scale is `lora_alpha / rank`."""
    max_adapters: int = 64
    """Trainable adapters held at once; with a `spill_directory` there is no such bound."""
    max_samplers: int = 256
    """Frozen sampler snapshots held at once; as above."""
    device_adapter_bytes: int | None = None
    """Adapters and samplers in the device's memory; None is `adapter_memory_share` of it. On a CPU
    there is only the host's memory, and this has no meaning."""
    host_adapter_bytes: int | None = None
    """Adapters and samplers in the host's memory; None is `adapter_memory_share` of it."""
    adapter_memory_share: float = 0.25
    """Of a memory, for adapters and samplers, where no number of bytes is given."""
    spill_directory: Path | None = None
    """Folder on a disk for adapters and samplers that memory has no room for (`spill`); what an
    earlier engine left there is erased. None: when memory is full, the next one is refused."""
    spill_bytes: int | None = None
    """What may lie in `spill_directory`; None is what the disk has."""
    max_context_length: int | None = None
    """Tokens in a sequence; None takes the model's own limit, which also bounds this."""
    max_request_tokens: int = 1_048_576
    """Tokens in one forward_backward call."""
    microbatch_tokens: int = 1024
    """Tokens in one training forward; a longer sequence goes alone."""
    prefill_tokens: int = 2048
    """Prompt tokens computed in one step; of a longer prompt, this many at a time."""
    prefill_block_tokens: int = 64
    """Prompts are computed in blocks of this many tokens, and reused by whole blocks."""
    max_running: int = 64
    """Sequences decoded at once; an eighth more for users who have nothing running."""
    max_num_samples: int = 1024
    """Samples of one request."""
    max_sample_bytes: int = 2**30
    """What the result of one sampling request may take, were each sample as long as it may be."""
    kv_cache_tokens: int = 65_536
    """Tokens of the KV cache that may be reserved for sequences that run; an eighth more for users
    who have nothing running, and one sequence may always go to its end."""
    kv_ahead_tokens: int = 1024
    """Tokens of the KV cache reserved for a sequence beyond those that it has, where it may come so
    far: one that ends within them is never preempted."""
    prefix_cache_tokens: int = 32_768
    """Tokens of ended requests' prompts that are kept for others with the same beginning: at most
    these, and no more than `kv_cache_tokens` leaves. 0 keeps none, and shares none."""
    head_chunk_elements: int = 4_194_304
    """Logits held at once in training: rows x vocabulary, at least 128 rows."""
    custom_loss_seconds: float = 10.0
    """That a user's own loss may take for one microbatch."""
    pack_weights: bool | None = None
    """How float32 weights are laid out on a CPU. None: in float16 where that changes none of them
    (`half`): half the memory, and the fastest for few rows; else for oneDNN where that leaves half
    of the memory free. True: for oneDNN (`matrix`), the fastest for many rows, and for training one
    more copy of the linear layers' weights. False: products are torch's own."""
    dense_path: bool = True
    """Run the families that `dense_decoder` knows through it, not through transformers' modules:
    faster, and the same numbers but for rounding."""
    row_multiple: int = 4
    """Small batches are padded to a multiple of this many rows.

    Matrix products in float32 on a CPU give each row the same bits whatever the number of rows, but
    only from four rows up (measured: MKL and oneDNN, 1 and 2 threads); with frozen weights in
    float16 (`half`) or int8 from one up, so batches of the base model alone are not padded then.
    Padding makes a sequence's tokens independent of its neighbours. 1 turns it off.
    """

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be at least {low}, got {getattr(self, name)}"
            for name, low in _LOWEST.items()
            if getattr(self, name) is not None and getattr(self, name) < low
        ]
        if self.dtype not in _DTYPES:
            faults.append(f"dtype must be one of {', '.join(sorted(_DTYPES))}, got {self.dtype!r}")
        if self.prefill_block_tokens > self.prefill_tokens:
            faults.append(
                f"prefill_block_tokens must be at most prefill_tokens ({self.prefill_tokens}), got "
                f"{self.prefill_block_tokens}"
            )
        if self.weight_dtype is not None:
            faults += self._weight_dtype_faults(self.weight_dtype)
        if not self.lora_alpha > 0:
            faults.append(f"lora_alpha must be above 0, got {self.lora_alpha}")
        if not 0 < self.adapter_memory_share <= 1:
            faults.append(
                f"adapter_memory_share must be in (0, 1], got {self.adapter_memory_share}"
            )
        if faults:
            raise ConfigurationError(faults)

    def _weight_dtype_faults(self, weight_dtype: str) -> list[str]:
        faults = []
        if weight_dtype != "int8":
            faults.append(f"weight_dtype must be int8 or left out, got {weight_dtype!r}")
        if self.device != "cpu":
            faults.append(
                f"weight_dtype {weight_dtype} works on a CPU only, not on {self.device}; leave it "
                "out, and use dtype bfloat16 to halve the memory"
            )
        if self.dtype != "float32":
            faults.append(
                f"weight_dtype {weight_dtype} needs dtype float32 for the activations, not "
                f"{self.dtype}; choose one of the two"
            )
        if self.pack_weights:
            faults.append("pack_weights is for float32 weights; leave it out with weight_dtype")
        return faults


_LOWEST = {
    "threads": 1,
    "max_rank": 1,
    "max_adapters": 1,
    "max_samplers": 1,
    "device_adapter_bytes": 1,
    "host_adapter_bytes": 1,
    "spill_bytes": 1,
    "max_context_length": 2,
    "max_request_tokens": 1,
    "microbatch_tokens": 1,
    "prefill_tokens": 1,
    "prefill_block_tokens": 1,
    "max_running": 1,
    "max_num_samples": 1,
    "max_sample_bytes": 1,
    "kv_cache_tokens": 1,
    "kv_ahead_tokens": 1,
    "prefix_cache_tokens": 0,
    "head_chunk_elements": 1,
    "row_multiple": 1,
}
