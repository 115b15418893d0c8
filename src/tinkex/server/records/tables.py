"""The tables of what is written down.

Owns names and columns; `migrations` makes them. Times are unix seconds. Nothing refers to a session
or a run by a foreign key: these rows are written later than what they speak of, and outlive it.
"""

from __future__ import annotations

from sqlalchemy import JSON, Column, Float, Index, Integer, String, Table

from tinkex.server.storage.tables import METADATA

REQUESTS = Table(
    "requests",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("request_id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("session_id", String, nullable=False),
    Column("source_id", String, nullable=False),
    Column("operation", String, nullable=False),
    Column("accepted_at", Float, nullable=False),
    Column("began_at", Float),
    Column("finished_at", Float, nullable=False),
    Column("engine_s", Float, nullable=False),
    Column("amounts", JSON, nullable=False),
    Column("error", String),
    Index("requests_by_session", "session_id", "number"),
)
"""Requests that ended, for traces; also what tells that one was counted."""

USAGE_HOURS = Table(
    "usage_hours",
    METADATA,
    Column("hour", Integer, primary_key=True),
    Column("owner", String, primary_key=True),
    Column("key_id", String, primary_key=True),
    Column("session_id", String, primary_key=True),
    Column("source_id", String, primary_key=True),
    Column("base_model", String, primary_key=True),
    Column("forward_tokens", Integer, nullable=False),
    Column("forward_backward_tokens", Integer, nullable=False),
    Column("prefilled_tokens", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("sampled_tokens", Integer, nullable=False),
    Column("checkpoints", Integer, nullable=False),
    Column("requests", Integer, nullable=False),
    Column("failed_requests", Integer, nullable=False),
    Column("training_s", Float, nullable=False),
    Column("sampling_s", Float, nullable=False),
    Index("usage_hours_by_owner", "owner", "hour"),
    Index("usage_hours_by_key", "key_id"),
)
"""Usage by the hour, as unix seconds of its start, and by everything it is counted on."""

TRAINING_METRICS = Table(
    "training_metrics",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String, nullable=False),
    Column("request_id", String, nullable=False, unique=True),
    Column("operation", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Index("training_metrics_by_run", "run_id", "number"),
    Index("training_metrics_by_time", "at"),
)
"""What each training step told; `step` counts optimiser steps from 1."""

STORAGE_SPANS = Table(
    "storage_spans",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("began_at", Float, nullable=False),
    Column("ended_at", Float),
    Index("storage_spans_by_path", "run_id", "kind", "name"),
    Index("storage_spans_by_end", "ended_at"),
)
"""How long each checkpoint lay on the disk; no end while it does."""

AUDIT_LOG = Table(
    "audit_log",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("owner", String, nullable=False),
    Column("key_id", String),
    Column("resource", String, nullable=False),
    Column("event", String, nullable=False),
    Column("details", JSON, nullable=False),
    Index("audit_log_by_time", "at"),
)
"""What was done with checkpoints, projects, accounts and keys, and by whom."""
