"""Certificates are renewed by who has them, and by the root where nobody else may."""

from dataclasses import replace
from random import Random

import msgspec
import pytest
from mesh_auth import AuthWorld
from mesh_founding import PASSPHRASE, SOMEBODY, Plain, Xor
from mesh_rpc import caught, settled

from tinkex.errors import ConfigurationError, TrustError
from tinkex.mesh.api.auth import AuthApi, Renew
from tinkex.mesh.config import MeshConfig
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.certificates import Chain, RoleCertificate, check_certificate
from tinkex.mesh.trust.network import shut_out_peer
from tinkex.mesh.workers.entry import enter_network
from tinkex.mesh.workers.folder import WorkerFolder
from tinkex.mesh.workers.founding import Founder, found
from tinkex.mesh.workers.local import LocalNetwork
from tinkex.mesh.workers.machine import Machine
from tinkex.mesh.workers.renewal import Renewal
from tinkex.mesh.workers.root_word import RootWord, take_word
from tinkex.testing.clock import VirtualClock

HOUR = 3600.0


class Renewed:
    """A member that keeps itself certified."""

    def __init__(self, world, peers):
        self.world, self.peers = world, peers
        self.held = self.checked(peers.credentials.certificate)
        self.discovery = world.board.member(peers.contact, self.held)
        self.renewal = Renewal(
            peers,
            self.discovery,
            held=lambda: self.held,
            adopt=self.adopt,
            clock=world.clock,
            rng=Random(3),
        )

    def checked(self, encoded) -> RoleCertificate:
        trust = self.world.trust
        return check_certificate(
            encoded, network=trust.network, roots=trust.roots, now=self.world.clock.now()
        )

    def adopt(self, encoded):
        given = self.checked(encoded)
        if given.expires_at > self.held.expires_at:
            self.held = given
            self.peers.renew(replace(self.peers.credentials, certificate=encoded))


@pytest.fixture
async def home(tmp_path):
    async with AuthWorld(path=tmp_path) as world:
        yield world


async def test_member_stays_certified_for_as_long_as_an_auth_worker_is(home):
    peers = await home.joined(Role.PROCESSOR, certificate_s=HOUR)
    member = Renewed(home, peers)
    first = member.held
    for _ in range(40):
        home.clock.advance(HOUR / 2)
        if home.clock.now() >= member.renewal.due_at:
            assert await member.renewal.renew()
        assert member.held.expires_at > home.clock.now()
    assert (member.held.role, member.held.peer) == (first.role, first.peer)
    assert member.held.grant_key == first.grant_key
    assert member.renewal.renewed >= 15
    issuer = msgspec.msgpack.decode(member.held.encoded, type=Chain).issuer
    assert issuer == msgspec.msgpack.decode(home.certificate, type=Chain)


async def test_nobody_is_certified_for_longer_than_the_auth_worker_itself(home):
    joined = Renewed(home, await home.joined(Role.PROCESSOR, certificate_s=1000 * HOUR))
    assert joined.held.expires_at == home.member.membership.expires_at
    home.clock.advance(20 * HOUR)
    assert not await joined.renewal.renew()
    assert (joined.renewal.failed, joined.renewal.renewed) == (1, 0)


async def test_member_asks_when_two_thirds_are_over_and_again_while_nobody_answers(home):
    member = Renewed(home, await home.joined(Role.CLIENT, certificate_s=HOUR))
    home.board.reachable = False
    task = home.worker._tasks.spawn(member.renewal.run(), name="renew")
    for _ in range(3 * 60 // 4):
        home.clock.advance(60)
        await settled()
    assert member.renewal.failed >= 1
    assert member.renewal.renewed == 0
    home.board.reachable = True
    for _ in range(5):
        home.clock.advance(60)
        await settled()
    task.cancel()
    assert member.renewal.renewed == 1
    assert member.held.expires_at > home.clock.now() + HOUR / 2


async def test_shut_out_member_is_not_renewed_nor_one_whose_invitation_is_not_known(home):
    members = [Renewed(home, await home.joined(Role.GATEWAY)) for _ in range(2)]
    by_log, by_root = (member.held for member in members)
    await home.worker.network.revoke(by_log.peer)
    home.encoded = shut_out_peer(home.root, home.encoded, by_root.peer)
    await home.worker.network.tell(home.encoded)
    for held in (by_log, by_root):
        with pytest.raises(TrustError, match="shut out"):
            home.worker.network.renew(held)
    stranger = home.trust.peer(Role.GATEWAY).certificate
    with pytest.raises(TrustError, match="no invitation"):
        home.worker.network.renew(stranger)


async def test_auth_worker_gets_what_the_root_signed_and_nothing_else(home):
    other = home.trust.peer(Role.AUTH)
    peers = await home.peer(credentials=home.credentials(Role.AUTH, other.key_pair))
    error = await caught(home.call(AuthApi.rpc_renew, Renew(), peers))
    assert isinstance(error, TrustError)
    assert "tinkex mesh renew" in str(error)
    home.trust.now = home.clock.now() + HOUR
    home.clock.advance(HOUR)
    later = home.trust.peer(Role.AUTH, other.key_pair)
    home.member.word = RootWord(home.encoded, (later.encoded,))
    given = await home.call(AuthApi.rpc_renew, Renew(), peers)
    assert given.certificate == later.encoded


async def test_root_that_shuts_a_peer_out_is_heeded_within_a_second_and_written_down(home):
    peer = (await home.joined(Role.GATEWAY)).key_pair.peer_id
    home.encoded = shut_out_peer(home.root, home.encoded, peer)
    home.member.word = RootWord(home.encoded)
    await settled()
    home.clock.advance(1.0)
    await settled()
    assert home.auth_peers.credentials.is_revoked(peer)
    for _ in range(200):
        if peer.raw in home.worker.book.state.revoked_peers:
            break
        await settled()
    assert peer.raw in home.worker.book.state.revoked_peers
    assert home.worker.network.undescribed is None


def founded(tmp_path, clock):
    found(tmp_path / "net", "ours", PASSPHRASE, clock=clock, cipher=Xor())
    return Founder(tmp_path / "net", PASSPHRASE, cipher=Xor())


def test_founder_certifies_every_auth_worker_anew_even_after_the_end(tmp_path):
    clock = VirtualClock()
    founder, other = founded(tmp_path, clock), KeyPair(bytes([9]) * 32).peer_id
    founder.invite(Role.AUTH, contacts=[], now=clock.now(), peer=str(other))
    folder = WorkerFolder(tmp_path / "net" / "auth")
    clock.advance(400 * 24 * HOUR)
    with pytest.raises(TrustError, match="expired"):
        take_word(folder, now=clock.now())
    until = founder.renew(now=clock.now())
    assert not founder.heard
    membership = folder.membership(now=clock.now())
    assert (membership.expires_at, membership.role) == (until, Role.AUTH)
    with folder.locked():
        assert founder.renew(now=clock.now(), certificate_s=500 * 24 * HOUR) > until
        assert founder.heard
    assert take_word(folder, now=clock.now()).expires_at > until


async def test_worker_whose_certificate_ended_says_how_to_come_back_and_may_join_anew(tmp_path):
    clock = VirtualClock()
    founder = founded(tmp_path, clock)
    text = founder.invite(Role.GATEWAY, contacts=[SOMEBODY], now=clock.now())
    clock.advance(400 * 24 * HOUR)
    config, machine = MeshConfig(data_dir=tmp_path / "net" / "auth"), Machine(clock=clock)
    with pytest.raises(TrustError, match="run `tinkex mesh renew`"):
        await enter_network(config, Role.AUTH, invitation=None, machine=machine)
    with pytest.raises(TrustError, match="invitation has expired"):
        await enter_network(config, Role.AUTH, invitation=text, machine=machine)
    (config.data_dir / "root-word").write_bytes(b"garbage")
    with pytest.raises(ConfigurationError, match="is damaged"):
        await enter_network(config, Role.AUTH, invitation=None, machine=machine)


def test_network_in_one_process_has_its_root_certify_its_auth_worker_in_time(tmp_path):
    clock = VirtualClock()
    network = LocalNetwork(MeshConfig(data_dir=tmp_path), processors=1, clock=clock, cipher=Plain())
    passphrase, auth = network._made(), WorkerFolder(tmp_path / "auth")
    before = auth.membership(now=clock.now())
    assert network._renewed(passphrase) is None
    clock.advance(0.7 * (before.expires_at - before.not_before))
    assert network._renewed(passphrase) is not None
    assert auth.membership(now=clock.now()).not_before == clock.now()
