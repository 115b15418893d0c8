"""A server with the real engine on a tiny random Qwen3 model, over ASGI or on a loopback port."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest

from tinkex._clock import SystemClock
from tinkex.server.app import build_app
from tinkex.server.config import Limits, ServerConfig

KEY = "tml-test-key-0123456789"
OTHER_KEY = "tml-other-key-012345678"
BASE_MODEL = "tiny/qwen3"
ALIAS = "Qwen/Qwen3-8B"
VOCAB = 300
CONTEXT = 128


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


class Api:
    """Calls the app as a client without retries would."""

    def __init__(self, app, client):
        self.app = app
        self.client = client
        self.services = app.state.services

    async def request(self, method, path, json=None, *, key=KEY, **kwargs):
        headers = {**({"X-API-Key": key} if key else {}), **kwargs.pop("headers", {})}
        return await self.client.request(
            method, f"/api/v1{path}", json=json, headers=headers, **kwargs
        )

    async def post(self, path, json=None, **kwargs):
        return await self.request("POST", path, json, **kwargs)

    async def get(self, path, **kwargs):
        return await self.request("GET", path, **kwargs)

    async def ok(self, path, json=None, **kwargs):
        response = await self.post(path, json, **kwargs)
        assert response.status_code == 200, (path, response.status_code, response.text)
        return response.json()

    async def result(self, future, **kwargs):
        """Wait for a future's JSON result."""
        request_id = future["request_id"]
        while True:
            body = await self.ok("/retrieve_future", {"request_id": request_id}, **kwargs)
            if body.get("type") != "try_again":
                return body

    async def session(self, **kwargs):
        body = {"tags": [], "user_metadata": {}, "sdk_version": "test", "type": "create_session"}
        return (await self.ok("/create_session", body, **kwargs))["session_id"]

    async def model(self, session_id=None, model_seq_id=0, rank=4, seed=1, **kwargs):
        session_id = session_id or await self.session(**kwargs)
        future = await self.ok(
            "/create_model",
            {
                "session_id": session_id,
                "model_seq_id": model_seq_id,
                "base_model": BASE_MODEL,
                "lora_config": {"rank": rank, "seed": seed},
            },
            **kwargs,
        )
        return (await self.result(future, **kwargs))["model_id"]

    async def sampler(self, session_id=None, number=0, **fields):
        session_id = session_id or await self.session()
        body = {"session_id": session_id, "sampling_session_seq_id": number, **fields}
        if not fields:
            body["base_model"] = BASE_MODEL
        return (await self.ok("/create_sampling_session", body))["sampling_session_id"]


def batch_json(model_id, seq_id, tokens=(5, 6, 7, 8, 9), loss_fn="cross_entropy", **inputs):
    """A forward_backward body in the JSON of SDKs up to 0.23."""
    tokens = list(tokens)
    count = len(tokens) - 1
    loss_fn_inputs = {
        "target_tokens": {"data": tokens[1:], "dtype": "int64", "shape": [count]},
        "weights": {"data": [1.0] * count, "dtype": "float32", "shape": [count]},
        **inputs,
    }
    chunk = {"tokens": tokens[:-1], "type": "encoded_text"}
    datum = {"model_input": {"chunks": [chunk]}, "loss_fn_inputs": loss_fn_inputs}
    return {
        "forward_backward_input": {"data": [datum], "loss_fn": loss_fn},
        "model_id": model_id,
        "seq_id": seq_id,
    }


def sample_json(sampler_id, seq_id=0, tokens=(5, 6, 7), *, num_samples=1, **params):
    params.setdefault("max_tokens", 4)
    params.setdefault("seed", 3)
    return {
        "num_samples": num_samples,
        "prompt": {"chunks": [{"tokens": list(tokens), "type": "encoded_text"}]},
        "sampling_params": params,
        "sampling_session_id": sampler_id,
        "seq_id": seq_id,
        "type": "sample",
    }


@asynccontextmanager
async def serving(config, engine, clock):
    app = build_app(config, {BASE_MODEL: engine}, clock=clock)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://test", timeout=30
        ) as client,
    ):
        yield Api(app, client)


@pytest.fixture
async def api(make_config, make_engine):
    async with serving(make_config(), make_engine(), SystemClock()) as running:
        yield running


class LoopbackServer:
    """The app under uvicorn on a free loopback port, in a thread of its own."""

    def __init__(self, config, engine):
        self._config = config
        self._engine = engine
        self._loop = None
        self._stop = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.url = ""

    async def _run(self):
        from tinkex.server.run import serve_app

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()

        def on_ready(url):
            self.url = url
            self._ready.set()

        app = build_app(self._config, {BASE_MODEL: self._engine}, clock=SystemClock())
        self.services = app.state.services
        await serve_app(app, self._config, on_ready=on_ready, stop=self._stop)

    @property
    def login(self):
        return {"base_url": self.url, "api_key": KEY}

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


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
