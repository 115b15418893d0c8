"""OpenMP's threads do not spin for long where somebody else needs the cores."""

import os
import subprocess
import sys

import pytest

from tinkex.cli.mesh import workers
from tinkex.cli.openmp import wait_briefly
from tinkex.errors import ConfigurationError
from tinkex.mesh.config import MeshConfig

CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.fixture
def environment(monkeypatch):
    kept = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    monkeypatch.setattr(os, "environ", kept)
    return kept


def test_threads_that_wait_for_work_sleep_soon(environment):
    wait_briefly()
    assert environment["GOMP_SPINCOUNT"] == "20000"


@pytest.mark.parametrize("name", CHOSEN)
def test_what_was_chosen_stays(environment, name):
    environment[name] = "active"
    before = dict(environment)
    wait_briefly()
    assert environment == before


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings another library elsewhere")
def test_pytorch_s_own_openmp_takes_it(environment):
    program = "from tinkex.cli.openmp import wait_briefly; wait_briefly(); import torch"
    told = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "OMP_DISPLAY_ENV": "verbose"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "GOMP_SPINCOUNT = '20000'" in told.stderr


async def test_worker_of_a_mesh_sees_to_it_before_it_loads_anything(environment, tmp_path):
    async def enter(*_, **__):
        raise ConfigurationError(environment["GOMP_SPINCOUNT"])

    with pytest.raises(ConfigurationError, match="20000"):
        await workers._serve("processor", MeshConfig(data_dir=tmp_path), None, None, enter)
