"""How an invitation reaches a worker: by a pipe or a variable, or, with a warning, in the open."""

import pytest
from typer.testing import CliRunner

from tinkex.cli.app import app
from tinkex.errors import InputError

BAD = "tinkex-mesh:nothing"
WARNING = "every user of this machine"


def joined(tmp_path, *arguments, **options):
    command = ["mesh", "client", "--data-dir", str(tmp_path / "w"), *arguments]
    result = CliRunner().invoke(app, command, **options)
    assert isinstance(result.exception, InputError), result.exception
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--join", "-"], {"input": BAD}),
        ([], {"env": {"TINKEX_MESH_JOIN": BAD}}),
    ],
    ids=["pipe", "variable"],
)
def test_an_invitation_that_nobody_else_sees_is_no_cause_to_warn(tmp_path, arguments, options):
    assert WARNING not in joined(tmp_path, *arguments, **options)


def test_an_invitation_on_the_command_line_is_warned_of_and_not_repeated(tmp_path):
    told = joined(tmp_path, "--join", BAD)
    assert WARNING in told
    assert BAD not in told
