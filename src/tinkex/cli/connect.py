"""Which server a command talks to: the configured one, or one of its own for as long as it runs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tinkex.client.service import ServiceClient


@contextmanager
def service_client(base_url: str | None, local: Path | None) -> Iterator[ServiceClient]:
    """Open a client of the server at `base_url`, or of a `tinkex serve` started for this command.

    Args:
        base_url: URL of the server; None takes the environment's.
        local: data folder of a server to start; None starts none.

    Raises:
        ServerStartError: the server of its own did not start.
        CredentialError: there is no key for the configured server.
    """
    from tinkex.client.service import ServiceClient

    if local is None:
        with ServiceClient(base_url=base_url) as client:
            yield client
        return
    from tinkex.cli.extras import require_server_extra
    from tinkex.local import LocalServer

    require_server_extra("--local")
    with LocalServer(local) as server, ServiceClient(**server.login) as client:
        yield client
