"""Background work that must go on: a crash restarts it, a few crashes in a row end it.

Owns how often. What a task does about errors it expects is its own matter; only what it did not
expect gets here.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from tinkex.errors import BackgroundTaskError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tinkex._clock import Clock

MAX_RESTARTS = 3
WINDOW_SECONDS = 5.0

_LOG = logging.getLogger("tinkex.client")


async def supervised(
    name: str,
    work: Callable[[], Awaitable[None]],
    clock: Clock,
    emit: Callable[..., None],
) -> None:
    """Run `work` until it returns, starting it again when it crashes.

    Each crash is an event `background.crash`. One more than `MAX_RESTARTS` within `WINDOW_SECONDS`
    ends it.

    Raises:
        BackgroundTaskError: it crashed too often.
    """
    crashes: deque[float] = deque(maxlen=MAX_RESTARTS + 1)
    while True:
        try:
            await work()
        except Exception as error:
            now = clock.monotonic()
            crashes.append(now)
            final = len(crashes) > MAX_RESTARTS and now - crashes[0] <= WINDOW_SECONDS
            emit("background.crash", task=name, error=repr(error), restarts=not final)
            _LOG.exception("The %s of a client crashed", name)
            if final:
                raise BackgroundTaskError(
                    f"The {name} of this client crashed {len(crashes)} times within "
                    f"{WINDOW_SECONDS:g} s, last with {type(error).__name__}: {error}. Make a new "
                    "ServiceClient, and report this: it is a bug of tinkex."
                ) from error
        else:
            return
