"""A processor around a tiny engine that speaks the shipped model's tokens, and what it is asked."""

from __future__ import annotations

import threading
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from engine_support import shake, tiny_model
from mesh_rpc import World

import tinkex
from tinkex.engine.engine import Engine, EngineConfig
from tinkex.engine.models.loader import wrap_model
from tinkex.engine.models.tokenizer import load_fast_tokenizer
from tinkex.mesh.api.completion import CompletionMessage, PieceMessage, TextMessage
from tinkex.mesh.api.processor import Describe, ProcessorApi, Work
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.processing.engine_backend import EngineBackend
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.permits import PERMIT_S, make_permit
from tinkex.mesh.workers.processor import ProcessorConfig, ProcessorWorker
from tinkex.openai_api import CompletionRequest, TextPrompt
from tinkex.openai_api.model_text import ModelText
from tinkex.testing import VirtualClock
from tinkex.testing.discovery import MemoryDiscovery
from tinkex.types import LoraConfig

SPROUT = str(Path(tinkex.__file__).parent / "engine" / "assets" / "sprout")
MODEL = "tiny"


@cache
def tokenizer():
    return load_fast_tokenizer(SPROUT)


def engine_of(**settings):
    model = tiny_model("qwen3", vocab_size=len(tokenizer()))
    return Engine(wrap_model(model, name=MODEL, tokenizer_id=SPROUT), EngineConfig(**settings))


def backend_of(engine=None, **options):
    """Make a back end; faults are raised again when it stops."""
    clock = VirtualClock()
    text = ModelText(MODEL, tokenizer(), clock)
    faults = []
    made = EngineBackend(
        engine or engine_of(),
        text,
        revision="r1",
        clock=clock,
        on_fault=faults.append,
        **options,
    )
    made.faults = faults
    return made


def adapter_folder(folder, *, seed=1, rank=4):
    """Write the files of an adapter of the tiny model."""
    engine = engine_of()
    engine.create_adapter("a", LoraConfig(rank=rank, seed=seed))
    shake(engine, "a", seed=seed)
    engine.save_adapter("a", folder, optimizer=False)
    return folder


def request_of(text="The quick brown fox", **fields):
    fields = {"model": MODEL, "max_tokens": 12, "seed": 5, **fields}
    return CompletionRequest(prompt=TextPrompt(text), **fields)


def message_of(text="The quick brown fox", **fields):
    fields = {"model": MODEL, "max_tokens": 12, "seed": 5, **fields}
    return CompletionMessage(prompt=TextMessage(text), **fields)


def work_of(gateway, processor, message=None, *, now, adapter="", **fields):
    """Make what a gateway sends, permit and all."""
    message = message or message_of()
    encoded = msgspec.msgpack.encode(message)
    permit = make_permit(
        gateway,
        processor=processor,
        account="ada",
        model=message.model,
        request=encoded,
        max_tokens=max(0, message.n) * (message.max_tokens or 20),
        expires_at=now + PERMIT_S,
        adapter=adapter,
    )
    return Work(permit=permit, request=encoded, **fields)


async def pieces_of(run):
    return [piece async for piece in run.pieces() if piece is not None]


def told(pieces, index=0):
    """Give a completion's text, tokens with log-probabilities, and why it ended."""
    own = [piece for piece in pieces if piece.index == index and not piece.echo]
    return (
        "".join(piece.text for piece in own),
        [(token.token, token.logprob) for piece in own for token in piece.tokens],
        own[-1].finish_reason if own else None,
    )


@contextmanager
def frozen(backend):
    """Stop the engine between two steps, so that nothing ends within the block."""
    gate = threading.Event()
    backend._thread.call(lambda _: gate.wait(30))
    try:
        yield
    finally:
        gate.set()


@dataclass
class Member:
    """What a worker is given."""

    key_pair: KeyPair
    peers: Any
    discovery: Any
    clock: Any


class Mesh(World):
    """One processor and one gateway. `work` fields go to the message."""

    async def begin(self, folder: Path, *, backend=None, key_pair=None, **config):
        self.backend = backend or backend_of()
        credentials = self.credentials(Role.PROCESSOR, key_pair)
        self.key_pair = credentials.key_pair
        peers = await self.peer(credentials=credentials)
        self.found = MemoryDiscovery(clock=self.clock)
        certificate = self.trust.peer(Role.PROCESSOR, self.key_pair).certificate
        discovery = self.found.member(peers.contact, certificate)
        member = Member(self.key_pair, peers, discovery, self.clock)
        self.worker = ProcessorWorker(
            member, self.backend, data_dir=folder, config=ProcessorConfig(**config)
        )
        await self.worker.start()
        self.contact = peers.contact
        self.gateway_key = KeyPair.generate()
        self.gateway = await self.peer(credentials=self.credentials(Role.GATEWAY, self.gateway_key))
        return self

    async def __aexit__(self, *args):
        await self.worker.stop()
        await super().__aexit__(*args)
        assert self.backend.faults == []

    def work(self, message=None, *, gateway=None, processor=None, **fields):
        return work_of(
            gateway or self.gateway_key,
            processor or self.contact.peer_id,
            message,
            now=self.clock.now(),
            **fields,
        )

    def stream(self, work, gateway=None):
        return aclosing(
            (gateway or self.gateway).stream(
                self.contact, ProcessorApi.rpc_complete, work, timeout_s=60
            )
        )

    async def ask(self, work, gateway=None):
        async with self.stream(work, gateway) as events:
            return [event async for event in events]

    async def describe(self):
        return await self.gateway.call(
            self.contact, ProcessorApi.rpc_describe, Describe(), timeout_s=60
        )


def tokens(events):
    return [token.token for one in events if isinstance(one, PieceMessage) for token in one.tokens]
