"""The mesh for a Python program: its session is kept fresh, its secrets are not shown."""

from __future__ import annotations

import asyncio

import pytest
from mesh_gateway import MODEL, GatewayWorld, until
from mesh_rpc import SkewedClock

from tinkex.errors import AuthenticationError, CredentialError
from tinkex.mesh.api import auth
from tinkex.mesh.client import MeshClient
from tinkex.mesh.trust.certificates import CLOCK_SKEW_S
from tinkex.openai_api.completer import CompletionRequest, TextPrompt


@pytest.fixture
async def world(tmp_path):
    async with GatewayWorld(path=tmp_path) as made:
        await made.add_processor()
        await made.add_gateway()
        yield made


async def client_of(world, **options) -> MeshClient:
    return MeshClient(await world.add_client(), clock=world.clock, **options)


def session(world, number: int, lasts_s: float = 600.0) -> auth.Session:
    world.accounts.known[f"access{number}"] = world.accounts.known["right"]
    return auth.Session(
        access_token=f"access{number}",
        access_expires_at=world.clock.now() + lasts_s,
        refresh_token=f"refresh{number}",
        refresh_expires_at=world.clock.now() + 10_000,
    )


async def text_of_completion(client) -> str:
    request = CompletionRequest(model=MODEL, prompt=TextPrompt("hello"), max_tokens=4, seed=1)
    completion = await client.complete(request)
    text = "".join([piece.text async for piece in completion.pieces() if piece is not None])
    assert await completion.settled() is not None
    return text


async def test_a_program_registers_logs_in_and_completes(world):
    client = await client_of(world)
    world.auth.answers[auth.Register] = auth.Registered(account_id="ann")
    world.auth.answers[auth.Login] = session(world, 1)
    assert await client.register("a@b.c", "secret") == "ann"
    await client.login("a@b.c", "secret")
    assert len(await text_of_completion(client)) == 4
    assert [card.name for card in await client.models()] == [MODEL]
    assert await client.count_tokens(MODEL, TextPrompt("abc")) == 3
    (receipt,) = client.receipts
    assert receipt.read.account_id == "ann"


async def test_without_a_credential_a_program_is_told_to_log_in(world):
    client = await client_of(world)
    with pytest.raises(CredentialError, match="log in first"):
        await client.models()
    await client.logout()
    client.use_key("right")
    assert len(await text_of_completion(client)) == 4
    with pytest.raises(CredentialError):
        await client.keys()


async def test_a_session_is_refreshed_once_before_it_ends(world):
    client = await client_of(world)
    world.auth.answers[auth.Login] = session(world, 1, lasts_s=40.0)
    world.auth.answers[auth.Refresh] = session(world, 2)
    await client.login("a@b.c", "secret")
    await text_of_completion(client)
    world.clock.advance(11.0)
    await asyncio.gather(*(client.models() for _ in range(5)))
    refreshed = [one for one in world.auth.asked if isinstance(one, auth.Refresh)]
    assert [one.refresh_token for one in refreshed] == ["refresh1"]


@pytest.mark.parametrize("skew_s", [-60.0, 0.0, 60.0])
async def test_a_session_is_refreshed_in_time_whatever_tolerated_clocks_say(world, skew_s):
    """Of the program, and of a gateway that reads the token a minute ahead of who dated it."""
    clock = SkewedClock(world.clock, skew_s)
    client = MeshClient(await world.add_client(), clock=clock)
    world.auth.answers[auth.Login] = session(world, 1)
    await client.login("a@b.c", "secret")
    world.clock.advance(300.0)
    await client.models()
    assert not any(isinstance(one, auth.Refresh) for one in world.auth.asked), "not too early"
    world.auth.answers[auth.Refresh] = session(world, 2)
    world.clock.advance(600.0 - 300.0 - CLOCK_SKEW_S - 1.0)
    await client.models()
    assert any(isinstance(one, auth.Refresh) for one in world.auth.asked)


async def test_who_is_called_off_while_the_session_is_refreshed_loses_no_session(world):
    """A refresh token works once: used again, it ends the session."""
    client = await client_of(world)
    world.auth.answers[auth.Login] = session(world, 1, lasts_s=10.0)
    renewed, answers = session(world, 2), asyncio.Event()

    async def late():
        await answers.wait()
        return renewed

    world.auth.answers[auth.Refresh] = late
    await client.login("a@b.c", "secret")
    called_off = asyncio.create_task(client.models())
    await until(lambda: any(isinstance(one, auth.Refresh) for one in world.auth.asked))
    called_off.cancel()
    await asyncio.gather(called_off, return_exceptions=True)
    answers.set()
    assert [card.name for card in await client.models()] == [MODEL]
    assert [card.name for card in await client.models()] == [MODEL]
    refreshed = [one for one in world.auth.asked if isinstance(one, auth.Refresh)]
    assert [one.refresh_token for one in refreshed] == ["refresh1"]


async def test_session_that_has_ended_is_left_by_a_logout(world):
    client = await client_of(world)
    world.auth.answers[auth.Login] = session(world, 1, lasts_s=10.0)
    world.auth.answers[auth.Refresh] = AuthenticationError("this session has ended")
    await client.login("a@b.c", "secret")
    with pytest.raises(AuthenticationError):
        await client.models()
    await client.logout()
    with pytest.raises(CredentialError, match="log in first"):
        await client.models()


async def test_keys_and_usage_are_the_accounts(world):
    client = await client_of(world, api_key="right")
    world.auth.answers[auth.Login] = session(world, 1)
    await client.login("a@b.c", "secret")
    info = auth.KeyInfo(
        key_id="k",
        name="laptop",
        prefix="tmk-",
        scopes=frozenset({"infer"}),
        created_at=0.0,
        expires_at=None,
        token_cap=7,
        revoked_at=None,
    )
    report = auth.UsageReport(
        account_id="ann", quota_tokens=None, used_tokens=1, reserved_tokens=0, entries=()
    )
    world.auth.answers |= {
        auth.CreateKey: auth.CreatedKey(key="secret-key", info=info),
        auth.ListKeys: auth.Keys(keys=(info,)),
        auth.RevokeKey: auth.Done(),
        auth.UsageQuery: report,
        auth.Logout: auth.Done(),
    }
    assert (await client.create_key("laptop", scopes=["infer"], token_cap=7)).key == "secret-key"
    assert await client.keys() == (info,)
    await client.revoke_key("k")
    assert await client.usage(since=3.0) == report
    await client.logout()
    sent = {type(one): one for one in world.auth.asked}
    assert sent[auth.CreateKey].access_token == "access1"
    assert (sent[auth.UsageQuery].credential, sent[auth.UsageQuery].since) == ("right", 3.0)
    assert sent[auth.Logout].access_token == "access1"


async def test_adapters_are_published_and_unpublished(world):
    client = await client_of(world, api_key="right")
    await client.publish("pirate", base_model=MODEL, content="ab" * 32)
    assert [card.name for card in await client.models()] == [MODEL, "pirate"]
    await client.unpublish("pirate")
    assert [card.name for card in await client.models()] == [MODEL]


async def test_no_secret_is_in_what_a_program_prints(world):
    client = await client_of(world, api_key="right")
    world.auth.answers[auth.Login] = session(world, 1)
    await client.login("a@b.c", "secret")
    assert "right" not in repr(client)
    assert "access1" not in repr(client)
