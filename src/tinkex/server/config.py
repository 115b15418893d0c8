"""Every setting of a server, checked at once.

Owns the settings and their bounds. Reads no environment and no file: the command line fills it in.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEFAULT_BASE_MODEL = "tinkex/sprout"
LOG_LEVELS = ("debug", "info", "warning", "error")
DTYPES = ("auto", "float32", "bfloat16", "float16")
KEY_PREFIX = "tml-"
MIN_KEY_LENGTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request, one client and the whole server may hold. Sizes are bytes."""

    max_body_bytes: int = 64 * 2**20
    """Largest request body, after decompression."""

    max_drained_bytes: int = 2**30
    """An oversize forward_backward is read to its end, unkept, up to this, so that the answer can
    be a failed future; beyond it the connection is closed with a 413."""

    max_message_bytes: int = 16 * 2**20
    """Largest request body of anything but a batch for training: small messages and prompts."""

    max_datums: int = 8192
    """Datums of one forward_backward request."""

    fwdbwd_max_chunk_len: int = 1024
    """Datums that a client puts into one forward_backward request (advertised)."""

    fwdbwd_max_chunk_bytes: int = 5_000_000
    """Bytes that a client puts into one forward_backward request (advertised)."""

    sample_max_concurrent_requests: int = 2000
    """Sampling requests that one client keeps open (advertised)."""

    max_rank: int = 256
    """Largest LoRA rank."""

    max_adapters: int = 256
    """Adapters, and sampler snapshots, of one base model where there is no disk behind memory."""

    device_adapter_bytes: int | None = None
    """Adapters and samplers of one base model in the device's memory, where that is not the host's.
    None: a quarter of it, shared by the base models."""

    host_adapter_bytes: int | None = None
    """As above, in the host's memory."""

    max_spilled_bytes: int = 64 * 2**30
    """Adapters and samplers of one base model on the disk behind memory."""

    max_unnamed_sampler_bytes: int = 32 * 2**30
    """Weights on the disk that were saved for sampling without a name
    (`save_weights_and_get_sampling_client`), over all clients; above it those of the account that
    has most go, the ones used least recently first, and never one in use."""

    max_num_samples: int = 1024
    """Samples of one request."""

    max_context_length: int | None = None
    """Tokens of one sequence, prompt and reply together, where a base model takes more. A sample
    that names no `max_tokens` may go on so far."""

    kv_cache_tokens: int = 65_536
    """Tokens of the keys and values of all samples of one base model that run at once; others wait.
    Each begins with room for its prompt and up to 1,024 tokens more, and the youngest give theirs
    back, to go on later, where older ones need it. Memory is taken as they come."""

    max_sample_bytes: int = 2**30
    """Largest result of one sampling request, were each sample as long as `max_tokens` or the
    model's context lets it be; more is refused before it begins."""

    max_sessions: int = 10_000
    """Live sessions."""

    max_sessions_per_key: int = 1000
    """Of them, one key's; above it new ones get a 429, as with the other limits by key."""

    max_runs_per_key: int = 4096
    """Training runs that one key has loaded."""

    max_samplers_per_key: int = 16_384
    """Sampling sessions that one key has open; above it those go that were not used for an hour."""

    max_open_futures_per_key: int = 10_000
    """Requests of one key accepted and not finished."""

    requests_per_minute: int | None = None
    """Requests of one key in a minute, polls and heartbeats not counted; None: any number."""

    tokens_per_minute: int | None = None
    """Tokens that one key trains on, prompts with and samples in a minute; None: any number."""

    max_open_futures: int = 20_000
    """Requests accepted and not finished, over all clients; above it new ones get a 429."""

    max_connections: int = 4096
    """Connections at a time; more are hung up on. Each takes a file handle of the process."""

    max_reading_bytes: int = 2**29
    """Request bodies that are being read, over all clients; above it those beyond 64 KiB get a
    429."""

    max_queued_bytes: int = 2**30
    """Decoded request data waiting to run, over all clients; above it new ones get a 429."""

    max_result_bytes: int = 2**30
    """Results kept for collection; above it some are dropped: the oldest that were delivered, then
    the oldest of the account that has most."""

    max_recorded_bytes: int = 128 * 2**20
    """Sampled sequences of one key kept for training (`record_stability_info`); above it those used
    least recently are dropped."""

    max_metric_rows: int = 20_000
    """Rows of training metrics kept of one run; above it every second step of the older half of
    them goes, so that the curve stays whole."""

    max_request_rows: int = 500_000
    """Ended requests kept for traces, over all clients; above it the oldest go."""

    max_journal_bytes: int = 64 * 2**20
    """Requests of one training run since its last snapshot; above it the next one is taken."""

    max_held_requests: int = 4096
    """Requests of one training run that wait for an earlier sequence id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of one server process.

    Raises:
        ConfigurationError: naming every setting that is wrong, not only the first.
    """

    data_dir: Path
    """Folder for the database, the generated key and the checkpoints; made when missing."""

    host: str = "127.0.0.1"
    """Address to listen on. The default is reachable from this machine only."""

    port: int = 8000
    """TCP port; 0 lets the system pick a free one."""

    allowed_hosts: tuple[str, ...] = ()
    """Names under which the server is reached, besides localhost and addresses; requests that name
    another are refused, and pages of these names may use the server."""

    tls_cert: Path | None = None
    """Certificate chain, PEM; the server then speaks HTTPS."""

    tls_key: Path | None = None
    """Its private key, PEM, without a password."""

    base_models: tuple[str, ...] = (DEFAULT_BASE_MODEL,)
    """Folders or hub ids of the base models to load."""

    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Further names of base models: alias to base model."""

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Keys to accept. Empty: read `api_key_file`, or make a key in the data folder."""

    api_key_file: Path | None = None
    """File with the keys to accept, one a line; blank lines and `#` comments are skipped."""

    spill: bool = True
    """Whether adapters and samplers that memory has no room for go to the disk. Otherwise a new one
    is refused."""

    spill_dir: Path | None = None
    """Folder for them, a cache that is erased at the start; None is `spill` in the data folder."""

    idle_adapter_s: float = 1800.0
    """Seconds without use after which an adapter or sampler moves from memory to the disk, and back
    at its next use; memory is then free for others."""

    device: str = "auto"
    """Where the models run: cpu, cuda, cuda:N, mps, or auto."""

    dtype: str = "auto"
    """Number format of the base models: float32, bfloat16, float16, or auto (float32 on a CPU)."""

    weight_dtype: str | None = None
    """`int8` keeps the frozen linear layers and the unembedding in int8, on a CPU in float32."""

    threads: int | None = None
    """CPU threads of one engine; None leaves the choice to torch."""

    trust_remote_code: frozenset[str] = frozenset()
    """Base models whose own Python code may run."""

    allow_pickle: frozenset[str] = frozenset()
    """Base models whose weights may be pickled."""

    log_level: str = "info"
    """Least severe log line that is written: debug, info, warning or error."""

    tracing: bool = False
    """Whether OpenTelemetry spans are recorded, and sent by OTLP over HTTP to where the variables
    OTEL_EXPORTER_OTLP_... say. Needs `tinkex[tracing]`."""

    long_poll_s: float = 30.0
    """Seconds that retrieve_future holds a request open; clients give up at 45 s."""

    head_timeout_s: float = 20.0
    """Seconds in which the head of a request must have come, from its connection's beginning or its
    first byte; later it is hung up on."""

    body_timeout_s: float = 30.0
    """Seconds for which a request's body may stop, or be behind 16 KiB a second; then 408."""

    write_timeout_s: float = 60.0
    """Seconds for which a client may read nothing of a reply; then it is hung up on."""

    sequence_gap_timeout_s: float = 60.0
    """Seconds that a missing sequence id may hold back the later requests of its run."""

    session_ttl_s: float = 150.0
    """Seconds without a heartbeat or any other request after which a session ends."""

    delivered_ttl_s: float = 120.0
    """Seconds that a result stays after it was delivered, for a reply lost on the way."""

    undelivered_ttl_s: float = 3600.0
    """Seconds that a result nobody collected stays."""

    snapshot_steps: int = 20
    """Optimiser steps of a training run from one snapshot of it to the next. A server that was
    killed repeats at most so many."""

    snapshot_quiet_s: float = 5.0
    """Seconds without a request after which a training run's snapshot is taken."""

    recording_ttl_s: float = 86_400.0
    """Seconds that a recorded sequence stays after it was sampled or last trained on."""

    token_ttl_s: float = 3600.0
    """Seconds that a token lives, which clients get for their key or a login; they renew it at half
    of that."""

    trace_retention_s: float = 14 * 86_400.0
    """Seconds that an ended request stays in the traces of its session."""

    metrics_retention_s: float = 365 * 86_400.0
    """Seconds that the metrics of a training step stay."""

    audit_retention_s: float = 400 * 86_400.0
    """Seconds that an event stays in the audit log."""

    signed_url_ttl_s: float = 3600.0
    """Seconds that the signed address of a file works."""

    shutdown_grace_s: float = 10.0
    """Seconds that a stopping server gives open connections to finish."""

    limits: Limits = field(default_factory=Limits)
    """Bounds on sizes and counts."""

    def __post_init__(self) -> None:
        problems = [
            *self._address_problems(),
            *self._model_problems(),
            *self._key_problems(),
            *_not_positive(self, ("long_poll_s", "sequence_gap_timeout_s", "session_ttl_s")),
            *_not_positive(self, ("delivered_ttl_s", "undelivered_ttl_s", "shutdown_grace_s")),
            *_not_positive(self, ("idle_adapter_s",)),
            *_not_positive(self, ("head_timeout_s", "body_timeout_s", "write_timeout_s")),
            *_not_positive(self, ("signed_url_ttl_s", "recording_ttl_s", "token_ttl_s")),
            *_not_positive(self, ("trace_retention_s", "metrics_retention_s", "audit_retention_s")),
            *_not_positive(self, ("snapshot_steps", "snapshot_quiet_s")),
            *_not_positive(self.limits, tuple(self.limits.__slots__), prefix="limits."),
        ]
        if self.log_level not in LOG_LEVELS:
            problems.append(f"log_level {self.log_level!r} is none of {', '.join(LOG_LEVELS)}")
        if self.weight_dtype not in {None, "int8"}:
            problems.append(
                f"weight_dtype {self.weight_dtype!r} is not int8: leave it out or use that"
            )
        if self.threads is not None and self.threads < 1:
            problems.append(f"threads is {self.threads}: it must be at least 1")
        if self.long_poll_s > 40:
            problems.append("long_poll_s is above 40: the official SDK hangs up after 45 s")
        if problems:
            raise ConfigurationError(problems)

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        return is_loopback(self.host)

    def _address_problems(self) -> list[str]:
        problems = []
        if not self.host:
            problems.append("host is empty: give an address such as 127.0.0.1")
        if not 0 <= self.port <= 65535:
            problems.append(f"port {self.port} is outside 0..65535")
        if (self.tls_cert is None) != (self.tls_key is None):
            problems.append("tls_cert and tls_key belong together: give both, or neither")
        problems += [
            f"allowed_hosts has {name!r}: give names alone, without scheme, port or path"
            for name in self.allowed_hosts
            if not name or set(name) & set("/:*@ ")
        ]
        return problems

    def _model_problems(self) -> list[str]:
        problems = []
        if not self.base_models:
            problems.append("base_models is empty: give at least one")
        if len(set(self.base_models)) != len(self.base_models):
            problems.append("base_models names a model twice")
        problems += [
            f"alias {name!r} is also the name of a base model"
            for name in self.aliases
            if name in self.base_models
        ]
        problems += [  # now, as no model should be loaded first
            f"alias {name!r} stands for {target!r}, which is none of the base models "
            f"({', '.join(self.base_models)})"
            for name, target in self.aliases.items()
            if target not in self.base_models
        ]
        if self.dtype not in DTYPES:
            problems.append(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        for flag, models in (
            ("trust_remote_code", self.trust_remote_code),
            ("allow_pickle", self.allow_pickle),
        ):
            problems += [
                f"{flag} names {model!r}, which is none of the base models"
                for model in sorted(models - set(self.base_models))
            ]
        return problems

    def _key_problems(self) -> list[str]:
        problems = []
        if self.api_keys and self.api_key_file is not None:
            problems.append("api_keys and api_key_file are both given: choose one")
        problems += [
            f"api_keys[{index}] {problem}"
            for index, key in enumerate(self.api_keys)
            if (problem := key_problem(key)) is not None
        ]
        return problems


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can connect to an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def key_problem(key: str) -> str | None:
    """Say what is wrong with an API key, without repeating it; None when it is fine."""
    if not key.startswith(KEY_PREFIX):
        return f"does not start with {KEY_PREFIX!r}, which the official SDK demands"
    if len(key) < MIN_KEY_LENGTH:
        return f"is shorter than {MIN_KEY_LENGTH} characters"
    if not key.isascii() or not key.isprintable() or " " in key:
        return "has characters that cannot stand in an HTTP header"
    return None


def _not_positive(holder: object, names: tuple[str, ...], prefix: str = "") -> list[str]:
    return [
        f"{prefix}{name} is {value}: it must be above 0"
        for name in names
        if (value := getattr(holder, name)) is not None and value <= 0
    ]
