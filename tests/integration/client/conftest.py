"""Our client against the real server with the real engine on a tiny random model."""

from __future__ import annotations

import pytest
from server_support import ALIAS, BASE_MODEL, CONTEXT, KEY, OTHER_KEY, VOCAB, LoopbackServer

from tinkex._clock import SystemClock
from tinkex.client.runtime import Runtime

HEARTBEAT = 10.0
REFRESH = 300


class HurriedClock(SystemClock):
    """Shortens every wait of the client but those of its background work."""

    async def sleep(self, seconds):
        await super().sleep(seconds if seconds in {HEARTBEAT, REFRESH} else min(seconds, 0.01))


@pytest.fixture
def runtime():
    return Runtime(clock=HurriedClock())


def tiny_engine():
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tinkex.engine.config import EngineConfig
    from tinkex.engine.engine import Engine
    from tinkex.engine.models.loader import wrap_model

    torch.set_num_threads(1)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        eos_token_id=2,
        bos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config).eval()
    return Engine(wrap_model(model, name=BASE_MODEL), EngineConfig(max_rank=64))


@pytest.fixture
def server(tmp_path):
    from tinkex.server.config import Limits, ServerConfig

    config = ServerConfig(
        data_dir=tmp_path / "data",
        base_models=(BASE_MODEL,),
        aliases={ALIAS: BASE_MODEL},
        api_keys=(KEY, OTHER_KEY),
        log_level="error",
        port=0,
        shutdown_grace_s=2,
        limits=Limits(max_rank=64, fwdbwd_max_chunk_len=2),  # a batch goes in several chunks
    )
    with LoopbackServer(config, tiny_engine()) as running:
        yield running
