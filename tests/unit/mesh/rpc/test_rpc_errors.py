"""Errors across the wire: every class whole, unknown ones as MeshError, all of it bounded."""

import inspect

import msgspec
import pytest

from tinkex import errors
from tinkex.errors import ConfigurationError, MeshError, NotFoundError, TinkerError
from tinkex.mesh.rpc.errors import error_of, wire_error
from tinkex.mesh.rpc.messages import MAX_ERROR_CHARS, WireError

CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, TinkerError)
}


def crossed(error):
    """Send an error and make it again."""
    wire = msgspec.msgpack.encode(wire_error(error))
    return error_of(msgspec.msgpack.decode(wire, type=WireError))


@pytest.mark.parametrize("name", CLASSES)
def test_error_crosses_whole(name):
    error = CLASSES[name]("something is wrong")
    error.category, error.retry_after_ms, error.request_id = "server", 250.0, "r-7"
    if hasattr(error, "status_code"):
        error.status_code = 418
    again = crossed(error)
    assert type(again) is type(error)
    assert (str(again), again.message) == (str(error), error.message)
    assert (again.category, again.retry_after_ms, again.request_id) == ("server", 250.0, "r-7")
    assert getattr(again, "status_code", None) == getattr(error, "status_code", None)
    assert again.args == error.args


@pytest.mark.parametrize("name", CLASSES)
def test_error_without_details_crosses_without(name):
    error = CLASSES[name]("x")
    again = crossed(error)
    assert again.category == error.category
    assert again.retry_after_ms is None
    assert again.request_id in {None, ""}


def test_all_problems_of_a_configuration_cross():
    assert crossed(ConfigurationError(["one", "two"])).problems == ("one", "two")


def test_class_of_another_module_crosses_as_its_nearest_base():
    class NoSuchRunError(NotFoundError):
        pass

    again = crossed(NoSuchRunError("run"))
    assert type(again) is NotFoundError


def test_class_of_another_module_with_a_known_name_is_not_taken_for_the_known_one():
    impostor = type("TrustError", (NotFoundError,), {})
    assert type(crossed(impostor("x"))) is NotFoundError


@pytest.mark.parametrize(
    "name", ["SystemExit", "KeyboardInterrupt", "Exception", "Sequence", "status_error", "", "Any"]
)
def test_name_that_is_no_error_of_ours_becomes_a_mesh_error(name):
    error = error_of(WireError(name, ("text",), "unknown", None, None, None))
    assert type(error) is MeshError
    assert str(error) == "text"


def test_what_a_handler_puts_into_an_error_is_bounded():
    error = NotFoundError("x" * 100_000, request_id="r" * 1000, retry_after_ms=float("inf"))
    error.category = "nobody"
    error.status_code = 9999
    again = crossed(error)
    assert len(str(again)) == MAX_ERROR_CHARS
    assert len(again.request_id) == 256
    assert (again.category, again.retry_after_ms) == ("unknown", None)
    assert again.status_code == 404


def test_configuration_with_very_many_problems_is_bounded():
    assert len(crossed(ConfigurationError(["x"] * 1000)).problems) == 32
    assert crossed(ConfigurationError([])).problems == ("",)
