"""The query parameters that several routes share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tinkex.server.openapi.describe import Query

MAX_PAGE = 1000


def _written_out(value: object) -> object:
    """Refuse a number where a date is meant: pydantic would count it from 1970."""
    if isinstance(value, str) and value.replace(".", "", 1).lstrip("+-").isdigit():
        raise ValueError("must be written as a date, not as a number")
    return value


WrittenOut = BeforeValidator(_written_out)
PageSize = Annotated[int, Field(ge=1, le=MAX_PAGE)]


class Page(Query):
    """Which part of a list."""

    limit: PageSize = 20
    offset: Annotated[int, Field(ge=0, le=2**62)] = 0


class ScopeQuery(Query):
    """Whose things. A key can reach its own account's alone, so both words mean the same here."""

    access_scope: Literal["owned", "accessible"] = "owned"
