"""Answers end where the chat template ends them, though the model's settings name another end."""

import json
import shutil

import openai
import pytest
from server_support import KEY, LoopbackServer

from tinkex.engine.engine import Engine, EngineConfig, load_base_model
from tinkex.engine.models.loader import _ASSETS, SPROUT
from tinkex.server.config import ServerConfig

ASK = {
    "messages": [{"role": "user", "content": "What is 3 plus 4?"}],
    "seed": 5,
    "temperature": 0.1,
    "max_tokens": 60,
    "logprobs": True,
}
END = "<|im_end|>"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a server whose base model was published as many are: its end is of documents."""
    data = tmp_path_factory.mktemp("data")
    folder = shutil.copytree(_ASSETS / "sprout", data / "model")
    for name, settings in {
        "config.json": {"eos_token_id": 0},
        "generation_config.json": {"eos_token_id": 0},
        "tokenizer_config.json": {"eos_token": "<|endoftext|>"},
    }.items():
        before = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**before, **settings}))
    base = load_base_model(str(folder), name=SPROUT)
    assert base.eos_token_ids == (0,)
    config = ServerConfig(
        data_dir=data / "server",
        base_models=(SPROUT,),
        api_keys=(KEY,),
        log_level="error",
        port=0,
    )
    with (
        LoopbackServer(config, Engine(base, EngineConfig()), name=SPROUT) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made,
    ):
        yield made


@pytest.mark.interop
@pytest.mark.parametrize("stops", [{}, {"stop": ["no such words"]}], ids=["alone", "beside a stop"])
def test_answer_ends_with_the_turn(client, stops):
    (choice,) = client.chat.completions.create(model=SPROUT, **ASK, **stops).choices
    assert choice.finish_reason == "stop"
    assert choice.logprobs.content[-1].token == END
    assert END not in choice.message.content
