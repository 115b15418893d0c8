"""People who use a simulated mesh, and what each of them saw.

Everything that was answered is written down the moment it was: what is missing at the end, or more
than there should be, is the mesh's fault.
"""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random

from mesh_sim_source import MODEL, script

from tinkex.errors import (
    APIStatusError,
    AuthenticationError,
    ConflictError,
    MeshError,
    RateLimitError,
    TinkerError,
)
from tinkex.mesh.client import MeshClient
from tinkex.openai_api.completer import CompletionRequest, TextPrompt

PASSWORD = "correct horse battery"


@dataclass
class Asked:
    """A completion that somebody asked for."""

    user: str
    prompt: str
    seed: int
    n: int
    max_tokens: int
    at: float
    leaves_after: int | None
    state: str = "open"
    """`open`, then `done`, `failed` or `left`."""
    error: TinkerError | None = None
    request_id: str = ""
    tokens: list[list[int]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    receipt: object = None
    ended: float = 0.0

    @property
    def received(self):
        return sum(map(len, self.tokens))

    @property
    def most(self):
        """The most that it may cost: eight tokens may be added to a text."""
        return len(self.prompt) + 8 + self.n * self.max_tokens

    def right(self):
        """Whether what came is what should have, as far as it came."""
        for index in range(self.n):
            due = script(self.prompt, self.seed, index, self.max_tokens)
            got = self.tokens[index]
            whole = got == due if self.state == "done" else got == due[: len(got)]
            if not whole or self.text[index] != "".join(chr(97 + one) for one in got):
                return False
        return True


class User:
    """Somebody with an account, at a client worker.

    Attributes:
        acknowledged: the account's id, once its making was answered.
        keys: by id, those whose making was answered.
        revoked: by id, when it was answered that they are.
        asked: all completions.
    """

    def __init__(self, world, name, node, *, think_s=0.5):
        self.world, self.name, self.node, self.think_s = world, name, node, think_s
        self.rng = Random(f"{world.seed}/{name}")
        self.email = f"{name}@example.org"
        self.acknowledged = None
        self.registered = False
        self.key = None
        self.key_id = None
        self.keys, self.revoked, self.asked, self.refused = {}, {}, [], []

    async def use(self, until):
        """Use the mesh until some moment, in as many lives as the client worker has."""
        clock = self.world.clock
        while clock.monotonic() < until:
            if self.node.up:
                await self.node.inside(self._live(until))
            await clock.sleep(0.3)

    def mesh(self):
        return MeshClient(self.node.inner, api_key=self.key, clock=self.node.clock)

    async def _live(self, until):
        mesh = self.mesh()
        while self.world.clock.monotonic() < until:
            try:
                if self.key is None:
                    await self.sign_up(mesh)
                elif self.rng.random() < 0.05:
                    await self.change_key(mesh)
            except (APIStatusError, MeshError, RateLimitError, AuthenticationError) as error:
                self.refused.append(error)
                await self.world.clock.sleep(1.0)
                continue
            await self.ask(mesh)
            await self.world.clock.sleep(self.rng.expovariate(1 / self.think_s))

    async def sign_up(self, mesh):
        if not self.registered:
            with contextlib.suppress(ConflictError):  # an earlier answer was lost
                self.acknowledged = await mesh.register(self.email, PASSWORD)
            self.registered = True
        await self.make_key(mesh)

    async def make_key(self, mesh):
        await mesh.login(self.email, PASSWORD)
        made = await mesh.create_key("simulated")
        self.keys[made.info.key_id] = made.key
        self.key, self.key_id = made.key, made.info.key_id
        mesh.use_key(made.key)

    async def change_key(self, mesh):
        old = self.key_id
        await self.make_key(mesh)
        await mesh.revoke_key(old)
        self.revoked[old] = self.world.clock.monotonic()

    async def ask(self, mesh):
        rng, n = self.rng, self.rng.choice([1, 1, 1, 2])
        asked = Asked(
            user=self.name,
            prompt=f"{self.name} asks for number {len(self.asked)}{'.' * rng.randrange(20)}",
            seed=rng.getrandbits(32),
            n=n,
            max_tokens=rng.randint(1, 40),
            at=self.world.clock.monotonic(),
            leaves_after=rng.randint(1, 10) if rng.random() < 0.1 else None,
            tokens=[[] for _ in range(n)],
            text=[""] * n,
        )
        self.asked.append(asked)
        try:
            await self._read(mesh, asked)
        except TinkerError as error:
            asked.state, asked.error = "failed", error
        asked.ended = self.world.clock.monotonic()

    async def _read(self, mesh, asked):
        completion = await mesh.complete(
            CompletionRequest(
                model=MODEL,
                prompt=TextPrompt(asked.prompt),
                n=asked.n,
                max_tokens=asked.max_tokens,
                seed=asked.seed,
            )
        )
        try:
            async with aclosing(completion.pieces()) as pieces:
                async for piece in pieces:
                    asked.request_id = completion.request_id
                    if piece is None:
                        continue
                    asked.tokens[piece.index] += [token.token for token in piece.tokens]
                    asked.text[piece.index] += piece.text
                    if asked.leaves_after is not None and asked.received >= asked.leaves_after:
                        asked.state = "left"
                        return
        finally:
            asked.request_id = completion.request_id
        asked.state = "done"
        asked.receipt = await completion.settled()
