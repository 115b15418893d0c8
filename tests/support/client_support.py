"""What the tests of the client share: an event loop's turn, an error of a status."""

from __future__ import annotations

import asyncio

from tinkex import errors


async def settle(rounds: int = 10) -> None:
    """Let every task that can run do so."""
    for _ in range(rounds):
        await asyncio.sleep(0)  # noqa: TID251 - yields, waits for no time


def status_error(status: int, body: object = None) -> errors.APIStatusError:
    """Make the error of an answer with `status`."""
    return errors.status_error(status, f"Error code: {status}", body=body)
