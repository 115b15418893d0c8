"""What the mesh's commands say to do next can be done as it stands."""

import os
import pty
import re
import sys

import pytest
from mesh_founding import PASSPHRASE
from typer.main import get_command
from typer.testing import CliRunner

from tinkex._clock import SystemClock
from tinkex.cli.app import app
from tinkex.errors import InputError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.trust.rootkey import PassphraseCipher
from tinkex.mesh.workers.founding import found

PEER = KeyPair(bytes(32)).peer_id
ONLY_HERE = "only workers of this machine can join"


def run(*arguments):
    environment = {"COLUMNS": "500", "TINKEX_MESH_PASSPHRASE": PASSPHRASE}
    result = CliRunner().invoke(app, ["mesh", *map(str, arguments)], env=environment)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def network(tmp_path):
    cheap = PassphraseCipher(memory_kib=64, passes=1)
    found(tmp_path / "net", "ours", PASSPHRASE, clock=SystemClock(), cipher=cheap)
    return tmp_path / "net"


def test_commands_that_follow_init_are_for_the_folder_that_it_was_given(tmp_path):
    folder = tmp_path / "my net"
    told = run("init", "--data-dir", folder).stdout
    assert f"tinkex mesh auth --bind ADDRESS:PORT --data-dir '{folder}'" in told
    assert f"tinkex mesh invite gateway --data-dir '{folder}'" in told


@pytest.mark.parametrize(
    ("addresses", "here"),
    [
        ("tls:127.0.0.1:4433", True),
        ("iroh:127.0.0.1:4433,iroh:[::1]:4433", True),
        ("iroh:127.0.0.1:4433,iroh:192.0.2.1:4433", False),
        ("iroh:127.0.0.1:4433,iroh-relay:https://relay.example.org", False),
    ],
)
def test_invitation_that_no_other_machine_can_use_says_so(network, addresses, here):
    contact = f"{PEER}@{addresses}"
    told = run("invite", "gateway", "--contact", contact, "--data-dir", network).stderr
    assert (ONLY_HERE in told) == here
    assert ("--bind ADDRESS:PORT --join -" in told) == (not here)
    as_json = ["-f", "json", "mesh", "invite", "client", "--contact", contact]
    result = CliRunner().invoke(
        app, [*as_json, "--data-dir", str(network)], env={"TINKEX_MESH_PASSPHRASE": PASSPHRASE}
    )
    assert (ONLY_HERE in result.stderr) == here
    assert re.search(r'"invitation": "tinkex-mesh:\w+"', result.stdout)


def test_invitation_of_an_auth_worker_names_no_contact_and_says_nothing_of_one(network):
    told = run("invite", "auth", "--peer", PEER, "--data-dir", network).stderr
    assert ONLY_HERE not in told


def test_pasted_invitation_ends_with_its_line(tmp_path, monkeypatch, capsys):
    terminal, end = pty.openpty()
    os.write(terminal, b"tinkex-mesh:nothing\n")  # and no end of input
    with os.fdopen(end) as typed:
        monkeypatch.setattr(sys, "stdin", typed)
        command = ["mesh", "client", "--join", "-", "--data-dir", str(tmp_path)]
        with pytest.raises(InputError):
            get_command(app)(command, standalone_mode=False)
    os.close(terminal)
    assert "Invitation: " in capsys.readouterr().err
