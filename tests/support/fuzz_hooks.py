"""What schemathesis is told besides the document: ids that exist, and how to send the key.

Runs in the environment of schemathesis alone. Most generated requests would end at an unknown id;
two thirds of the ids that it makes up are replaced by those of things that are there.
"""

from __future__ import annotations

import json
import os
import zlib

import schemathesis

KNOWN = json.loads(os.environ["FUZZ_KNOWN"])
"""Field name: a value that exists."""
KEPT = {"/api/v1/sessions/{session_id}/finish", "/api/v1/unload_model"}
"""What would end the things that the other requests are about: called for other ones alone."""


@schemathesis.auth()
class Key:
    """Sends the key, except where schemathesis tries to do without."""

    def get(self, case, context):
        return os.environ["FUZZ_KEY"]

    def set(self, case, data, context):
        case.headers = {**(case.headers or {}), "X-API-Key": data}


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    return _known(context, path_parameters)


@schemathesis.hook
def map_body(context, body):
    return _known(context, body)


def _known(context, fields):
    path = context.operation.path
    if not isinstance(fields, dict) or path in KEPT or "checkpoints/" in path:
        return fields
    return {name: _replaced(name, value) for name, value in fields.items()}


def _replaced(name, value):
    if name not in KNOWN or not isinstance(value, str):
        return value
    return value if zlib.crc32(value.encode("utf-8", "replace")) % 3 == 0 else KNOWN[name]
