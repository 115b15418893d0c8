"""Every field that the official SDK can send is covered: it has an effect, or is refused by name.

There is no third way. Each test beside this one says with `@covers` which fields it is about; here
they are held against the types of the official package and its protobuf descriptor.
"""

import ast
from pathlib import Path

import pytest
from official_fields import json_fields, protobuf_fields
from recordings import exchanges

HERE = Path(__file__).parent

# Nobody reads these: `test_session_fields.py` shows that the document says so of its body.
TELEMETRY = ("TelemetrySendRequest.", "GenericEvent.", "SessionStartEvent.", "SessionEndEvent.")
TELEMETRY += ("UnhandledExceptionEvent.",)


def covered():
    words = set()
    for path in HERE.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "covers":
                words |= {word.value for word in node.args}
    return words


def test_every_field_of_the_official_requests_is_covered():
    fields = {name for name in json_fields() if not name.startswith(TELEMETRY)}
    assert len(fields) > 150
    assert sorted(fields - covered()) == []


def test_every_field_of_the_protobuf_is_covered():
    fields = {f"pb.{name}" for name in protobuf_fields()}
    assert len(fields) > 35
    assert sorted(fields - covered()) == []


def test_nothing_is_covered_that_is_not_there():
    fields = json_fields() | {f"pb.{name}" for name in protobuf_fields()}
    assert {word for word in covered() - fields if not word.startswith("body.")} == set()


@pytest.fixture
def recorded_queries():
    return {
        (one.request["method"], one.request["path"], name)
        for one in exchanges()
        for name in one.request.get("query") or {}
    }


async def test_every_recorded_query_parameter_is_known_to_its_route(api, recorded_queries):
    """What the official SDK sends in a query is a field of the route's own, or refused by name."""
    assert len(recorded_queries) > 10
    for method, path, name in recorded_queries:
        response = await api.request(method, f"{path.removeprefix('/api/v1')}?{name}=%00&zzz=1")
        assert response.status_code in {404, 422}, (path, name, response.text)
        if response.status_code == 422:
            assert "'zzz' is not known" in response.json()["detail"]
            assert f"{name!r} is not known" not in response.json()["detail"], (path, name)
