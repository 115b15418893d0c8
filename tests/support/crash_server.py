"""The real server in a process that ends itself, by SIGKILL, at a chosen point.

The program that this file is (`python crash_server.py`) loads torch and the base model once and
forks a server for each command, so that a life begins in tenths of a second. A command is a line of
JSON on stdin: settings of the server, `plan` (what ends it), `trace` (a file), `log` (its stderr).
What happens comes as lines of JSON on stdout: `loaded`, then `pid`, `ready`, `ended` of each.

The trace outlives the process, a line for each thing: `reached` (a point), `killed` (at one, and
whether in a replay), `accepted` (digest of a request, the id it got), `answer` (a request's id,
digest of what it got).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import selectors
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch

from tinkex._clock import SystemClock
from tinkex.engine import engine as engine_module
from tinkex.engine.training import optimizers
from tinkex.server import run
from tinkex.server.app import build_app
from tinkex.server.config import DEFAULT_BASE_MODEL, Limits, ServerConfig

TORN = "half of an optimiser step is in the weights"
"""A point of the tests' own, besides those of `durable.points`."""


class Crash:
    """Ends the process at the planned point.

    Args:
        plan: `point` and `hit` (which time it is reached, from 1; a replay comes first); empty for
            none.
        trace: file that the trace is added to.
    """

    def __init__(self, plan, trace):
        self._point = plan.get("point")
        self._left = plan.get("hit", 1)
        self._trace = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.services = None

    def note(self, **what):
        os.write(self._trace, (json.dumps(what) + "\n").encode())

    def due(self, point):
        """Note that a point is reached; say whether the process is to end there."""
        self.note(reached=point)
        if point != self._point or self.services is None:
            return False
        self._left -= 1
        return self._left == 0

    def end(self):
        self.note(killed=self._point, replaying=self.services.recovery.replaying > 0)
        os.kill(os.getpid(), signal.SIGKILL)

    def reach(self, point):
        if self.due(point):
            self.end()

    def torn(self, optimizer):
        """Make an optimiser that leaves half of its step undone when the process is to end."""

        def step(weights, gradient, state, params):
            if not self.due(TORN):
                return optimizer.step(weights, gradient, state, params)
            before = weights.flat.detach().clone()
            optimizer.step(weights, gradient, state, params)
            half = before.numel() // 2
            with torch.no_grad():
                weights.flat[half:] = before[half:]
            return self.end()

        return replace(optimizer, step=step)


class Recorder:
    """ASGI middleware that traces which id a request got, and which answer an id got."""

    def __init__(self, app, crash):
        self._app = app
        self._crash = crash

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = hashlib.sha256(scope["path"].encode())
        body = []

        async def received():
            message = await receive()
            request.update(message.get("body", b""))
            body.append(message.get("body", b""))
            return message

        reply = []

        async def sent(message):
            if message["type"] == "http.response.start":
                reply.append(message["status"])
            elif reply and reply[0] == 200:
                reply.append(message.get("body", b""))
                if not message.get("more_body", False):
                    self._note(scope["path"], request.hexdigest(), body, b"".join(reply[1:]))
            await send(message)

        await self._app(scope, received, sent)

    def _note(self, path, digest, body, reply):
        if path.endswith("/retrieve_future"):
            if b'"try_again"' not in reply[:100]:
                name = json.loads(b"".join(body))["request_id"]
                self._crash.note(answer=name, content=hashlib.sha256(reply).hexdigest())
        elif reply.startswith(b'{"request_id"'):
            self._crash.note(accepted=digest, name=json.loads(reply)["request_id"])


def live(command):
    """Be a server until it is told to stop, or ends itself."""
    log = os.open(command["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 2)
    crash = Crash(command["plan"], command["trace"])
    settings = dict(command["settings"])
    limits = Limits(**settings.pop("limits", {}))
    settings["data_dir"], keys = Path(settings["data_dir"]), tuple(settings.pop("api_keys"))
    config = ServerConfig(**settings, api_keys=keys, limits=limits)

    def build(*args, **kwargs):
        app = build_app(*args, **kwargs, reach=crash.reach)
        app.add_middleware(Recorder, crash=crash)
        crash.services = app.state.services
        return app

    run.build_app = build
    optimizers.OPTIMIZERS = MappingProxyType(
        {name: crash.torn(one) for name, one in optimizers.OPTIMIZERS.items()}
    )
    asyncio.run(run.serve(config, on_ready=lambda info: tell(ready=info.url), clock=SystemClock()))


def tell(**event):
    os.write(1, (json.dumps(event) + "\n").encode())


def fork(command):
    """Run a life in a child: (its process id, a pipe that ends with it)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.set_inheritable(writing, False)
        code = 1
        try:
            live(command)
            code = 0
        except BaseException as error:  # noqa: BLE001 - a forked child must never run on
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    return child, reading


def main():
    base = engine_module.load_base_model(DEFAULT_BASE_MODEL)
    engine_module.load_base_model = lambda _source, **_settings: base
    tell(loaded=True)
    while True:
        line = sys.stdin.readline()
        if not line:
            return
        child, alive = fork(json.loads(line))
        tell(pid=child)
        with selectors.DefaultSelector() as waiting:
            waiting.register(alive, selectors.EVENT_READ)
            waiting.register(sys.stdin, selectors.EVENT_READ)
            # Nothing is sent while a server lives: what comes is the end of whoever started this.
            if any(key.fileobj is sys.stdin for key, _ in waiting.select()):
                os.kill(child, signal.SIGKILL)
        os.close(alive)
        tell(ended=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
