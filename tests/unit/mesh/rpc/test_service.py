"""What is read from the declaration of a service; what is declared wrongly is refused."""

from collections.abc import AsyncIterator

import pytest
from mesh_rpc import Answer, Ask, Echo

from tinkex.mesh.api.auth import AuthApi
from tinkex.mesh.roles import CERTIFIED, Role
from tinkex.mesh.rpc.service import Call, Service, callable_by, is_trace, method_of, methods_of


def test_method_is_described_by_its_annotations():
    method = method_of(Echo.rpc_count)
    assert method.path == "echo.count"
    assert (method.request, method.response, method.streamed) == (Ask, Answer, True)
    assert (method.roles, method.guests) == (CERTIFIED, False)
    assert not method_of(AuthApi.rpc_login).streamed
    assert method_of(AuthApi.rpc_join).guests


def test_every_marked_method_is_found_by_its_path():
    assert set(methods_of(Echo)) == {
        f"echo.{name}"
        for name in ("say", "gateways", "guests", "wait", "fail", "count", "count_then_wait")
    }


def test_override_keeps_the_mark_of_what_it_overrides():
    class Quiet(Echo):
        async def rpc_say(self, request: Ask, call: Call) -> Answer:
            return Answer("")

    assert methods_of(Quiet)["echo.say"] is Echo.rpc_say


def test_override_cannot_open_a_method_to_others():
    class Wide(Echo):
        @callable_by(CERTIFIED, guests=True)
        async def rpc_gateways(self, request: Ask, call: Call) -> Answer:
            return Answer("")

    method = method_of(methods_of(Wide)["echo.gateways"])
    assert (method.roles, method.guests) == ({Role.GATEWAY}, False)


def test_method_without_a_mark_is_refused():
    class Forgotten(Echo):
        async def rpc_secret(self, request: Ask, call: Call) -> Answer:
            return Answer("")

    with pytest.raises(TypeError, match="rpc_secret"):
        methods_of(Forgotten)


def test_service_without_a_name_is_refused():
    with pytest.raises(TypeError, match="Nameless"):

        class Nameless(Service):
            pass


class Wrong(Service):
    service = "wrong"

    @callable_by(CERTIFIED)
    async def rpc_text(self, request: str, call: Call) -> Answer:
        return Answer("")

    @callable_by(CERTIFIED)
    async def rpc_short(self, request: Ask) -> Answer:
        return Answer("")

    @callable_by(CERTIFIED)
    async def rpc_waits(self, request: Ask, call: Call) -> AsyncIterator[Answer]:
        return iter(())

    @callable_by(CERTIFIED)
    def rpc_blocks(self, request: Ask, call: Call) -> Answer:
        return Answer("")

    @callable_by(CERTIFIED)
    async def other(self, request: Ask, call: Call) -> Answer:
        return Answer("")


@pytest.mark.parametrize("name", ["rpc_text", "rpc_short", "rpc_waits", "rpc_blocks", "other"])
def test_wrong_declaration_is_refused_by_name(name):
    with pytest.raises(TypeError, match=name):
        method_of(getattr(Wrong, name))


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n", False),
        ("00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01", False),
    ],
)
def test_trace_context_has_one_form(text, good):
    assert is_trace(text) is good
