"""Accounts and quotas, for who runs an auth worker and for nobody else."""

import stat

import httpx
import pytest
from mesh_auth import EMAIL, AuthWorld
from mesh_rpc import caught

from tinkex.errors import BillingError
from tinkex.mesh.workers.operator_page import MAX_BODY_BYTES, OperatorPage, write_pass

BEARER = {"authorization": "Bearer 00ff"}


@pytest.fixture
async def home(tmp_path):
    async with AuthWorld(path=tmp_path) as world:
        world.account_id = (await world.register()).account_id
        yield world


@pytest.fixture
async def page(home):
    app = OperatorPage(home.worker.operator, "00ff")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=BEARER
    ) as client:
        yield client


async def test_accounts_are_listed_with_what_they_may_use(home, page):
    home.clock.advance(1)
    await home.register("bob@example.org")
    await home.new_key(await home.log_in())
    found = (await page.get("/accounts")).json()
    assert [one["email"] for one in found] == [EMAIL, "bob@example.org"]
    assert (found[0]["account_id"], found[0]["keys"], found[1]["keys"]) == (home.account_id, 1, 0)
    assert (await page.get("/accounts", params={"account": "bob@example.org"})).json() == found[1:]
    missing = await page.get("/accounts", params={"account": "nobody@example.org"})
    assert missing.status_code == 404


@pytest.mark.parametrize("wanted", ["id", "address"])
async def test_quota_that_is_set_binds_at_once_and_after_a_restart(home, page, wanted):
    account = home.account_id if wanted == "id" else EMAIL.upper()
    body = {"account": account, "quota_tokens": 500}
    reply = await page.put("/quota", json=body)
    assert (reply.status_code, reply.json()["quota_tokens"]) == (200, 500)
    assert isinstance(await caught(home.lease(home.account_id, tokens=501)), BillingError)
    await home.restart()
    assert home.worker.operator.accounts(home.account_id)[0].quota_tokens == 500
    report = await home.worker.operator.set_quota(home.account_id, None)
    assert report.quota_tokens is None
    assert EMAIL not in repr(report)
    assert await home.lease(home.account_id, tokens=501)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"account": "acc_x", "quota_tokens": 1}', 404),
        (b'{"account": "a@example.org", "quota_tokens": 1}', 404),
        (b'{"account": "@", "quota_tokens": 1}', 404),
        (b'{"account": "ann@example.org", "quota_tokens": -1}', 400),
        (b'{"account": "ann@example.org", "quota_tokens": "many"}', 400),
        (b'{"account": "ann@example.org"}', 400),
        (b"[]", 400),
        (b"{", 400),
        (b" " * (MAX_BODY_BYTES + 1), 413),
    ],
)
async def test_what_makes_no_sense_is_refused(home, page, body, status):
    reply = await page.put("/quota", content=body)
    assert (reply.status_code, bool(reply.json()["error"]["message"])) == (status, True)


@pytest.mark.parametrize("header", ["", "Bearer 00fe", "Basic 00ff", "Bearer 00ff "])
async def test_who_does_not_show_the_token_learns_nothing(home, page, header):
    for reply in (
        await page.get("/accounts", headers={"authorization": header}),
        await page.put("/quota", headers={"authorization": header}, json={}),
    ):
        assert reply.status_code == 401
        assert EMAIL not in reply.text


def test_token_lies_in_a_file_for_its_owner_alone(tmp_path):
    write_pass(tmp_path, "http://127.0.0.1:1", "00ff")
    assert stat.S_IMODE((tmp_path / "operator.json").stat().st_mode) == 0o600
