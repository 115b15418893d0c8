"""`tinkex mesh up`: a whole network on this machine, in one process."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkex.cli.extras import require_mesh_extra, require_server_extra
from tinkex.cli.mesh.places import (
    LOCAL_NAME,
    READY_NAME,
    DataDir,
    ReadyFiles,
    mesh_dir,
    with_place,
)

if TYPE_CHECKING:
    from tinkex.mesh.config import MeshConfig
    from tinkex.mesh.workers.local import LocalNetwork


def up(
    context: typer.Context,
    processors: Annotated[int, typer.Option(min=1, max=16, help="How many run models.")] = 1,
    port: Annotated[
        int | None, typer.Option(help="Port of the endpoint; 0 is a free one; default: 8100.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_ID", help="What they run; default: tinkex/sprout."),
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(help="`iroh` or `tls`: what the workers talk over; default: iroh."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="TINKEX_MESH_CONFIG",
            metavar="FILE",
            help="TOML file of settings of all workers; flags go before it.",
        ),
    ] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            envvar="TINKEX_MESH_READY_FILE",
            metavar="FILE",
            help="Write url, api_key, admin_url and pid here as JSON, once all is ready.",
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(help="`debug`, `info` (a line for each completion), `warning` or `error`."),
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="`text` or `json`, on stderr.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Run a whole network on this machine, and print its endpoint and a key.

    The first start makes the network, its workers' keys and an account; later ones use them again.
    """
    require_mesh_extra("tinkex mesh up")
    require_server_extra("tinkex mesh up")
    from tinkex.cli.mesh.logs import log_to_stderr
    from tinkex.cli.mesh.settings import mesh_schema

    # Apart from what `mesh init` and workers of their own have in the folder, also where the
    # environment names it: its variable is a setting too, and would be the network's own folder.
    given = {
        "data_dir": None if data_dir is None else str(data_dir / LOCAL_NAME),
        "transport": transport,
        "client_port": None if port is None else str(port),
        "processor_base_model": base_model,
        "log_level": log_level,
        "log_format": log_format,
    }
    flags = {name: value for name, value in given.items() if value is not None}
    settings = mesh_schema().resolve(
        flags, file=config, fallbacks={"data_dir": mesh_dir(data_dir) / LOCAL_NAME}
    )
    # Five workers' lines are too many for somebody who looks at the banner.
    quiet = log_level is None and settings.log_level == "info"
    log_to_stderr("warning" if quiet else settings.log_level, settings.log_format)
    ready_path = mesh_dir(data_dir) / READY_NAME
    ready_files = ReadyFiles(ready_path, ready_file)
    ready_files.forget()
    model = settings.processor.model.model_name or settings.processor.model.base_model
    chat = with_place(context, f"tinkex mesh chat {shlex.quote(model)}")
    asyncio.run(_run(settings, processors, ready_path, ready_files, chat=chat))


async def _run(
    config: MeshConfig, processors: int, ready_path: Path, ready_files: ReadyFiles, *, chat: str
) -> None:
    from tinkex._clock import SystemClock
    from tinkex._process import settle_down
    from tinkex.cli.mesh.workers import say_stopping
    from tinkex.cli.openmp import wait_briefly
    from tinkex.mesh.workers.local import LocalNetwork
    from tinkex.mesh.workers.whole import run_until_told

    wait_briefly()
    network = LocalNetwork(config, processors=processors, clock=SystemClock())

    def on_ready() -> None:
        ready_files.write(_described(network))
        print("\n".join(_banner(network, ready_path, chat)), flush=True)
        settle_down()

    try:
        await run_until_told(
            network,
            grace_s=config.shutdown_grace_s,
            on_ready=on_ready,
            on_told=lambda: say_stopping(config.shutdown_grace_s),
        )
    finally:
        ready_files.remove()


def _described(network: LocalNetwork) -> dict[str, Any]:
    return {
        "url": network.url,
        "base_url": f"{network.url}/v1",
        "api_key": network.user.api_key,
        "network_id": str(network.id),
        "admin_url": network.admin_url,
        "pid": os.getpid(),
        "peers": {
            name: str(worker.member.key_pair.peer_id) for name, worker in network.workers.items()
        },
    }


def _banner(network: LocalNetwork, ready_path: Path, chat: str) -> list[str]:
    shown = sys.stdout.isatty()
    key = network.user.api_key if shown else f"in {ready_path} (shown on a terminal only)"
    workers = [
        f"  {name:<13} {worker.member.key_pair.peer_id}" for name, worker in network.workers.items()
    ]
    return [
        "A whole mesh runs on this machine",
        f"  endpoint      {network.url}/v1",
        f"  API key       {key}",
        *workers,
        f"  data          {network.folder}",
        "",
        "Talk to it:",
        f"  {chat}",
        "Or with any program of OpenAI's API:",
        f"  export OPENAI_BASE_URL={network.url}/v1",
        f"  export OPENAI_API_KEY={network.user.api_key if shown else '...'}",
        "Stop with Ctrl-C.",
    ]
