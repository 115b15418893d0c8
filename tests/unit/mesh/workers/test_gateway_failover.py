"""Processors that are lost, slow, full or lie: a client gets what it asked for, or an error."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mesh_gateway import GatewayWorld, ScriptedProcessor, until
from mesh_rpc import caught
from mesh_scripted import completion, text_of

from tinkex.errors import (
    BadRequestError,
    EngineBusyError,
    EngineError,
    InternalServerError,
    RateLimitError,
    StorageError,
    TrustError,
)
from tinkex.mesh.api.completion import PieceMessage
from tinkex.mesh.api.processor import Begun, Ended
from tinkex.mesh.trust.receipts import verify_receipt
from tinkex.openai_api.refusal import context_length_exceeded


def right(answer, tokens=12):
    """Whether a client got exactly what the model makes."""
    for index in range(answer.message.n):
        expected = completion(answer.message, index, tokens)
        assert answer.tokens[index] == expected
        assert answer.texts[index] == text_of(expected)
        assert answer.reasons[index] == "length"
    return True


async def one_first(world, **options):
    """Two processors, of which the first is surely chosen; the first has `options`."""
    first = await world.add_processor(**options)
    second = await world.add_processor()
    second.free_slots = 0
    return first, second


async def test_a_processor_that_is_lost_in_mid_stream_is_gone_on_with_at_another(world):
    first, second = await one_first(world)
    first.lose_after = 4
    gateway = await world.add_gateway()
    answer = await world.answer(gateway, n=2)
    assert right(answer)
    assert [event.reproducible for event in answer.resumed] == [True]
    (work,) = second.works
    assert sum(map(len, work.resume)) > 0
    receipt = verify_receipt(answer.receipt.body, answer.receipt.signature, gateway=gateway.peer_id)
    assert (receipt.completion_tokens, receipt.reproducible) == (24, True)


async def test_another_processor_of_other_numerics_goes_on_but_not_reproducibly(world):
    first, second = await one_first(world)
    first.lose_after = 4
    second.fingerprint = "amx"
    gateway = await world.add_gateway()
    answer = await world.answer(gateway)
    assert right(answer)
    assert [event.reproducible for event in answer.resumed] == [False]


async def test_equal_numerics_go_on_first(world):
    first, second = await one_first(world)
    first.lose_after = 4
    for _ in range(3):
        await world.add_processor(fingerprint="amx")
    gateway = await world.add_gateway()
    while not first.works:
        first.free_slots = 4
        answer = await world.answer(gateway)
    assert right(answer)
    assert all(event.reproducible for event in answer.resumed)
    assert len(second.works) == 1


async def test_other_weights_never_go_on(world):
    first, second = await one_first(world)
    first.lose_after = 4
    second.revision = "r2"
    gateway = await world.add_gateway()
    error = await caught(world.answer(gateway))
    assert isinstance(error, InternalServerError)
    assert error.status_code == 503
    assert second.works == []


async def test_a_back_end_that_is_not_deterministic_starts_anew_if_nothing_was_sent(world):
    first, second = await one_first(world, deterministic=False)
    second.deterministic = False
    first.lose_after = 0
    gateway = await world.add_gateway()
    answer = await world.answer(gateway)
    assert right(answer)
    assert not answer.accepted.reproducible
    assert second.works[0].resume == ()


async def test_a_back_end_that_is_not_deterministic_ends_with_an_error_if_something_was(world):
    first, second = await one_first(world, deterministic=False)
    first.lose_after = 4
    gateway = await world.add_gateway()
    error = await caught(world.answer(gateway))
    assert isinstance(error, InternalServerError)
    assert error.status_code == 502
    assert "send the request again" in str(error)
    assert second.works == []


TOO_LONG = context_length_exceeded("This model's context is 64 tokens.", "prompt")


async def test_what_does_not_fit_one_processors_context_goes_to_a_longer_one(world):
    first, second = await one_first(world)
    third = await world.add_processor()
    third.free_slots = 0
    first.context = second.context = 64
    first.raises = second.raises = TOO_LONG
    gateway = await world.add_gateway()
    for _ in range(3):
        assert right(await world.answer(gateway))
    assert len(first.works) + len(second.works) <= 3, "those of a length are asked once"
    assert len(third.works) == 3
    third.context, third.raises = 65, TOO_LONG
    await world.look_again(gateway)
    error = await caught(world.answer(gateway))
    assert isinstance(error, BadRequestError)
    assert error.body["code"] == "context_length_exceeded"


async def test_what_a_foreign_server_finds_too_long_once_it_is_asked_goes_to_a_longer_one(world):
    """Its processor has begun by then: it cannot count a prompt itself."""
    first, second = await one_first(world)
    for processor in (first, second):
        processor.deterministic, processor.context = False, 64
        processor.raises, processor.lose_after = TOO_LONG, 0
    gateway = await world.add_gateway()
    error = await caught(world.answer(gateway))
    assert isinstance(error, BadRequestError)
    assert error.body["code"] == "context_length_exceeded"
    assert len(first.works) + len(second.works) == 1, "those of a length are asked once"
    longer = await world.add_processor(deterministic=False)
    await world.look_again(gateway)
    assert right(await world.answer(gateway))
    assert len(longer.works) == 1


async def test_what_becomes_too_long_at_a_foreign_server_is_not_to_be_sent_again(world):
    first, second = await one_first(world)
    first.deterministic = second.deterministic = False
    first.raises, first.lose_after = TOO_LONG, 2
    gateway = await world.add_gateway()
    error = await caught(world.answer(gateway))
    assert (type(error), str(error)) == (BadRequestError, str(TOO_LONG))
    assert second.works == []


async def test_what_fits_the_context_of_a_processor_that_was_lost_is_not_called_too_long(world):
    first, second = await one_first(world)
    first.lose_after = 0
    second.context, second.raises = 64, TOO_LONG
    gateway = await world.add_gateway()
    error = await caught(world.answer(gateway))
    assert (type(error), error.status_code) == (InternalServerError, 503)


async def test_what_fits_the_longest_context_alone_waits_for_it(world):
    first, second = await one_first(world)
    first.context, first.raises = 64, TOO_LONG
    second.raises = EngineBusyError("full")
    gateway = await world.add_gateway()
    assert isinstance(await caught(world.answer(gateway)), RateLimitError)
    second.raises = EngineError("it failed")
    error = await caught(world.answer(gateway))
    assert isinstance(error, InternalServerError)
    assert error.status_code == 503


async def test_the_loss_of_every_processor_is_an_error_after_bounded_attempts(world):
    processors = [await world.add_processor() for _ in range(6)]
    for processor in processors:
        processor.lose_after = 1
    gateway = await world.add_gateway()
    error = await caught(world.answer(gateway))
    assert isinstance(error, InternalServerError)
    assert error.status_code == 503
    assert sum(len(processor.works) for processor in processors) <= 4
    await until(lambda: gateway.in_progress == 0)


@pytest.mark.parametrize(
    ("raised", "told", "after_ms"),
    [
        (EngineError("its server answers with status 401"), True, 2000),
        (TrustError("its machine was started anew", retry_after_ms=90_000), True, 90_000),
        (StorageError("/home/ada/used-permits is full"), False, 2000),
    ],
)
async def test_what_the_last_processor_failed_with_is_told_where_it_names_no_place(
    world, raised, told, after_ms
):
    """Else nobody hears that the server behind a mesh's only processor wants another key."""
    (await world.add_processor()).raises = raised
    gateway = await world.add_gateway()
    error = await caught(world.answer(gateway))
    assert (error.status_code, str(raised) in str(error)) == (503, told)
    assert error.retry_after_ms == after_ms


async def test_a_processor_lost_after_the_last_piece_is_no_loss(world):
    first, second = await one_first(world)
    first.lose_after = len(first.events_of_default()) - 2
    gateway = await world.add_gateway()
    asking = asyncio.ensure_future(world.answer(gateway))
    await until(lambda: first.works)
    await world.pass_time(2)
    answer = await asking
    assert right(answer)
    assert answer.resumed == []
    assert second.works == []


@pytest.mark.parametrize(
    "error", [EngineError("broken"), TrustError("no"), EngineBusyError("full")]
)
async def test_a_processor_that_fails_at_first_is_passed_over(world, error):
    first, second = await one_first(world)
    first.raises = error
    gateway = await world.add_gateway()
    answer = await world.answer(gateway)
    assert right(answer)
    assert answer.resumed == []
    assert len(second.works) == 1


@pytest.mark.parametrize(("said", "told"), [(None, 2000), (500.0, 2000), (7000.0, 7000)])
async def test_a_mesh_in_which_all_are_busy_says_when_to_come_back(world, said, told):
    for _ in range(2):
        processor = await world.add_processor()
        processor.raises = EngineBusyError("full", retry_after_ms=said)
    gateway = await world.add_gateway()
    error = await caught(world.answer(gateway))
    assert isinstance(error, RateLimitError)
    assert error.retry_after_ms == told


async def test_a_mesh_that_is_full_asks_nobody(world):
    processor = await world.add_processor()
    processor.free_slots, processor.waiting = 0, 50
    gateway = await world.add_gateway()
    with pytest.raises(RateLimitError):
        await world.answer(gateway)
    assert processor.works == []


async def test_a_second_processor_is_asked_when_the_first_does_not_begin(world):
    first, second = await one_first(world)
    first.hold_begun = asyncio.Event()
    gateway = await world.add_gateway()
    asking = asyncio.ensure_future(world.answer(gateway))
    await until(lambda: first.works)
    await world.pass_time(1.1)
    answer = await asking
    assert right(answer)
    assert answer.resumed == []
    assert len(second.works) == 1
    await until(lambda: first.cancelled == 1)


async def test_a_hedge_that_loses_is_cancelled(world):
    first, second = await one_first(world)
    first.hold_begun, second.hold_begun = asyncio.Event(), asyncio.Event()
    gateway = await world.add_gateway()
    asking = asyncio.ensure_future(world.answer(gateway))
    await until(lambda: first.works)
    await world.pass_time(1.1)
    assert len(second.works) == 1
    first.hold_begun.set()
    assert right(await asking)
    await until(lambda: second.cancelled == 1)


def longer(events):
    ended = events[-1]
    return [*events[:-1], msgspec.structs.replace(ended, completion_tokens=99)]


def piece_of_another(events):
    return [events[0], PieceMessage(7, "x"), *events[1:]]


def too_many(events):
    piece = next(event for event in events if isinstance(event, PieceMessage))
    flood = msgspec.structs.replace(piece, tokens=piece.tokens * 50, finish_reason=None)
    return [events[0], flood, *events[1:]]


def begins_twice(events):
    return [*events[:3], events[0], *events[3:]]


def no_beginning(events):
    return events[1:]


def stops_early(events):
    return events[:3]


def ends_early(events):
    sent = sum(len(event.tokens) for event in events[1:3])
    return [*events[:3], Ended(completion_tokens=sent)]


def another_prompt(events):
    return [Begun(prompt_tokens=200, fingerprint="avx2", deterministic=True), *events[1:]]


@pytest.mark.parametrize(
    "lie",
    [
        piece_of_another,
        too_many,
        begins_twice,
        no_beginning,
        stops_early,
        ends_early,
        another_prompt,
    ],
)
async def test_a_processor_that_sends_nonsense_is_left_and_another_does_it(world, lie):
    first, second = await one_first(world)
    first.change = lie
    gateway = await world.add_gateway()
    answer = await world.answer(gateway)
    assert right(answer)
    assert len(first.works) == len(second.works) == 1
    assert right(await world.answer(gateway))
    assert len(first.works) == 1, "it is asked no more"


async def test_a_processor_that_claims_more_than_it_sent_is_not_believed_and_asked_no_more(world):
    first, second = await one_first(world)
    first.change = longer
    gateway = await world.add_gateway()
    answer = await world.answer(gateway)
    assert right(answer)
    receipt = verify_receipt(answer.receipt.body, answer.receipt.signature, gateway=gateway.peer_id)
    assert receipt.completion_tokens == 12
    assert second.works == []
    assert right(await world.answer(gateway))
    assert (len(first.works), len(second.works)) == (1, 1)


async def test_a_processor_that_does_not_answer_is_left_alone_until_it_does(world):
    first, second = await one_first(world)
    gateway = await world.add_gateway()
    honest, first.describes = first.describes, EngineError("broken")
    for _ in range(4):
        await world.look_again(gateway)
    assert right(await world.answer(gateway))
    assert (len(first.works), len(second.works)) == (0, 1)
    first.describes = honest
    await world.look_again(gateway)
    assert right(await world.answer(gateway))
    assert (len(first.works), len(second.works)) == (1, 1)


async def test_an_echo_is_not_repeated_by_the_processor_that_goes_on(world):
    first, second = await one_first(world)
    gateway = await world.add_gateway()
    for lose_after in (1, 3):
        first.lose_after = lose_after
        answer = await world.answer(gateway, echo=True, n=2)
        assert right(answer)
        assert answer.echoes == ["hello", "hello"]
        first, second = second, await world.add_processor()
        await world.look_again(gateway)


async def test_prompt_logprobs_come_whole_from_the_second_processor(world):
    first, second = await one_first(world)
    first.lose_after = 4
    gateway = await world.add_gateway()
    answer = await world.answer(gateway, echo=True, prompt_logprobs=True)
    assert right(answer)
    assert answer.echoes == ["hello"]
    assert second.works[0].resume == ()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    losses=st.lists(st.one_of(st.none(), st.integers(0, 14)), min_size=4, max_size=4),
    n=st.integers(1, 3),
    tokens=st.integers(1, 12),
    seed=st.integers(0, 100),
)
def test_whoever_is_lost_and_whenever_no_token_is_lost_or_doubled(
    tmp_path_factory, losses, n, tokens, seed
):
    async def run():
        path = tmp_path_factory.mktemp("gateway")
        async with GatewayWorld(path=path) as world:
            for place, loss in enumerate(losses):
                processor = ScriptedProcessor(seed=seed + place)
                processor.lose_after = loss
                await world.add_processor(processor)
            await world.add_processor()
            gateway = await world.add_gateway()
            asking = asyncio.ensure_future(world.answer(gateway, n=n, max_tokens=tokens, seed=seed))
            while not asking.done():
                await world.pass_time(0.5)
            error = asking.exception()
            if error is None:
                assert right(asking.result(), tokens)
            else:
                assert isinstance(error, InternalServerError)
                assert None not in losses, "a processor that stays was not found"
            await until(lambda: gateway.in_progress == 0)

    asyncio.run(run())
