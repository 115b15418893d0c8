"""Whole workers in one process over real links, and a model for them that needs no engine."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack
from types import MappingProxyType

import pyrage

from tinkex._clock import SystemClock
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.api.processor import ServedModel
from tinkex.mesh.config import MeshConfig
from tinkex.mesh.roles import Role
from tinkex.mesh.workers.client import ClientConfig
from tinkex.mesh.workers.entry import enter_network
from tinkex.mesh.workers.founding import Founder, found
from tinkex.mesh.workers.processor import ProcessorConfig, ProcessorWorker
from tinkex.openai_api.completer import Piece, TextPrompt, Token

PASSPHRASE, PASSWORD = "a long passphrase", "correct horse battery"
MODEL = "plain"
PATIENCE_S = 60.0
"""Seconds for anything here, on a machine that does much else."""


class QuickCipher:
    """Age with a key instead of a stretched passphrase."""

    def __init__(self):
        self.identity = pyrage.x25519.Identity.generate()

    def seal(self, plaintext, _):
        return pyrage.encrypt(plaintext, [self.identity.to_public()])

    def open(self, sealed, _):
        return pyrage.decrypt(sealed, [self.identity])


class Network:
    """Workers in one folder. `async with network.stack` stops them."""

    def __init__(self, folder, transport="tls"):
        self.folder, self.clock, self.cipher = folder, SystemClock(), QuickCipher()
        self.transport = transport
        self.stack = AsyncExitStack()
        found(folder, "ours", PASSPHRASE, clock=self.clock, cipher=self.cipher)

    def founder(self):
        return Founder(self.folder, PASSPHRASE, cipher=self.cipher)

    async def start(
        self,
        role,
        contact=None,
        *,
        name=None,
        build=None,
        bind="127.0.0.1:0",
        settings=MappingProxyType({}),
        **terms,
    ):
        """Start a worker; with a `contact` it joins first, with one in its folder it comes back."""
        config = MeshConfig(
            data_dir=self.folder / (name or role.value),
            transport=self.transport,
            bind=(bind,),
            auth=AuthConfig(password_memory_kib=64),
            client=ClientConfig(port=0),
            **settings,
        )
        invitation = None
        if contact is not None:
            invitation = self.founder().invite(
                role, contacts=[contact], now=self.clock.now(), **terms
            )
        worker = await enter_network(config, role, invitation=invitation, build=build)
        await worker.start()
        self.stack.push_async_callback(worker.stop)
        return worker

    async def until(self, condition):
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await self.clock.sleep(0.02)


# --- a model that everybody can compute -----------------------------------------------------------


def tokens_of(prompt, adapter="", count=8):
    """What the model says; another adapter says something else."""
    return [
        hashlib.sha256(f"{adapter}|{prompt}|{place}".encode()).digest()[0] % 26
        for place in range(count)
    ]


def text_of(prompt, adapter="", count=8):
    return "".join(chr(97 + token) for token in tokens_of(prompt, adapter, count))


class PlainRun:
    """One completion of the model."""

    deterministic = True
    cached_tokens = 0

    def __init__(self, job):
        request = job.request
        assert isinstance(request.prompt, TextPrompt)
        assert request.n == 1
        self.prompt_tokens = len(request.prompt.text)
        self._tokens = tokens_of(request.prompt.text, job.adapter, request.max_tokens or 8)
        self._from = len(job.resume[0]) if job.resume else 0

    async def pieces(self):
        for place in range(self._from, len(self._tokens)):
            number = self._tokens[place]
            letter = chr(97 + number)
            token = Token(number, letter, letter.encode(), None, (), place)
            last = place == len(self._tokens) - 1
            yield Piece(0, letter, (token,), finish_reason="length" if last else None)

    def cancel(self):
        pass


class PlainBackend:
    """Runs it. `loaded` are the folders of its adapters."""

    model = ServedModel(
        name=MODEL, max_context_length=256, revision="r1", backend="engine", adapters=True
    )
    fingerprint = "any"
    slots = 8
    failure = ""

    def __init__(self):
        self.loaded = {}

    @property
    def adapters(self):
        return tuple(self.loaded)

    adapters_in_use = adapters

    async def start(self):
        pass

    async def stop(self):
        pass

    async def load_adapter(self, content, folder):
        self.loaded[content] = folder

    async def begin(self, job):
        return PlainRun(job)

    async def count_tokens(self, request):
        return len(request.prompt.text)


def processor(kind=ProcessorWorker, **config):
    """What a processor does with that model: the `build` of a worker."""

    async def build(member, _):
        return kind(
            member,
            PlainBackend(),
            data_dir=member.folder.path,
            config=ProcessorConfig(**config),
        )

    return build


__all__ = [
    "MODEL",
    "PASSPHRASE",
    "PASSWORD",
    "PATIENCE_S",
    "Network",
    "PlainBackend",
    "Role",
    "processor",
    "text_of",
]
