"""The reference pages name every public name, and each name they give exists."""

import importlib
import re
from pathlib import Path

import tinkex
import tinkex.types

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
IDENTIFIERS = {
    found
    for page in REFERENCE.glob("*.md")
    for found in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
}
WHOLE_MODULES = {"tinkex.errors", "tinkex.regularizers", "tinkex.auth"}
# not things with a page of their own
LEFT_OUT = {"Timeout", "__title__", "__version__", "auth", "types"}


def found(identifier):
    module, _, name = identifier.rpartition(".")
    return getattr(importlib.import_module(module), name, None)


def test_every_identifier_exists():
    for identifier in IDENTIFIERS - WHOLE_MODULES:
        assert found(identifier) is not None, identifier


def test_every_public_name_has_a_place():
    shown = {identifier.rpartition(".")[2] for identifier in IDENTIFIERS}
    shown |= {name for module in WHOLE_MODULES for name in dir(importlib.import_module(module))}
    missing = (set(tinkex.__all__) | set(tinkex.types.__all__)) - shown - LEFT_OUT
    assert not missing


def test_every_public_class_and_function_says_what_it_is():
    for identifier in IDENTIFIERS - WHOLE_MODULES:
        value = found(identifier)
        if isinstance(value, type) or hasattr(value, "__code__"):
            assert value.__doc__, identifier
