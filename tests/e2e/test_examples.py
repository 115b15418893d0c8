"""Every program of examples/ runs as its first lines say, and does what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
PROGRAMS = {path.name for path in (ROOT / "examples").glob("*.py")}


@pytest.fixture
def run(login, tmp_path):
    environment = {
        **os.environ,
        "TINKEX_BASE_URL": login["base_url"],
        "TINKEX_API_KEY": login["api_key"],
    }

    def run(name):
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", ROOT / "examples" / name],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    return run


def numbers(text, name):
    return [float(found) for found in re.findall(rf"{name} +([-+\d.]+)", text)]


def test_supervised(run):
    assert "6 of 6 right" in run("supervised.py")


def test_reinforcement(run):
    rewards = numbers(run("reinforcement.py"), "mean reward")
    assert len(rewards) == 8
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.3


def test_preferences(run):
    text = run("preferences.py")
    losses = numbers(text, "loss")
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)  # the policy is its reference: log 2
    assert losses[-1] < 0.3
    assert text.rstrip().endswith("preferred 3 of 3")


def test_many_at_once(run):
    text = run("many_at_once.py")
    for name in ("tides", "bread"):
        losses = numbers("\n".join(re.findall(rf"^{name}.*", text, re.MULTILINE)), "loss")
        assert len(losses) == 6
        assert losses[-1] < losses[0] / 4
    assert re.search(r"sampled \d+ tokens for 40 prompts", text)


def test_resumable(run):
    text = run("resumable.py")
    assert text.count("saved tinker://") == 3
    assert re.search(r"ready to sample from tinker://\S+/sampler_weights/final", text)


def test_each_program_is_tested_and_listed():
    tested = set(re.findall(r'run\("(\w+\.py)"\)', Path(__file__).read_text()))
    listed = set(re.findall(r"`(\w+\.py)`", (ROOT / "docs/guides/examples.md").read_text()))
    assert tested == listed == PROGRAMS
