"""Something that everybody needs and one caller makes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import traceback
import weakref

import pytest
from client_support import settle
from scripted_tinker import API, ok, scripted_peer, service

import tinkex as tinker
from tinkex.client.shared_attempt import SharedAttempt
from tinkex.errors import TinkerError


class Workshop:
    """Makes something, and counts the attempts; the first ones fail."""

    def __init__(self, *failures: BaseException) -> None:
        self.attempts = 0
        self.gate = asyncio.Event()
        self._failures = list(failures)
        self._attempt = SharedAttempt()
        self._made = False

    async def get(self) -> str:
        async with self._attempt.turn():
            if not self._made:
                self.attempts += 1
                await self.gate.wait()
                if self._failures:
                    raise self._failures.pop(0)
                self._made = True
            return "made"


async def started(workshop: Workshop, count: int) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(workshop.get()) for _ in range(count)]
    await settle()
    return tasks


async def test_it_is_made_once_for_everybody():
    workshop = Workshop()
    tasks = await started(workshop, 20)
    workshop.gate.set()
    assert await asyncio.gather(*tasks) == ["made"] * 20
    assert workshop.attempts == 1


async def test_those_who_waited_fail_together_and_who_comes_later_tries_again():
    gone = TinkerError("the server is gone")
    workshop = Workshop(gone)
    tasks = await started(workshop, 20)
    workshop.gate.set()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [gone] * 20
    assert workshop.attempts == 1
    assert await workshop.get() == "made"


async def test_traceback_of_a_shared_failure_does_not_grow_with_those_who_share_it():
    gone = TinkerError("the server is gone")
    workshop = Workshop(gone)
    tasks = await started(workshop, 20)
    workshop.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(traceback.extract_tb(gone.__traceback__)) < 20


async def test_attempt_that_is_cancelled_is_made_by_the_next_one_in_its_place():
    workshop = Workshop()
    first, *others = await started(workshop, 3)
    first.cancel()
    workshop.gate.set()
    assert await asyncio.gather(*others) == ["made"] * 2
    assert workshop.attempts == 2
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_failure_is_forgotten_with_the_last_who_waited_for_it():
    failure = TinkerError("the server is gone")
    gone, workshop = weakref.ref(failure), Workshop(failure)
    del failure
    workshop.gate.set()
    for task in await started(workshop, 2):
        with contextlib.suppress(TinkerError):  # pytest would keep what it caught
            await task
    del task
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("path", ["client/config", "create_session"])
def test_calls_that_wait_for_a_server_that_fails_fail_together(path):
    with scripted_peer() as peer, service(peer, max_retries=0) as client:
        gate = threading.Event()

        def fail(_: object) -> object:
            gate.wait(10)
            return ok({"detail": "down"}, 503)

        peer.expect(f"{API}/{path}", fail)
        waiting = [client.create_sampling_client(base_model="m") for _ in range(20)]
        client._connection.submit(settle).result(10)
        gate.set()
        for one in waiting:
            with pytest.raises(tinker.InternalServerError, match="down"):
                one.result(10)
        assert len(peer.requests_to(f"{API}/{path}")) == 1
        client.create_sampling_client(base_model="m").result(10)
