"""Every public name, method, argument and field of the official package is here, or in the table
"Left out on purpose" of docs/deviations.md. Nothing is skipped but by a line below, with a reason.
"""

import dataclasses
import enum
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pydantic
import pytest

import tinkex
from tinkex import types
from tinkex.errors import UnsupportedError

ROOT = Path(__file__).parent.parent

# Raises UnsupportedError, which says what to use instead; each is in the table of the docs.
LEFT_OUT = {
    "SamplingClient.create": lambda: tinkex.SamplingClient.create(object()),
    "SaveWeightsResponse.get_console_url": lambda: types.SaveWeightsResponse(
        path="tinker://r/weights/a"
    ).get_console_url(),
    "SaveWeightsForSamplerResponse.get_console_url": lambda: types.SaveWeightsForSamplerResponse(
        path="tinker://r/weights/a"
    ).get_console_url(),
    "SaveWeightsForSamplerResponse.get_playground_url": lambda: types.SaveWeightsForSamplerResponse(
        path="tinker://r/weights/a"
    ).get_playground_url(),
    "ServiceClient(http_client=...)": lambda: tinkex.ServiceClient(http_client=object()),
}

# The official package's machinery that shows through its public classes: no program's business.
MACHINERY = {
    "DmelChunk": {"serialize_dmel", "validate_dmel"},
    "ImageChunk": {"serialize_data", "validate_data"},
    "ServiceClient": {"holder"},
    "TrainingClient": {"holder"},
    "SamplingClient": {"holder"},
}
# Private fields of the official dataclasses' constructors begin with an underscore.

# Ours takes less: a default where the official one asks.
MORE_DEFAULTS = {
    ("ServiceClient", "close"),
    ("SessionStartEvent", "event"),
    ("SessionEndEvent", "event"),
    ("UnhandledExceptionEvent", "event"),
    ("TelemetryResponse", "status"),
    ("CreateSessionRequest", "user_metadata"),
    ("SampledSequence", "sequence_id"),
}
# A field that a client only sends (or only reads) and never constructs without.
WIRE_DEFAULTS = {
    ("CreateCustomLossResponse", "type"),
    ("FuturesRetrieveRequest", "prev_cursor"),
    ("FuturesRetrieveRequest", "retrieved_request_ids"),
    ("SamplingSessionFuturesTarget", "cloned_sampler_id"),
}
# Theirs proxy every method of a client by class attributes, ours by __getattr__ (tested below).
PROXIES = {"BackcompatTrainingClientFuture", "BackcompatSamplingClientFuture"}


CLIENT_MODULES = [
    f".{kind}_client" for kind in ("admin", "rest", "sampling", "service", "training")
]


def test_public_names_are_sorted_and_all_there():
    assert tinkex.__all__ == sorted(tinkex.__all__)
    for name in tinkex.__all__:
        assert getattr(tinkex, name) is not None
    assert dir(tinkex) == tinkex.__all__


def test_types_are_sorted_and_all_there():
    assert types.__all__ == sorted(types.__all__)
    for name in types.__all__:
        assert getattr(types, name) is not None


def test_unknown_name_is_an_attribute_error_that_helps():
    with pytest.raises(AttributeError, match="README"):
        _ = tinkex.NoSuchName


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_says_so_by_name_and_stands_in_the_table(name):
    with pytest.raises(UnsupportedError) as caught:
        LEFT_OUT[name]()
    assert re.split(r"[.(=]", name)[1] in str(caught.value)
    table = (ROOT / "docs" / "deviations.md").read_text().split("## Left out on purpose")[1]
    assert f"`{name}`" in table.split("\n## ")[0]


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


@pytest.fixture(scope="module")
def official():
    return pytest.importorskip("tinker")


def official_classes():
    """(name, where theirs is, where ours is) of everything public."""
    tinker = pytest.importorskip("tinker")
    for name in sorted(tinker.__all__):
        yield name, getattr(tinker, name), getattr(tinkex, name, None)
    for name in sorted(public(tinker.types) - set(tinker.__all__)):
        theirs = getattr(tinker.types, name)
        if not inspect.ismodule(theirs) and name != "annotations":
            yield name, theirs, getattr(types, name, None)


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_every_official_name_is_here(official):
    assert set(official.__all__) - {"__version__", "__title__"} <= set(tinkex.__all__)
    missing = [name for name, _, ours in official_classes() if ours is None]
    assert missing == []
    functions = {n for n in public(official.auth) if inspect.isfunction(getattr(official.auth, n))}
    internal = {"resolve_auth_provider"}  # imported there for its own use
    assert functions - internal <= public(tinkex.auth)


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_every_type_can_be_imported_from_its_official_module(official):
    for found in pkgutil.iter_modules(official.types.__path__):
        if found.name.startswith("_") or found.name == "shared":
            continue
        theirs = importlib.import_module(f"tinker.types.{found.name}")
        ours = importlib.import_module(f"tinkex.types.{found.name}")
        wanted = public(theirs) & public(official.types)
        assert {name for name in wanted if not hasattr(ours, name)} <= {"annotations"}, found.name


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", ["", *CLIENT_MODULES])
def test_clients_and_their_arguments_can_be_imported_from_their_official_modules(official, place):
    theirs = importlib.import_module(f"tinker.lib.public_interfaces{place}")
    ours = importlib.import_module(f"tinkex.lib.public_interfaces{place}")
    if not place:
        assert set(theirs.__all__) <= set(ours.__all__)
        wanted = public(theirs) & set(official.__all__)
    else:
        own = {name for name in official.__all__ if name.lower() == place[1:].replace("_", "")}
        wanted = own | ({"RetryConfig"} & public(theirs))
    assert wanted
    for name in wanted:
        assert getattr(ours, name) is getattr(tinkex, name)


def test_retry_config_can_be_imported_from_its_one_official_module():
    retry_handler = importlib.import_module("tinkex.lib.retry_handler")
    assert retry_handler.RetryConfig is tinkex.RetryConfig


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_every_method_takes_the_official_arguments():
    different = {}
    for name, theirs, ours in official_classes():
        if not inspect.isclass(theirs) or name in PROXIES:
            continue
        inherited = public(pydantic.BaseModel)
        for method in sorted(public(theirs) - inherited - MACHINERY.get(name, set())):
            if f"{name}.{method}" in LEFT_OUT:
                continue
            found = method_difference(theirs, ours, method, name)
            if found:
                different[f"{name}.{method}"] = found
    assert different == {}


def method_difference(theirs, ours, method, name):
    if not has(ours, method):
        return "missing"
    wanted = getattr(theirs, method, None)
    if not inspect.isroutine(wanted):
        return None
    if not callable(getattr(ours, method)):  # theirs is a field only of its instances
        return None
    try:
        arguments, mine = parameters(wanted), parameters(getattr(ours, method))
    except ValueError:  # a method of a built-in class
        return None
    if (name, method) in MORE_DEFAULTS:
        arguments, mine = [a[:2] for a in arguments], [a[:2] for a in mine]
    return None if mine[: len(arguments)] == arguments else (arguments, mine)


def has(cls, name):
    if hasattr(cls, name) or name in getattr(cls, "model_fields", {}):
        return True
    return dataclasses.is_dataclass(cls) and name in {f.name for f in dataclasses.fields(cls)}


def parameters(function):
    return [
        (p.name, p.kind, None if p.default is p.empty else repr(p.default))
        for p in inspect.signature(function).parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_every_type_has_the_official_fields_and_defaults():
    different = {}
    for name, theirs, ours in official_classes():
        if inspect.isclass(theirs):
            for field, default in fields_of(theirs).items():
                found = field_difference(ours, field, default, name)
                if found:
                    different[f"{name}.{field}"] = found
    assert different == {}


REQUIRED = "required"


def fields_of(cls):
    """Public field -> its default as text, of a model or a dataclass."""
    if hasattr(cls, "model_fields"):
        return {
            name: REQUIRED
            if field.is_required()
            else plain(field.get_default(call_default_factory=True))
            for name, field in cls.model_fields.items()
        }
    if dataclasses.is_dataclass(cls):
        return {
            f.name: dataclass_default(f)
            for f in dataclasses.fields(cls)
            if f.init and f.name[0] != "_"
        }
    return {}


def dataclass_default(field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def plain(value):
    return value.model_dump() if hasattr(value, "model_dump") else value


def field_difference(ours, field, default, name):
    mine = fields_of(ours)
    if field not in mine:
        accepted = field in inspect.signature(ours).parameters or has(ours, field)
        return None if accepted else "missing"
    if (name, field) in MORE_DEFAULTS | WIRE_DEFAULTS or mine[field] == default:
        return None
    return default, mine[field]


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_exceptions_and_enumerations_are_what_the_official_ones_are():
    for name, theirs, ours in official_classes():
        if not inspect.isclass(theirs):
            continue
        if issubclass(theirs, enum.Enum):
            assert {e.name: e.value for e in theirs} == {e.name: e.value for e in ours}, name
        if issubclass(theirs, BaseException):
            bases = {c.__name__ for c in theirs.__mro__} - {"Generic", "ABC"}
            assert bases <= {c.__name__ for c in ours.__mro__}, name
            if isinstance(getattr(theirs, "status_code", None), int):
                assert ours.status_code == theirs.status_code


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
def test_clients_are_made_with_the_official_arguments(official):
    for name in ("ServiceClient", "RestClient", "AdminClient"):
        wanted = parameters(getattr(official, name))
        assert {a[:2] for a in wanted} <= {a[:2] for a in parameters(getattr(tinkex, name))}
    # what the official ServiceClient passes on to its HTTP client
    passed_on = {"timeout", "max_retries", "default_headers", "default_query", "http_client"}
    assert passed_on <= set(inspect.signature(tinkex.ServiceClient).parameters)


@pytest.mark.parametrize("name", sorted(PROXIES))
def test_future_of_a_client_stands_for_the_client(name):
    future = getattr(tinkex, name)()

    class Client:
        def sample(self):
            return "sampled"

    future.resolve(Client())
    with pytest.warns(FutureWarning, match="sample"):
        assert future.sample() == "sampled"
