"""`tinkex mesh auth|gateway|processor|client|bootstrap`: one worker, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer

from tinkex.cli import output
from tinkex.cli.flags import given_flags, keyword, take_settings
from tinkex.cli.mesh.logs import log_to_stderr
from tinkex.cli.mesh.places import READY_NAME, ReadyFiles, mesh_dir, worker_dir
from tinkex.cli.mesh.settings import mesh_schema, settings_of
from tinkex.errors import ConfigurationError

if TYPE_CHECKING:
    from tinkex.mesh.config import MeshConfig
    from tinkex.mesh.roles import Role
    from tinkex.mesh.workers.whole import WholeWorker

_CONFIG = typer.Option(
    "--config",
    envvar="TINKEX_MESH_CONFIG",
    metavar="FILE",
    help="TOML file of settings; the environment (TINKEX_MESH_...) and flags go before it.",
)
_READY_FILE = typer.Option(
    "--ready-file",
    envvar="TINKEX_MESH_READY_FILE",
    metavar="FILE",
    help="Write who and where this worker is here as JSON, once it serves.",
)
_JOIN = typer.Option(
    "--join",
    envvar="TINKEX_MESH_JOIN",
    metavar="INVITATION",
    help="Join with it first, if this worker is in no network yet; - reads it from stdin. On the "
    "command line every user of this machine can read it, and join in its place.",
)
_NAME = typer.Option(
    "--name",
    envvar="TINKEX_MESH_NAME",
    metavar="NAME",
    help="Its folder in the data folder; default: its role. For several of a role on one machine.",
)
_DOES = {
    "auth": "Keep the accounts, keys and quotas of a network.",
    "gateway": "Let clients in, choose processors, keep the books.",
    "processor": "Run models for gateways, and adapters on them.",
    "client": "Serve OpenAI's API on this machine; the network answers.",
    "bootstrap": "Help others to find the network; nothing else.",
}


class Enter(Protocol):
    """Makes a worker that can be started."""

    def __call__(
        self, config: MeshConfig, role: Role, /, *, invitation: str | None
    ) -> Awaitable[WholeWorker]:
        """Make it, joining its network first if it has not."""


def worker_command(role: str, enter: Enter | None = None) -> Any:
    """Make the command that runs a worker of a role.

    Args:
        role: what it is.
        enter: makes the worker; None: `enter_network`, on this machine.
    """

    def run(**given: Any) -> None:
        context, file, ready_file, invitation, name = (
            given.pop(one) for one in ("context", "config", "ready_file", "join", "name")
        )
        config = mesh_schema().resolve(
            given_flags(given), file=file, fallbacks={"data_dir": mesh_dir(None)}
        )
        config = replace(config, data_dir=worker_dir(config.data_dir, role, name))
        log_to_stderr(config.log_level, config.log_format)
        _warn_if_shown(context, invitation)
        ready_files = ReadyFiles(config.data_dir / READY_NAME, ready_file)
        ready_files.forget()
        # before there is an event loop, which would keep the first Ctrl-C to itself
        invitation = _read(invitation)
        asyncio.run(_serve(role, config, invitation, ready_files, enter))

    run.__name__ = role
    run.__doc__ = f"""{_DOES[role]}

    Each setting is a flag, a variable and a key of the file: flags go before variables, those
    before the file. docs/guides/mesh-settings.md lists all three.
    """
    own = [
        keyword("context", typer.Context),
        keyword("config", Path | None, _CONFIG),
        keyword("ready_file", Path | None, _READY_FILE),
        keyword("join", str | None, _JOIN),
        keyword("name", str | None, _NAME),
    ]
    take_settings(run, own, settings_of(role), {"bind": "ADDRESS", "bootstrap": "CONTACT"})
    return run


async def _serve(
    role_name: str,
    config: MeshConfig,
    invitation: str | None,
    ready_files: ReadyFiles,
    enter: Enter | None,
) -> None:
    from tinkex._process import settle_down
    from tinkex.cli.openmp import wait_briefly
    from tinkex.mesh.roles import Role
    from tinkex.mesh.workers.entry import enter_network
    from tinkex.mesh.workers.whole import run_until_told

    wait_briefly()
    role = Role(role_name)
    worker = await (enter or enter_network)(config, role, invitation=invitation)

    def on_ready() -> None:
        described = describe(worker)
        ready_files.write(described)
        print("\n".join(_banner(role, worker, described)), flush=True)
        settle_down()

    try:
        await run_until_told(
            worker,
            grace_s=config.shutdown_grace_s,
            on_ready=on_ready,
            on_told=lambda: say_stopping(config.shutdown_grace_s),
        )
    finally:
        ready_files.remove()


def say_stopping(grace_s: float) -> None:
    """Say that a worker was told to stop, and what it waits for."""
    output.remark(
        f"Stopping: requests in progress have up to {grace_s:g} s. Ctrl-C again ends at once."
    )


def describe(worker: WholeWorker) -> dict[str, Any]:
    """Say who and where a worker is, as the ready file does."""
    from tinkex.mesh.config import format_contact

    member = worker.member
    described = {
        "role": member.role.value,
        "peer_id": str(member.key_pair.peer_id),
        "network": member.membership.network.name,
        "network_id": str(member.membership.network.id),
        "contact": format_contact(member.contact),
        "admin_url": member.admin_url,
        "pid": os.getpid(),
    }
    url = getattr(worker.inner, "url", None)
    if url is not None:
        described["url"] = url
    return described


def _banner(role: Role, worker: WholeWorker, described: dict[str, Any]) -> list[str]:
    member = worker.member
    known = len(member.discovery.contacts)
    found = f"{known} peer{'' if known == 1 else 's'}" if known else "nobody yet: it is the first"
    lines = [
        f"{role.value} worker of {described['network']!r}: {_DOES[role.value]}",
        f"  peer id   {described['peer_id']}",
        f"  reach it  {described['contact']}",
        f"  found     {found}",
        f"  page      {described['admin_url']}/status",
        f"  data      {member.config.data_dir}",
    ]
    if "url" in described:
        lines.insert(2, f"  endpoint  {described['url']}/v1 (OpenAI's API)")
        lines.insert(3, "  key       tinkex mesh register, then tinkex mesh key create")
    return [*lines, "Stop with Ctrl-C."]


def _warn_if_shown(context: typer.Context, invitation: str | None) -> None:
    """Tell who put an invitation on the command line that others can read it there."""
    source = context.get_parameter_source("join")
    if source is not None and source.name == "COMMANDLINE" and invitation != "-":
        output.remark(
            "The invitation is on the command line, where every user of this machine can read it: "
            "pipe it to `--join -`, or give it as TINKEX_MESH_JOIN."
        )


def _read(invitation: str | None) -> str | None:
    if invitation != "-":
        return invitation
    import sys

    if sys.stdin.isatty():  # what somebody pastes ends with its line
        print("Invitation: ", end="", file=sys.stderr, flush=True)
        text = sys.stdin.readline().strip()
    else:
        text = sys.stdin.read().strip()
    if not text:
        raise ConfigurationError("no invitation came: paste it, or pipe it to `--join -`")
    return text
