"""The bases of the small JSON messages, and how a field says whether None is absent or null."""

from __future__ import annotations

import json
import operator
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _is_none(value: object) -> bool:
    return value is None


def absent() -> Any:
    """Declare an optional field that is left out of the JSON when it is None.

    A field declared with a plain `= None` is sent as null instead. Which one a field is, the
    recordings decide, field by field.
    """
    return Field(default=None, exclude_if=_is_none)


def _plain_int(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool | int | str):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _plain_bool(value: Any) -> Any:
    return bool(value) if isinstance(value, np.bool_) else value


Int = Annotated[int, BeforeValidator(_plain_int), Field(ge=-(2**63), lt=2**63)]
"""A whole number of 64 bits, also one of NumPy's or a float without a fraction; neither text nor a
boolean."""

Bool = Annotated[bool, BeforeValidator(_plain_bool)]
"""A boolean, also NumPy's."""


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        raise ValueError("a boolean is no number")  # noqa: TRY004 - pydantic reads ValueError
    return value


NotBoolean = BeforeValidator(_refuse_boolean)
"""For literal numbers: to Python, True is 1."""


def _as_texts(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}


TextMap = Annotated[dict[str, str], BeforeValidator(_as_texts)]
"""A client's notes where the wire has text alone: any other value, as its JSON."""


class WireModel(BaseModel):
    """A JSON message. Immutable; its values are not coerced (a string is no number)."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        protected_namespaces=(),
        ser_json_inf_nan="constants",
        # a client uses few of the messages, and is imported often
        defer_build=True,
    )


class WireRequest(WireModel):
    """What a client sends: an unknown field is an error, so nothing is silently ignored."""

    model_config = ConfigDict(extra="forbid")


class WireResponse(WireModel):
    """What a server answers: unknown fields are ignored, so an old client reads a new server."""

    model_config = ConfigDict(extra="ignore", strict=False)
