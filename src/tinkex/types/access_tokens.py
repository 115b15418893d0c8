"""Tokens that let somebody else read one checkpoint. Ours: the official API takes them only."""

from __future__ import annotations

from datetime import datetime

from tinkex.types._model import Int, WireRequest, WireResponse


class MakeAccessTokenRequest(WireRequest):
    """Make a token for a checkpoint, that ends so many seconds from now."""

    ttl_seconds: Int = 86_400


class AccessTokenGrant(WireResponse):
    """A token that was made, without the token."""

    token_id: str
    """Names it, to take it back."""
    tinker_path: str
    created_at: datetime
    expires_at: datetime


class NewAccessToken(AccessTokenGrant):
    """A token, shown this once."""

    weights_access_token: str


class AccessTokensResponse(WireResponse):
    """The tokens of a checkpoint that have not ended."""

    access_tokens: list[AccessTokenGrant]
