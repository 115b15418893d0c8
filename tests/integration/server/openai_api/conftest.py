"""A server on the model that ships, and the official clients of OpenAI and Anthropic."""

from __future__ import annotations

import openai
import pytest
from server_support import ALIAS, KEY, OTHER_KEY, LoopbackServer

import tinkex as tinker
from tinkex.server.config import ServerConfig

SPROUT = "tinkex/sprout"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from tinkex.engine.engine import Engine, EngineConfig, load_base_model

    config = ServerConfig(
        data_dir=tmp_path_factory.mktemp("data"),
        base_models=(SPROUT,),
        aliases={ALIAS: SPROUT},
        api_keys=(KEY, OTHER_KEY),
        log_level="error",
        port=0,
    )
    engine = Engine(load_base_model(SPROUT), EngineConfig())
    with LoopbackServer(config, engine, name=SPROUT) as running:
        yield running


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def checkpoint(server):
    """A trained adapter's path, of the first key."""
    with tinker.ServiceClient(**server.login) as service:
        training = service.create_lora_training_client(SPROUT, rank=4, seed=1).result(30)
        data = [tinker.Datum(tinker.ModelInput.from_ints([5, 6, 7]), {"target_tokens": [6, 7, 8]})]
        training.forward_backward(data, "cross_entropy").result(30)
        training.optim_step(tinker.AdamParams(learning_rate=0.01)).result(30)
        return training.save_weights_for_sampler("final").result(30).path
