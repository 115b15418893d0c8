"""`tinkex serve`: parses flags, prints the banner, writes the ready file.

The server itself is `tinkex.server`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tinkex.server.run import ServerInfo

DEFAULT_BASE_MODEL = "tinkex/sprout"

_ApiKeyFile = Annotated[
    Path | None,
    typer.Option(help="File with the keys to accept, one a line, instead of a generated one."),
]
_ReadyFile = Annotated[
    Path | None,
    typer.Option(help="Write url, api_key, pid and base_models here as JSON once serving."),
]
_AdapterMemory = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="MIB", help="Memory for adapters, for each base model. Default: a quarter."
    ),
]
_DeviceAdapterMemory = Annotated[
    int | None, typer.Option(min=1, metavar="MIB", help="The same, of a GPU's own memory.")
]
_Spill = Annotated[
    bool, typer.Option(help="Move adapters that memory has no room for to the disk and back.")
]
_SpillDir = Annotated[
    Path | None, typer.Option(help="Folder for them, erased at the start. Default: in --data-dir.")
]
_SpillLimit = Annotated[
    int, typer.Option(min=1, metavar="MIB", help="Most on the disk, for each base model.")
]
_TrustRemoteCode = Annotated[
    list[str] | None,
    typer.Option(metavar="MODEL", help="Run the Python code that this model brings along."),
]
_AllowPickle = Annotated[
    list[str] | None,
    typer.Option(metavar="MODEL", help="Load this model though its weights are pickled."),
]


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8000,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder for the database, the key and the checkpoints."),
    ] = None,
    base_model: Annotated[
        list[str] | None,
        typer.Option(
            help="A Hugging Face causal LM, as a folder or hub id; give it several times for "
            f"several models. Default: {DEFAULT_BASE_MODEL}, which ships with tinkex."
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ID", help="Another name that a base model answers to."),
    ] = None,
    api_key_file: _ApiKeyFile = None,
    ready_file: _ReadyFile = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:N, mps, or auto: the fastest one at hand.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: float32 on a CPU, else bfloat16.")
    ] = "auto",
    weight_dtype: Annotated[
        str | None,
        typer.Option(help="int8: keep the frozen weights in a quarter of the memory (CPU only)."),
    ] = None,
    adapter_memory: _AdapterMemory = None,
    device_adapter_memory: _DeviceAdapterMemory = None,
    spill: _Spill = True,
    spill_dir: _SpillDir = None,
    spill_limit: _SpillLimit = 65_536,
    trust_remote_code: _TrustRemoteCode = None,
    allow_pickle: _AllowPickle = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve the Tinker API: train LoRA adapters and sample, for many users over one base model."""
    from tinkex.cli.extras import require_server_extra

    require_server_extra("tinkex serve")
    import asyncio

    from tinkex._clock import SystemClock
    from tinkex.server.config import Limits, ServerConfig
    from tinkex.server.run import serve as run_server

    limits = Limits(
        device_adapter_bytes=_bytes(device_adapter_memory),
        host_adapter_bytes=_bytes(adapter_memory),
        max_spilled_bytes=spill_limit * 2**20,
    )
    config = ServerConfig(
        host=host,
        port=port,
        data_dir=data_dir or default_data_dir(),
        base_models=tuple(base_model or [DEFAULT_BASE_MODEL]),
        aliases=parse_aliases(alias or []),
        api_key_file=api_key_file,
        device=device,
        dtype=dtype,
        weight_dtype=weight_dtype,
        trust_remote_code=frozenset(trust_remote_code or []),
        allow_pickle=frozenset(allow_pickle or []),
        log_level=log_level,
        spill=spill,
        spill_dir=spill_dir,
        limits=limits,
    )

    def on_ready(info: ServerInfo) -> None:
        if ready_file is not None:
            write_ready_file(ready_file, info)
        print_banner(info, aliases=config.aliases, show_key=sys.stdout.isatty())

    asyncio.run(run_server(config, on_ready=on_ready, clock=SystemClock()))


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes * 2**20


def default_data_dir() -> Path:
    """Return the user's folder for tinkex's data, as the operating system places it."""
    from platformdirs import user_data_path

    return user_data_path("tinkex")


def parse_aliases(pairs: list[str]) -> dict[str, str]:
    """Split each `NAME=ID`.

    Raises:
        typer.BadParameter: for a pair without a name, an id or the sign between them.
    """
    aliases: dict[str, str] = {}
    for pair in pairs:
        name, sign, target = pair.partition("=")
        if not (name and sign and target):
            raise typer.BadParameter(f"{pair!r} is not of the form NAME=ID", param_hint="--alias")
        aliases[name] = target
    return aliases


def write_ready_file(path: Path, info: ServerInfo) -> None:
    """Write `path` with mode 0600, whole or not at all."""
    body = json.dumps(
        {
            "url": info.url,
            "api_key": info.api_key,
            "pid": info.pid,
            "base_models": list(info.base_models),
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{info.pid}")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(body)
    beside.replace(path)


def print_banner(info: ServerInfo, *, aliases: Mapping[str, str], show_key: bool) -> None:
    """Print what a user needs to connect; the key itself only where nothing records it."""
    key = info.api_key if show_key else f"in {info.api_key_path} (shown on a terminal only)"
    assignment = info.api_key if show_key else f"$(head -n 1 {info.api_key_path})"
    lines = [
        "tinkex serves the Tinker API",
        f"  URL          {info.url}",
        f"  API key      {key}",
        f"  base models  {', '.join(info.base_models)}",
        *(f"  alias        {name} = {target}" for name, target in aliases.items()),
        f"  device       {info.device}, weights in {info.weight_dtype}",
        f"  data         {info.data_dir}",
        "",
        "Connect with:",
        f"  export TINKER_BASE_URL={info.url}",
        f"  export TINKER_API_KEY={assignment}",
        "Stop with Ctrl-C.",
    ]
    print("\n".join(lines), flush=True)
