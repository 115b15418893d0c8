"""Commands of an install that left out what they need."""

import subprocess
import sys

import pytest
from patience import PATIENCE_S

_WITHOUT = """
import sys
package, *sys.argv[1:] = sys.argv[1:]
sys.modules[package] = None
from tinkex.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("package", "command", "told"),
    [
        ("platformdirs", ["mesh", "status"], "platformdirs"),
        ("platformdirs", ["mesh", "login", "--email", "ada@example.org"], "platformdirs"),
        ("torch", ["check"], "`tinkex check` needs torch"),
        ("torch", ["backup", "x"], "`tinkex backup` needs torch"),
        ("torch", ["restore", "x"], "`tinkex restore` needs torch"),
    ],
)
def test_command_names_the_package_that_it_needs(package, command, told, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, package, *command],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert told in done.stderr
    assert "pip install" in done.stderr
