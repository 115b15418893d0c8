"""Fetch a list page by page, up to a limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shown(Generic[T]):
    """Part of a list, and how long the whole is."""

    items: list[T]
    total: int

    def title(self, noun: str, of: str = "") -> str:
        """Say how many there are, and how many are not shown."""
        count = len(self.items)
        if count == 0:
            return f"No {noun}s found{of}"
        words = f"{count} {noun}{'' if count == 1 else 's'}{of}"
        left = self.total - count
        return f"{words} ({left} more: --limit shows them)" if left > 0 else words


def fetch_pages(fetch: Callable[[int, int], Shown[T]], limit: int, page: int) -> Shown[T]:
    """Fetch up to `limit` items.

    Args:
        fetch: gives a page for (size, offset).
        limit: items at most; 0 fetches all.
        page: items of one request.
    """
    found: list[T] = []
    while True:
        wanted = min(page, limit - len(found)) if limit else page
        part = fetch(wanted, len(found))
        found.extend(part.items)
        done = len(part.items) < wanted or len(found) >= part.total
        if done or (limit and len(found) >= limit):
            return Shown(found, max(part.total, len(found)))
