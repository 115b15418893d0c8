"""The files of `deploy/` against the commands as they are: each command line is accepted."""

import re
import shlex
import shutil
import subprocess
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest
import typer
import yaml

from tinkex.cli.app import app
from tinkex.cli.flags import given_flags
from tinkex.cli.mesh.settings import mesh_schema
from tinkex.mesh.roles import Role

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/mesh"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNIT = DEPLOY / "tinkex-mesh@.service"


def accepted(line):
    """Read a command line as `tinkex` would; the settings of the worker that it would start."""
    words = shlex.split(line)
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="tinkex")
    while hasattr(command, "get_command"):
        name, words = words[0], words[1:]
        command = command.get_command(context, name)
        assert command is not None, f"{line!r}: there is no {name!r}"
        context = typer.Context(command, info_name=name, parent=context)
    context = command.make_context(command.name, words)
    own = {"context", "config", "ready_file", "join", "name"}
    flags = {name: value for name, value in context.params.items() if name not in own}
    return context, flags


def settings_of(line):
    """The settings of the worker that a command line would start."""
    context, flags = accepted(line)
    fallbacks = {"data_dir": Path("/nowhere")}
    config = mesh_schema().resolve(given_flags(flags), file=None, fallbacks=fallbacks)
    return context, config


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_a_service_starts_a_worker_of_its_role_with_settings_that_hold(service, monkeypatch):
    said = COMPOSE["services"][service]
    for name, value in said["environment"].items():
        monkeypatch.setenv(name, value)
    context, config = settings_of(said["command"])
    assert context.command.name == service == Role(service).value
    assert str(config.data_dir) == "/data"
    assert f"{service}:/data" in said["volumes"]
    assert config.transport == "tls"
    if service == "client":
        assert said["network_mode"] == "host", "its endpoint is on loopback: of the host"
    else:
        assert config.bind == (f"{said['networks']['mesh']['ipv4_address']}:4433",)
    grace = float(said["stop_grace_period"].removesuffix("s"))
    assert grace > config.shutdown_grace_s
    wanted = "" if service == "auth" else f"${{{service.upper()}_INVITATION:-}}"
    assert said["environment"].get("TINKEX_MESH_JOIN", "") == wanted


@pytest.mark.parametrize("path", [DEPLOY / "compose.yaml", UNIT], ids=lambda path: path.name)
def test_commands_in_the_first_lines_are_accepted(path):
    found = re.findall(r"^#   .*(?:tinkex|--rm auth) (mesh .+)$", path.read_text(), re.MULTILINE)
    assert found
    for line in found:
        accepted(line)


def test_an_empty_invitation_is_none():
    """What compose makes of a variable that is not set."""
    context, _ = accepted("mesh gateway")
    assert context.params["join"] is None


def test_the_unit_starts_every_role_and_waits_longer_than_a_worker_drains():
    unit = ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read_string(UNIT.read_text())
    service = unit["Service"]
    program, line = service["ExecStart"].split(" ", 1)
    assert program.endswith("/bin/tinkex")
    for role in Role:
        context, config = settings_of(line.replace("%i", role.value))
        assert context.command.name == role.value
        assert str(config.data_dir) == f"/var/lib/{service['StateDirectory']}"
    assert float(service["TimeoutStopSec"]) > config.shutdown_grace_s


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_finds_nothing_to_mend_in_the_unit(tmp_path):
    copy = tmp_path / "tinkex-mesh@gateway.service"
    copy.write_text(UNIT.read_text().replace("/opt/tinkex/bin/tinkex", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    told = [line for line in done.stderr.splitlines() if copy.name in line]
    assert told == []


def test_the_image_has_the_torch_and_the_extras_of_this_project():
    image = (DEPLOY / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (version,) = re.findall(r"torch==([\d.]+)", image)
    assert f"torch=={version}" in (ROOT / "Makefile").read_text()
    (extras,) = re.findall(r"\.\[([\w,]+)\]", image)
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()
    for line in re.findall(r"^COPY (.+) \S+$", image, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split())
