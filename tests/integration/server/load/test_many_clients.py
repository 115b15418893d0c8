"""Many clients at once: no errors, nobody forgotten. The long form is `make soak`."""

import asyncio
import importlib.util
import os
import sys
from pathlib import Path

import pytest
from server_support import BASE_MODEL, KEY

from tinkex.local import LocalServer

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


@pytest.fixture(scope="module")
def load():
    spec = importlib.util.spec_from_file_location("load_benchmark", BENCHMARKS / "load.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_twenty_clients_at_once_meet_no_error(load, make_server):
    with make_server() as server:
        findings = asyncio.run(
            load.put_under_load(server.url, KEY, BASE_MODEL, os.getpid(), clients=20, seconds=0.0)
        )
    assert findings.errors == []
    assert {kind: len(one) for kind, one in findings.latencies.items()} == {
        "sample": 15,
        "train": 5,
    }
    assert server.services.futures.open_count == 0


@pytest.mark.soak
def test_two_hundred_clients_for_a_minute_meet_no_error_and_memory_stays(load, tmp_path):
    with LocalServer(tmp_path, load.SETTINGS) as server:
        address = server.address
        findings = asyncio.run(
            load.put_under_load(
                address.url,
                address.api_key,
                "tinkex/sprout",
                address.pid,
                clients=200,
                seconds=60.0,
                warm_up=60.0,
            )
        )
    told = load.summary(findings, clients=200, seconds=60.0)
    assert findings.errors == []
    resident = told["resident_mib"]
    assert resident["at_the_end"] <= 1.05 * resident["after_warm_up"]
