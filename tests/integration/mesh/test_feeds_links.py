"""Feeds over real links, real disks and the real clock: news that come, and data that come back.

How soon news come is another matter: the unit tests of replication have it, in virtual time.
"""

import asyncio
import contextlib
import shutil
from random import Random

import pytest
from mesh_feeds import payloads
from mesh_trust import TestNetwork

from tinkex._clock import SystemClock
from tinkex.mesh.feeds.policy import ACCOUNTS_PUBLIC, USAGE
from tinkex.mesh.feeds.replication import Replicator
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Credentials, Peers
from tinkex.mesh.transport.iroh import IrohTransport
from tinkex.mesh.transport.tls import TlsTransport

CLOCK = SystemClock()
PATIENCE_S = 60.0
TRANSPORTS = {"tls": TlsTransport, "iroh": IrohTransport}


def failed(error):
    raise AssertionError from error


class Node:
    """A worker's feeds, over one transport."""

    def __init__(self, trust, role, folder, kind, key_pair=None):
        key_pair = key_pair or KeyPair.generate()
        encoded = trust.peer(role, key_pair).encoded
        self.role, self.folder = role, folder
        self.credentials = Credentials(key_pair, trust.network, trust.roots, encoded)
        self.peers = Peers(TRANSPORTS[kind](key_pair, clock=CLOCK), self.credentials, clock=CLOCK)
        self.store = FeedStore(folder / "feeds.db", self.credentials, clock=CLOCK)
        self.replicator = Replicator(
            self.peers, self.store, role, clock=CLOCK, rng=Random(1), on_error=failed
        )

    async def __aenter__(self):
        await self.store.open()
        await self.peers.start()
        await self.replicator.start()
        return self

    async def __aexit__(self, *_):
        await self.replicator.stop()
        await self.peers.stop()
        await self.store.close()

    def follow(self, other):
        self.replicator.follow(other.peers.contact, other.role)


async def until(condition):
    """Wait for something to come true."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - logs tell nobody here
            await asyncio.sleep(0.005)  # noqa: TID251 - real links need real time


@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_each_revocation_reaches_every_gateway(tmp_path, kind):
    trust = TestNetwork(CLOCK.now())
    async with contextlib.AsyncExitStack() as stack:
        auth = await stack.enter_async_context(Node(trust, Role.AUTH, tmp_path / "auth", kind))
        gateways = [
            await stack.enter_async_context(Node(trust, Role.GATEWAY, tmp_path / f"{n}", kind))
            for n in range(3)
        ]
        await auth.store.own(ACCOUNTS_PUBLIC).append(b"key 1")

        def all_have(count):
            async def have():
                held = [await payloads(each.store, ACCOUNTS_PUBLIC) for each in gateways]
                return all(len(texts) == count for texts in held)

            return have

        for gateway in gateways:
            gateway.follow(auth)
        await until(all_have(1))
        for count in range(2, 7):
            await auth.store.own(ACCOUNTS_PUBLIC).append(b"revoked: key 1")
            await until(all_have(count))


async def test_deleted_feeds_come_back_over_real_links(tmp_path):
    trust = TestNetwork(CLOCK.now())
    async with Node(trust, Role.AUTH, tmp_path / "auth", "tls") as auth:
        gateway = Node(trust, Role.GATEWAY, tmp_path / "gateway", "tls")
        texts = [b"%d tokens" % n for n in range(300)]
        async with gateway:
            gateway.follow(auth)
            await gateway.store.own(USAGE).append_many(texts)

            async def arrived():
                return len(await payloads(auth.store, USAGE)) == len(texts)

            await until(arrived)
        shutil.rmtree(gateway.folder)
        key_pair = gateway.credentials.key_pair
        async with Node(trust, Role.GATEWAY, tmp_path / "gateway", "tls", key_pair) as again:
            again.follow(auth)
            assert await again.replicator.recover(PATIENCE_S) == [auth.peers.peer_id]
            assert await payloads(again.store, USAGE) == texts
            await again.store.own(USAGE).append(b"more")
            assert again.store.forks() == []
