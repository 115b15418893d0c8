"""A network in one process: its processors share the machine's cores."""

import pytest

from tinkex.mesh.config import MeshConfig
from tinkex.mesh.workers.local import share_cores
from tinkex.mesh.workers.model_config import ModelConfig, ProcessorSettings


def config(tmp_path, threads=None):
    settings = ProcessorSettings(model=ModelConfig(threads=threads))
    return MeshConfig(data_dir=tmp_path, processor=settings)


@pytest.mark.parametrize(("processors", "cores", "each"), [(2, 2, 1), (2, 16, 8), (3, 2, 1)])
def test_processors_share_the_cores(tmp_path, processors, cores, each):
    found = share_cores(config(tmp_path), processors, cores)
    assert found.processor.model.threads == each
    assert found == config(tmp_path, threads=each)


@pytest.mark.parametrize(("threads", "processors"), [(None, 1), (None, 0), (4, 2)])
def test_one_has_them_all_and_what_was_said_holds(tmp_path, threads, processors):
    assert share_cores(config(tmp_path, threads), processors, 2) == config(tmp_path, threads)
