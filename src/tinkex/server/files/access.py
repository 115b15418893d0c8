"""Tokens that let somebody else read one checkpoint, for a while.

Owns making them, taking them back, and whether one is good. A token is 256 random bits, shown once;
the database keeps its SHA-256. Requests are journalled with that too, never with the token. It is
for a path: it ends with its time, and with the checkpoint.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select

from tinkex.errors import InputError
from tinkex.server.files.tables import ACCESS_TOKENS
from tinkex.types.access_tokens import AccessTokenGrant, NewAccessToken

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tinkex._clock import Clock
    from tinkex.server.storage.blobs import CheckpointKey
    from tinkex.server.storage.store import Store

MIN_TTL_S = 60
MAX_TTL_S = 366 * 86_400
MAX_TOKENS = 100
"""Of one checkpoint."""
_TOKEN_BYTES = 32
_DIGEST = "sha256:"


class AccessTokens:
    """All tokens of a server."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def make(self, key: CheckpointKey, ttl_seconds: int) -> NewAccessToken:
        """Make a token for a checkpoint that is there.

        Raises:
            InputError: the time is out of bounds, or it has too many.
        """
        if not MIN_TTL_S <= ttl_seconds <= MAX_TTL_S:
            raise InputError(
                f"ttl_seconds is {ttl_seconds}: it must be {MIN_TTL_S} to {MAX_TTL_S} (366 days)."
            )
        now = self._clock.now()
        token = f"wat-{secrets.token_urlsafe(_TOKEN_BYTES)}"
        row = {
            "token_id": secrets.token_hex(8),
            "digest": hidden(token),
            "run_id": key.run_id,
            "kind": key.kind,
            "name": key.name,
            "created_at": now,
            "expires_at": now + ttl_seconds,
        }
        async with self._store.begin() as connection:
            await connection.execute(delete(ACCESS_TOKENS).where(ACCESS_TOKENS.c.expires_at <= now))
            count = select(func.count()).select_from(ACCESS_TOKENS).where(_of(key))
            if (await connection.execute(count)).scalar_one() >= MAX_TOKENS:
                raise InputError(
                    f"{key.path} has {MAX_TOKENS} access tokens: take back some that are not "
                    "needed, or publish it."
                )
            await connection.execute(insert(ACCESS_TOKENS).values(**row))
        return NewAccessToken(
            token_id=str(row["token_id"]),
            tinker_path=key.path,
            created_at=_moment(now),
            expires_at=_moment(now + ttl_seconds),
            weights_access_token=token,
        )

    async def list(self, key: CheckpointKey) -> list[AccessTokenGrant]:
        """Return the tokens of a checkpoint that have not ended, the oldest first."""
        query = (
            select(ACCESS_TOKENS)
            .where(_of(key), ACCESS_TOKENS.c.expires_at > self._clock.now())
            .order_by(ACCESS_TOKENS.c.created_at)
        )
        async with self._store.begin() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [_grant(row, key) for row in rows]

    async def revoke(self, key: CheckpointKey, token_id: str) -> bool:
        """Take a token back; say whether there was one."""
        chosen = delete(ACCESS_TOKENS).where(_of(key), ACCESS_TOKENS.c.token_id == token_id)
        async with self._store.begin() as connection:
            return bool((await connection.execute(chosen)).rowcount)

    async def opens(self, key: CheckpointKey, digest: str) -> bool:
        """Whether the token of a digest, as `hidden` gives it, opens a checkpoint."""
        query = select(ACCESS_TOKENS.c.token_id).where(
            _of(key),
            ACCESS_TOKENS.c.digest == digest,
            ACCESS_TOKENS.c.expires_at > self._clock.now(),
        )
        async with self._store.begin() as connection:
            return (await connection.execute(query)).first() is not None


async def forget_tokens(connection: AsyncConnection, key: CheckpointKey) -> None:
    """Take back all tokens of a checkpoint, in the transaction that deletes it."""
    await connection.execute(delete(ACCESS_TOKENS).where(_of(key)))


def hidden(token: str) -> str:
    """Return what stands for a token where it is kept."""
    return _DIGEST + hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _of(key: CheckpointKey) -> ColumnElement[bool]:
    columns = ACCESS_TOKENS.c
    return (columns.run_id == key.run_id) & (columns.kind == key.kind) & (columns.name == key.name)


def _grant(row: RowMapping, key: CheckpointKey) -> AccessTokenGrant:
    return AccessTokenGrant(
        token_id=row["token_id"],
        tinker_path=key.path,
        created_at=_moment(row["created_at"]),
        expires_at=_moment(row["expires_at"]),
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
