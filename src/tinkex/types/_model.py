"""The bases of the small JSON messages, and how a field says whether None is absent or null."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def _is_none(value: object) -> bool:
    return value is None


def absent() -> Any:
    """Declare an optional field that is left out of the JSON when it is None.

    A field declared with a plain `= None` is sent as null instead. Which one a field is, the
    recordings decide, field by field.
    """
    return Field(default=None, exclude_if=_is_none)


class WireModel(BaseModel):
    """A JSON message. Immutable; its values are not coerced (a string is no number)."""

    model_config = ConfigDict(
        frozen=True, strict=True, protected_namespaces=(), ser_json_inf_nan="constants"
    )


class WireRequest(WireModel):
    """What a client sends: an unknown field is an error, so nothing is silently ignored."""

    model_config = ConfigDict(extra="forbid")


class WireResponse(WireModel):
    """What a server answers: unknown fields are ignored, so an old client reads a new server."""

    model_config = ConfigDict(extra="ignore", strict=False)
