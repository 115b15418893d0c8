"""`tinkex account`: who may use a server, said by whoever runs it.

Works on the data folder, with the server running or not. The rules are `server.accounts`'.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkex.cli import output
from tinkex.cli.asking import hidden
from tinkex.cli.connect import invocation
from tinkex.cli.operator import DataDir, day, opened_directory
from tinkex.cli.output import Table

if TYPE_CHECKING:
    from tinkex.server.accounts.messages import AccountResponse
    from tinkex.server.accounts.records import Account

app = typer.Typer(
    help="Make and change the accounts of a server, in its data folder.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_COMMAND = "tinkex account"
_AccountId = Annotated[str, typer.Argument(metavar="ACCOUNT_ID", help="Id of the account.")]
_Role = Annotated[
    str, typer.Option(help="admin: manages accounts and keys, sees all usage; or member.")
]


@app.command("create")
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose account it is.")],
    email: Annotated[
        str | None, typer.Option(help="E-mail address; with a password it logs in.")
    ] = None,
    role: _Role = "member",
    password: Annotated[
        bool, typer.Option("--password", help="Ask for a password, or read it from a pipe.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Make an account. `tinkex key create` gives it a key."""
    typed = _password() if password else None
    with opened_directory(data_dir, _COMMAND) as directory:
        from tinkex.server.records.audit import AuditEvent

        account = directory.create_account(name, email=email, role=role, password=typed)
        directory.note(AuditEvent.ACCOUNT_CREATED, account.account_id, role=role)
    _show(context, account)


@app.command("list")
def list_accounts(context: typer.Context, data_dir: DataDir = None) -> None:
    """List every account, the oldest first."""
    with opened_directory(data_dir, _COMMAND) as directory:
        found = [_described(account) for account in directory.accounts()]
    rows = [
        [one.account_id, one.name, one.email or "", one.role, day(one.created_at), _state(one)]
        for one in found
    ]
    table = Table(
        ("Account ID", "Name", "E-mail", "Role", "Created", "State"),
        rows,
        None if rows else "No accounts found",
    )
    output.show(invocation(context).form, {"accounts": [_plain(one) for one in found]}, table)


@app.command("set-role")
def set_role(
    context: typer.Context,
    account_id: _AccountId,
    role: Annotated[str, typer.Argument(help="admin or member.")],
    data_dir: DataDir = None,
) -> None:
    """Make an account an admin's or a member's; its keys change with it at once."""
    with opened_directory(data_dir, _COMMAND) as directory:
        from tinkex.server.records.audit import AuditEvent

        account = directory.set_role(account_id, role)
        directory.note(AuditEvent.ACCOUNT_CHANGED, account_id, role=role)
    _show(context, account)


@app.command("set-password")
def set_password(context: typer.Context, account_id: _AccountId, data_dir: DataDir = None) -> None:
    """Ask for a new password, or read it from a pipe; every login from before ends."""
    typed = _password()
    with opened_directory(data_dir, _COMMAND) as directory:
        from tinkex.server.records.audit import AuditEvent

        account = directory.set_password(account_id, typed)
        directory.note(AuditEvent.ACCOUNT_CHANGED, account_id, password_set=True)
    _show(context, account)


@app.command("disable")
def disable(context: typer.Context, account_id: _AccountId, data_dir: DataDir = None) -> None:
    """Stop all keys and logins of an account at once. Nothing is deleted."""
    _show(context, _set_disabled(data_dir, account_id, disabled=True))


@app.command("enable")
def enable(context: typer.Context, account_id: _AccountId, data_dir: DataDir = None) -> None:
    """Let a disabled account's keys and logins work again."""
    _show(context, _set_disabled(data_dir, account_id, disabled=False))


def _set_disabled(data_dir: Path | None, account_id: str, *, disabled: bool) -> Account:
    with opened_directory(data_dir, _COMMAND) as directory:
        from tinkex.server.records.audit import AuditEvent

        account = directory.set_disabled(account_id, disabled=disabled)
        directory.note(AuditEvent.ACCOUNT_CHANGED, account_id, disabled=disabled)
    return account


def _password() -> str:
    if sys.stdin.isatty():
        return hidden("Password", twice=True)
    return sys.stdin.readline().rstrip("\r\n")


def _show(context: typer.Context, account: Account) -> None:
    one = _described(account)
    pairs = [
        ("Account ID", one.account_id),
        ("Name", one.name),
        ("E-mail", one.email or output.MISSING),
        ("Role", one.role),
        ("Password", output.yes_no(one.has_password)),
        ("State", _state(one)),
    ]
    title = f"Account: {one.name}"
    output.show_properties(invocation(context).form, _plain(one), title, pairs)


def _described(account: Account) -> AccountResponse:
    from tinkex.server.accounts.messages import describe_account

    return describe_account(account)


def _plain(one: AccountResponse) -> dict[str, Any]:
    return one.model_dump(mode="json")


def _state(one: AccountResponse) -> str:
    return "works" if one.disabled_at is None else f"disabled {day(one.disabled_at)}"
