"""What processors of a simulation sample: a script, at a pace; and a watch on what they serve.

Token `k` of completion `i` is a digest of (prompt, seed, i, all tokens before it): a stream goes on
rightly only from the very tokens that were there, and everybody can say what should have come.
"""

from __future__ import annotations

import hashlib
from contextlib import aclosing

import msgspec

from tinkex.mesh.api.processor import Begun, ServedModel
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S, Signed
from tinkex.mesh.trust.permits import MAX_PERMIT_S, PERMIT, Permit, request_hash
from tinkex.mesh.workers.processing import Processor
from tinkex.mesh.workers.processor import ProcessorWorker
from tinkex.openai_api.completer import Piece, Token

MODEL = "sim/script"
CONTEXT = 256
VOCABULARY = 26


def sampled(prompt, seed, index, before):
    content = repr((prompt, seed, index, list(before))).encode()
    return hashlib.sha256(content).digest()[0] % VOCABULARY


def script(prompt, seed, index, tokens):
    """All tokens of one completion."""
    found = []
    while len(found) < tokens:
        found.append(sampled(prompt, seed, index, found))
    return found


def _token(token, offset):
    text = chr(97 + token)
    return Token(token, text, text.encode(), -0.5, (), offset)


class ScriptedRun:
    """A job on its way."""

    deterministic = True
    cached_tokens = 0

    def __init__(self, backend, job):
        self._backend = backend
        self._job = job
        self.prompt_tokens = len(job.request.prompt.text)
        self._open = True
        backend.running += 1

    def cancel(self):
        if self._open:
            self._open = False
            self._backend.running -= 1

    async def pieces(self):
        request, rng = self._job.request, self._backend.rng
        have = [list(one) for one in self._job.resume] or [[] for _ in range(request.n)]
        running = [index for index in range(request.n) if index not in self._job.finished]
        while running:
            await self._backend.clock.sleep(rng.expovariate(1 / self._backend.pace_s))
            index = rng.choice(running)
            made = []
            while not made or (len(have[index]) < request.max_tokens and rng.random() < 0.3):
                token = sampled(request.prompt.text, request.seed, index, have[index])
                made.append(_token(token, len(have[index])))
                have[index].append(token)
            ends = len(have[index]) == request.max_tokens
            yield Piece(
                index,
                "".join(one.text for one in made),
                tuple(made),
                finish_reason="length" if ends else None,
            )
            if ends:
                running.remove(index)


class ScriptedBackend:
    """Samples from the script."""

    adapters = adapters_in_use = ()
    failure = ""
    fingerprint = "script"
    slots = 4
    model = ServedModel(
        name=MODEL, max_context_length=CONTEXT, revision="r1", backend="engine", adapters=False
    )

    def __init__(self, clock, rng, *, pace_s=0.05):
        self.clock, self.rng, self.pace_s = clock, rng, pace_s
        self.running = 0

    async def start(self):
        pass

    async def stop(self):
        pass

    async def begin(self, job):
        await self.clock.sleep(self.rng.uniform(0.0, 2 * self.pace_s))
        return ScriptedRun(self, job)

    async def count_tokens(self, request):
        return len(request.prompt.text)


class Watch:
    """What all processors of a simulation served, and whether they should have.

    It outlives the processors: a permit that one life used, no later one may serve again.
    """

    def __init__(self, true_time):
        self._true_time = true_time
        self._used = {}
        self.served = 0
        self.seen = []
        """Who showed what, of all that was served: permits that a thief may show again."""
        self.wrong = []

    def serve(self, processor, work, caller):
        self.served += 1
        self.seen.append((caller, work))
        try:
            signed = msgspec.msgpack.decode(work.permit, type=Signed)
            permit = msgspec.msgpack.decode(signed.body, type=Permit)
        except msgspec.MsgspecError:
            self.wrong.append("no permit")
            return
        told = {
            "signature": caller.signed(PERMIT, signed.body, signed.signature),
            "gateway": caller.raw == permit.gateway == signed.signer,
            "processor": permit.processor == processor.raw,
            "request": permit.request_hash == request_hash(work.request),
            "time": self._true_time() < permit.expires_at + 3 * CLOCK_SKEW_S + MAX_PERMIT_S,
            "once": (permit.gateway, permit.nonce) not in self._used,
        }
        self._used[permit.gateway, permit.nonce] = processor
        self.wrong += [f"{processor.short}: {name}" for name, right in told.items() if not right]


class WatchedProcessor(Processor):
    """The product's, with somebody who looks on."""

    watch = me = None

    async def rpc_complete(self, request, call):
        async with aclosing(super().rpc_complete(request, call)) as events:
            async for event in events:
                if isinstance(event, Begun):
                    self.watch.serve(self.me, request, call.peer)
                yield event


class WatchedWorker(ProcessorWorker):
    """The product's, whose service is watched."""

    def __init__(self, watch, member, *args, **options):
        super().__init__(member, *args, **options)
        self._watch = watch

    def made_service(self, *parts):
        service = WatchedProcessor(*parts)
        service.watch, service.me = self._watch, self._member.key_pair.peer_id
        return service
