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
app.command("up")(up)
app.command("init")(network.init)
app.command("invite")(network.invite)
app.command("id")(network.identify)
app.command("renew")(network.renew)
app.command("shut-out")(network.shut_out)
app.command("rotate-root")(network.rotate_root)
app.command("chat")(chat)
app.command("publish")(publish)
app.command("unpublish")(unpublish)
app.command("status")(status.status)
app.command("peers")(status.peers)
app.command("top")(status.top)
app.command("logs")(status.logs)
app.command("register")(accounts.register)
app.command("login")(accounts.login)
app.command("logout")(accounts.logout)
app.command("password")(accounts.password)
app.command("usage")(accounts.usage)
app.command("receipts")(receipts)
app.command("close-account")(accounts.close_account)
app.command("accounts")(operator.accounts)
app.command("quota")(operator.quota)
app.add_typer(accounts.keys, name="key")
