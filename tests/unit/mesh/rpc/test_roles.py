"""Who may call what: every method of every service of `mesh.api`, as every role and as a guest."""

import importlib
import inspect
import pkgutil

import msgspec
import pytest
from mesh_rpc import World, raw_link

import tinkex.mesh.api
from tinkex.mesh.roles import Role
from tinkex.mesh.rpc.messages import Request, decode_frame, encode_frame
from tinkex.mesh.rpc.service import Service, method_of, methods_of

APIS = sorted(
    {
        found
        for module in pkgutil.iter_modules(tinkex.mesh.api.__path__)
        for _, found in inspect.getmembers(
            importlib.import_module(f"tinkex.mesh.api.{module.name}"), inspect.isclass
        )
        if issubclass(found, Service) and found is not Service
    },
    key=lambda api: api.service,
)
NO_MESSAGE = b"\xc1"
"""No msgpack at all: who may call is told so, who may not is told that and nothing more."""


def implemented(api):
    """An instance whose methods are never reached."""

    async def unary(self, request, call):
        pytest.fail("the request was no message")

    async def streamed(self, request, call):
        pytest.fail("the request was no message")
        yield

    methods = {
        declared.__name__: streamed if method_of(declared).streamed else unary
        for declared in methods_of(api).values()
    }
    return type(f"Some{api.__name__}", (api,), methods)()


def expected(declared, role):
    method = method_of(declared)
    allowed = method.guests if role is None else role in method.roles
    return "PeerProtocolError" if allowed else "PermissionDeniedError"


def test_there_are_services_to_try():
    assert {api.service for api in APIS} >= {"auth", "gateway", "processor"}


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.service)
@pytest.mark.parametrize("role", [*Role, None], ids=str)
async def test_only_the_roles_of_a_method_may_call_it(api, role):
    async with World() as world, raw_link(world, implemented(api), role) as (_, link):
        told, wanted = {}, {}
        for number, (path, declared) in enumerate(sorted(methods_of(api).items()), start=1):
            window = 1000 if method_of(declared).streamed else 0
            await link.send(encode_frame([Request(number, path, 1000, window, "", NO_MESSAGE)]))
            (answer,) = decode_frame(await link.receive())
            told[path] = answer.error.name
            wanted[path] = expected(declared, role)
        assert told == wanted


def test_guests_may_call_nothing_but_joining():
    open_to_guests = {
        path for api in APIS for path, d in methods_of(api).items() if method_of(d).guests
    }
    assert open_to_guests == {"auth.join"}


def test_every_request_is_strict():
    """A field that is not known is refused, not dropped."""
    loose = []
    for api in APIS:
        for declared in methods_of(api).values():
            method = method_of(declared)
            if not method.request.__struct_config__.forbid_unknown_fields:
                loose.append(method.path)
            assert issubclass(method.request, msgspec.Struct)
    assert loose == []
