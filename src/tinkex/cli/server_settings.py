"""The settings of `tinkex serve`, read off `ServerConfig` and `Limits`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from tinkex.cli.settings import Schema

if TYPE_CHECKING:
    from tinkex.server.config import ServerConfig


@cache
def server_schema() -> Schema[ServerConfig]:
    """Describe the settings of a server."""
    from tinkex.server.config import ServerConfig

    return Schema(
        ServerConfig,
        command="tinkex serve",
        prefix="TINKEX_SERVE_",
        own_variables=frozenset({"TINKEX_SERVE_CONFIG", "TINKEX_SERVE_READY_FILE"}),
        secrets=frozenset({"api_keys"}),
        flags={
            "base_models": "--base-model",
            "aliases": "--alias",
            "allowed_hosts": "--allowed-host",
            "host_adapter_bytes": "--adapter-memory",
            "device_adapter_bytes": "--device-adapter-memory",
            "max_spilled_bytes": "--spill-limit",
        },
        mebibyte_flags=frozenset({"--adapter-memory", "--device-adapter-memory", "--spill-limit"}),
    )
