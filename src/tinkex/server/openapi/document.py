"""The OpenAPI 3.1 document of an application, made from its operations and their types.

Owns the document's form. It holds nothing of its own about any one route: what is wrong in it is
wrong in the route, its docstring, its type or its row in the wire's table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from tinkex._version import __version__
from tinkex.server.accounts.scopes import is_offered, is_open
from tinkex.server.openapi.describe import JSON
from tinkex.server.openapi.operations import operations
from tinkex.wire.headers import API_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from starlette.routing import BaseRoute

    from tinkex.server.openapi.describe import Media
    from tinkex.server.openapi.operations import Operation

Mode = Literal["validation", "serialization"]
Json = dict[str, Any]

REF = "#/components/schemas/{model}"
PROTO_PATH = "/tinkex_public.proto"
EMPTY_OBJECT: Json = {"type": "object", "maxProperties": 0}
ERROR: Json = {
    "type": "object",
    "description": "What is wrong, and what to do.",
    "properties": {"detail": {"type": "string"}},
    "required": ["detail"],
    "additionalProperties": True,
}
_PATH_TYPES: dict[str, Json] = {"int": {"type": "integer"}, "float": {"type": "number"}}
_ABOUT = (
    "The API of a tinkex server: the Tinker API as the official SDK speaks it, and what this "
    "server adds. Unknown fields and query parameters are refused by name. Work that takes long "
    "answers at once with a `request_id`, whose result `retrieve_future` gives; an error of "
    "accepted work comes as that result, `{error, category}` with status 200, not as an HTTP error."
)


def describe_api(routes: Iterable[BaseRoute]) -> Json:
    """Make the document of everything that some routes answer.

    Raises:
        TypeError: naming each route that says nothing of what it takes and gives.
    """
    found = list(operations(routes))
    silent = [f"{o.method} {o.path}" for o in found if o.description is None]
    if silent:
        raise TypeError(
            f"These routes are described nowhere: {', '.join(silent)}. Give each a row in "
            "wire/endpoints.py, or @described (server/openapi/describe.py) on its handler."
        )
    schemas = _Schemas(found)
    paths: dict[str, Json] = {}
    for operation in found:
        item = paths.setdefault(operation.template, {})
        item[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tinkex", "version": __version__, "description": _ABOUT},
        "externalDocs": {"description": "The protobuf messages", "url": PROTO_PATH},
        "security": [{"key": []}, {"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.definitions | {"Error": ERROR},
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": API_KEY},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def needs_key(operation: Operation) -> bool:
    """Whether an operation is answered with a key alone."""
    return not is_open(operation.path) and not is_offered(operation.path)


class _Schemas:
    """The JSON schemas of all types at once, so that those of one name get names of their own."""

    def __init__(self, found: Sequence[Operation]) -> None:
        adapters: dict[int, TypeAdapter[Any]] = {}
        inputs: list[tuple[int, Mode, TypeAdapter[Any]]] = []
        for schema, mode in _types(found):
            adapter = adapters.get(id(schema))
            if adapter is None:
                adapter = adapters[id(schema)] = TypeAdapter(schema)
            if (id(schema), mode, adapter) not in inputs:
                inputs.append((id(schema), mode, adapter))
        self._schemas, rest = TypeAdapter.json_schemas(inputs, ref_template=REF)
        self.definitions: Json = dict(rest.get("$defs", {}))

    def of(self, schema: Any, mode: Mode) -> Json:
        """Return the schema of a type."""
        if schema is dict:
            return EMPTY_OBJECT
        return self._schemas[id(schema), mode]


def _types(found: Sequence[Operation]) -> Iterable[tuple[Any, Mode]]:
    for operation in found:
        for media in operation.request_media:
            if media.schema is not None and media.schema is not dict:
                yield media.schema, "validation"
        if operation.description is not None and operation.description.error is not None:
            yield operation.description.error, "serialization"
        for media in operation.response_media:
            if media.schema is not None and media.schema is not dict:
                yield media.schema, "serialization"


def _operation(operation: Operation, schemas: _Schemas) -> Json:
    said = operation.description
    assert said is not None
    entry: Json = {
        "operationId": operation.operation_id,
        "tags": [operation.group],
        "summary": operation.summary.rstrip("."),
        "description": operation.text,
        "parameters": [*_path_parameters(operation), *_query_parameters(operation)],
        "responses": {
            str(said.status): {
                "description": operation.summary or "Done.",
                "content": _content(operation.response_media, schemas, "serialization"),
            },
            **_faults(operation, schemas),
        },
    }
    if operation.request_media:
        entry["requestBody"] = {
            "required": not said.unread,
            "content": _request_content(operation, schemas),
        }
    if not needs_key(operation):
        entry["security"] = []
    return entry


def _request_content(operation: Operation, schemas: _Schemas) -> Json:
    content = _content(operation.request_media, schemas, "validation")
    if operation.description is not None and operation.description.unread:
        about = "What clients send. Its content is not checked, so that nothing keeps them out."
        for form in content.values():
            form["schema"] = {"description": about, "anyOf": [form["schema"], {}]}
    return content


def _content(media: Iterable[Media], schemas: _Schemas, mode: Mode) -> Json:
    content: Json = {}
    for form in media:
        schema = {} if form.schema is None else schemas.of(form.schema, mode)
        about = {"description": form.about} if form.about else {}
        content[form.content_type] = {"schema": schema | about}
    return content


def _faults(operation: Operation, schemas: _Schemas) -> Json:
    said = operation.description
    assert said is not None
    error: Json = {"$ref": REF.format(model="Error")}
    if said.error is not None:
        error = {"anyOf": [schemas.of(said.error, "serialization"), error]}
    content = {JSON: {"schema": error}}
    faults = {str(status): text for status, text in said.faults.items()}
    texts = {"4XX": "Refused; the detail says why.", **faults}
    return {status: {"description": text, "content": content} for status, text in texts.items()}


def _path_parameters(operation: Operation) -> list[Json]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": _PATH_TYPES.get(kind, {"type": "string"}),
            **({"description": "May hold slashes."} if kind == "path" else {}),
        }
        for name, kind in operation.parameters
    ]


def _query_parameters(operation: Operation) -> list[Json]:
    assert operation.description is not None
    schema = operation.description.query.model_json_schema(ref_template=REF)
    if "$defs" in schema:
        raise TypeError(f"{operation.description.query} has fields that are no plain values.")
    needed = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "query",
            "required": name in needed,
            "schema": field,
            **({"description": field["description"]} if "description" in field else {}),
        }
        for name, field in schema.get("properties", {}).items()
    ]
