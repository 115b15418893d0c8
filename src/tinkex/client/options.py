"""The official package's names for how a request is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from httpx import Timeout

__all__ = ["ExperimentalWarning", "RequestOptions", "Timeout"]


class RequestOptions(TypedDict, total=False):
    """Options of one request: a type for annotations; no public method takes it."""

    headers: Mapping[str, str]
    max_retries: int
    timeout: float | Timeout | None
    params: Mapping[str, object]
    extra_json: Mapping[str, object]
    idempotency_key: str
    follow_redirects: bool


class ExperimentalWarning(FutureWarning):
    """What is used may change in any release. tinkex itself does not raise it yet."""
