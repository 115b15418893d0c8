"""A server with the real engine on a tiny random Qwen3 model, over ASGI or on a loopback port."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from server_support import (
    ALIAS,
    BASE_MODEL,
    CONTEXT,
    KEY,
    OTHER_KEY,
    VOCAB,
    LoopbackServer,
    serving,
)

from tinkex._clock import SystemClock
from tinkex.server.config import Limits, ServerConfig


@pytest.fixture(scope="session")
def tiny_base():
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from tinkex.engine.models.loader import wrap_model

    torch.set_num_threads(1)
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=CONTEXT,
            eos_token_id=2,
        )
    )
    torch.random.set_rng_state(generator)
    return wrap_model(model.eval(), name=BASE_MODEL)


@pytest.fixture
def make_engine(tiny_base):
    def make(**settings):
        from tinkex.engine.config import EngineConfig
        from tinkex.engine.engine import Engine

        return Engine(tiny_base, EngineConfig(max_rank=64, **settings))

    return make


@pytest.fixture
def make_config(tmp_path):
    def make(**settings):
        settings.setdefault("limits", Limits(max_rank=64))
        return ServerConfig(
            data_dir=tmp_path / "data",
            base_models=(BASE_MODEL,),
            aliases={ALIAS: BASE_MODEL},
            api_keys=(KEY, OTHER_KEY),
            log_level="error",
            **settings,
        )

    return make


@pytest.fixture
async def api(make_config, make_engine):
    async with serving(make_config(), make_engine(), SystemClock()) as running:
        yield running


@pytest.fixture
def make_server(make_config, make_engine):
    @contextmanager
    def make(**settings):
        config = make_config(port=0, shutdown_grace_s=2, **settings)
        with LoopbackServer(config, make_engine()) as server:
            yield server

    return make


@pytest.fixture
def server(make_server):
    with make_server() as running:
        yield running
