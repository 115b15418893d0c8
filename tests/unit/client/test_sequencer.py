from __future__ import annotations

import asyncio

import pytest
from client_support import settle, status_error

from tinkex.client.future import APIFuture
from tinkex.client.sequencer import Sequencer
from tinkex.errors import (
    CertificateError,
    CircuitOpenError,
    CredentialError,
    InputError,
    SkippedCallError,
)


def tried_before(error):
    error.tried = True
    return error


def after_an_attempt_without_an_answer(error):
    error.perhaps_done = True
    return error


async def test_calls_are_numbered_from_one_in_call_order():
    sequencer = Sequencer()
    numbers: list[int] = []

    async def post(number: int) -> int:
        await settle(1)
        numbers.append(number)
        return number

    async def call(turn) -> None:
        async with turn:
            await turn.send(post)
            await turn.send(post)

    turns = [sequencer.reserve() for _ in range(3)]
    await asyncio.gather(*(call(turn) for turn in reversed(turns)))

    assert numbers == [1, 2, 3, 4, 5, 6]


async def test_next_post_waits_until_the_one_before_was_answered():
    sequencer = Sequencer()
    answered = asyncio.Event()
    first, second = sequencer.reserve(), sequencer.reserve()
    posted: list[int] = []

    async def slow(number: int) -> None:
        posted.append(number)
        await answered.wait()

    async def call(turn) -> None:
        async with turn:
            await turn.send(slow)

    tasks = [asyncio.create_task(call(turn)) for turn in (first, second)]
    await settle()
    assert posted == [1]
    answered.set()
    await asyncio.gather(*tasks)
    assert posted == [1, 2]


@pytest.mark.parametrize(
    ("error", "next_number"),
    [
        (InputError("cannot be encoded"), 1),
        (status_error(400), 1),
        (status_error(422), 1),
        (status_error(404), 1),
        (status_error(429), 1),
        (status_error(409), 2),
        (status_error(503), 2),
        (ConnectionError("reset"), 2),
        (CircuitOpenError("not sent"), 1),
        (tried_before(CircuitOpenError("not sent again")), 2),
        (CredentialError("the command printed no key"), 1),
        (CertificateError("nobody signed it"), 1),
        (after_an_attempt_without_an_answer(status_error(403)), 2),
        (after_an_attempt_without_an_answer(status_error(429)), 2),
        (after_an_attempt_without_an_answer(CredentialError("no key any more")), 2),
    ],
)
async def test_failed_post_releases_the_turn_and_settles_its_number(error, next_number):
    """The official client hangs here; a gap is left only where the request's fate is unknown."""
    sequencer = Sequencer()
    first, second = sequencer.reserve(), sequencer.reserve()

    async def fail(number: int) -> None:
        raise error

    async def succeed(number: int) -> int:
        return number

    async def call(turn, post):
        async with turn:
            return await turn.send(post)

    outcomes = await asyncio.gather(
        call(first, fail), call(second, succeed), return_exceptions=True
    )

    assert outcomes == [error, next_number]


async def test_call_cancelled_in_the_queue_does_not_let_the_next_one_pass_the_one_before():
    sequencer = Sequencer()
    turns = [sequencer.reserve() for _ in range(3)]
    gate = asyncio.Event()
    order: list[str] = []

    async def call(name: str, turn) -> None:
        async with turn:
            order.append(name)
            await gate.wait()

    tasks = [asyncio.create_task(call(name, turn)) for name, turn in zip("abc", turns, strict=True)]
    await settle()
    tasks[1].cancel()
    await settle()
    assert order == ["a"]
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert order == ["a", "c"]


async def test_call_that_never_started_leaves_the_queue():
    sequencer = Sequencer()
    never, next_one = sequencer.reserve(), sequencer.reserve()

    never.abandon_unentered()
    async with asyncio.timeout(5), next_one:
        pass

    with pytest.raises(asyncio.CancelledError):
        await never.__aenter__()


async def test_cancel_during_the_post_keeps_the_next_call_waiting_for_its_answer():
    sequencer = Sequencer()
    first, second = sequencer.reserve(), sequencer.reserve()
    answered = asyncio.Event()
    order: list[str] = []

    async def slow(number: int) -> None:
        await answered.wait()
        order.append("first answered")

    async def call_first() -> None:
        async with first:
            await first.send(slow)

    async def call_second() -> None:
        async with second:
            order.append("second")

    one, two = asyncio.create_task(call_first()), asyncio.create_task(call_second())
    await settle()
    one.cancel()
    await settle()
    assert one.cancelled()
    assert order == []
    answered.set()
    await two

    assert order == ["first answered", "second"]


async def test_calls_made_before_the_failure_was_read_are_skipped_too():
    sequencer = Sequencer()
    futures = [APIFuture() for _ in range(3)]
    failed = sequencer.reserve(futures[0])
    async with failed:
        sequencer.skip_until_seen(ValueError("chunk 2 was refused"), failed)
    futures[0].reject(ValueError("chunk 2 was refused"))
    with pytest.raises(SkippedCallError, match="chunk 2"):
        async with sequencer.reserve(futures[1]):
            pass
    assert futures[0].exception(0) is not None
    async with sequencer.reserve(futures[2]):
        pass


async def test_calls_queued_behind_a_failed_one_are_skipped_and_later_ones_are_not():
    sequencer = Sequencer()
    first, queued = sequencer.reserve(), sequencer.reserve()

    with pytest.raises(ValueError, match="loss"):  # noqa: PT012 - leaving the turn is the point
        async with first:
            try:
                raise ValueError("the loss function failed")  # noqa: TRY301 - the loss does
            except ValueError as error:
                sequencer.skip_until_seen(error, first)
                raise
    with pytest.raises(SkippedCallError, match="loss function failed"):
        async with queued:
            pass
    async with sequencer.reserve():
        pass
