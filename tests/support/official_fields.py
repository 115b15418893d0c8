"""Every field of every request that the official SDK can send, read from its own types.

Owns the list alone; what becomes of each field is the tests' to show.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing

import tinker.types
from pydantic import BaseModel
from tinker.proto import tinker_public_pb2 as official

REPLIES = ("Response", "Entry", "Event", "Summary")


def json_fields():
    """Return `Model.field` for each field of each request model, and of what is in them."""
    waiting = [
        model for name, model in _models().items() if name.endswith(("Request", "RequestInternal"))
    ]
    found, fields = set(), set()
    while waiting:
        model = waiting.pop()
        if model in found:
            continue
        found.add(model)
        for name, field in model.model_fields.items():
            fields.add(f"{model.__name__.removeprefix('_')}.{name}")
            waiting += _models_in(field.annotation)
        waiting += model.__subclasses__()  # `OptimParamsBase` stands for those of each optimiser
    return fields


def protobuf_fields():
    """Return `Message.field` for each field of a ForwardBackwardRequest and what is in it."""
    waiting = [official.ForwardBackwardRequest.DESCRIPTOR]
    found, fields = set(), set()
    while waiting:
        message = waiting.pop()
        if message.full_name in found:
            continue
        found.add(message.full_name)
        is_map = message.GetOptions().map_entry
        for field in message.fields:
            if not is_map:
                fields.add(f"{message.name}.{field.name}")
            if field.message_type is not None:
                waiting.append(field.message_type)
    return fields


def _models():
    models = {}
    for module in pkgutil.iter_modules(tinker.types.__path__, "tinker.types."):
        if not module.ispkg:
            for value in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(value) and issubclass(value, BaseModel):
                    models[value.__name__] = value
    return models


def _models_in(annotation):
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
