"""What a process that serves for long does with its limits."""

import resource

import pytest

from tinkex._process import allow_files


@pytest.fixture
def soft_limit():
    """Set the soft limit of open files; it is put back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def lower(soft):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
        return before[1]

    yield lower
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def now():
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def test_soft_limit_of_open_files_is_raised_to_what_is_wanted(soft_limit):
    hard = soft_limit(700)
    assert allow_files(900) == 900
    assert now() == (900, hard)


def test_soft_limit_that_is_high_enough_stays(soft_limit):
    soft_limit(700)
    assert allow_files(600) == 700
    assert now()[0] == 700


def test_more_than_the_hard_limit_is_not_to_be_had(soft_limit):
    hard = soft_limit(700)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("there is no hard limit here")
    assert allow_files(hard + 1) == hard
    assert now() == (hard, hard)
