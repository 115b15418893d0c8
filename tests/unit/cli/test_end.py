"""How the process of a command ends."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, gc, sys

atexit.register(lambda: print(len(gc.get_objects()) < 1000))
from tinkex.cli.main import main

sys.argv = ["tinkex", "version"]
main()
"""


def test_interpreter_searches_nothing_for_cycles_as_it_ends():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=240
    )
    assert done.stdout.splitlines()[-1] == "True", done.stdout


INTERRUPTED = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
from tinkex.cli.main import main

sys.argv = ["tinkex", "run", "list"]
main()
"""


def test_ctrl_c_while_the_commands_are_imported_ends_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(
    ("closed", "arguments", "out", "err"),
    [
        ("2>&-", "--base-url http://127.0.0.1:9 run list", "", ""),
        ("<&-", "sample", "", "Error: .*"),
        ("<&-", "auth login", "", "Error: The API key must start with .*"),
        (">&-", "--version", "", ""),
        ("<&- >&- 2>&-", "--version", "", ""),
    ],
)
def test_standard_stream_that_is_closed_is_an_empty_one(tmp_path, closed, arguments, out, err):
    """Errors would go to standard output where standard error is closed."""
    variables = {name: value for name, value in os.environ.items() if "API_KEY" not in name}
    if "run list" in arguments:
        variables["TINKEX_API_KEY"] = "tml-none"
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m tinkex {arguments} {closed}', sys.executable],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**variables, "HOME": str(tmp_path)},
    )
    assert re.fullmatch(out, done.stdout), done.stdout
    assert re.fullmatch(err, done.stderr.strip()), done.stderr
    assert done.returncode == (0 if "version" in arguments else 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_output_that_cannot_be_written_is_told_in_a_sentence(argument, unbuffered):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tinkex", argument],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=240,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert re.fullmatch(r"Error: .*No space left.*\n", done.stderr), done.stderr
    assert done.returncode == 1
