"""Where OpenAI's and Anthropic's APIs are found.

Owns the prefixes, and which paths are below them: the middleware asks, as errors have another form
there.
"""

from __future__ import annotations

OPENAI_PREFIXES = ("/v1", "/oai/api/v1", "/services/tinker-prod/oai/api/v1")
"""OpenAI's own, the official service's below its base URL, and the same below its host."""
ANTHROPIC_PREFIXES = ("/anthropic/api/v1", "/services/tinker-prod/anthropic/api/v1")
"""The official service's below its base URL, and the same below its host."""
SHARED_PREFIX = "/v1"
"""Here are OpenAI's API and Anthropic's messages."""


def is_anthropic_path(path: str) -> bool:
    """Say whether a path belongs to Anthropic's API."""
    own = tuple(f"{prefix}/" for prefix in ANTHROPIC_PREFIXES)
    return path.startswith((*own, f"{SHARED_PREFIX}/messages"))


def is_openai_path(path: str) -> bool:
    """Say whether a path belongs to OpenAI's API."""
    below = path.startswith(tuple(f"{prefix}/" for prefix in OPENAI_PREFIXES))
    return below and not is_anthropic_path(path)
