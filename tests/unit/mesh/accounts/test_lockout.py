from __future__ import annotations

from tinkex.errors import RateLimitError
from tinkex.mesh.accounts import lockout
from tinkex.mesh.accounts.config import AuthConfig
from tinkex.mesh.accounts.events import LockLifted
from tinkex.mesh.accounts.lockout import LockOut

CONFIG = AuthConfig(failures_per_account=3, failures_per_source=5, lockout_s=60, lockout_max_s=200)


def make():
    return LockOut(CONFIG, b"secret")


def wait_of(lock, subjects, now):
    try:
        lock.check(subjects, now)
    except RateLimitError as error:
        return error.retry_after_ms / 1000
    return 0


def test_an_account_waits_after_its_failures_and_twice_as_long_each_time():
    lock, now, waits = make(), 0.0, []
    subjects = (lock.account("ann"),)
    for _ in range(6):
        lock.check(subjects, now)
        lock.failed(subjects, now)
        wait = wait_of(lock, subjects, now)
        waits.append(round(wait))
        now += wait
    assert waits == [0, 0, 60, 120, 200, 200]


def test_a_source_that_guesses_at_many_accounts_waits_too():
    lock = make()
    source = lock.source(b"peer")
    for number in range(5):
        assert wait_of(lock, (source,), 0.0) == 0
        lock.failed((lock.account(f"user{number}"), source), 0.0)
    assert wait_of(lock, (lock.account("new"), source), 0.0) > 59
    assert wait_of(lock, (lock.account("new"), lock.source(b"other")), 0.0) == 0


def test_many_sources_that_guess_at_one_account_make_it_wait():
    lock = make()
    for number in range(3):
        lock.failed((lock.account("ann"), lock.source(bytes([number]))), 0.0)
    assert wait_of(lock, (lock.account("ann"), lock.source(b"new")), 0.0) > 59
    assert wait_of(lock, (lock.account("bob"), lock.source(b"new")), 0.0) == 0


def test_failures_are_forgotten_after_a_while_and_not_during_a_wait():
    lock = make()
    subjects = (lock.account("ann"),)
    for _ in range(2):
        lock.failed(subjects, 0.0)
    assert lock.failed(subjects, 901.0) == ()
    for _ in range(2):
        events = lock.failed(subjects, 902.0)
    assert events[0].until == 962.0
    assert lock.failed(subjects, 963.0)[0].until == 963.0 + 120


def test_a_wait_is_an_event_that_outlives_a_restart():
    lock = make()
    subjects = (lock.account("ann"), lock.source(b"peer"))
    events = [event for _ in range(3) for event in lock.failed(subjects, 0.0)]
    assert len(events) == 1
    assert b"ann" not in events[0].subject
    again = make()
    again.apply(events[0])
    assert wait_of(again, subjects, 1.0) > 58
    dumped = make()
    for event in again.dump():
        dumped.apply(event)
    assert wait_of(dumped, subjects, 1.0) > 58
    assert again.failed(subjects, 61.0)[0].failures == 4
    lifted = again.succeeded(subjects[0], 200.0)
    assert lifted == (LockLifted(at=200.0, subject=subjects[0].name),)
    lock.apply(lifted[0])
    assert wait_of(lock, subjects, 1.0) == 0


def test_a_right_password_clears_the_account_and_not_the_source():
    lock = make()
    mine, source = lock.account("me"), lock.source(b"peer")
    for number in range(5):
        lock.failed((lock.account(f"victim{number}"), source), 0.0)
        assert lock.succeeded(mine, 0.0) == ()
    assert wait_of(lock, (mine, source), 0.0) > 59


def test_memory_of_failures_is_bounded(monkeypatch):
    monkeypatch.setattr(lockout, "MAX_SUBJECTS", 10)
    lock = make()
    for number in range(50):
        lock.failed((lock.account(str(number)),), 0.0)
    assert len(lock._failures) == 10


def test_another_auth_workers_secret_names_subjects_otherwise():
    assert make().account("ann").name == make().account("ann").name
    assert make().account("ann").name != LockOut(CONFIG, b"other").account("ann").name
    assert make().account("ann").name != make().source(b"ann").name
