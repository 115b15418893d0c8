"""The tables of the server's database, as SQLAlchemy sees them.

Owns names and columns. The migrations make them; a test holds the two equal. Times are unix
seconds, metadata is JSON text.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
)

METADATA = MetaData()

SESSIONS = Table(
    "sessions",
    METADATA,
    Column("session_id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("status", String, nullable=False),
    Column("reason", String),
    Column("detail", String),
    Column("ended_at", Float),
    Column("sdk_version", String),
    Column("project_id", String),
    Column("display_name", String),
    Column("tags", JSON, nullable=False),
    Column("user_metadata", JSON),
    Column("key_id", String),
    Index("sessions_by_owner", "owner", "created_at"),
)

TRAINING_RUNS = Table(
    "training_runs",
    METADATA,
    Column("run_id", String, primary_key=True),
    Column("session_id", String, ForeignKey("sessions.session_id"), nullable=False),
    Column("owner", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("lora_rank", Integer, nullable=False),
    Column("train_attn", Boolean, nullable=False),
    Column("train_mlp", Boolean, nullable=False),
    Column("train_unembed", Boolean, nullable=False),
    Column("user_metadata", JSON),
    Column("created_at", Float, nullable=False),
    Column("last_request_at", Float, nullable=False),
    Index("training_runs_by_owner", "owner", "created_at"),
    Index("training_runs_by_session", "session_id"),
)

CHECKPOINTS = Table(
    "checkpoints",
    METADATA,
    Column("checkpoint_number", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String, ForeignKey("training_runs.run_id"), nullable=False),
    Column("owner", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("has_optimizer", Boolean, nullable=False),
    Column("expires_at", Float),
    Column("user_metadata", JSON),
    Column("public", Boolean, nullable=False, server_default=false()),
    Column("files", JSON),
    Column("request_id", String),
    UniqueConstraint("run_id", "kind", "name", name="checkpoints_by_path"),
    Index("checkpoints_by_owner", "owner", "created_at"),
    Index("checkpoints_by_expiry", "expires_at"),
)

SAMPLERS = Table(
    "samplers",
    METADATA,
    Column("sampler_id", String, primary_key=True),
    Column("session_id", String, ForeignKey("sessions.session_id"), nullable=False),
    Column("owner", String, nullable=False),
    Column("base_model", String, nullable=False),
    Column("model_path", String),
    Column("created_at", Float, nullable=False),
    Column("run_id", String),
    Column("inflight", Boolean, nullable=False, server_default=false()),
    Column("clones", Integer, nullable=False, server_default="0"),
    Column("request_id", String),
    Index("samplers_by_session", "session_id"),
)

JOURNAL = Table(
    "journal",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("request_id", String, nullable=False, unique=True),
    Column("session_id", String, nullable=False),
    Column("target", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("operation", String, nullable=False),
    Column("seq_id", Integer),
    Column("digest", LargeBinary, nullable=False),
    Column("accepted_at", Float, nullable=False),
    Column("dialect", String, nullable=False),
    Column("body", LargeBinary),
    Column("lasting", Boolean, nullable=False),
    Column("generation", Integer),
    Column("outcome", String, nullable=False),
    Column("message", String),
    Column("result", LargeBinary),
    Column("result_bytes", Integer, nullable=False),
    Column("kept", Boolean, nullable=False),
    Column("finished_at", Float),
    Column("body_sum", LargeBinary),
    Column("result_sum", LargeBinary),
    Index("journal_by_target", "target"),
    Index("journal_by_session", "session_id"),
    sqlite_autoincrement=True,
)

RECORDINGS = Table(
    "recordings",
    METADATA,
    Column("request_id", String, primary_key=True),
    Column("session_id", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("recordings_by_session", "session_id"),
)

RUN_SNAPSHOTS = Table(
    "run_snapshots",
    METADATA,
    Column("model_id", String, primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("session_id", String, nullable=False),
    Column("next_seq_id", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)
