import asyncio
import os
import subprocess
import sys
from random import Random

import pytest

from tinkex.errors import LinkClosedError, PeerUnreachableError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.transport.dialling import DIAL_S
from tinkex.testing.network import SimNetwork, Weather
from tinkex.testing.simulation import SimulatedClock, simulate

PAIRS = [KeyPair(bytes([number]) * 32) for number in range(1, 9)]
ROUGH = Weather(delay_s=(0.01, 0.2), stall_share=0.1, stall_s=(0.5, 3.0), break_every_s=20.0)


def elapsed() -> float:
    return SimulatedClock().monotonic()


async def started(network, pair):
    transport = network.transport(pair)
    await transport.start()
    return transport


async def linked(network):
    alice, bob = await started(network, PAIRS[0]), await started(network, PAIRS[1])
    near = await alice.dial(bob.contact)
    return alice, bob, near, await bob.accept()


async def gossip(seed: int, seconds: float = 60.0) -> tuple[str, int]:
    """Peers that dial one another, send, echo and redial, in rough weather."""
    network = SimNetwork(seed=seed, weather=ROUGH)
    rng = Random(seed)
    transports = [await started(network, pair) for pair in PAIRS]
    echoed = 0

    async def serve(link):
        try:
            while True:
                await link.send(await link.receive())
        except LinkClosedError:
            pass

    async def accept(transport, group):
        while True:
            group.create_task(serve(await transport.accept()))

    async def talk(transport):
        nonlocal echoed
        while elapsed() < seconds:
            other = rng.choice([t for t in transports if t is not transport])
            try:
                link = await transport.dial(other.contact)
                for _ in range(rng.randrange(1, 50)):
                    frame = rng.randbytes(rng.randrange(1, 5000))
                    await link.send(frame)
                    assert await link.receive() == frame
                    echoed += 1
                await link.close()
            except (LinkClosedError, PeerUnreachableError):
                continue

    async with asyncio.TaskGroup() as group:
        acceptors = [group.create_task(accept(t, group)) for t in transports]
        await asyncio.gather(*(talk(transport) for transport in transports))
        for acceptor in acceptors:
            acceptor.cancel()
        for transport in transports:
            await transport.stop()
    return network.fingerprint, echoed


def test_a_seed_does_the_same_again_and_another_does_not():
    first, echoed = simulate(gossip(1), seed=1)
    assert echoed > 300
    assert simulate(gossip(1), seed=1) == (first, echoed)
    assert simulate(gossip(2), seed=2)[0] != first


def test_a_seed_does_the_same_in_another_process():
    code = (
        "import importlib.util as u, sys\n"
        "spec = u.spec_from_file_location('it', sys.argv[1])\n"
        "it = u.module_from_spec(spec); spec.loader.exec_module(it)\n"
        "print(it.simulate(it.gossip(3, 10.0))[0])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code, __file__],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert found == {simulate(gossip(3, 10.0))[0]}


@pytest.mark.parametrize("seed", range(5))
def test_frames_keep_their_order_whatever_the_weather(seed):
    async def program() -> None:
        weather = Weather(delay_s=(0.0, 1.0), stall_share=0.3, stall_s=(1.0, 5.0))
        _, _, near, far = await linked(SimNetwork(seed=seed, weather=weather))
        sending = asyncio.gather(*(near.send(b"%d" % number) for number in range(200)))
        assert [await far.receive() for _ in range(200)] == [b"%d" % n for n in range(200)]
        await sending

    simulate(program(), seed=seed)


def test_delays_are_those_of_the_weather():
    async def program() -> None:
        _, _, near, far = await linked(SimNetwork(seed=0, weather=Weather(delay_s=(0.1, 0.2))))
        for _ in range(20):
            began = elapsed()
            await near.send(b"ping")
            await far.receive()
            assert 0.1 <= elapsed() - began <= 0.2001

    simulate(program())


def test_a_reader_that_does_not_read_stops_the_sender():
    async def program() -> int:
        _, _, near, _far = await linked(SimNetwork(seed=0))
        sent = 0

        async def send_for_ever() -> None:
            nonlocal sent
            while True:
                await near.send(bytes(1 << 16))
                sent += 1

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send_for_ever(), 60)
        return sent

    assert simulate(program()) == 4


def test_a_partition_holds_everything_back_until_it_heals():
    async def program() -> None:
        network = SimNetwork(seed=0)
        alice, bob, near, far = await linked(network)
        network.partition([PAIRS[0].peer_id], [PAIRS[1].peer_id])
        await near.send(b"held")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await far.receive()
        began = elapsed()
        with pytest.raises(PeerUnreachableError, match="no answer"):
            await bob.dial(alice.contact)
        assert elapsed() - began == pytest.approx(DIAL_S)
        carol = await started(network, PAIRS[2])
        await carol.dial(alice.contact)  # who is in no group is with the first
        network.heal()
        assert await far.receive() == b"held"
        await bob.dial(alice.contact)

    simulate(program())


def test_the_far_end_hears_of_a_closing_after_what_was_sent():
    async def program() -> None:
        _, _, near, far = await linked(SimNetwork(seed=0))
        await near.send(b"last")
        await near.close()
        assert not far.closed
        assert await far.receive() == b"last"
        with pytest.raises(LinkClosedError, match="the peer closed"):
            await far.receive()
        assert far.closed

    simulate(program())


def test_a_killed_peer_resets_its_links_and_starts_again():
    async def program() -> None:
        network = SimNetwork(seed=0)
        alice, bob, near, far = await linked(network)
        network.crash(PAIRS[1].peer_id)
        with pytest.raises(LinkClosedError, match="killed"):
            await far.receive()
        with pytest.raises(LinkClosedError, match="reset"):
            await near.receive()
        with pytest.raises(PeerUnreachableError, match="nobody answers"):
            await alice.dial(bob.contact)
        again = await started(network, PAIRS[1])
        await alice.dial(again.contact)

    simulate(program())


def test_a_peer_without_power_says_nothing():
    async def program() -> None:
        network = SimNetwork(seed=0)
        alice, bob, near, _ = await linked(network)
        network.crash(PAIRS[1].peer_id, power=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await near.receive()
        assert not near.closed
        with pytest.raises(PeerUnreachableError, match="no answer"):
            await alice.dial(bob.contact)
        again = await started(network, PAIRS[1])
        await alice.dial(again.contact)

    simulate(program())


def test_links_end_by_themselves_where_the_weather_says_so():
    async def program() -> float:
        network = SimNetwork(seed=0, weather=Weather(break_every_s=10.0))
        alice, bob, near, far = await linked(network)
        lives = []
        for _ in range(200):
            began = elapsed()
            for end in (near, far):
                with pytest.raises(LinkClosedError, match="lost"):
                    await end.receive()
            lives.append(elapsed() - began)
            near, far = await alice.dial(bob.contact), await bob.accept()
        return sum(lives) / len(lives)

    assert simulate(program()) == pytest.approx(10.0, rel=0.25)


def test_a_sender_that_is_cancelled_while_it_waits_takes_no_room():
    async def program() -> None:
        _, _, near, far = await linked(SimNetwork(seed=0))
        sending = [asyncio.create_task(near.send(bytes(1 << 17))) for _ in range(6)]
        await asyncio.sleep(1)  # noqa: TID251 - virtual
        sending[3].cancel()
        for _ in range(5):
            await far.receive()
        assert [task.cancelled() for task in sending] == [False, False, False, True, False, False]
        await asyncio.gather(*sending, return_exceptions=True)
        async with asyncio.timeout(1):
            await asyncio.gather(near.send(bytes(1 << 17)), near.send(bytes(1 << 17)))

    simulate(program())
