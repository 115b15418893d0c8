"""Which server a command talks to, and how it wants its result.

The global options stand before the command: `tinkex --base-url URL -f json run list`. The key
comes from the environment or from `tinkex auth login`, never from an option that a process list
would show.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tinkex.cli.output import Format
    from tinkex.client.admin import AdminClient
    from tinkex.client.rest import RestClient
    from tinkex.client.service import ServiceClient


COMMAND_RETRIES = 2
"""Somebody waits at the terminal: a server that is not there is told soon."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """The global options of this run of the command line."""

    form: Format = "table"
    base_url: str | None = None

    def rest(self) -> RestClient:
        """Open a client of what the server keeps."""
        from tinkex.client.rest import RestClient

        return RestClient(base_url=self.base_url, max_retries=COMMAND_RETRIES)

    @contextmanager
    def service(self) -> Iterator[ServiceClient]:
        """Open a client with a session.

        Raises:
            APIError: the server does not answer, or does not take the key; told soon.
        """
        from tinkex.client.service import ServiceClient

        with self.rest() as first:  # the client below asks for a minute
            first.get_server_capabilities().result()
        with ServiceClient(base_url=self.base_url) as client:
            yield client

    def admin(self) -> AdminClient:
        """Open a client of the audit log and the usage."""
        from tinkex.client.admin import AdminClient

        return AdminClient(base_url=self.base_url, max_retries=COMMAND_RETRIES)


def invocation(context: typer.Context) -> Invocation:
    """Return the global options."""
    found = context.find_object(Invocation)
    return found or Invocation()


@contextmanager
def service_client(context: typer.Context, local: Path | None) -> Iterator[ServiceClient]:
    """Open a client with a session, of the configured server or of one made for this command.

    Args:
        context: of the command.
        local: data folder of a `tinkex serve` to start; None starts none.

    Raises:
        ServerStartError: the server of its own did not start.
        CredentialError: there is no key for the configured server.
        APIError: the configured server does not answer, or does not take the key.
    """
    if local is None:
        with invocation(context).service() as client:
            yield client
        return
    from tinkex.cli.extras import require_server_extra
    from tinkex.cli.output import remark
    from tinkex.client.service import ServiceClient
    from tinkex.local import LocalServer

    require_server_extra("--local")
    remark(f"Starting a server in {local} ...")
    with LocalServer(local) as server, ServiceClient(**server.login) as client:
        yield client
