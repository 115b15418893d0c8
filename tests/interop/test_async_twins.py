"""The official SDK's deprecated `*_async` methods: all of them, as the package lists them."""

import inspect
import json

import pytest
import tinker

pytestmark = pytest.mark.interop

CLIENTS = ("ServiceClient", "TrainingClient", "SamplingClient", "RestClient", "AdminClient")


def test_every_async_twin_runs(workplace, python_of):
    done = workplace.run(python_of("dev"), workplace.program("async_twins.py"))
    called = json.loads(done.stdout.splitlines()[-1])
    wanted = {
        f"{name}.{method}"
        for name in CLIENTS
        for method, _ in inspect.getmembers(getattr(tinker, name), inspect.isroutine)
        if method.endswith("_async") and not method.startswith("_")
    }
    assert len(wanted) > 40
    assert set(called) == wanted
