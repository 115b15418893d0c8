"""Turns prose and chat into packed rows of tokens, with the marks that keep documents apart.

A row holds whole documents one after another: conversations and paragraphs. `positions` start
again at 0 with each document, so a document's tokens see only their own document. `weights` is 1
where the assistant speaks, and less in prose and in what the user says.
"""

import zlib
from dataclasses import dataclass
from itertools import islice
from random import Random

import numpy as np
from chat import Messages, conversations
from prose import read_prose
from tokenizers import Tokenizer

ROW = 256
_PROMPT_WEIGHT, _PROSE_WEIGHT = 0.1, 0.3


@dataclass(frozen=True)
class Rows:
    """Packed documents, each array [rows, ROW]."""

    tokens: np.ndarray
    """Token ids, int16."""
    positions: np.ndarray
    """Place of each token in its document, int16."""
    weights: np.ndarray
    """Weight of each token as a target, float16; 0 for a document's first token."""


Document = tuple[list[int], list[float]]


def prose_documents(tokenizer: Tokenizer, *, test: bool) -> list[Document]:
    """Encode the paragraphs of the training or the test part (one in fifty, by checksum)."""
    lines = [x for x in read_prose() if (zlib.crc32(x.encode()) % 50 == 0) == test]
    end = tokenizer.token_to_id("<|endoftext|>")
    encoded = [[*e.ids, end][:ROW] for e in tokenizer.encode_batch(lines)]
    return [(ids, [0.0] + [_PROSE_WEIGHT] * (len(ids) - 1)) for ids in encoded]


def chat_documents(tokenizer: Tokenizer, chats: list[Messages]) -> list[Document]:
    """Encode conversations in the form of the chat template."""
    pieces = [piece for chat in chats for message in chat for piece in _pieces(message)]
    encoded = iter(tokenizer.encode_batch([text for text, _ in pieces]))
    documents: list[Document] = []
    for chat in chats:
        ids: list[int] = []
        weights: list[float] = []
        for message in chat:
            for _, weight in _pieces(message):
                new = next(encoded).ids
                ids += new
                weights += [weight] * len(new)
        documents.append((ids[:ROW], [0.0, *weights[1:ROW]]))
    return documents


def pack(documents: list[Document]) -> Rows:
    """Fill rows with whole documents, in the order given; the rest of a row has weight 0."""
    rows: list[Document] = []
    places: list[list[int]] = []
    for ids, weights in documents:
        if not rows or len(rows[-1][0]) + len(ids) > ROW:
            rows.append(([], []))
            places.append([])
        rows[-1][0].extend(ids)
        rows[-1][1].extend(weights)
        places[-1].extend(range(len(ids)))
    return Rows(
        _fill([ids for ids, _ in rows], np.int16),
        _fill(places, np.int16),
        _fill([weights for _, weights in rows], np.float16),
    )


def training_rows(tokenizer: Tokenizer, seed: int, chats: int, prose_epochs: int) -> Rows:
    """Make the training rows: that many conversations and passes over the prose, shuffled."""
    documents = chat_documents(tokenizer, list(islice(conversations(seed), chats)))
    documents += prose_documents(tokenizer, test=False) * prose_epochs
    Random(seed).shuffle(documents)  # noqa: S311 - an order of training, not a secret
    return pack(documents)


def test_rows(tokenizer: Tokenizer) -> dict[str, Rows]:
    """Make the held-out rows of both kinds."""
    chats = list(islice(conversations(seed=99, test=True), 2000))
    return {
        "chat": pack(chat_documents(tokenizer, chats)),
        "prose": pack(prose_documents(tokenizer, test=True)),
    }


def _pieces(message: dict[str, str]) -> list[tuple[str, float]]:
    said = 1.0 if message["role"] == "assistant" else _PROMPT_WEIGHT
    return [
        (f"<|im_start|>{message['role']}\n", 0.0),
        (f"{message['content']}", said),
        ("<|im_end|>", said),
        ("\n", 0.0),
    ]


def _fill(rows: list[list], dtype: type) -> np.ndarray:
    array = np.zeros((len(rows), ROW), dtype)
    for target, row in zip(array, rows, strict=True):
        target[: len(row)] = row
    return array
