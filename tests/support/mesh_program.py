"""`tinkex mesh ROLE` with another clock, or with a scripted model in place of the engine.

Run as `python mesh_program.py SECONDS TOKENS_PER_S mesh ROLE ...`: so many seconds the clock is
ahead (behind where negative), so many tokens the model makes in a second (0: our own engine).
"""

import asyncio
import sys
from functools import partial

import typer
from mesh_scripted import next_token, prompt_ids

from tinkex._clock import SystemClock
from tinkex.cli.mesh.workers import worker_command
from tinkex.errors import UnsupportedError
from tinkex.mesh.api.completion import completion_message
from tinkex.mesh.api.processor import ServedModel
from tinkex.mesh.workers.entry import enter_network
from tinkex.mesh.workers.machine import Machine
from tinkex.mesh.workers.processor import ProcessorWorker
from tinkex.mesh.workers.vitals import Work
from tinkex.openai_api import Piece, Token

SCRIPTED = "tests/scripted"


def program(*, clock_s=0.0, tokens_per_s=0.0):
    """The beginning of a command line."""
    return (sys.executable, __file__, str(clock_s), str(tokens_per_s))


class WrongClock(SystemClock):
    """The machine's clock, so many seconds ahead, or behind where negative."""

    def __init__(self, seconds):
        self._seconds = seconds

    def now(self):
        return super().now() + self._seconds


class ScriptedRun:
    """A completion whose tokens anybody can compute."""

    deterministic = True
    cached_tokens = 0

    def __init__(self, job, tokens_per_s):
        self._request = completion_message(job.request)
        self._have = list(job.resume[0]) if job.resume else []
        self._pause_s = 1 / tokens_per_s
        self.prompt_tokens = len(prompt_ids(self._request))

    async def pieces(self):
        while len(self._have) < self._request.max_tokens:
            await asyncio.sleep(self._pause_s)  # noqa: TID251 - a model takes real time
            made = next_token(self._request, 0, self._have)
            place = len(self._have)
            self._have.append(made)
            ends = len(self._have) == self._request.max_tokens
            text = chr(97 + made)
            token = Token(made, text, text.encode(), -0.5, (), place)
            yield Piece(0, text, (token,), finish_reason="length" if ends else None)

    def cancel(self):
        pass


class ScriptedBackend:
    """Runs the scripted model."""

    model = ServedModel(
        name=SCRIPTED, max_context_length=4096, revision="1", backend="engine", adapters=False
    )
    fingerprint = "scripted"
    slots = 64
    adapters = adapters_in_use = ()
    failure = ""

    def __init__(self, tokens_per_s):
        self._tokens_per_s = tokens_per_s

    async def start(self):
        pass

    async def stop(self):
        pass

    async def load_adapter(self, content, folder):
        raise UnsupportedError(f"a scripted model has no adapters ({content}, {folder})")

    async def begin(self, job):
        return ScriptedRun(job, self._tokens_per_s)

    async def count_tokens(self, request):
        return len(prompt_ids(completion_message(request)))


async def scripted_processor(member, _, *, tokens_per_s):
    settings = member.config.processor.serving
    worker = ProcessorWorker(
        member, ScriptedBackend(tokens_per_s), data_dir=member.folder.path, config=settings
    )

    def work():
        found = worker.service.description
        return Work(load=1 - found.free_slots / found.slots, models=(SCRIPTED,))

    member.work = work
    return worker


if __name__ == "__main__":
    clock_s, tokens_per_s = float(sys.argv.pop(1)), float(sys.argv.pop(1))
    _, role = sys.argv.pop(1), sys.argv.pop(1)
    build = partial(scripted_processor, tokens_per_s=tokens_per_s) if tokens_per_s else None
    machine = Machine(clock=WrongClock(clock_s))
    app = typer.Typer()
    app.command()(worker_command(role, partial(enter_network, machine=machine, build=build)))
    app()
