"""What an API key may be for."""

from __future__ import annotations

INFER = "infer"
"""Completions."""
READ = "read"
"""Models, usage."""
PUBLISH = "publish"
"""Making adapters known."""
SCOPES = frozenset({INFER, READ, PUBLISH})
"""All of them; an access token is good for each, and besides for the account itself."""
DEFAULT_SCOPES = frozenset({INFER, READ})
"""What a key is for where nobody says."""
