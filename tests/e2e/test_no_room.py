"""A real server whose files may not grow: the clients hear why, and it goes on when they may."""

import resource

import pytest
from patience import PATIENCE_S

import tinkex
from tinkex.local import LocalServer
from tinkex.server.files.check import check_data_dir


def test_save_that_finds_no_room_fails_by_name_and_works_when_there_is(tmp_path):
    with LocalServer(tmp_path / "data", start_timeout=PATIENCE_S) as small:
        fill_and_free(small)
        assert check_data_dir(small.data_dir).errors == []
    report = check_data_dir(small.data_dir)  # of a server that runs, it passes over orphans
    assert (report.errors, [one for one in report.warnings if one.kind == "orphan"]) == ([], [])


def fill_and_free(small):
    with tinkex.ServiceClient(**small.login) as service:
        training = service.create_lora_training_client("tinkex/sprout", rank=8).result()
        first = training.save_state("first").result().path
        _, hard = resource.prlimit(small.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(small.pid, resource.RLIMIT_FSIZE, (600_000, hard))
        with pytest.raises(tinkex.RequestFailedError, match="disk is full") as caught:
            training.save_state("second").result()
        assert caught.value.category == "server"
        assert "second" in str(caught.value)
        resource.prlimit(small.pid, resource.RLIMIT_FSIZE, (hard, hard))
        training.save_state("second").result()
        again = service.create_training_client_from_state_with_optimizer(first).result()
        assert again.model_id
