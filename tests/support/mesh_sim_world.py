"""Whole workers of a mesh in one simulated network: started, killed, restarted with their files.

Each is a process of its own: killed, nothing of it goes on, not even what would tidy up. A killed
worker's folder is copied as it is at that moment, for the life that follows: its locks and open
files stay with the dead, as a kernel would see to.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from random import Random

from mesh_sim_source import ScriptedBackend, Watch, WatchedWorker

from tinkex import errors
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.config import MeshConfig, format_contact
from tinkex.mesh.feeds.config import ReplicationConfig
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.transport.base import Contact
from tinkex.mesh.trust.invitations import InvitedTo, invite
from tinkex.mesh.trust.network import found_network
from tinkex.mesh.workers.client import ClientConfig
from tinkex.mesh.workers.entry import enter_network
from tinkex.mesh.workers.folder import KEY_NAME
from tinkex.mesh.workers.gateway import GatewayConfig
from tinkex.mesh.workers.machine import Machine
from tinkex.mesh.workers.serving.admission import AdmissionConfig
from tinkex.testing.network import CALM, SimNetwork
from tinkex.testing.simulation import SimulatedClock, SimulatedProcess


class Node:
    """One worker, in all its lives."""

    def __init__(self, world, name, role, *, build=None):
        self.world, self.name, self.role = world, name, role
        self.key_pair = KeyPair(Random(f"{world.seed}/{name}/key").randbytes(32))
        self.contact = Contact(self.key_pair.peer_id, (f"memory:{self.key_pair.peer_id}",))
        self.clock = SimulatedClock()
        self.build = build
        self.invitation = None
        self.life = 0
        self.whole = None
        self.process = None
        self.died = asyncio.Event()
        self._changing = asyncio.Lock()

    @property
    def peer_id(self):
        return self.key_pair.peer_id

    @property
    def folder(self):
        return self.world.folder / f"{self.name}-{self.life}"

    @property
    def member(self):
        return self.whole.member

    @property
    def inner(self):
        return self.whole.inner

    @property
    def up(self):
        return self.process is not None and not self.process.stopped and self.whole is not None

    async def start(self):
        async with self._changing:
            await self._start()

    async def _start(self):
        before, self.life = self.folder, self.life + 1
        if self.life > 1:
            shutil.copytree(before, self.folder)
        else:
            self.folder.mkdir(mode=0o700)
            (self.folder / KEY_NAME).touch(0o600)
            (self.folder / KEY_NAME).write_bytes(self.key_pair.seed)
        self.process = SimulatedProcess(f"{self.name}#{self.life}")
        self.whole = None
        self.died.clear()
        self.world.lives.append(self)
        await self.inside(self._begin())

    async def _begin(self):
        rng = Random(f"{self.world.seed}/{self.name}/{self.life}")
        machine = Machine(
            clock=self.clock,
            rng=Random(rng.random()),
            random=Random(rng.random()).randbytes,
            transport=lambda config, key_pair, bind, clock: self.world.network.transport(key_pair),
            inline=True,
        )
        others = [a.contact for a in self.world.auths if a is not self]
        config = MeshConfig(
            data_dir=self.folder,
            admin_host=None,
            bootstrap=tuple(format_contact(contact) for contact in others),
            **self.world.settings(self),
        )
        whole = await self._entered(config, machine)
        self.world.ghosts.append((self.process, whole))
        await whole.start()
        self.whole = whole

    async def _entered(self, config, machine):
        """Join, or be back."""
        build = self.build and self.build(self)
        return await enter_network(
            config, self.role, invitation=self.invitation, machine=machine, build=build
        )

    async def inside(self, work):
        """Do something in this process; None once it was killed."""
        doing = self.process.run(work)
        dying = asyncio.create_task(self.died.wait())
        try:
            await asyncio.wait({doing, dying}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            doing.add_done_callback(_nobody_asks)
            return None
        finally:
            dying.cancel()

    def kill(self, *, power=False):
        """End it as SIGKILL does, or the mains."""
        self.process.stop()
        self.world.network.crash(self.peer_id, power=power)
        self.died.set()

    async def stop(self, grace_s=5.0):
        """Stop it in good order; what is left of it, by name."""
        await self.inside(self.whole.stop(grace_s))
        return self.process.tasks


def _nobody_asks(task):
    """How what a killed process did ends, when its life is tidied up."""
    if not task.cancelled():
        task.exception()


class World:
    """A network of whole workers.

    Args:
        seed: everything is drawn from it.
        folder: of the workers' files.
        auths, gateways, processors, clients: how many.
        auth: settings of auth workers.
        pace_s: between two pieces of a processor, in the mean.
    """

    def __init__(
        self,
        seed,
        folder,
        *,
        auths=1,
        gateways=2,
        processors=2,
        clients=2,
        auth=None,
        weather=CALM,
        pace_s=0.05,
    ):
        self.seed, self.folder, self.pace_s = seed, folder, pace_s
        self.clock = SimulatedClock()
        self.network = SimNetwork(seed=seed, weather=weather)
        self.watch = Watch(self.clock.now)
        self._auth = {
            "password_memory_kib": 64,
            "lease_tokens": 256,
            "registrations_per_hour": 1000,
            **(auth or {}),
        }
        self.lives, self.ghosts = [], []
        self.auths = [Node(self, f"auth-{n}", Role.AUTH) for n in range(auths)]
        self.gateways = [Node(self, f"gateway-{n}", Role.GATEWAY) for n in range(gateways)]
        self.processors = [
            Node(self, f"processor-{n}", Role.PROCESSOR, build=self._processor)
            for n in range(processors)
        ]
        self.clients = [Node(self, f"client-{n}", Role.CLIENT) for n in range(clients)]
        self.reports = Reports()

    @property
    def nodes(self):
        return [*self.auths, *self.gateways, *self.processors, *self.clients]

    def settings(self, node):
        admission = AdmissionConfig(account_calls_per_minute=100_000)
        return {
            # Logs are pruned all the time: nothing that is checked may depend on when.
            "replication": ReplicationConfig(keep_entries=8, prune_entries=4, prune_check_s=2.0),
            "auth": AuthConfig(**self._auth),
            "gateway": GatewayConfig(admission=admission),
            "client": ClientConfig(host=None),
        }

    def _processor(self, node):
        async def build(member, _):
            rng = Random(f"{self.seed}/{node.name}/{node.life}/source")
            backend = node.backend = ScriptedBackend(node.clock, rng, pace_s=self.pace_s)
            return WatchedWorker(self.watch, member, backend, data_dir=member.folder.path)

        return build

    async def __aenter__(self):
        self.reports.attach()
        rng = Random(f"{self.seed}/founding")
        self.root = KeyPair(rng.randbytes(32))
        members = [node.peer_id for node in self.auths]
        self.encoded = found_network(self.root, "simulated", members=members)
        for node in self.auths:
            node.invitation = self._invitation(node, rng, peer=node.peer_id)
        await asyncio.gather(*(node.start() for node in self.auths))
        for node in [*self.processors, *self.gateways, *self.clients]:
            node.invitation = self._invitation(node, rng, peer=None)
            await node.start()
        return self

    def _invitation(self, node, rng, *, peer):
        made = invite(
            self.root,
            self.encoded,
            node.role,
            contacts=[InvitedTo(a.peer_id.raw, a.contact.addresses) for a in self.auths],
            now=self.clock.now(),
            peer=peer,
            secret=KeyPair(rng.randbytes(32)),
        )
        return made.text

    async def __aexit__(self, *_):
        self.reports.detach()
        self.network.heal()
        for process, whole in self.ghosts:
            if process.stopped:
                process.go_on()
            await process.run(whole.stop())

    async def until(self, condition, seconds, what):
        """Wait for something, so many seconds at most."""
        end = self.clock.monotonic() + seconds
        while not condition():
            assert self.clock.monotonic() < end, f"not within {seconds:g} s: {what}"
            await self.clock.sleep(0.1)


class Reports(logging.Handler):
    """What workers log of failures in the background; one that was not foreseen is our fault."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.told = []

    def emit(self, record):
        self.told.append(f"{record.name}: {record.getMessage()}")

    def check(self):
        """See that whatever failed, failed in a way that was foreseen."""
        known = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
        for line in self.told:
            words = set(re.findall(r"[A-Za-z]+Error", line))
            assert words <= known, line

    def attach(self):
        logging.getLogger("tinkex").addHandler(self)

    def detach(self):
        logging.getLogger("tinkex").removeHandler(self)
