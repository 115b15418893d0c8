"""`tinkex mesh accounts|quota`: for who runs the network, on the machine of an auth worker.

Asks the auth worker's page for operators. Its address and the token that it wants lie in the
worker's folder, which its owner alone can read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.mesh.endpoint import Endpoint
from tinkex.cli.mesh.places import (
    LOCAL_NAME,
    READY_NAME,
    DataDir,
    is_running,
    mesh_dir,
    read_private,
)
from tinkex.errors import ConfigurationError, InputError

PASS_NAME = "operator.json"  # noqa: S105 - a file's

Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its id, or its address.")]


def accounts(context: typer.Context, data_dir: DataDir = None) -> None:
    """List the network's accounts: what each has used, and what it may use."""
    found = _ask(data_dir, "GET", "/operator/accounts")
    count = f"{len(found)} account{'' if len(found) == 1 else 's'}"
    title = count if found else "Nobody has registered yet"
    output.show(invocation(context).form, found, _table(found, title))


def quota(
    context: typer.Context,
    account: Account,
    tokens: Annotated[
        int | None, typer.Argument(metavar="[TOKENS]", help="How many it may use in all.")
    ] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="As many as it likes.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Show or set how many tokens an account may use in all, what it used before included."""
    if unlimited and tokens is not None:
        raise InputError("give a number of tokens or --unlimited, not both")
    if tokens is None and not unlimited:
        (report,) = _ask(data_dir, "GET", "/operator/accounts", params={"account": account})
    else:
        body = {"account": account, "quota_tokens": tokens}
        report = _ask(data_dir, "PUT", "/operator/quota", json=body)
    output.show(invocation(context).form, report, _table([report], "Quota"))


def _ask(data_dir: Path | None, verb: str, path: str, **parts: Any) -> Any:
    folder = mesh_dir(data_dir)
    # Each with the folder of its process's ready file.
    for place, ready in (
        (folder / "auth", folder / "auth"),
        (folder, folder),
        (folder / LOCAL_NAME / "auth", folder),
        # of those that were given a name
        *((path.parent, path.parent) for path in sorted(folder.glob(f"*/{PASS_NAME}"))),
    ):
        found = read_private(place / PASS_NAME) if is_running(ready / READY_NAME) else None
        if found is not None:
            endpoint = Endpoint(str(found["url"]), None, folder)
            return endpoint.ask(verb, path, credential=str(found["token"]), **parts)
    raise ConfigurationError(
        f"no auth worker runs in {folder}: this is asked of one on its own machine, as the user "
        "that runs it; start `tinkex mesh auth`, or give its --data-dir"
    )


def _table(found: list[dict[str, Any]], title: str) -> output.Table:
    rows = [
        [
            one["account_id"],
            one["email"] or output.MISSING,
            output.moment(one["opened_at"]),
            f"{one['used_tokens']:,}",
            f"{one['reserved_tokens']:,}",
            "unlimited" if one["quota_tokens"] is None else f"{one['quota_tokens']:,}",
            str(one["keys"]),
        ]
        for one in found
    ]
    columns = ("Id", "Email", "Since", "Used", "Reserved", "Quota", "Keys")
    return output.Table(columns, rows, title)
