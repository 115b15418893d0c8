"""The tree of exceptions is the one drawn, and survives pickling."""

import inspect
import pickle
import re

import httpx
import pytest

from tinkex import errors

CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, errors.TinkerError)
}


def test_every_class_is_drawn_in_the_tree():
    drawn = set(re.findall(r"\b[A-Z]\w+Error\b", errors.__doc__))
    assert set(CLASSES) <= drawn


@pytest.mark.parametrize("name", CLASSES)
def test_error_survives_pickling(name):
    error = CLASSES[name]("something is wrong")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.category == error.category


def test_attributes_survive_pickling():
    error = errors.status_error(429, "slow down", body={"detail": "x"}, retry_after_ms=1500.0)
    again = pickle.loads(pickle.dumps(error))
    assert (again.status_code, again.body, again.retry_after_ms) == (429, {"detail": "x"}, 1500.0)


@pytest.mark.parametrize(
    ("status", "cls", "category"),
    [
        (400, errors.BadRequestError, "user"),
        (401, errors.AuthenticationError, "user"),
        (402, errors.BillingError, "user"),
        (403, errors.PermissionDeniedError, "user"),
        (404, errors.NotFoundError, "user"),
        (409, errors.ConflictError, "user"),
        (422, errors.UnprocessableEntityError, "user"),
        (429, errors.RateLimitError, "user"),
        (500, errors.InternalServerError, "server"),
        (503, errors.InternalServerError, "server"),
        (418, errors.APIStatusError, "user"),
    ],
)
def test_status_has_its_class_and_category(status, cls, category):
    error = errors.status_error(status, "x")
    assert type(error) is cls
    assert error.status_code == status
    assert error.category == category


REQUEST = httpx.Request("POST", "http://server.invalid/api/v1/asample")
RESPONSE = httpx.Response(429, json={"detail": "slow down"}, request=REQUEST)
BODY = {"detail": "slow down"}


@pytest.mark.parametrize(
    ("error", "message", "response"),
    [
        (errors.APIError("failed", REQUEST, body=BODY), "failed", None),
        (errors.APIStatusError("slow down", RESPONSE, BODY), "slow down", RESPONSE),
        (errors.RateLimitError("slow", response=RESPONSE, body=BODY), "slow", RESPONSE),
        (errors.APIResponseValidationError(RESPONSE, BODY, "odd"), "odd", RESPONSE),
        (errors.APIResponseValidationError(RESPONSE, BODY, message="odd"), "odd", RESPONSE),
        (errors.APIResponseValidationError(response=RESPONSE, body=BODY), "The server's", RESPONSE),
        (errors.APIConnectionError(REQUEST), "Connection error.", None),
        (errors.APIConnectionError(REQUEST, "gone"), "gone", None),
        (errors.APIConnectionError(message="gone", request=REQUEST), "gone", None),
        (errors.APITimeoutError(REQUEST), "Request timed out.", None),
        (errors.APITimeoutError(request=REQUEST), "Request timed out.", None),
    ],
)
def test_errors_are_made_as_the_official_ones_are(error, message, response):
    assert str(error).startswith(message)
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert one.message == str(error)
        assert str(one.request.url) == str(REQUEST.url)
    if not isinstance(error, errors.APIConnectionError):
        assert error.body == again.body == BODY
    if response is not None:
        assert error.response is response
        assert error.status_code == again.status_code == again.response.status_code == 429


def test_error_without_an_answer_says_so_with_none():
    error = errors.status_error(404, "x")
    assert (error.request, error.response, error.body) == (None, None, None)
    unsent = errors.BadRequestError("x", httpx.Response(400))
    assert (unsent.request, unsent.status_code) == (None, 400)


def test_own_category_wins():
    assert errors.status_error(400, "x", category="server").category == "server"


@pytest.mark.interop
def test_official_exceptions_have_their_namesakes_in_the_same_order():
    official = pytest.importorskip("tinker")
    for name, theirs in list(vars(official).items()):
        if inspect.isclass(theirs) and issubclass(theirs, official.TinkerError):
            ours = CLASSES[name]
            parents = {c.__name__ for c in theirs.__mro__ if c.__name__.endswith("Error")}
            assert parents <= {c.__name__ for c in ours.__mro__}
