"""How the process of a command ends."""

import os
import re
import signal
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


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_ctrl_c_where_a_secret_is_asked_for_is_told_by_the_exit_code(tmp_path):
    terminal, inner = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tinkex", "auth", "login"],
        stdin=inner,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "HOME": str(tmp_path)},
        start_new_session=True,  # with no terminal but this one
    )
    try:
        asked = b""
        while not asked.endswith(b"API key: "):
            piece = process.stderr.read(1)
            assert piece, asked
            asked += piece
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=240)
    finally:
        process.kill()
        os.close(inner)
        os.close(terminal)
    assert (process.returncode, out) == (130, b"")


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
