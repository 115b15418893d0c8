"""The face over a completer that says what a test tells it: what any completer may do."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette

from tinkex.openai_api import ModelCard, OpenAIRoutes, Piece, Token
from tinkex.openai_api.refusal import model_not_found
from tinkex.testing.clock import VirtualClock


def token(text, logprob=-1.0):
    return Token(len(text), text, text.encode(), logprob)


class Script:
    """One completion: pieces to give, exceptions to raise, None for silence."""

    def __init__(self, steps):
        self.steps = steps
        self.request_id = "req-1"
        self.prompt_tokens = 7
        self.cached_tokens = 2
        self.cancelled = False

    def cancel(self):
        self.cancelled = True

    async def pieces(self):
        for step in self.steps:
            if isinstance(step, Exception):
                raise step
            yield step


class ScriptedCompleter:
    """Gives one script after the other."""

    def __init__(self):
        self.scripts = []
        self.requests = []
        self.begun = []

    def say(self, *steps):
        self.scripts.append(steps)

    async def models(self, caller):
        return [await self.model(caller, "one")]

    async def model(self, caller, name):
        if name != "one":
            raise model_not_found(f"no {name}")
        return ModelCard(
            name=name, created=1, owned_by=caller, base_model="one", max_context_length=9
        )

    async def count_tokens(self, caller, model, prompt):
        await self.model(caller, model)
        return 7

    async def complete(self, caller, request):
        self.requests.append(request)
        steps = self.scripts.pop(0)
        if isinstance(steps[0], Exception):
            raise steps[0]
        script = Script(steps)
        self.begun.append(script)
        return script


@pytest.fixture
def completer():
    return ScriptedCompleter()


@pytest.fixture
async def face(completer):
    """Calls the routes: `face.post(path, json)` and `face.get(path)`."""
    clock = VirtualClock()
    routes = OpenAIRoutes(completer, lambda _request: "somebody", clock).routes()
    transport = httpx.ASGITransport(app=Starlette(routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://face") as client:

        async def post(path, **body):
            return await client.post(path, json={"model": "one", **body})

        yield SimpleNamespace(post=post, get=client.get, client=client)


@pytest.fixture
def piece():
    def make(text="", index=0, finish_reason=None, **fields):
        tokens = (token(text),) if text else ()
        return Piece(index, text, tokens, finish_reason=finish_reason, **fields)

    return make
