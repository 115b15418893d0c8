"""The tables of accounts and keys, as SQLAlchemy sees them. Times are unix seconds."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, String, Table

from tinkex.server.storage.tables import METADATA

ACCOUNTS = Table(
    "accounts",
    METADATA,
    Column("account_id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("email", String, unique=True),
    Column("role", String, nullable=False),
    Column("password_hash", String),
    Column("created_at", Float, nullable=False),
    Column("disabled_at", Float),
    Column("logins_after", Float, nullable=False),
)

API_KEYS = Table(
    "api_keys",
    METADATA,
    Column("key_id", String, primary_key=True),
    Column("account_id", String, ForeignKey("accounts.account_id"), nullable=False),
    Column("digest", String, nullable=False, unique=True),
    Column("prefix", String, nullable=False),
    Column("name", String, nullable=False),
    Column("note", String, nullable=False),
    Column("scopes", String, nullable=False),
    Column("given", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("max_tokens", Integer),
    Column("max_seconds", Float),
    Index("api_keys_by_account", "account_id", "created_at"),
)
