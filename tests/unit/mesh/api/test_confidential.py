"""What users send is in no repr, and thus in no log line or error that quotes one."""

from __future__ import annotations

import pytest

from tinkex.mesh.api.completion import (
    ChatMessage,
    CompletionMessage,
    PieceMessage,
    TextMessage,
    TokenMessage,
    TokensMessage,
)
from tinkex.mesh.api.gateway import Complete, CountPrompt, ListModels, PublishAdapter
from tinkex.mesh.api.processor import CountTokens, Work

SECRET = "s3cret"
REQUEST = CompletionMessage(model="m", prompt=TextMessage(SECRET), stop=(SECRET,))


@pytest.mark.parametrize(
    "message",
    [
        REQUEST,
        TextMessage(SECRET),
        TokensMessage([8315]),
        ChatMessage([{"role": "user", "content": SECRET}]),
        TokenMessage(8315, SECRET, SECRET.encode(), None),
        PieceMessage(0, SECRET),
        Complete(credential=SECRET, request=REQUEST),
        ListModels(credential=SECRET),
        CountPrompt(credential=SECRET, request=REQUEST),
        PublishAdapter(credential=SECRET, name="n", base_model="b", content="c"),
        Work(permit=b"", request=SECRET.encode()),
        CountTokens(request=REQUEST),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_repr_shows_nothing_of_what_a_user_sent(message):
    assert SECRET not in repr(message)
    assert "8315" not in repr(message)
    assert type(message).__name__ in repr(message)
