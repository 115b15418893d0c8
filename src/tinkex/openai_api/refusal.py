"""Errors as OpenAI's clients read them: `{"error": {message, type, param, code}}`.

Owns statuses, types and codes. The exceptions are those of `tinkex.errors`; what OpenAI's form has
beside the message travels in their `body`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tinkex.errors import (
    APIStatusError,
    EngineBusyError,
    InputError,
    MeshError,
    ResultTimeoutError,
    TinkerError,
    TrustError,
    status_error,
)

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_FAULTS = 5
_CODES = {
    401: "invalid_api_key",
    402: "insufficient_quota",
    403: "permission_denied",
    429: "rate_limit_exceeded",
}
_TYPES = {402: "insufficient_quota", 429: "rate_limit_error"}
_BRANCHES = frozenset({"str", "int", "float", "bool"})
_TOO_LONG = "context_length_exceeded"
_UNKNOWN = "extra_forbidden"
_FAULT_CODES = {
    _UNKNOWN: "unknown_parameter",
    "missing": "missing_required_parameter",
    "unsupported": "unsupported_parameter",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    """The field at fault."""
    code: str | None = None


class ErrorReply(BaseModel):
    """The body of every reply with an error status."""

    error: ErrorDetail


def refused(
    message: str, *, param: str | None = None, code: str | None = None, status: int = 400
) -> APIStatusError:
    """Make the error that refuses a request, naming the field."""
    return status_error(status, message, body={"param": param, "code": code})


def unsupported(param: str, message: str) -> APIStatusError:
    """Refuse a field, or a value of it, that is not offered."""
    return refused(message, param=param, code="unsupported_parameter")


def untold_logprobs(param: str) -> APIStatusError:
    """Refuse what needs log-probabilities of a model whose server tells none."""
    return unsupported(
        param,
        f"{param} needs log-probabilities, and this model runs on a server of another kind, which "
        "tells none: leave it out.",
    )


def model_not_found(message: str) -> APIStatusError:
    """Refuse a model that is not there for this caller."""
    return refused(message, param="model", code="model_not_found", status=404)


def context_length_exceeded(message: str, param: str) -> APIStatusError:
    """Refuse what does not fit into the model's context."""
    return refused(message, param=param, code=_TOO_LONG)


def is_context_length_exceeded(error: TinkerError) -> bool:
    """Whether an error refuses what does not fit into the context of whoever refuses it."""
    body = getattr(error, "body", None)
    return isinstance(body, Mapping) and body.get("code") == _TOO_LONG


def invalid(error: ValidationError) -> APIStatusError:
    """Say in one refusal which fields do not fit and why."""
    faults = error.errors(include_url=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        return refused(f"The body is not valid JSON: {faults[0]['msg']}.", code="invalid_json")
    faults = _worth_telling(faults)
    lines = [_fault(fault) for fault in faults[:MAX_FAULTS]]
    if len(faults) > MAX_FAULTS:
        lines.append(f"and {len(faults) - MAX_FAULTS} more")
    code = _FAULT_CODES.get(faults[0]["type"], "invalid_value")
    return refused("; ".join(lines), param=_place(faults[0]) or None, code=code)


def status_of(error: TinkerError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, APIStatusError):
        return 400 if error.status_code == 422 else error.status_code
    if isinstance(error, (EngineBusyError, MeshError)) and error.category != "user":
        return 503
    if isinstance(error, TrustError):
        return 403
    if isinstance(error, ResultTimeoutError):
        return 504
    return 400 if isinstance(error, InputError) or error.category == "user" else 500


def error_body(error: TinkerError) -> dict[str, Any]:
    """Return the body of an error's reply, or of the event that ends a stream."""
    status = status_of(error)
    raw = getattr(error, "body", None)
    extra: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
    fallback = "invalid_request_error" if status < 500 else "server_error"
    detail = ErrorDetail(
        message=str(error),
        type=_TYPES.get(status, fallback),
        param=extra.get("param"),
        code=extra.get("code") or _CODES.get(status),
    )
    return ErrorReply(error=detail).model_dump()


def _fault(fault: ErrorDetails) -> str:
    where = _place(fault) or "body"
    if fault["type"] == _UNKNOWN:
        return f"{where}: this server knows no such field"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"


def _worth_telling(faults: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out that a list is no text, where it is told what is wrong with the list."""

    def told_better(fault: ErrorDetails) -> bool:
        *place, branch = fault["loc"] or ("",)
        return (
            fault["type"] != _UNKNOWN
            and branch in _BRANCHES
            and any(
                other is not fault and other["loc"][: len(place)] == tuple(place)
                for other in faults
            )
        )

    return [fault for fault in faults if not told_better(fault)] or faults


def _place(fault: ErrorDetails) -> str:
    """Name a field by its path; the branches of unions, which pydantic adds, are left out.

    An unknown field ends its path, and may be called anything.
    """
    place = fault["loc"]
    unknown = place[-1:] if fault["type"] == _UNKNOWN else ()
    parts = [
        part
        for part in place[: len(place) - len(unknown)]
        if isinstance(part, int) or (part.isidentifier() and part not in _BRANCHES)
    ]
    parts += unknown
    return ".".join(str(part) for part in parts)
