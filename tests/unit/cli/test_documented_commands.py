"""Every command line that the documents show has the commands and options that it names."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from tinkex.cli.app import app

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.py")]
    if path.name not in {"CHANGELOG.md", "log.md"}  # these tell of what was
)
SHOWN = re.compile(r"(?:^\s*(?:\w+=\S+ )*|`)tinkex ([^`\n]*)", re.MULTILINE)
# What a shell would not hand on, and the dots that stand for more.
REST = re.compile(r"\s#|\s[|<>&]|;|\s\.\.\.")


def commands(document):
    """The lines of a document, or the codes between its words, that begin with `tinkex`."""
    text = (ROOT / document).read_text()
    code = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    inline = "\n".join(re.findall(r"`tinkex [^`\n]*`", text))
    return [REST.split(line + " ")[0] for line in SHOWN.findall(code + "\n" + inline)]


@pytest.fixture(scope="module")
def program():
    """The command line, which takes a second to make."""
    return get_command(app)


def unknown(command, line):
    """The first word of a command line that the program would refuse; None if there is none."""
    words = iter(shlex.split(line))
    for word in words:
        if word.startswith("-") and word != "-":
            name = word.partition("=")[0]
            options = [one for one in command.params if name in (*one.opts, *one.secondary_opts)]
            if not options and name not in {"-h", "--help"}:
                return name
            if options and not options[0].is_flag and "=" not in word:
                next(words, None)
        elif hasattr(command, "get_command"):
            command = command.get_command(None, word)
            if command is None:
                return word
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_commands_that_a_document_shows_are_there(program, document):
    refused = {line: unknown(program, line) for line in commands(document)}
    assert {line: word for line, word in refused.items() if word is not None} == {}


def test_the_readme_shows_commands():
    assert len(commands("README.md")) > 20
