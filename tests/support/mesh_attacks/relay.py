"""Attacks by a processor: it returns garbage, or claims more than it did."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
from mesh_attacks.registry import Defence, Suite, nothing, refused
from mesh_scripted import text_of, token_message

from tinkex.errors import PeerProtocolError
from tinkex.mesh.api.completion import CompletionMessage, PieceMessage, TextMessage
from tinkex.mesh.api.processor import Begun, Ended
from tinkex.mesh.workers.serving.bounds import cost_of
from tinkex.mesh.workers.serving.relay import Relay

CONTEXT = 64


@dataclass(frozen=True)
class Classes:
    """What an attack meets."""

    relay: type = Relay


def begun(tokens=3):
    return Begun(prompt_tokens=tokens, fingerprint="f", deterministic=True)


def unbegun(classes, **changes):
    given = {"model": "m", "prompt": TextMessage("abc"), "max_tokens": 8, "seed": 1}
    message = CompletionMessage(**(given | changes))
    return classes.relay(message, cost_of(message, CONTEXT), CONTEXT)


def relay(classes, **changes):
    made = unbegun(classes, **changes)
    made.check_begun(begun())
    made.begin(begun())
    return made


def piece(index=0, tokens=(1,), **more):
    found = tuple(token_message(token) for token in tokens)
    return PieceMessage(index, text_of(tokens), found, **more)


def is_refused(made, *pieces):
    """Whether the last of some pieces is."""
    for one in pieces[:-1]:
        made.take(one)
    return refused(PeerProtocolError, made.take, pieces[-1])


def piece_that_nobody_asked_for(classes):
    return is_refused(relay(classes, n=2), piece(-1))


def numbers_that_make_no_sense(classes):
    token = msgspec.structs.replace(token_message(1), logprob=math.nan)
    return is_refused(relay(classes), PieceMessage(0, "b", (token,)))


def goes_on_after_the_end(classes):
    return is_refused(relay(classes, n=2), piece(0, finish_reason="stop"), piece(0))


def stopped_by_a_string_of_its_own(classes):
    return is_refused(relay(classes), piece(0, stop_string="x", finish_reason="stop"))


def calls_a_tool_that_there_is_not(classes):
    call = (("rm", "{}"),)
    return is_refused(relay(classes), piece(0, tool_calls=call, finish_reason="tool_calls"))


def echoes_what_nobody_asked_for(classes):
    return is_refused(relay(classes), piece(0, echo=True))


def sends_more_tokens_than_were_asked_for(classes):
    return is_refused(relay(classes), piece(0, range(9)))


def ends(made, *pieces, **claims):
    for one in pieces:
        made.take(one)
    return refused(PeerProtocolError, made.end, Ended(**claims))


def ends_before_the_completion(classes):
    return ends(relay(classes), piece(0), completion_tokens=1)


def claims_more_tokens_than_it_sent(classes):
    return ends(relay(classes), piece(0, finish_reason="stop"), completion_tokens=9)


def claims_more_cached_tokens_than_the_prompt_has(classes):
    last = piece(0, finish_reason="stop")
    return ends(relay(classes), last, completion_tokens=1, cached_tokens=4)


def claims_a_longer_prompt(classes):
    return refused(PeerProtocolError, unbegun(classes).check_begun, begun(50))


def claims_another_prompt_than_the_one_before(classes):
    made = relay(classes)
    return refused(PeerProtocolError, made.check_begun, begun(4))


def taken(self, piece, one):
    return True


SUITE = Suite(
    "relay",
    Classes(),
    (
        Defence("relay", "_check_index", nothing, (piece_that_nobody_asked_for,)),
        Defence("relay", "_check_token", nothing, (numbers_that_make_no_sense,)),
        Defence("relay", "_check_goes_on", nothing, (goes_on_after_the_end,)),
        Defence(
            "relay",
            "_check_ending",
            nothing,
            (stopped_by_a_string_of_its_own, calls_a_tool_that_there_is_not),
        ),
        Defence("relay", "_accept_echo", taken, (echoes_what_nobody_asked_for,)),
        Defence("relay", "_check_room", nothing, (sends_more_tokens_than_were_asked_for,)),
        Defence("relay", "_check_complete", nothing, (ends_before_the_completion,)),
        Defence("relay", "_check_claim", nothing, (claims_more_tokens_than_it_sent,)),
        Defence(
            "relay",
            "_check_cached",
            nothing,
            (claims_more_cached_tokens_than_the_prompt_has,),
        ),
        Defence("relay", "_check_prompt", nothing, (claims_a_longer_prompt,)),
        Defence("relay", "_check_same", nothing, (claims_another_prompt_than_the_one_before,)),
    ),
)
