"""B5: register, log in, key, streamed completions, usage; each refusal crosses the mesh intact.

With the unmodified `openai` package, one process for each worker, over TLS and over iroh.
"""

import json
import os

import openai
import pytest
from mesh_processes import CLOCK
from mesh_users import PASSWORD, User, until
from mesh_users import SPROUT as MODEL

from tinkex.mesh.client import MeshClient
from tinkex.openai_api.completer import CompletionRequest, TextPrompt

ASK = [{"role": "user", "content": "What is 3 plus 4?"}]
DAY_S = 86_400.0


@pytest.fixture(scope="session")
def user(mesh):
    made = User(mesh.workers["client"].ready["url"], "ada@example.org")
    yield made
    made.close()


@pytest.fixture(scope="session")
def client(user):
    with user.openai(user.key()["key"]) as made:
        yield made


def test_workers_are_processes_of_their_own_over_a_real_transport(mesh):
    ready = {name: worker.ready for name, worker in mesh.workers.items() if worker.alive}
    pids = {one["pid"] for one in ready.values()}
    assert len(pids) == len(ready) >= 4
    assert os.getpid() not in pids
    for one in ready.values():
        addresses = one["contact"].partition("@")[2].split(",")
        assert all(address.startswith(f"{mesh.transport}:") for address in addresses)


def test_streamed_chat_is_counted_as_it_was_seen(user, client):
    whole = client.chat.completions.create(model=MODEL, messages=ASK, seed=1, max_tokens=20)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=ASK,
            seed=1,
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    _, entries = user.entries_of(whole, chunks[-1])
    for entry, usage in zip(entries, (whole.usage, chunks[-1].usage), strict=True):
        assert entry["prompt_tokens"] == usage.prompt_tokens
        assert entry["completion_tokens"] == usage.completion_tokens
        assert entry["model"] == MODEL


def test_sum_of_the_entries_is_what_was_used(user, client):
    made = client.completions.create(model=MODEL, prompt="One two", max_tokens=7, seed=3)
    report, _ = user.entries_of(made)
    summed = sum(one["prompt_tokens"] + one["completion_tokens"] for one in report["entries"])
    assert report["used_tokens"] == summed > 0


def test_receipts_hold_and_agree_with_the_report(mesh, user, client):
    asked = client.completions.create(model=MODEL, prompt="One two", max_tokens=5, seed=4)
    user.entries_of(asked)
    command = "-f", "json", "mesh", "receipts", "--url", user.url, "--data-dir", "x"
    made = json.loads(mesh.tinkex(*command, tinkex_mesh_key=user.key()["key"]))
    (receipt,) = (one for one in made if asked.id.endswith(one["request_id"]))
    assert receipt["completion_tokens"] == 5
    assert receipt["verdict"] == "agrees"
    assert user.http.get("/mesh/receipts").status_code == 401


async def test_python_program_is_a_client_of_its_own(mesh, user, tmp_path):
    folder, options = tmp_path / "program", {"transport": mesh.transport}
    request = CompletionRequest(
        model=MODEL, prompt=TextPrompt("One two"), max_tokens=6, temperature=0.0
    )
    texts = []
    for invitation in (mesh.invite("client"), None):  # the second start needs none
        async with MeshClient.join(invitation, data_dir=folder, **options) as program:
            await program.login(user.login["email"], PASSWORD)
            reply = await program.complete(request)
            texts.append("".join([one.text async for one in reply.pieces() if one is not None]))
            receipt = await reply.settled()
            assert (receipt.completion_tokens, receipt.account_id) == (6, user.account)
            assert [one.read for one in program.receipts] == [receipt]
    with user.openai(user.key()["key"]) as client:
        same = client.completions.create(model=MODEL, prompt="One two", max_tokens=6, temperature=0)
    assert texts == [same.choices[0].text] * 2


def test_models_are_listed(client):
    assert MODEL in [model.id for model in client.models.list()]


def test_wrong_password_and_unknown_address_get_one_answer(user):
    wrong = user.request("POST", "/mesh/login", {**user.login, "password": "another password"})
    nobody = user.request("POST", "/mesh/login", {**user.login, "email": "bob@example.org"})
    assert wrong.status_code == nobody.status_code == 401
    assert wrong.json() == nobody.json()


def test_address_that_is_taken_is_refused(user):
    again = user.request("POST", "/mesh/register", {**user.login, "password": "another password"})
    assert again.status_code == 409
    assert "password" not in again.text or PASSWORD not in again.text


def test_unknown_key_is_refused(user):
    with user.openai("tmk-" + "A" * 43) as stranger, pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model=MODEL, messages=ASK)


def test_expired_key_is_refused(user):
    made = user.key(expires_in_s=1.0)
    CLOCK.sleep_sync(1.1)
    with user.openai(made["key"]) as late, pytest.raises(openai.AuthenticationError):
        late.chat.completions.create(model=MODEL, messages=ASK)


def test_revoked_key_is_refused_soon_everywhere(user):
    made = user.key()
    with user.openai(made["key"]) as client:
        client.completions.create(model=MODEL, prompt="One", max_tokens=1)
        assert user.request("DELETE", f"/mesh/keys/{made['info']['key_id']}").status_code == 200
        deadline = CLOCK.monotonic() + 5  # of a healthy network: mesh.md, decision 3
        refused = False
        while not refused:
            assert CLOCK.monotonic() < deadline
            try:
                client.completions.create(model=MODEL, prompt="One", max_tokens=1)
            except openai.AuthenticationError:
                refused = True


def test_cap_of_a_key_that_is_used_up_is_told_as_quota(user):
    made = user.key(token_cap=40)

    def refused(client):
        try:
            client.completions.create(model=MODEL, prompt="One two three", max_tokens=8)
        except openai.RateLimitError:
            return None  # a request before it is not settled yet: to be asked again
        except openai.APIStatusError as error:
            return error
        return None

    with user.openai(made["key"]) as client:
        error, _ = until(lambda: refused(client), what="the end of the cap")
    assert error.status_code == 402
    assert error.code == "insufficient_quota"


def test_key_may_do_what_its_scopes_say_alone(user):
    made = user.key(scopes=["read"])
    with user.openai(made["key"]) as client:
        client.models.list()
        with pytest.raises(openai.PermissionDeniedError):
            client.completions.create(model=MODEL, prompt="One", max_tokens=1)


def test_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody/nothing", messages=ASK)
    assert caught.value.code == "model_not_found"


def test_prompt_that_is_too_long_is_refused_with_its_numbers(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=MODEL, prompt="word " * 4000, max_tokens=4)
    assert caught.value.code == "context_length_exceeded"


def test_session_that_was_ended_is_over(mesh):
    user = User(mesh.workers["client"].ready["url"], "eve@example.org")
    assert user.post("/mesh/logout") == {}
    assert user.request("GET", "/mesh/keys").status_code == 401
    user.close()


def test_other_account_sees_nothing_of_it(mesh, user):
    other = User(mesh.workers["client"].ready["url"], "mallory@example.org")
    mine = user.key()["info"]["key_id"]
    assert other.request("DELETE", f"/mesh/keys/{mine}").status_code == 404
    assert mine not in other.request("GET", "/mesh/keys").text
    assert other.usage()["entries"] == []
    other.close()


def test_commands_show_the_network(mesh, user):
    admin = mesh.workers["client"].ready["admin_url"]
    text = mesh.tinkex("-f", "json", "mesh", "status", "--admin-url", admin, "--data-dir", "x")
    found = {one["role"]: one for one in json.loads(text)}
    assert {"auth", "gateway", "processor"} <= set(found)
    assert found["processor"]["status"]["models"] == [MODEL]
    assert all(one["status"]["ready"] for one in found.values())
    made = mesh.tinkex(
        "mesh",
        "chat",
        MODEL,
        "-m",
        "What is 3 plus 4?",
        "--seed",
        "1",
        "--url",
        user.url,
        "--data-dir",
        "x",
        tinkex_mesh_key=user.key()["key"],
    )
    assert made
    page = mesh.workers["gateway"].ready["admin_url"]
    text = mesh.tinkex("-f", "json", "mesh", "logs", "--admin-url", page, "--data-dir", "x")
    held = {one["feed"]: one for one in json.loads(text)}
    assert held["usage"]["author"] == mesh.workers["gateway"].ready["peer_id"]
    assert held["accounts-public"]["entries"] > 0
    assert "accounts-private" not in held


def test_no_worker_logged_a_secret_or_a_prompt(mesh, user, client):
    client.completions.create(model=MODEL, prompt="a very particular prompt", max_tokens=2)
    for worker in mesh.workers.values():
        log = worker.log()
        for secret in ("tmk-", PASSWORD, "particular", "eyJ", "ada@example.org"):
            assert secret not in log, (worker.name, secret)
