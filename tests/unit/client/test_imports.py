"""What importing the client costs and needs."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"torch", "transformers", "typer", "starlette", "sqlalchemy", "tokenizers"}


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_package_imports_next_to_nothing():
    code = "import sys, tinkex; print(*(m.partition('.')[0] for m in sys.modules))"
    assert not (HEAVY | {"httpx", "numpy", "pydantic", "rich"}) & set(run(code))


def test_using_the_client_imports_no_torch_and_no_transformers():
    code = (
        "import sys, tinkex\n"
        "client = tinkex.ServiceClient(base_url='http://127.0.0.1:9', api_key='tml-x')\n"
        "tinkex.SamplingClient, tinkex.TrainingClient, tinkex.Datum\n"
        "client.close()\n"
        "print(*(m.partition('.')[0] for m in sys.modules))"
    )
    assert not HEAVY & set(run(code))


def test_loading_the_shipped_tokenizer_imports_no_torch():
    """It would take seconds, in each `tinkex sample` and `tinkex chat` too."""
    code = (
        "import sys\n"
        "from tinkex.client.tokenizer import load_tokenizer, resolve_tokenizer\n"
        "tokenizer = load_tokenizer(resolve_tokenizer('tinkex/sprout'))\n"
        "assert tokenizer.decode(tokenizer.encode('One two')) == 'One two'\n"
        "print(*(m.partition('.')[0] for m in sys.modules))"
    )
    found = set(run(code))
    assert "transformers" in found
    assert "torch" not in found


def test_environment_is_read_when_a_client_is_made_and_never_after():
    """A2.1."""
    code = """
import os, sys
sys.path.insert(0, 'tests/support')
import tinkex
from tinkex.testing.server import PeerResponse, ScriptedServer
with ScriptedServer() as peer:
    peer.always('/api/v1/get_server_capabilities', PeerResponse.of_json({'supported_models': []}),
                method='GET')
    client = tinkex.ServiceClient(base_url=peer.url, api_key='tml-x')
    client.get_server_capabilities()
    reads = []
    kind = type(os.environ)
    real = kind.__getitem__
    def watch(self, name):
        reads.append(name)
        return real(self, name)
    kind.__getitem__ = watch
    client.get_server_capabilities()
    kind.__getitem__ = real
    client.close()
    # OpenTelemetry's own settings are read by its API, when pyqwest first asks it for a tracer
    print('reads', *(name for name in reads if not name.startswith('OTEL_')))
"""
    assert run(code) == ["reads"]


def test_annotations_of_what_is_public_can_be_evaluated():
    """By what makes clients of configurations, tools of methods, models of types."""
    code = """
import inspect, sys, typing
import tinkex

def evaluate(what, name):
    try:
        typing.get_type_hints(what)
    except NameError as error:
        print(name, error.name, sep=":")

for name in tinkex.__all__:
    public = getattr(tinkex, name)
    if not isinstance(public, type) or issubclass(public, Exception):
        continue
    evaluate(public, name)
    for method, value in vars(public).items():
        bound = isinstance(value, (classmethod, staticmethod))
        function = value.__func__ if bound else value
        if inspect.isfunction(function) and (method == "__init__" or method[0] != "_"):
            evaluate(function, f"{name}.{method}")
assert "torch" not in sys.modules
"""
    found = set(run(code))
    # importing torch takes seconds, and a client works without it
    assert {one for one in found if not one.endswith((":torch", ":fx"))} == set()
