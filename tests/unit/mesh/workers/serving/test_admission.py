"""Who is let in, how often, and what the others are told."""

from __future__ import annotations

import pytest
from mesh_gateway import ScriptedNews
from msgspec.structs import replace

from tinkex.errors import AuthenticationError, PermissionDeniedError, RateLimitError
from tinkex.mesh.accounts.public import Caller
from tinkex.mesh.identity import PeerId
from tinkex.mesh.tasks import Tasks
from tinkex.mesh.workers.serving.admission import Admission, AdmissionConfig
from tinkex.mesh.workers.serving.freshness import Freshness, FreshnessConfig
from tinkex.testing import VirtualClock

CLIENT = PeerId(b"c" * 32)


ANN = Caller(account_id="ann", key_id="k1", scopes=frozenset({"infer"}))


class OneKey:
    def verify(self, credential, now):
        if credential != "right":
            raise AuthenticationError("no such key")
        return ANN

    async def current(self):
        pass


def admission(clock=None, *, gateways: int = 1, **limits) -> Admission:
    clock = clock or VirtualClock()
    fresh = Freshness(ScriptedNews(), Tasks(on_error=print), clock=clock, config=FreshnessConfig())
    return Admission(
        OneKey(),
        fresh,
        lambda: gateways,
        clock=clock,
        config=AdmissionConfig(**limits),
    )


async def test_a_credential_counts_for_its_scopes_alone():
    made = admission()
    assert await made.caller("right", "infer") == ANN
    with pytest.raises(PermissionDeniedError, match="'publish'"):
        await made.caller("right", "publish")
    with pytest.raises(AuthenticationError):
        await made.caller("wrong", "infer")


def test_a_key_that_asks_too_often_is_told_when_to_come_back():
    clock = VirtualClock()
    made = admission(clock, requests_per_minute=2)
    for _ in range(2):
        made.enter(ANN).leave()
    with pytest.raises(RateLimitError) as caught:
        made.enter(ANN)
    assert 0 < caught.value.retry_after_ms <= 61_000
    clock.advance(caught.value.retry_after_ms / 1000 + 0.001)
    made.enter(ANN)


def test_gateways_share_a_limit():
    made = admission(requests_per_minute=4, gateways=2)
    for _ in range(2):
        made.enter(ANN).leave()
    with pytest.raises(RateLimitError):
        made.enter(ANN)


def test_requests_in_progress_are_bounded():
    made = admission(per_key=1)
    ticket = made.enter(ANN)
    with pytest.raises(RateLimitError) as caught:
        made.enter(ANN)
    assert caught.value.retry_after_ms == 1000
    assert made.in_progress == 1
    made.enter(replace(ANN, key_id="k2")).leave()
    ticket.leave()
    made.enter(ANN).leave()
    assert made.in_progress == 0


def test_a_request_that_was_not_let_in_counts_towards_no_limit():
    made = admission(per_key=1, requests_per_minute=2)
    ticket = made.enter(ANN)
    for _ in range(5):
        with pytest.raises(RateLimitError, match="in progress"):
            made.enter(ANN)
    ticket.leave()
    made.enter(ANN).leave()
    with pytest.raises(RateLimitError, match="in a minute"):
        made.enter(ANN)
    assert made.in_progress == 0


def test_tokens_are_given_back_to_the_second_that_they_were_taken_in():
    class Running(VirtualClock):
        def monotonic(self):
            self.advance(0.75)
            return super().monotonic()

    made = admission(Running(), tokens_per_minute=150)
    for _ in range(5):
        made.take_tokens(ANN, 90).settle(10)


def test_a_request_above_a_minutes_tokens_is_told_so_and_not_to_come_back():
    made = admission(tokens_per_minute=100)
    made.take_tokens(ANN, 60)
    with pytest.raises(RateLimitError) as later:
        made.take_tokens(ANN, 60)
    assert later.value.retry_after_ms > 0
    with pytest.raises(RateLimitError, match="ask for fewer") as never:
        made.take_tokens(ANN, 101)
    assert never.value.retry_after_ms is None


def test_one_client_cannot_keep_the_auth_workers_busy():
    made = admission(account_calls_per_minute=1)
    made.take_account_call(CLIENT)
    with pytest.raises(RateLimitError):
        made.take_account_call(CLIENT)
    made.take_account_call(PeerId(b"d" * 32))
