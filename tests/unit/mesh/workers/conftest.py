"""Networks for tests of workers."""

from __future__ import annotations

import pytest
from mesh_gateway import GatewayWorld


@pytest.fixture
async def world(tmp_path):
    async with GatewayWorld(path=tmp_path) as made:
        yield made
