"""An auth worker, and gateways and guests that call it, over memory links."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import msgspec
from mesh_rpc import World

from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.api import auth
from tinkex.mesh.api.auth import AuthApi
from tinkex.mesh.feeds.store import FeedStore
from tinkex.mesh.feeds.vault import Vault
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.peers import Credentials
from tinkex.mesh.trust.invitations import InvitedTo, invite
from tinkex.mesh.trust.network import NetworkInfo, check_network, found_network
from tinkex.mesh.trust.revocations import Revocations
from tinkex.mesh.usage import encode_usage
from tinkex.mesh.workers.auth import AuthWorker
from tinkex.mesh.workers.public_accounts import NetworkView
from tinkex.passwords import Passwords
from tinkex.testing.discovery import MemoryDiscovery

EMAIL, PASSWORD = "ann@example.org", "correct horse battery"
QUICK = 64
"""KiB of a password hash: enough for the form, not for an attacker."""


@dataclass
class Place:
    network: NetworkInfo
    network_encoded: bytes
    certificate: bytes
    expires_at: float


def failed(error):
    raise AssertionError from error


@dataclass
class Member:
    key_pair: KeyPair
    membership: Place
    peers: object
    discovery: object
    feeds: FeedStore
    vault: Vault
    known: NetworkView
    clock: object
    word: object = None

    def root_word(self):
        return self.word

    def adopt(self, certificate):
        raise AssertionError("only whole workers do")


def raised(error):
    raise error


class CountingPasswords(Passwords):
    """Counts what costs time."""

    def __init__(self):
        super().__init__(memory_kib=QUICK)
        self.hashed = self.compared = 0

    def hash(self, password):
        self.hashed += 1
        return super().hash(password)

    def matches(self, stored, password):
        self.compared += 1
        return super().matches(stored, password)


@dataclass
class AuthWorld(World):
    """One auth worker at a time, over one data folder, and a gateway that joined by invitation."""

    path: object = None
    settings: dict = field(default_factory=dict)
    members: tuple = ()

    def __post_init__(self):
        super().__post_init__()
        self.root = self.trust.root
        self.board = MemoryDiscovery(clock=self.clock)
        self.key_pair = KeyPair.generate()
        self.passwords = CountingPasswords()
        self.random = random.Random(7)
        self.encoded = found_network(
            self.root, "home", members=[self.key_pair.peer_id, *self.members]
        )
        self.certificate = self.trust.peer(Role.AUTH, self.key_pair).encoded
        self.worker = None

    async def __aenter__(self):
        await self.start_auth()
        self.gateway = await self.joined(Role.GATEWAY)
        return self

    async def __aexit__(self, *error):
        await self.stop_auth()
        await super().__aexit__(*error)

    async def start_auth(self, **options):
        revocations = Revocations()
        credentials = Credentials(
            self.key_pair,
            self.trust.network,
            self.trust.roots,
            self.certificate,
            revocations.is_revoked,
        )
        self.feeds = FeedStore(self.path / "feeds.db", credentials, clock=self.clock, inline=True)
        await self.feeds.open()
        self.vault = Vault(self.feeds, on_error=failed)
        await self.vault.open()
        self.auth_peers = await self.peer(credentials=credentials)
        self.peers.remove(self.auth_peers)
        certificate = self.trust.peer(Role.AUTH, self.key_pair).certificate
        place = Place(
            check_network(self.encoded, network=self.trust.network),
            self.encoded,
            self.certificate,
            certificate.expires_at,
        )
        discovery = self.board.member(self.auth_peers.contact, certificate)
        self.known = NetworkView(
            self.feeds, place.network, place.network_encoded, revocations, on_error=raised
        )
        await self.known.open()
        self.member = member = Member(
            self.key_pair,
            place,
            self.auth_peers,
            discovery,
            self.feeds,
            self.vault,
            self.known,
            self.clock,
        )
        config = AuthConfig(**{"password_memory_kib": QUICK, **self.settings})
        self.worker = AuthWorker(member, config, random=self.random.randbytes, **options)
        self.worker.people._hashing._passwords = self.passwords
        await self.worker.start()

    async def stop_auth(self):
        await self.worker.stop()
        await self.auth_peers.stop()
        await self.vault.close()
        await self.known.close()
        await self.feeds.close()

    async def restart(self, **options):
        await self.stop_auth()
        await self.start_auth(**options)

    # --- joining --------------------------------------------------------------

    def invitation(self, role=Role.GATEWAY, **options):
        contacts = [InvitedTo(self.key_pair.peer_id.raw, self.auth_peers.contact.addresses)]
        return invite(
            self.root, self.encoded, role, contacts=contacts, now=self.clock.now(), **options
        )

    async def join(self, invitation, guest, peer=None):
        request = auth.Join(
            invitation=msgspec.msgpack.encode(invitation.grant),
            proof=invitation.prove((peer or guest).peer_id),
        )
        return await self.call(AuthApi.rpc_join, request, guest)

    async def joined(self, role, **options):
        """A peer that used an invitation."""
        key_pair = KeyPair.generate()
        network, roots = self.trust.network, self.trust.roots
        guest = await self.peer(credentials=Credentials(key_pair, network, roots))
        joined = await self.join(self.invitation(role, **options), guest)
        guest.renew(Credentials(key_pair, network, roots, joined.certificate))
        guest.key_pair = key_pair
        return guest

    # --- calling --------------------------------------------------------------

    async def call(self, method, request, peers=None):
        return await (peers or self.gateway).call(
            self.auth_peers.contact, method, request, timeout_s=30
        )

    async def register(self, email=EMAIL, password=PASSWORD, source=b"client"):
        return await self.call(AuthApi.rpc_register, auth.Register(email, password, source=source))

    async def log_in(self, email=EMAIL, password=PASSWORD, source=b"client"):
        return await self.call(AuthApi.rpc_login, auth.Login(email, password, source=source))

    async def new_key(self, session, name="laptop", **terms):
        request = auth.CreateKey(access_token=session.access_token, name=name, **terms)
        return await self.call(AuthApi.rpc_create_key, request)

    async def usage(self, credential, since=0.0, before=None):
        return await self.call(AuthApi.rpc_usage, auth.UsageQuery(credential, since, before))

    async def lease(self, account_id, key_id="", tokens=100, gateway=None, skew_s=0.0):
        now = self.clock.now() + skew_s
        request = auth.LeaseRequest(account_id, key_id, tokens, now)
        return await self.call(AuthApi.rpc_lease, request, gateway)

    # --- usage feeds ----------------------------------------------------------

    async def gateway_feeds(self, gateway=None):
        """A gateway's own feeds."""
        gateway = gateway or self.gateway
        feeds = FeedStore(
            self.path / f"{gateway.peer_id.short}.db",
            gateway.credentials,
            clock=self.clock,
            inline=True,
        )
        await feeds.open()
        return feeds

    async def replicate(self, feeds, *entries):
        """Write usage entries as a gateway, and bring its feed to the auth worker."""
        own = feeds.own("usage")
        for entry in entries:
            await own.append(encode_usage(entry))
        for head, _ in await feeds.heads("usage"):
            run = await feeds.run(head.chain, after=-1, limit=1000)
            await self.feeds.ingest([entry.encoded() for entry in run])
