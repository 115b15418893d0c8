"""`tinkex mesh register|login|logout|password|key|usage`: a user's account in a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from tinkex.cli import output
from tinkex.cli.connect import invocation
from tinkex.cli.mesh.endpoint import Endpoint, Url, find_caller, find_endpoint
from tinkex.cli.mesh.places import DAY_S, DataDir
from tinkex.cli.mesh.secrets import NEW_PASSWORD_VARIABLE, PASSWORD_VARIABLE, ask_secret
from tinkex.cli.mesh.sessions import read_session
from tinkex.errors import AuthenticationError, RateLimitError

Email = Annotated[str, typer.Option("--email", prompt=True, help="Address of the account.")]

keys = typer.Typer(help="API keys of your account.", no_args_is_help=True)


def register(
    context: typer.Context,
    email: Email,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Make an account, and log in."""
    endpoint = find_endpoint(url, data_dir)
    password = ask_secret("Password", PASSWORD_VARIABLE, twice=True)
    body = {"email": email, "password": password}
    made = endpoint.ask("POST", "/mesh/register", json=body)
    endpoint.keep_session(endpoint.ask("POST", "/mesh/login", json=body))
    output.show_properties(
        invocation(context).form, made, "Account", [("Id", made["account_id"]), ("Email", email)]
    )


def login(
    email: Email,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Log in; the session is kept for the commands after."""
    endpoint = find_endpoint(url, data_dir)
    body = {"email": email, "password": ask_secret("Password", PASSWORD_VARIABLE)}
    endpoint.keep_session(endpoint.ask("POST", "/mesh/login", json=body))
    output.remark(f"logged in as {email}")


def logout(url: Url = None, data_dir: DataDir = None) -> None:
    """End the session, here and in the network."""
    endpoint = find_endpoint(url, data_dir)
    kept = read_session(endpoint.folder)
    if kept is not None and not kept.is_of(endpoint.place):
        endpoint.forget_session()
        output.remark(f"the session of {kept.source} is forgotten here, and not ended there")
        return
    with suppress(AuthenticationError):  # it has ended there already
        endpoint.ask("POST", "/mesh/logout", credential=endpoint.access_token())
    endpoint.forget_session()
    output.remark("logged out")


def password(url: Url = None, data_dir: DataDir = None) -> None:
    """Change your password: every other session of yours ends, your API keys stay."""
    endpoint = find_endpoint(url, data_dir)
    body = {
        "password": ask_secret("Password", PASSWORD_VARIABLE),
        "new_password": ask_secret("New password", NEW_PASSWORD_VARIABLE, twice=True),
    }
    endpoint.ask("POST", "/mesh/password", credential=endpoint.access_token(), json=body)
    output.remark("the password is changed; other sessions have ended")


@keys.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "unnamed",
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may do; several times for several.")
    ] = None,
    expires_in: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Days that it lasts; default: for ever.")
    ] = None,
    token_cap: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens that it may use in all.")
    ] = None,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Make an API key; it is shown once."""
    endpoint = find_endpoint(url, data_dir)
    body: dict[str, Any] = {"name": name}
    if scope:
        body["scopes"] = scope
    if expires_in is not None:
        body["expires_in_s"] = expires_in * DAY_S
    if token_cap is not None:
        body["token_cap"] = token_cap
    made = endpoint.ask("POST", "/mesh/keys", credential=endpoint.access_token(), json=body)
    if invocation(context).form == "json":
        output.show_json(made)
        return
    print(made["key"])
    output.remark(f"{made['info']['key_id']}: keep the key now, it is not shown again")


@keys.command("list")
def list_keys(context: typer.Context, url: Url = None, data_dir: DataDir = None) -> None:
    """List the keys of your account."""
    endpoint = find_endpoint(url, data_dir)
    found = endpoint.ask("GET", "/mesh/keys", credential=endpoint.access_token())["keys"]
    rows = [
        [
            one["key_id"],
            one["name"],
            one["prefix"],
            ", ".join(sorted(one["scopes"])),
            output.moment(one["created_at"]),
            output.moment(one["expires_at"]),
            output.MISSING if one["token_cap"] is None else f"{one['token_cap']:,}",
            _state_of(one),
        ]
        for one in found
    ]
    columns = ("Id", "Name", "Begins with", "Scopes", "Made", "Expires", "Token cap", "State")
    title = "API keys" if rows else "No API keys: make one with `tinkex mesh key create`"
    output.show(invocation(context).form, found, output.Table(columns, rows, title))


def _state_of(key: dict[str, Any]) -> str:
    from tinkex._clock import SystemClock

    if key["revoked_at"]:
        return "revoked"
    ends = key["expires_at"]
    return "expired" if ends is not None and ends <= SystemClock().now() else "active"


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="As `tinkex mesh key list` shows it.")],
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """End a key, for good."""
    endpoint = find_endpoint(url, data_dir)
    endpoint.ask("DELETE", f"/mesh/keys/{key_id}", credential=endpoint.access_token())
    output.remark(f"{key_id} is revoked")


def close_account(
    url: Url = None,
    data_dir: DataDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase your account: its keys end, and its personal data cannot be read any more."""
    if not yes:
        typer.confirm("Erase your account for good?", abort=True)
    endpoint = find_endpoint(url, data_dir)
    body = {"password": ask_secret("Password", PASSWORD_VARIABLE)}
    endpoint.ask("POST", "/mesh/close-account", credential=endpoint.access_token(), json=body)
    endpoint.forget_session()
    output.remark("the account is erased")


def usage(
    context: typer.Context,
    everything: Annotated[
        bool, typer.Option("--all", help="As far back as requests are listed, not the latest 1,000")
    ] = False,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Show what your account used, entry by entry, and what is left of its quota."""
    endpoint = find_caller(url, data_dir)
    report = whole_report(endpoint, endpoint.credential(), since=0.0 if everything else math.inf)
    sums = [
        [
            one["month"],
            f"{one['requests']:,} requests",
            f"{one['prompt_tokens']:,}",
            f"{one['completion_tokens']:,}",
            "",
            "summed up",
        ]
        for one in report["earlier"]
    ]
    rows = [
        [
            output.moment(one["at"]),
            one["model"],
            f"{one['prompt_tokens']:,}",
            f"{one['completion_tokens']:,}",
            one["key_id"],
            one["state"],
        ]
        for one in report["entries"]
    ]
    rows = sums + rows
    quota = report["quota_tokens"]
    title = f"{report['used_tokens']:,} tokens used"
    if quota is not None:
        title += f" of {quota:,}, {report['reserved_tokens']:,} reserved"
    columns = ("When", "Model", "Prompt", "Completion", "Key", "State")
    output.show(
        invocation(context).form, report, output.Table(columns, rows, title, {"Model", "State"})
    )


def whole_report(
    endpoint: Endpoint,
    credential: str,
    *,
    since: float,
    wait: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Ask for the usage report, and for as many of the pages before it as are needed.

    Args:
        endpoint: answers.
        credential: a token or a key.
        since: unix seconds from which on every request is to be listed, if it still is anywhere.
        wait: waits so many seconds, where there are more pages than may be asked for in a minute;
            None: by the system's clock.

    Raises:
        TinkerError: the report is refused, or nobody answers.
    """
    report = _page(endpoint, "/mesh/usage", credential, wait)
    known = {one["request_id"] for one in report["entries"]}
    while report["listed_since"] > since:
        path = f"/mesh/usage?before={report['listed_since']!r}"
        page = _page(endpoint, path, credential, wait)
        older = [one for one in page["entries"] if one["request_id"] not in known]
        if not older:
            break
        known.update(one["request_id"] for one in older)
        report["entries"] = older + report["entries"]
        report["listed_since"] = page["listed_since"]
    return report


def _page(
    endpoint: Endpoint, path: str, credential: str, wait: Callable[[float], None] | None
) -> dict[str, Any]:
    from tinkex._clock import SystemClock

    while True:
        try:
            page: dict[str, Any] = endpoint.ask("GET", path, credential=credential)
        except RateLimitError as error:
            if error.retry_after_ms is None:
                raise
            seconds = error.retry_after_ms / 1000
            output.remark(
                f"so many pages may not be asked for in a minute: waiting {seconds:.0f} s"
            )
            (wait or SystemClock().sleep_sync)(seconds)
        else:
            return page
