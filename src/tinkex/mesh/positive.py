"""The one check that most settings share: a number that has to be more than 0.

Owns its words, so that every part of a worker refuses such a number alike, and by name.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any


def not_positive(settings: Any, *, but: Collection[str] = ()) -> list[str]:
    """Say which numbers among a dataclass's fields are not more than 0; None is no number.

    Args:
        settings: the dataclass.
        but: fields that have other bounds.
    """
    found = {one.name: getattr(settings, one.name) for one in fields(settings)}
    return [
        f"{name} is {value:g}: it must be more than 0"
        for name, value in found.items()
        if name not in but
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and not value > 0
    ]
