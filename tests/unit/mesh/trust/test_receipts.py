"""Receipts: what verifies, what does not, and that cutting a stream changes no digest."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_trust import receipt_body

from tinkex.errors import TrustError
from tinkex.mesh.identity import KeyPair
from tinkex.mesh.trust.receipts import (
    OutputDigest,
    ReceiptBody,
    check_receipt,
    countersign,
    is_countersigned,
    sign_receipt,
    verify_receipt,
)

GATEWAY, CLIENT = KeyPair(b"g" * 32), KeyPair(b"c" * 32)


def seen() -> OutputDigest:
    digest = OutputDigest(2)
    digest.add(0, [5, 6], "ab")
    digest.add(1, [7], "c")
    return digest


BODY = receipt_body(GATEWAY, CLIENT, output=seen().digest())


def check(body: ReceiptBody, digest: OutputDigest) -> None:
    check_receipt(body, client=CLIENT.peer_id, request_id="r", prompt_tokens=4, seen=digest)


def test_a_receipt_says_what_the_gateway_signed():
    body, signature = sign_receipt(GATEWAY, BODY)
    assert verify_receipt(body, signature, gateway=GATEWAY.peer_id) == BODY
    check(BODY, seen())


def test_a_receipt_that_was_changed_or_signed_by_another_does_not_hold():
    body, signature = sign_receipt(GATEWAY, BODY)
    changed = msgspec.msgpack.encode(msgspec.structs.replace(BODY, completion_tokens=300))
    with pytest.raises(TrustError, match="not signed by"):
        verify_receipt(changed, signature, gateway=GATEWAY.peer_id)
    with pytest.raises(TrustError, match="not signed by"):
        verify_receipt(body, signature, gateway=CLIENT.peer_id)
    with pytest.raises(TrustError, match="names another"):
        verify_receipt(*sign_receipt(CLIENT, BODY), gateway=CLIENT.peer_id)
    with pytest.raises(TrustError, match="cannot be read"):
        verify_receipt(b"x", GATEWAY.sign("receipt", b"x"), gateway=GATEWAY.peer_id)


@pytest.mark.parametrize(
    "change",
    [
        {"client": GATEWAY.peer_id.raw},
        {"request_id": "other"},
        {"prompt_tokens": 5},
        {"completion_tokens": 4},
        {"output": b"\0" * 32},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_client_refuses_a_receipt_that_does_not_fit_what_it_saw(change):
    with pytest.raises(TrustError, match=next(iter(change))):
        check(msgspec.structs.replace(BODY, **change), seen())


def test_a_token_that_was_swapped_between_completions_shows():
    other = OutputDigest(2)
    other.add(0, [5], "ab")
    other.add(1, [6, 7], "c")
    with pytest.raises(TrustError, match="output"):
        check(BODY, other)


def test_a_countersignature_is_the_clients_and_no_receipts_signature():
    body, signature = sign_receipt(GATEWAY, BODY)
    agreed = countersign(CLIENT, body)
    assert is_countersigned(body, agreed, client=CLIENT.peer_id)
    assert not is_countersigned(body, signature, client=GATEWAY.peer_id)
    assert not is_countersigned(body + b"x", agreed, client=CLIENT.peer_id)


@settings(max_examples=40)
@given(
    tokens=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.text(max_size=3)), max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
def test_the_digest_knows_no_pieces(tokens, cuts):
    whole, pieces = OutputDigest(1), OutputDigest(1)
    whole.add(0, [one for one, _ in tokens], "".join(text for _, text in tokens))
    places = [0, *sorted(min(cut, len(tokens)) for cut in cuts), len(tokens)]
    for start, end in pairwise(places):
        part = tokens[start:end]
        pieces.add(0, [one for one, _ in part], "".join(text for _, text in part))
    assert pieces.digest() == whole.digest()
    assert pieces.tokens == whole.tokens == len(tokens)
