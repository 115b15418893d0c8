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
    settle,
)

from tinkex._clock import SystemClock
from tinkex.server.config import Limits, ServerConfig
from tinkex.testing.clock import VirtualClock


def tiny_model():
    """The same weights each time; an engine takes a model over, so each gets its own."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

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
        return Qwen3ForCausalLM(config).eval()


@pytest.fixture
def tiny():
    return tiny_model


@pytest.fixture(scope="module")
def tiny_for_module():
    return tiny_model


@pytest.fixture
def make_engine():
    def make(**settings):
        from tinkex.engine.config import EngineConfig
        from tinkex.engine.engine import Engine
        from tinkex.engine.models.loader import wrap_model

        base = wrap_model(tiny_model(), name=BASE_MODEL)
        return Engine(base, EngineConfig(max_rank=64, **settings))

    return make


@pytest.fixture
def make_config(tmp_path):
    def make(**settings):
        settings.setdefault("limits", Limits(max_rank=64))
        settings.setdefault("data_dir", tmp_path / "data")
        return ServerConfig(
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


@pytest.fixture
async def virtual(make_config, make_engine):
    """An app on a clock that the test moves."""
    clock = VirtualClock()
    async with serving(make_config(), make_engine(), clock) as running:
        running.clock = clock
        yield running


@pytest.fixture
def advance(virtual):
    async def move(seconds):
        await settle(50)
        virtual.clock.advance(seconds)
        await settle(50)

    return move


@pytest.fixture
def serve(make_engine):
    """Serve other settings than the usual ones."""

    def start(config, clock=None, engine=None):
        return serving(config, engine or make_engine(), clock or SystemClock())

    return start
