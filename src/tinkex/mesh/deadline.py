"""Waiting for something, but not longer than a clock says.

`asyncio.timeout` knows the event loop's time alone, which no test can move. This is for what is
rare, and has a clock and nothing else; calls, which are many, have `rpc.deadline`, which makes no
task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tinkex._clock import Clock

T = TypeVar("T")


async def within(clock: Clock, seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancel it, and wait for its end, when the time is over.

    Raises:
        TimeoutError: `seconds` passed first.
    """
    task = asyncio.ensure_future(work)
    timer = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait((task, timer), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TimeoutError(f"not done within {seconds:g} seconds")
        return task.result()
    finally:
        task.cancel()
        timer.cancel()
        await asyncio.gather(task, timer, return_exceptions=True)
