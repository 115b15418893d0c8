"""The document as a page to read: plain HTML, without a style, a script or anything from elsewhere.

Owns the page's form; every word on it is the document's.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Json = Mapping[str, Any]


def page_of(document: Json) -> str:
    """Write an OpenAPI document as HTML."""
    info = document["info"]
    proto = escape(document["externalDocs"]["url"])
    machines = '<a href="/openapi.json">openapi.json</a>'
    body = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        f"<p>{escape(info['description'])}</p>",
        f'<p>For machines: {machines}, <a href="{proto}">the protobuf messages</a></p>',
    ]
    for group, entries in _by_group(document).items():
        body.append(f"<h2>{escape(group)}</h2>")
        body += [_operation(*entry) for entry in entries]
    body.append("<h2>Messages</h2>")
    body += [_message(*entry) for entry in sorted(document["components"]["schemas"].items())]
    head = f'<meta charset="utf-8"><title>{escape(info["title"])}</title>'
    lines = "\n".join(body)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{lines}\n</body></html>\n'


def _by_group(document: Json) -> dict[str, list[tuple[str, str, Json]]]:
    groups: dict[str, list[tuple[str, str, Json]]] = {}
    for path, item in document["paths"].items():
        for method, entry in item.items():
            groups.setdefault(entry["tags"][0], []).append((method.upper(), path, entry))
    return groups


def _operation(method: str, path: str, entry: Json) -> str:
    title = f"<code>{method} {escape(path)}</code> {escape(entry['summary'])}"
    parts = [f"<p>{escape(entry['description'])}</p>"]
    if entry.get("security") == []:
        parts.append("<p>Needs no key.</p>")
    rows = [
        f"<li><code>{escape(one['name'])}</code> ({one['in']}): {_type(one['schema'])}</li>"
        for one in entry["parameters"]
    ]
    if rows:
        parts.append(f"<p>Parameters</p><ul>{''.join(rows)}</ul>")
    if "requestBody" in entry:
        parts.append(f"<p>Body</p><ul>{''.join(_forms(entry['requestBody']['content']))}</ul>")
    replies = (
        f"<li>{status}: {escape(one['description'])}<ul>{''.join(_forms(one['content']))}</ul></li>"
        for status, one in entry["responses"].items()
    )
    parts.append(f"<p>Replies</p><ul>{''.join(replies)}</ul>")
    inside = "".join(parts)
    return (
        f'<details id="{escape(entry["operationId"])}"><summary>{title}</summary>{inside}</details>'
    )


def _forms(content: Json) -> Iterator[str]:
    for content_type, form in content.items():
        about = escape(form["schema"].get("description", ""))
        yield f"<li><code>{escape(content_type)}</code> {_type(form['schema'])} {about}</li>"


def _message(name: str, schema: Json) -> str:
    text = orjson.dumps(schema, option=orjson.OPT_INDENT_2).decode()
    title = f"<summary><code>{escape(name)}</code></summary>"
    return f'<details id="message-{escape(name)}">{title}<pre>{escape(text)}</pre></details>'


def _type(schema: Json) -> str:
    """Name the type of a schema, with a link where it is a message."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#message-{name}">{name}</a>'
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(_type(one) for one in schema[word])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
    found = schema.get("type", "")
    return escape(" or ".join(found) if isinstance(found, list) else found)
