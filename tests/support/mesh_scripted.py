"""A model that everybody can compute: what a processor would sample, without weights.

Token `k` of completion `i` is a digest of (prompt, seed, i, all tokens before), so that a stream
goes on rightly only from the very tokens that were there. Its text is one letter.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence

from tinkex.mesh.api.completion import (
    CompletionMessage,
    PieceMessage,
    TextMessage,
    TokenMessage,
    TokensMessage,
)

VOCABULARY = 26


def prompt_ids(request: CompletionMessage) -> list[int]:
    """One token a character."""
    if isinstance(request.prompt, TokensMessage):
        return list(request.prompt.tokens)
    if isinstance(request.prompt, TextMessage):
        return [ord(letter) for letter in request.prompt.text]
    return [ord(letter) for one in request.prompt.messages for letter in str(one["content"])]


def next_token(request: CompletionMessage, index: int, before: Sequence[int]) -> int:
    content = repr((prompt_ids(request), request.seed, index, list(before))).encode()
    return hashlib.sha256(content).digest()[0] % VOCABULARY


def completion(request: CompletionMessage, index: int, tokens: int) -> list[int]:
    """All tokens of one completion."""
    found: list[int] = []
    while len(found) < tokens:
        found.append(next_token(request, index, found))
    return found


def text_of(tokens: Sequence[int]) -> str:
    return "".join(chr(97 + token) for token in tokens)


def token_message(token: int, offset: int = 0) -> TokenMessage:
    text = chr(97 + token) if token < VOCABULARY else chr(token % 128)
    return TokenMessage(token, text, text.encode(), -0.5, (), offset)


def echo_pieces(request: CompletionMessage) -> Iterator[PieceMessage]:
    ids = prompt_ids(request)
    for index in range(request.n):
        yield PieceMessage(
            index,
            "".join(map(chr, ids)),
            tuple(token_message(token) for token in ids),
            echo=True,
            finish_reason="length" if request.max_tokens == 0 else None,
        )


def pieces(
    request: CompletionMessage,
    resume: Sequence[Sequence[int]],
    finished: Sequence[int],
    rng: random.Random,
) -> Iterator[PieceMessage]:
    """What a processor sends, cut at random: tokens wait until their text is shown."""
    tokens = 16 if request.max_tokens is None else request.max_tokens
    if request.echo and not resume:
        yield from echo_pieces(request)
    if not tokens:
        return
    have = [list(one) for one in resume] or [[] for _ in range(request.n)]
    waiting: list[list[int]] = [[] for _ in range(request.n)]
    running = [index for index in range(request.n) if index not in finished]
    while running:
        index = rng.choice(running)
        sampled = next_token(request, index, have[index])
        have[index].append(sampled)
        waiting[index].append(sampled)
        ends = len(have[index]) == tokens
        if ends or rng.random() < 0.6:
            start = len(have[index]) - len(waiting[index])
            yield PieceMessage(
                index,
                text_of(waiting[index]),
                tuple(token_message(one, start + k) for k, one in enumerate(waiting[index])),
                finish_reason="length" if ends else None,
            )
            waiting[index] = []
        if ends:
            running.remove(index)
