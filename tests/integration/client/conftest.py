"""Our client against the real server with the real engine on a tiny random model."""

from __future__ import annotations

import pytest
from server_support import ALIAS, BASE_MODEL, KEY, OTHER_KEY, LoopbackServer, tiny_engine

from tinkex._clock import SystemClock
from tinkex.client.runtime import Runtime

HEARTBEAT = 10.0
REFRESH = 300


class HurriedClock(SystemClock):
    """Shortens every wait of the client but those of its background work."""

    async def sleep(self, seconds):
        await super().sleep(seconds if seconds in {HEARTBEAT, REFRESH} else min(seconds, 0.01))


@pytest.fixture
def runtime():
    return Runtime(clock=HurriedClock())


@pytest.fixture
def server(tmp_path):
    from tinkex.server.config import Limits, ServerConfig

    config = ServerConfig(
        data_dir=tmp_path / "data",
        base_models=(BASE_MODEL,),
        aliases={ALIAS: BASE_MODEL},
        api_keys=(KEY, OTHER_KEY),
        log_level="error",
        port=0,
        shutdown_grace_s=2,
        limits=Limits(max_rank=64, fwdbwd_max_chunk_len=2),  # a batch goes in several chunks
    )
    with LoopbackServer(config, tiny_engine()) as running:
        yield running
