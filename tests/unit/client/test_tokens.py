"""Tokens in place of the key: exchanged once, renewed in time, replaced when refused."""

import asyncio
import base64
import itertools
import json
import random

import pytest
from client_support import settle
from scripted_tinker import ok, scripted_peer, service

import tinkex as tinker
from tinkex.client.tokens import TokenExchange
from tinkex.errors import APIConnectionError, APIResponseValidationError
from tinkex.testing.clock import VirtualClock

ISSUER = itertools.count()


def token(life=3600, **claims):
    claims = {"iat": 1000, "exp": 1000 + life, "n": next(ISSUER), **claims}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{payload}.sig"


class Issuer:
    def __init__(self):
        self.given = []
        self.life = 3600
        self.error = None

    async def __call__(self):
        await asyncio.sleep(0)  # noqa: TID251 - lets the others ask meanwhile
        if self.error is not None:
            raise self.error
        self.given.append(token(self.life))
        return self.given[-1]


@pytest.fixture
async def issuer():
    return Issuer()


@pytest.fixture
async def clock():
    return VirtualClock()


@pytest.fixture
async def tokens(issuer, clock):
    return TokenExchange(issuer, clock, random.Random(1))


async def test_many_requests_share_one_exchange(tokens, issuer):
    found = await asyncio.gather(*(tokens.token() for _ in range(50)))
    assert set(found) == {issuer.given[0]}
    assert len(issuer.given) == 1


async def test_token_is_renewed_in_the_middle_of_its_life_and_nobody_waits(tokens, issuer, clock):
    first = await tokens.token()
    clock.advance(3600 * 0.44)
    assert await tokens.token() == first
    await settle()
    assert len(issuer.given) == 1
    clock.advance(3600 * 0.12)
    assert await tokens.token() == first  # the renewal is on its way
    await settle()
    assert await tokens.token() == issuer.given[1]
    assert len(issuer.given) == 2


async def test_renewal_that_fails_is_tried_again_after_a_minute(tokens, issuer, clock):
    first = await tokens.token()
    issuer.error = APIConnectionError("down")
    clock.advance(2000)
    for _ in range(5):
        assert await tokens.token() == first
        await settle()
    issuer.error = None
    clock.advance(61)
    await tokens.token()
    await settle()
    assert await tokens.token() == issuer.given[1]


async def test_token_about_to_end_is_waited_for(tokens, issuer, clock):
    await tokens.token()
    clock.advance(3550)
    assert await tokens.token() == issuer.given[1]
    issuer.error = APIConnectionError("down")
    clock.advance(3600)
    with pytest.raises(APIConnectionError):
        await tokens.token()


async def test_refused_token_is_replaced_once(tokens, issuer):
    first = await tokens.token()
    tokens.refused(first)
    tokens.refused("eyJ-another")
    second = await tokens.token()
    tokens.refused(first)  # a late answer to an old request
    assert await tokens.token() == second
    assert len(issuer.given) == 2


@pytest.mark.parametrize("life", [0, -5, 1])
async def test_token_that_ends_at_once_does_not_make_a_storm(tokens, issuer, clock, life):
    issuer.life = life
    for _ in range(20):
        await tokens.token()
        clock.advance(1)
    assert len(issuer.given) == 1


async def test_what_is_no_token_is_refused(clock):
    async def nonsense():
        return "eyJ"

    with pytest.raises(APIResponseValidationError, match="token"):
        await TokenExchange(nonsense, clock, random.Random(1)).token()


def test_every_request_but_the_first_carries_the_token():
    given = [token(), token()]
    with scripted_peer({"pjwt_auth_enabled": True}) as peer:
        answers = iter(given)
        peer.always("/api/v1/auth/token", lambda _: ok({"jwt": next(answers)}))
        capabilities = "/api/v1/get_server_capabilities"
        peer.expect(capabilities, ok({"supported_models": []}), method="GET")
        peer.expect(capabilities, ok({"detail": "invalid_token"}, 401), method="GET")
        peer.expect(capabilities, ok({"supported_models": []}), method="GET")
        with service(peer) as client:
            client.create_sampling_client(base_model="m").result(10)
            client.get_server_capabilities()
            client.get_server_capabilities()
        keys = [(one.path.rpartition("/")[2], one.headers["x-api-key"]) for one in peer.requests]
        assert next(key for name, key in keys if name == "config").startswith("tml-")
        assert all(key.startswith("tml-") for name, key in keys if name == "token")
        rest = [key for name, key in keys if name not in {"config", "token"}]
        assert set(rest) == set(given)
        assert len([name for name, _ in keys if name == "token"]) == 2
    assert isinstance(client, tinker.ServiceClient)
