"""`tinkex key`: API keys of a server, made and ended by whoever runs it.

Works on the data folder, with the server running or not. The rules are `server.accounts`'.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinkex._clock import SystemClock
from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.operator import DataDir, day, opened_directory
from tinkex.cli.output import Table

if TYPE_CHECKING:
    from tinkex.server.accounts.directory import Directory
    from tinkex.server.accounts.messages import KeyResponse
    from tinkex.server.accounts.records import ApiKey

app = typer.Typer(
    help="Make, list and revoke the API keys of a server, in its data folder.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_COMMAND = "tinkex key"
_KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of the key.")]
_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


@app.command("create")
def create(
    context: typer.Context,
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT_ID", help="Whose key.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "key",
    note: Annotated[str, typer.Option(help="More about it.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may do: train, sample, read or admin; several times for several. "
            "Default: all that the account may."
        ),
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="TIME", help="90d, 12h, 30m or 2w; default: never.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens that it may train on, read and sample in all.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Seconds of the engine's time that it may use in all.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key for an account, and show it: this once, and never again."""
    lifetime_s = None if expires_in is None else _seconds(expires_in)
    with opened_directory(data_dir, _COMMAND) as directory:
        from tinkex.server.accounts.directory import KeyTerms
        from tinkex.server.records.audit import AuditEvent

        terms = KeyTerms(
            scopes=frozenset(scope) if scope else None,
            lifetime_s=lifetime_s,
            max_tokens=max_tokens,
            max_seconds=max_seconds,
        )
        made = directory.create_key(account_id, name, terms, note=note)
        one = _described(directory, made.key)
        directory.note(AuditEvent.KEY_CREATED, account_id, key=one.key_id, scopes=one.scopes)
    pairs = [*_pairs(one), ("API key", made.secret)]
    value = {**_plain(one), "key": made.secret}
    output.show_properties(invocation(context).form, value, f"Key: {one.name}", pairs)


@app.command("list")
def list_keys(
    context: typer.Context,
    account: Annotated[
        str | None, typer.Option(metavar="ACCOUNT_ID", help="Of this account alone.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """List keys, the oldest first, those that have ended too."""
    with opened_directory(data_dir, _COMMAND) as directory:
        if account is not None:
            directory.account(account)
        found = [_described(directory, key) for key in directory.keys(account)]
    rows = [
        [one.key_id, one.prefix, one.account_id, one.name, " ".join(one.scopes), _state(one)]
        for one in found
    ]
    table = Table(
        ("Key ID", "Begins", "Account ID", "Name", "Scopes", "State"),
        rows,
        None if rows else "No keys found",
        whole={"Key ID"},
    )
    output.show(invocation(context).form, {"keys": [_plain(one) for one in found]}, table)


@app.command("info")
def info(context: typer.Context, key_id: _KeyId, data_dir: DataDir = None) -> None:
    """Show a key, without the key itself."""
    with opened_directory(data_dir, _COMMAND) as directory:
        one = _described(directory, directory.key(key_id))
    output.show_properties(invocation(context).form, _plain(one), f"Key: {one.name}", _pairs(one))


@app.command("revoke")
def revoke(context: typer.Context, key_id: _KeyId, data_dir: DataDir = None) -> None:
    """End a key at once, in sessions that are running too."""
    with opened_directory(data_dir, _COMMAND) as directory:
        from tinkex.server.records.audit import AuditEvent

        one = _described(directory, directory.revoke(key_id))
        directory.note(AuditEvent.KEY_REVOKED, one.account_id, key=key_id)
    output.show_properties(invocation(context).form, _plain(one), f"Key: {one.name}", _pairs(one))


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is no time such as 90d, 12h, 30m or 2w", param_hint="--expires-in"
        )
    return float(int(found[1]) * _UNITS[found[2]])


def _described(directory: Directory, key: ApiKey) -> KeyResponse:
    from tinkex.server.accounts.messages import describe_key

    return describe_key(key, directory.account(key.account_id))


def _plain(one: KeyResponse) -> dict[str, Any]:
    return one.model_dump(mode="json")


def _pairs(one: KeyResponse) -> list[tuple[str, str]]:
    return [
        ("Key ID", one.key_id),
        ("Begins", one.prefix),
        ("Account ID", one.account_id),
        ("Name", one.name),
        *([("Note", one.note)] if one.note else []),
        ("Scopes", " ".join(one.scopes)),
        ("Most tokens", output.MISSING if one.max_tokens is None else str(one.max_tokens)),
        ("Most seconds", output.MISSING if one.max_seconds is None else str(one.max_seconds)),
        ("State", _state(one)),
    ]


def _state(one: KeyResponse) -> str:
    if one.revoked_at is not None:
        return f"revoked {day(one.revoked_at)}"
    if one.expires_at is not None:
        ended = one.expires_at.timestamp() <= SystemClock().now()
        return f"{'expired' if ended else 'expires'} {day(one.expires_at)}"
    return "the operator's" if one.given else "works"
