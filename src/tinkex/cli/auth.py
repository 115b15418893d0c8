"""`tinkex auth`: the key that clients of this user take when they are given none."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Any

import typer

from tinkex.cli import output
from tinkex.cli.asking import hidden
from tinkex.cli.connect import COMMAND_RETRIES, Invocation, invocation

if TYPE_CHECKING:
    from tinkex.client.credential_store import StoredKey

app = typer.Typer(
    help="Store a key, forget it, see whether it works.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("login")
def login(context: typer.Context) -> None:
    """Ask for an API key, try it on the server, and store it for later commands and programs.

    The key can also come through a pipe. `tinkex serve` shows the key of a server of yours when it
    starts.
    """
    from tinkex.client.credential_store import CredentialStore
    from tinkex.client.credentials import check_key
    from tinkex.errors import CredentialError

    store = CredentialStore()
    present = store.default()
    if present is not None:
        raise CredentialError(
            f"The key {present.name!r} is stored already. `tinkex auth logout` forgets it."
        )
    key = check_key(hidden("API key") if sys.stdin.isatty() else sys.stdin.readline())
    stored = _tried(key, invocation(context))
    store.put(stored)
    print(f"Stored the key {stored.name!r} as the default one.")


@app.command("logout")
def logout(context: typer.Context) -> None:
    """Forget the stored key; one that was made for this machine is deleted on the server too."""
    from tinkex.client.credential_store import CredentialStore
    from tinkex.client.rest import RestClient
    from tinkex.errors import APIError, CredentialError

    store = CredentialStore()
    stored = store.default()
    if stored is None:
        raise CredentialError("No key is stored. `tinkex auth login` stores one.")
    try:
        if stored.was_generated:
            url = invocation(context).base_url
            with RestClient(
                base_url=url, api_key=stored.key, max_retries=COMMAND_RETRIES
            ) as client:
                client.delete_own_key().result()
    except APIError as error:
        raise CredentialError(
            f"Forgot the key {stored.name!r}. It could not be deleted on the server, where it may "
            f"still work: {error}"
        ) from error
    finally:  # whatever the server says: it may be gone, or know the key no more
        store.remove(stored.key_id)
    told = "It is deleted on the server" if stored.was_generated else "It still works elsewhere"
    print(f"Forgot the key {stored.name!r}. {told}.")


@app.command("status")
def status(context: typer.Context) -> None:
    """Say whether there is a key, and whether the server takes it; exit code 1 if not."""
    from tinkex.auth import tinker_has_credentials
    from tinkex.client.service import ServiceClient
    from tinkex.errors import CredentialError

    options = invocation(context)
    known = tinker_has_credentials()
    report: dict[str, Any] = {"credentials_available": known, "tinker_accessible": False}
    if options.form != "json":
        print(f"Credentials available: {_word(known)}")
    try:
        if not known:
            raise CredentialError("There is no key: `tinkex auth login`, or set TINKEX_API_KEY.")
        with ServiceClient(base_url=options.base_url, max_retries=0) as client:
            client.get_server_capabilities()
        report["tinker_accessible"] = True
    finally:
        if options.form == "json":
            output.show_json(report)
        elif known:
            print(f"Tinker accessible: {_word(report['tinker_accessible'])}")


@app.command("whoami")
def whoami(context: typer.Context) -> None:
    """Show who the server takes the caller for."""
    options = invocation(context)
    with options.rest() as client:
        found = client.whoami().result()
    pairs = [
        ("Email", found.email or output.MISSING),
        ("User", found.user_urn),
        ("Organization", found.org_urn),
    ]
    output.show_properties(options.form, output.plain(found), "Caller", pairs)


def _word(value: bool) -> str:
    return "yes" if value else "no"


def _tried(key: str, options: Invocation) -> StoredKey:
    """Try a key on the server; a server that says whose it is gives it a name.

    Raises:
        APIError: the server does not take it, or does not answer.
    """
    from tinkex.client.credential_store import StoredKey
    from tinkex.client.rest import RestClient
    from tinkex.errors import NotFoundError

    with RestClient(base_url=options.base_url, api_key=key, max_retries=COMMAND_RETRIES) as client:
        try:
            described = client.describe_own_key().result()
        except NotFoundError:  # a server without accounts: it is enough that it takes the key
            client.get_server_capabilities().result()
            key_id = hashlib.sha256(key.encode()).hexdigest()[:12]
            return StoredKey(key_id, key, name=f"key-{key_id}")
    return StoredKey(str(described.key_id), key, name=described.name, details=described.details)
