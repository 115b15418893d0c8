"""A program of OpenAI's package, a client worker, a gateway and processors, over real links."""

from __future__ import annotations

import asyncio

import openai
import pytest
from mesh_gateway import MODEL, GatewayWorld, completion_message
from mesh_scripted import completion, text_of
from patience import until

from tinkex._clock import SystemClock
from tinkex.mesh.transport.iroh import IrohTransport
from tinkex.mesh.transport.tls import TlsTransport
from tinkex.mesh.trust.receipts import verify_receipt
from tinkex.mesh.usage import Settled

TRANSPORTS = {"tls": TlsTransport, "iroh": IrohTransport}
EXPECTED = completion(completion_message(max_tokens=48), 0, 48)
ASKED = {"model": MODEL, "prompt": "hello", "max_tokens": 48, "seed": 5}


class RealLinks:
    """Makes transports of one kind, on loopback."""

    def __init__(self, kind, clock):
        self._kind, self._clock = kind, clock

    def transport(self, key_pair, *, address=None):
        return TRANSPORTS[self._kind](key_pair, clock=self._clock)


@pytest.fixture(params=TRANSPORTS)
async def world(request, tmp_path):
    clock = SystemClock()
    made = GatewayWorld(path=tmp_path, clock=clock)
    made.memory = RealLinks(request.param, clock)
    async with made:
        yield made


async def program_of(world):
    client = await world.add_client(host="127.0.0.1")
    return client, openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="right", max_retries=0)


async def receipts(client):
    """The receipts; the last comes a moment after its completion."""
    await until(lambda: client.completer.receipts)
    return client.completer.receipts


async def test_a_stream_goes_on_when_its_processor_vanishes(world):
    first = await world.add_processor()
    second = await world.add_processor()
    second.free_slots = 0
    first.lose_after = 8
    gateway = await world.add_gateway()
    client, program = await program_of(world)
    async with program:
        stream = await program.completions.create(
            **ASKED, stream=True, stream_options={"include_usage": True}
        )
        text, usage = "", None
        async for chunk in stream:
            text += "".join(choice.text for choice in chunk.choices)
            usage = chunk.usage or usage
    assert text == text_of(EXPECTED)
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 48)
    assert len(second.works) == 1
    (kept,) = await receipts(client)
    assert verify_receipt(kept.body, kept.signature, gateway=gateway.peer_id).reproducible
    (settled,) = [one for one in await world.usage(gateway) if isinstance(one, Settled)]
    assert settled.completion_tokens == 48


async def test_many_programs_at_once_each_get_their_own(world):
    for seed in range(2):
        await world.add_processor(seed=seed)
    await world.add_gateway()
    _, program = await program_of(world)
    async with program:

        async def ask(seed):
            reply = await program.completions.create(**(ASKED | {"seed": seed}))
            expected = completion(completion_message(max_tokens=48, seed=seed), 0, 48)
            return reply.choices[0].text == text_of(expected)

        assert all(await asyncio.gather(*(ask(seed) for seed in range(24))))


async def test_errors_reach_the_program_as_openais(world):
    await world.add_processor()
    await world.add_gateway()
    _, program = await program_of(world)
    async with program:
        with pytest.raises(openai.NotFoundError) as missing:
            await program.completions.create(**(ASKED | {"model": "nobodys"}))
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.AuthenticationError):
            await program.with_options(api_key="wrong").models.list()
        world.auth.quota = 0
        with pytest.raises(openai.APIStatusError) as spent:
            await program.completions.create(**ASKED)
        assert (spent.value.status_code, spent.value.code) == (402, "insufficient_quota")
