"""What `make` does before anything is installed: the environment, and the Python that it needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = "import sys; sys.version = '3.9.6 (old)'; sys.version_info = (3, 9, 6); exec(sys.argv.pop(1))"


@pytest.fixture
def make(tmp_path):
    def run(target, *options, **variables):
        return subprocess.run(
            ["make", *options, target, f"VENV={tmp_path / 'venv'}"]
            + [f"{name}={value}" for name, value in variables.items()],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def old_python(tmp_path):
    """A Python that takes itself for 3.9, as macOS has one under the name python3."""
    (tmp_path / "old.py").write_text(OLD)
    script = tmp_path / "python3"
    script.write_text(f'#!/bin/sh\nshift; exec {sys.executable} {tmp_path / "old.py"} "$@"\n')
    script.chmod(0o700)
    return script


def test_environment_without_pip_is_completed(make, tmp_path):
    pip = tmp_path / "venv" / "bin" / "pip"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    assert not pip.exists()
    done = make(pip, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert pip.exists()


def test_the_build_of_torch_that_is_named_is_installed(make, tmp_path):
    words = "torch==2.13.0 --index-url https://builds.example.org/cpu"
    done = make(tmp_path / "venv" / ".torch", "--dry-run", TORCH=words)
    assert f"install {words}\n" in done.stdout


def test_old_python_is_refused_by_its_version(make, old_python, tmp_path):
    done = make("demo", PYTHON=old_python)
    assert done.returncode != 0
    assert "tinkex needs Python 3.11 or later" in done.stderr
    assert "is 3.9.6" in done.stderr
    assert "make demo PYTHON=python3.11" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_environment_of_an_old_python_is_refused_before_anything_is_installed(
    make, old_python, tmp_path
):
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    old_python.rename(binaries / "python")
    (binaries / "pip").touch()
    done = make("demo", PYTHON=sys.executable)
    assert done.returncode != 0
    assert f"remove {tmp_path / 'venv'}" in done.stderr
    assert "installing" not in done.stdout
