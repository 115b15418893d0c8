"""End-to-end tests share one real `tinkex serve` process for each test process."""

import gc
import importlib

import pytest
from patience import PATIENCE_S

from tinkex.local import LocalServer


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "data"
    with LocalServer(folder, start_timeout=PATIENCE_S) as running:
        yield running


@pytest.fixture(scope="session")
def login(server):
    return server.login


@pytest.fixture
def load_sdk(monkeypatch):
    """Import an SDK by name; what the official one leaves behind is collected in this very test."""
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    yield importlib.import_module
    gc.collect()
