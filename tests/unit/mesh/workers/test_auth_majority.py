"""Three auth workers: one writes, the others take over with everything that was answered."""

import random
import sqlite3

import pytest
from mesh_auth import EMAIL, PASSWORD, QUICK, Member, Place, failed
from mesh_leadership import History, Party
from mesh_rpc import caught
from mesh_trust import CERTIFICATE_S

from tinkex.errors import AuthenticationError, NoQuorumError, StorageError, UnsupportedError
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.accounts.events import encode_events
from tinkex.mesh.api import auth
from tinkex.mesh.api.auth import AuthApi
from tinkex.mesh.feeds.leadership import LED
from tinkex.mesh.feeds.policy import ACCOUNTS_PRIVATE
from tinkex.mesh.feeds.pruning import prune
from tinkex.mesh.feeds.view import View
from tinkex.mesh.roles import Role
from tinkex.mesh.trust.network import change_members, check_network, found_network
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
        await self.serve(node, self.encoded, self.leaderships[node.peer_id])

    async def serve(self, node, encoded, leadership):
        trust, credentials = self.rpc.trust, node.peers.credentials
        place = Place(
            check_network(encoded, network=trust.network),
            encoded,
            credentials.certificate,
            self.clock.now() + CERTIFICATE_S,
        )
        known = NetworkView(node.store, place.network, encoded, Revocations(), on_error=failed)
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
            leadership=leadership,
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

    async def begin_alone(self):
        """Start one auth worker, which is the only one that its network names."""
        first = await self.node()
        self.lives[first.peer_id] = (first.peers.credentials, first.store.database.path.parent)
        self.encoded = found_network(self.rpc.trust.root, "home", members=[first.peer_id])
        await self.serve(first, self.encoded, None)
        return first

    async def grow(self):
        """Start two more, and the first anew: the root has named three."""
        nodes = [await self.node(), await self.node()]
        for node in nodes:
            self.lives[node.peer_id] = (node.peers.credentials, node.store.database.path.parent)
        self.members = list(self.lives)
        self.encoded = change_members(self.rpc.trust.root, self.encoded, self.members)
        for node in nodes:
            await self.join(node)
        await self.revive(self.members[0])

    def others(self, leader):
        return [node for node in self.nodes if node.role is Role.AUTH and node is not leader]

    async def ask(self, node, method, request):
        return await self.while_time_passes(
            self.gateway.peers.call(node.contact, method, request, timeout_s=30)
        )


def disk_full(_):
    raise sqlite3.OperationalError("database or disk is full")


async def test_a_leader_whose_disk_is_full_gives_way_to_those_who_can_write(tmp_path):
    async with AuthParty(tmp_path) as party:
        await party.begin()
        party.gateway = await party.node(Role.GATEWAY)
        leader, _ = await party.elected()
        await party.pass_time(1)
        register = auth.Register(EMAIL, PASSWORD, source=b"client")
        leader.store.database.commit = disk_full
        error = await caught(party.ask(leader, AuthApi.rpc_register, register))
        assert isinstance(error, StorageError)
        await party.pass_time(1)
        assert party.leaders() == []
        second, _ = await party.elected()
        assert second is not leader
        await party.pass_time(1)
        await party.ask(second, AuthApi.rpc_register, register)
        await party.pass_time(10)
        assert party.leaders() == [second]
        del leader.store.database.commit


async def test_a_leader_whose_disk_is_full_stays_where_the_others_are_too_few(tmp_path):
    async with AuthParty(tmp_path) as party:
        await party.begin()
        party.gateway = await party.node(Role.GATEWAY)
        leader, leadership = await party.elected()
        await party.pass_time(1)
        await party.stop(party.others(leader)[0])
        leader.store.database.commit = disk_full
        register = auth.Register(EMAIL, PASSWORD, source=b"client")
        await caught(party.ask(leader, AuthApi.rpc_register, register))
        await party.pass_time(5)
        assert leadership.is_leader
        del leader.store.database.commit
        await party.ask(leader, AuthApi.rpc_register, register)


async def test_another_auth_worker_takes_over_with_all_that_was_answered(tmp_path):
    async with AuthParty(tmp_path) as party:
        await party.begin()
        party.gateway = await party.node(Role.GATEWAY)
        leader, _ = await party.elected()
        await party.pass_time(1)
        register = auth.Register(EMAIL, PASSWORD, source=b"client")
        for node in party.others(leader):
            error = await caught(party.ask(node, AuthApi.rpc_register, register))
            assert isinstance(error, NoQuorumError)
        await party.ask(leader, AuthApi.rpc_register, register)
        login = auth.Login(EMAIL, PASSWORD, source=b"client")
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
        wrong = auth.Login(EMAIL, "wrong horse battery", source=b"client")
        assert isinstance(
            await caught(party.ask(second, AuthApi.rpc_login, wrong)), AuthenticationError
        )
        # one of three is no majority
        (third,) = party.others(second)
        await party.stop(third)
        error = await caught(party.ask(second, AuthApi.rpc_login, login))
        assert isinstance(error, NoQuorumError)


async def test_accounts_that_were_pruned_are_there_when_a_lone_auth_worker_gets_company(tmp_path):
    async with AuthParty(tmp_path) as party:
        party.gateway = await party.node(Role.GATEWAY)
        first = await party.begin_alone()
        made = await party.ask(
            first, AuthApi.rpc_register, auth.Register(EMAIL, PASSWORD, source=b"c")
        )
        # the view that `Party` has of every store
        history = View(first.store, LED, History, name="history", by_author=False, on_error=failed)
        await history.open()
        assert await prune(first.store, ACCOUNTS_PRIVATE, clock=party.clock) is not None
        await history.close()
        assert await first.holds(ACCOUNTS_PRIVATE) == []
        lease = auth.LeaseRequest(made.account_id, "", 100, party.clock.now())
        await party.ask(first, AuthApi.rpc_lease, lease)
        await party.stop(first)
        await party.grow()

        for _ in range(2):  # whoever leads first, then another without it
            leader, _ = await party.elected(seconds=40)
            login = auth.Login(EMAIL, PASSWORD, source=b"c")
            assert (await party.ask(leader, AuthApi.rpc_login, login)).access_token
            await party.ask(leader, AuthApi.rpc_lease, lease)
            await party.pass_time(6)
            books = {encode_events(w.book.state.dump()) for w, _ in party.workers.values()}
            assert len(books) == 1
            await party.stop(leader)
        (left,) = party.others(None)
        worker, _ = party.workers[left.peer_id]
        assert worker.book.ledger.leases == 3
        with pytest.raises(UnsupportedError, match="one author's"):
            await prune(left.store, ACCOUNTS_PRIVATE, clock=party.clock)
