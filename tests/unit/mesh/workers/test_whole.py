"""A worker's process: it serves until it is told to stop, and says so."""

import os
import signal

import pytest

from tinkex.mesh.workers.base import Worker
from tinkex.mesh.workers.whole import run_until_told


class Idle(Worker):
    """Does nothing, but remembers how it was stopped."""

    def __init__(self):
        super().__init__("idle")
        self.graces = []

    async def open(self, stack):
        """Nothing to open."""

    async def stop(self, grace_s=0.0):
        self.graces.append(grace_s)
        await super().stop(grace_s)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_worker_stops_with_its_grace_when_it_is_told(number):
    worker, seen = Idle(), []

    def on_ready():
        seen.append("ready")
        os.kill(os.getpid(), number)

    await run_until_told(
        worker, grace_s=7.0, on_ready=on_ready, on_told=lambda: seen.append("told")
    )
    assert seen == ["ready", "told"]
    assert worker.graces == [7.0]


async def test_worker_that_cannot_start_says_why_and_is_stopped():
    class Broken(Idle):
        async def open(self, stack):
            raise OSError("no port is free")

    worker, seen = Broken(), []
    with pytest.raises(OSError, match="no port"):
        await run_until_told(
            worker, grace_s=1.0, on_ready=lambda: seen.append("ready"), on_told=seen.clear
        )
    assert seen == []
    assert worker.graces == [1.0]
