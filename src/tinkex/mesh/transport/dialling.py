"""Trying a contact's addresses: one after the other, overlapping, within a time.

Owns the order and the race. What an attempt is, the transport says.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from tinkex._clock import Clock
from tinkex.errors import PeerUnreachableError
from tinkex.mesh.deadline import within
from tinkex.mesh.transport.base import Contact, Link

L = TypeVar("L", bound=Link)
Place = tuple[str, int]
"""Host and port."""

DIAL_S = 3.0
"""How long all attempts together may take."""
STAGGER_S = 0.25
"""After how long the next address is tried beside those before it, if none has failed."""


async def dial_first(
    contact: Contact,
    places: Sequence[Place],
    attempt: Callable[[Place], Coroutine[Any, Any, L]],
    *,
    clock: Clock,
) -> L:
    """Make a link by whichever address answers first.

    Args:
        contact: who is wanted, for the error.
        places: likeliest first.
        attempt: raises OSError or PeerUnreachableError where it fails.
        clock: measures `DIAL_S`.

    Raises:
        PeerUnreachableError: no address led to the peer, in time.
    """
    if not places:
        raise PeerUnreachableError(f"no address of {contact.peer_id.short} is known here")
    failures: list[str] = []
    try:
        link = await within(clock, DIAL_S, _race(deque(places), attempt, failures, clock))
    except TimeoutError:
        failures.append(f"no answer in {DIAL_S:g} seconds")
        link = None
    if link is None:
        why = "; ".join(dict.fromkeys(failures))
        raise PeerUnreachableError(f"{contact.peer_id.short} cannot be reached: {why}")
    return link


async def _race(
    places: deque[Place],
    attempt: Callable[[Place], Coroutine[Any, Any, L]],
    failures: list[str],
    clock: Clock,
) -> L | None:
    """The first link that an attempt makes; None if all fail. No other attempt leaves one open."""
    running: list[asyncio.Task[L]] = []
    try:
        while running or places:
            if places:
                running.append(asyncio.ensure_future(attempt(places.popleft())))
            await _one_done(running, clock if places else None)
            for task in [task for task in running if task.done()]:
                running.remove(task)
                try:
                    return task.result()
                except (OSError, PeerUnreachableError) as error:
                    failures.append(str(error))
        return None
    finally:
        await _abandon(running)


async def _one_done(running: list[asyncio.Task[L]], clock: Clock | None) -> None:
    """Wait until an attempt has ended, or it is time for the next one."""
    if clock is None:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        return
    timer = asyncio.ensure_future(clock.sleep(STAGGER_S))
    try:
        await asyncio.wait({*running, timer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()


async def _abandon(running: list[asyncio.Task[L]]) -> None:
    for task in running:
        task.cancel()
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        if not isinstance(outcome, BaseException):
            await outcome.close()
