"""Who am I, asked by the official SDK and its command line, unmodified."""

import gc
import json
import os

import pytest
from patience import PATIENCE_S
from server_support import KEY

from tinkex.server.accounts.keys import digest_of, key_id_of

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

ACCOUNT = key_id_of(digest_of(KEY))


@pytest.fixture
def tinker(monkeypatch):
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    import tinker

    yield tinker
    gc.collect()


def test_whoami_names_the_account(tinker, server):
    found = tinker.RestClient(**server.login).whoami().result()
    assert found.user_urn == f"tml:organization_user:{ACCOUNT}"
    assert found.org_urn == "tml:organization:tinkex"
    assert found.email is None


def test_client_whose_token_ended_gets_another_and_goes_on(tinker, server):
    with tinker.ServiceClient(**server.login) as service:
        rest = service.create_rest_client()
        rest.list_training_runs().result()
        # the server forgets its signing keys: what was signed until now is refused
        server.services.accounts.tokens._keys.clear()
        server.services.accounts.tokens._read.clear()
        (server.services.config.data_dir / "token_keys.json").unlink()
        assert rest.list_training_runs().result().training_runs == []


def test_command_line_logs_in_says_who_it_is_and_logs_out(server, tmp_path, official_cli):
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TINKER_BASE_URL": server.url,
        "TINKER_TELEMETRY": "0",
    }

    def run(*arguments, typed=None):
        return official_cli.run(*arguments, env=env, stdin=typed or "", timeout=PATIENCE_S)

    done = run("auth", "login", typed=f"{KEY}\n")
    assert done.returncode == 0, done.stderr
    assert "Logged in as operator (tinkex)" in done.stdout
    done = run("-f", "json", "auth", "whoami")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["user_urn"].endswith(ACCOUNT)
    assert run("auth", "logout").returncode == 0
