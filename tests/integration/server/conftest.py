"""A server with the real engine on a tiny random Qwen3 model, over ASGI or on a loopback port."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest
from server_support import (
    ALIAS,
    BASE_MODEL,
    KEY,
    OTHER_KEY,
    LoopbackServer,
    serving,
    settle,
    tiny_engine,
    tiny_model,
)

from tinkex._clock import SystemClock
from tinkex.server.config import Limits, ServerConfig
from tinkex.server.files.layout import DATABASE_NAME
from tinkex.testing.clock import VirtualClock


@pytest.fixture
def tiny():
    return tiny_model


@pytest.fixture(scope="module")
def tiny_for_module():
    return tiny_model


@pytest.fixture
def make_engine():
    return tiny_engine


@pytest.fixture
def make_config(tmp_path, migrated_database):
    def make(**settings):
        settings.setdefault("limits", Limits(max_rank=64))
        if "data_dir" not in settings:
            settings["data_dir"] = folder = tmp_path / "data"
            if not folder.exists():  # its tables are there: making them is most of a start
                folder.mkdir(mode=0o700)
                shutil.copy(migrated_database, folder / DATABASE_NAME)
        return ServerConfig(
            base_models=(BASE_MODEL,),
            aliases={ALIAS: BASE_MODEL},
            api_keys=(KEY, OTHER_KEY),
            log_level="error",
            **settings,
        )

    return make


@pytest.fixture
async def api(make_config, make_engine):
    async with serving(make_config(), make_engine(), SystemClock()) as running:
        yield running


@pytest.fixture
def make_server(make_config, make_engine):
    @contextmanager
    def make(**settings):
        config = make_config(port=0, shutdown_grace_s=2, **settings)
        with LoopbackServer(config, make_engine()) as server:
            yield server

    return make


@pytest.fixture
def server(make_server):
    with make_server() as running:
        yield running


@pytest.fixture
async def virtual(make_config, make_engine):
    """An app on a clock that the test moves."""
    clock = VirtualClock()
    async with serving(make_config(), make_engine(), clock) as running:
        running.clock = clock
        yield running


@pytest.fixture
def advance(virtual):
    async def move(seconds):
        await settle(50)
        virtual.clock.advance(seconds)
        await settle(50)

    return move


@pytest.fixture
def serve(make_engine):
    """Serve other settings than the usual ones."""

    def start(config, clock=None, engine=None):
        return serving(config, engine or make_engine(), clock or SystemClock())

    return start
