"""How long tests wait for what must come."""

import asyncio

PATIENCE_S = 240.0
"""For a program or an answer: a machine that does much else takes a while; only a fault takes so
long. Less than a whole test may take, so that what did not come is told."""


async def until(condition, seconds=60.0):
    """Wait, by the machine's clock, for something that a thread or the network does."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event here
            await asyncio.sleep(0.002)  # noqa: TID251 - real threads and sockets take real time
