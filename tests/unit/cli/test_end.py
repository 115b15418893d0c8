"""How the process of a command ends."""

import subprocess
import sys

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
