"""B8: one schema of settings for all workers; each is read from file, environment and flag."""

from pathlib import Path

import pytest

from tinkex.cli.mesh.network import ROLES
from tinkex.cli.mesh.settings import mesh_schema, settings_of
from tinkex.cli.settings import KINDS, LISTS
from tinkex.errors import ConfigurationError
from tinkex.mesh.identity import KeyPair

SCHEMA = mesh_schema()
SETTINGS = tuple(SCHEMA.settings.values())
PEERS = [KeyPair(bytes([number]) * 32).peer_id for number in (1, 2)]
SPECIAL = {
    "transport": ("tls", "tls"),
    "bind": ("127.0.0.2:1", "[::1]:2"),
    "advertise": ("192.0.2.1:1", "192.0.2.2:2"),
    "relay_url": ("https://a.example", "https://b.example"),
    "bootstrap": tuple(f"{peer}@iroh:127.0.0.1:1" for peer in PEERS),
    "admin_host": ("127.0.0.2", "::1"),
    "log_level": ("debug", "error"),
    "log_format": ("json", "json"),
    "processor_backend_url": ("http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"),
    "client_host": ("::1", "localhost"),
}


def others(one):
    """Two values in bounds, neither the default: as text."""
    if one.name in SPECIAL:
        return SPECIAL[one.name]
    if one.kind == "bool":
        return ("false",) * 2 if one.default else ("true",) * 2
    if one.kind.startswith("int"):
        return str((one.default or 6) + 1), str((one.default or 6) + 2)
    if one.kind.startswith("float"):
        return str((one.default or 6.0) * 1.1), str((one.default or 6.0) * 1.2)
    return "/seven", "/nine"


def as_read(one, text):
    if one.kind.startswith("int"):
        return int(text)
    if one.kind.startswith("float"):
        return float(text)
    if one.kind == "bool":
        return text == "true"
    if one.kind.startswith("Path"):
        return Path(text)
    return {"tuple[str, ...]": (text,), "frozenset[str]": frozenset([text])}.get(one.kind, text)


def value_of(config, one):
    for name in one.place:
        config = getattr(config, name)
    return config


def write(tmp_path, one, text):
    path = tmp_path / "mesh.toml"
    value = f'["{text}"]' if one.kind in LISTS else f'"{text}"'
    if one.kind.startswith(("int", "float", "bool")):
        value = text
    table = f"[{one.section}]\n" if one.section else ""
    path.write_text(f"{table}{one.field} = {value}\n")
    return path


def resolve(flags=None, *, file=None, environment=None):
    return SCHEMA.resolve(
        flags or {}, file=file, environment=environment or {}, fallbacks={"data_dir": Path("/data")}
    )


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.name)
def test_setting_has_a_meaning_and_a_kind(one):
    assert len(one.meaning) > 10, "write a docstring below the field"
    assert one.kind in KINDS


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.name)
def test_file_then_environment_then_flag(one, tmp_path):
    low, high = others(one)
    file = write(tmp_path, one, low)
    assert value_of(resolve(file=file), one) == as_read(one, low)
    environment = {one.variable: high}
    assert value_of(resolve(file=file, environment=environment), one) == as_read(one, high)
    if one.flag is not None:
        flag = [low] if one.kind in LISTS else low == "true" if one.kind == "bool" else low
        config = resolve({one.name: flag}, file=file, environment=environment)
        assert value_of(config, one) == as_read(one, low)


def test_number_that_no_worker_could_run_with_is_refused_by_name():
    for one in SETTINGS:
        if one.section in {"", *ROLES} and one.kind.startswith(("int", "float")):
            with pytest.raises(ConfigurationError, match=one.field):
                resolve(environment={one.variable: "-1"})
    for name in ("in_all", "asked_at_once", "attempts"):
        with pytest.raises(ConfigurationError, match=f"{name} is 0: it must be more than 0"):
            resolve(environment={f"TINKEX_MESH_GATEWAY_{name.upper()}": "0"})


def test_variable_of_no_setting_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="TINKEX_MESH_TRANSPROT"):
        resolve(environment={"TINKEX_MESH_TRANSPROT": "tls"})
    resolve(environment={"TINKEX_MESH_URL": "http://127.0.0.1:1", "TINKEX_MESH_KEY": "tmk-x"})


def test_key_in_a_wrong_table_is_told_where_it_belongs(tmp_path):
    path = tmp_path / "mesh.toml"
    path.write_text("ping_s = 1\n[dht]\nnonsense = 2\n")
    with pytest.raises(ConfigurationError) as caught:
        resolve(file=path)
    assert "ping_s: it belongs to rpc.ping_s" in str(caught.value)
    assert "dht.nonsense" in str(caught.value)


def test_every_setting_is_in_some_workers_command():
    assert {one.name for role in ROLES for one in settings_of(role)} == set(SCHEMA.settings)


@pytest.mark.parametrize("role", ROLES)
def test_workers_command_has_its_own_settings_and_those_of_all(role):
    from typer.main import get_command

    from tinkex.cli.app import app

    group = get_command(app).commands["mesh"]
    flags = {name for one in group.get_command(None, role).params for name in one.opts}
    assert {one.flag for one in settings_of(role) if one.flag is not None} <= flags
    foreign = [one for one in SETTINGS if one.section in {*ROLES} - {role}]
    assert not {one.flag for one in foreign} & flags
