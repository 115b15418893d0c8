"""The group of commands `tinkex mesh`."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from tinkex.cli.extras import missing_mesh_packages, require_mesh_extra
from tinkex.cli.mesh import accounts, network, operator, status
from tinkex.cli.mesh.publish import publish, unpublish
from tinkex.cli.mesh.receipts import receipts
from tinkex.cli.mesh.talk import chat
from tinkex.cli.mesh.up import up

WORKERS = network.ROLES


class _Group(TyperGroup):
    """Makes the workers' commands when they are asked for: their settings cost imports.

    Newer typer carries click within it, older asks for the package: hence `Any`.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """List all, the workers after what makes a network."""
        others = super().list_commands(ctx)
        return [*others[:5], *WORKERS, *others[5:]]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find one."""
        return _worker(cmd_name) if cmd_name in WORKERS else super().get_command(ctx, cmd_name)


def _worker(role: str) -> Any:
    single = typer.Typer(rich_markup_mode=None)
    if missing_mesh_packages():

        @single.command()
        def refuse() -> None:
            require_mesh_extra(f"tinkex mesh {role}")

        refuse.__doc__ = f"Run a worker of the role {role}; its packages are not installed."
    else:
        from tinkex.cli.mesh.workers import worker_command

        single.command()(worker_command(role))
    command = typer.main.get_command(single)
    command.name = role
    return command


app = typer.Typer(
    help="A peer-to-peer network that serves models: make one, run its workers, use it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    cls=_Group,
)
app.command("up", short_help="Run a whole network on this machine; prints a key.")(up)
app.command("init")(network.init)
app.command("invite")(network.invite)
app.command("id", short_help="Print the public key of a worker of this machine.")(network.identify)
app.command("renew", short_help="Certify the network's auth workers anew.")(network.renew)
app.command("shut-out", short_help="Shut a worker out for good.")(network.shut_out)
app.command("rotate-root", short_help="Replace the network's root key by a new one.")(
    network.rotate_root
)
app.command("chat", short_help="Talk to a model.")(chat)
app.command("publish", short_help="Publish an adapter: processors fetch it when needed.")(publish)
app.command("unpublish", short_help="Take an adapter back.")(unpublish)
app.command("status")(status.status)
app.command("peers")(status.peers)
app.command("top")(status.top)
app.command("logs", short_help="Show the signed logs of a worker here, checked.")(status.logs)
app.command("register")(accounts.register)
app.command("login")(accounts.login)
app.command("logout")(accounts.logout)
app.command("password", short_help="Change your password; your other sessions end.")(
    accounts.password
)
app.command("usage", short_help="Show what your account used, and what is left.")(accounts.usage)
app.command("receipts", short_help="Check your receipts against the usage report.")(receipts)
app.command("close-account", short_help="Erase your account for good.")(accounts.close_account)
app.command("accounts", short_help="List the network's accounts (where it is run).")(
    operator.accounts
)
app.command("quota", short_help="Show or set what an account may use (likewise).")(operator.quota)
app.add_typer(accounts.keys, name="key")
