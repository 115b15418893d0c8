"""One link's protocol without I/O: what passes, what is bounded, and every violation by itself."""

import msgspec
import pytest

from tinkex.errors import PeerProtocolError
from tinkex.mesh.rpc.messages import (
    MAX_BODY_BYTES,
    MAX_WINDOW,
    Bye,
    Cancel,
    Credit,
    End,
    Failed,
    Items,
    Leave,
    Part,
    Ping,
    Pong,
    Request,
    Response,
    WireError,
    decode_frame,
    encode_frame,
)
from tinkex.mesh.rpc.outbox import ITEM_OVERHEAD, PART_BYTES
from tinkex.mesh.rpc.session import Limits, Session
from tinkex.mesh.transport.base import MAX_FRAME_BYTES

ERROR = WireError("MeshError", ("no",), "server", None, None, None)
WINDOW = 4096


def session(
    calls=4,
    request_bytes=10_000,
    coalesce_s=0.005,
    window=WINDOW,
    coalesce_after=1,
    coalesce_bytes=1024,
):
    return Session(
        Limits(calls, request_bytes),
        Limits(calls, request_bytes),
        window=window,
        coalesce_s=coalesce_s,
        coalesce_bytes=coalesce_bytes,
        unhurried_s=0.005,
        coalesce_after=coalesce_after,
    )


def request(number=1, body=b"", window=0, timeout_ms=1000):
    return Request(number, "a.b", timeout_ms, window, "", body)


def given(one, *messages):
    return one.receive(encode_frame(list(messages)))


def taken(one, now=0.0):
    """Everything that a session wants to send now."""
    messages = []
    while (frame := one.take(now)) is not None:
        assert len(frame) <= MAX_FRAME_BYTES
        messages += decode_frame(frame)
    return messages


def pump(one, other, now=0.0):
    """Carry all that waits, both ways; returns what each has to act on."""
    acts = ([], [])
    moved = True
    while moved:
        moved = False
        for source, target, seen in ((one, other, acts[1]), (other, one, acts[0])):
            while (frame := source.take(now)) is not None:
                seen.extend(target.receive(frame))
                moved = True
    return acts


def begin(one, body=b"", *, streamed=False, timeout_ms=1000):
    return one.request("a.b", body, timeout_ms=timeout_ms, streamed=streamed)


# --- what passes --------------------------------------------------------------


def test_call_is_open_at_both_ends_until_its_last_word():
    caller, callee = session(), session()
    number = begin(caller, b"hello")
    _, acts = pump(caller, callee)
    assert acts == [request(1, b"hello")]
    assert (caller.outgoing, callee.incoming) == (1, 1)
    callee.respond(number, b"reply")
    acts, _ = pump(caller, callee)
    assert acts == [Response(1, b"reply")]
    assert (caller.outgoing, callee.incoming) == (0, 0)


def test_both_sides_number_their_own_calls():
    one, other = session(), session()
    assert begin(one) == begin(other) == 1
    pump(one, other)
    one.respond(1, b"from one")
    other.respond(1, b"from other")
    assert pump(one, other) == ([Response(1, b"from other")], [Response(1, b"from one")])


def test_rest_of_a_long_item_waits_for_no_company():
    caller, callee = session(), session()
    stream, other = begin(caller, streamed=True), begin(caller)
    pump(caller, callee)
    callee.item(stream, b"first")
    taken(callee, 10.0)
    callee.item(stream, long := b"x" * (PART_BYTES + 100))
    callee.respond(other, long)
    *_, items, part, last = taken(callee, 10.0)
    rest = long[PART_BYTES:]
    assert (items, last) == (Items(stream, (rest,)), Response(other, rest))
    assert part.id == other


def test_first_item_goes_at_once_and_those_within_five_milliseconds_together():
    caller, callee = session(), session()
    number = begin(caller, streamed=True)
    pump(caller, callee)
    callee.item(number, b"first")
    assert taken(callee, 10.0) == [Items(1, (b"first",))]
    callee.item(number, b"second")
    callee.item(number, b"third")
    assert callee.take(10.001) is None
    assert callee.due == pytest.approx(10.005)
    assert taken(callee, 10.005) == [Items(1, (b"second", b"third"))]
    callee.item(number, b"much later")
    assert taken(callee, 11.0) == [Items(1, (b"much later",))]


def test_a_slow_streams_items_never_wait_and_a_fast_ones_do_after_a_head_start():
    caller, callee = session(), session(coalesce_s=0.25, coalesce_after=3)
    number = begin(caller, streamed=True)
    pump(caller, callee)
    for body in (b"1", b"2", b"3"):
        callee.item(number, body)
        assert taken(callee, 10.0) == [Items(1, (body,))]
    callee.item(number, b"4")
    assert callee.take(10.125) is None
    assert callee.due == 10.25
    assert taken(callee, 10.25) == [Items(1, (b"4",))]
    for place in range(20):  # one at a time: as many as come back
        callee.item(number, b"x")
        assert taken(callee, 10.5 + place * 0.25) == [Items(1, (b"x",))]


def test_unhurried_item_goes_with_the_next_one_or_alone_after_five_milliseconds():
    caller, callee = session(), session(coalesce_after=8)
    for number in (1, 2, 3):
        caller.request("a.b", b"", timeout_ms=1000, streamed=True)
        pump(caller, callee)
        callee.item(number, b"lead", unhurried_at=1.0)
    assert (taken(callee, 1.0), callee.due) == ([], 1.005)
    callee.item(1, b"first")
    assert taken(callee, 1.002) == [Items(1, (b"lead", b"first"))]
    callee.item(2, b"more", unhurried_at=1.004)
    callee.end(3)
    assert taken(callee, 1.004) == [Items(3, (b"lead",)), End(3)]
    assert taken(callee, 1.005) == [Items(2, (b"lead", b"more"))]
    callee.item(1, b"second")
    assert taken(callee, 1.005) == [Items(1, (b"second",))]


def test_end_takes_waiting_items_along_without_waiting():
    caller, callee = session(), session()
    number = begin(caller, streamed=True)
    pump(caller, callee)
    callee.item(number, b"first")
    taken(callee, 1.0)
    callee.item(number, b"last")
    callee.end(number)
    assert taken(callee, 1.0) == [Items(1, (b"last",)), End(1)]


def test_much_that_waits_is_sent_before_its_time():
    caller, callee = session(), session()
    number = begin(caller, streamed=True)
    pump(caller, callee)
    callee.item(number, b"first")
    taken(callee, 1.0)
    callee.item(number, bytes(1024))
    assert [type(message) for message in taken(callee, 1.0)] == [Items]


def test_streams_take_turns_in_full_frames():
    caller, callee = session(window=1 << 20), session(window=1 << 20)
    numbers = [begin(caller, streamed=True) for _ in range(3)]
    pump(caller, callee)
    for number in numbers:
        callee.item(number, bytes(40_000))
    frames = []
    while (frame := callee.take(0.0)) is not None:
        frames.append([message.id for message in decode_frame(frame)])
    assert frames == [[1], [2], [3]]


def test_longest_body_passes_beside_everything_else():
    caller, callee = (session(request_bytes=1 << 30, window=MAX_WINDOW) for _ in range(2))
    body = bytes(MAX_BODY_BYTES)
    streams = [begin(caller, streamed=True) for _ in range(3)]
    pump(caller, callee)
    for number in streams:
        callee.item(number, body)
    acts, _ = pump(caller, callee)
    assert sum(len(message.bodies) for message in acts) == 3
    for number in streams:
        caller.consumed(number, body)
    caller.ping()
    begin(caller, body)
    _, acts = pump(caller, callee)
    assert acts[-1].body == body
    callee.respond(4, body)
    for number in streams:
        callee.end(number)
    acts, _ = pump(caller, callee)
    assert Response(4, body) in acts


def test_long_bodies_go_in_parts_and_signs_of_life_between_them():
    caller, callee = session(request_bytes=1 << 30), session(request_bytes=1 << 30)
    body = bytes(range(256)) * 2000
    begin(caller, body)
    requests, frames = [], 0
    while not requests:
        frame = caller.take(0.0)
        assert len(frame) < 70_000
        if frames:
            assert Pong(frames) in decode_frame(frame)
        requests = [act for act in callee.receive(frame) if isinstance(act, Request)]
        given(caller, Ping(callee.ping()))
        frames += 1
    assert frames > len(body) / 60_000
    assert [request.body for request in requests] == [body]


def test_long_replies_of_several_calls_pass_one_after_the_other_and_short_ones_between():
    caller, callee = (
        session(calls=9, request_bytes=1 << 30, window=1 << 20, coalesce_bytes=1 << 20)
        for _ in range(2)
    )
    body = bytes(range(256)) * 1000
    streams = [begin(caller, streamed=True) for _ in range(2)]
    long, short = begin(caller), begin(caller)
    pump(caller, callee)
    for number in streams:
        callee.item(number, body)
        callee.item(number, b"after it")
        callee.end(number)
    callee.respond(long, body)
    callee.respond(short, b"short")
    acts, _ = pump(caller, callee)
    assert next(act.id for act in acts) == short
    assert Response(long, body) in acts
    for number in streams:
        mine = [
            b for act in acts if isinstance(act, Items) and act.id == number for b in act.bodies
        ]
        assert mine == [body, b"after it"]
    assert caller.outgoing == callee.incoming == 0


def test_item_that_may_not_be_sent_is_not_taken_and_one_that_was_cancelled_goes_nowhere():
    caller, callee = session(window=1000), session(window=1000)
    number = begin(caller, streamed=True)
    pump(caller, callee)
    assert callee.item(number, bytes(2000))  # the last of the credit, and more
    assert not callee.may_send(number)
    assert not callee.item(number, b"next")
    acts, _ = pump(caller, callee)
    assert [act.bodies for act in acts if isinstance(act, Items)] == [(bytes(2000),)]
    caller.cancel(number)
    pump(caller, callee)
    assert callee.item(number, b"for nobody")
    assert not callee.to_send


def test_item_that_is_cancelled_between_its_parts_holds_up_no_other():
    caller, callee = (session(window=1 << 20) for _ in range(2))
    first, second = begin(caller, streamed=True), begin(caller, streamed=True)
    pump(caller, callee)
    callee.item(first, b"a" * 300_000)
    callee.item(second, b"b" * 300_000)
    caller.receive(callee.take(0.0))
    caller.cancel(first)
    acts, _ = pump(caller, callee)
    assert [act.bodies for act in acts] == [(b"b" * 300_000,)]
    callee.fail(first, ERROR)
    pump(caller, callee)
    assert caller.outgoing == 1


def test_credit_comes_back_once_half_the_window_is_read():
    caller, callee = session(), session()
    number = begin(caller, streamed=True)
    pump(caller, callee)
    item = bytes(500)
    sent = 0
    while callee.may_send(number):
        callee.item(number, item)
        sent += 1
        pump(caller, callee, now=float(sent))
    assert sent == -(-WINDOW // (500 + ITEM_OVERHEAD))
    granted = [caller.consumed(number, item) for _ in range(sent)]
    assert granted.count(True) == 2
    _, acts = pump(caller, callee)
    assert [type(message) for message in acts] == [Credit]
    assert callee.may_send(number)


def test_empty_items_use_credit_too():
    caller, callee = session(), session()
    number = begin(caller, streamed=True)
    pump(caller, callee)
    count = 0
    while callee.may_send(number):
        callee.item(number, b"")
        count += 1
    assert count <= WINDOW // ITEM_OVERHEAD


def test_cancelled_call_counts_until_its_last_word_and_tells_nothing():
    caller, callee = session(calls=1), session(calls=1)
    number = begin(caller, streamed=True)
    pump(caller, callee)
    callee.item(number, b"on its way")
    caller.cancel(number)
    caller.cancel(number)
    acts, seen = pump(caller, callee)
    assert (acts, seen) == ([], [Cancel(1)])
    assert not caller.may_request(0)
    assert callee.may_send(number)
    callee.item(number, b"for nobody")
    callee.fail(number, ERROR)
    callee.end(number)
    assert taken(callee) == [Failed(1, ERROR)]
    given(caller, Failed(1, ERROR))
    assert caller.may_request(0)


def test_cancel_that_crosses_the_end_is_nothing():
    caller, callee = session(), session()
    number = begin(caller)
    pump(caller, callee)
    callee.respond(number, b"")
    frame = callee.take(0.0)
    caller.cancel(number)
    assert callee.receive(caller.take(0.0)) == []
    assert caller.receive(frame) == []
    assert caller.outgoing == 0


def test_credit_for_a_call_that_ended_or_was_cancelled_is_nothing():
    caller, callee = session(), session()
    number = begin(caller, streamed=True)
    pump(caller, callee)
    caller.cancel(number)
    assert not caller.consumed(number, bytes(WINDOW))
    callee.end(number)
    frame = callee.take(0.0)
    assert given(callee, Credit(1, 100)) == []
    caller.receive(frame)
    assert not caller.consumed(number, bytes(WINDOW))
    assert taken(caller) == [Cancel(1)]


def test_limits_of_the_peer_are_kept():
    caller = session(calls=3, request_bytes=100)
    assert caller.may_request(5000)
    begin(caller, bytes(60))
    assert caller.may_request(40)
    assert not caller.may_request(41)
    begin(caller)
    begin(caller)
    assert not caller.may_request(0)


def test_single_request_may_be_longer_than_all_together_may():
    caller, callee = session(request_bytes=100), session(request_bytes=100)
    begin(caller, bytes(5000))
    _, acts = pump(caller, callee)
    assert len(acts) == 1
    assert not caller.may_request(1)


def test_ping_is_answered_and_a_flood_of_pings_once():
    one = session()
    assert given(one, *(Ping(number) for number in range(1, 200))) == []
    assert taken(one) == [Pong(199)]
    assert taken(one) == []


def test_pings_that_cannot_be_sent_do_not_pile_up():
    one = session()
    assert [one.ping() for _ in range(100)][-1] == 100
    assert taken(one) == [Ping(100)]
    assert given(one, Pong(100)) == [Pong(100)]
    assert given(one, Pong(99)) == [Pong(99)]


def test_link_is_finished_after_a_good_bye_each_way():
    one, other = session(), session()
    one.leave(stopping=False)
    assert pump(one, other)[1] == [Leave(False)]
    assert other.closing
    assert not one.closing
    other.bye()
    other.bye()
    pump(one, other)
    assert not one.finished
    one.bye()
    pump(one, other)
    assert one.finished
    assert other.finished


def test_calls_that_run_go_on_after_a_leave():
    one, other = session(), session()
    begin(one)
    pump(one, other)
    other.leave(stopping=True)
    pump(one, other)
    other.respond(1, b"done")
    assert pump(one, other)[0] == [Response(1, b"done")]


# --- violations, each by itself -----------------------------------------------


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([request(2)], "numbered"),
        ([request(1), request(1)], "numbered"),
        ([request(1), request(3)], "numbered"),
        ([request(n) for n in range(1, 6)], "calls open"),
        ([request(1, bytes(6000)), request(2, bytes(6000))], "bytes"),
        ([Bye(), request(1)], "said it would not"),
        ([Cancel(1)], "never began"),
        ([Credit(1, 1)], "never began"),
        ([request(1), Credit(1, 1)], "credit"),
        ([request(1, window=10), Credit(1, MAX_WINDOW)], "credit"),
        ([Response(1, b"")], "not open"),
        ([Items(1, (b"",))], "not open"),
        ([End(1)], "not open"),
        ([Failed(1, ERROR)], "not open"),
        ([Pong(1)], "never sent"),
        ([Part(1, False, b"")], "not open"),
        ([Part(2, True, b"")], "numbered"),
        ([Part(1, True, bytes(600_000))] * 2, "longer than allowed"),
    ],
)
def test_violation_is_named(messages, what):
    with pytest.raises(PeerProtocolError, match=what):
        given(session(), *messages)


@pytest.mark.parametrize("last_word", [Response(1, b""), End(1), Failed(1, ERROR)])
def test_second_last_word_is_a_violation(last_word):
    one = session()
    begin(one, streamed=isinstance(last_word, End))
    given(one, last_word)
    with pytest.raises(PeerProtocolError, match="not open"):
        given(one, last_word)


@pytest.mark.parametrize(
    ("streamed", "message"), [(True, Response(1, b"")), (False, End(1)), (False, Items(1, (b"",)))]
)
def test_answer_of_the_other_kind_is_a_violation(streamed, message):
    one = session()
    begin(one, streamed=streamed)
    with pytest.raises(PeerProtocolError, match=r"kind|credit"):
        given(one, message)


def test_items_without_credit_are_a_violation_for_cancelled_calls_too():
    for cancelled in (False, True):
        one = session()
        begin(one, streamed=True)
        if cancelled:
            one.cancel(1)
        given(one, Items(1, (bytes(WINDOW),)))
        with pytest.raises(PeerProtocolError, match="credit"):
            given(one, Items(1, (b"",)))


def test_last_part_that_makes_a_body_too_long_is_a_violation():
    for last in (Response(1, bytes(900_000)), Items(1, (bytes(900_000),))):
        one = session(window=MAX_WINDOW)
        begin(one, streamed=isinstance(last, Items))
        given(one, Part(1, False, bytes(900_000)))
        with pytest.raises(PeerProtocolError, match="longer than allowed"):
            given(one, last)


def test_frame_that_cannot_be_read_is_a_violation():
    with pytest.raises(PeerProtocolError):
        session().receive(msgspec.msgpack.encode([[99]]))


# --- bounds against a peer that floods and reads nothing -------------------------


def test_what_waits_to_be_sent_stays_bounded_against_a_flood():
    one = session()
    for number in range(1, 5):
        given(one, request(number, window=64))
        one.item(number, bytes(100))
    for _ in range(1000):
        given(one, Ping(1), Cancel(1), Cancel(1), Leave(True))
    one.fail(1, ERROR)
    assert len(taken(one)) <= 10


def test_credits_that_cannot_be_sent_do_not_pile_up():
    one = session()
    begin(one, streamed=True)
    taken(one)
    for _ in range(1000):
        given(one, Items(1, (bytes(WINDOW),)))
        assert one.consumed(1, bytes(WINDOW))
    (credit,) = taken(one)
    assert isinstance(credit, Credit)
