"""Asking auth workers: one that does not answer is passed over, unless it may have done it."""

import asyncio

import pytest
from mesh_rpc import World

from tinkex.errors import APIStatusError, NoQuorumError
from tinkex.mesh.api.auth import AuthApi, ChangePassword, Done, Login, Logout, Register
from tinkex.mesh.api.gateway import MAY_BE_DONE
from tinkex.mesh.dht.records import Offer
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.service import methods_of
from tinkex.mesh.workers.serving.auth_calls import TIMEOUT_S, AuthCalls
from tinkex.testing.discovery import MemoryDiscovery


def auth_worker(answers):
    """An auth worker that answers everything with `Done` or an error, or nothing at all."""

    async def answer(self, request, call):
        if isinstance(answers, Exception):
            raise answers
        if not answers:
            await asyncio.Event().wait()
        return Done()

    names = [declared.__name__ for declared in methods_of(AuthApi).values()]
    return type("SomeAuth", (AuthApi,), dict.fromkeys(names, answer))()


@pytest.fixture
def first():
    """What the auth worker that is asked first answers."""
    return False


@pytest.fixture
async def calls(first):
    async with World() as world:
        discovery = MemoryDiscovery(clock=world.clock)
        for answers in (first, True):
            peers = await world.peer(Role.AUTH, auth_worker(answers))
            certificate = world.trust.peer(Role.AUTH, peers.credentials.key_pair).certificate
            discovery.put(Role.AUTH.value, Offer(), peers.contact, certificate)
        gateway = await world.peer(Role.GATEWAY)
        member = discovery.member(
            gateway.contact,
            world.trust.peer(Role.GATEWAY, gateway.credentials.key_pair).certificate,
        )
        yield world, AuthCalls(gateway, member, clock=world.clock)


async def test_worker_that_does_not_answer_is_passed_over(calls):
    world, auth = calls
    asking = asyncio.create_task(
        auth.ask(AuthApi.rpc_logout, Logout(access_token="t"), deadline=60.0)
    )
    await world.pass_time(TIMEOUT_S + 1, step=0.2)
    assert await asking == Done()
    # The one that answered is asked first from now on.
    again = auth.ask(AuthApi.rpc_logout, Logout(access_token="t"), deadline=60.0)
    assert await asyncio.wait_for(again, 5) == Done()


async def test_what_may_have_been_done_is_not_asked_of_another(calls):
    world, auth = calls
    request = Register(email="a@b", password="secret password")
    asking = asyncio.create_task(auth.ask(AuthApi.rpc_register, request, deadline=60.0))
    await world.pass_time(TIMEOUT_S + 1, step=0.2)
    with pytest.raises(APIStatusError, match="may have been done") as caught:
        await asking
    assert caught.value.status_code == 503


NOT_KNOWN_YET = NoQuorumError("too few hold it", category="unknown")


@pytest.mark.parametrize("first", [NOT_KNOWN_YET], ids=["not known yet"])
async def test_what_too_few_hold_is_not_asked_of_another(calls):
    _, auth = calls
    request = Register(email="a@b", password="secret password")
    with pytest.raises(APIStatusError, match="may have been done") as caught:
        await auth.ask(AuthApi.rpc_register, request, deadline=60.0)
    assert (caught.value.status_code, caught.value.body["code"]) == (503, MAY_BE_DONE)
    again = Logout(access_token="t")
    assert await auth.ask(AuthApi.rpc_logout, again, deadline=60.0) == Done()


@pytest.mark.parametrize("first", [NoQuorumError("another leads")], ids=["another leads"])
async def test_what_was_not_written_is_asked_of_another(calls):
    _, auth = calls
    request = ChangePassword(access_token="t", password="old", new_password="new")
    assert await auth.ask(AuthApi.rpc_change_password, request, deadline=60.0) == Done()


async def test_deadline_ends_the_asking(calls):
    world, auth = calls
    request = Login(email="a@b", password="secret password")
    asking = asyncio.create_task(
        auth.ask(AuthApi.rpc_login, request, deadline=world.clock.monotonic() + 2)
    )
    await world.pass_time(2.4, step=0.2)
    with pytest.raises(APIStatusError) as caught:
        await asking
    assert caught.value.status_code == 503
