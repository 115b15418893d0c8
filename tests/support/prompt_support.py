"""Engines with small blocks, and what the tests of prompts, their cache and chunks compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from engine_support import shake, tiny_engine

from tinkex.types import LoraConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinkex.engine.engine import Engine, SampleFinished
    from tinkex.engine.sampling.prefix_cache import PrefixCache
    from tinkex.types import SampleResponse

BLOCK = 16
OPTIONS: dict[str, Any] = {"max_tokens": 6, "stop": [], "seed": 5}


def engine_of(family: str = "qwen3", *, samplers: Sequence[str] = (), **settings: Any) -> Engine:
    """Make an engine with blocks of 16 tokens and a sampler, not zero, of each name."""
    settings = {"prefill_block_tokens": BLOCK, "prefill_tokens": 64, **settings}
    engine = tiny_engine(family, **settings)
    for number, name in enumerate(samplers):
        engine.create_adapter(name, LoraConfig(rank=2 + number, seed=number))
        shake(engine, name, seed=number)
        engine.snapshot_sampler(name, name)
    return engine


def counts(engine: Engine) -> tuple[int, int]:
    """Give the prompt tokens computed and reused so far."""
    generator = engine._generator
    return generator.prefilled_tokens, generator.reused_tokens


def finish(engine: Engine) -> dict[str, SampleFinished]:
    """Run to the end; gives every finished job, errors too."""
    done = {}
    while engine.has_sampling_work():
        done |= {f.job_id: f for f in engine.step()}
    return done


def same(a: SampleResponse, b: SampleResponse) -> None:
    """Compare everything but what the cache had, bit for bit."""
    assert a.sequences == b.sequences
    asked = ("prompt_logprobs_np", "topk_prompt_logprobs", "target_prompt_logprobs")
    for name in (*asked, "prompt_alt_tokens"):
        one, other = getattr(a, name), getattr(b, name)
        if isinstance(one, np.ndarray):
            assert np.array_equal(one, other, equal_nan=True)
        else:
            assert one == other


def prefix_of(engine: Engine) -> PrefixCache:
    """Give an engine's prefix cache."""
    return engine._generator._prefill.prefix


def kept_bytes(engine: Engine) -> int:
    """Count the memory of what is kept of ended prompts."""
    return sum(
        tensor.numel() * tensor.element_size()
        for block in prefix_of(engine)._copies
        for pair in (block.copy or {}).values()
        for tensor in pair
    )


def explode(*_args: Any, **_options: Any) -> None:
    """Fail as torch does when memory runs out."""
    raise RuntimeError("out of memory")
