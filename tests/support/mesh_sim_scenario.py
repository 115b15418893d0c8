"""One life of a simulated mesh: people use it, everything goes wrong, it heals, it is examined."""

from __future__ import annotations

import asyncio
import hashlib
from random import Random

from mesh_sim_chaos import KINDS, Chaos
from mesh_sim_checks import (
    LENT_S,
    RENEWED_S,
    SETTLED_WITHIN_S,
    busy,
    check_accounts,
    check_permits,
    check_revoked,
    check_tokens,
    check_usage,
    different_heads,
    wrong_lookups,
)
from mesh_sim_users import User
from mesh_sim_world import World

USERS_WAIT_S = 240.0
ON_ITS_WAY_S = 2.0


class Scenario:
    """A world, its people and its faults, all drawn from one seed.

    Args:
        seed: of everything.
        folder: for the workers' files.
        chaos_s: how long things go wrong.
        every_s: between two faults, in the mean; drawn where it is not given.
        kinds: of faults, with their weights.
        shape: of the `World`; drawn where it is not given.
    """

    def __init__(self, seed, folder, *, chaos_s=20.0, every_s=None, kinds=KINDS, **shape):
        rng = Random(f"{seed}/shape")
        drawn = {
            "auths": rng.choice([1, 1, 3]),
            "gateways": rng.choice([2, 3]),
            "processors": rng.choice([2, 3, 4]),
            "clients": rng.choice([1, 2]),
            "auth": {"default_quota_tokens": rng.choice([600, 2000, 20_000])},
        }
        self.world = World(seed, folder, **{**drawn, **shape})
        drawn_s = rng.uniform(1.0, 5.0)
        self.chaos = Chaos(self.world, every_s=every_s or drawn_s, kinds=kinds)
        self.chaos_s = chaos_s
        nodes = self.world.clients
        self.users = [
            User(self.world, f"user-{n}", nodes[n % len(nodes)])
            for n in range(rng.randint(len(nodes), 4))
        ]

    async def run(self):
        """Live through it; what happened, in one hash."""
        async with self.world as world:
            until = world.clock.monotonic() + self.chaos_s + 8.0
            using = [asyncio.create_task(user.use(until)) for user in self.users]
            try:
                await world.clock.sleep(3.0)
                await self.chaos.run(self.chaos_s)
                await self.chaos.over()
                async with asyncio.timeout(USERS_WAIT_S):
                    await asyncio.gather(*using)
                await self.examine()
            except BaseException as error:
                error.add_note("\n".join(map(str, self.chaos.done)))
                raise
            finally:
                for task in using:
                    task.cancel()
            fingerprint = self.fingerprint()
            await self.end()
            return fingerprint

    async def examine(self):
        """Check everything that must be true once the mesh has healed."""
        world, healed_at = self.world, self.world.clock.monotonic()
        await self.within(SETTLED_WITHIN_S, self.unsettled)
        check_tokens(self.users)
        check_permits(world)
        await check_accounts(self.users)
        await self.within(LENT_S, self.lent)
        for user in self.users:
            if user.key is not None:
                check_usage(user, await self.report(user))
        signed_up = [user for user in self.users if user.key is not None]
        assert signed_up, "somebody could use the mesh"
        await check_revoked(world, signed_up[0])
        await self.stays_settled(healed_at)
        world.reports.check()

    async def stays_settled(self, healed_at):
        """See that it is right still when everything was renewed, and nothing old is left.

        Only what a worker has just written may be on its way.
        """
        since = self.world.clock.monotonic() - healed_at
        await self.world.clock.sleep(max(0.0, RENEWED_S - since))
        left = busy(self.world) or await wrong_lookups(self.world)
        assert not left, left
        await self.within(ON_ITS_WAY_S, lambda: different_heads(self.world))

    async def within(self, seconds, left):
        """Wait until nothing is left."""
        end = self.world.clock.monotonic() + seconds
        while found := await left():
            assert self.world.clock.monotonic() < end, found
            await self.world.clock.sleep(1.0)

    async def unsettled(self):
        """What is not yet as it must be a while after healing."""
        if left := busy(self.world):
            return "in progress", left
        if left := await wrong_lookups(self.world):
            return "lookups", left
        if left := await different_heads(self.world):
            return "feeds", left
        return None

    async def lent(self):
        """Whose tokens somebody still holds."""
        users = [user for user in self.users if user.key is not None]
        left = [user.name for user in users if (await self.report(user)).reserved_tokens]
        return ("lent", left) if left else None

    async def report(self, user):
        return await user.node.inside(user.mesh().usage())

    async def end(self):
        """Stop every worker in good order: nothing of it is left."""
        world = self.world
        for node in [*world.clients, *world.gateways, *world.processors, *world.auths]:
            assert await node.stop() == [], node.name

    def fingerprint(self):
        """Of all that was delivered, all that people saw, and all that went wrong."""
        seen = [
            (one.at, one.ended, one.state, one.request_id, one.tokens, type(one.error).__name__)
            for user in self.users
            for one in user.asked
        ]
        content = repr((self.world.network.fingerprint, seen, self.chaos.done))
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def summary(self):
        """Say in one line what was seen."""
        asked = [one for user in self.users for one in user.asked]
        states = {
            s: sum(one.state == s for one in asked) for s in ("done", "failed", "left", "open")
        }
        faults = sum(1 for _, what, *_ in self.chaos.done if what not in {"back", "heal", "go on"})
        return {**states, "faults": faults, "served": self.world.watch.served}
