"""Links over networks that lose, delay, stall and change what passes."""

import asyncio
import contextlib
import subprocess
import sys
from random import Random

import pytest
from mesh_relays import NetworkNamespace, TcpRelay, UdpRelay

from tinkex._clock import SystemClock
from tinkex.errors import LinkClosedError, PeerUnreachableError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.addresses import split_address
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.transport.iroh import IrohTransport
from tinkex.mesh.transport.tls import TlsTransport

ALICE, BOB = KeyPair(b"a" * 32), KeyPair(b"b" * 32)

ECHO = """
import asyncio
from tinkex._clock import SystemClock
from tinkex.errors import LinkClosedError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.iroh import IrohTransport

async def echo(link):
    try:
        while True:
            await link.send(await link.receive())
    except LinkClosedError:
        pass  # one of a dial whose last packet was lost, and that was begun anew

async def main():
    transport = IrohTransport(KeyPair(b"b" * 32), clock=SystemClock())
    await transport.start()
    print(transport.contact.addresses[0], flush=True)
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(echo(await transport.accept()))

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def iroh_over(*, loss: float):
    """A link to an echoing peer that only packets through a relay reach, and the relay."""
    try:
        namespace = NetworkNamespace()
    except OSError as error:
        pytest.skip(f"no network namespaces here ({error.strerror})")
    peer = namespace.run(
        subprocess.Popen, [sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True
    )
    alice = IrohTransport(ALICE, clock=SystemClock())
    try:
        target = split_address(peer.stdout.readline().strip().removeprefix("iroh:"))
        await alice.start()
        async with UdpRelay(namespace, target, loss=loss, rng=Random(1)) as relay:
            yield await dialled(alice, f"iroh:{relay.address}"), relay
            await alice.stop()
    finally:
        await alice.stop()
        peer.kill()
        peer.wait()
        peer.stdout.close()
        namespace.close()


async def dialled(transport, address):
    """Dial Bob until he is reached: each packet of a dial may be lost, and its time is short."""
    for _ in range(20):
        with contextlib.suppress(PeerUnreachableError):
            return await transport.dial(Contact(BOB.peer_id, (address,)))
    raise AssertionError(f"nobody is reached at {address}")


async def echoed(link, frames):
    async def send():
        for frame in frames:
            await link.send(frame)

    sending = asyncio.create_task(send())
    received = [await link.receive() for _ in frames]
    await sending
    return received


async def test_iroh_delivers_everything_in_order_where_a_tenth_of_the_packets_is_lost():
    rng = Random(2)
    async with iroh_over(loss=0.1) as (link, relay):
        frames = [rng.randbytes(rng.randrange(1, 3000)) for _ in range(200)]
        assert await echoed(link, frames) == frames
        assert relay.lost > 20
        assert relay.passed > relay.lost


async def test_iroh_goes_on_after_a_network_was_gone_for_a_moment():
    async with iroh_over(loss=0.0) as (link, relay):
        assert await echoed(link, [b"before"]) == [b"before"]
        relay.loss = 1.0
        await link.send(b"meanwhile")
        while relay.lost < 2:  # noqa: ASYNC110 - packets have no event
            await asyncio.sleep(0.01)  # noqa: TID251 - in real time
        relay.loss = 0.0
        assert await link.receive() == b"meanwhile"
        assert await echoed(link, [b"after"]) == [b"after"]


@contextlib.asynccontextmanager
async def tls_over(**spoilt):
    """Both ends of a link whose bytes pass through a relay, and the relay."""
    alice = TlsTransport(ALICE, bind=("127.0.0.1:0",), clock=SystemClock())
    bob = TlsTransport(BOB, bind=("127.0.0.1:0",), clock=SystemClock())
    await alice.start()
    await bob.start()
    target = split_address(bob.contact.addresses[0].removeprefix("tls:"))
    try:
        async with TcpRelay(target, **spoilt) as relay:
            near = await alice.dial(Contact(BOB.peer_id, (f"tls:{relay.address}",)))
            yield near, await bob.accept(), relay
            await near.close()
    finally:
        await alice.stop()
        await bob.stop()


async def test_tls_delivers_everything_in_order_however_it_is_cut_up_and_delayed():
    rng = Random(3)
    async with tls_over(rng=Random(4), delay_s=0.01, piece=900) as (near, far, _):
        there = [rng.randbytes(rng.randrange(1, 3000)) for _ in range(40)]
        back = [rng.randbytes(rng.randrange(1, 3000)) for _ in range(40)]

        async def send(link, frames):
            for frame in frames:
                await link.send(frame)

        async def receive(link, count):
            return [await link.receive() for _ in range(count)]

        _, _, came, came_back = await asyncio.gather(
            send(near, there), send(far, back), receive(far, 40), receive(near, 40)
        )
        assert (came, came_back) == (there, back)


async def test_tls_gives_nobody_a_frame_that_was_changed_on_the_way():
    async with tls_over(rng=Random(5)) as (near, far, relay):
        await near.send(b"as it was")
        assert await far.receive() == b"as it was"
        relay.change_at = relay.sent_there + 40
        await near.send(b"changed on the way" * 10)
        with pytest.raises(LinkClosedError, match="TLS"):
            await far.receive()
        with pytest.raises(LinkClosedError):
            await near.receive()
