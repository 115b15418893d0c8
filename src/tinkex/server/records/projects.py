"""Projects: names under which an account puts its sessions, and so what they made.

Owns what a project is here. On a server of one's own nobody administers projects: one exists when a
session names it, for the account that the session belongs to, and for no other. A session that
names none is in the project `default`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func

from tinkex.server.refusal import invalid_fields

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

DEFAULT_PROJECT = "default"
MAX_CHARACTERS = 200


def project_of(column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a session's project in SQL, by its column, named `project_id`."""
    return func.coalesce(column, DEFAULT_PROJECT).label("project_id")


def check_project(project_id: str, field: str = "project_id") -> None:
    """Check the name of a project, which came as `field`.

    Raises:
        Refusal: 422 for one that is empty, too long, or has characters that do not print.
    """
    if not 0 < len(project_id) <= MAX_CHARACTERS or not project_id.isprintable():
        raise invalid_fields(
            f"{field} must be 1 to {MAX_CHARACTERS} printable characters, such as a name."
        )
