"""Checks real replies against the OpenAPI document of the app that sent them."""

from __future__ import annotations

import json
from functools import cache

from jsonschema import Draft202012Validator
from starlette.routing import compile_path

from tinkex.server.openapi.document import describe_api
from tinkex.server.openapi.operations import operations

DOWNLOADED = {206, 304, 416}
"""Statuses of a file's reply, which Starlette gives by itself."""


def assert_as_described(app, response):
    """Check that a reply has a status, a content type and a body that the document promises."""
    found = operation_at(app, response.request.method, response.request.url.path)
    if found is None:
        assert response.status_code in {401, 404, 405, 421}, response.text
        return
    document, validators = _described(_Routes(app.routes))
    entry = document["paths"][found.template][found.method.lower()]
    status = response.status_code
    key = str(status) if str(status) in entry["responses"] else f"{status // 100}XX"
    if status in DOWNLOADED or key == "5XX":
        return
    assert key in entry["responses"], (found.method, found.path, status)
    content_type = response.headers.get("content-type", "").partition(";")[0]
    forms = entry["responses"][key]["content"]
    assert content_type in forms or not forms, (found.method, found.path, status, content_type)
    if content_type == "application/json":
        place = (found.template, found.method.lower(), key)
        if place not in validators:
            schema = {**forms[content_type]["schema"], "components": document["components"]}
            validators[place] = Draft202012Validator(schema)
        fault = next(validators[place].iter_errors(response.json()), None)
        assert fault is None, f"{found.method} {found.path} {status}: {fault.message}"


def operation_at(app, method, path):
    """Return the operation that answers a request, or None."""
    for operation in _operations(_Routes(app.routes)):
        if operation.method == method and compile_path(operation.path)[0].match(path):
            return operation
    return None


class _Routes:
    """Routes, equal to those of another app when they have the same paths."""

    def __init__(self, routes):
        self.routes = routes
        self.key = tuple((o.method, o.path) for o in operations(routes))

    def __hash__(self):
        return hash(self.key)

    def __eq__(self, other):
        return self.key == other.key


@cache
def _operations(routes):
    return list(operations(routes.routes))


@cache
def _described(routes):
    document = json.loads(json.dumps(describe_api(routes.routes)))
    for schema in [*document["components"]["schemas"].values()]:
        _close(schema)
    return document, {}


def _close(schema):
    """Refuse fields that a schema does not name: they would be replies that nobody described."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            _close(part)
    elif isinstance(schema, list):
        for part in schema:
            _close(part)
