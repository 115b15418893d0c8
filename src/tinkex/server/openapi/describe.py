"""What a route takes and gives, said where the route is.

Owns the words for it. A route of the Tinker API needs none: `wire/endpoints.py` has its messages.
Any other route, or one that takes a query or more than one form of body, says it with `described`;
the document, the refusal of unknown query parameters and the tests all read that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ATTRIBUTE = "__described__"
JSON = "application/json"

F = TypeVar("F", bound="Callable[..., Any]")


class Query(BaseModel):
    """A query string, as fields. Subclass it; what is no field is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoQuery(Query):
    """No query string at all."""


@dataclass(frozen=True, slots=True)
class Media:
    """One form that a body may have."""

    content_type: str
    schema: Any = None
    """A type that pydantic can describe; None for bytes."""
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What one route takes and gives, where the wire's table does not say it."""

    request: Any = None
    """Type of the JSON body, or a tuple of `Media`."""
    response: Any = None
    """Type of the JSON reply, or a tuple of `Media`; `dict` is an empty object."""
    query: type[Query] = NoQuery
    status: int = 200
    """Of a reply without an error."""
    unread: bool = False
    """Whether any body is accepted, as its content is not relied on."""
    error: Any = None
    """Type of the JSON of a refusal, where it is not `{"detail"}`."""
    faults: Mapping[int, str] = field(default_factory=dict)
    """Statuses of errors besides those that every route may give, and when they come."""


def described(
    *,
    request: Any = None,
    response: Any = None,
    query: type[Query] = NoQuery,
    status: int = 200,
    unread: bool = False,
    error: Any = None,
    faults: Mapping[int, str] | None = None,
) -> Callable[[F], F]:
    """Say what a route takes and gives; see `Description` for the arguments."""
    description = Description(
        request=request,
        response=response,
        query=query,
        status=status,
        unread=unread,
        error=error,
        faults=faults or {},
    )

    def mark(handler: F) -> F:
        setattr(handler, ATTRIBUTE, description)
        return handler

    return mark
