import asyncio

import pytest

from tinkex.errors import LinkClosedError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.arrivals import BACKLOG, Arrivals
from tinkex.mesh.transport.memory import MemoryLink, MemoryPipe


def link() -> MemoryLink:
    return MemoryLink(KeyPair(bytes(32)).peer_id, MemoryPipe(), MemoryPipe())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)  # noqa: TID251 - lets tasks run, waits for nothing


async def test_links_are_accepted_in_order_without_those_that_closed_meanwhile():
    arrivals: Arrivals[MemoryLink] = Arrivals()
    links = [link() for _ in range(3)]
    for each in links:
        assert arrivals.add(each)
    await links[1].close()
    assert [await arrivals.next(), await arrivals.next()] == [links[0], links[2]]


async def test_only_so_many_wait():
    arrivals: Arrivals[MemoryLink] = Arrivals()
    assert all(arrivals.add(link()) for _ in range(BACKLOG))
    assert not arrivals.add(link())


async def test_an_acceptor_that_is_cancelled_leaves_the_link_to_the_next():
    arrivals: Arrivals[MemoryLink] = Arrivals()
    first, second = asyncio.create_task(arrivals.next()), asyncio.create_task(arrivals.next())
    await settle()
    arrivals.add(arrived := link())
    first.cancel()
    assert await second is arrived


async def test_closing_ends_what_waits():
    arrivals: Arrivals[MemoryLink] = Arrivals()
    waiting = [asyncio.create_task(arrivals.next()) for _ in range(2)]
    await settle()
    arrivals.close()
    for each in waiting:
        with pytest.raises(LinkClosedError, match="stopped"):
            await each
    assert not arrivals.add(link())
