"""The settings of the mesh's workers, read off `MeshConfig` and its sections."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

from tinkex.cli.settings import Schema, Setting

if TYPE_CHECKING:
    from tinkex.mesh.config import MeshConfig

OWN_VARIABLES = frozenset(
    f"TINKEX_MESH_{name}"
    for name in (
        "ADMIN_URL",
        "CONFIG",
        "JOIN",
        "KEY",
        "NAME",
        "NEW_PASSPHRASE",
        "NEW_PASSWORD",
        "PASSPHRASE",
        "PASSWORD",
        "READY_FILE",
        "URL",
    )
)

MODEL_SETTINGS = (
    "base_model",
    "model_name",
    "device",
    "dtype",
    "weight_dtype",
    "threads",
    "backend_url",
    "backend_context_length",
    "backend_slots",
)
"""What a processor runs: their flags are those of `tinkex serve` where it has them."""


@cache
def mesh_schema() -> Schema[MeshConfig]:
    """Describe the settings of every worker: one schema for all roles."""
    from tinkex.mesh.config import MeshConfig

    return Schema(
        MeshConfig,
        command="tinkex mesh",
        prefix="TINKEX_MESH_",
        own_variables=OWN_VARIABLES,
        secrets=frozenset({"processor_backend_key"}),
        flags={
            "client_host": "--host",
            "client_port": "--port",
            **{f"processor_{one}": f"--{one.replace('_', '-')}" for one in MODEL_SETTINGS},
        },
        by_section=True,
    )


def settings_of(*sections: str) -> Iterable[Setting]:
    """List the settings that all workers share, and those of these sections."""
    wanted = {"", "dht", "rpc", "replication", *sections}
    return [one for one in mesh_schema().settings.values() if one.section in wanted]
