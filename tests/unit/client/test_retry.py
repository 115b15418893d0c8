"""The truth table of client.md section 3, cell by cell (A2.3)."""

from random import Random

import pytest

from tinkex.client.retry import Failure, RetryPolicy

POLICY = RetryPolicy(jitter=0.0)
RNG = Random(0)


def delay(status, attempt=0, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return POLICY.delay(Failure(status, named), attempt, 0.0, RNG)


@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.parametrize("said", [{}, {"retry_after": "3"}, {"x_should_retry": "true"}])
def test_success_is_never_sent_again(status, said):
    assert delay(status, **said) is None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
def test_refusal_is_final_unless_the_server_says_otherwise(status):
    assert delay(status) is None
    assert delay(status, retry_after="3") is None
    assert delay(status, x_should_retry="false") is None
    assert delay(status, x_should_retry="true") == 0.5
    assert delay(status, x_should_retry="true", retry_after="3") == 0.5


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 599])
def test_passing_failure_is_sent_again_when_the_server_says_or_soon(status):
    assert delay(status) == 0.5
    assert delay(status, retry_after="3") == 3.0
    assert delay(status, retry_after_ms="1500", retry_after="3") == 1.5
    assert delay(status, x_should_retry="false", retry_after="3") is None
    assert delay(status, x_should_retry="true") == 0.5
    assert delay(status, x_should_retry="true", retry_after="3") == 3.0


def test_no_answer_is_tried_again():
    assert delay(None) == 0.5


@pytest.mark.parametrize("status", [400, 429, 503])
def test_failure_of_the_user_is_never_sent_again(status):
    failure = Failure(status, {"x-should-retry": "true"}, category_is_user=True)
    assert POLICY.delay(failure, 0, 0.0, RNG) is None


def test_delay_doubles_up_to_its_limit_and_ends():
    delays = [delay(503, attempt) for attempt in range(11)]
    assert delays == [0.5, 1, 2, 4, 8, 10, 10, 10, 10, 10, None]


def test_time_can_be_the_limit_instead():
    policy = RetryPolicy(max_retries=None, max_elapsed=300.0, jitter=0.0)
    failure = Failure(503, {})
    assert policy.delay(failure, 50, 299.0, RNG) == 10.0
    assert policy.delay(failure, 50, 300.0, RNG) is None


def test_policy_without_retries_ends_at_once():
    assert RetryPolicy().never().delay(Failure(503, {}), 0, 0.0, RNG) is None


def test_date_counts_from_when_the_answer_came():
    failure = Failure(
        503, {"retry-after": "Tue, 14 Nov 2023 22:13:50 GMT"}, received_at=1_700_000_000.0
    )
    assert POLICY.delay(failure, 0, 0.0, RNG) == 30.0
