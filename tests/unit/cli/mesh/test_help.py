"""What `tinkex mesh --help` says of its commands."""

import re

from typer.testing import CliRunner

from tinkex.cli.app import app


def test_what_each_command_does_can_be_read_at_80_columns():
    text = CliRunner().invoke(app, ["mesh", "--help"], terminal_width=80).output
    listed = text.partition("Commands:")[2]
    assert len(re.findall(r"^  [a-z]", listed, re.MULTILINE)) > 20
    assert "..." not in listed
