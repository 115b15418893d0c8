"""Signs of life: pings when due, loss after silence, none while idle without a ping."""

import pytest

from tinkex.mesh.rpc.config import RpcConfig
from tinkex.mesh.rpc.heartbeat import Heartbeat


@pytest.fixture
def heart():
    return Heartbeat(RpcConfig(ping_s=0.5, idle_ping_s=5.0, lost_after_s=1.5), 0.0)


def test_busy_link_is_pinged_twice_a_second_and_idle_one_rarely(heart):
    assert not heart.ping_due(4.9)
    assert heart.ping_due(5.0)
    heart.busy(True, 1.0, asks=True)
    assert heart.ping_due(1.0)
    heart.pinged(1, 1.0)
    assert not heart.ping_due(1.4)
    assert heart.ping_due(1.5)


def test_busy_link_is_lost_after_silence(heart):
    heart.busy(True, 10.0, asks=False)
    heart.heard(11.0)
    assert not heart.lost(12.4)
    assert heart.lost(12.5)


@pytest.fixture
def of_client():
    config = RpcConfig(ping_s=0.5, lost_after_s=1.5, client_lost_after_s=6.0)
    return Heartbeat(config, 0.0, client=True)


def test_client_that_waits_for_answers_may_be_silent_for_longer(of_client):
    of_client.busy(True, 10.0, asks=False)
    assert not of_client.lost(15.9)
    assert of_client.lost(16.0)


def test_client_that_is_asked_may_not_and_its_silence_before_counts_for_nothing(of_client):
    of_client.busy(True, 10.0, asks=False)
    of_client.busy(True, 13.0, asks=True)
    assert not of_client.lost(14.4)
    assert of_client.lost(14.5)
    of_client.busy(True, 14.0, asks=False)
    assert not of_client.lost(18.9)


def test_client_that_becomes_idle_after_a_silence_is_not_lost_at_once(of_client):
    of_client.busy(True, 10.0, asks=False)
    of_client.pinged(1, 10.5)
    of_client.busy(False, 14.0, asks=False)
    assert not of_client.lost(16.4)
    assert of_client.lost(16.5)


def test_silence_before_the_first_call_is_no_loss(heart):
    heart.busy(True, 100.0, asks=True)
    assert not heart.lost(101.4)
    assert heart.lost(101.5)


def test_idle_link_is_lost_after_a_ping_without_answer(heart):
    assert not heart.lost(1000.0)
    heart.pinged(1, 5.0)
    heart.pinged(2, 6.0)
    assert not heart.lost(6.4)
    assert heart.lost(6.5)
    heart.heard(6.4)
    assert not heart.lost(100.0)


def test_due_is_the_first_moment_at_which_something_may_be_true(heart):
    assert heart.due() == 5.0
    heart.busy(True, 1.0, asks=True)
    heart.pinged(1, 1.0)
    assert heart.due() == 1.5
    heart.pinged(2, 2.2)
    assert heart.due() == 2.5


def test_silence_while_this_process_was_held_up_is_excused(heart):
    heart.busy(True, 0.0, asks=True)
    heart.pinged(1, 0.0)
    heart.excuse(60.0)
    assert not heart.lost(61.4)
    assert heart.lost(61.5)
    heart.busy(False, 61.5, asks=False)
    assert heart.lost(61.5)
    idle = Heartbeat(RpcConfig(), 0.0)
    idle.excuse(5.0)
    assert not idle.lost(100.0)


def test_round_trip_is_smoothed(heart):
    assert heart.rtt is None
    heart.pinged(1, 0.0)
    heart.ponged(1, 0.1)
    assert heart.rtt == pytest.approx(0.1)
    heart.pinged(2, 1.0)
    heart.ponged(2, 1.9)
    assert heart.rtt == pytest.approx(0.1 + 0.8 / 8)


def test_answer_answers_earlier_pings_too_and_only_once(heart):
    heart.pinged(1, 0.0)
    heart.pinged(2, 0.2)
    heart.ponged(2, 0.3)
    before = heart.rtt
    heart.ponged(1, 5.0)
    heart.ponged(2, 5.0)
    assert heart.rtt == before == pytest.approx(0.1)


def test_unanswered_pings_do_not_pile_up(heart):
    for nonce in range(1, 1000):
        heart.pinged(nonce, float(nonce))
    heart.ponged(1, 2000.0)
    assert heart.rtt is None
