"""`tinkex chat`: what is left of a conversation when a reply is not to be had."""

from __future__ import annotations

import base64

import numpy as np
import orjson
import pytest
from scripted_tinker import API, ok, scripted_peer, service

import tinkex as tinker
from tinkex.cli.sampling import _Conversation, _ends
from tinkex.engine.models.loader import _ASSETS
from tinkex.testing.server import PeerResponse
from tinkex.wire.proto import encode_sample_response

SPROUT = str(_ASSETS / "sprout")
STREAM = f"{API}/sample_stream"


@pytest.fixture
def peer():
    pytest.importorskip("transformers")
    with scripted_peer() as running:
        yield running


@pytest.fixture
def conversation(peer):
    with service(peer, max_retries=0) as client:
        config = tinker.RetryConfig(enable_retry_logic=False)
        sampler = client.create_sampling_client(
            base_model="tinkex/sprout", retry_config=config
        ).result(10)
        yield _Conversation(sampler, tinker.SamplingParams(max_tokens=4), None)


def stream(conversation, text, *, whole=True):
    """A reply; one that is not whole breaks off after its text."""
    ids = conversation._tokenizer.encode(text, add_special_tokens=False)
    sequence = tinker.SampledSequence("stop", "", np.asarray(ids, np.int32))
    raw = base64.b64encode(encode_sample_response(tinker.SampleResponse([sequence]))).decode()
    events = [
        {"type": "started", "sequence_ids": ["s:0"]},
        {"type": "tokens", "index": 0, "tokens": ids, "logprobs": [-0.5] * len(ids)},
        {"type": "finished", "response": raw},
    ]
    body = b"".join(b"data: %b\n\n" % orjson.dumps(one) for one in events[: 3 if whole else 2])
    return PeerResponse(200, body, content_type="text/event-stream")


def asked(conversation, peer):
    """What the last request said so far."""
    [chunk] = peer.requests_to(STREAM)[-1].json()["prompt"]["chunks"]
    return conversation._tokenizer.decode(chunk["tokens"])


@pytest.mark.parametrize("trouble", ["broken off", "refused", "lost"])
def test_reply_that_fails_at_a_terminal_is_told_and_the_conversation_goes_on(
    conversation, peer, capsys, trouble
):
    failing = {
        "broken off": stream(conversation, "Half", whole=False),
        "refused": ok({"detail": "out of order"}, 503),
        "lost": PeerResponse(drop=True),
    }[trouble]
    peer.expect(STREAM, stream(conversation, "Hello"), failing, stream(conversation, "Well"))
    conversation.say("Good morning", goes_on=True)
    conversation.say("Is it true?", goes_on=True)
    conversation.say("How are you?", goes_on=True)
    said = asked(conversation, peer)
    assert "Good morning" in said
    assert "Hello" in said
    assert "Is it true?" not in said
    shown = capsys.readouterr()
    half = "Half\n" if trouble == "broken off" else ""
    assert shown.out == f"Hello\n{half}Well\n"
    assert shown.err.startswith("Error: ")


def test_reply_that_fails_in_a_script_ends_it(conversation, peer):
    peer.expect(STREAM, stream(conversation, "Half", whole=False))
    with pytest.raises(tinker.APIConnectionError):
        conversation.say("Good morning")


def test_reply_ends_where_the_template_ends_it_though_the_model_names_another_end(
    peer, monkeypatch
):
    from transformers import AutoTokenizer

    with service(peer, max_retries=0) as client:
        sampler = client.create_sampling_client(base_model="tinkex/sprout").result(10)
        tokenizer = AutoTokenizer.from_pretrained(SPROUT)
        monkeypatch.setattr(sampler, "get_tokenizer", lambda: tokenizer)
        params = tinker.SamplingParams(max_tokens=4)
        assert _Conversation(sampler, params, None)._params.stop is None
        tokenizer.eos_token = "<|endoftext|>"
        stops = ["<|im_end|>", "<|endoftext|>"]
        assert _Conversation(sampler, params, None)._params.stop == stops
        assert _ends(["now"], tokenizer, chats=True) == ["now", *stops]
        assert _ends(["now"], tokenizer, chats=False) == ["now", "<|endoftext|>"]
        assert _ends([], tokenizer, chats=False) is None
        tokenizer.chat_template = "{{ messages | length }}"
        assert _Conversation(sampler, params, None)._params.stop is None
        tokenizer.chat_template = None  # it is refused when somebody speaks
        assert _Conversation(sampler, params, None)._params.stop is None
