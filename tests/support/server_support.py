"""What the server's tests share: a client without retries, bodies, a tiny engine, servers."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

import httpx
from patience import PATIENCE_S
from reply_support import assert_as_described

from tinkex._clock import SystemClock
from tinkex.server.accounts.keys import digest_of, key_id_of

KEY = "tml-test-key-0123456789"
OTHER_KEY = "tml-other-key-012345678"
BASE_MODEL = "tiny/qwen3"
ALIAS = "Qwen/Qwen3-8B"
VOCAB = 300
CONTEXT = 128


async def settle(rounds=20):
    """Let everything run that can run now."""
    for _ in range(rounds):
        await asyncio.sleep(0)  # noqa: TID251 - lets other tasks run, waits for nothing


class Api:
    """Calls the app as a client without retries would."""

    key = KEY

    def __init__(self, app, client):
        self.app = app
        self.client = client
        self.services = app.state.services

    async def request(self, method, path, json=None, *, key=KEY, **kwargs):
        headers = {**({"X-API-Key": key} if key else {}), **kwargs.pop("headers", {})}
        response = await self.client.request(
            method, f"/api/v1{path}", json=json, headers=headers, **kwargs
        )
        assert_as_described(self.app, response)
        return response

    async def post(self, path, json=None, **kwargs):
        return await self.request("POST", path, json, **kwargs)

    async def get(self, path, **kwargs):
        return await self.request("GET", path, **kwargs)

    async def ok(self, path, json=None, **kwargs):
        response = await self.post(path, json, **kwargs)
        assert response.status_code == 200, (path, response.status_code, response.text)
        return response.json()

    @property
    def owner(self):
        return key_id_of(digest_of(KEY))

    @property
    def other_owner(self):
        return key_id_of(digest_of(OTHER_KEY))

    @property
    def pool(self):
        """The adapters and samplers that the engine holds."""
        (base,) = self.services.bases
        return base.jobs._engine._pool

    async def quiet(self):
        """Wait until the engine has done everything that was asked of it."""
        (base,) = self.services.bases
        # First each lane's work, as lanes have their turns in any order; then the cancellations.
        while base.jobs._outcomes.open:
            await asyncio.wait(list(base.jobs._outcomes.open))
        await base.jobs.call("test: after everything else", lambda _engine: None)

    async def failure(self, future, **kwargs):
        """Wait for a future that must fail: (message, category)."""
        body = await self.result(future, **kwargs)
        assert set(body) == {"error", "category"}, body
        return body["error"], body["category"]

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


def tiny_model():
    """A random Qwen3: the same weights each time, as an engine takes a model over."""
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


def tiny_engine(**settings):
    """An engine on it, small enough to be made for each test."""
    from tinkex.engine.config import EngineConfig
    from tinkex.engine.engine import Engine
    from tinkex.engine.models.loader import wrap_model

    base = wrap_model(tiny_model(), name=BASE_MODEL)
    return Engine(base, EngineConfig(max_rank=64, **settings))


@asynccontextmanager
async def serving(config, engine, clock):
    from tinkex.server.app import build_app

    app = build_app(config, {BASE_MODEL: engine}, clock=clock)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://localhost", timeout=30
        ) as client,
    ):
        yield Api(app, client)
    assert_nothing_left()


def assert_nothing_left():
    """Check that a server that ended left no thread and no task behind."""
    assert [t.name for t in threading.enumerate() if t.name.startswith("engine")] == []
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert {task.get_name() for task in others if not task.get_name().startswith("Task-")} == set()


class LoopbackServer:
    """The app under uvicorn on a free loopback port, in a thread of its own."""

    def __init__(self, config, engine, name=BASE_MODEL):
        self._name = name
        self._config = config
        self._engine = engine
        self.loop = None
        self._stop = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.url = ""

    async def _run(self):
        from tinkex.server.app import build_app
        from tinkex.server.run import serve_app

        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()

        def on_ready(url):
            self.url = url
            self._ready.set()

        app = build_app(self._config, {self._name: self._engine}, clock=SystemClock())
        self.services = app.state.services
        await serve_app(app, self._config, on_ready=on_ready, stop=self._stop)
        assert_nothing_left()

    @property
    def login(self):
        return {"base_url": self.url, "api_key": KEY}

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
