"""Workers that keep copies of one another's feeds, over memory links and a virtual clock."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
from dataclasses import dataclass
from random import Random

from mesh_feeds import payloads
from mesh_rpc import World, until

from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.feeds.replication import Replicator
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.vault import Vault
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Peers
from tinkex.mesh.transport.base import Contact


@dataclass
class Node:
    """One worker's feeds."""

    role: Role
    peers: Peers
    store: FeedStore
    vault: Vault | None
    replicator: Replicator

    @property
    def contact(self) -> Contact:
        return self.peers.contact

    @property
    def peer_id(self):
        return self.peers.peer_id

    async def write(self, feed, *texts):
        """Append some texts."""
        return [await self.store.own(feed).append(text.encode()) for text in texts]

    async def holds(self, feed, **options):
        """What every entry of a feed says."""
        return [text.decode() for text in await payloads(self.store, feed, **options)]

    def follow(self, *others):
        """Ask these from now on."""
        for other in others:
            self.replicator.follow(other.contact, other.role)


class AtOnce(concurrent.futures.ThreadPoolExecutor):
    """Does in the caller's thread what others do in theirs: no virtual time passes meanwhile."""

    def submit(self, work, /, *args, **options):
        done = concurrent.futures.Future()
        try:
            done.set_result(work(*args, **options))
        except Exception as error:  # noqa: BLE001 - who asked for it gets it
            done.set_exception(error)
        return done


class FeedWorld:
    """Nodes of one network. Use it as `async with FeedWorld(folder) as world`."""

    def __init__(self, folder, *, inline=True, config=None, replicator=Replicator):
        self.folder = folder
        self.inline = inline
        self.config = config or ReplicationConfig()
        self.replicator = replicator
        self.rpc = World()
        self.nodes = []
        self.errors = []
        self._numbers = itertools.count()

    @property
    def clock(self):
        return self.rpc.clock

    async def __aenter__(self):
        asyncio.get_running_loop().set_default_executor(AtOnce())
        return self

    async def __aexit__(self, *_):
        for node in list(self.nodes):
            await self.stop(node)
        assert self.errors == []

    async def node(self, role=Role.AUTH, *, credentials=None, folder=None, **options):
        """Start a node; with the credentials and folder of another one, its next life."""
        credentials = credentials or self.rpc.credentials(role, KeyPair.generate())
        folder = folder or self.folder / f"node-{next(self._numbers)}"
        peers = await self.rpc.peer(credentials=credentials)
        store = FeedStore(
            folder / "feeds.db", credentials, clock=self.clock, inline=self.inline, **options
        )
        await store.open()
        vault = None
        if role is Role.AUTH:
            vault = Vault(store, on_error=self.errors.append)
            await vault.open()
        replicator = self.replicator(
            peers,
            store,
            role,
            clock=self.clock,
            rng=Random(7),
            config=self.config,
            vault=vault,
            on_error=self.errors.append,
        )
        await replicator.start()
        node = Node(role, peers, store, vault, replicator)
        self.nodes.append(node)
        return node

    async def stop(self, node):
        """End a node's life."""
        self.nodes.remove(node)
        await node.replicator.stop()
        if node.vault is not None:
            await node.vault.close()
        await asyncio.wait_for(node.peers.stop(), 20)
        with contextlib.suppress(ValueError):
            self.rpc.peers.remove(node.peers)
        await node.store.close()

    async def pass_time(self, seconds, step=0.1):
        """Move the clock on."""
        await self.rpc.pass_time(seconds, step)

    async def wait(self, condition, seconds=5.0, step=0.1):
        """Move the clock on until an awaitable condition is true."""
        for _ in range(round(seconds / step)):
            if await condition():
                return
            await self.rpc.pass_time(step, step)
        assert await condition(), f"not within {seconds} s"


__all__ = ["FeedWorld", "Node", "until"]
