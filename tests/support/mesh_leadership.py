"""Auth workers that choose which of them writes, over memory links and a virtual clock."""

from __future__ import annotations

import asyncio
import itertools
from random import Random

from mesh_feeds import KeyValues
from mesh_replication import FeedWorld

from tinkex.mesh.feeds.leadership import LED, Leadership
from tinkex.mesh.feeds.view import View
from tinkex.mesh.transport.base import Contact


class History(KeyValues):
    def fold(self, entry):
        self.values["all"] = self.values.get("all", b"") + b" " + entry.payload


class Party(FeedWorld):
    """Auth workers that choose a leader."""

    def __init__(self, folder, count=3):
        super().__init__(folder)
        self.count = count
        self.leaderships = {}
        self.views = {}
        self.lives = {}
        self.seeds = itertools.count()
        """Of each member another: equal ones would want to lead at one moment, for ever."""

    async def begin(self):
        for _ in range(self.count):
            node = await self.node()
            self.lives[node.peer_id] = (node.peers.credentials, node.store.database.path.parent)
        self.members = list(self.lives)
        for node in list(self.nodes):
            await self.join(node)
        return self

    async def join(self, node):
        for other in self.nodes:
            if other is not node:
                node.follow(other)
                other.follow(node)
        leadership = Leadership(
            node.peers,
            node.store,
            node.replicator,
            members=lambda: self.members,
            contact_of=self.contact_of,
            clock=self.clock,
            rng=Random(next(self.seeds)),
            on_error=self.errors.append,
        )
        await leadership.start()
        view = View(
            node.store,
            LED,
            History,
            name="history",
            by_author=False,
            only=leadership,
            on_error=self.errors.append,
        )
        await view.open()
        leadership.on_change(view.refold)
        self.leaderships[node.peer_id] = leadership
        self.views[node.peer_id] = view

    def contact_of(self, peer_id):
        for node in self.nodes:
            if node.peer_id == peer_id:
                return node.contact
        return Contact(peer_id)

    async def stop(self, node):
        leadership = self.leaderships.pop(node.peer_id, None)
        if leadership is not None:
            await self.views.pop(node.peer_id).close()
            await leadership.stop()
        await super().stop(node)

    async def revive(self, peer_id):
        credentials, folder = self.lives[peer_id]
        node = await self.node(credentials=credentials, folder=folder)
        await self.join(node)
        return node

    def leaders(self):
        return [
            node
            for node in self.nodes
            if node.peer_id in self.leaderships and self.leaderships[node.peer_id].is_leader
        ]

    async def elected(self, seconds=15):
        for _ in range(seconds * 10):
            if self.leaders():
                break
            await self.pass_time(0.1)
        leaders = self.leaders()
        assert len(leaders) == 1, f"{len(leaders)} leaders after {seconds} s at most"
        (leader,) = leaders
        return leader, self.leaderships[leader.peer_id]

    async def while_time_passes(self, awaitable):
        task = asyncio.ensure_future(awaitable)
        while not task.done():
            await self.pass_time(0.1)
        return await task

    async def history(self, node):
        view = self.views[node.peer_id]
        await view.current()
        return view.state().values.get("all", b"").decode().split()
