"""The settings of a command that takes many: flag, environment variable, key in the file.

Owns the list, which is read off the command's configuration classes themselves, and the precedence:
flags, then the environment, then the file, then the defaults. What a setting means and which values
are in bounds is those classes' business.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from tinkex.errors import ConfigurationError

C = TypeVar("C")

KINDS: dict[str, Any] = {
    "str": str,
    "str | None": str | None,
    "int": int,
    "int | None": int | None,
    "float": float,
    "float | None": float | None,
    "bool": bool,
    "Path": Path,
    "Path | None": Path | None,
    "tuple[str, ...]": tuple[str, ...],
    "frozenset[str]": frozenset[str],
    "Mapping[str, str]": dict[str, str],
}
LISTS = frozenset({"tuple[str, ...]", "frozenset[str]", "Mapping[str, str]"})
UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a configuration class."""

    name: str
    """Its name among all settings: the field's, with the section's before it where they have one
    name space each."""
    field: str
    """The field's name, and the key in the file."""
    section: str
    """The table that holds it in the file; empty for the top."""
    place: tuple[str, ...]
    """The attributes that lead to it from the whole configuration."""
    kind: str
    """Its annotation."""
    default: Any
    """`dataclasses.MISSING` where there is none."""
    meaning: str
    """The field's docstring, in one line."""
    flag: str | None
    """Its flag; None for a secret: every user of the machine sees the arguments of a process."""
    variable: str
    """Its environment variable."""
    in_mebibytes: bool = False
    """Whether a bare number behind the flag is MiB."""

    @property
    def key(self) -> str:
        """Its key in the file, with the table's name."""
        return f"{self.section}.{self.field}" if self.section else self.field

    @property
    def is_size(self) -> bool:
        """Whether it counts bytes, and may be given with a unit."""
        return self.field.endswith("_bytes")


@dataclass(frozen=True)
class Schema(Generic[C]):
    """The settings of one command.

    A field of `holder` that is a dataclass itself is a table of the file, and its fields are
    settings like the others, those of dataclasses further in among them.
    """

    holder: type[C]
    """The configuration class, a dataclass with a docstring below each field."""
    command: str
    """As a user types it."""
    prefix: str
    """Of the environment variables."""
    own_variables: frozenset[str] = frozenset()
    """Variables of the command itself, which are no settings."""
    secrets: frozenset[str] = frozenset()
    """Fields that have no flag."""
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Flags that are not named as their settings are."""
    by_section: bool = False
    """Whether flags and variables begin with their section; else a name is used once in all."""
    mebibyte_flags: frozenset[str] = frozenset()
    """Flags behind which a bare number is MiB."""

    @cached_property
    def sections(self) -> dict[str, type]:
        """The dataclasses among the fields, by the field's name."""
        found = {field.name: _class_of(field) for field in self._fields(self.holder)}
        return {name: holder for name, holder in found.items() if holder is not None}

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """Every setting by name, those of sections last."""
        found: dict[str, Setting] = {}
        for one in sorted(self._walk(self.holder, ()), key=lambda one: one.section != ""):
            assert one.name not in found, f"{one.name} is there twice"
            found[one.name] = one
        return found

    def _walk(self, holder: type, place: tuple[str, ...]) -> Iterator[Setting]:
        docs = _field_docs(inspect.getsource(sys.modules[holder.__module__]))[holder.__name__]
        for field in self._fields(holder):
            within = _class_of(field)
            if within is None:
                yield self._setting(field, (*place, field.name), docs.get(field.name, ""))
            else:
                yield from self._walk(within, (*place, field.name))

    def _setting(
        self, field: dataclasses.Field[Any], place: tuple[str, ...], meaning: str
    ) -> Setting:
        section = place[0] if len(place) > 1 else ""
        name = f"{section}_{field.name}" if section and self.by_section else field.name
        flag = self.flags.get(name, "--" + name.replace("_", "-"))
        return Setting(
            name,
            field.name,
            section,
            place,
            str(field.type),
            _default(field),
            meaning,
            flag=None if name in self.secrets else flag,
            variable=self.prefix + name.upper(),
            in_mebibytes=flag in self.mebibyte_flags,
        )

    def _built(
        self, holder: type, place: tuple[str, ...], given: Mapping[tuple[str, ...], Any]
    ) -> Any:
        """Make a configuration object, those within it first."""
        values = {}
        for field in self._fields(holder):
            here, within = (*place, field.name), _class_of(field)
            if within is not None:
                values[field.name] = self._built(within, here, given)
            elif here in given:
                values[field.name] = given[here]
        return holder(**values)

    @staticmethod
    def _fields(holder: type) -> tuple[dataclasses.Field[Any], ...]:
        assert dataclasses.is_dataclass(holder)
        return dataclasses.fields(holder)

    def resolve(
        self,
        flags: Mapping[str, Any],
        *,
        file: Path | None,
        environment: Mapping[str, str] | None = None,
        fallbacks: Mapping[str, Any],
    ) -> C:
        """Make the configuration of all three sources.

        Args:
            flags: those given, by the field's name; strings, lists of strings or booleans.
            file: a TOML file, with a table for each section; None for none.
            environment: variables; None reads the process's.
            fallbacks: what holds if no source says, instead of the field's default.

        Raises:
            ConfigurationError: naming every key that is unknown and every value that does not fit,
                by where it was given. Values are not repeated: one may be a key.
        """
        variables = dict(os.environ if environment is None else environment)
        in_file, problems = ({}, []) if file is None else self._read_file(file)
        problems += self._unknown_variables(variables)
        if problems:
            raise ConfigurationError(problems)
        found = {**fallbacks, **_resolved(self.settings, flags, variables, in_file, file)}
        given = {self.settings[name].place: value for name, value in found.items()}
        whole: C = self._built(self.holder, (), given)
        return whole

    def table(self) -> str:
        """Write the table of every setting for the documentation, in Markdown."""
        lines = [
            "| flag | variable | key in the file | default | means |",
            "|---|---|---|---|---|",
        ]
        for one in self.settings.values():
            flag = "none: it is secret" if one.flag is None else f"`{one.flag}`"
            if one.in_mebibytes:
                flag += " (a bare number is MiB)"
            if one.kind == "bool":
                flag += f", `--no-{one.name.replace('_', '-')}`"
            meaning = one.meaning.replace("|", "\\|")
            default = shown_default(one, quote="`") or "none"
            lines.append(f"| {flag} | `{one.variable}` | `{one.key}` | {default} | {meaning} |")
        return "\n".join(lines) + "\n"

    def _unknown_variables(self, variables: Mapping[str, str]) -> list[str]:
        known = {one.variable for one in self.settings.values()} | self.own_variables
        return [
            f"the environment variable {name} is no setting of {self.command}: unset it, or see "
            f"`{self.command} --help` for the names"
            for name in sorted(variables)
            if name.startswith(self.prefix) and name not in known
        ]

    def _read_file(self, path: Path) -> tuple[dict[str, Any], list[str]]:
        """Read a TOML file: (the values by the field's name, what is wrong)."""
        import tomllib

        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"the settings file {path} cannot be read: {error}") from error
        tables = {"": content}
        for section in self.sections:
            tables[section] = content.pop(section, {})
            if not isinstance(tables[section], dict):
                return {}, [f"{path}: {section} is no table: write [{section}] and its keys below"]
        names = {(one.section, one.field): one.name for one in self.settings.values()}
        problems = [
            f"{path}: unknown key {f'{section}.' if section else ''}{key}"
            f"{_hint(key, self.settings)}"
            for section, keys in tables.items()
            for key in keys
            if (section, key) not in names
        ]
        return {
            names[section, key]: value
            for section, keys in tables.items()
            for key, value in keys.items()
            if (section, key) in names
        }, problems


def _resolved(
    settings: Mapping[str, Setting],
    flags: Mapping[str, Any],
    variables: Mapping[str, str],
    in_file: Mapping[str, Any],
    file: Path | None,
) -> dict[str, Any]:
    """Read and check the values that were given: by name, the foremost source first."""
    from pydantic import BeforeValidator, ValidationError, create_model
    from pydantic_settings import (
        BaseSettings,
        InitSettingsSource,
        NoDecode,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )

    class Sources(BaseSettings):
        model_config = SettingsConfigDict(extra="forbid", validate_default=False)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - read by `_from_variables`
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - no such file is read
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                init_settings,
                InitSettingsSource(settings_cls, _from_variables(settings, variables)),
                InitSettingsSource(settings_cls, dict(in_file)),
            )

    # `Any` where mypy cannot follow types that are made here
    fields: Any = {
        name: (Annotated[KINDS[one.kind], NoDecode, BeforeValidator(_reader(one))], None)
        for name, one in settings.items()
    }
    model = create_model("Settings", __base__=Sources, **fields)
    given = {name: _with_unit(settings[name], value) for name, value in flags.items()}
    try:
        read = model(**given)
    except ValidationError as error:
        raise ConfigurationError(
            [
                f"{_origin(settings[str(one['loc'][0])], given, variables, file)}: {one['msg']}"
                for one in error.errors(include_input=False, include_url=False)
            ]
        ) from None
    return {name: getattr(read, name) for name in read.model_fields_set}


def _from_variables(
    settings: Mapping[str, Setting], variables: Mapping[str, str]
) -> dict[str, str]:
    """Give the settings that the environment has; an empty variable is as good as none."""
    return {
        name: text for name, one in settings.items() if (text := variables.get(one.variable, ""))
    }


def _hint(key: str, settings: Mapping[str, Setting]) -> str:
    """Say where a key belongs that stands in the wrong table, or which was meant."""
    keys: dict[str, str] = {}
    for one in settings.values():
        keys.setdefault(one.field, one.key)
    if key in keys:
        return f": it belongs to {keys[key]}"
    import difflib

    near = difflib.get_close_matches(key, keys, n=1)
    return f": did you mean {keys[near[0]]}?" if near else ""


def _origin(
    one: Setting, flags: Mapping[str, Any], variables: Mapping[str, str], file: Path | None
) -> str:
    """Name the place that a setting's value came from."""
    if one.name in flags:
        return str(one.flag)
    if variables.get(one.variable):
        return one.variable
    return f"{file}: {one.key}"


def _with_unit(one: Setting, value: Any) -> Any:
    """Let a bare number mean MiB with those flags where it always did."""
    if one.in_mebibytes and isinstance(value, str) and value.strip().isdigit():
        return f"{value.strip()}MiB"
    return value


def _reader(one: Setting) -> Any:
    """Give the function that reads a setting's text, before its type is checked."""
    if one.is_size:
        return _size
    if one.kind == "Mapping[str, str]":
        return _pairs
    if one.kind in LISTS:
        return _words
    return _plain


def _plain(value: Any) -> Any:
    return value


def _words(value: Any) -> Any:
    if isinstance(value, str):
        return [word.strip() for word in value.split(",") if word.strip()]
    return value


def _pairs(value: Any) -> Any:
    words = _words(value)
    if not isinstance(words, (list, tuple)):
        return words
    pairs: dict[str, str] = {}
    for word in words:
        name, sign, target = str(word).partition("=")
        if not (name and sign and target):
            raise ValueError(f"{word!r} is not of the form NAME=ID")
        pairs[name] = target
    return pairs


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+)\s*([a-zA-Z]*)\s*", value)
    if match is None or match[2].upper() not in UNITS:
        raise ValueError("a size is a number of bytes, or one with KiB, MiB, GiB or TiB")
    return int(match[1]) * UNITS[match[2].upper()]


def _class_of(field: dataclasses.Field[Any]) -> type | None:
    """Return the dataclass that a field holds by default; None where it is a plain setting."""
    factory: Any = field.default_factory
    return factory if inspect.isclass(factory) and dataclasses.is_dataclass(factory) else None


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def shown_default(one: Setting, quote: str = "") -> str:
    """Write a setting's default for people; nothing where there is none.

    Args:
        one: the setting.
        quote: stands before and after what a user could type.
    """
    if one.default is dataclasses.MISSING:
        return "your user data folder"
    if one.default is None or one.default in ((), frozenset()) or one.default == {}:
        return ""
    if one.is_size and one.default % 2**20 == 0:
        return f"{one.default // 2**20} MiB"
    if one.kind == "bool":
        return str(one.default).lower()
    if isinstance(one.default, tuple):
        return ", ".join(f"{quote}{word}{quote}" for word in one.default)
    return f"{quote}{one.default}{quote}"


def _field_docs(source: str) -> dict[str, dict[str, str]]:
    """Read the docstrings below the fields of every class in a module's source, as single lines."""
    docs: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        found = docs[node.name] = {}
        for field, doc in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(doc.value.value).split())
    return docs
