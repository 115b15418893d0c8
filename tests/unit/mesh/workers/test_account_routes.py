"""Accounts over local HTTP: every path, the caller's credential, errors in OpenAI's form."""

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from tinkex.errors import (
    AuthenticationError,
    NoQuorumError,
    RateLimitError,
    TinkerError,
    TrustError,
)
from tinkex.mesh.api import auth
from tinkex.mesh.api.gateway import GatewayApi, PublishAdapter, UnpublishAdapter
from tinkex.mesh.identity import PeerId
from tinkex.mesh.rpc.service import methods_of
from tinkex.mesh.workers.account_routes import MAX_BODY_BYTES, PATHS, account_routes
from tinkex.mesh.workers.http import tell_error

TOKEN = "an-access-token"
BEARER = {"authorization": f"Bearer {TOKEN}"}


class Gateway:
    """Remembers what it is asked; answers `Done`, or fails."""

    def __init__(self):
        self.asked = []
        self.error = None

    async def ask(self, method, message):
        self.asked.append((method.__name__, message))
        if self.error is not None:
            raise self.error
        return auth.Done()


def app_of(ask):
    routes = [Mount("/mesh", routes=account_routes(ask))]
    return Starlette(routes=routes, exception_handlers={TinkerError: tell_error})


@pytest.fixture
def gateway():
    return Gateway()


@pytest.fixture
async def http(gateway):
    app = app_of(gateway.ask)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


CREATE = auth.CreateKey(access_token=TOKEN, name="n", token_cap=5)


@pytest.mark.parametrize(
    ("verb", "path", "body", "expected"),
    [
        (
            "POST",
            "/register",
            {"email": "a", "password": "b"},
            auth.Register(email="a", password="b"),
        ),
        ("POST", "/login", {"email": "a", "password": "b"}, auth.Login(email="a", password="b")),
        ("POST", "/refresh", {"refresh_token": "r"}, auth.Refresh(refresh_token="r")),
        ("POST", "/logout", None, auth.Logout(access_token=TOKEN)),
        (
            "POST",
            "/close-account",
            {"password": "b"},
            auth.CloseAccount(access_token=TOKEN, password="b"),
        ),
        (
            "POST",
            "/password",
            {"password": "b", "new_password": "c"},
            auth.ChangePassword(access_token=TOKEN, password="b", new_password="c"),
        ),
        ("POST", "/keys", {"name": "n", "token_cap": 5}, CREATE),
        ("GET", "/keys", None, auth.ListKeys(access_token=TOKEN)),
        ("DELETE", "/keys/key-1", None, auth.RevokeKey(access_token=TOKEN, key_id="key-1")),
        ("GET", "/usage?since=12.5", None, auth.UsageQuery(credential=TOKEN, since=12.5)),
        (
            "POST",
            "/adapters",
            {"name": "n", "base_model": "b", "content": "c"},
            PublishAdapter(credential=TOKEN, name="n", base_model="b", content="c"),
        ),
        ("DELETE", "/adapters/a/b", None, UnpublishAdapter(credential=TOKEN, name="a/b")),
    ],
)
async def test_request_reaches_the_gateway_as_its_message(
    http, gateway, verb, path, body, expected
):
    reply = await http.request(verb, f"/mesh{path}", json=body, headers=BEARER)
    assert (reply.status_code, reply.json()) == (200, {})
    assert [message for _, message in gateway.asked] == [expected]


def test_every_account_method_of_the_gateway_has_a_path():
    elsewhere = {"complete", "countersign", "models", "count_tokens"}
    offered = {path.removeprefix("gateway.") for path in methods_of(GatewayApi)}
    assert {one.method.__name__.removeprefix("rpc_") for one in PATHS} == offered - elsewhere


@pytest.mark.parametrize(
    "header", [{}, {"authorization": "Basic eA=="}, {"authorization": "Bearer "}]
)
async def test_request_without_a_credential_is_not_passed_on(http, gateway, header):
    reply = await http.get("/mesh/keys", headers=header)
    assert reply.status_code == 401
    assert "Authorization: Bearer" in reply.json()["error"]["message"]
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b"[]", "JSON object"),
        (b'{"access_token": "x"}', "Authorization"),
        (b'{"name": 5}', r"\$.name"),
        (b'{"name": "n", "colour": "red"}', "colour"),
        (b'{"scopes": ["a"]}', "name"),
    ],
)
async def test_body_that_does_not_fit_is_refused_by_name(http, gateway, body, words):
    reply = await http.post("/mesh/keys", content=body, headers=BEARER)
    assert reply.status_code == 400
    assert words.replace("\\", "") in reply.json()["error"]["message"]
    assert gateway.asked == []


async def test_body_that_is_too_long_is_refused(http, gateway):
    content = b" " * (MAX_BODY_BYTES + 1)
    reply = await http.post("/mesh/keys", content=content, headers=BEARER)
    assert (reply.status_code, gateway.asked) == (413, [])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AuthenticationError("wrong"), 401),
        (RateLimitError("slow", retry_after_ms=1500), 429),
        (NoQuorumError("too few auth workers"), 503),
        (TrustError("no"), 403),
    ],
)
async def test_error_of_the_network_keeps_its_meaning(http, gateway, error, status):
    gateway.error = error
    reply = await http.get("/mesh/keys", headers=BEARER)
    assert reply.status_code == status
    assert reply.json()["error"]["message"] == str(error)
    assert reply.headers.get("retry-after") == ("2" if status == 429 else None)


async def test_reply_is_the_message_as_json(http, gateway):
    made = auth.Session(
        access_token="a", access_expires_at=1.5, refresh_token="r", refresh_expires_at=2.0
    )

    async def ask(method, message):
        return made

    app = app_of(ask)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        reply = await client.post("/mesh/login", json={"email": "a", "password": "b"})
    assert reply.json() == msgspec.to_builtins(made)


async def test_scopes_are_told_in_order(http, gateway):
    info = auth.KeyInfo(
        key_id="key-1",
        name="n",
        prefix="tmk-",
        scopes=frozenset({"read", "publish", "infer"}),
        created_at=1.0,
        expires_at=None,
        token_cap=None,
        revoked_at=None,
    )

    async def ask(method, message):
        return auth.Keys(keys=(info,))

    app = app_of(ask)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        (shown,) = (await client.get("/mesh/keys", headers=BEARER)).json()["keys"]
    assert shown["scopes"] == ["infer", "publish", "read"]


async def test_peer_ids_are_told_as_they_are_written_everywhere(http, gateway):
    entry = auth.UsageEntry(
        request_id="r",
        gateway=bytes(range(32)),
        epoch=b"\xff" * 16,
        sequence=7,
        at=1.0,
        key_id="key-1",
        model="m",
        prompt_tokens=1,
        completion_tokens=2,
        state="countersigned",
    )

    async def ask(method, message):
        return auth.UsageReport(
            account_id="a",
            quota_tokens=None,
            used_tokens=3,
            reserved_tokens=0,
            entries=(entry,),
        )

    app = app_of(ask)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        (shown,) = (await client.get("/mesh/usage", headers=BEARER)).json()["entries"]
    assert shown["gateway"] == str(PeerId(bytes(range(32))))
    assert shown["epoch"] == "ff" * 16
