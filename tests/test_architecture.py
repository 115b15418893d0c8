"""The rules of ARCHITECTURE.md, checked on the source: a rule that no test checks is a wish.

A rule for files is one test for all of them: one for each file took longer than all it looked at.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "tinkex"
FILES = sorted(p for p in SOURCE.rglob("*.py") if not p.name.endswith("_pb2.py"))

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "interfaces", "misc"}

# Sans-IO modules: time, randomness and the network are arguments.
PURE = {
    "client/chunking.py",
    "client/metrics.py",
    "client/retry.py",
    "engine/sampling/scheduler.py",
    "mesh/dht/keys.py",
    "mesh/dht/lookup.py",
    "mesh/dht/records.py",
    "mesh/dht/routing.py",
    "mesh/dht/storage.py",
    "_backoff.py",
    "mesh/accounts/accounts.py",
    "mesh/accounts/addresses.py",
    "mesh/accounts/credentials.py",
    "mesh/accounts/events.py",
    "mesh/accounts/lockout.py",
    "mesh/accounts/public.py",
    "mesh/accounts/state.py",
    "mesh/accounts/tokens.py",
    "mesh/balancer.py",
    "mesh/purse.py",
    "mesh/quota.py",
    "mesh/usage.py",
    "mesh/limits.py",
}
IMPURE_MODULES = {"asyncio", "socket", "time", "os", "httpx", "threading"}

# Folders of the engine: each imports only those after it (besides what is needed for types alone).
# `training` and `sampling` do not know each other.
ENGINE_LAYERS = [
    "adapters",
    "files",
    "sampling",
    "training",
    "models",
    "attention",
    "lora",
    "matrices",
]

# Parts of the server that know neither HTTP nor callers, and those that do.
SERVER_BELOW = ["files", "models", "records", "runs", "sampling", "storage"]
SERVER_ABOVE = {"accounts", "app", "completer", "http", "openapi", "routes", "run"}

# The environment is read once, at the edge.
ENVIRONMENT_READERS = {"config.py", "credentials.py"}

CLIENT_ROOMS = [
    "tinkex",
    "tinkex.client",
    "tinkex.openai_api",
    "tinkex.types",
    "tinkex.wire.proto",
    "tinkex.cli.app",
]
SERVER_CONFIGS = ["tinkex.server.config", "tinkex.engine.config"]


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(parsed(path)) if isinstance(node, kinds)]


def run_time_imports(path: Path) -> set[str]:
    """Modules that a file imports as it is loaded: not inside functions, nor for types alone."""
    return {
        node.module
        for node in parsed(path).body
        if isinstance(node, ast.ImportFrom) and node.module
    }


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def breaches(found: Callable[[Path], object]) -> dict[str, object]:
    """What a rule finds in each file in which it finds something."""
    seen = {relative(path): found(path) for path in FILES}
    assert len(seen) > 600, "these are not the files"
    return {name: what for name, what in seen.items() if what}


def test_files_stay_below_the_ceiling():
    def too_many_lines(path):
        lines = len(path.read_text().splitlines())
        return lines if lines > MAX_FILE_LINES else None

    assert breaches(too_many_lines) == {}


def test_functions_stay_short():
    def long(path):
        lines = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path)}
        return {name: count for name, count in lines.items() if count > MAX_FUNCTION_LINES}

    assert breaches(long) == {}


def test_modules_say_what_they_own():
    def silent(path):
        return ast.get_docstring(parsed(path)) is None

    assert breaches(silent) == {}, "a module opens with what it owns and what it does not"


def test_no_file_is_a_drawer_for_everything():
    assert [relative(p) for p in FILES if p.stem in FORBIDDEN_NAMES] == []


def test_no_unfinished_work_is_left():
    def unfinished(path):
        text = path.read_text()
        return [word for word in ("TODO", "FIXME", "XXX", "NotImplementedError") if word in text]

    assert breaches(unfinished) == {}


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_module_does_no_io(name):
    roots = {module.split(".")[0] for module in imported_modules(SOURCE / name)}
    assert roots & IMPURE_MODULES == set()


@pytest.mark.parametrize("folder", ENGINE_LAYERS)
def test_engine_folder_imports_only_those_below_it(folder):
    below = set(ENGINE_LAYERS[ENGINE_LAYERS.index(folder) + 1 :])
    for path in (SOURCE / "engine" / folder).glob("*.py"):
        imported = {
            module.split(".")[2]
            for module in run_time_imports(path)
            if module.startswith("tinkex.engine.")
        }
        above = set(ENGINE_LAYERS) - below - {folder}
        if folder == "sampling":
            above.add("training")
        assert imported & above == set(), path.name


@pytest.mark.parametrize("folder", SERVER_BELOW)
def test_server_folder_knows_no_route_and_no_caller(folder):
    for path in (SOURCE / "server" / folder).glob("*.py"):
        imported = {
            module.split(".")[2]
            for module in run_time_imports(path)
            if module.startswith("tinkex.server.")
        }
        assert imported & SERVER_ABOVE == set(), path.name


def test_environment_is_read_at_the_edge_only():
    def reads(path):
        if path.name in ENVIRONMENT_READERS or relative(path).startswith("cli/"):
            return []
        return [
            node.lineno
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Attribute)
            and node.attr in {"environ", "getenv"}
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
        ]

    assert breaches(reads) == {}


def test_modules_keep_no_mutable_state():
    """Upper-case tables are constants; a lower-case module-level container would be state."""
    containers = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp)

    def state(path):
        found = []
        for node in parsed(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign) and node.value is not None:
                targets = [node.target]
            for target in targets:
                name = getattr(target, "id", "")
                if isinstance(node.value, containers) and not name.isupper() and name != "__all__":
                    found.append(name)
        return found + [n.names for n in ast.walk(parsed(path)) if isinstance(n, ast.Global)]

    assert breaches(state) == {}


def test_import_contracts_hold():
    code = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=SOURCE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", [*CLIENT_ROOMS, *SERVER_CONFIGS])
def test_import_stays_free_of_torch(module):
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'transformers', 'rich.progress'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_route_is_described(tmp_path):
    """Add a row to wire/endpoints.py, or `@described` (server/openapi) to the handler."""
    from tinkex._clock import SystemClock
    from tinkex.server.app import build_app
    from tinkex.server.config import ServerConfig
    from tinkex.server.openapi.document import describe_api

    config = ServerConfig(data_dir=tmp_path, api_keys=("tml-0123456789abcdef",))
    app = build_app(config, {}, clock=SystemClock())
    document = describe_api(app.routes)
    assert document["paths"]
    operations = [o for item in document["paths"].values() for o in item.values()]
    assert [o["operationId"] for o in operations if not o["summary"]] == [], "write a docstring"
    names = [o["operationId"] for o in operations]
    assert len(set(names)) == len(names)


def test_every_route_says_what_a_key_must_be_for(tmp_path):
    """Add a row to server/accounts/scopes.py; without one a route answers to admins alone."""
    from tinkex._clock import SystemClock
    from tinkex.server.accounts.scopes import NEEDED, every_route
    from tinkex.server.app import build_app
    from tinkex.server.config import ServerConfig

    config = ServerConfig(data_dir=tmp_path, api_keys=("tml-0123456789abcdef",))
    app = build_app(config, {}, clock=SystemClock())
    routes = {(method, path) for method, path, _ in every_route(app.routes)}
    assert routes == set(NEEDED)


def test_pages_of_settings_list_every_setting_as_it_is():
    from tinkex.cli.mesh.settings import mesh_schema
    from tinkex.cli.server_settings import server_schema

    guides = SOURCE.parent.parent / "docs" / "guides"
    for name, schema in (("server", server_schema()), ("mesh", mesh_schema())):
        page = (guides / f"{name}-settings.md").read_text()
        assert schema.table() in page, "run: python tools/settings_table.py"
