"""30 nodes of the DHT in six processes: announcing and lookups, also with a third of them dead.

    python benchmarks/mesh_dht.py [--transport tls|iroh] [--lookups 600]

Every node announces a topic of its own and `processor`. Lookups come from all processes, each of
which makes one and rests for up to 0.1 s, of topics at random; nothing is remembered between them.
Then two processes of the six vanish, in one run killed (their addresses refuse at once), in another
stopped (SIGSTOP: they are silent, as a machine that lost its power); right after it the others look
up what is left. `missed` counts publishers that live and were not found, after the one retry that a
lookup makes by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from tinkex._clock import SystemClock
from tinkex.mesh.dht.config import DhtConfig
from tinkex.mesh.dht.node import DhtNode
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.identity import KeyPair, PeerId
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Credentials, Peers
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.transport.iroh import IrohTransport
from tinkex.mesh.transport.tls import TlsTransport
from tinkex.mesh.trust.certificates import Chain, make_certificate, make_grant

PROCESSES = 6
NODES_EACH = 5
DAY = 86_400.0


# --- in each process ------------------------------------------------------------------------------


class Host:
    """Some nodes of one process, which does what the parent says."""

    def __init__(self) -> None:
        self.nodes: list[DhtNode] = []
        self.peers: list[Peers] = []
        self.rng = Random(os.getpid())

    async def start(self, told: dict[str, Any]) -> list[list[Any]]:
        """Start this process's nodes; gives their contacts."""
        config = DhtConfig(cache_s=0.0, empty_cache_s=0.0)
        network = PeerId.parse(told["network"])
        known = [Contact(PeerId.parse(peer), tuple(at)) for peer, at in told["bootstrap"]]
        for seed, certificate in told["members"]:
            pair = KeyPair(bytes.fromhex(seed))
            clock = SystemClock()
            made = TlsTransport if told["transport"] == "tls" else IrohTransport
            transport = made(pair, bind=("127.0.0.1:0",), clock=clock)
            credentials = Credentials(
                pair, network, frozenset({network}), bytes.fromhex(certificate)
            )
            peers = Peers(transport, credentials, clock=clock)
            await peers.start()
            node = DhtNode(peers, clock=clock, config=config)
            await node.start(known)
            known = known or [peers.contact]
            self.nodes.append(node)
            self.peers.append(peers)
        return [[str(p.peer_id), list(p.contact.addresses)] for p in self.peers]

    async def announce(self, _told: dict[str, Any]) -> list[float]:
        """Announce; gives the seconds that the first record of each node took."""
        taken = []
        for node, peers in zip(self.nodes, self.peers, strict=True):
            began = time.perf_counter()
            await node.announce(f"model:{peers.peer_id}", Offer())
            taken.append(time.perf_counter() - began)
            await node.announce("processor", Offer())
        return taken

    async def lookup(self, told: dict[str, Any]) -> dict[str, Any]:
        """Look topics up; gives the seconds of each, and how many publishers were missed."""
        alive = set(told["alive"])
        seconds, missed = [], 0
        for _ in range(told["count"]):
            node = self.rng.choice(self.nodes)
            wanted = alive if self.rng.random() < 0.1 else {self.rng.choice(told["alive"])}
            topic = "processor" if wanted is alive else f"model:{next(iter(wanted))}"
            began = time.perf_counter()
            records = await node.lookup(topic)
            seconds.append(time.perf_counter() - began)
            await asyncio.sleep(self.rng.uniform(0.0, 0.1))
            missed += len(wanted - {str(r.contact.peer_id) for r in records})
        return {"seconds": seconds, "missed": missed}

    async def stop(self, _told: dict[str, Any]) -> None:
        """End."""
        for node, peers in zip(self.nodes, self.peers, strict=True):
            await node.stop()
            await peers.stop()


async def child() -> None:
    host = Host()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        told = json.loads(line)
        reply = await getattr(host, told["do"])(told)
        print(json.dumps(reply), flush=True)
        if told["do"] == "stop":
            return


# --- in the parent --------------------------------------------------------------------------------


def members(count: int) -> tuple[str, list[list[str]]]:
    """A network's id, and secret keys with certificates, in hexadecimal."""
    root, auth, now = KeyPair.generate(), KeyPair.generate(), time.time()

    def certified(signer: KeyPair, pair: KeyPair, role: Role, issuer: Chain | None) -> bytes:
        grant = make_grant(
            root,
            network=root.peer_id,
            key=KeyPair.generate().peer_id,
            role=role,
            join_before=now + DAY,
            certificate_s=DAY,
        )
        return make_certificate(
            signer, grant=grant, peer=pair.peer_id, not_before=now, expires_at=now + DAY,
            issuer=issuer,
        )  # fmt: skip

    issuer = msgspec.msgpack.decode(certified(root, auth, Role.AUTH, None), type=Chain)
    pairs = [KeyPair.generate() for _ in range(count)]
    made = [
        [pair.seed.hex(), certified(auth, pair, Role.PROCESSOR, issuer).hex()] for pair in pairs
    ]
    return str(root.peer_id), made


class Network:
    """The processes, and who lives in each."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.processes: list[asyncio.subprocess.Process] = []
        self.hosted: list[list[str]] = []

    async def tell(self, number: int, do: str, **told: Any) -> Any:
        """Have a process do something, and give what it says."""
        process = self.processes[number]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"do": do} | told).encode() + b"\n")
        line = await asyncio.wait_for(process.stdout.readline(), 120)
        return json.loads(line)

    async def start(self) -> float:
        """Start everything; gives the seconds."""
        network, made = members(PROCESSES * NODES_EACH)
        bootstrap: list[list[Any]] = []
        began = time.perf_counter()
        for number in range(PROCESSES):
            self.processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable,
                    __file__,
                    "--child",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=1 << 24,
                )
            )
            mine = made[number * NODES_EACH : (number + 1) * NODES_EACH]
            contacts = await self.tell(
                number,
                "start",
                transport=self.transport,
                network=network,
                bootstrap=bootstrap,
                members=mine,
            )
            scheme = f"{self.transport}:"
            assert all(at.startswith(scheme) for _, addresses in contacts for at in addresses)
            bootstrap = bootstrap or contacts[:2]
            self.hosted.append([peer for peer, _ in contacts])
        assert len({process.pid for process in self.processes}) == PROCESSES
        return time.perf_counter() - began

    async def all(self, numbers: range, do: str, **told: Any) -> list[Any]:
        """Have some processes do something at once."""
        return list(await asyncio.gather(*(self.tell(n, do, **told) for n in numbers)))

    async def lookups(self, numbers: range, count: int) -> tuple[list[float], int]:
        """Look up what the nodes of some processes announce, from there."""
        alive = list(itertools.chain.from_iterable(self.hosted[n] for n in numbers))
        found = await self.all(numbers, "lookup", count=count // len(numbers), alive=alive)
        seconds = [taken for one in found for taken in one["seconds"]]
        return seconds, sum(one["missed"] for one in found)

    def end(self) -> None:
        """Kill what runs."""
        for process in self.processes:
            if process.returncode is None:
                process.kill()


@dataclass(frozen=True)
class Taken:
    """Announcements or lookups of one kind."""

    name: str
    seconds: list[float]
    missed: int = 0
    """Publishers that live and were not found."""
    goal: str = ""

    @property
    def p50_ms(self) -> float:
        """The median."""
        return sorted(self.seconds)[len(self.seconds) // 2] * 1000

    @property
    def p99_ms(self) -> float:
        """The 99th percentile."""
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)] * 1000

    def show(self) -> None:
        """Print them."""
        print(
            f"{self.name:<28} {self.p50_ms:>6.1f} / {self.p99_ms:>6.1f} ms   "
            f"n = {len(self.seconds)}   missed {self.missed}   {self.goal}"
        )


async def measure(transport: str, count: int, how: signal.Signals) -> list[Taken]:
    """Announcements, the first lookups, lookups, and those after a third was sent a signal."""
    network = Network(transport)
    everybody, left = range(PROCESSES), range(PROCESSES * 2 // 3)
    try:
        started = await network.start()
        size = f"{PROCESSES * NODES_EACH} nodes in {PROCESSES} processes"
        print(f"{size} over {transport} started in {started:.1f} s", file=sys.stderr)
        announced = await network.all(everybody, "announce")
        found = [
            Taken("announce, p50 / p99", list(itertools.chain.from_iterable(announced))),
            Taken("lookup, the first", *await network.lookups(everybody, 60)),
            Taken("lookup", *await network.lookups(everybody, count), "goal < 60 / 300 ms"),
        ]
        for number in range(len(left), PROCESSES):
            os.kill(network.processes[number].pid, how)
        hurt = await network.lookups(left, count)
        found.append(Taken(f"lookup, a third {how.name}", *hurt, "goal < 250 / 1,000 ms"))
        await network.all(left, "stop")
        return found
    finally:
        network.end()
        await asyncio.gather(*(process.wait() for process in network.processes))


async def parent(transport: str, count: int) -> int:
    missed = 0
    for how in (signal.SIGKILL, signal.SIGSTOP):
        for taken in await measure(transport, count, how):
            taken.show()
            missed += taken.missed
    return int(missed > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transport", choices=("tls", "iroh"), default="tls")
    parser.add_argument("--lookups", type=int, default=600)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        asyncio.run(child())
        return 0
    return asyncio.run(parent(arguments.transport, arguments.lookups))


if __name__ == "__main__":
    sys.exit(main())
