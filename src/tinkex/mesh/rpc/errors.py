"""Errors across the wire: those of `tinkex.errors`, whole, and nothing else.

Owns the translation both ways. A name that is none of `tinkex.errors` becomes a MeshError: what a
peer sends only ever chooses among the classes of that one module.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tinkex import errors
from tinkex.errors import (
    APIResponseValidationError,
    APIStatusError,
    ConfigurationError,
    MeshError,
    RequestFailedError,
    TinkerError,
)
from tinkex.mesh.rpc.messages import MAX_ERROR_CHARS, MAX_TIMEOUT_MS, WireError

_CLASSES: Mapping[str, type[TinkerError]] = MappingProxyType(
    {
        name: found
        for name, found in vars(errors).items()
        if inspect.isclass(found) and issubclass(found, TinkerError)
    }
)
_CATEGORIES = frozenset({"user", "server", "unknown"})
_MAX_LINES = 32


def wire_error(error: TinkerError) -> WireError:
    """Make an error's message. A class that is not of `tinkex.errors` becomes its nearest base."""
    name = next(
        base.__name__ for base in type(error).__mro__ if _CLASSES.get(base.__name__) is base
    )
    lines = error.problems if isinstance(error, ConfigurationError) else (error.message,)
    status = getattr(error, "status_code", None)
    return WireError(
        name,
        tuple(str(line)[:MAX_ERROR_CHARS] for line in lines[:_MAX_LINES]) or ("",),
        error.category if error.category in _CATEGORIES else "unknown",  # type: ignore[arg-type]
        _milliseconds(error.retry_after_ms),
        None if error.request_id is None else str(error.request_id)[:256],
        status if isinstance(status, int) and 100 <= status <= 599 else None,
        _of_body(error, "param"),
        _of_body(error, "code"),
    )


def error_of(message: WireError) -> TinkerError:
    """Make the error that a peer's message stands for."""
    kind = _CLASSES.get(message.name, MeshError)
    text = message.lines[0]
    details: dict[str, Any] = {
        "category": message.category,
        "retry_after_ms": message.retry_after_ms,
        "request_id": message.request_id,
    }
    if issubclass(kind, ConfigurationError):
        found: TinkerError = kind(message.lines)
    elif issubclass(kind, RequestFailedError):
        found = kind(text, message.request_id or "", message.category)
    elif issubclass(kind, APIStatusError | APIResponseValidationError):
        return kind(text, status_code=message.status_code, body=_body(message), **details)
    else:
        return kind(text, **details)
    # These two have constructors of their own.
    found.category = message.category
    found.retry_after_ms = message.retry_after_ms
    found.request_id = message.request_id
    return found


def _of_body(error: TinkerError, name: str) -> str | None:
    body = getattr(error, "body", None)
    value = body.get(name) if isinstance(body, Mapping) else None
    return value[:256] if isinstance(value, str) else None


def _body(message: WireError) -> dict[str, str | None] | None:
    if message.param is None and message.code is None:
        return None
    return {"param": message.param, "code": message.code}


def _milliseconds(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(min(max(value, 0.0), MAX_TIMEOUT_MS))
