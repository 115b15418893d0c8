"""Keep secrets out of logs, reprs and errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

REDACTED = "[redacted]"

SECRET_HEADERS = frozenset(
    {
        "authorization",
        "cf-access-client-id",
        "cf-access-client-secret",
        "cookie",
        "proxy-authorization",
        "set-cookie",
        "x-api-key",
        "x-tinker-weights-access-token",
    }
)
"""Headers whose values never leave the process by another way than the request."""

# API keys, the mesh's keys and invitations, and JSON web tokens with or without their signature: at
# the start of a word, or after a percent-escape, whose last digit may be a letter.
_SECRET = re.compile(
    r"(?:(?<![A-Za-z])|(?<=%[0-9A-Fa-f]{2}))"
    r"(?:(?:tml|tmk|tmr)-[A-Za-z0-9_\-.]+|tinkex-mesh:[A-Za-z0-9_\-=]+"
    r"|eyJ[A-Za-z0-9_\-]+(?:\.[A-Za-z0-9_\-]+)*)"
)


def redact(text: str) -> str:
    """Return `text` with every API key and token replaced."""
    return _SECRET.sub(REDACTED, text)


def redact_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of `headers` that can be logged."""
    return {
        name: REDACTED if name.lower() in SECRET_HEADERS else redact(value)
        for name, value in headers.items()
    }
