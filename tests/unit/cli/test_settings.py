"""Settings of `tinkex serve`: three sources, one precedence, every one reachable from each."""

import dataclasses
from pathlib import Path

import pytest

from tinkex.cli.server_settings import server_schema
from tinkex.cli.settings import KINDS
from tinkex.errors import ConfigurationError
from tinkex.server.config import Limits, ServerConfig

SCHEMA = server_schema()
SETTINGS = tuple(SCHEMA.settings.values())
KEYS = "tml-0123456789abcdef"


def others(one):
    """Two values of a setting, none of them its default: as text, and as they are read."""
    special = {
        "host": ("127.0.0.2", "127.0.0.3"),
        "log_level": ("debug", "error"),
        "dtype": ("bfloat16", "float16"),
        "weight_dtype": ("int8", "int8"),
        "api_keys": (KEYS + "1", KEYS + "2"),
        "trust_remote_code": ("a", "b"),
        "allow_pickle": ("a", "b"),
        "aliases": ("x=a", "y=b"),
        "base_models": ("a", "b"),
        "allowed_hosts": ("a.example", "b.example"),
    }
    if one.name in special:
        return special[one.name]
    if one.kind == "bool":
        return ("false", "false") if one.default else ("true", "true")
    return ("7", "9") if one.kind.startswith(("int", "float")) else ("/seven", "/nine")


def as_read(one, text):
    if one.kind.startswith("int"):
        return int(text)
    if one.kind.startswith("float"):
        return float(text)
    if one.kind == "bool":
        return text == "true"
    if one.kind == "Mapping[str, str]":
        return dict([text.split("=")])
    if one.kind.startswith("Path"):
        return Path(text)
    return {"tuple[str, ...]": (text,), "frozenset[str]": frozenset([text])}.get(one.kind, text)


def value_of(config, one):
    return getattr(config.limits if one.section else config, one.name)


def companions(one):
    """What has to be given along for the value to be in bounds."""
    together = {"tls_cert": {"tls_key": "k"}, "tls_key": {"tls_cert": "c"}}.get(one.name, {})
    return together if one.name == "base_models" else {"base_models": ["a", "b"], **together}


def toml_value(one, text):
    if one.kind == "Mapping[str, str]":
        name, _, target = text.partition("=")
        return f'{{"{name}" = "{target}"}}'
    if one.kind in {"tuple[str, ...]", "frozenset[str]"}:
        return f'["{text}"]'
    return text if one.kind.startswith(("int", "float", "bool")) else f'"{text}"'


def write(tmp_path, one, text):
    path = tmp_path / "tinkex.toml"
    section = f"[{one.section}]\n" if one.section else ""
    path.write_text(f"{section}{one.name} = {toml_value(one, text)}\n")
    return path


def resolve(flags=None, *, file=None, environment=None):
    return SCHEMA.resolve(
        flags or {}, file=file, environment=environment or {}, fallbacks={"data_dir": Path("/data")}
    )


def test_every_field_is_a_setting_with_a_meaning():
    fields = {f.name for f in dataclasses.fields(ServerConfig)} - {"limits"}
    fields |= {f.name for f in dataclasses.fields(Limits)}
    assert {one.name for one in SETTINGS} == fields
    assert len(SETTINGS) == len(fields), "ServerConfig and Limits share a name"
    assert [one.name for one in SETTINGS if len(one.meaning) < 10] == []
    assert {one.kind for one in SETTINGS} <= set(KINDS)


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.name)
def test_setting_is_read_from_the_file(one, tmp_path):
    text, _ = others(one)
    config = resolve(companions(one), file=write(tmp_path, one, text))
    assert value_of(config, one) == as_read(one, text)


@pytest.mark.parametrize("one", SETTINGS, ids=lambda one: one.name)
def test_environment_goes_before_the_file(one, tmp_path):
    in_file, wanted = others(one)
    environment = {one.variable: wanted}
    config = resolve(companions(one), file=write(tmp_path, one, in_file), environment=environment)
    assert value_of(config, one) == as_read(one, wanted)


@pytest.mark.parametrize(
    "one", [one for one in SETTINGS if one.flag is not None], ids=lambda one: one.name
)
def test_flag_goes_before_both(one, tmp_path):
    other, wanted = others(one)
    flag = wanted
    if one.kind in {"tuple[str, ...]", "frozenset[str]", "Mapping[str, str]"}:
        flag = [wanted]
    if one.kind == "bool":
        flag = wanted == "true"
    expected = as_read(one, wanted)
    if one.flag in {"--adapter-memory", "--device-adapter-memory", "--spill-limit"}:
        expected *= 2**20
    config = resolve(
        {**companions(one), one.name: flag},
        file=write(tmp_path, one, other),
        environment={one.variable: other},
    )
    assert value_of(config, one) == expected


def test_every_setting_but_a_secret_is_a_flag_of_the_command():
    from typer.main import get_command

    from tinkex.cli.app import app

    flags = {name for one in get_command(app).commands["serve"].params for name in one.opts}
    assert {one.flag for one in SETTINGS if one.flag is not None} <= flags
    assert "--api-keys" not in flags


def test_defaults_hold_where_nothing_is_given():
    assert resolve() == ServerConfig(data_dir=Path("/data"))


def test_everything_unknown_is_refused_by_name_at_once(tmp_path):
    path = tmp_path / "tinkex.toml"
    path.write_text("prot = 1\nmax_rank = 3\n[limits]\nport = 2\nnonsense = 3\n[extra]\na = 1\n")
    with pytest.raises(ConfigurationError) as caught:
        resolve(file=path, environment={"TINKEX_SERVE_PROT": "1", "TINKEX_API_KEY": "x"})
    text = str(caught.value)
    for words in (
        "unknown key prot: did you mean port?",
        "unknown key max_rank: it belongs to limits.max_rank",
        "unknown key limits.port: it belongs to port",
        "unknown key limits.nonsense",
        "unknown key extra",
        "TINKEX_SERVE_PROT",
    ):
        assert words in text
    assert "TINKEX_API_KEY" not in text


def test_values_that_do_not_fit_are_told_by_their_source_and_not_repeated(tmp_path):
    path = tmp_path / "tinkex.toml"
    path.write_text('api_keys = 5\n[limits]\nmax_rank = "secret-number"\n')
    with pytest.raises(ConfigurationError) as caught:
        resolve(
            {"threads": "many", "aliases": ["nothing"]},
            file=path,
            environment={"TINKEX_SERVE_PORT": "first", "TINKEX_SERVE_MAX_BODY_BYTES": "5 bags"},
        )
    text = str(caught.value)
    for words in (
        "--threads:",
        "--alias: ",
        "NAME=ID",
        f"{path}: limits.max_rank:",
        f"{path}: api_keys:",
        "TINKEX_SERVE_PORT:",
        "TINKEX_SERVE_MAX_BODY_BYTES: ",
        "MiB",
    ):
        assert words in text
    assert "secret-number" not in text


@pytest.mark.parametrize(
    ("text", "size"), [("12", 12), ("3KiB", 3072), ("2 mib", 2**21), ("1GiB", 2**30)]
)
def test_sizes_take_units(text, size):
    config = resolve(environment={"TINKEX_SERVE_MAX_BODY_BYTES": text})
    assert config.limits.max_body_bytes == size


def test_lists_of_the_environment_are_separated_by_commas():
    environment = {
        "TINKEX_SERVE_BASE_MODELS": "a, b",
        "TINKEX_SERVE_ALIASES": "x=a,y=b",
        "TINKEX_SERVE_PORT": "",
    }
    config = resolve(environment=environment)
    assert config.base_models == ("a", "b")
    assert dict(config.aliases) == {"x": "a", "y": "b"}
    assert config.port == 8000


@pytest.mark.parametrize("content", ["port = = 1", "limits = 3"])
def test_file_that_is_no_such_file_is_refused(tmp_path, content):
    path = tmp_path / "tinkex.toml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"tinkex\.toml"):
        resolve(file=path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        resolve(file=tmp_path / "absent.toml")
