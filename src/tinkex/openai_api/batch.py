"""Completions of several prompts: begun one after the other, and read in that order.

Owns that nothing of an answer is told until all have begun, and that this is no deadlock: where
there is no room for one more, it begins when one before it has ended, and that has to be read. One
that is refused because so many are in progress is tried again as those end. What came is told from
then on, or once one has waited for `HOLD_S` to begin, as the end of those may be far.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from tinkex.errors import RateLimitError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from tinkex._clock import Clock
    from tinkex.openai_api.completer import Completer, Completion, CompletionRequest, Piece

    Placed = tuple[int, Piece | None]
    """Which prompt it is of, and a piece; None as a sign of life."""

AT_ONCE = 256
"""Pieces that were held and are given before anything else has its turn."""
HOLD_S = 10.0
"""Pieces are held for so long at most while there are completions that have not begun."""


class Batch:
    """The completions of several prompts.

    Args:
        completer: completes them.
        caller: whose they are.
        requests: one for each prompt; one at least.
        clock: waits.
    """

    def __init__(
        self, completer: Completer, caller: Any, requests: Sequence[CompletionRequest], clock: Clock
    ) -> None:
        self._clock = clock
        self._completer = completer
        self._caller = caller
        self.requests = requests
        self.begun: list[Completion] = []
        """Those that were; all of them at the end."""
        self._came = asyncio.Event()
        """Set when another one has begun, or none begins any more."""
        self._ended = 0
        self._went = asyncio.Event()
        """Set when another one has ended."""
        self._full = asyncio.Event()
        """Set once one was refused because others are in progress, or waits for long."""

    async def pieces(self) -> AsyncGenerator[Placed, None]:
        """Give all pieces, those of the first prompt first; its end cancels what goes on.

        Raises:
            TinkerError: one was refused, or failed.
        """
        beginning = asyncio.ensure_future(self._begin())
        late = asyncio.ensure_future(self._be_late()) if len(self.requests) > 1 else None
        try:
            if late is None:
                await beginning
            async with (
                aclosing(self._read(beginning)) as reading,
                aclosing(_held_until(beginning, self._full, reading)) as placed,
            ):
                async for one in placed:
                    yield one
            await beginning
        finally:
            ending = [beginning] if late is None else [beginning, late]
            for one_of_them in ending:
                one_of_them.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            for completion in self.begun:
                completion.cancel()

    async def _be_late(self) -> None:
        await self._clock.sleep(HOLD_S)
        self._full.set()

    async def _begin(self) -> None:
        try:
            for request in self.requests:
                self.begun.append(await self._begun(request))
                self._came.set()
        finally:
            self._came.set()

    async def _begun(self, request: CompletionRequest) -> Completion:
        while True:
            in_progress = len(self.begun) - self._ended
            self._went.clear()
            try:
                return await self._completer.complete(self._caller, request)
            except RateLimitError:
                if not in_progress:
                    raise  # it is no other of these that is in its way
            self._full.set()
            await self._went.wait()

    async def _read(self, beginning: asyncio.Future[None]) -> AsyncGenerator[Placed, None]:
        for place in range(len(self.requests)):
            while len(self.begun) <= place:
                if beginning.done():
                    return
                self._came.clear()
                await self._came.wait()
            async for piece in self.begun[place].pieces():
                yield place, piece
            self._ended += 1
            self._went.set()


async def _held_until(
    beginning: asyncio.Future[None], full: asyncio.Event, reading: AsyncIterator[Placed]
) -> AsyncGenerator[Placed, None]:
    """Give what is read, once all have begun, or no more can begin.

    Raises:
        TinkerError: one could not.
    """
    held: list[Placed] = []
    following: asyncio.Future[Placed | None] | None = None
    is_full = asyncio.ensure_future(full.wait())
    try:
        while not (beginning.done() or is_full.done()):
            following = following or asyncio.ensure_future(anext(reading, None))
            any_of: set[asyncio.Future[Any]] = {beginning, is_full, following}
            await asyncio.wait(any_of, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                placed, following = following.result(), None
                if placed is not None and placed[1] is not None:
                    held.append(placed)
        if beginning.done():
            await beginning
        for number, placed in enumerate(held, 1):
            yield placed
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)  # noqa: TID251 - others have their turn: no time passes
        if following is not None and (placed := await following) is not None:
            yield placed
    finally:
        is_full.cancel()
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    async for placed in reading:
        yield placed
