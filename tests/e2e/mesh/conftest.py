"""End-to-end tests of the mesh: a network of processes, one for each worker."""

import pytest
from mesh_processes import mesh_processes

TRANSPORTS = ["tls", pytest.param("iroh", marks=pytest.mark.soak)]
"""CI uses the mesh over TLS and lets it fail over iroh; `make soak` does both over both."""


@pytest.fixture(scope="session", params=TRANSPORTS)
def mesh(request, tmp_path_factory):
    """A whole network, over a real transport; the tests of all modules share it."""
    with mesh_processes(tmp_path_factory.mktemp("mesh"), request.param) as processes:
        processes.init(by_command=True)
        processes.start("auth")
        invitation = processes.tinkex("mesh", "invite", "client", "--data-dir", processes.folder)
        client = processes.start("client", "--join", invitation, join=False, wait=False)
        processes.start_all("gateway", "processor-1")
        processes.wait_ready(client)
        yield processes
