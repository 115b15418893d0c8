"""What a client has of a completion, and whether what a processor sends may follow it.

Owns the counting, the checks of a processor's messages, and what another processor must be told to
go on. Sans-IO: messages in, messages out. A processor that is refused here has broken the protocol;
nothing that it sent in that message reaches the client.

    echo              comes before what is sampled. After a loss it may come again, and is left out.
    prompt_logprobs   the echo is known at the end only, so all is held until then: after a loss it
                      starts anew, and the client has noticed nothing.
    tool calls        come with a completion's last piece, or not at all.
    signs of life     are of no completion, whatever their index says: they may come at any time,
                      and are passed on at once, also where all is held: they take no room there.
"""

from __future__ import annotations

import itertools
import math

import msgspec

from tinkex.errors import PeerProtocolError
from tinkex.mesh.api.completion import (
    ChatMessage,
    CompletionMessage,
    PieceMessage,
    TokenMessage,
    is_sign_of_life,
)
from tinkex.mesh.api.processor import Begun, Ended
from tinkex.mesh.trust.receipts import OutputDigest
from tinkex.mesh.workers.serving.bounds import Cost

_TOKEN_BOUND = 2**31


class _Sequence(msgspec.Struct, eq=False):
    """One completion, as far as it has come."""

    tokens: list[int] = msgspec.field(default_factory=list)
    echoed: int = 0
    """Tokens of the echo that were let through, in any attempt."""
    echoed_now: int = 0
    """Tokens of the echo that this attempt sent."""
    finished: bool = False


class Relay:
    """One request's way from processors to its client.

    Args:
        request: what was asked.
        cost: its bounds.
        context: tokens that the model takes.
    """

    def __init__(self, request: CompletionMessage, cost: Cost, context: int) -> None:
        self._request = request
        self._cost = cost
        self._context = context
        self._has_tools = isinstance(request.prompt, ChatMessage) and bool(request.prompt.tools)
        self._sequences = [_Sequence() for _ in range(request.n)]
        self._unfinished = request.n
        self.sent = False
        """Whether the client has anything that was sampled."""
        self._held: list[PieceMessage] = []
        self._held_tokens = 0
        self._sampled_now = 0
        self._most_each = cost.each
        self.prompt_tokens: int | None = None
        """Size of the prompt, once a processor said it."""
        self.cached_tokens = 0
        self.digest = OutputDigest(request.n)

    @property
    def tokens(self) -> int:
        """Sampled tokens that the client has."""
        return self.digest.tokens

    @property
    def complete(self) -> bool:
        """Whether the client has the last piece of every completion."""
        return not self._unfinished

    @property
    def resume(self) -> tuple[tuple[int, ...], ...]:
        """The tokens that the client has of each completion; empty where it has nothing."""
        return tuple(tuple(one.tokens) for one in self._sequences) if self.sent else ()

    @property
    def finished(self) -> tuple[int, ...]:
        """The completions whose last piece the client has."""
        if self._unfinished == len(self._sequences):
            return ()
        return tuple(index for index, one in enumerate(self._sequences) if one.finished)

    def check_begun(self, begun: Begun) -> None:
        """Check what a processor says of a prompt, before it is chosen.

        Raises:
            PeerProtocolError: it cannot be.
        """
        count = begun.prompt_tokens
        if count or begun.deterministic:
            self._check_prompt(count)
        self._check_same(count)

    def _check_same(self, count: int) -> None:
        if self.prompt_tokens not in {None, count}:
            raise PeerProtocolError(
                f"a processor counts {count} tokens of a prompt in which another of the same "
                f"revision counted {self.prompt_tokens}"
            )

    def _check_prompt(self, count: int) -> None:
        if not 1 <= count <= self._cost.prompt or (self._cost.exact and count != self._cost.prompt):
            raise PeerProtocolError(
                f"a processor counts {count} tokens of a prompt that can have {self._cost.prompt}"
            )

    def begin(self, begun: Begun) -> None:
        """Go on with what a processor sends from now on, after `check_begun`."""
        self.prompt_tokens = begun.prompt_tokens
        self._most_each = min(self._cost.each, self._context + 1 - begun.prompt_tokens)
        self._sampled_now = self._held_tokens = 0
        self._held.clear()
        for one in self._sequences:
            one.echoed_now = 0

    def take(self, piece: PieceMessage) -> tuple[PieceMessage, ...]:
        """Check a piece, and return what the client gets now.

        Raises:
            PeerProtocolError: it cannot follow what was there.
        """
        self._check_index(piece)
        if is_sign_of_life(piece):
            return self._sign_of_life()
        if self._request.prompt_logprobs:
            return self._hold(piece)
        return (piece,) if self._accept(piece) else ()

    def _sign_of_life(self) -> tuple[PieceMessage, ...]:
        """Name a completion that goes on: one that has ended would be a breach to older clients."""
        going_on = (index for index, one in enumerate(self._sequences) if not one.finished)
        return tuple(PieceMessage(index) for index in itertools.islice(going_on, 1))

    def _check_index(self, piece: PieceMessage) -> None:
        if not 0 <= piece.index < len(self._sequences):
            raise PeerProtocolError(f"a piece of completion {piece.index}, which nobody asked for")

    def end(self, ended: Ended) -> tuple[PieceMessage, ...]:
        """Check the end of a processor's stream, and return what was held until then.

        Raises:
            PeerProtocolError: it claims other tokens than it sent, or has not finished. What was
                held is forgotten.
        """
        held, self._held = self._held, []
        said_before = self.prompt_tokens
        try:
            given = self._accept_end(ended, held)
        except PeerProtocolError:
            self.prompt_tokens = said_before  # the next one is not held to what was refused
            raise
        self.cached_tokens = ended.cached_tokens
        return given

    def _accept_end(self, ended: Ended, held: list[PieceMessage]) -> tuple[PieceMessage, ...]:
        self._check_claim(ended)
        if not self.prompt_tokens:
            self._check_prompt(ended.prompt_tokens)
            self.prompt_tokens = ended.prompt_tokens
        self._check_cached(ended, self.prompt_tokens)
        given = self._accept_held(held)
        self._check_complete()
        return given

    def _check_claim(self, ended: Ended) -> None:
        if ended.completion_tokens != self._sampled_now:
            raise PeerProtocolError(
                f"a processor claims {ended.completion_tokens} tokens, and sent {self._sampled_now}"
            )

    @staticmethod
    def _check_cached(ended: Ended, prompt_tokens: int) -> None:
        if not 0 <= ended.cached_tokens <= prompt_tokens:
            raise PeerProtocolError(f"a processor claims {ended.cached_tokens} cached tokens")

    def _check_complete(self) -> None:
        if not self.complete:
            self._forget_held()
            raise PeerProtocolError("a processor ended its stream before the completions did")

    def _accept_held(self, held: list[PieceMessage]) -> tuple[PieceMessage, ...]:
        try:
            return tuple(piece for piece in held if self._accept(piece))
        except PeerProtocolError:
            self._forget_held()
            raise

    def _forget_held(self) -> None:
        """Take back what was accepted of a held reply, of which the client has nothing."""
        if self._request.prompt_logprobs:
            self._sequences = [_Sequence() for _ in self._sequences]
            self._unfinished, self.sent = len(self._sequences), False
            self.digest = OutputDigest(len(self._sequences))

    def _hold(self, piece: PieceMessage) -> tuple[PieceMessage, ...]:
        self._held.append(piece)
        self._held_tokens += len(piece.tokens)
        if not piece.echo:
            self._sampled_now += len(piece.tokens)
        most = (self._cost.prompt + self._most_each + 1) * len(self._sequences)
        if len(self._held) > most or self._held_tokens > most:
            raise PeerProtocolError("a processor sends more tokens than were asked for")
        return ()

    def _accept(self, piece: PieceMessage) -> bool:
        one = self._sequences[piece.index]
        for token in piece.tokens:
            self._check_token(token)
        if piece.echo:
            return self._accept_echo(piece, one)
        self._check_goes_on(one)
        self._check_room(piece, one)
        self._check_ending(piece)
        if not self._request.prompt_logprobs:
            self._sampled_now += len(piece.tokens)
        ids = [token.token for token in piece.tokens]
        one.tokens += ids
        self.sent = True
        self._note_finish(piece, one)
        self.digest.add(piece.index, ids, piece.text)
        return True

    def _accept_echo(self, piece: PieceMessage, one: _Sequence) -> bool:
        assert self.prompt_tokens is not None, "the processor has begun"
        if not self._request.echo or self.sent or piece.tool_calls:
            raise PeerProtocolError("an echo that nobody asked for, or that comes too late")
        before = one.echoed_now
        one.echoed_now += len(piece.tokens)
        if one.echoed_now > self.prompt_tokens:
            raise PeerProtocolError("an echo of more tokens than the prompt has")
        if (piece.finish_reason is not None) != (
            self._request.max_tokens == 0 and one.echoed_now == self.prompt_tokens
        ):
            raise PeerProtocolError("an echo that says wrongly whether something follows it")
        if one.echoed_now <= one.echoed:
            return False  # the client has it from another processor
        if before < one.echoed:
            raise PeerProtocolError("an echo that is cut otherwise than the one before it")
        one.echoed = one.echoed_now
        self._note_finish(piece, one)
        return True

    def _note_finish(self, piece: PieceMessage, one: _Sequence) -> None:
        if piece.finish_reason is not None and not one.finished:
            one.finished = True
            self._unfinished -= 1

    def _check_goes_on(self, one: _Sequence) -> None:
        if one.finished:
            raise PeerProtocolError("a piece of a completion that has ended")
        if self._request.echo and any(
            other.echoed != self.prompt_tokens for other in self._sequences
        ):
            raise PeerProtocolError("a completion that begins before the echo is whole")

    def _check_room(self, piece: PieceMessage, one: _Sequence) -> None:
        if len(one.tokens) + len(piece.tokens) > self._most_each:
            raise PeerProtocolError("a processor sends more tokens than were asked for")

    def _check_ending(self, piece: PieceMessage) -> None:
        if piece.stop_string is not None and piece.stop_string not in self._request.stop:
            raise PeerProtocolError("a completion stopped by a string that nobody gave")
        calls = bool(piece.tool_calls) or piece.finish_reason == "tool_calls"
        if calls and not (self._has_tools and piece.finish_reason is not None):
            raise PeerProtocolError("a call of a tool where there is none, or before the end")

    def _check_token(self, token: TokenMessage) -> None:
        known = token.logprob is None or not math.isnan(token.logprob)
        if not known or token.offset < 0 or not -_TOKEN_BOUND <= token.token < _TOKEN_BOUND:
            raise PeerProtocolError("a token whose numbers make no sense")
        for other in token.top:
            if other.top:
                raise PeerProtocolError("alternatives of an alternative")
            self._check_token(other)
