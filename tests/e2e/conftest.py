"""End-to-end tests share one real `tinkex serve` process for each test process."""

import pytest

from tinkex.local import LocalServer


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with LocalServer(tmp_path_factory.mktemp("serve") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def login(server):
    return server.login
