"""Commands whose options are settings: made of them, so that none is forgotten.

Owns how a setting looks as an option. The settings are `cli/settings.py`'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from tinkex.cli.settings import LISTS, Setting, shown_default

_METAVARS_BY_KIND = {"int": "N", "float": "SECONDS", "Path": "PATH"}


def take_settings(
    command: Any,
    own: Sequence[inspect.Parameter],
    settings: Iterable[Setting],
    metavars: Mapping[str, str],
) -> None:
    """Give a command the signature that typer reads.

    Args:
        command: a function that takes everything by keyword.
        own: its parameters that are no settings.
        settings: each that has a flag becomes an option.
        metavars: what stands for a value in the help, by the setting's name.
    """
    flags = [_flag(one, metavars) for one in settings if one.flag is not None]
    signature = inspect.Signature([*own, *flags])
    command.__signature__ = signature
    command.__annotations__ = {
        name: parameter.annotation for name, parameter in signature.parameters.items()
    }


def keyword(name: str, kind: Any, option: Any = None, default: Any = None) -> inspect.Parameter:
    """Describe one parameter of a command."""
    annotation = kind if option is None else Annotated[kind, option]
    if kind is typer.Context:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def given_flags(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the options that were not given."""
    return {name: value for name, value in options.items() if value not in (None, [], ())}


def _flag(setting: Setting, metavars: Mapping[str, str]) -> inspect.Parameter:
    declaration, metavar = str(setting.flag), None
    kind: Any
    if setting.kind == "bool":
        kind, declaration = bool | None, f"{declaration}/--no-{declaration[2:]}"
    else:
        kind = list[str] | None if setting.kind in LISTS else str | None
        metavar = _metavar(setting, metavars)
    default = shown_default(setting)
    told = f"{setting.meaning} [default: {default}]" if default else setting.meaning
    option = typer.Option(declaration, metavar=metavar, help=told, show_default=False)
    return keyword(setting.name, kind, option)


def _metavar(setting: Setting, metavars: Mapping[str, str]) -> str:
    if setting.in_mebibytes:
        return "MIB"
    if setting.is_size:
        return "BYTES"
    by_kind = _METAVARS_BY_KIND.get(setting.kind.removesuffix(" | None"), "TEXT")
    return metavars.get(setting.name, by_kind)
