"""Three auth workers: one writes, the others take over with everything that was answered."""

import random

from mesh_auth import EMAIL, PASSWORD, QUICK, Member, Place, failed
from mesh_leadership import Party
from mesh_rpc import caught
from mesh_trust import CERTIFICATE_S

from tinkex.errors import AuthenticationError, NoQuorumError
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.api import auth
from tinkex.mesh.api.auth import AuthApi
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.network import check_network, found_network
from tinkex.mesh.trust.revocations import Revocations
from tinkex.mesh.workers.auth import AuthWorker
from tinkex.mesh.workers.public_accounts import NetworkView
from tinkex.testing.discovery import MemoryDiscovery


class AuthParty(Party):
    """Three auth workers, and a gateway that asks whichever leads."""

    def __init__(self, folder):
        super().__init__(folder)
        self.board = MemoryDiscovery(clock=self.clock)
        self.workers = {}
        self.encoded = b""

    async def join(self, node):
        trust = self.rpc.trust
        if not self.encoded:
            self.encoded = found_network(trust.root, "home", members=self.members)
        await super().join(node)
        credentials = node.peers.credentials
        place = Place(
            check_network(self.encoded, network=trust.network),
            self.encoded,
            credentials.certificate,
            self.clock.now() + CERTIFICATE_S,
        )
        known = NetworkView(node.store, place.network, self.encoded, Revocations(), on_error=failed)
        await known.open()
        certificate = trust.peer(Role.AUTH, credentials.key_pair).certificate
        member = Member(
            credentials.key_pair,
            place,
            node.peers,
            self.board.member(node.peers.contact, certificate),
            node.store,
            node.vault,
            known,
            self.clock,
        )
        worker = AuthWorker(
            member,
            AuthConfig(password_memory_kib=QUICK),
            leadership=self.leaderships[node.peer_id],
            random=random.Random(node.peer_id.raw).randbytes,
        )
        await worker.start()
        self.workers[node.peer_id] = (worker, known)

    async def stop(self, node):
        if node.peer_id in self.workers:
            worker, known = self.workers.pop(node.peer_id)
            await worker.stop()
            await known.close()
        await super().stop(node)

    def others(self, leader):
        return [node for node in self.nodes if node.role is Role.AUTH and node is not leader]

    async def ask(self, node, method, request):
        return await self.while_time_passes(
            self.gateway.peers.call(node.contact, method, request, timeout_s=30)
        )


async def test_another_auth_worker_takes_over_with_all_that_was_answered(tmp_path):
    async with AuthParty(tmp_path) as party:
        await party.begin()
        party.gateway = await party.node(Role.GATEWAY)
        leader, _ = await party.elected()
        await party.pass_time(1)
        register = auth.Register(EMAIL, PASSWORD, b"client")
        for node in party.others(leader):
            error = await caught(party.ask(node, AuthApi.rpc_register, register))
            assert isinstance(error, NoQuorumError)
        await party.ask(leader, AuthApi.rpc_register, register)
        login = auth.Login(EMAIL, PASSWORD, b"client")
        session = await party.ask(leader, AuthApi.rpc_login, login)
        key = await party.ask(
            leader,
            AuthApi.rpc_create_key,
            auth.CreateKey(access_token=session.access_token, name="laptop"),
        )
        await party.stop(leader)
        second, _ = await party.elected()
        await party.pass_time(1)
        again = await party.ask(second, AuthApi.rpc_login, login)
        listed = await party.ask(
            second, AuthApi.rpc_list_keys, auth.ListKeys(access_token=again.access_token)
        )
        assert [each.key_id for each in listed.keys] == [key.info.key_id]
        wrong = auth.Login(EMAIL, "wrong horse battery", b"client")
        assert isinstance(
            await caught(party.ask(second, AuthApi.rpc_login, wrong)), AuthenticationError
        )
        # one of three is no majority
        (third,) = party.others(second)
        await party.stop(third)
        error = await caught(party.ask(second, AuthApi.rpc_login, login))
        assert isinstance(error, NoQuorumError)
