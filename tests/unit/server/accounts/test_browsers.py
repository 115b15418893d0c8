"""Pages of other sites are refused; programs, and the server's own pages, are not."""

from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from tinkex._logs import make_logger
from tinkex.server.accounts.browsers import BrowserGuard, SecurityHeaders
from tinkex.server.config import ServerConfig
from tinkex.server.http.middleware import ErrorReplies

HERE, ELSEWHERE = ("127.0.0.1", 50000), ("192.0.2.7", 50000)


async def page(_request):
    return Response("page", headers={"Cache-Control": "max-age=5"})


@pytest.fixture
def ask(tmp_path):
    """Send one request; the peer is on this machine if nothing else is said."""

    async def send(host="127.0.0.1:8000", method="GET", *, peer=HERE, config=None, **headers):
        config = config or ServerConfig(data_dir=tmp_path)
        app = Starlette(
            routes=[Route("/", page, methods=["GET", "POST"])],
            middleware=[
                Middleware(SecurityHeaders, config=config),
                Middleware(ErrorReplies, logger=make_logger("error")),
                Middleware(BrowserGuard, config=config),
            ],
        )
        transport = httpx.ASGITransport(app=app, client=peer)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, "/", headers={"Host": host, **named})

    return send


@pytest.fixture
def named(tmp_path):
    return ServerConfig(data_dir=tmp_path, host="0.0.0.0", allowed_hosts=("Tinkex.example.org",))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "192.168.1.2", "localhost."],
)
async def test_programs_reach_the_server_by_address_or_as_localhost(ask, host):
    assert (await ask(host, "POST")).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", "1"],
)
async def test_name_that_somebody_pointed_at_this_machine_is_refused(ask, host):
    response = await ask(host)
    assert response.status_code == 421
    assert "--allowed-host" in response.json()["detail"]


async def test_second_host_header_does_not_hide_the_first(tmp_path):
    guard = BrowserGuard(None, config=ServerConfig(data_dir=tmp_path))
    headers = [(b"host", b"localhost"), (b"host", b"evil.example")]
    scope = {"type": "http", "method": "GET", "headers": headers, "client": HERE}
    with pytest.raises(Exception, match=r"evil\.example"):
        await guard(scope, None, None)


async def test_name_that_the_operator_gave_is_answered_from_anywhere(ask, named):
    for peer in (HERE, ELSEWHERE):
        assert (await ask("tinkex.example.org:443", config=named, peer=peer)).status_code == 200
        assert (await ask("evil.example", config=named, peer=peer)).status_code == 421


async def test_without_names_clients_elsewhere_may_use_any(ask, tmp_path):
    config = ServerConfig(data_dir=tmp_path, host="0.0.0.0")
    assert (await ask("gpu-box.lan:8000", config=config, peer=ELSEWHERE)).status_code == 200
    assert (await ask("gpu-box.lan:8000", config=config, peer=HERE)).status_code == 421


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "http://127.0.0.1:9000",  # another server on this machine
        "http://localhost:8000",  # another site to a browser
        "http://127.0.0.1:8000.evil.example",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_page_of_another_origin_is_refused(ask, origin, method):
    response = await ask("127.0.0.1:8000", method, Origin=origin)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_page_of_the_servers_own_is_answered(ask, scheme):
    assert (await ask(Origin=f"{scheme}://127.0.0.1:8000")).status_code == 200


async def test_page_behind_a_proxy_of_a_given_name_is_answered(ask, named):
    origin = "https://tinkex.example.org"
    assert (await ask("127.0.0.1:8000", config=named, Origin=origin)).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_picture_or_form_of_another_site_is_refused_but_a_link_is_followed(ask, site):
    embedded = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "no-cors"}
    link = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "navigate"}
    assert (await ask(**embedded)).status_code == 403
    assert (await ask(**link)).status_code == 200
    assert (await ask(method="POST", **link)).status_code == 403
    assert (await ask(Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")).status_code == 200


async def test_every_reply_keeps_browsers_careful_also_a_refusal(ask):
    for response in (await ask(), await ask("evil.example")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "strict-transport-security" not in response.headers


async def test_header_of_the_route_goes_before_the_general_one(ask):
    assert (await ask()).headers.get_list("cache-control") == ["max-age=5"]
    assert (await ask("evil.example")).headers["cache-control"] == "no-store"


async def test_browsers_stay_with_tls_once_they_had_it(ask, tmp_path):
    config = ServerConfig(data_dir=tmp_path, tls_cert=Path("c"), tls_key=Path("k"))
    assert "max-age" in (await ask(config=config)).headers["strict-transport-security"]
