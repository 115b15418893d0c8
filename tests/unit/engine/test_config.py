"""Settings are checked when made."""

from __future__ import annotations

import pytest

from tinkex.engine.config import EngineConfig
from tinkex.errors import ConfigurationError


def test_defaults_are_valid():
    assert EngineConfig().dtype == "float32"


def test_all_faults_are_reported_at_once():
    with pytest.raises(ConfigurationError) as caught:
        EngineConfig(
            max_rank=0,
            microbatch_tokens=-1,
            dtype="int4",
            lora_alpha=0,
            host_adapter_bytes=0,
            adapter_memory_share=1.5,
        )
    for name in (
        "max_rank",
        "microbatch_tokens",
        "dtype",
        "lora_alpha",
        "host_adapter_bytes",
        "adapter_memory_share",
    ):
        assert name in str(caught.value)


def test_absent_limits_are_valid():
    assert EngineConfig(threads=None, max_context_length=None).threads is None
