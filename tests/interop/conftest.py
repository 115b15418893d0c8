"""One real `tinkex serve` for the group, and others' programs run against it, unmodified.

A program gets the base URL and the key in its environment, and folders named as the hub would name
what they hold: the base model's tokenizer under the alias, small datasets. Nothing else is changed.
"""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from interop_datasets import write_datasets
from interop_environments import ENVIRONMENTS

import tinkex.engine
from tinkex.local import LocalServer

PROGRAMS = Path(__file__).parent / "programs"
SPROUT = Path(tinkex.engine.__file__).parent / "assets" / "sprout"
PATIENCE = 900  # seconds; a machine with other work on it is ten times slower
ALIASES = ("Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-8B-Base")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    aliases = [word for name in ALIASES for word in ("--alias", f"{name}=tinkex/sprout")]
    folder = tmp_path_factory.mktemp("interop") / "data"
    with LocalServer(folder, aliases, start_timeout=PATIENCE) as running:
        yield running


@dataclass
class Workplace:
    """A folder to run others' programs in.

    Attributes:
        folder: where they run.
        login: base URL and key of the server.
        base: the folder of the base model, `tinkex/sprout`.
    """

    folder: Path
    login: dict
    base: Path = SPROUT

    def program(self, name):
        """One of the programs beside this file."""
        return PROGRAMS / name

    def run(self, python, *arguments, timeout=PATIENCE, stdin=None, **environment):
        """Run a program to its end."""
        done = subprocess.run(
            [str(python), *map(str, arguments)],
            cwd=self.folder,
            env={**self.environment(), **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            input=stdin or "",
            check=False,
        )
        return self.ended_well(done)

    def command(self, cli, *arguments, stdin=None, **environment):
        """Run a command of the official command line to its end."""
        environment = {**self.environment(), **environment}
        return self.ended_well(
            cli.run(
                *arguments, env=environment, cwd=self.folder, stdin=stdin or "", timeout=PATIENCE
            )
        )

    def ended_well(self, done):
        """Check that it did.

        An abort as the interpreter exits is the official SDK's (docs/log.md): what the program
        printed or wrote by then is looked at all the same.
        """
        aborted = done.returncode == -signal.SIGABRT and "Traceback" not in done.stderr
        assert done.returncode == 0 or aborted, done.stdout[-2000:] + done.stderr[-6000:]
        return done

    def environment(self):
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {
            "PATH": os.defpath,
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",  # what was printed outlives an abort at exit
            "TINKER_BASE_URL": self.login["base_url"],
            "TINKER_API_KEY": self.login["api_key"],
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # Nothing here may leave the machine; what tries (a list of prices) fails at once.
            "https_proxy": "http://127.0.0.1:9",
        }


@pytest.fixture
def workplace(server, tmp_path):
    """Tokenizers under the names that programs use."""
    for name in (*ALIASES, "tinkex/sprout"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for one in (
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ):
            shutil.copy(SPROUT / one, folder)
    return Workplace(tmp_path, server.login)


@pytest.fixture
def cookbook(workplace, python_of):
    """Run a module of the tinker-cookbook with its own command line."""
    write_datasets(workplace.folder)

    def run(module, *arguments, **options):
        python = python_of("cookbook")
        return workplace.run(python, "-m", f"tinker_cookbook.{module}", *arguments, **options)

    return run


@pytest.fixture(scope="session")
def python_of():
    """The interpreter of an environment, made on first use; of the tests themselves for `dev`."""
    return lambda name: sys.executable if name == "dev" else ENVIRONMENTS[name].make()
