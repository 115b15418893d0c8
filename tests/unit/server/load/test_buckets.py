"""Rates: a minute's worth at once, then as it fills; debts are paid first."""

import pytest

from tinkex.server.load.buckets import Bucket


def test_minutes_worth_may_be_used_at_once_and_then_as_it_fills():
    bucket = Bucket(60, 0.0)
    bucket.take(60)
    assert not bucket.is_open
    assert bucket.wait_s == 1.0
    bucket.fill(0.5)
    assert not bucket.is_open
    bucket.fill(1.0)
    assert bucket.is_open
    assert bucket.wait_s == 0


def test_debt_is_paid_before_anything_more_goes_through():
    bucket = Bucket(600, 0.0)
    bucket.take(650)
    assert bucket.wait_s == pytest.approx(5.1)
    bucket.fill(5.0)
    assert not bucket.is_open
    bucket.fill(5.2)
    assert bucket.is_open


def test_wait_stays_within_what_clients_heed():
    bucket = Bucket(10, 0.0)
    bucket.take(1000)
    assert bucket.wait_s == 60
    assert bucket.full_in_s == pytest.approx(6000)
    fast = Bucket(60_000, 0.0)
    fast.take(60_000)
    assert fast.wait_s == 0.05


def test_bucket_never_holds_more_than_a_minutes_worth():
    bucket = Bucket(60, 0.0)
    bucket.fill(1000.0)
    bucket.take(-5)
    assert bucket.level == 60


def test_clock_that_goes_back_takes_nothing():
    bucket = Bucket(60, 100.0)
    bucket.take(10)
    bucket.fill(50.0)
    assert bucket.level == 50
