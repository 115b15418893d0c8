"""Every snippet of the guides runs, in the order of its guide, against a real server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_S

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
NAMES = sorted(path.name for path in GUIDES.glob("*.md"))


def blocks(name, language):
    text = (GUIDES / name).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def environment(login):
    return {
        **os.environ,
        "TINKER_BASE_URL": login["base_url"],  # as `tinkex serve` tells its user to set
        "TINKER_API_KEY": login["api_key"],
    }


def test_there_are_the_guides_and_the_start():
    assert "getting-started.md" in NAMES
    start = (GUIDES / "getting-started.md").read_text()
    assert {name for name in NAMES if name in start} == set(NAMES) - {"getting-started.md"}


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "python")])
def test_python_of_a_guide_runs_as_one_program(name, environment, tmp_path):
    program = "\n".join(blocks(name, "python"))
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning:__main__", "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_commands_of_the_guide_run(environment, tmp_path):
    (commands,) = blocks("command-line.md", "sh")
    for line in commands.splitlines():
        done = subprocess.run(
            line.replace("tinkex", f"{sys.executable} -m tinkex", 1),
            shell=True,
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, (line, done.stderr)
        assert done.stdout, line


def test_links_lead_somewhere():
    for name in NAMES:
        for target in re.findall(r"\]\(([^)#]+)\)", (GUIDES / name).read_text()):
            there = target.startswith("https://") or (GUIDES / target).exists()
            assert there, (name, target)


def test_table_of_commands_names_every_command():
    from typer.main import get_command

    from tinkex.cli.app import app

    # a row names commands in its first cell; a group's first command stands after the group's name
    cells = re.findall(r"^\| (`.*?) \|", (GUIDES / "command-line.md").read_text(), re.MULTILINE)
    named: dict[str, set[str]] = {}
    for cell in cells:
        codes = [code.split() for code in re.findall(r"`([^`]*)`", cell)]
        group = codes[0][0]
        for words in codes:
            named.setdefault(words[0], set())
            named[group].update(words)
    for name, command in get_command(app).commands.items():
        assert name in named, name
        assert set(getattr(command, "commands", {})) - named[name] == set(), name


def test_every_page_is_in_the_sites_navigation():
    root = GUIDES.parents[1]
    navigation = (root / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = {str(page.relative_to(root / "docs")) for page in (root / "docs").rglob("*.md")}
    assert pages == set(re.findall(r"- (\S+\.md)", navigation))


def test_the_site_builds_without_a_warning(tmp_path):
    root = GUIDES.parents[1]
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", tmp_path / "site"],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "reference" / "clients.html").read_text()
    assert 'id="tinkex.client.training.TrainingClient.forward_backward"' in page
