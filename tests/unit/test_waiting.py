"""Back-off, Retry-After, redaction and the virtual clock."""

import asyncio
from email.utils import formatdate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkex._backoff import Backoff, retry_after_seconds
from tinkex._redact import redact, redact_headers
from tinkex.testing import VirtualClock

NOW = 1_700_000_000.0


@given(st.integers(-5, 10_000), st.integers(0, 100))
def test_delay_stays_between_its_bounds(attempt, seed):
    delay = Backoff(0.5, 10.0, 0.25).delay(attempt, Random(seed))
    full = min(0.5 * 2.0 ** min(max(attempt, 0), 60), 10.0)
    assert 0.75 * full <= delay <= full


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, None),
        ({"retry-after": formatdate(NOW + 300, usegmt=True)}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "0"}, None),
        ({"retry-after": "61"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_within_bounds(headers, seconds):
    """A2.3; the row "Negative or huge Retry-After" of client.md 5."""
    found = retry_after_seconds(headers, NOW)
    assert found == (pytest.approx(seconds) if seconds is not None else None)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_header_text_is_none_or_within_bounds(ms, text):
    found = retry_after_seconds({"retry-after-ms": ms, "retry-after": text}, NOW)
    assert found is None or 0 < found <= 60


def test_keys_and_tokens_are_redacted_wherever_they_stand():
    text = redact("key=tml-abc_DEF-123, jwt eyJhbGciOi.eyJzdWIi.sig-na_ture; html-page")
    assert "abc_DEF" not in text
    assert "eyJ" not in text
    assert "sig-na_ture" not in text
    assert "html-page" in text


@pytest.mark.parametrize("before", ["%22", "%3D", "_", "2", "key:", "x-", '"', "", "\n"])
def test_key_is_redacted_whatever_stands_before_it(before):
    assert redact(f"{before}tml-abc_DEF-123") == f"{before}[redacted]"
    assert redact(f"{before}eyJhbGciOi.eyJzdWIi.sig") == f"{before}[redacted]"


def test_word_that_only_ends_like_a_key_stays():
    assert redact("an html-page") == "an html-page"
    assert redact("keyJoin") == "keyJoin"


def test_secret_headers_are_redacted_by_name():
    shown = redact_headers({"X-API-Key": "plain", "Accept": "application/json"})
    assert shown == {"X-API-Key": "[redacted]", "Accept": "application/json"}


async def test_sleeper_wakes_when_the_time_has_come():
    clock = VirtualClock()
    sleeper = asyncio.create_task(clock.sleep(10))
    while clock.waiting == 0:  # noqa: ASYNC110 - until the task has run
        await asyncio.sleep(0)  # noqa: TID251 - yields, waits for no time
    clock.advance(9.5)
    assert not sleeper.done()
    clock.advance(0.5)
    await sleeper
    assert clock.monotonic() == 10.0
    assert clock.sleeps == [10]


async def test_autojump_sleeps_without_waiting():
    clock = VirtualClock(autojump=True)
    start = clock.now()
    await clock.sleep(3600)
    clock.sleep_sync(60)
    assert clock.now() - start == 3660
    assert clock.sleeps == [3600, 60]
